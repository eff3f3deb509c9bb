//! Opens what is packed, so that its content can be searched: gzip, xz, lzip, bzip2 and zstd by
//! their magic; the members of zip, tar and ar archives, nested to a bound; the compressed
//! sections of ELF files.
//!
//! It is no unpacker: nothing is written, nothing is validated, names only serve messages. What
//! can't be decoded (a test's corrupt archive) is searched as far as it goes, as the bytes that it
//! is. Memory is bounded per level; what is unpacked is bounded over all levels of a file.

use std::fs::File;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use bzip2::bufread::{BzDecoder, MultiBzDecoder};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::elf::{Compression, compressed_sections};
use super::forbidden::Search;
use super::searching::Searching;

/// How many levels (a gzip stream, an archive's member) are entered.
pub(super) const DEPTH_LIMIT: usize = 12;

/// The largest ELF member of an archive whose compressed sections are looked at: they can't be
/// found without the whole file.
const ELF_MEMBER_LIMIT_BYTES: u64 = 512 << 20;

/// How much of a file's start tells its format: a tar header's magic ends at 262.
const HEAD_BYTES: usize = 512;

/// A stream says itself how far back it refers, and so how much memory decoding it takes. This is
/// what the outermost one may take (as a power of two): as much as the formats' tools give without
/// being asked to. One that lies in another gets half of what that one may take.
const MEMORY_LOG: u32 = 27;
/// What decoders need beside that.
const MEMORY_OVERHEAD_BYTES: u64 = 2 << 20;

/// Searches one file of a tree, at every level. Errors are those of reading the file itself.
pub(super) fn search_file(search: &Search<'_>, file: File, size_bytes: u64) -> io::Result<()> {
    let mut level = Searching::file(search, file, size_bytes);
    let mut inside = Vec::new();
    let is_elf = level.fill_buf()?.starts_with(b"\x7fELF");
    if !is_elf {
        contents(search, &mut level, &mut inside);
    }
    let file = level.finish(&inside)?;
    if is_elf {
        elf_sections(search, file, &mut inside)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Gzip,
    Xz,
    Lzip,
    Bzip2,
    Zstd,
    Zip,
    Tar,
    Ar,
    Elf,
}

impl Format {
    fn of(head: &[u8]) -> Option<Format> {
        // A zip archive may hide behind an interpreter line (Python's zipapps).
        let zip = b"PK\x03\x04";
        let behind_script = head.starts_with(b"#!")
            && head.windows(5).any(|window| window[0] == b'\n' && window[1..] == *zip);
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Format::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Format::Xz),
            [b'L', b'Z', b'I', b'P', 0 | 1, ..] => Some(Format::Lzip),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
                Some(Format::Bzip2)
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
            // A skippable frame, as pzstd and the seekable format write.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Format::Zstd),
            [b'P', b'K', 3, 4, ..] => Some(Format::Zip),
            [0x7f, b'E', b'L', b'F', ..] => Some(Format::Elf),
            _ if behind_script => Some(Format::Zip),
            _ if head.starts_with(b"!<arch>\n") => Some(Format::Ar),
            _ if head.get(257..262) == Some(b"ustar") => Some(Format::Tar),
            _ => None,
        }
    }
}

/// Enters what `reader` holds, if it is a container. The raw bytes are searched by whoever is
/// behind `reader`; how much of them is read here does not matter.
fn contents(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    if Read::take(&mut *reader, HEAD_BYTES as u64).read_to_end(&mut head).is_err() {
        return;
    }
    let Some(format) = Format::of(&head) else {
        return;
    };
    if inside.len() >= DEPTH_LIMIT {
        search.too_deep.set(true);
        return;
    }
    let mut whole = Cursor::new(head).chain(reader);
    match format {
        Format::Gzip => unpack(search, MultiGzDecoder::new(&mut whole), "gzip", inside),
        Format::Bzip2 => unpack(search, MultiBzDecoder::new(&mut whole), "bzip2", inside),
        Format::Xz => with_memory(search, |log| {
            if let Ok(stream) = Stream::new_stream_decoder(memory_bytes(log), CONCATENATED) {
                unpack(search, XzDecoder::new_stream(&mut whole, stream), "xz", inside);
            }
        }),
        Format::Lzip => with_memory(search, |log| {
            if let Ok(stream) = Stream::new_lzip_decoder(memory_bytes(log), CONCATENATED) {
                unpack(search, XzDecoder::new_stream(&mut whole, stream), "lzip", inside);
            }
        }),
        Format::Zstd => with_memory(search, |log| {
            if let Some(decoder) = zstd_decoder(&mut whole, log) {
                unpack(search, decoder, "zstd", inside);
            }
        }),
        Format::Zip => zip_members(search, &mut whole, inside),
        Format::Tar => tar_members(search, &mut whole, inside),
        Format::Ar => ar_members(search, &mut whole, inside),
        Format::Elf => elf_member(search, &mut whole, inside),
    }
}

