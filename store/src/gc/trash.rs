//! Where trees go before they are deleted: `trash/<random>-<n>/`, named as the directory in `tmp/`
//! whose lock says that the collection lives. What a killed one leaves is deleted by the next one,
//! and
//! by [`Store::sweep_trash`].

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::gc::{Control, Progress};
use crate::lock;
use crate::rely::is_full;
use crate::store::Store;

/// The trash of one collection.
#[derive(Debug)]
pub(crate) struct Trash {
    /// None on a disk that has no room for it: then everything is deleted at its place.
    directory: Option<PathBuf>,
    /// What was moved here, and what that takes on the disk.
    entries: Vec<(PathBuf, u64)>,
}

impl Trash {
    pub(crate) fn new(store: &Store) -> Result<Trash, StoreError> {
        let make = || -> Result<PathBuf, StoreError> {
            let trash = store.directory("trash");
            fs::create_dir_all(&trash).at("create", &trash)?;
            let path = trash.join(store.session()?.name());
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.at("create", &path)?,
            }
            Ok(path)
        };
        let directory = match make() {
            Err(StoreError::Io { source, .. }) if is_full(&source) => None,
            made => Some(made?),
        };
        Ok(Trash { directory, entries: Vec::new() })
    }

    /// Moves something here; false if it is gone. Nothing is followed.
    pub(crate) fn take(&mut self, path: &Path, disk_bytes: u64) -> Result<bool, StoreError> {
        let Some(directory) = &self.directory else {
            return remove(path);
        };
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            metadata => metadata.at("read", path)?,
        };
        // A user may not move a directory to another parent that can't be written to.
        if metadata.is_dir() && metadata.permissions().mode() & 0o200 == 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).at("change", path)?;
        }
        let to = directory.join(self.entries.len().to_string());
        match fs::rename(path, &to) {
            Ok(()) => self.entries.push((to, disk_bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) if is_full(&error) => return remove(path),
            Err(error) => return Err(error).at("rename", path),
        }
        Ok(true)
    }

    /// Deletes what was moved here. Ends early if it is to; the rest is the next one's.
    pub(crate) fn empty(self, control: &Control<'_>) -> Result<(), StoreError> {
        let Some(directory) = self.directory else { return Ok(()) };
        self.entries.par_iter().try_for_each(|(path, disk_bytes)| {
            if (control.is_cancelled)() {
                return Err(StoreError::Cancelled);
            }
            files::remove_tree(path)?;
            (control.progress)(Progress::Deleted { disk_bytes: *disk_bytes });
            Ok(())
        })?;
        files::remove_tree(&directory)
    }
}

impl Store {
    /// Deletes the trash of collections that were killed. Ends early, without an error, if it is to.
    pub fn sweep_trash(&self, is_cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(), StoreError> {
        match self.delete_trash(is_cancelled) {
            Err(StoreError::Cancelled) => Ok(()),
            done => done,
        }
    }

    fn delete_trash(&self, is_cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(), StoreError> {
        self.check_writable()?;
        for directory in files::entries(&self.directory("trash"))? {
            let name = directory.file_name().unwrap_or_default();
            if lock::is_alive(&self.directory("tmp").join(name))? {
                continue;
            }
            let entries = match files::entries(&directory) {
                Err(error) if error.is_not_found() => Vec::new(),
                entries => entries?,
            };
            entries.par_iter().try_for_each(|path| match is_cancelled() {
                true => Err(StoreError::Cancelled),
                // Somebody else may be at it, too.
                false => files::remove_tree(path).or_else(unless_gone),
            })?;
            files::remove_tree(&directory).or_else(unless_gone)?;
        }
        Ok(())
    }
}

fn unless_gone(error: StoreError) -> Result<(), StoreError> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

fn remove(path: &Path) -> Result<bool, StoreError> {
    files::remove_tree(path).map(|()| true)
}
