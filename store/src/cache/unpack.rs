//! Unpacking: a tree is written from its index and whatever blocks and files come along.
//!
//! Blocks may come in any order, from several threads, and more than once. Every file is compared
//! with its digest before it counts as there. Nothing here follows a symlink of the tree: it is
//! written from the descriptor of a new directory of the store's down, and symlinks are made last.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::Mode;

use crate::cache::pack::{Block, Index};
use crate::cache::pack_writer::hash;
use crate::content::TREE_TIME;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::ingest::finish_file;
use crate::open_tree::OpenTree;
use crate::tree::Entry;

/// A tree that is being written.
pub(crate) struct Unpacking<'a> {
    root: OpenTree,
    index: &'a Index,
    files: Vec<Progress>,
    /// The paths of the directories below the top one, parents first.
    directories: Vec<Box<[u8]>>,
    symlinks: Vec<Symlink>,
}

/// A symlink that is to be made.
struct Symlink {
    path: Box<[u8]>,
    target: Box<[u8]>,
}

/// How far a file is.
struct Progress {
    /// Where it belongs, and whether it can be executed there. The first is written, the others
    /// are copies of it.
    targets: Vec<(Box<[u8]>, bool)>,
    /// Bytes that have not come yet, if it comes in several parts.
    left: AtomicU64,
    done: AtomicBool,
}

/// Why a block is no use.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// A file in it is not what its digest says.
    File { path: PathBuf, expected: Digest, found: Digest },
    /// The tree can't be written here.
    Store(StoreError),
}

impl From<StoreError> for UnpackError {
    fn from(error: StoreError) -> UnpackError {
        UnpackError::Store(error)
    }
}

impl<'a> Unpacking<'a> {
    /// Begins to write a tree to the new directory `root`: directories and empty files.
    pub(crate) fn begin(root: &Path, index: &'a Index) -> Result<Unpacking<'a>, StoreError> {
        let number: HashMap<Digest, usize> =
            index.files.iter().enumerate().map(|(number, file)| (file.digest, number)).collect();
        fs::create_dir(root).at("create", root)?;
        let mut unpacking = Unpacking {
            root: OpenTree::open(root)?,
            index,
            files: index
                .files
                .iter()
                .map(|file| Progress {
                    targets: Vec::new(),
                    left: AtomicU64::new(file.size_bytes),
                    done: AtomicBool::new(false),
                })
                .collect(),
            directories: Vec::new(),
            symlinks: Vec::new(),
        };
        let mut empty = Vec::new();
        index.listing.walk(&mut |path, entry| {
            let path = Box::from(path);
            match entry {
                Entry::Directory { .. } => unpacking.directories.push(path),
                Entry::Symlink { target } => {
                    unpacking.symlinks.push(Symlink { path, target: target.clone() });
                }
                Entry::File { digest, executable, .. } => match number.get(digest) {
                    Some(number) => unpacking.files[*number].targets.push((path, *executable)),
                    None => empty.push((path, *executable)),
                },
            }
        });
        for path in &unpacking.directories {
            unpacking.root.create_directory(path).at("create", &unpacking.root.path_of(path))?;
        }
        for (path, executable) in &empty {
            unpacking.write_file(path, *executable, b"")?;
        }
        Ok(unpacking)
    }

    /// The numbers of the files that are not there yet.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let missing = |number: &usize| !self.files[*number].done.load(Ordering::Acquire);
        (0..self.files.len()).filter(missing).collect()
    }

    /// A file is not wanted: it counts as there, and nothing is written.
    pub(crate) fn skip(&self, number: usize) {
        self.files[number].done.store(true, Ordering::Release);
    }

    /// Those of them of which there is no part either.
    pub(crate) fn untouched(&self) -> Vec<usize> {
        let mut missing = self.missing();
        missing.retain(|number| {
            self.files[*number].left.load(Ordering::Acquire) == self.index.files[*number].size_bytes
        });
        missing
    }

