//! Writes a tree below one directory and nowhere else.
//!
//! Every step of every path is opened by descriptor with `O_NOFOLLOW`, so whatever links an archive made
//! before lead nowhere. Descriptors of the directory written last are kept: archives are in order, and
//! most files cost one `openat`, one `write` and one `close`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::error::UnpackError;
use super::paths::CleanPath;
use crate::archive::Extent;
use crate::fetch::CancelToken;

const FILE: Mode = Mode::from_bits_truncate(0o644);
const EXECUTABLE: Mode = Mode::from_bits_truncate(0o755);
const DIRECTORY: Mode = Mode::from_bits_truncate(0o755);

/// A directory that is being filled.
pub(super) struct TreeWriter {
    root: PathBuf,
    root_descriptor: OwnedFd,
    /// The directories from the root to where the last entry went.
    open: Vec<(Vec<u8>, OwnedFd)>,
    /// Whether the process's umask takes more than modes here may lose.
    umask_interferes: bool,
    /// Whether nothing was made yet.
    empty: bool,
    buffer: Vec<u8>,
}

/// How a file's content is written.
#[derive(Clone, Copy)]
enum Write {
    All,
    /// Blocks of zeros are left out. Whoever writes so sets the length.
    Holes,
}

/// Why writing a file failed: reading its content, or the tree.
pub(super) enum WriteError {
    Read(io::Error),
    Tree(UnpackError),
}

impl From<UnpackError> for WriteError {
    fn from(error: UnpackError) -> Self {
        Self::Tree(error)
    }
}

impl TreeWriter {
    /// A writer for an existing directory.
    pub(super) fn new(root: &Path) -> Result<Self, UnpackError> {
        let failure = |source| UnpackError::Write { path: root.to_owned(), source };
        let root_descriptor = OwnedFd::from(File::open(root).map_err(failure)?);
        // The umask is the process's and can only be asked for by changing it, so try it out.
        const PROBE: &str = ".srp-umask";
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let probe = openat(&root_descriptor, PROBE, flags, EXECUTABLE);
        let mode = probe
            .and_then(|probe| fstat(&probe))
            .and_then(|stat| {
                unlinkat(&root_descriptor, PROBE, UnlinkatFlags::NoRemoveDir).map(|()| stat.st_mode)
            })
            .map_err(|errno| failure(errno.into()))?;
        Ok(Self {
            root: root.to_owned(),
            root_descriptor,
            open: Vec::new(),
            umask_interferes: mode & 0o755 != 0o755,
            empty: true,
            buffer: vec![0; 1 << 17],
        })
    }

    /// Whether nothing was made.
    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// Makes a directory, unless it is there. A file or link in its place gives way.
    pub(super) fn directory(&mut self, path: &CleanPath) -> Result<(), UnpackError> {
        let Some((name, parents)) = path.components().split_last() else { return Ok(()) };
        self.empty = false;
        let parent = self.enter(parents, path)?;
        let result = match mkdirat(parent, os(name), DIRECTORY) {
            Ok(()) => chmod_directory(self.umask_interferes, self.parent(), name),
            Err(Errno::EEXIST) if kind(parent, name) == Some(SFlag::S_IFDIR) => Ok(()),
            Err(Errno::EEXIST) => unlinkat(parent, os(name), UnlinkatFlags::NoRemoveDir)
                .and_then(|()| mkdirat(self.parent(), os(name), DIRECTORY))
                .and_then(|()| chmod_directory(self.umask_interferes, self.parent(), name)),
            Err(errno) => Err(errno),
        };
        result.map_err(|errno| self.failure(path, errno.into()))
    }

    /// Writes a regular file from a reader, at most `limit` bytes. Returns how many there were.
    pub(super) fn file(
        &mut self,
        path: &CleanPath,
        executable: bool,
        content: &mut dyn Read,
        limit: Option<u64>,
        cancel: &CancelToken,
    ) -> Result<u64, WriteError> {
        let mut file = self.create(path, executable)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.fill(&mut file, &mut buffer, path, content, Write::All, limit, cancel);
        self.buffer = buffer;
        result
    }

