//! A tar archive's entries, one after the other, into a tree.
//!
//! The `tar` crate reads headers (GNU's long names, pax, sparse files of the GNU kind); everything that
//! touches the file system is `tree`'s. What the crate would read without bound is bounded by the
//! reader beneath it.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use tar::{Archive, EntryType};

use super::decompress::{self, Decompressed};
use super::error::UnpackError;
use super::paths::{CleanPath, MergedLink, PathError, Selection, clean};
use super::tree::{TreeWriter, WriteError};
use super::{Format, Special, UnpackSpec, Unpacked};
use crate::fetch::CancelToken;

/// What an entry's headers, long names and extended headers may take in all.
const MAX_HEADERS: u64 = 1 << 20;

/// What may follow the end of an archive: padding.
const MAX_TRAILING: u64 = 64 << 20;

/// The longest text of a symbolic link on Linux.
const MAX_LINK: usize = 4095;

type Entry<'a> = tar::Entry<'a, Bounded>;

/// Unpacks a (compressed) tar archive of `size` bytes; `path` is for messages.
pub(super) fn unpack<R: Read + Send>(
    path: &Path,
    source: R,
    size: u64,
    format: Format,
    spec: &UnpackSpec,
    into: &Path,
    cancel: &CancelToken,
) -> Result<Unpacked, UnpackError> {
    let selection = Selection::new(spec, format)
        .map_err(|(entry, source)| UnpackError::Path { entry, source })?;
    let mut unpacker = Unpacker {
        selection,
        tree: TreeWriter::new(into)?,
        format,
        max_bytes: spec.max_bytes,
        cancel,
        done: Unpacked::default(),
    };
    std::thread::scope(|scope| {
        let read = |source| UnpackError::Read { path: path.to_owned(), source };
        let (compression, reader, thread) =
            decompress::start(scope, source, size, cancel).map_err(read)?;
        let mut entries = 0;
        let result = unpacker.run(reader, &mut entries);
        let decompressed = match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        if cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        match (result, decompressed) {
            // Damaged data makes for a damaged archive; the cause is what helps.
            (Ok(()) | Err(Stopped::Archive(_)), Err(source)) => Err(UnpackError::Decompress {
                path: path.to_owned(),
                compression: compression.name(),
                source,
            }),
            (Err(Stopped::Archive(source)), Ok(())) => {
                Err(UnpackError::Tar { path: path.to_owned(), entries, source })
            }
            (Err(Stopped::Tree(error)), _) => Err(error),
            (Ok(()), Ok(())) => Ok(()),
        }
    })?;
    let patterns = unpacker.selection.unmatched();
    if !patterns.is_empty() {
        return Err(UnpackError::NothingSelected { path: path.to_owned(), patterns });
    }
    unpacker.done.special.sort();
    Ok(unpacker.done)
}

/// Why unpacking stopped: the archive itself, or one of its entries.
enum Stopped {
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

struct Unpacker<'a> {
    selection: Selection,
    tree: TreeWriter,
    format: Format,
    max_bytes: Option<u64>,
    cancel: &'a CancelToken,
    done: Unpacked,
}

