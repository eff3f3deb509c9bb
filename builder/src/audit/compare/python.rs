//! Compiled Python: by header, then by code.
//!
//! The header is four words: which compiler made it (PEP 3147), and by what it is told whether it is
//! still right for its source (PEP 552), the source's time and size or the source's hash.

use super::binary;
use super::part::{Looking, Sign};

const HEADER_BYTES: usize = 16;

/// What begins the file.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    compiler: u16,
    flags: u32,
    words: [u32; 2],
}

/// By its hash, and not by its time and size.
const BY_HASH: u32 = 1;
/// And is the hash looked at when it is loaded?
const IS_CHECKED: u32 = 2;

/// Compares two files of compiled Python; false if they aren't both such.
pub(super) fn compare(looking: &mut Looking<'_>, before: &[u8], after: &[u8]) -> bool {
    let (Some(one), Some(other)) = (Header::of(before), Header::of(after)) else { return false };
    let place = |field: &str| format!("Python bytecode header: {field}");
    if one.compiler != other.compiler {
        let [one, other] = [&one, &other].map(|it| it.compiler.to_string());
        looking.sides(&place("compiler's number"), &one, &other);
    }
    if one.flags != other.flags {
        looking.sides(&place("flags"), one.way(), other.way());
    } else if one.flags & BY_HASH != 0 {
        let [one, other] =
            [&one, &other].map(|it| format!("{:08x}{:08x}", it.words[1], it.words[0]));
        if one != other {
            looking.sides(&place("source's hash"), &one, &other);
        }
    } else {
        let [time, size] = [0, 1].map(|word| [one.words[word], other.words[word]]);
        if time[0] != time[1] {
            let [one, other] = time.map(|it| it.to_string());
            looking.sign(Sign::BytecodeTime, &place("source's time"), &one, &other);
        }
        if size[0] != size[1] {
            let [one, other] = size.map(|it| it.to_string());
            looking.sides(&place("source's size"), &one, &other);
        }
    }
    let (before, after) = (&before[HEADER_BYTES..], &after[HEADER_BYTES..]);
    if before != after {
        binary::compare(looking, "Python bytecode", before, after);
    }
    true
}

impl Header {
    fn of(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let word = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let compiler = u16::from_le_bytes([bytes[0], bytes[1]]);
        let flags = word(4);
        // Of Python 3.0 to 3.99; a line of text that ends so has no such second character.
        let is_python = (3000..4000).contains(&compiler) && &bytes[2..4] == b"\r\n";
        (is_python && flags <= BY_HASH | IS_CHECKED).then_some(Header {
            compiler,
            flags,
            words: [word(8), word(12)],
        })
    }

    fn way(&self) -> &'static str {
        match (self.flags & BY_HASH != 0, self.flags & IS_CHECKED != 0) {
            (false, _) => "by the source's time and size",
            (true, true) => "by the source's hash, checked",
            (true, false) => "by the source's hash, unchecked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytecode(flags: u32, words: [u32; 2], code: &str) -> Vec<u8> {
        let mut bytes = 3571u16.to_le_bytes().to_vec();
        bytes.extend(b"\r\n");
        for word in [flags, words[0], words[1]] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(code.as_bytes());
        bytes
    }

    #[test]
    fn the_header_is_told_by_field() {
        let cases = [
            (bytecode(0, [1, 7], "a"), bytecode(0, [2, 7], "a"), "header: source's time"),
            (bytecode(0, [1, 7], "a"), bytecode(0, [1, 8], "a"), "header: source's size"),
            (bytecode(1, [1, 7], "a"), bytecode(1, [1, 8], "a"), "header: source's hash"),
            (bytecode(0, [1, 7], "a"), bytecode(3, [1, 7], "a"), "header: flags"),
            (bytecode(0, [1, 7], "a"), bytecode(0, [1, 7], "b"), ": byte 0"),
        ];
        for (one, other, place) in cases {
            let mut looking = Looking::new(&[]);
            assert!(compare(&mut looking, &one, &other));
            let (parts, signs) = looking.found();
            let places: Vec<&str> = parts.iter().map(|part| part.place.as_str()).collect();
            assert_eq!(
                places,
                [format!("Python bytecode{}", place.replacen("header", " header", 1))]
                    .each_ref()
                    .map(|it| it.as_str()),
                "{parts:?}"
            );
            assert_eq!(signs.contains(&Sign::BytecodeTime), place.ends_with("time"));
        }
    }

    #[test]
    fn what_is_no_bytecode_is_left_to_others() {
        let good = bytecode(0, [1, 7], "a");
        for other in [&b"ab\r\ntext of some length"[..], &good[..15], &bytecode(4, [1, 7], "a")] {
            assert!(!compare(&mut Looking::new(&[]), &good, other));
        }
    }
}
