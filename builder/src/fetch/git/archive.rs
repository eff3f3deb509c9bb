//! The canonical archive of a git tree: the file that a git source is, by whose SHA-256 it is known.
//!
//! A tar archive in GNU's format, of a tree's files, symbolic links and empty directories (submodules
//! that weren't asked for), in the order of their paths' bytes; owner, group and time 0, no names of users,
//! mode 0755 for what is executable, for links and for directories, else 0644; two blocks of zeros at its
//! end. It is what GNU tar makes of a checkout by the command in docs/derivations.md, bit for bit, so that
//! nobody needs srp to check a hash. These bytes are frozen: another order or field is another hash.

use std::io::{self, Read};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File { executable: bool },
    Link,
    Directory,
}

const BLOCK: usize = 512;
/// What eleven octal digits can hold, and one more.
const MAX_BYTES: u64 = 1 << 33;

/// Where an archive goes.
pub(super) trait Sink {
    /// Why it takes no more.
    type Error: From<io::Error>;

    /// Takes the next bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Writes one entry. `path` and a link's `target` are as git has them; of a file, `length` bytes are read.
pub(super) fn entry<S: Sink>(
    to: &mut S,
    path: &[u8],
    kind: Kind,
    target: &[u8],
    content: &mut dyn Read,
    length: u64,
) -> Result<(), S::Error> {
    if length >= MAX_BYTES {
        return Err(io::Error::other("a file of 8 GiB or more").into());
    }
    let mut path = path.to_vec();
    let (flag, mode) = match kind {
        Kind::File { executable: false } => (b'0', 0o644),
        Kind::File { executable: true } => (b'0', 0o755),
        Kind::Link => (b'2', 0o755),
        Kind::Directory => {
            path.push(b'/');
            (b'5', 0o755)
        }
    };
    for (flag, name) in [(b'K', target), (b'L', &path[..])] {
        if name.len() > 100 {
            let name = [name, b"\0"].concat();
            let length = name.len() as u64;
            to.take(&header(b"././@LongLink", 0o644, length, flag, b""))?;
            padded(to, &mut &name[..], length)?;
        }
    }
    to.take(&header(&path, mode, length, flag, target))?;
    padded(to, content, length)
}

/// Writes what an archive ends with.
pub(super) fn end<S: Sink>(to: &mut S) -> Result<(), S::Error> {
    to.take(&[0; 2 * BLOCK])
}

fn padded<S: Sink>(to: &mut S, from: &mut dyn Read, length: u64) -> Result<(), S::Error> {
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(1 << 16).min(1 << 16)];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        from.read_exact(&mut buffer[..most])?;
        to.take(&buffer[..most])?;
        left -= most as u64;
    }
    let over = (length % BLOCK as u64) as usize;
    if over > 0 {
        to.take(&[0; BLOCK][over..])?;
    }
    Ok(())
}

fn header(path: &[u8], mode: u32, length: u64, flag: u8, target: &[u8]) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut field = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    field(0, &path[..path.len().min(100)]);
    field(100, format!("{mode:07o}\0").as_bytes());
    field(108, b"0000000\0");
    field(116, b"0000000\0");
    field(124, format!("{length:011o}\0").as_bytes());
    field(136, b"00000000000\0");
    // The checksum is computed as if its own field were blank.
    field(148, b"        ");
    field(156, &[flag]);
    field(157, &target[..target.len().min(100)]);
    field(257, b"ustar  \0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
