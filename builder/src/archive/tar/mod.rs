//! Tar archives of every dialect in use: v7, ustar, old and new GNU, star, pax, and what Solaris made.
//!
//! Headers are read here and not by the `tar` crate, which refuses what others read: numbers left blank,
//! records with newlines in them, sparse files of the pax kinds, signed checksums. A reader takes an
//! archive to its first block of zeros or its end, like GNU tar, bsdtar and Python's tarfile. What these
//! three read in different ways is refused rather than guessed.

mod extended;
mod header;
mod sparse;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

use thiserror::Error;

use self::extended::{Extended, check_global};
use self::header::{BLOCK, Header};
use super::{Kind, Member};

/// What the headers of one member may take in all. Attributes and access lists are among them.
const MAX_HEADERS: u64 = 16 << 20;

/// What is wrong with an archive.
#[derive(Debug, Error)]
pub(crate) enum TarError {
    /// The source can't be read, or it can't be decompressed.
    #[error(transparent)]
    Read(io::Error),
    #[error("it ends within a header or an entry")]
    Truncated,
    #[error("the header at byte {offset} has a wrong checksum")]
    Checksum { offset: u64 },
    #[error("a header's field `{field}` is no number that is possible")]
    Number { field: &'static str },
    #[error("a header is far too long")]
    HeaderTooLong,
    #[error("an extended header is malformed")]
    Extended,
    #[error("a global extended header sets `{key}`, which tar programs read differently")]
    Global { key: String },
    #[error("the map of a sparse file is malformed")]
    SparseMap,
    #[error("a sparse file is of a format that isn't known")]
    SparseFormat,
}

impl TarError {
    /// A failure to read: ends are the archive's fault.
    fn reading(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if error.get_ref().is_none() => TarError::Truncated,
            _ => TarError::Read(error),
        }
    }
}

/// Whether a tar archive begins so: with a header whose checksum is right.
pub(crate) fn begins(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk() else { return false };
    block[0] != 0 && Header(block).is_sound()
}

/// Reads members one after the other; between them, by [`Read`], the content of the last one.
pub(crate) struct TarReader<R> {
    source: R,
    /// How much of the archive was read.
    offset: u64,
    /// How much of the current member's content is left.
    left: u64,
    /// What fills its last block.
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(source: R) -> Self {
        TarReader { source, offset: 0, left: 0, padding: 0 }
    }

