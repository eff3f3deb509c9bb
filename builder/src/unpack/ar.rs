//! The outer layer of a `.deb`: an `ar` archive (`deb(5)`, `ar(5)`), of which only `data.tar.*` is read.
//! Parsing is pure; one function finds the data in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use thiserror::Error;

use super::error::UnpackError;

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: usize = 60;

/// A package has three or four members, and signatures perhaps; more is no package.
const MAX_MEMBERS: usize = 64;

/// Why a file is no Debian package.
#[derive(Debug, Error)]
pub enum ArError {
    /// Not an `ar` archive at all.
    #[error("it does not begin like an ar archive")]
    Magic,
    /// A member's header that is none.
    #[error("the ar header at byte {offset} is malformed")]
    Header {
        /// Where it should be.
        offset: u64,
    },
    /// A member that is longer than the file.
    #[error("it ends within its member {name:?}")]
    Truncated {
        /// The member.
        name: String,
    },
    /// The first member isn't `debian-binary`, or of another format than 2.x.
    #[error("it has no `debian-binary` of format 2 as its first member")]
    Version,
    /// There is no `data.tar` member.
    #[error("it has no data.tar member")]
    NoData,
    /// Reading failed.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// A member's name and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) size: u64,
}

/// Parses one member's header of 60 bytes: name, time, owner, group, mode, size, end mark.
pub(super) fn parse_header(header: &[u8; HEADER]) -> Option<Member> {
    if &header[58..60] != b"`\n" {
        return None;
    }
    let field = |range: std::ops::Range<usize>| {
        let text = std::str::from_utf8(&header[range]).ok()?;
        text.is_ascii().then(|| text.trim_end_matches(' '))
    };
    // GNU ar ends names with a slash, dpkg doesn't. BSD's `#1/17` and GNU's `//` aren't for packages.
    let name = field(0..16)?;
    let name = name.strip_suffix('/').unwrap_or(name);
    let size = field(48..58)?;
    let sound = !name.is_empty()
        && !name.contains(['/', '\0'])
        && !size.is_empty()
        && size.bytes().all(|byte| byte.is_ascii_digit());
    sound.then_some(())?;
    Some(Member { name: name.to_owned(), size: size.parse().ok()? })
}

/// Finds the data of a package. The file is positioned at its beginning; the second value is its size.
pub(super) fn open_deb_data(
    path: &Path,
    mut file: File,
) -> Result<(io::Take<File>, u64), UnpackError> {
    let failure = |source| UnpackError::Ar { path: path.to_owned(), source };
    let size = find_data(&mut file).map_err(failure)?;
    Ok((file.take(size), size))
}

/// Leaves the reader at the beginning of `data.tar.*` and returns its size.
pub(super) fn find_data<R: Read + Seek>(reader: &mut R) -> Result<u64, ArError> {
    let end = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(0))?;
    let mut magic = [0; 8];
    if end < 8 {
        return Err(ArError::Magic);
    }
    reader.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(ArError::Magic);
    }
    let mut offset = MAGIC.len() as u64;
    for number in 0..MAX_MEMBERS {
        if offset >= end {
            break;
        }
        let malformed = ArError::Header { offset };
        if end - offset < HEADER as u64 {
            return Err(malformed);
        }
        reader.seek(SeekFrom::Start(offset))?;
        let mut header = [0; HEADER];
        reader.read_exact(&mut header)?;
        let Some(member) = parse_header(&header) else { return Err(malformed) };
        let body = offset + HEADER as u64;
        if member.size > end - body {
            return Err(ArError::Truncated { name: member.name });
        }
        if number == 0 {
            let mut version = [0; 2];
            if member.name != "debian-binary" || member.size < 4 || member.size > 64 {
                return Err(ArError::Version);
            }
            reader.read_exact(&mut version)?;
            if &version != b"2." {
                return Err(ArError::Version);
            }
        }
        if member.name == "data.tar" || member.name.starts_with("data.tar.") {
            reader.seek(SeekFrom::Start(body))?;
            return Ok(member.size);
        }
        // Members begin at even offsets. Sizes are bounded by the file's, so nothing overflows.
        offset = body + member.size + member.size % 2;
    }
    Err(ArError::NoData)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len())
                .into_bytes();
        bytes.extend(body);
        if body.len() % 2 == 1 {
            bytes.push(b'\n');
        }
        bytes
    }

    fn package(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, body) in members {
            bytes.extend(member(name, body));
        }
        bytes
    }

    fn find(bytes: &[u8]) -> Result<Vec<u8>, ArError> {
        let mut cursor = Cursor::new(bytes);
        let size = find_data(&mut cursor)?;
        let mut data = Vec::new();
        cursor.take(size).read_to_end(&mut data)?;
        Ok(data)
    }

    const VERSION: (&str, &[u8]) = ("debian-binary", b"2.0\n");

    #[test]
    fn data_is_found_after_odd_members() {
        let bytes = package(&[VERSION, ("control.tar.xz", b"odd"), ("data.tar.xz/", b"the data")]);
        assert_eq!(find(&bytes).expect("found"), b"the data");
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let good = package(&[VERSION, ("data.tar", b"x")]);
        assert!(matches!(find(b""), Err(ArError::Magic)));
        assert!(matches!(find(b"not an archive"), Err(ArError::Magic)));
        assert!(matches!(find(MAGIC), Err(ArError::NoData)));
        assert!(matches!(find(&package(&[VERSION])), Err(ArError::NoData)));
        assert!(matches!(find(&package(&[("data.tar", b"x")])), Err(ArError::Version)));
        let version_3 = package(&[("debian-binary", b"3.0\n"), ("data.tar", b"x")]);
        assert!(matches!(find(&version_3), Err(ArError::Version)));
        assert!(matches!(find(&good[..good.len() - 2]), Err(ArError::Truncated { .. })));
        assert!(matches!(find(&good[..40]), Err(ArError::Header { offset: 8 })));
        let mut negative = good.clone();
        negative[8 + 48..8 + 50].copy_from_slice(b"-4");
        assert!(matches!(find(&negative), Err(ArError::Header { .. })));
        let mut huge = good;
        huge[8 + 48..8 + 58].copy_from_slice(b"9999999999");
        assert!(matches!(find(&huge), Err(ArError::Truncated { .. })));
        let many: Vec<_> = std::iter::once(VERSION).chain([("x", &b""[..]); 100]).collect();
        assert!(matches!(find(&package(&many)), Err(ArError::NoData)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = find(&bytes);
            let _ = find(&[MAGIC, &bytes[..]].concat());
        }

        #[test]
        fn any_header_is_survived(header in proptest::array::uniform32(any::<u8>()), tail in any::<[u8; 28]>()) {
            let mut whole = [0; HEADER];
            whole[..32].copy_from_slice(&header);
            whole[32..].copy_from_slice(&tail);
            let _ = parse_header(&whole);
            whole[58..].copy_from_slice(b"`\n");
            let _ = parse_header(&whole);
        }

        #[test]
        fn damaged_packages_are_survived(at in 0usize..400, byte: u8) {
            let mut bytes = package(&[VERSION, ("control.tar.xz", b"odd"), ("data.tar.xz", b"the data")]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = find(&bytes);
        }
    }
}