impl Unpacker<'_> {
    fn run(&mut self, reader: Decompressed, count: &mut u64) -> Result<(), Stopped> {
        let budget = Rc::new(Cell::new(MAX_HEADERS));
        let mut archive = Archive::new(Bounded { inner: reader, budget: Rc::clone(&budget) });
        let mut entries = archive.entries()?;
        loop {
            budget.set(MAX_HEADERS);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry?;
            budget.set(u64::MAX);
            self.entry(&mut entry)?;
            finish(&mut entry)?;
            *count += 1;
        }
        if *count == 0 {
            return Err(io::Error::other("it has no entries").into());
        }
        // To the end: checksums of compressed data come last.
        budget.set(MAX_TRAILING);
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_>) -> Result<(), Stopped> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            // Only comments in practice (git's commit); what it could say is ignored on purpose.
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&name).into_owned();
        self.check_extensions(entry, &shown)?;
        let path = clean(&name).map_err(|source| UnpackError::Path { entry: shown(), source })?;
        let Some(place) = self.selection.place(&path) else { return Ok(()) };
        if !self.selection.wants(&place) {
            return Ok(());
        }
        let to = self.selection.rename(place);
        match kind {
            // Before POSIX, a directory was a file whose name ends with a slash.
            EntryType::Regular if name.ends_with(b"/") => self.tree.directory(&to)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let executable = entry.header().mode()? & 0o100 != 0;
                let size = entry.size();
                let limit = self.left();
                if limit.is_some_and(|limit| size > limit) {
                    return Err(self.too_large(&to).into());
                }
                let written = self.tree.file(&to, executable, entry, limit, self.cancel)?;
                if written != size {
                    return Err(truncated().into());
                }
                self.done.files += 1;
                self.done.bytes += written;
            }
            EntryType::Directory => self.tree.directory(&to)?,
            EntryType::Symlink => {
                self.symlink(entry, &path, &to, &shown)?;
                return Ok(());
            }
            EntryType::Link => {
                self.hard_link(entry, &to, &shown)?;
                return Ok(());
            }
            kind => return Err(UnpackError::Kind { entry: shown(), kind: kind_name(kind) }.into()),
        }
        self.note_special(entry, &to)?;
        Ok(())
    }

    /// The `tar` crate skips what it doesn't understand in extended headers; a name or size could be
    /// among it. Sparse files of the pax kinds would come out as their maps.
    fn check_extensions(
        &self,
        entry: &mut Entry<'_>,
        shown: &dyn Fn() -> String,
    ) -> Result<(), Stopped> {
        let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
        for extension in extensions {
            match extension.map(|extension| extension.key_bytes().starts_with(b"GNU.sparse.")) {
                Ok(false) => {}
                Ok(true) => {
                    let kind = "sparse file of the pax kind";
                    return Err(UnpackError::Kind { entry: shown(), kind }.into());
                }
                Err(_) => return Err(UnpackError::ExtendedHeader { entry: shown() }.into()),
            }
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry<'_>,
        path: &CleanPath,
        to: &CleanPath,
        shown: &dyn Fn() -> String,
    ) -> Result<(), UnpackError> {
        let refused = |source| UnpackError::Path { entry: shown(), source };
        let target = entry.link_name_bytes().ok_or_else(|| refused(PathError::Empty))?;
        if target.is_empty() {
            return Err(refused(PathError::Empty));
        }
        if target.len() > MAX_LINK {
            return Err(refused(PathError::TooLong));
        }
        if target.contains(&0) {
            return Err(refused(PathError::Nul));
        }
        match self.selection.merged_link(path, &target) {
            MergedLink::Keep => self.tree.symlink(to, &target)?,
            MergedLink::Retarget(target) => self.tree.symlink(to, &target)?,
            MergedLink::Drop => return Ok(()),
            MergedLink::Refuse => {
                let target = String::from_utf8_lossy(&target).into_owned();
                return Err(UnpackError::Unmergeable { entry: shown(), target });
            }
        }
        self.done.files += 1;
        Ok(())
    }

    fn hard_link(
        &mut self,
        entry: &Entry<'_>,
        to: &CleanPath,
        shown: &dyn Fn() -> String,
    ) -> Result<(), UnpackError> {
        let target = entry.link_name_bytes().unwrap_or_default();
        let refused = |source| UnpackError::Path { entry: shown(), source };
        let path = clean(&target).map_err(refused)?;
        let from = self.selection.place(&path).map(|place| self.selection.rename(place));
        let copied = match from {
            Some(from) => {
                let limit = self.left();
                self.tree.copy(to, &from, limit, self.cancel).map_err(|error| match error {
                    UnpackError::TooLarge { .. } => self.too_large(to),
                    error => error,
                })?
            }
            None => None,
        };
        let Some(bytes) = copied else {
            let target = String::from_utf8_lossy(&target).into_owned();
            return Err(UnpackError::HardLink { entry: shown(), target });
        };
        self.done.files += 1;
        self.done.bytes += bytes;
        Ok(())
    }

    fn note_special(&mut self, entry: &Entry<'_>, to: &CleanPath) -> Result<(), Stopped> {
        let header = entry.header();
        let mode = header.mode()? & 0o7777;
        let (uid, gid) = (header.uid()?, header.gid()?);
        // Owners in source archives are whoever packed them.
        let owned = self.format == Format::Deb && (uid, gid) != (0, 0);
        if mode & 0o7000 != 0 || owned {
            use std::os::unix::ffi::OsStringExt;
            let path = std::ffi::OsString::from_vec(to.joined()).into();
            self.done.special.push(Special { path, mode, uid, gid });
        }
        Ok(())
    }

    fn left(&self) -> Option<u64> {
        self.max_bytes.map(|max| max.saturating_sub(self.done.bytes))
    }

    fn too_large(&self, to: &CleanPath) -> UnpackError {
        UnpackError::TooLarge { entry: to.display(), max_bytes: self.max_bytes.unwrap_or(u64::MAX) }
    }
}

/// Reads what is left of an entry, because what is skipped inside the crate counts as headers. An end
/// within the entry would otherwise pass for the archive's.
fn finish(entry: &mut Entry<'_>) -> io::Result<()> {
    let mut buffer = [0; 1 << 15];
    while entry.read(&mut buffer)? > 0 {}
    Ok(())
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within an entry")
}

fn kind_name(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Fifo => "fifo",
        _ => "thing of an unknown type",
    }
}

/// A reader that fails when more is read than was foreseen.
struct Bounded {
    inner: Decompressed,
    budget: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let budget = self.budget.get();
        if budget == 0 && !into.is_empty() {
            return Err(io::Error::other("a header, or what follows the end, is far too long"));
        }
        let most = usize::try_from(budget).unwrap_or(usize::MAX).min(into.len());
        let read = self.inner.read(&mut into[..most])?;
        self.budget.set(budget - read as u64);
        Ok(read)
    }
}