    /// Takes what a transfer that broke off had unpacked from `blocks` into the tree `old`: files
    /// that are whole, after comparing them with their digests, and parts of long ones, which are
    /// compared when they are complete. The blocks that needn't be read again.
    pub(crate) fn take_over(
        &self,
        old: &Path,
        blocks: &BTreeSet<usize>,
    ) -> Result<BTreeSet<usize>, StoreError> {
        let old = match OpenTree::open(old) {
            Ok(old) => old,
            // Nothing can be taken from there: all of it is read again.
            Err(_) => return Ok(BTreeSet::new()),
        };
        let blocks_of = |number: usize| self.index.blocks_of(&self.index.files[number]);
        let (parts, whole): (Vec<usize>, Vec<usize>) = (0..self.files.len()).partition(|number| {
            let came = blocks_of(*number).filter(|block| blocks.contains(block)).count();
            0 < came && came < blocks_of(*number).len()
        });
        let take_whole = |number: &usize| {
            let path = &self.files[*number].targets[0].0;
            let taken = self.root.take_file(&old, path).is_ok() && self.keep(*number)?;
            Ok((!taken).then_some(*number))
        };
        let lost: Vec<Option<usize>> =
            whole.par_iter().map(take_whole).collect::<Result<_, StoreError>>()?;
        let (parts, gone): (Vec<usize>, Vec<usize>) = parts.into_iter().partition(|number| {
            let path = &self.files[*number].targets[0].0;
            let writable = || -> Result<(), rustix::io::Errno> {
                self.root.take_file(&old, path)?;
                rustix::fs::fchmod(self.root.file(path)?.0, Mode::RUSR | Mode::WUSR)
            };
            writable().is_ok()
        });
        // What had brought something that isn't there is to be read again.
        let mut done = blocks.clone();
        for number in lost.into_iter().flatten().chain(gone) {
            for block in blocks_of(number) {
                done.remove(&block);
            }
        }
        for number in parts {
            let there = blocks_of(number).filter(|block| done.contains(block));
            let segments = there.flat_map(|block| self.index.segments(&self.index.blocks[block]));
            let there = segments.filter(|segment| segment.file == number);
            let bytes = there.map(|segment| segment.length).sum();
            self.files[number].left.fetch_sub(bytes, Ordering::AcqRel);
        }
        Ok(done)
    }

    /// Copies a file from elsewhere in the store; false if what is there is not it.
    pub(crate) fn copy(&self, number: usize, from: &Path) -> Result<bool, StoreError> {
        // Reflinked where the file system can.
        self.make(number, &mut |to| io::copy(&mut files::open_plain(from)?, to).map(drop))
    }

    /// Makes a file by `write`, which gets a new one. False if it fails, or if what it wrote is not
    /// the file.
    pub(crate) fn make(
        &self,
        number: usize,
        write: &mut dyn FnMut(&mut File) -> io::Result<()>,
    ) -> Result<bool, StoreError> {
        let path = &self.files[number].targets[0].0;
        let mut file = self.root.create(path).at("create", &self.root.path_of(path))?;
        if write(&mut file).is_ok() {
            return self.keep(number);
        }
        self.remove(path)?;
        Ok(false)
    }

    /// Keeps a file that was written, if it is the one that it should be, and removes it otherwise.
    fn keep(&self, number: usize) -> Result<bool, StoreError> {
        let (path, executable) = &self.files[number].targets[0];
        if self.check(number, path)?.is_some() {
            self.remove(path)?;
            return Ok(false);
        }
        self.finish(number, path, *executable)?;
        Ok(true)
    }

    fn remove(&self, path: &[u8]) -> Result<(), StoreError> {
        self.root.remove_file(path).at("remove", &self.root.path_of(path))
    }

