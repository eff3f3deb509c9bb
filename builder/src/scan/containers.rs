//! Opens what is packed, so that its content can be searched: compressed streams, the members of zip,
//! tar and ar archives, nested to a bound; the compressed sections of ELF files.
//!
//! It is no unpacker: nothing is written, nothing is validated, names only serve messages. What
//! can't be decoded (a test's corrupt archive) is searched as far as it goes, as the bytes that it
//! is. What decoders hold and what comes out of them is bounded over all levels of a file
//! ([`crate::archive`]); a file that is over a bound was not searched to its end, and is refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};

use flate2::bufread::ZlibDecoder;

use super::elf::{Compression, compressed_sections};
use super::forbidden::Search;
use super::searching::Searching;
use crate::archive::ar::ArReader;
use crate::archive::tar::{TarError, TarReader};
use crate::archive::{Kind, Signature, streams};

/// How many levels (a gzip stream, an archive's member) are entered.
pub(super) const DEPTH_LIMIT: usize = 12;

/// How much of an ELF member of an archive is read at once. Its compressed sections can't be found
/// without the whole file.
const ELF_CHUNK_BYTES: usize = 1 << 20;

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

/// Enters what `reader` holds, if it is a container. The raw bytes are searched by whoever is
/// behind `reader`; how much of them is read here does not matter.
fn contents(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut head = Vec::with_capacity(Signature::HEAD_BYTES);
    if Read::take(&mut *reader, Signature::HEAD_BYTES as u64).read_to_end(&mut head).is_err() {
        return;
    }
    let signature = Signature::of(&head);
    if matches!(signature, Signature::Unknown | Signature::Known(_)) {
        return;
    }
    if inside.len() >= DEPTH_LIMIT {
        search.too_deep.set(true);
        return;
    }
    let mut whole = Cursor::new(head).chain(reader);
    match signature {
        Signature::Zip => zip_members(search, &mut whole, inside),
        Signature::Tar => tar_members(search, &mut whole, inside),
        Signature::Ar => ar_members(search, &mut whole, inside),
        Signature::Elf => elf_member(search, &mut whole, inside),
        _ => {
            let name = signature.compression().unwrap_or("compressed data");
            unpack(search, streams::open(signature, whole, 0, &search.budget), name, inside);
        }
    }
}

/// Searches what `decoder` yields. That it fails at some point only ends what can be searched, unless
/// it fails by what it needs.
fn unpack(
    search: &Search<'_>,
    decoder: io::Result<impl Read>,
    name: &str,
    inside: &mut Vec<String>,
) {
    inside.push(name.to_owned());
    let result = decoder.and_then(|decoder| {
        let mut level = Searching::unpacked(search, decoder);
        contents(search, &mut level, inside);
        level.finish(inside).map(drop)
    });
    if let Err(error) = result {
        search.failed(&error);
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
        let stream = BufReader::new(file.by_ref().take(length));
        let name = format!("section {}", short(section.name.as_bytes()));
        match section.compression {
            Compression::Zlib => unpack(search, Ok(ZlibDecoder::new(stream)), &name, inside),
            Compression::Zstd => {
                let decoder = streams::open(Signature::Zstd, stream, 0, &search.budget);
                unpack(search, decoder, &name, inside);
            }
        }
    }
    Ok(())
}

fn elf_member(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut bytes = Vec::new();
    let Ok(mut charge) = search.budget.charge(0) else { return };
    loop {
        // A vector that grows holds up to twice what is in it.
        let needed = 2 * (bytes.len() + ELF_CHUNK_BYTES) as u64;
        if let Err(error) = search.budget.grow(&mut charge, needed) {
            search.failed(&error);
            return;
        }
        match Read::take(&mut *reader, ELF_CHUNK_BYTES as u64).read_to_end(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    elf_sections(search, Cursor::new(bytes), inside).expect("memory can be read and sought");
}

fn ar_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let Ok(mut archive) = ArReader::new(reader) else { return };
    while let Ok(Some(name)) = archive.next() {
        let name = format!("ar member {}", short(&name));
        member(search, &mut BufReader::new(&mut archive), name, inside);
    }
}

fn tar_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let mut archive = TarReader::new(reader);
    loop {
        match archive.next() {
            Ok(None) | Err(TarError::Read(_) | TarError::Truncated) => return,
            Ok(Some(it)) if matches!(it.kind, Kind::File | Kind::Sparse(_)) => {
                let name = format!("tar member {}", short(&it.name));
                member(search, &mut BufReader::new(&mut archive), name, inside);
            }
            // What is malformed is passed over, up to the next header.
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

/// Walks local headers, from signature to signature, because the directory at the end can't be
/// reached in a stream. What lies between members, and stored data of unknown length, is passed
/// over; members of an archive that is itself stored are found as if they were the outer one's.
fn zip_members(search: &Search<'_>, reader: &mut dyn BufRead, inside: &mut Vec<String>) {
    let budget = &search.budget;
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
            8 => unpack_bounded(search, streams::deflate(&mut body, budget), &name, inside),
            12 => unpack_bounded(search, streams::one_bzip2(&mut body, budget), &name, inside),
            14 => {
                let mut head = [0; 9];
                if body.read_exact(&mut head).is_ok() {
                    let properties = head.last_chunk().expect("nine bytes end with five");
                    let decoder = streams::raw_lzma(properties, None, &mut body, budget);
                    unpack_bounded(search, decoder, &name, inside);
                }
            }
            93 => unpack_bounded(search, streams::one_zstd(&mut body, budget), &name, inside),
            95 => unpack_bounded(search, streams::one_xz(&mut body, budget), &name, inside),
            _ => {}
        }
        if !unknown && skip_rest(&mut body).is_err() {
            return;
        }
    }
}

/// [`unpack`] for a member that is packed as well as named: the one place where a level is entered
/// without [`contents`] having checked how deep it is.
fn unpack_bounded(
    search: &Search<'_>,
    decoder: io::Result<impl Read>,
    name: &str,
    inside: &mut Vec<String>,
) {
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

/// A foreign name as messages print it.
fn short(name: &[u8]) -> String {
    let name: String = String::from_utf8_lossy(name).chars().take(120).collect();
    name.escape_debug().to_string()
}
