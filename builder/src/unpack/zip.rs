//! Zip archives. Their directory is at the end, so they are read from a file and not from a stream.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::error::{Described, UnpackError};
use super::members::{Stopped, Unpacker};
use crate::archive::zip::ZipReader;
use crate::archive::{Budget, Exceeded, Signature};
use crate::fetch::CancelToken;

/// What a decoder may hold.
const MEMORY_BYTES: u64 = 640 << 20;

/// What may be decompressed in all. The tree's own limit acts first.
const MAX_BYTES: u64 = 256 << 30;

/// Unpacks the archive at `path`.
pub(super) fn unpack(
    path: &Path,
    mut source: File,
    unpacker: &mut Unpacker<'_>,
    cancel: &CancelToken,
) -> Result<(), UnpackError> {
    let read = |source| UnpackError::Read { path: path.to_owned(), source };
    let mut head = Vec::with_capacity(Signature::HEAD_BYTES);
    source.by_ref().take(Signature::HEAD_BYTES as u64).read_to_end(&mut head).map_err(read)?;
    source.rewind().map_err(read)?;
    let result = members(source, unpacker, cancel);
    if cancel.is_cancelled() {
        return Err(UnpackError::Cancelled);
    }
    result.map_err(|stopped| match stopped {
        Stopped::Tree(error) => error,
        Stopped::Archive(source) => match Exceeded::of(&source) {
            Some(source) => UnpackError::Limit { path: path.to_owned(), source: source.clone() },
            None => match Signature::of(&head) {
                // It may begin with anything (a program that unpacks itself), unless that is known.
                Signature::Zip | Signature::Unknown | Signature::Elf => {
                    UnpackError::Zip { path: path.to_owned(), source }
                }
                what => UnpackError::NotZip { path: path.to_owned(), what: Described(what) },
            },
        },
    })
}

fn members(source: File, unpacker: &mut Unpacker<'_>, cancel: &CancelToken) -> Result<(), Stopped> {
    let budget = Budget::new(cancel, MEMORY_BYTES, MAX_BYTES);
    let mut archive = ZipReader::new(BufReader::new(source)).map_err(io::Error::from)?;
    for index in 0..archive.len() {
        let (member, mut content) = archive.member(index, &budget).map_err(io::Error::from)?;
        unpacker.member(member, &mut content)?;
    }
    Ok(())
}
