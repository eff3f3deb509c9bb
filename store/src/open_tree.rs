//! A tree's directory that was opened: whatever lies below is reached from its descriptor.
//!
//! Trees come from builders, archives and caches, so no name in them may lead elsewhere. Paths
//! below the descriptor are resolved by the kernel (`openat2`) beneath it and through no symlink;
//! single names are opened with `O_NOFOLLOW`. This is no general file API: it has what taking in,
//! searching and writing out trees needs.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::FchmodatFlags;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::content::TREE_TIME;
use crate::error::{IoContext, StoreError};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// A pipe or a terminal in a file's place must neither hold anything up nor take hold of anything.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory, held by its descriptor.
#[derive(Debug)]
pub struct OpenTree {
    directory: OwnedFd,
    /// Where it was opened: for messages.
    path: PathBuf,
}

/// An entry of a directory as the directory lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: FileType,
}

impl OpenTree {
    /// Opens the directory at `path`, whose parents are the caller's own. If `path` itself is a
    /// symlink or no directory, that is [`StoreError::NotADirectory`].
    pub fn open(path: &Path) -> Result<OpenTree, StoreError> {
        match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
            Ok(directory) => Ok(OpenTree { directory, path: path.to_owned() }),
            Err(error) => Err(not_a_directory(rustix::fs::CWD, path, path, error)),
        }
    }

    /// A directory that was opened and lies at `path`.
    pub(crate) fn new(directory: OwnedFd, path: PathBuf) -> OpenTree {
        OpenTree { directory, path }
    }

    /// Opens a directory in it that its owner, who is the caller, may have closed to himself: it
    /// can be listed and written to afterwards.
    pub fn reclaim(&self, name: &str) -> Result<OpenTree, StoreError> {
        let path = self.path.join(name);
        match reclaim(self.directory.as_fd(), name.as_bytes()) {
            Ok(directory) => Ok(OpenTree { directory, path }),
            Err(error) => Err(not_a_directory(&self.directory, Path::new(name), &path, error)),
        }
    }

    /// Where it was opened: for messages, and for what can only be given a path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something below, for messages.
    pub fn path_of(&self, below: &[u8]) -> PathBuf {
        if below.is_empty() {
            return self.path.clone();
        }
        self.path.join(std::ffi::OsStr::from_bytes(below))
    }

    /// Opens a directory below; the empty path is the tree itself.
    pub fn directory(&self, below: &[u8]) -> Result<OwnedFd, Errno> {
        self.resolve(below, DIRECTORY)
    }

    /// Opens a plain file below for reading, and looks at it; anything else is an error.
    pub fn file(&self, below: &[u8]) -> Result<(File, Stat), Errno> {
        plain(self.resolve(below, FILE)?)
    }

    /// What a directory below holds.
    pub fn list(&self, below: &[u8]) -> Result<Vec<Listed>, Errno> {
        list(self.directory(below)?.as_fd())
    }

    /// The text of a symlink below.
    pub fn link(&self, below: &[u8]) -> Result<Vec<u8>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = self.resolve(below, flags)?;
        Ok(rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes())
    }

    /// Creates a file below, which only its owner may read, and which must not be there.
    pub(crate) fn create(&self, below: &[u8]) -> Result<File, Errno> {
        self.open_to_write(below, OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a file below for writing; it is created if it isn't there.
    pub(crate) fn open_or_create(&self, below: &[u8]) -> Result<File, Errno> {
        self.open_to_write(below, OFlags::CREATE)
    }

    fn open_to_write(&self, below: &[u8], flags: OFlags) -> Result<File, Errno> {
        let flags = FILE | OFlags::RDWR | flags;
        Ok(self.resolve_with(below, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Creates a directory below, in one that is there.
    pub(crate) fn create_directory(&self, below: &[u8]) -> Result<(), Errno> {
        let (parent, name) = self.parent(below)?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)
    }

    /// Creates a symlink below, with the time that everything in a tree has.
    pub(crate) fn create_symlink(&self, below: &[u8], target: &[u8]) -> Result<(), Errno> {
        let (parent, name) = self.parent(below)?;
        rustix::fs::symlinkat(target, &parent, name)?;
        rustix::fs::utimensat(parent, name, &TREE_TIME, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes a file or symlink below.
    pub(crate) fn remove_file(&self, below: &[u8]) -> Result<(), Errno> {
        let (parent, name) = self.parent(below)?;
        rustix::fs::unlinkat(parent, name, AtFlags::empty())
    }

    /// Moves a file from the same place in another tree.
    pub(crate) fn take_file(&self, from: &OpenTree, below: &[u8]) -> Result<(), Errno> {
        let ((old, name), (new, _)) = (from.parent(below)?, self.parent(below)?);
        rustix::fs::renameat(old, name, new, name)
    }

    /// The directory that something below is in, and its name there.
    fn parent<'b>(&self, below: &'b [u8]) -> Result<(OwnedFd, &'b [u8]), Errno> {
        let (above, name) = match below.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&below[..slash], &below[slash + 1..]),
            None => (&b""[..], below),
        };
        Ok((self.directory(above)?, name))
    }

    fn resolve(&self, below: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve_with(below, flags, Mode::empty())
    }

    fn resolve_with(&self, below: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let below = if below.is_empty() { b"." } else { below };
        loop {
            match rustix::fs::openat2(&self.directory, below, flags, mode, BENEATH) {
                // Something somewhere was renamed meanwhile, and the kernel can't rule out that it
                // matters.
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }
}

impl AsFd for OpenTree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Opens a directory by its name in another one.
pub(crate) fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, DIRECTORY, Mode::empty())
}

/// Opens a plain file by its name in a directory, and looks at it.
pub(crate) fn open_file(at: BorrowedFd<'_>, name: &[u8]) -> Result<(File, Stat), Errno> {
    plain(rustix::fs::openat(at, name, FILE, Mode::empty())?)
}

/// Opens a directory of the caller's, whatever its mode, such that it can be listed and written to.
pub(crate) fn reclaim(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let directory = match open_directory(at, name) {
        Err(Errno::ACCESS) => {
            make_accessible(at, name, 0o700)?;
            open_directory(at, name)?
        }
        directory => directory?,
    };
    if rustix::fs::fstat(&directory)?.st_mode & 0o700 != 0o700 {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o700))?;
    }
    Ok(directory)
}

