//! Zip archives, by their directory at the end (PKWARE's APPNOTE), as unzip and bsdtar read them.
//!
//! The `zip` crate reads the directory; members are decompressed by [`super::streams`], within a budget,
//! and must have the length and checksum that the directory states. Times aren't looked at, so that they
//! lie before 1980 or nowhere harms nothing. Members that share bytes are a bomb, and refused.

use std::io::{self, BufReader, Read, Seek};

use thiserror::Error;
use zip::{CompressionMethod, ZipArchive};

use super::budget::{Budget, Watched};
use super::{Kind, Member, streams};

/// Above this a directory isn't read: a million members have about 100 MiB.
const MAX_MEMBERS: usize = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, Error)]
pub(crate) enum ZipError {
    #[error("{source}")]
    Format { source: zip::result::ZipError },
    #[error("it holds more than {MAX_MEMBERS} members")]
    TooMany,
    #[error("members of it share bytes, as only a bomb's do")]
    Overlap,
    #[error("the member {name:?} is encrypted")]
    Encrypted { name: String },
    #[error("the member {name:?} is compressed by a method that isn't read ({method})")]
    Method { name: String, method: String },
    #[error("the member {name:?} has a wrong checksum")]
    Checksum { name: String },
    #[error("the member {name:?} is not as long as the directory says")]
    Length { name: String },
}

impl From<zip::result::ZipError> for ZipError {
    fn from(source: zip::result::ZipError) -> Self {
        ZipError::Format { source }
    }
}

impl From<ZipError> for io::Error {
    fn from(error: ZipError) -> Self {
        match error {
            ZipError::Format { source: zip::result::ZipError::Io(error) } => error,
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// An archive whose directory was read.
pub(crate) struct ZipReader<R> {
    archive: ZipArchive<R>,
}

impl<R: Read + Seek> ZipReader<R> {
    pub(crate) fn new(source: R) -> Result<Self, ZipError> {
        let mut archive = ZipArchive::new(source)?;
        if archive.len() > MAX_MEMBERS {
            return Err(ZipError::TooMany);
        }
        if archive.has_overlapping_files()? {
            return Err(ZipError::Overlap);
        }
        Ok(ZipReader { archive })
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.archive.len()
    }

    /// What the directory says of one of them, and its content. An error of its own is one of reading
    /// the content: who doesn't want the member needn't know.
    pub(crate) fn member<'b>(
        &'b mut self,
        index: usize,
        budget: &'b Budget<'b>,
    ) -> Result<(Member, Box<dyn Read + 'b>), ZipError> {
        let file = self.archive.by_index_raw(index)?;
        let raw = file.name_raw();
        // Without the flag that says UTF-8 it is code page 437 by the book; what Unix wrote is UTF-8.
        let name = match std::str::from_utf8(raw) {
            Ok(_) => raw.to_owned(),
            Err(_) => file.name()?.into_owned().into_bytes(),
        };
        // The crate leaves set-uid bits out, which are to be reported.
        let mode = match file.system() {
            zip::System::Unix => file.external_attributes() >> 16,
            _ => file.unix_mode().unwrap_or_default(),
        };
        let kind = match mode & 0o170_000 {
            0o120_000 => Kind::SymlinkInContent,
            0o040_000 => Kind::Directory,
            _ if name.ends_with(b"/") => Kind::Directory,
            0 | 0o100_000 => Kind::File,
            0o020_000 => Kind::Other("character device"),
            0o060_000 => Kind::Other("block device"),
            0o010_000 => Kind::Other("fifo"),
            _ => Kind::Other("thing of an unknown type"),
        };
        let size_bytes = if kind == Kind::Directory { 0 } else { file.size() };
        let shown = String::from_utf8_lossy(&name).into_owned();
        let member = Member { name, kind, mode: mode & 0o7777, uid: 0, gid: 0, size_bytes };
        if file.encrypted() {
            return Ok((member, Box::new(Failing(Some(ZipError::Encrypted { name: shown })))));
        }
        let (method, size, crc) = (file.compression(), file.size(), file.crc32());
        let source = BufReader::new(Watched { inner: file, budget });
        let content = match open(method, size, source, budget) {
            Ok(Some(content)) => content,
            Ok(None) => {
                let method = method.to_string();
                return Ok((
                    member,
                    Box::new(Failing(Some(ZipError::Method { name: shown, method }))),
                ));
            }
            Err(source) => return Err(zip::result::ZipError::Io(source).into()),
        };
        let checked =
            Checked { content, name: shown, left: size, expected: crc, crc: flate2::Crc::new() };
        Ok((member, Box::new(checked)))
    }
}

/// The decoder of one member; `None` for a method that isn't read.
fn open<'b>(
    method: CompressionMethod,
    size: u64,
    mut source: BufReader<impl Read + 'b>,
    budget: &'b Budget<'b>,
) -> io::Result<Option<Box<dyn Read + 'b>>> {
    Ok(Some(match method {
        CompressionMethod::Stored => Box::new(source),
        CompressionMethod::Deflated => Box::new(streams::deflate(source, budget)?),
        CompressionMethod::BZIP2 => Box::new(streams::one_bzip2(source, budget)?),
        CompressionMethod::LZMA => {
            // Version, length of the properties, properties (APPNOTE 5.8.8).
            let mut head = [0; 9];
            source.read_exact(&mut head)?;
            let properties = head.last_chunk().expect("nine bytes end with five");
            Box::new(streams::raw_lzma(properties, Some(size), source, budget)?)
        }
        CompressionMethod::ZSTD => Box::new(streams::one_zstd(source, budget)?),
        CompressionMethod::XZ => Box::new(streams::one_xz(source, budget)?),
        _ => return Ok(None),
    }))
}

/// Content that can't be read.
struct Failing(Option<ZipError>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0.take() {
            Some(error) => Err(error.into()),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Content whose length and checksum are known.
struct Checked<'b> {
    content: Box<dyn Read + 'b>,
    name: String,
    left: u64,
    expected: u32,
    crc: flate2::Crc,
}

impl Read for Checked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let read = self.content.read(into)?;
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or_else(|| ZipError::Length { name: self.name.clone() })?;
        self.crc.update(&into[..read]);
        if read == 0 {
            if self.left > 0 {
                return Err(ZipError::Length { name: self.name.clone() }.into());
            }
            if self.crc.sum() != self.expected {
                return Err(ZipError::Checksum { name: self.name.clone() }.into());
            }
        }
        Ok(read)
    }
}
