//! Compressed files: by header and by content.

use std::io::Read;

use super::contents;
use super::part::{Looking, Sign};

/// More isn't decompressed.
const MOST_BYTES: u64 = 256 << 20;

/// What a compressed file is.
struct Unpacked {
    /// How it was compressed.
    kind: &'static str,
    /// What its header says beside the content.
    header: String,
    bytes: Vec<u8>,
}

/// Compares two compressed files; false if they aren't both compressed in one way.
pub(super) fn compare(looking: &mut Looking<'_>, before: &[u8], after: &[u8], depth: u32) -> bool {
    let (Some(one), Some(other)) = (unpack(before), unpack(after)) else { return false };
    if one.kind != other.kind {
        return false;
    }
    if one.header != other.header {
        let place = format!("{} header", one.kind);
        looking.sign(Sign::CompressionHeader, &place, &one.header, &other.header);
    } else if one.bytes == other.bytes {
        looking.mark(Sign::CompressionOnly);
        let what = "the same content, compressed differently (level, threads, program)";
        looking.note(one.kind, what);
    }
    if one.bytes != other.bytes {
        looking.inside("decompressed", |looking| {
            contents(looking, &one.bytes, &other.bytes, depth + 1);
        });
    }
    true
}

fn unpack(bytes: &[u8]) -> Option<Unpacked> {
    let read = |reader: &mut dyn Read| {
        let mut unpacked = Vec::new();
        reader.take(MOST_BYTES + 1).read_to_end(&mut unpacked).ok()?;
        (unpacked.len() as u64 <= MOST_BYTES).then_some(unpacked)
    };
    let plain = |kind, bytes| Some(Unpacked { kind, header: String::new(), bytes });
    if bytes.starts_with(b"\x1f\x8b") {
        let first = flate2::bufread::GzDecoder::new(bytes);
        let header = first.header()?;
        let name = String::from_utf8_lossy(header.filename().unwrap_or_default()).into_owned();
        let header =
            format!("time {}, name {name:?}, system {}", header.mtime(), header.operating_system());
        let bytes = read(&mut flate2::bufread::MultiGzDecoder::new(bytes))?;
        return Some(Unpacked { kind: "gzip", header, bytes });
    }
    if bytes.starts_with(b"\xfd7zXZ\0") {
        return plain("xz", read(&mut liblzma::read::XzDecoder::new_multi_decoder(bytes))?);
    }
    if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        return plain("zstd", read(&mut zstd::stream::read::Decoder::new(bytes).ok()?)?);
    }
    if bytes.starts_with(b"BZh") {
        return plain("bzip2", read(&mut bzip2::bufread::MultiBzDecoder::new(bytes))?);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(time: u32, bytes: &[u8]) -> Vec<u8> {
        let mut encoder =
            flate2::GzBuilder::new().mtime(time).write(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    #[test]
    fn header_and_content_are_told_apart() {
        let mut looking = Looking::new(&[]);
        assert!(compare(&mut looking, &gzip(1, b"same\n"), &gzip(2, b"same\n"), 0));
        let (parts, signs) = looking.found();
        assert_eq!(parts[0].place, "gzip header");
        assert_eq!(signs.into_iter().collect::<Vec<_>>(), [Sign::CompressionHeader]);
        let mut looking = Looking::new(&[]);
        assert!(compare(&mut looking, &gzip(1, b"one\n"), &gzip(1, b"two\n"), 0));
        assert_eq!(looking.found().0[0].place, "decompressed: line 1");
    }
}
