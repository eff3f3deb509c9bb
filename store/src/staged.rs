//! Staged files: written under a name of their own, then renamed to their place.
//!
//! The one way in which files are written whole or not at all, here and in the crates above. A
//! staged file's name is random and its creation exclusive: process ids repeat in containers that
//! share a directory. Its writer holds a lock on it (`flock`), so whoever sweeps can tell what a
//! killed process left from what is being written, without asking for a process or a clock.
//! Within a store, the session of a process (`lock`) is locked as a whole instead.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tempfile::TempPath;

use crate::files;
use crate::open_tree::{self, OpenTree};

/// What the names of staged files begin with, and those of directories have after their place's.
const PREFIX: &str = ".srp-";

/// A file that is being written. It is removed when it is dropped before it has its place.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: TempPath,
}

impl Staged {
    /// A new, empty file on the file system of `directory`, with `mode` less what the umask takes.
    ///
    /// # Errors
    /// What the system says.
    pub fn new_in(directory: &Path, mode: u32) -> io::Result<Staged> {
        loop {
            let (file, path) = tempfile::Builder::new()
                .prefix(PREFIX)
                .rand_bytes(16)
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(directory)?
                .into_parts();
            match file.try_lock() {
                Ok(()) => {}
                // Somebody sweeps, and takes it for a leftover.
                Err(TryLockError::WouldBlock) => continue,
                // The file system has no locks: then nobody can sweep there either.
                Err(TryLockError::Error(_)) => {}
            }
            if file.metadata()?.nlink() > 0 {
                return Ok(Staged { file, path });
            }
        }
    }

    /// A new, empty file beside `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn beside(path: &Path, mode: u32) -> io::Result<Staged> {
        Staged::new_in(directory_of(path), mode)
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is until it has its place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to `path`, instead of what is there.
    ///
    /// # Errors
    /// What the system says; nothing is left then.
    pub fn place(self, path: &Path) -> io::Result<()> {
        // The lock is given up only when the staged name is gone.
        self.path.persist(path).map_err(|error| error.error)
    }

    /// As [`place_synced`](Staged::place_synced), but a file that is there stays.
    ///
    /// # Errors
    /// As there; [`ErrorKind::AlreadyExists`] for what is there.
    pub fn place_new_synced(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.path.persist_noclobber(path).map_err(|error| error.error)?;
        File::open(directory_of(path))?.sync_all()
    }

    /// As [`place`](Staged::place), and survives a power cut from its return on.
    ///
    /// # Errors
    /// What the system says. If the directory can't be synced, the file has its place already.
    pub fn place_synced(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.place(path)?;
        File::open(directory_of(path))?.sync_all()
    }
}

/// A directory that is being written: `.<name>.srp-<random>` beside its place. It is removed when it
/// is dropped before it has that.
#[derive(Debug)]
pub struct StagedDirectory {
    /// What it lies in.
    parent: OwnedFd,
    name: OsString,
    tree: OpenTree,
    /// None if the file system has no locks.
    _held: Option<File>,
}