fn zstd_decoder<R: BufRead>(reader: R, memory_log: u32) -> Option<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(reader).ok()?;
    decoder.window_log_max(memory_log).ok()?;
    Some(decoder)
}

/// Decodes with as much memory as is left at this level; `work` gets the power of two.
fn with_memory(search: &Search<'_>, work: impl FnOnce(u32)) {
    let level = search.decoders.get();
    search.decoders.set(level + 1);
    work(MEMORY_LOG.saturating_sub(level));
    search.decoders.set(level);
}

fn memory_bytes(log: u32) -> u64 {
    (1 << log) + MEMORY_OVERHEAD_BYTES
}

/// Whether decoding ended because it would take more memory than it may.
fn takes_too_much(error: &io::Error) -> bool {
    let by_xz = error.get_ref().and_then(|error| error.downcast_ref::<liblzma::stream::Error>());
    // zstd's errors are texts.
    matches!(by_xz, Some(liblzma::stream::Error::MemLimit))
        || error.to_string().contains("requires too much memory")
}

/// Searches what `decoder` yields. That it fails at some point only ends what can be searched.
fn unpack(search: &Search<'_>, decoder: impl Read, name: &str, inside: &mut Vec<String>) {
    inside.push(name.to_owned());
    let mut level = Searching::unpacked(search, decoder);
    contents(search, &mut level, inside);
    if let Err(error) = level.finish(inside) {
        if takes_too_much(&error) {
            search.too_much_memory.set(true);
        }
        tracing::debug!(inside = inside.join(" > "), %error, "searched as far as it decodes");
    }
    inside.pop();
}

/// Enters a member whose bytes are not packed themselves.
fn member(search: &Search<'_>, reader: &mut dyn BufRead, name: String, inside: &mut Vec<String>) {
    inside.push(name);
    contents(search, reader, inside);
    inside.pop();
}

fn elf_sections<F: Read + Seek>(
    search: &Search<'_>,
    file: F,
    inside: &mut Vec<String>,
) -> io::Result<()> {
    let (sections, mut file) = compressed_sections(file);
    for section in sections {
        file.seek(SeekFrom::Start(section.stream.start))?;
        let length = section.stream.end - section.stream.start;
        let stream = io::BufReader::new(file.by_ref().take(length));
        let name = format!("section {}", short(section.name.as_bytes()));
        match section.compression {
            Compression::Zlib => unpack(search, ZlibDecoder::new(stream), &name, inside),
            Compression::Zstd => with_memory(search, |log| {
                if let Some(decoder) = zstd_decoder(stream, log) {
                    unpack(search, decoder, &name, inside);
                }
            }),
        }
    }
    Ok(())
}

fn elf_member(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut bytes = Vec::new();
    if reader.take(ELF_MEMBER_LIMIT_BYTES + 1).read_to_end(&mut bytes).is_err() {
        return;
    }
    if bytes.len() as u64 > ELF_MEMBER_LIMIT_BYTES {
        search.exhausted.set(true);
        return;
    }
    elf_sections(search, Cursor::new(bytes), inside).expect("memory can be read and sought");
}

fn ar_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut header = [0; 60];
    if reader.read_exact(&mut header[..8]).is_err() {
        return;
    }
    while reader.read_exact(&mut header).is_ok() && header[58..] == *b"`\n" {
        let Some(size) = number(&header[48..58], 10) else { return };
        let name = format!("ar member {}", short(header[..16].trim_ascii_end()));
        let mut body = Read::take(&mut *reader, size);
        member(search, &mut body, name, inside);
        if skip_rest(&mut body).is_err() || (size % 2 == 1 && reader.read_exact(&mut [0]).is_err())
        {
            return;
        }
    }
}

fn tar_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut header = [0; 512];
    while reader.read_exact(&mut header).is_ok() && header[257..262] == *b"ustar" {
        let size = match header[124] {
            // The base-256 form of sizes that don't fit: the last eight bytes are plenty.
            0x80 => Some(u64::from_be_bytes(
                header[128..136].try_into().expect("the range has eight bytes"),
            )),
            _ => number(&header[124..136], 8),
        };
        let Some(size) = size else { return };
        let end = header[..100].iter().position(|&byte| byte == 0).unwrap_or(100);
        let name = format!("tar member {}", short(&header[..end]));
        let mut body = Read::take(&mut *reader, size);
        if matches!(header[156], 0 | b'0' | b'7') {
            member(search, &mut body, name, inside);
        }
        let padding = (512 - size % 512) % 512;
        if skip_rest(&mut body).is_err()
            || skip_rest(&mut Read::take(&mut *reader, padding)).is_err()
        {
            return;
        }
    }
}

