//! The members of an archive, one after the other, into a tree: the same for every kind of archive.
//!
//! What is selected and where it goes is `paths`', everything that touches the file system `tree`'s.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::error::UnpackError;
use super::paths::{CleanPath, MergedLink, PathError, Selection, clean};
use super::tree::{TreeWriter, WriteError};
use super::{Format, Special, UnpackSpec, Unpacked};
use crate::archive::{Kind, Member};
use crate::fetch::CancelToken;

/// What a source may unpack to if nothing else is said, holes and copies included.
pub(super) const MAX_BYTES: u64 = 64 << 30;

/// More members than any source has; each costs an inode.
const MAX_MEMBERS: u64 = 5_000_000;

/// The longest text of a symbolic link on Linux.
const MAX_LINK: usize = 4095;

/// Why unpacking stopped: the archive itself, or one of its entries.
pub(super) enum Stopped {
    Archive(io::Error),
    Tree(UnpackError),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Archive(error)
    }
}

impl From<UnpackError> for Stopped {
    fn from(error: UnpackError) -> Self {
        Self::Tree(error)
    }
}

impl From<WriteError> for Stopped {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Read(error) => Self::Archive(error),
            WriteError::Tree(error) => Self::Tree(error),
        }
    }
}

/// A hard link whose target wasn't there when it came.
struct Pending {
    from: CleanPath,
    entry: String,
    target: String,
}