    /// Takes what a block holds of files that are not there yet.
    pub(crate) fn block(&self, block: &Block, plain: &[u8]) -> Result<(), UnpackError> {
        let mut rest = plain;
        for segment in self.index.segments(block) {
            let (part, tail) = rest.split_at(segment.length as usize);
            rest = tail;
            let progress = &self.files[segment.file];
            if progress.done.load(Ordering::Acquire) {
                continue;
            }
            let file = &self.index.files[segment.file];
            let (path, executable) = &progress.targets[0];
            if segment.length == file.size_bytes {
                let found = Digest::of_file(part);
                if found != file.digest {
                    return Err(self.wrong(path, file.digest, found));
                }
                self.write_file(path, *executable, part)?;
                self.copies(segment.file)?;
                continue;
            }
            let whole = self.root.open_or_create(path);
            whole
                .map_err(io::Error::from)
                .and_then(|file| file.write_all_at(part, segment.offset))
                .at("write", &self.root.path_of(path))?;
            // Whoever brings the last part checks the whole.
            if progress.left.fetch_sub(segment.length, Ordering::AcqRel) == segment.length {
                if let Some(found) = self.check(segment.file, path)? {
                    return Err(self.wrong(path, file.digest, found));
                }
                self.finish(segment.file, path, *executable)?;
            }
        }
        Ok(())
    }

    fn wrong(&self, path: &[u8], expected: Digest, found: Digest) -> UnpackError {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        UnpackError::File { path, expected, found }
    }

    /// What a file is, if it is not what it should be.
    fn check(&self, number: usize, path: &[u8]) -> Result<Option<Digest>, StoreError> {
        let found = self.open(path).and_then(|mut file| hash(&mut file));
        let found = found.at("read", &self.root.path_of(path))?;
        Ok((found != self.index.files[number].digest).then_some(found))
    }

    fn open(&self, path: &[u8]) -> io::Result<File> {
        Ok(self.root.file(path)?.0)
    }

    fn finish(&self, number: usize, path: &[u8], executable: bool) -> Result<(), StoreError> {
        self.open(path)
            .and_then(|file| finish_file(&file, mode(executable)))
            .at("change", &self.root.path_of(path))?;
        self.copies(number)
    }

    /// The file is there: makes its copies.
    fn copies(&self, number: usize) -> Result<(), StoreError> {
        let progress = &self.files[number];
        let ((from, _), others) = progress.targets.split_first().expect("every file has a path");
        if !others.is_empty() {
            let mut from = self.open(from).at("open", &self.root.path_of(from))?;
            for (path, executable) in others {
                let mut copy = || {
                    from.rewind()?;
                    let mut to = self.root.create(path)?;
                    io::copy(&mut from, &mut to)?;
                    finish_file(&to, mode(*executable))
                };
                copy().at("copy to", &self.root.path_of(path))?;
            }
        }
        progress.done.store(true, Ordering::Release);
        Ok(())
    }

    fn write_file(&self, path: &[u8], executable: bool, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            let mut file = self.root.create(path)?;
            file.write_all(bytes)?;
            finish_file(&file, mode(executable))
        };
        write().at("write", &self.root.path_of(path))
    }

    /// Everything is there: makes symlinks, and finishes directories.
    pub(crate) fn end(self) -> Result<(), StoreError> {
        for Symlink { path, target } in &self.symlinks {
            self.root.create_symlink(path, target).at("create", &self.root.path_of(path))?;
        }
        let finish = |path: &[u8], mode: Option<u32>| {
            let directory = self.root.directory(path)?;
            if let Some(mode) = mode {
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
            }
            rustix::fs::futimens(&directory, &TREE_TIME)
        };
        self.directories.par_iter().rev().try_for_each(|path| {
            finish(path, Some(0o555)).at("change", &self.root.path_of(path))
        })?;
        // The top one stays as it is, so that it can be renamed to another parent.
        finish(b"", None).at("change", self.root.path())
    }
}

fn mode(executable: bool) -> u32 {
    if executable { 0o555 } else { 0o444 }
}
