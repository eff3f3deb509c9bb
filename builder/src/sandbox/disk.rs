//! How much disk a sandbox takes, looked at from outside while it runs.
//!
//! No file system promises quotas to an ordinary user, so this looks: cheaply at how much is free
//! (a build can't have written more than what is gone), and into the sandbox's directories only when
//! that alone doesn't acquit it. It acts after the fact, as the watchdog of memory does. Where it
//! can't look (directories that the build closed, nesting that nobody needs, more files than can be
//! counted in passing), what is gone counts as the build's. Files without a name (removed, but still
//! open) are found by the descriptors of the sandbox's processes; those that are only mapped, or on
//! their way through a socket, count when the disk runs short: then all that is gone is the build's.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::sys::statvfs::fstatvfs;

/// The directories that a sandbox may write to.
#[derive(Debug)]
pub(super) struct Disk {
    directories: Vec<OwnedFd>,
    limit_bytes: u64,
    /// When less than this is free, whoever has taken more than this goes.
    reserve: Free,
    /// The most that was free, since the sandbox began.
    most_free: Free,
    next_count: Instant,
}

/// What a file system has to give.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    bytes: u64,
    /// Files that can still be made; 0 where the file system has no such number.
    files: u64,
}

/// What a count found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    bytes: u64,
    entries: u64,
    /// Whether there is more, that could not be counted.
    is_partial: bool,
}

/// Some room for other builds, and for the records of this one.
const RESERVE_BYTES: u64 = 1 << 30;
/// Of a small file system, this part of it.
const RESERVE_PART: u64 = 50;
/// As many files are counted in a fraction of a second.
const MOST_ENTRIES: u64 = 200_000;
/// Each level is an open directory.
const DEEPEST: usize = 128;

