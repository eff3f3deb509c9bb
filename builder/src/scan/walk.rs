//! Lists the files of a tree without following any symlink in it.
//!
//! It is a list of names, not a reader: what a file holds is for the callers. Devices, sockets
//! and FIFOs are left out here because the normaliser refuses them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use rustix::fs::FileType;
use srp_store::OpenTree;

use super::ScanError;

/// One file or symlink of a tree.
pub(super) struct Found {
    /// Its path in the tree.
    pub(super) path: Vec<u8>,
    /// The same, for people: bytes that aren't UTF-8 are replaced.
    pub(super) name: String,
    /// What it is.
    pub(super) kind: Kind,
}

/// What [`list`] tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Symlink,
}

/// Adds what a directory of `tree` holds: its files and symlinks to `found`, its directories to
/// `directories`.
pub(super) fn list(
    tree: &OpenTree,
    directory: &[u8],
    found: &mut Vec<Found>,
    directories: &mut Vec<Vec<u8>>,
) -> Result<(), ScanError> {
    for entry in tree.list(directory).map_err(|error| unreadable(tree, directory, error))? {
        let path = match directory {
            b"" => entry.name.into_vec(),
            directory => [directory, &entry.name].join(&b'/'),
        };
        let kind = match entry.kind {
            FileType::Directory => {
                directories.push(path);
                continue;
            }
            FileType::RegularFile => Kind::Regular,
            FileType::Symlink => Kind::Symlink,
            _ => continue,
        };
        let name = String::from_utf8_lossy(&path).into_owned();
        found.push(Found { path, name, kind });
    }
    Ok(())
}

/// The error for what can't be read in a tree.
pub(super) fn unreadable(tree: &OpenTree, path: &[u8], source: impl Into<io::Error>) -> ScanError {
    ScanError::Read { path: tree.path_of(path), source: source.into() }
}

/// Opens a regular file for reading; `None` when it is no longer one. `O_NONBLOCK` so that a FIFO
/// in its place can't hang us, `O_NOFOLLOW` so that a symlink can't lead us away.
pub(super) fn open(path: &Path) -> Result<Option<(File, Metadata)>, ScanError> {
    let unreadable = |source: io::Error| ScanError::Read { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    Ok(metadata.is_file().then_some((file, metadata)))
}