/// Takes members, and puts those that are wanted into a tree.
pub(super) struct Unpacker<'a> {
    selection: Selection,
    tree: TreeWriter,
    format: Format,
    max_bytes: u64,
    cancel: &'a CancelToken,
    /// By where they go.
    pending: BTreeMap<CleanPath, Pending>,
    count: u64,
    done: Unpacked,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(
        spec: &UnpackSpec,
        format: Format,
        into: &Path,
        cancel: &'a CancelToken,
    ) -> Result<Self, UnpackError> {
        let selection = Selection::new(spec, format)
            .map_err(|(entry, source)| UnpackError::Path { entry, source })?;
        Ok(Unpacker {
            selection,
            tree: TreeWriter::new(into)?,
            format,
            max_bytes: spec.max_bytes.unwrap_or(MAX_BYTES),
            cancel,
            pending: BTreeMap::new(),
            count: 0,
            done: Unpacked::default(),
        })
    }

    /// How many members came.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Takes one member and, if it has any and is wanted, its content.
    pub(super) fn member(&mut self, member: Member, content: &mut dyn Read) -> Result<(), Stopped> {
        if self.cancel.is_cancelled() {
            return Err(UnpackError::Cancelled.into());
        }
        self.count += 1;
        let Member { name, kind, mode, uid, gid, size_bytes } = member;
        let shown = || String::from_utf8_lossy(&name).into_owned();
        if self.count > MAX_MEMBERS {
            return Err(UnpackError::TooMany { entry: shown(), limit: MAX_MEMBERS }.into());
        }
        let path = clean(&name).map_err(|source| UnpackError::Path { entry: shown(), source })?;
        let Some(place) = self.selection.place(&path) else { return Ok(()) };
        if !self.selection.wants(&place) {
            return Ok(());
        }
        let to = self.selection.rename(place);
        // Of two entries with one path the last wins.
        self.pending.remove(&to);
        match kind {
            Kind::File | Kind::Sparse(_) => {
                let limit = self.left();
                if size_bytes > limit {
                    return Err(self.too_large(&to).into());
                }
                let executable = mode & 0o111 != 0;
                let (tree, cancel) = (&mut self.tree, self.cancel);
                let written = match &kind {
                    Kind::Sparse(extents) => {
                        tree.sparse(&to, executable, content, extents, size_bytes, cancel)?;
                        size_bytes
                    }
                    _ => tree.file(&to, executable, content, Some(limit), cancel)?,
                };
                if written != size_bytes {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                self.done.files += 1;
                self.done.bytes += written;
            }
            Kind::Directory => self.tree.directory(&to)?,
            Kind::Symlink(target) => return Ok(self.symlink(&target, &path, &to, &shown)?),
            Kind::SymlinkInContent => {
                let mut target = Vec::new();
                content.take(MAX_LINK as u64 + 1).read_to_end(&mut target)?;
                return Ok(self.symlink(&target, &path, &to, &shown)?);
            }
            Kind::HardLink(target) => return Ok(self.hard_link(&target, to, &shown)?),
            Kind::Other(kind) => return Err(UnpackError::Kind { entry: shown(), kind }.into()),
        }
        // Owners in source archives are whoever packed them.
        let owned = self.format == Format::Deb && (uid, gid) != (0, 0);
        if mode & 0o7000 != 0 || owned {
            let path = OsString::from_vec(to.joined()).into();
            self.done.special.push(Special { path, mode, uid, gid });
        }
        Ok(())
    }

    /// The end of the archive at `path`: makes the links that were put off, and says what was done.
    pub(super) fn finish(mut self, path: &Path) -> Result<Unpacked, UnpackError> {
        self.links_put_off()?;
        let patterns = self.selection.unmatched();
        if !patterns.is_empty() {
            return Err(UnpackError::NothingSelected { path: path.to_owned(), patterns });
        }
        if self.tree.is_empty() {
            let (path, strip) = (path.to_owned(), self.selection.strip());
            let members = self.count;
            return Err(if strip > 0 {
                UnpackError::NothingLeft { path, members, strip }
            } else {
                UnpackError::Nothing { path, members }
            });
        }
        self.done.special.sort();
        Ok(self.done)
    }

    fn symlink(
        &mut self,
        target: &[u8],
        path: &CleanPath,
        to: &CleanPath,
        shown: &dyn Fn() -> String,
    ) -> Result<(), UnpackError> {
        let refused = |source| UnpackError::Path { entry: shown(), source };
        if target.is_empty() {
            return Err(refused(PathError::Empty));
        }
        if target.len() > MAX_LINK {
            return Err(refused(PathError::TooLong));
        }
        if target.contains(&0) {
            return Err(refused(PathError::Nul));
        }
        match self.selection.merged_link(path, target) {
            MergedLink::Keep => self.tree.symlink(to, target)?,
            MergedLink::Retarget(target) => self.tree.symlink(to, &target)?,
            MergedLink::Drop => return Ok(()),
            MergedLink::Refuse => {
                let target = String::from_utf8_lossy(target).into_owned();
                return Err(UnpackError::Unmergeable { entry: shown(), target });
            }
        }
        self.done.files += 1;
        Ok(())
    }

    fn hard_link(
        &mut self,
        target: &[u8],
        to: CleanPath,
        shown: &dyn Fn() -> String,
    ) -> Result<(), UnpackError> {
        let refused = |source| UnpackError::Path { entry: shown(), source };
        let path = clean(target).map_err(refused)?;
        let target = String::from_utf8_lossy(target).into_owned();
        let from = self.selection.place(&path).map(|place| self.selection.rename(place));
        let Some(from) = from else { return Err(UnpackError::HardLink { entry: shown(), target }) };
        if !self.link(&to, &from)? {
            self.pending.insert(to, Pending { from, entry: shown(), target });
        }
        Ok(())
    }

    /// Copies what a link stands for; false if that isn't there.
    fn link(&mut self, to: &CleanPath, from: &CleanPath) -> Result<bool, UnpackError> {
        let limit = self.left();
        let copied = self.tree.copy(to, from, Some(limit), self.cancel);
        let copied = copied.map_err(|error| match error {
            UnpackError::TooLarge { .. } => self.too_large(to),
            error => error,
        })?;
        let Some(bytes) = copied else { return Ok(false) };
        self.done.files += 1;
        self.done.bytes += bytes;
        Ok(true)
    }

    /// Makes links whose targets came later, in whatever order they need each other.
    fn links_put_off(&mut self) -> Result<(), UnpackError> {
        // What waits for a path that is itself a link put off comes after it.
        let mut waiting: BTreeMap<CleanPath, Vec<CleanPath>> = BTreeMap::new();
        let mut ready = Vec::new();
        for (to, link) in &self.pending {
            if self.pending.contains_key(&link.from) {
                waiting.entry(link.from.clone()).or_default().push(to.clone());
            } else {
                ready.push(to.clone());
            }
        }
        while let Some(to) = ready.pop() {
            let Some(link) = self.pending.remove(&to) else { continue };
            if !self.link(&to, &link.from)? {
                return Err(UnpackError::HardLink { entry: link.entry, target: link.target });
            }
            ready.extend(waiting.remove(&to).unwrap_or_default());
        }
        // Left are those that go in a circle.
        match self.pending.pop_first() {
            Some((_, Pending { entry, target, .. })) => {
                Err(UnpackError::HardLink { entry, target })
            }
            None => Ok(()),
        }
    }

    fn left(&self) -> u64 {
        self.max_bytes.saturating_sub(self.done.bytes)
    }

    fn too_large(&self, to: &CleanPath) -> UnpackError {
        UnpackError::TooLarge { entry: to.display(), max_bytes: self.max_bytes }
    }
}
