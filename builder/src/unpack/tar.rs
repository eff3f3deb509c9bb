//! Tar archives, compressed or not: decompression on a thread of its own, members here.

use std::io::{self, Read};
use std::path::Path;

use super::decompress::{self, Decompressed};
use super::error::{Described, UnpackError};
use super::members::{Stopped, Unpacker};
use crate::archive::tar::{TarError, TarReader};
use crate::archive::{Exceeded, Signature};
use crate::fetch::CancelToken;

impl From<TarError> for Stopped {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(error) => Stopped::Archive(error),
            error => Stopped::Archive(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// Unpacks a (compressed) tar archive of `size` bytes; `path` is for messages.
pub(super) fn unpack<R: Read + Send>(
    path: &Path,
    source: R,
    size: u64,
    unpacker: &mut Unpacker<'_>,
    cancel: &CancelToken,
) -> Result<(), UnpackError> {
    std::thread::scope(|scope| {
        let read = |source| UnpackError::Read { path: path.to_owned(), source };
        let (signature, mut reader, thread) =
            decompress::start(scope, source, size, cancel).map_err(read)?;
        let inside = Signature::of(reader.head());
        let result = run(reader, unpacker);
        let decompressed = match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        if cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        let path = path.to_owned();
        match (result, decompressed) {
            // Damaged data makes for a damaged archive; the cause is what helps.
            (Ok(()) | Err(Stopped::Archive(_)), Err(source)) => match Exceeded::of(&source) {
                Some(source) => Err(UnpackError::Limit { path, source: source.clone() }),
                None => {
                    let compression = signature.compression().unwrap_or("uncompressed");
                    Err(UnpackError::Decompress { path, compression, source })
                }
            },
            (Err(Stopped::Archive(_)), Ok(())) if inside != Signature::Tar => {
                Err(UnpackError::NotTar { path, what: Described(inside) })
            }
            (Err(Stopped::Archive(source)), Ok(())) => {
                Err(UnpackError::Tar { path, entries: unpacker.count(), source })
            }
            (Err(Stopped::Tree(error)), _) => Err(error),
            (Ok(()), Ok(())) => Ok(()),
        }
    })
}

fn run(reader: Decompressed, unpacker: &mut Unpacker<'_>) -> Result<(), Stopped> {
    let mut archive = TarReader::new(reader);
    while let Some(member) = archive.next()? {
        unpacker.member(member, &mut archive)?;
    }
    // To the end: checksums of compressed data come last.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}