impl Disk {
    /// Begins to watch over what is written to `directories`, all of one file system.
    pub(super) fn watch<'a>(
        directories: impl Iterator<Item = &'a Path>,
        limit_bytes: u64,
    ) -> Result<Disk, Errno> {
        let flags = DIRECTORY.union(OFlag::O_NOFOLLOW);
        let directories: Vec<OwnedFd> =
            directories.map(|path| open(path, flags, Mode::empty())).collect::<Result<_, _>>()?;
        let mut disk = Disk {
            directories,
            limit_bytes,
            reserve: Free::default(),
            most_free: Free::default(),
            next_count: Instant::now(),
        };
        let (free, all) = disk.free_and_all()?;
        disk.most_free = free;
        disk.reserve.bytes = RESERVE_BYTES.min(all.bytes / RESERVE_PART);
        disk.reserve.files = all.files / RESERVE_PART;
        Ok(disk)
    }

    /// Whether the sandbox, whose processes `proc` shows, has taken more than it may.
    pub(super) fn is_exceeded(
        &mut self,
        proc: BorrowedFd<'_>,
        now: Instant,
    ) -> Result<bool, Errno> {
        let (free, _) = self.free_and_all()?;
        self.most_free.bytes = self.most_free.bytes.max(free.bytes);
        self.most_free.files = self.most_free.files.max(free.files);
        let gone = self.most_free.bytes - free.bytes;
        let files_gone = self.most_free.files - free.files;
        // Who took it can't be told by then: whoever began when there was enough ends.
        if (free.bytes < self.reserve.bytes && gone > self.reserve.bytes)
            || (free.files < self.reserve.files && files_gone > self.reserve.files)
        {
            return Ok(true);
        }
        if gone <= self.limit_bytes / 2 || now < self.next_count {
            return Ok(false);
        }
        let count = self.count(proc)?;
        // At most two per cent of a processor.
        self.next_count = now + (now.elapsed() * 50).max(Duration::from_secs(1));
        let taken = if count.is_partial { count.bytes.max(gone) } else { count.bytes };
        Ok(taken > self.limit_bytes)
    }

    fn free_and_all(&self) -> Result<(Free, Free), Errno> {
        let Some(directory) = self.directories.first() else {
            return Ok((Free::default(), Free::default()));
        };
        let found = fstatvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        let free = Free { bytes: bytes(found.blocks_available()), files: found.files_available() };
        Ok((free, Free { bytes: bytes(found.blocks()), files: found.files() }))
    }

    fn count(&self, proc: BorrowedFd<'_>) -> Result<Count, Errno> {
        let mut count = Count::default();
        if let Some(directory) = self.directories.first() {
            count.add_nameless(proc, fstat(directory)?.st_dev);
        }
        for directory in &self.directories {
            let directory = openat(directory, ".", DIRECTORY, Mode::empty());
            // Whatever it was, the sandbox may have closed it.
            let Ok(directory) = directory else {
                count.is_partial = true;
                continue;
            };
            count.add(directory)?;
        }
        Ok(count)
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

impl Count {
    /// Adds what files occupy that processes have open and that have no name any more.
    fn add_nameless(&mut self, proc: BorrowedFd<'_>, device: libc::dev_t) {
        let mut seen = BTreeSet::new();
        let list = |at: BorrowedFd<'_>, name: &std::ffi::CStr, count: &mut Count| {
            let opened = openat(at, name, DIRECTORY, Mode::empty());
            // A process may have ended meanwhile, with all that it had open.
            opened.ok().and_then(|directory| count.list(directory).ok())
        };
        let Some((proc, processes)) = list(proc, c".", self) else { return };
        for process in processes.iter().filter(|name| name.to_bytes()[0].is_ascii_digit()) {
            let mut path = process.to_bytes().to_vec();
            path.extend(b"/fd");
            let path = CString::new(path).expect("a process's number has no NUL");
            let Some((open, descriptors)) = list(proc.as_fd(), &path, self) else { continue };
            for descriptor in descriptors {
                let found = fstatat(&open, &*descriptor, AtFlags::empty());
                let is_nameless = |it: &FileStat| {
                    let is_file = it.st_mode & libc::S_IFMT == libc::S_IFREG;
                    is_file && it.st_nlink == 0 && it.st_dev == device
                };
                if let Some(found) = found.ok().filter(is_nameless)
                    && seen.insert(found.st_ino)
                {
                    self.bytes = self.bytes.saturating_add(occupied(&found));
                }
            }
        }
    }

    /// Adds what lies below a directory. No link is followed, and what is gone meanwhile is gone.
    fn add(&mut self, directory: OwnedFd) -> Result<(), Errno> {
        let mut pending = vec![self.list(directory)?];
        while let Some((directory, names)) = pending.last_mut() {
            let Some(name) = names.pop() else {
                pending.pop();
                continue;
            };
            let found = match fstatat(&*directory, &*name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => continue,
                Err(_) => {
                    self.is_partial = true;
                    continue;
                }
                Ok(found) => found,
            };
            self.bytes = self.bytes.saturating_add(occupied(&found));
            if found.st_mode & libc::S_IFMT != libc::S_IFDIR {
                continue;
            }
            let flags = DIRECTORY.union(OFlag::O_NOFOLLOW);
            match openat(&*directory, &*name, flags, Mode::empty()) {
                Ok(below) if pending.len() < DEEPEST => {
                    let listed = self.list(below)?;
                    pending.push(listed);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                _ => self.is_partial = true,
            }
        }
        Ok(())
    }

    /// A directory and the names in it, as far as they are to be counted.
    fn list(&mut self, directory: OwnedFd) -> Result<(Dir, Vec<CString>), Errno> {
        let mut directory = Dir::from_fd(directory)?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let Ok(entry) = entry else {
                self.is_partial = true;
                break;
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.entries == MOST_ENTRIES {
                self.is_partial = true;
                break;
            }
            self.entries += 1;
            names.push(name.to_owned());
        }
        Ok((directory, names))
    }
}

/// What a file occupies; of a file with several names, this name's share.
fn occupied(found: &FileStat) -> u64 {
    let is_directory = found.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let links = if is_directory { 1 } else { found.st_nlink.max(1) };
    #[allow(clippy::unnecessary_cast, reason = "32 bits on aarch64")]
    let links = links as u64;
    (found.st_blocks.max(0) as u64).saturating_mul(512) / links
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Counts without looking at processes.
    fn count(path: &Path) -> Count {
        let nobody = tempfile::tempdir().expect("a directory");
        count_with(path, nobody.path())
    }

    fn count_with(path: &Path, proc: &Path) -> Count {
        let proc = open(proc, DIRECTORY, Mode::empty()).expect("opened");
        let disk = Disk::watch([path].into_iter(), 1).expect("opened");
        disk.count(proc.as_fd()).expect("counted")
    }

    #[test]
    fn files_without_a_name_are_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let _open = fs::File::create(&path).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &vec![1; 4 << 20])?;
            fs::remove_file(&path)?;
            Ok(file)
        });
        let found = count_with(directory.path(), Path::new("/proc"));
        assert!(found.bytes >= 4 << 20, "{found:?}");
    }

    #[test]
    fn what_files_occupy_is_counted_once_and_holes_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("a/b")).expect("created");
        fs::write(path("a/b/file"), vec![1; 1 << 20]).expect("written");
        fs::hard_link(path("a/b/file"), path("a/again")).expect("linked");
        symlink("/usr", path("link")).expect("linked");
        fs::File::create(path("sparse")).and_then(|it| it.set_len(1 << 34)).expect("made");
        let found = count(directory.path());
        assert_eq!((found.entries, found.is_partial), (6, false));
        assert!((1 << 20..(1 << 20) + (256 << 10)).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn nesting_without_end_is_counted_in_part() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = "d/".repeat(DEEPEST + 5);
        fs::create_dir_all(directory.path().join(deep)).expect("created");
        assert!(count(directory.path()).is_partial);
    }

    #[test]
    fn a_closed_directory_leaves_the_count_partial() {
        if nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: root can read every directory");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let closed = directory.path().join("closed");
        fs::create_dir(&closed).expect("created");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).expect("set");
        let found = count(directory.path());
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).expect("set");
        assert!(found.is_partial);
    }
}
