//! `ar` archives: static libraries, member by member, and the outer layer of a `.deb` (`deb(5)`, `ar(5)`),
//! of which only `data.tar.*` is read.

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

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
pub(crate) struct ArMember {
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// Parses one member's header of 60 bytes: name, time, owner, group, mode, size, end mark.
pub(crate) fn parse_header(header: &[u8; HEADER]) -> Option<ArMember> {
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
    Some(ArMember { name: name.to_owned(), size: size.parse().ok()? })
}

/// Leaves the reader at the beginning of `data.tar.*` and returns its size.
pub(crate) fn find_data<R: Read + Seek>(reader: &mut R) -> Result<u64, ArError> {
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

/// Reads the members of any `ar` archive one after the other; between them, by [`Read`], the content of
/// the last one. Long names are GNU's (in a table, the member `//`) or BSD's (before the content).
pub(crate) struct ArReader<R> {
    source: R,
    left: u64,
    padded: bool,
    names: Vec<u8>,
}

/// A table of names that is longer isn't kept.
const MAX_NAMES: u64 = 16 << 20;

impl<R: Read> ArReader<R> {
    /// Passes over the magic bytes at the beginning.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut magic = [0; 8];
        source.read_exact(&mut magic)?;
        Ok(ArReader { source, left: 0, padded: false, names: Vec::new() })
    }

    /// The name of the next member with content of its own; `None` where no header follows.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            io::copy(self, &mut io::sink())?;
            if std::mem::take(&mut self.padded) {
                self.source.read_exact(&mut [0])?;
            }
            let mut header = [0; HEADER];
            self.source.read_exact(&mut header)?;
            let size = std::str::from_utf8(&header[48..58]).ok();
            let size = size.and_then(|size| size.trim().parse::<u64>().ok());
            let Some(size) = size.filter(|_| header[58..] == *b"`\n") else { return Ok(None) };
            (self.left, self.padded) = (size, size % 2 == 1);
            let name = header[..16].trim_ascii_end();
            let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<usize>().ok();
            let name = match name {
                b"//" if size <= MAX_NAMES => {
                    let mut names = Vec::new();
                    self.read_to_end(&mut names)?;
                    self.names = names;
                    continue;
                }
                [b'#', b'1', b'/', length @ ..] => {
                    let length = number(length).filter(|length| *length <= 4096).unwrap_or(0);
                    let mut long = Vec::new();
                    self.by_ref().take(length as u64).read_to_end(&mut long)?;
                    long.truncate(long.iter().position(|byte| *byte == 0).unwrap_or(long.len()));
                    long
                }
                [b'/', digits @ ..] if number(digits).is_some() => {
                    let at = number(digits).unwrap_or_default();
                    let long = self.names.get(at..).unwrap_or_default();
                    let end = long.iter().position(|byte| *byte == b'\n').unwrap_or(long.len());
                    long[..end].strip_suffix(b"/").unwrap_or(&long[..end]).to_owned()
                }
                name => {
                    name.strip_suffix(b"/").filter(|it| !it.is_empty()).unwrap_or(name).to_owned()
                }
            };
            return Ok(Some(name));
        }
    }
}

impl<R: Read> Read for ArReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.source.read(&mut into[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
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
