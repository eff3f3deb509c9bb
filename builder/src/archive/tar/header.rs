//! One header block of a tar archive: fields at fixed places, numbers in the ways that programs write
//! them. Pure; the formats are those of POSIX (pax, "ustar"), GNU tar's manual and libarchive's tar(5).

use super::TarError;

pub(super) const BLOCK: usize = 512;

/// The bytes of a header.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Whether the checksum is right: of the bytes as unsigned, or as signed numbers, as some old
    /// programs had them.
    pub(super) fn is_sound(&self) -> bool {
        let Ok(Some(expected)) = number(&self.0[148..156]) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        i128::from(unsigned) == expected || i128::from(signed) == expected
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that POSIX's format has for it. Old GNU headers have other things there.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.is_posix() { text(&self.0[345..500]) } else { &[] };
        match prefix {
            [] => name.to_owned(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    fn is_posix(&self) -> bool {
        self.0[257..262] == *b"ustar" && self.0[257..265] != *b"ustar  \0"
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    /// The content's length in the archive.
    pub(super) fn size(&self) -> Result<u64, TarError> {
        let value = self.field("size", 124..136)?;
        u64::try_from(value).map_err(|_| TarError::Number { field: "size" })
    }

    /// The permission bits. A blank field is 0, as to every other program.
    pub(super) fn mode(&self) -> Result<u32, TarError> {
        Ok((self.field("mode", 100..108)? & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> u64 {
        self.owner(108..116)
    }

    pub(super) fn gid(&self) -> u64 {
        self.owner(116..124)
    }

    /// Owners mean nothing in a source archive, so whatever stands there fails nothing.
    fn owner(&self, range: std::ops::Range<usize>) -> u64 {
        let value = number(&self.0[range]).ok().flatten().unwrap_or_default();
        u64::try_from(value).unwrap_or_default()
    }

    fn field(&self, field: &'static str, range: std::ops::Range<usize>) -> Result<i128, TarError> {
        let number = number(&self.0[range]).map_err(|NotANumber| TarError::Number { field })?;
        Ok(number.unwrap_or_default())
    }
}

/// A field that holds something else than a number.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotANumber;

/// A numeric field: octal digits between blanks and NULs, or base 256 if its first bit is set (two's
/// complement without that bit, as GNU and star write what is large or negative). `None` if it is blank.
pub(super) fn number(field: &[u8]) -> Result<Option<i128>, NotANumber> {
    if let Some(first) = field.first().filter(|first| **first & 0x80 != 0) {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        // Twelve bytes at most: 95 bits.
        return Ok(Some(field[1..].iter().fold(start, |sum, byte| sum << 8 | i128::from(*byte))));
    }
    let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0;
    let start = field.iter().take_while(|byte| blank(byte)).count();
    let digits = field[start..].iter().take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    let (digits, rest) = field[start..].split_at(digits);
    // What follows a NUL or a blank is whatever was in memory.
    if rest.first().is_some_and(|byte| !blank(byte)) {
        return Err(NotANumber);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    Ok(Some(digits.iter().fold(0, |sum, digit| sum << 3 | i128::from(digit - b'0'))))
}

/// A text field: to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_programs_write_them() {
        for (field, expected) in [
            (&b"0000644\0"[..], Ok(Some(0o644))),
            (b"   644 \0", Ok(Some(0o644))),
            (b"644\0junk", Ok(Some(0o644))),
            (b"77777777777 ", Ok(Some(0o77777777777))),
            (b"777777777777", Ok(Some(0o777777777777))),
            (b"\x00000644\0", Ok(Some(0o644))),
            (b"        ", Ok(None)),
            (b"\0\0\0\0\0\0\0\0", Ok(None)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Ok(Some(256))),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(Some(-2))),
            (b"8", Err(NotANumber)),
            (b"644x", Err(NotANumber)),
            (b"-1", Err(NotANumber)),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
