//! Files and directories as the store writes and removes them: whole or not at all, and never
//! through a symlink.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tempfile::TempPath;

use crate::error::{IoContext, StoreError};
use crate::open_tree::reclaim;

const NOT_PLAIN: &str = "it is not a plain file";

/// Opens a plain file for reading; anything else is [`ErrorKind::InvalidInput`] or, a symlink, `ELOOP`. A
/// named pipe that nobody writes to is not waited for.
pub fn open_plain(path: &Path) -> std::io::Result<File> {
    open(path, OFlag::O_NOFOLLOW)
}

/// Like [`open_plain`], through symlinks: for files that users name.
pub fn open_followed(path: &Path) -> std::io::Result<File> {
    open(path, OFlag::empty())
}

fn open(path: &Path, flags: OFlag) -> std::io::Result<File> {
    open_sized(path, flags).map(|(file, _)| file)
}

/// A plain file, and its length in bytes as it is opened.
fn open_sized(path: &Path, flags: OFlag) -> std::io::Result<(File, u64)> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(std::io::Error::new(ErrorKind::InvalidInput, NOT_PLAIN))
    }
}

/// Reads a whole plain file.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let (file, length) = open_sized(path, OFlag::O_NOFOLLOW)?;
    let mut bytes = Vec::new();
    // The room for it is asked for here, so that a file too large for memory is an error. `take`
    // keeps the file's length from being asked for again.
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))?;
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole plain file of text.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))
}

/// The paths of what is in a directory; none if there is no such directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", directory)?,
    };
    entries.map(|entry| Ok(entry.at("list", directory)?.path())).collect()
}

/// Reads a whole file; `None` if there is none.
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let damaged = |reason: &str| {
        Err(StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() })
    };
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidInput => damaged(NOT_PLAIN),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            damaged("it is a symlink")
        }
        Err(error) => Err(error).at("read", path),
    }
}

/// A name that nobody else uses, beginning with a dot: random, as process ids repeat in containers.
pub(crate) fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 12];
    // Without random numbers it is still used by no other thread.
    let _ = getrandom::fill(&mut random);
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".{random}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Moves what was staged to its place.
pub(crate) fn place(staged: TempPath, path: &Path) -> Result<(), StoreError> {
    match staged.persist(path) {
        // Nothing of srp's makes one there. With something in it, it is somebody's.
        Err(error) if error.error.kind() == ErrorKind::IsADirectory => {
            fs::remove_dir(path).at("replace", path)?;
            error.path.persist(path)
        }
        placed => placed,
    }
    .map_err(|error| error.error)
    .at("rename to", path)
}

/// Makes what was renamed in a directory survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

/// Removes a tree whatever its modes, depth or names; that there is none is success.
///
/// Never follows a symlink and never recurses deeper than a constant: a build can nest
/// directories more deeply than a stack holds frames or a path has bytes, so what lies deep is
/// first moved up. Whoever swaps something for a link meanwhile gains nothing: everything is opened
/// before it is looked at, and changed by its descriptor.
pub fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let remove = || -> nix::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        match nix::fcntl::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty()) {
            Ok(parent) => remove_at(parent.as_fd(), name.as_bytes()),
            Err(error) => Err(error),
        }
    };
    match remove() {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).at("remove", path),
    }
}

/// Removes what has a name in a directory, as [`remove_tree`] does.
pub(crate) fn remove_at(at: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    if unlink(at, name)? || remove_empty(at, name) {
        return Ok(());
    }
    let top = open_own_directory(at, name)?;
    empty(top.as_fd())?;
    unlinkat(at, name, UnlinkatFlags::RemoveDir)
}

/// Removes all that is in a directory, which its user may write to, as [`remove_tree`] does.
pub(crate) fn empty_tree(path: &Path) -> Result<(), StoreError> {
    open_directory(nix::fcntl::AT_FDCWD, path).and_then(|top| empty(top.as_fd())).at("empty", path)
}

/// As [`empty_tree`], for a directory that is open.
pub(crate) fn empty(top: BorrowedFd<'_>) -> nix::Result<()> {
    // What was moved up is met again as an entry of `top`.
    while empty_directory(top, top, 0)? {}
    Ok(())
}

const MAX_DEPTH: u32 = 64;

fn open_directory<P: ?Sized + nix::NixPath>(at: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Opens a directory of this user's, whatever its mode, such that it can be emptied.
fn open_own_directory(at: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    reclaim(at, name).map_err(|error| Errno::from_raw(error.raw_os_error()))
}

/// Removes what is no directory, or isn't there; false if it is a directory.
fn unlink(at: BorrowedFd<'_>, name: &[u8]) -> nix::Result<bool> {
    match unlinkat(at, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EISDIR) => Ok(false),
        Err(error @ Errno::EPERM) => {
            let kind = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
            let is_directory = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFDIR;
            if is_directory { Ok(false) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

/// Removes a directory if there is nothing in it; false if it has to be emptied, or else can't be.
fn remove_empty(at: BorrowedFd<'_>, name: &[u8]) -> bool {
    unlinkat(at, name, UnlinkatFlags::RemoveDir).is_ok()
}

/// Empties a directory; true if something was moved up to `top` instead.
fn empty_directory(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: u32,
) -> nix::Result<bool> {
    let mut moved = false;
    for name in entry_names(directory)? {
        let name = name.as_bytes();
        if unlink(directory, name)? || remove_empty(directory, name) {
            continue;
        }
        let child = open_own_directory(directory, name)?;
        if depth == MAX_DEPTH {
            let unique = CString::new(format!("{}-deep", temporary_name())).expect("no NUL in it");
            renameat(directory, name, top, unique.as_c_str())?;
            moved = true;
            continue;
        }
        moved |= empty_directory(top, child.as_fd(), depth + 1)?;
        unlinkat(directory, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(moved)
}

fn entry_names(directory: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    let mut listing = Dir::from_fd(open_directory(directory, c".")?)?;
    listing
        .iter()
        .filter_map(|entry| {
            let name = |name: &CStr| (name != c"." && name != c"..").then(|| name.to_owned());
            entry.map(|entry| name(entry.file_name())).transpose()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let victim = directory.path().join("victim");
        fs::create_dir(&victim).expect("created");
        let name = CString::new("x".repeat(200)).expect("no NUL");
        let mut at = open_directory(nix::fcntl::AT_FDCWD, &victim).expect("opened");
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(at.as_fd(), name.as_c_str(), Mode::S_IRWXU).expect("created");
            at = open_directory(at.as_fd(), name.as_c_str()).expect("opened");
        }
        remove_tree(&victim).expect("removed");
        assert!(!victim.exists());
    }

    #[test]
    fn a_file_too_large_for_memory_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("large");
        let largest = File::create(&path).expect("created").set_len(1 << 43);
        if largest.is_err() {
            eprintln!("SKIPPED: this file system has no files of 8 TiB");
            return;
        }
        assert_eq!(read(&path).expect_err("8 TiB").kind(), ErrorKind::OutOfMemory);
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_points_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let (kept, victim) = (directory.path().join("kept"), directory.path().join("victim"));
        for path in [&kept, &victim, &victim.join("locked")] {
            fs::create_dir(path).expect("created");
        }
        fs::write(kept.join("file"), "data").expect("written");
        std::os::unix::fs::symlink(&kept, victim.join("link")).expect("linked");
        fs::set_permissions(victim.join("locked"), fs::Permissions::from_mode(0o000))
            .expect("locked");
        remove_tree(&victim).expect("removed");
        assert!(kept.join("file").exists() && !victim.exists());
        remove_tree(&victim).expect("nothing to remove is success");
    }
}
