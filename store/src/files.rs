//! Files and directories as the store writes and removes them: whole or not at all, and never
//! through a symlink.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{IoContext, StoreError};

/// Opens for reading, and refuses a symlink.
pub(crate) fn open_plain(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)
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
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}

/// A name that no other thread or living process uses, beginning with a dot.
pub(crate) fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Writes `bytes` to a new file beside `path`, which [`place`] then moves there.
pub(crate) fn stage_file(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, StoreError> {
    let staged = path.with_file_name(temporary_name());
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
        file.write_all(bytes)
    };
    write().at("write", &staged)?;
    Ok(staged)
}

/// Moves what was staged to its place.
pub(crate) fn place(staged: &Path, path: &Path) -> Result<(), StoreError> {
    fs::rename(staged, path).at("rename", staged)
}

/// Writes a file whole or not at all. Not synced: for what can be made again.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    place(&stage_file(path, bytes, 0o644)?, path)
}

/// Writes a small file whole or not at all, so that it survives a power cut when this returns: for
/// what can't be made again. With `replaced` false, a file that is there stays, and is an error.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32, replaced: bool) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".new-").permissions(fs::Permissions::from_mode(mode));
    let mut staged = builder.tempfile_in(directory)?;
    staged.write_all(bytes)?;
    staged.as_file().sync_all()?;
    match replaced {
        true => staged.persist(path)?,
        false => staged.persist_noclobber(path)?,
    };
    File::open(directory)?.sync_all()
}

/// Makes a symlink whole or not at all, replacing what was there.
pub(crate) fn symlink_atomically(path: &Path, target: &Path) -> Result<(), StoreError> {
    let staged = path.with_file_name(temporary_name());
    std::os::unix::fs::symlink(target, &staged).at("create", &staged)?;
    place(&staged, path)
}

/// Makes what was renamed in a directory survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
}

/// Removes a tree whatever its modes, depth or names; that there is none is success.
///
/// Never follows a symlink and never recurses deeper than a constant: a build can nest
/// directories more deeply than a stack holds frames or a path has bytes, so what lies deep is
/// first moved up.
pub fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at("remove", path),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(path).at("remove", path),
        Ok(_) => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).at("remove", path)?;
    empty_tree(path)?;
    fs::remove_dir(path).at("remove", path)
}

/// Removes all that is in a directory, which its user may write to, as [`remove_tree`] does.
pub(crate) fn empty_tree(path: &Path) -> Result<(), StoreError> {
    let empty = || -> nix::Result<()> {
        let top = open_directory(nix::fcntl::AT_FDCWD, path)?;
        // What was moved up is met again as an entry of `top`.
        while empty_directory(top.as_fd(), top.as_fd(), 0)? {}
        Ok(())
    };
    empty().at("empty", path)
}

const MAX_DEPTH: u32 = 64;

fn open_directory<P: ?Sized + nix::NixPath>(at: BorrowedFd<'_>, name: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Empties a directory; true if something was moved up to `top` instead.
fn empty_directory(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: u32,
) -> nix::Result<bool> {
    let mut moved = false;
    for name in entry_names(directory)? {
        match unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(error) => return Err(error),
        }
        let kind = fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
        if SFlag::from_bits_truncate(kind) & SFlag::S_IFMT != SFlag::S_IFDIR {
            return Err(Errno::EPERM);
        }
        fchmodat(directory, name.as_c_str(), Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
        if depth == MAX_DEPTH {
            let unique = CString::new(format!("{}-deep", temporary_name())).expect("no NUL in it");
            renameat(directory, name.as_c_str(), top, unique.as_c_str())?;
            moved = true;
            continue;
        }
        let child = open_directory(directory, name.as_c_str())?;
        moved |= empty_directory(top, child.as_fd(), depth + 1)?;
        unlinkat(directory, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
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