    /// What is behind the archive's end: padding, if anything.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    /// The next member; what is left of the last one's content is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut headers = 0;
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? || block == [0; BLOCK] {
                let nothing_promised = headers == 0;
                return if nothing_promised { Ok(None) } else { Err(TarError::Truncated) };
            }
            let header = Header(&block);
            if !header.is_sound() {
                return Err(TarError::Checksum { offset: self.offset - BLOCK as u64 });
            }
            let kind = header.kind();
            if matches!(kind, b'L' | b'K' | b'x' | b'X' | b'g') {
                let size = header.size()?;
                headers += size + BLOCK as u64;
                if size > MAX_HEADERS || headers > MAX_HEADERS {
                    return Err(TarError::HeaderTooLong);
                }
                self.begin(size);
                let mut body = Vec::new();
                self.read_to_end(&mut body).map_err(TarError::reading)?;
                match kind {
                    b'L' => long_name = Some(header::text(&body).to_owned()),
                    b'K' => long_link = Some(header::text(&body).to_owned()),
                    // A global header stands for itself: nothing need follow it.
                    b'g' => {
                        check_global(&body)?;
                        headers -= size + BLOCK as u64;
                    }
                    _ => extended.add(&body)?,
                }
                continue;
            }
            if kind == b'V' {
                // The label of a volume is for who handles tapes.
                self.begin(header.size()?);
                continue;
            }
            let name = long_name.take().unwrap_or_else(|| header.name());
            let link = long_link.take().unwrap_or_else(|| header.link().to_owned());
            return self.member(&header, extended, name, link).map(Some);
        }
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        extended: Extended,
        name: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Member, TarError> {
        let Extended { path, link: long_link, size, sparse } = extended;
        let name = sparse.name.clone().or(path).unwrap_or(name);
        let link = long_link.unwrap_or(link);
        let stored = match size {
            Some(size) => size,
            None => header.size()?,
        };
        let mut size_bytes = stored;
        let kind = match header.kind() {
            // Before POSIX a directory was a file whose name ends with a slash.
            0 | b'0' | b'7' | b'S' if name.ends_with(b"/") => {
                self.begin(stored);
                Kind::Directory
            }
            b'S' => {
                // The map's blocks stand between the header and the content.
                let (extents, real) = self.old_sparse(header)?;
                self.begin(stored);
                sparse::check(&extents, real, stored)?;
                size_bytes = real;
                Kind::Sparse(extents)
            }
            0 | b'0' | b'7' => {
                self.begin(stored);
                if sparse.is_some() {
                    let extents = self.pax_sparse(&sparse)?;
                    size_bytes = sparse.real_size.ok_or(TarError::SparseMap)?;
                    sparse::check(&extents, size_bytes, self.left)?;
                    Kind::Sparse(extents)
                } else {
                    Kind::File
                }
            }
            // Of these the size says other things, if anything: no content follows.
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Other("character device"),
            b'4' => Kind::Other("block device"),
            b'5' => Kind::Directory,
            b'6' => Kind::Other("fifo"),
            kind => {
                self.begin(stored);
                match kind {
                    // A directory of an incremental archive: its content are names.
                    b'D' => Kind::Directory,
                    b'M' => Kind::Other("file continued from another volume"),
                    b'N' => Kind::Other("list of long names of GNU tar before 1.10"),
                    _ => Kind::Other("thing of an unknown type"),
                }
            }
        };
        if !matches!(kind, Kind::File | Kind::Sparse(_)) {
            size_bytes = 0;
        }
        let (mode, uid, gid) = (header.mode()?, header.uid(), header.gid());
        Ok(Member { name, kind, mode, uid, gid, size_bytes })
    }

    /// The map and length of a sparse file in the old GNU format.
    fn old_sparse(&mut self, header: &Header<'_>) -> Result<(Vec<super::Extent>, u64), TarError> {
        let mut extents = Vec::new();
        sparse::old_extents(&header.0[386..482], 4, &mut extents)?;
        let mut more = header.0[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err(TarError::Truncated);
            }
            sparse::old_extents(&block[..504], 21, &mut extents)?;
            more = block[504] != 0;
        }
        let real = header::number(&header.0[483..495]).ok().flatten();
        let real = real.and_then(|real| u64::try_from(real).ok());
        Ok((extents, real.ok_or(TarError::Number { field: "realsize" })?))
    }

    /// The map of a sparse file in one of pax's formats.
    fn pax_sparse(&mut self, sparse: &extended::Sparse) -> Result<Vec<super::Extent>, TarError> {
        match (sparse.major.unwrap_or(0), sparse.minor.unwrap_or(0)) {
            (0, 0 | 1) => sparse::paired(&sparse.map),
            (1, 0) => Ok(sparse::read_map(&mut *self)?.0),
            _ => Err(TarError::SparseFormat),
        }
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 1 << 15];
        while self.read(&mut buffer).map_err(TarError::reading)? > 0 {}
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(padding), &mut io::sink());
        self.offset += skipped.map_err(TarError::reading)?;
        Ok(())
    }

    /// Reads a block; false at the end of the archive.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        self.offset += BLOCK as u64;
        Ok(true)
    }
}

impl<R: Read> Read for TarReader<R> {
    /// The current member's content. An archive that ends within it is an error.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.source.read(&mut into[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        self.offset += read as u64;
        Ok(read)
    }
}