/// Walks local headers, from signature to signature, because the directory at the end can't be
/// reached in a stream. What lies between members, and stored data of unknown length, is passed
/// over; members of an archive that is itself stored are found as if they were the outer one's.
fn zip_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    while let Ok(true) = skip_past_zip_signature(reader) {
        let mut header = [0; 26];
        if reader.read_exact(&mut header).is_err() {
            return;
        }
        let short_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let flags = short_at(2);
        let method = short_at(4);
        let mut size = u64::from(short_at(14)) | u64::from(short_at(16)) << 16;
        let mut names = vec![0; usize::from(short_at(22)) + usize::from(short_at(24))];
        if reader.read_exact(&mut names).is_err() {
            return;
        }
        let (name, extra) = names.split_at(usize::from(short_at(22)));
        let name = format!("zip member {}", short(name));
        if size == u64::from(u32::MAX) {
            size = zip64_size(extra).unwrap_or(0);
        }
        if flags & 1 != 0 {
            continue; // Encrypted: nobody can look inside.
        }
        let unknown = flags & 8 != 0 && size == 0;
        if unknown && method == 0 {
            continue; // Stored, up to nobody knows where: the next signature is looked for.
        }
        // Packed streams say where they end, so an unknown size means no limit.
        let mut body = Read::take(&mut *reader, if unknown { u64::MAX } else { size });
        match method {
            0 => member(search, &mut body, name, inside),
            8 => unpack_bounded(search, DeflateDecoder::new(&mut body), &name, inside),
            12 => unpack_bounded(search, BzDecoder::new(&mut body), &name, inside),
            93 => with_memory(search, |log| {
                if let Some(decoder) = zstd_decoder(&mut body, log) {
                    unpack_bounded(search, decoder.single_frame(), &name, inside);
                }
            }),
            95 => with_memory(search, |log| {
                if let Ok(stream) = Stream::new_stream_decoder(memory_bytes(log), 0) {
                    let decoder = XzDecoder::new_stream(&mut body, stream);
                    unpack_bounded(search, decoder, &name, inside);
                }
            }),
            _ => {}
        }
        if !unknown && skip_rest(&mut body).is_err() {
            return;
        }
    }
}

/// [`unpack`] for a member that is packed as well as named: the one place where a level is entered
/// without [`contents`] having checked how deep it is.
fn unpack_bounded(search: &Search<'_>, decoder: impl Read, name: &str, inside: &mut Vec<String>) {
    if inside.len() >= DEPTH_LIMIT {
        search.too_deep.set(true);
    } else {
        unpack(search, decoder, name, inside);
    }
}

fn skip_past_zip_signature(reader: &mut dyn BufRead) -> io::Result<bool> {
    const SIGNATURE: &[u8; 4] = b"PK\x03\x04";
    let mut matched = 0;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let mut used = 0;
        if matched == 0 {
            used = memchr::memchr(SIGNATURE[0], bytes).unwrap_or(bytes.len());
        }
        while used < bytes.len() && matched < SIGNATURE.len() {
            if bytes[used] == SIGNATURE[matched] {
                matched += 1;
            } else if matched > 0 {
                // Only its first byte can start it again, so this byte is looked at once more.
                matched = 0;
                continue;
            } else {
                break;
            }
            used += 1;
        }
        // A byte that starts nothing is passed over by the next memchr.
        reader.consume(used);
        if matched == SIGNATURE.len() {
            return Ok(true);
        }
    }
}

/// The packed size in a zip64 extra field, which follows the plain size.
fn zip64_size(mut extra: &[u8]) -> Option<u64> {
    while let [id_low, id_high, length_low, length_high, rest @ ..] = extra {
        let length = usize::from(u16::from_le_bytes([*length_low, *length_high]));
        let field = rest.get(..length)?;
        if u16::from_le_bytes([*id_low, *id_high]) == 1 {
            return Some(u64::from_le_bytes(field.get(8..16)?.try_into().ok()?));
        }
        extra = &rest[length..];
    }
    None
}

fn skip_rest(reader: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let length = reader.fill_buf()?.len();
        if length == 0 {
            return Ok(());
        }
        reader.consume(length);
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, radix).ok() }
}

/// A foreign name as messages print it.
fn short(name: &[u8]) -> String {
    let name: String = String::from_utf8_lossy(name).chars().take(120).collect();
    name.escape_debug().to_string()
}
