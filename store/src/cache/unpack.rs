//! Unpacking: a tree is written from its index and whatever blocks and files come along.
//!
//! Blocks may come in any order, from several threads, and more than once. Every file is compared
//! with its digest before it counts as there. Nothing here follows a symlink of the tree: it is
//! written into a new directory of the store's, files are created and never opened for writing
//! when they exist, and symlinks are made last.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;

use crate::cache::pack::{Block, Index};
use crate::cache::pack_writer::hash;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::ingest::finish_file;
use crate::tree::Entry;

/// A tree that is being written.
pub(crate) struct Unpacking<'a> {
    root: &'a Path,
    index: &'a Index,
    files: Vec<Progress>,
    directories: Vec<PathBuf>,
    symlinks: Vec<(PathBuf, Box<[u8]>)>,
}

/// How far a file is.
struct Progress {
    /// Where it belongs, and whether it can be executed there. The first is written, the others
    /// are copies of it.
    targets: Vec<(PathBuf, bool)>,
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
    pub(crate) fn begin(root: &'a Path, index: &'a Index) -> Result<Unpacking<'a>, StoreError> {
        let number: HashMap<Digest, usize> =
            index.files.iter().enumerate().map(|(number, file)| (file.digest, number)).collect();
        let mut unpacking = Unpacking {
            root,
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
            directories: vec![root.to_owned()],
            symlinks: Vec::new(),
        };
        let mut empty = Vec::new();
        index.listing.walk(&mut |path, entry| {
            let path = root.join(OsStr::from_bytes(path));
            match entry {
                Entry::Directory { .. } => unpacking.directories.push(path),
                Entry::Symlink { target } => unpacking.symlinks.push((path, target.clone())),
                Entry::File { digest, executable, .. } => match number.get(digest) {
                    Some(number) => unpacking.files[*number].targets.push((path, *executable)),
                    None => empty.push((path, *executable)),
                },
            }
        });
        for path in &unpacking.directories {
            fs::create_dir(path).at("create", path)?;
        }
        for (path, executable) in &empty {
            write_file(path, *executable, b"")?;
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
        let old_path = |path: &Path| old.join(path.strip_prefix(self.root).unwrap_or(path));
        let blocks_of = |number: usize| self.index.blocks_of(&self.index.files[number]);
        let (parts, whole): (Vec<usize>, Vec<usize>) = (0..self.files.len()).partition(|number| {
            let came = blocks_of(*number).filter(|block| blocks.contains(block)).count();
            0 < came && came < blocks_of(*number).len()
        });
        let take_whole = |number: &usize| {
            let from = old_path(&self.files[*number].targets[0].0);
            let taken = self.make(*number, &mut |to| fs::rename(&from, to).is_ok())?;
            Ok((!taken).then_some(*number))
        };
        let lost: Vec<Option<usize>> =
            whole.par_iter().map(take_whole).collect::<Result<_, StoreError>>()?;
        let (parts, gone): (Vec<usize>, Vec<usize>) = parts.into_iter().partition(|number| {
            let to = &self.files[*number].targets[0].0;
            let mode = fs::Permissions::from_mode(0o600);
            fs::rename(old_path(to), to).is_ok() && fs::set_permissions(to, mode).is_ok()
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
        self.make(number, &mut |to| {
            // Reflinked where the file system can.
            let copied = fs::copy(from, to);
            // A copy of a read-only file is read-only; who it belongs to may still change that.
            copied.is_ok() && fs::set_permissions(to, fs::Permissions::from_mode(0o600)).is_ok()
        })
    }

    /// Makes a file by `write`, which gets a path where nothing is, and says whether it succeeded.
    /// False if it didn't, or if what it wrote is not the file.
    pub(crate) fn make(
        &self,
        number: usize,
        write: &mut dyn FnMut(&Path) -> bool,
    ) -> Result<bool, StoreError> {
        let (path, executable) = &self.files[number].targets[0];
        let made = write(path);
        if made && self.check(number, path)?.is_none() {
            self.finish(number, path, *executable)?;
            return Ok(true);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).at("remove", path)
            }
            _ => Ok(false),
        }
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
                write_file(path, *executable, part)?;
                self.copies(segment.file)?;
                continue;
            }
            write_part(path, segment.offset, part)?;
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

    fn wrong(&self, path: &Path, expected: Digest, found: Digest) -> UnpackError {
        let path = path.strip_prefix(self.root).unwrap_or(path).to_owned();
        UnpackError::File { path, expected, found }
    }

    /// What a file is, if it is not what it should be.
    fn check(&self, number: usize, path: &Path) -> Result<Option<Digest>, StoreError> {
        let found = File::open(path).and_then(|mut file| hash(&mut file)).at("read", path)?;
        Ok((found != self.index.files[number].digest).then_some(found))
    }

    fn finish(&self, number: usize, path: &Path, executable: bool) -> Result<(), StoreError> {
        let file = File::open(path).at("open", path)?;
        finish_file(&file, mode(executable)).at("change", path)?;
        self.copies(number)
    }

    /// The file is there: makes its copies.
    fn copies(&self, number: usize) -> Result<(), StoreError> {
        let progress = &self.files[number];
        let ((from, _), others) = progress.targets.split_first().expect("every file has a path");
        for (path, executable) in others {
            fs::copy(from, path).at("copy to", path)?;
            let file = File::open(path).at("open", path)?;
            finish_file(&file, mode(*executable)).at("change", path)?;
        }
        progress.done.store(true, Ordering::Release);
        Ok(())
    }

    /// Everything is there: makes symlinks, and finishes directories.
    pub(crate) fn end(self) -> Result<(), StoreError> {
        for (path, target) in &self.symlinks {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path).at("create", path)?;
            finish_directory(path)?;
        }
        // The top one stays as it is, so that it can be renamed to another parent.
        self.directories[1..].par_iter().rev().try_for_each(|path| {
            finish_directory(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o555)).at("change", path)
        })?;
        finish_directory(self.root)
    }
}

fn mode(executable: bool) -> u32 {
    if executable { 0o555 } else { 0o444 }
}

fn write_file(path: &Path, executable: bool, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .at("create", path)?;
    file.write_all(bytes).at("write", path)?;
    finish_file(&file, mode(executable)).at("change", path)
}

fn write_part(path: &Path, offset: u64, part: &[u8]) -> Result<(), StoreError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    file.and_then(|file| file.write_all_at(part, offset)).at("write", path)
}

fn finish_directory(path: &Path) -> Result<(), StoreError> {
    let time = &crate::content::TREE_TIME;
    rustix::fs::utimensat(rustix::fs::CWD, path, time, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .at("change", path)
}
