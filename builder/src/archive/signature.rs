//! What a file is, by its first bytes.

use super::tar;

/// Formats that are read, and those that are known by name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    Gzip,
    Bzip2,
    Xz,
    Lzip,
    /// `xz --format=lzma`, "LZMA alone".
    Lzma,
    Zstd,
    Tar,
    Zip,
    Ar,
    Elf,
    /// A format that nothing here reads, in words.
    Known(&'static str),
    Unknown,
}

/// Formats that people try to unpack, and what they begin with.
const KNOWN: &[(&[u8], &str)] = &[
    (b"\x1f\x9d", "compressed by compress (.Z)"),
    (b"\x1f\xa0", "compressed by compress -H (SCO .Z)"),
    (b"\x1f\x1e", "compressed by pack (.z)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (.7z)"),
    (b"Rar!\x1a\x07", "a RAR archive (.rar)"),
    (b"\x04\x22\x4d\x18", "compressed by lz4 (.lz4)"),
    (b"\x89LZO\0\r\n\x1a\n", "compressed by lzop (.lzo)"),
    (b"LRZI", "compressed by lrzip (.lrz)"),
    (b"\xed\xab\xee\xdb", "an RPM package (.rpm)"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"\xc7\x71", "a cpio archive (binary)"),
    (b"MSCF", "a cabinet (.cab)"),
    (b"xar!", "a xar archive (.pkg)"),
    (b"hsqs", "a squashfs file system"),
    (b"#!/bin/sh", "a shell script (a self-extracting archive?)"),
    (b"PK\x05\x06", "an empty zip archive"),
];

impl Signature {
    /// How much of a file's start is looked at: a tar header.
    pub(crate) const HEAD_BYTES: usize = 512;

    /// What begins so.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 8, ..] => return Self::Gzip,
            // A block's magic or the end's: "BZh" alone begins many a text.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => {
                return Self::Bzip2;
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Self::Xz,
            [b'L', b'Z', b'I', b'P', 0 | 1, ..] => return Self::Lzip,
            // The second is a frame to be skipped, as pzstd and the seekable format write.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                return Self::Zstd;
            }
            [b'P', b'K', 3, 4, ..] => return Self::Zip,
            [0x7f, b'E', b'L', b'F', ..] => return Self::Elf,
            _ if head.starts_with(b"!<arch>\n") => return Self::Ar,
            _ => {}
        }
        if tar::begins(head) {
            return Self::Tar;
        }
        // A zip archive may hide behind an interpreter line (Python's zipapps).
        if head.starts_with(b"#!") && head.windows(5).any(|window| window == b"\nPK\x03\x04") {
            return Self::Zip;
        }
        if let Some((_, name)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Self::Known(name);
        }
        if is_lzma(head) {
            return Self::Lzma;
        }
        let text = head.trim_ascii_start();
        let page =
            |tag: &[u8]| text.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag));
        if page(b"<!doctype html") || page(b"<html") {
            return Self::Known("an HTML page");
        }
        Self::Unknown
    }

    /// The compression's name, where it is one that is read.
    pub(crate) fn compression(self) -> Option<&'static str> {
        Some(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzip => "lzip",
            Self::Lzma => "LZMA",
            Self::Zstd => "zstd",
            _ => return None,
        })
    }

    /// What it is, in words for a message, where anything is known.
    pub(crate) fn describe(self) -> Option<&'static str> {
        Some(match self {
            Self::Gzip => "compressed by gzip",
            Self::Bzip2 => "compressed by bzip2",
            Self::Xz => "compressed by xz",
            Self::Lzip => "compressed by lzip",
            Self::Lzma => "compressed by lzma",
            Self::Zstd => "compressed by zstd",
            Self::Tar => "a tar archive",
            Self::Zip => "a zip archive",
            Self::Ar => "an ar archive (a Debian package?)",
            Self::Elf => "an ELF file",
            Self::Known(name) => name,
            Self::Unknown => return None,
        })
    }
}

/// This format has no magic: properties, a dictionary's size, the length or that it isn't known. As
/// liblzma does, only sizes that encoders write are believed.
fn is_lzma(head: &[u8]) -> bool {
    let Some((properties, rest)) = head.split_first() else { return false };
    let (Some(dictionary), Some(length)) = (rest.first_chunk(), rest.get(4..12)) else {
        return false;
    };
    let dictionary = u32::from_le_bytes(*dictionary);
    let length = length.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let usual = dictionary == u32::MAX
        || (dictionary >= 1 << 12
            && (dictionary.is_power_of_two()
                || dictionary.count_ones() == 2 && (dictionary << 1) & dictionary != 0));
    // The coder's first byte is always zero.
    *properties < 9 * 5 * 5
        && usual
        && (length == u64::MAX || (1..1 << 38).contains(&length))
        && head.get(13) == Some(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        for (head, expected) in [
            (&b"\x1f\x8b\x08\0"[..], Signature::Gzip),
            (b"BZh9\x17\x72\x45\x38\x50\x90", Signature::Bzip2),
            (b"BZh is how a note may begin", Signature::Unknown),
            (b"LZIP\x01", Signature::Lzip),
            (b"\x50\x2a\x4d\x18\0\0\0\0", Signature::Zstd),
            (b"]\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", Signature::Lzma),
            (b"]\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\x01", Signature::Unknown),
            (b"#!/usr/bin/env python3\nPK\x03\x04", Signature::Zip),
            (b"\x1f\x9d\x90", Signature::Known("compressed by compress (.Z)")),
            (b"  <!DOCTYPE HTML>", Signature::Known("an HTML page")),
            (b"", Signature::Unknown),
            (&[0; 512], Signature::Unknown),
        ] {
            assert_eq!(Signature::of(head), expected, "{head:?}");
        }
    }
}
