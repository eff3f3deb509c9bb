//! Locks between processes, and scratch directories that outlive no process.
//!
//! A lock is an exclusive `flock` on a file in `locks/`; the system gives it up when its holder
//! dies. The file is removed by whoever holds it last.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::digest::ResolvedHash;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::store::Store;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

/// A directory for one build or transfer, removed when dropped, or by the next process that
/// opens the store if this one is killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: Lock,
}

impl Store {
    /// Waits until no other process builds this derivation. While it waits, `waiting` is called
    /// about ten times a second and ends the wait by returning false; then there is no lock.
    pub fn lock(
        &self,
        resolved: &ResolvedHash,
        waiting: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Lock>, StoreError> {
        self.check_writable()?;
        let path = self.directory("locks").join(resolved.to_string());
        loop {
            if let Some(lock) = try_lock(&path)? {
                return Ok(Some(lock));
            }
            if !waiting() {
                return Ok(None);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// A new, empty directory on the store's file system.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        self.check_writable()?;
        let tmp = self.directory("tmp");
        loop {
            let name = files::temporary_name();
            let path = tmp.join(name.trim_start_matches('.'));
            let Some(lock) = try_lock(&path.with_extension("lock"))? else { continue };
            // A process with this number may have been killed before.
            files::remove_tree(&path)?;
            fs::create_dir(&path).at("create", &path)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
                .at("change", &path)?;
            return Ok(Scratch { path, _lock: lock });
        }
    }

    /// Removes scratch directories and staged files whose process is gone.
    pub fn sweep(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        let tmp = self.directory("tmp");
        for entry in fs::read_dir(&tmp).at("list", &tmp)? {
            let path = entry.at("list", &tmp)?.path();
            if path.extension().is_some() {
                continue;
            }
            if let Some(_lock) = try_lock(&path.with_extension("lock"))? {
                files::remove_tree(&path)?;
            }
        }
        for name in [
            "trees",
            "info",
            "objects",
            "derivations",
            "realisations/static",
            "realisations/resolved",
            "composed",
        ] {
            self.sweep_staged(&self.directory(name))?;
        }
        Ok(())
    }

    /// Staged files are called `.<process id>-<n>`. They live for seconds: those of a day ago whose
    /// process can't be seen (it may be in another pid namespace) have none.
    fn sweep_staged(&self, directory: &Path) -> Result<(), StoreError> {
        const DAY_SECONDS: i64 = 24 * 60 * 60;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        for entry in fs::read_dir(directory).at("list", directory)? {
            let entry = entry.at("list", directory)?;
            let name = entry.file_name();
            let process = name
                .to_str()
                .and_then(|name| name.strip_prefix('.')?.split('-').next()?.parse().ok());
            let old = entry.metadata().at("read", &entry.path())?.ctime() + DAY_SECONDS < now;
            if let Some(process) = process
                && old
                && nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), None)
                    == Err(Errno::ESRCH)
            {
                files::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Scratch {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = files::remove_tree(&self.path) {
            tracing::warn!(%error, "a scratch directory stays behind");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Whoever waits for this file finds that it is no longer the one in the directory.
        let _ = fs::remove_file(&self.path);
    }
}

fn try_lock(path: &Path) -> Result<Option<Lock>, StoreError> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .at("open", path)?;
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error).at("lock", path),
        };
        // The last holder may have removed the file between opening and locking.
        let ours = held.metadata().at("read", path)?;
        if fs::metadata(path).is_ok_and(|current| current.ino() == ours.ino()) {
            return Ok(Some(Lock { path: path.to_owned(), _held: held }));
        }
    }
}