    /// Writes a regular file of `size` bytes of which `content` has the pieces at `extents`; what is
    /// between them stays a hole.
    pub(super) fn sparse(
        &mut self,
        path: &CleanPath,
        executable: bool,
        content: &mut dyn Read,
        extents: &[Extent],
        size: u64,
        cancel: &CancelToken,
    ) -> Result<(), WriteError> {
        let mut file = self.create(path, executable)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = extents.iter().try_for_each(|extent| {
            let sought = file.seek(SeekFrom::Start(extent.offset));
            sought.map_err(|source| self.failure(path, source))?;
            let mut piece = content.take(extent.length);
            let written =
                self.fill(&mut file, &mut buffer, path, &mut piece, Write::All, None, cancel)?;
            if written < extent.length {
                return Err(WriteError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(())
        });
        self.buffer = buffer;
        result?;
        Ok(file.set_len(size).map_err(|source| self.failure(path, source))?)
    }

    /// Makes a symbolic link of this text.
    pub(super) fn symlink(&mut self, path: &CleanPath, target: &[u8]) -> Result<(), UnpackError> {
        let name = self.enter_parent(path)?;
        let mut result = symlinkat(os(target), self.parent(), os(&name));
        if result == Err(Errno::EEXIST) {
            self.make_room(path, &name)?;
            result = symlinkat(os(target), self.parent(), os(&name));
        }
        result.map_err(|errno| self.failure(path, errno.into()))
    }

    /// Makes a copy of a file or link that was written before, as a hard link stands for one. `None`
    /// if there is no such file; else how many bytes it has.
    pub(super) fn copy(
        &mut self,
        path: &CleanPath,
        target: &CleanPath,
        limit: Option<u64>,
        cancel: &CancelToken,
    ) -> Result<Option<u64>, UnpackError> {
        let Some((target_name, parents)) = target.components().split_last() else {
            return Ok(None);
        };
        if path == target {
            return Ok(None);
        }
        let Some(parent) = self.find(parents) else { return Ok(None) };
        match kind(parent.as_fd(), target_name) {
            Some(SFlag::S_IFLNK) => {
                let text = readlinkat(&parent, os(target_name))
                    .map_err(|errno| self.failure(target, errno.into()))?;
                self.symlink(path, &text.into_vec()).map(|()| Some(0))
            }
            Some(SFlag::S_IFREG) => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut source = openat(&parent, os(target_name), flags, Mode::empty())
                    .map(File::from)
                    .map_err(|errno| self.failure(target, errno.into()))?;
                let mode =
                    fstat(&source).map_err(|errno| self.failure(target, errno.into()))?.st_mode;
                let mut file = self.create(path, mode & 0o111 != 0)?;
                let mut buffer = std::mem::take(&mut self.buffer);
                let how = Write::Holes;
                let result =
                    self.fill(&mut file, &mut buffer, path, &mut source, how, limit, cancel);
                self.buffer = buffer;
                match result {
                    Ok(bytes) => {
                        let ended = file.set_len(bytes);
                        ended.map_err(|source| self.failure(path, source))?;
                        Ok(Some(bytes))
                    }
                    Err(WriteError::Read(source)) => Err(self.failure(target, source)),
                    Err(WriteError::Tree(error)) => Err(error),
                }
            }
            _ => Ok(None),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what `file`, `sparse` and `copy` have in common")]
    fn fill(
        &self,
        file: &mut File,
        buffer: &mut [u8],
        path: &CleanPath,
        content: &mut dyn Read,
        how: Write,
        limit: Option<u64>,
        cancel: &CancelToken,
    ) -> Result<u64, WriteError> {
        let mut written = 0;
        loop {
            // Full buffers, so that a small file is one write whatever pieces it comes in.
            let mut filled = 0;
            let mut end = false;
            while filled < buffer.len() && !end {
                match content.read(&mut buffer[filled..]) {
                    Ok(0) => end = true,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(WriteError::Read(error)),
                }
            }
            written += filled as u64;
            if let Some(limit) = limit.filter(|limit| written > *limit) {
                let entry = path.display();
                return Err(UnpackError::TooLarge { entry, max_bytes: limit }.into());
            }
            let piece = &buffer[..filled];
            let result = match how {
                Write::Holes if piece.iter().all(|byte| *byte == 0) => {
                    file.seek(SeekFrom::Current(filled as i64)).map(drop)
                }
                _ => file.write_all(piece),
            };
            result.map_err(|source| self.failure(path, source))?;
            if end {
                return Ok(written);
            }
            if cancel.is_cancelled() {
                return Err(UnpackError::Cancelled.into());
            }
        }
    }

    fn create(&mut self, path: &CleanPath, executable: bool) -> Result<File, UnpackError> {
        let name = self.enter_parent(path)?;
        let mode = if executable { EXECUTABLE } else { FILE };
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut result = openat(self.parent(), os(&name), flags, mode);
        if result.as_ref().err() == Some(&Errno::EEXIST) {
            self.make_room(path, &name)?;
            result = openat(self.parent(), os(&name), flags, mode);
        }
        let file = result.map_err(|errno| self.failure(path, errno.into()))?;
        if self.umask_interferes {
            fchmod(&file, mode).map_err(|errno| self.failure(path, errno.into()))?;
        }
        Ok(file.into())
    }

    /// Removes what an earlier entry put there; an empty directory, too, as tar does. Not one that holds
    /// something: that would be a tree.
    fn make_room(&self, path: &CleanPath, name: &[u8]) -> Result<(), UnpackError> {
        match unlinkat(self.parent(), os(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(()),
            // EPERM is POSIX's answer for directories, EISDIR Linux's.
            Err(Errno::EISDIR | Errno::EPERM) => {
                match unlinkat(self.parent(), os(name), UnlinkatFlags::RemoveDir) {
                    Ok(()) => Ok(()),
                    Err(_) => Err(UnpackError::ReplacesDirectory { entry: path.display() }),
                }
            }
            Err(errno) => Err(self.failure(path, errno.into())),
        }
    }

    fn enter_parent(&mut self, path: &CleanPath) -> Result<Vec<u8>, UnpackError> {
        let (name, parents) = path.components().split_last().expect("the root is no entry");
        self.empty = false;
        self.enter(parents, path)?;
        Ok(name.clone())
    }

    /// Opens the directory of these components, making what is missing.
    fn enter(
        &mut self,
        components: &[Vec<u8>],
        entry: &CleanPath,
    ) -> Result<BorrowedFd<'_>, UnpackError> {
        let common =
            self.open.iter().zip(components).take_while(|((open, _), name)| open == *name).count();
        self.open.truncate(common);
        for (depth, name) in components.iter().enumerate().skip(common) {
            let mut result = open_directory(self.parent(), name);
            if result.as_ref().err() == Some(&Errno::ENOENT) {
                result = mkdirat(self.parent(), os(name), DIRECTORY)
                    .and_then(|()| chmod_directory(self.umask_interferes, self.parent(), name))
                    .and_then(|()| open_directory(self.parent(), name));
            }
            let descriptor = match result {
                Ok(descriptor) => descriptor,
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    let obstacle = components[..=depth].join(&b'/');
                    let obstacle = String::from_utf8_lossy(&obstacle).into_owned();
                    return Err(UnpackError::Through { entry: entry.display(), obstacle });
                }
                Err(errno) => return Err(self.failure(entry, errno.into())),
            };
            self.open.push((name.clone(), descriptor));
        }
        Ok(self.parent())
    }

    /// Opens an existing directory without making anything.
    fn find(&self, components: &[Vec<u8>]) -> Option<OwnedFd> {
        let mut directory = self.root_descriptor.try_clone().ok()?;
        for name in components {
            directory = open_directory(directory.as_fd(), name).ok()?;
        }
        Some(directory)
    }

    /// The directory entered last.
    fn parent(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root_descriptor.as_fd(), |(_, descriptor)| descriptor.as_fd())
    }

    fn failure(&self, path: &CleanPath, source: io::Error) -> UnpackError {
        UnpackError::Write { path: self.root.join(os(&path.joined())), source }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, os(name), flags, Mode::empty())
}

fn chmod_directory(needed: bool, parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    if !needed {
        return Ok(());
    }
    let descriptor = open_directory(parent, name)?;
    fchmod(&descriptor, DIRECTORY)
}

/// What lies there, links not followed.
fn kind(parent: BorrowedFd<'_>, name: &[u8]) -> Option<SFlag> {
    let stat: FileStat = fstatat(parent, os(name), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
