//! Compressed files: by header and by content.

use std::io::Read;

use super::contents;
use super::part::{Looking, Sign};
use crate::archive::{Budget, Signature, streams};
use crate::cancel::CancelToken;

/// More isn't decompressed.
const MOST_BYTES: u64 = 256 << 20;

/// What a decoder may hold.
const MOST_MEMORY_BYTES: u64 = 640 << 20;

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
    let signature = Signature::of(bytes);
    let kind = signature.compression()?;
    let header = match signature {
        Signature::Gzip => gzip_header(bytes)?,
        _ => String::new(),
    };
    // It is over before anybody would cancel it.
    let cancel = CancelToken::new().ok()?;
    let budget = Budget::new(&cancel, MOST_MEMORY_BYTES, MOST_BYTES);
    let mut unpacked = Vec::new();
    let reader = streams::open(signature, bytes, 0, &budget).ok()?;
    reader.take(MOST_BYTES + 1).read_to_end(&mut unpacked).ok()?;
    (unpacked.len() as u64 <= MOST_BYTES).then_some(Unpacked { kind, header, bytes: unpacked })
}

fn gzip_header(bytes: &[u8]) -> Option<String> {
    let first = flate2::bufread::GzDecoder::new(bytes);
    let header = first.header()?;
    let name = String::from_utf8_lossy(header.filename().unwrap_or_default()).into_owned();
    Some(format!("time {}, name {name:?}, system {}", header.mtime(), header.operating_system()))
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