/// Others may be able to write to the directory that it lies in. So it is made and opened once,
/// and what happens to it happens by its descriptor; nothing is removed or renamed that isn't this
/// very directory.
impl StagedDirectory {
    /// A new one for `place`. Those that killed processes left of the same place are removed, but
    /// not where others may rename this user's directories.
    ///
    /// # Errors
    /// What the system says.
    pub fn beside(place: &Path) -> io::Result<StagedDirectory> {
        let above = directory_of(place);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(above, flags, Mode::empty())?;
        let mut prefix = OsString::from(".");
        prefix.push(place.file_name().unwrap_or_default());
        prefix.push(PREFIX);
        remove_leftovers(&parent, above, &prefix)?;
        loop {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(io::Error::other)?;
            let mut name = prefix.clone();
            name.push(random.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            rustix::fs::mkdirat(&parent, &name, Mode::RWXU)?;
            let made = open_tree::open_directory(parent.as_fd(), name.as_encoded_bytes())?;
            // Whoever may write there could have put something else in its place meanwhile: an
            // empty directory of this user's is as good.
            let is_ours = rustix::fs::fstat(&made)?.st_uid == nix::unistd::geteuid().as_raw();
            if !is_ours || !open_tree::list(made.as_fd())?.is_empty() {
                return Err(replaced());
            }
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
            let tree = OpenTree::new(made, above.join(&name));
            match hold(&tree) {
                // Somebody sweeps, and takes it for a leftover.
                Ok(None) => {}
                held => {
                    let _held = held.ok().flatten();
                    return Ok(StagedDirectory { parent, name, tree, _held });
                }
            }
        }
    }

    /// Where it is until it has its place.
    pub fn path(&self) -> &Path {
        self.tree.path()
    }

    /// The directory itself.
    pub(crate) fn tree(&self) -> &OpenTree {
        &self.tree
    }

    /// Renames it to `place`, which lies beside it, and where nothing may be but an empty directory.
    ///
    /// # Errors
    /// What the system says; nothing is left then.
    pub fn place(self, place: &Path) -> io::Result<()> {
        let to = place.file_name().unwrap_or_default();
        if !self.is_at(&self.name) {
            return Err(replaced());
        }
        rustix::fs::renameat(&self.parent, &self.name, &self.parent, to)?;
        if self.is_at(to) { Ok(()) } else { Err(replaced()) }
    }

    /// As [`place`](StagedDirectory::place), after all that is in it has reached the disk; its name
    /// survives a power cut from its return on.
    ///
    /// # Errors
    /// What the system says.
    pub fn place_synced(self, place: &Path) -> io::Result<()> {
        rustix::fs::syncfs(&self.tree)?;
        let parent = self.parent.try_clone()?;
        self.place(place)?;
        Ok(rustix::fs::fsync(parent)?)
    }

    /// Whether it is what has this name.
    fn is_at(&self, name: &OsStr) -> bool {
        let there = open_tree::stat(self.parent.as_fd(), name.as_encoded_bytes());
        let ours = rustix::fs::fstat(&self.tree);
        there.is_ok_and(|there| {
            ours.is_ok_and(|ours| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
        })
    }
}

impl Drop for StagedDirectory {
    fn drop(&mut self) {
        // When it has its place, or somebody else has taken its name, there is nothing to remove.
        if !self.is_at(&self.name) {
            return;
        }
        let remove = || {
            files::empty(self.tree.as_fd())?;
            let flags = nix::unistd::UnlinkatFlags::RemoveDir;
            nix::unistd::unlinkat(&self.parent, &*self.name, flags)
        };
        if let Err(error) = remove() {
            tracing::warn!(%error, "a directory that was begun stays behind");
        }
    }
}

/// Locks a directory; none if somebody has it locked.
///
/// # Errors
/// The file system has no locks.
fn hold(directory: &OpenTree) -> io::Result<Option<File>> {
    let file = File::from(directory.as_fd().try_clone_to_owned()?);
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what killed processes left. Where others may rename this user's directories, one that
/// has such a name need not be a leftover: there everything stays.
fn remove_leftovers(parent: &OwnedFd, path: &Path, prefix: &OsStr) -> io::Result<()> {
    let user = nix::unistd::geteuid().as_raw();
    let stat = rustix::fs::fstat(parent)?;
    let (open, sticky) = (stat.st_mode & 0o022 != 0, stat.st_mode & 0o1000 != 0);
    if ![0, user].contains(&stat.st_uid) || (open && !sticky) {
        return Ok(());
    }
    for entry in open_tree::list(parent.as_fd())? {
        if !entry.name.starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let path = path.join(OsStr::from_bytes(&entry.name));
        let Ok(directory) = open_tree::open_directory(parent.as_fd(), &entry.name) else {
            continue;
        };
        let left = OpenTree::new(directory, path);
        if rustix::fs::fstat(&left)?.st_uid == user
            && let Ok(Some(_held)) = hold(&left)
        {
            files::remove_at(parent.as_fd(), &entry.name)?;
        }
    }
    Ok(())
}

fn replaced() -> io::Error {
    io::Error::other("somebody else replaced it meanwhile")
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a file whole or not at all. Not synced: for what can be made again.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = Staged::beside(path, 0o644)?;
    staged.write_all(bytes)?;
    staged.place(path)
}

/// Writes a file whole or not at all, also if the power is cut.
///
/// # Errors
/// What the system says.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = Staged::beside(path, 0o644)?;
    staged.write_all(bytes)?;
    staged.place_synced(path)
}

/// Removes the staged files in `directory` whose writers are gone.
///
/// # Errors
/// What the system says of the directory. That others remove or place files meanwhile is none.
pub fn sweep(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if is_staged(&entry.file_name()) {
            let path = entry.path();
            // Opened before it is locked: should it be placed in between, its name is gone, and
            // names are not used again.
            let removed = match files::open_plain(&path) {
                Ok(file) => match file.try_lock() {
                    Ok(()) => fs::remove_file(&path),
                    Err(TryLockError::WouldBlock) => Ok(()),
                    Err(TryLockError::Error(error)) => Err(error),
                },
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a leftover stays");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a name is one of staged files.
pub fn is_staged(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// The directory that a path names an entry of.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        write(&path, b"one").expect("written");
        write_synced(&path, b"two").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        let mut dropped = Staged::beside(&path, 0o444).expect("staged");
        dropped.write_all(b"three").expect("written");
        drop(dropped);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
        assert_eq!(fs::read(&path).expect("read"), b"two");
    }

    #[test]
    fn what_is_being_written_is_not_swept_and_what_was_left_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let living = Staged::new_in(directory.path(), 0o444).expect("staged");
        let left = directory.path().join(".srp-left");
        let theirs = directory.path().join(".theirs");
        for path in [&left, &theirs] {
            fs::write(path, "").expect("written");
        }
        sweep(directory.path()).expect("swept");
        assert!(living.path().exists() && theirs.exists() && !left.exists());
        living.place(&left).expect("placed");
        assert!(left.exists());
        sweep(&directory.path().join("nowhere")).expect("nothing to sweep");
    }

    #[test]
    fn many_writers_and_sweepers_lose_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = directory.path();
                scope.spawn(move || {
                    for number in 0..200 {
                        let name = format!("{writer}-{number}");
                        write(&path.join(&name), name.as_bytes()).expect("written");
                        sweep(path).expect("swept");
                    }
                });
            }
        });
        let names: BTreeSet<_> = fs::read_dir(directory.path())
            .expect("listed")
            .map(|entry| entry.expect("read").file_name())
            .collect();
        assert_eq!(names.len(), 800);
        assert!(names.iter().all(|name| {
            fs::read(directory.path().join(name)).expect("read") == name.as_encoded_bytes()
        }));
    }
}