/// Changes the mode of what can't be opened, and of nothing that a link points to.
pub(crate) fn make_accessible(at: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
    nix::sys::stat::fchmodat(at, name, mode, FchmodatFlags::NoFollowSymlink)
        .map_err(|error| Errno::from_raw_os_error(error as i32))
}

/// Everything in a directory but `.` and `..`, in the directory's own order.
pub(crate) fn list(directory: BorrowedFd<'_>) -> Result<Vec<Listed>, Errno> {
    let mut buffer = Vec::with_capacity(16 << 10);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut listed = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        // Some file systems don't say.
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(stat(directory, name.to_bytes())?.st_mode),
            kind => kind,
        };
        listed.push(Listed { name: name.to_bytes().into(), kind });
    }
    Ok(listed)
}

/// What has this name in a directory, not followed if it is a symlink.
pub(crate) fn stat(at: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The words for a kind of file that has no place in a tree, or not in this one.
pub(crate) fn in_words(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

fn plain(file: OwnedFd) -> Result<(File, Stat), Errno> {
    let stat = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((file.into(), stat)),
        _ => Err(Errno::INVAL),
    }
}

/// The error for what can't be opened as a directory.
fn not_a_directory(at: impl AsFd, name: &Path, path: &Path, error: Errno) -> StoreError {
    let path = path.to_owned();
    let not = |what| StoreError::NotADirectory { path: path.clone(), what };
    match error {
        Errno::NOENT => not("missing"),
        Errno::NOTDIR | Errno::LOOP => match stat(at.as_fd(), name.as_os_str().as_bytes()) {
            Ok(stat) => not(in_words(FileType::from_raw_mode(stat.st_mode))),
            Err(error) => Err::<(), _>(error).at("read", &path).expect_err("it is one"),
        },
        error => Err::<(), _>(error).at("open", &path).expect_err("it is one"),
    }
}
