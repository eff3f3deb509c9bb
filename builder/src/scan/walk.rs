//! Lists the files of a tree without following any symlink in it.
//!
//! It is a list of names, not a reader: what a file holds is for the callers. Devices, sockets
//! and FIFOs are left out here because the normaliser refuses them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::ScanError;

/// One file or symlink of a tree.
pub(super) struct Found {
    /// Where it really is.
    pub(super) path: PathBuf,
    /// Its path in the tree, without a leading slash; bytes that aren't UTF-8 are replaced.
    pub(super) name: String,
    /// What it is.
    pub(super) kind: Kind,
}

/// What [`walk`] tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Symlink,
}

/// Everything below `tree` that is a file or a symlink. A tree may be one file: it is then listed
/// under its own last name.
pub(super) fn walk(tree: &Path) -> Result<Vec<Found>, ScanError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ScanError::Read { path, source }
    };
    let mut found = Vec::new();
    let top = tree.symlink_metadata().map_err(unreadable(tree))?;
    if !top.is_dir() {
        let name = tree.file_name().map(|name| name.to_string_lossy().into_owned());
        push(&mut found, tree.to_owned(), name.unwrap_or_default(), top.file_type());
        return Ok(found);
    }
    // A list, not recursion: how deep a build nests directories is the build's choice.
    let mut pending = vec![(tree.to_owned(), String::new())];
    while let Some((directory, prefix)) = pending.pop() {
        for entry in directory.read_dir().map_err(unreadable(&directory))? {
            let entry = entry.map_err(unreadable(&directory))?;
            let kind = entry.file_type().map_err(unreadable(&entry.path()))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                pending.push((entry.path(), format!("{name}/")));
            } else {
                push(&mut found, entry.path(), name, kind);
            }
        }
    }
    Ok(found)
}

fn push(found: &mut Vec<Found>, path: PathBuf, name: String, kind: std::fs::FileType) {
    if kind.is_file() {
        found.push(Found { path, name, kind: Kind::Regular });
    } else if kind.is_symlink() {
        found.push(Found { path, name, kind: Kind::Symlink });
    }
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
