//! Making a damaged tree anew of what is sound in it and of equal files elsewhere in the store.
//!
//! An equal file has the same digest and length by some listing: of another tree, of a composed
//! root, or at another place of the same tree. It is copied and compared with its digest on the way.
//! What is sound in the damaged tree was compared just before, and is linked.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode};

use crate::content::{self, TREE_TIME};
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::ingest::{create, finish_file};
use crate::listing::{Found, Listing};
use crate::open_tree::{self, OpenTree, make_accessible};
use crate::store::Store;
use crate::tree::{Entry, printable};
use crate::verification::{Damage, DamageKind, Place};
use crate::verify::Watch;
use crate::verify::repair::Remedy;
use crate::visit::join;

/// So many places of one file are tried.
const MOST_PLACES: usize = 16;

/// Where files lie, or should, by their digests.
#[derive(Debug, Default)]
pub(super) struct Equals(HashMap<Digest, Vec<PathBuf>>);

impl Equals {
    /// Finds the files that have one of these digests by the listings of these places.
    pub(super) fn find(wanted: &HashSet<Digest>, places: &[Place]) -> Equals {
        let found: Vec<Vec<(Digest, PathBuf)>> = places
            .par_iter()
            .map(|place| {
                let mut found = Vec::new();
                if let Ok(bytes) = files::read(&place.listing)
                    && let Ok(listing) = Listing::decode(&bytes, place.digest, &place.listing)
                {
                    listing.walk(&mut |path, entry| match entry {
                        Entry::File { digest, .. } if wanted.contains(digest) => {
                            let path = std::ffi::OsStr::from_bytes(path);
                            found.push((*digest, place.directory.join(path)));
                        }
                        _ => {}
                    });
                }
                found
            })
            .collect();
        let mut equals = Equals::default();
        for (digest, path) in found.into_iter().flatten() {
            let places = equals.0.entry(digest).or_default();
            if places.len() < MOST_PLACES {
                places.push(path);
            }
        }
        equals
    }
}

/// The digests of the files that are needed to make a tree anew.
pub(super) fn needed(listing: &Listing, damages: &[Damage]) -> HashSet<Digest> {
    let mut needed = HashSet::new();
    for damage in damages.iter().filter(|it| it.kind != DamageKind::Extra) {
        let mut pending = match listing.find(&damage.path) {
            Some(Found::Entry(Entry::File { digest, .. })) => {
                needed.insert(*digest);
                continue;
            }
            Some(Found::Directory(directory)) => vec![directory],
            _ => continue,
        };
        let mut seen = HashSet::new();
        while let Some(directory) = pending.pop() {
            for (_, entry) in directory.iter() {
                match entry {
                    Entry::File { digest, .. } => drop(needed.insert(*digest)),
                    Entry::Directory { digest } if seen.insert(*digest) => {
                        pending.extend(listing.directory(digest));
                    }
                    _ => {}
                }
            }
        }
    }
    needed
}

impl Store {
    /// Sets modes and times right, and opens to its owner what is closed to him; nothing else of a
    /// file changes by that, so that it can be done where it lies.
    pub(super) fn set_attributes(
        &self,
        place: &Place,
        listing: &Listing,
        damages: &[Damage],
    ) -> Result<(), StoreError> {
        let Ok(tree) = OpenTree::open(&place.directory) else { return Ok(()) };
        // Those above before those below, which can't be reached otherwise.
        for damage in damages {
            if !matches!(damage.kind, DamageKind::Unreadable { .. }) && !damage.is_of_attributes() {
                continue;
            }
            let (mode, is_link) = match listing.find(&damage.path) {
                Some(Found::Directory(_)) => (0o555, false),
                Some(Found::Entry(Entry::File { executable: false, .. })) => (0o444, false),
                Some(Found::Entry(Entry::File { executable: true, .. })) => (0o555, false),
                Some(Found::Entry(Entry::Symlink { .. })) => (0, true),
                _ => continue,
            };
            let (parent, name) = match damage.path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&damage.path[..slash], &damage.path[slash + 1..]),
                None if damage.path.is_empty() => (&b""[..], &b"."[..]),
                None => (&b""[..], &damage.path[..]),
            };
            let set = || {
                let parent = tree.directory(parent)?;
                if !is_link {
                    make_accessible(parent.as_fd(), name, mode)?;
                }
                rustix::fs::utimensat(&parent, name, &TREE_TIME, AtFlags::SYMLINK_NOFOLLOW)
            };
            // Verified again afterwards: then it shows.
            if let Err(error) = set() {
                tracing::debug!(path = %tree.path_of(&damage.path).display(), %error, "it stays so");
            }
        }
        Ok(())
    }

    /// Makes a tree anew and puts it in the place of the damaged one. What is lacking, if something
    /// is: then nothing has changed.
    pub(super) fn make_anew(
        &self,
        place: &Place,
        listing: &Listing,
        damages: &[Damage],
        equals: &Equals,
        watch: &Watch<'_>,
    ) -> Result<Result<Remedy, Vec<String>>, StoreError> {
        let scratch = self.scratch()?;
        let staged = scratch.path().join("tree");
        fs::create_dir(&staged).at("create", &staged)?;
        let old = OpenTree::open(&place.directory).ok();
        let mut making = Making {
            place,
            listing,
            damaged: damages.iter().map(|it| &*it.path).collect(),
            equals,
            cancel: watch.cancel,
            copied_from: BTreeSet::new(),
            lacking: Vec::new(),
        };
        let top = OpenTree::open(&staged)?;
        let old = old.and_then(|old| old.directory(b"").ok()).filter(|_| !making.is_damaged(b""));
        making.directory(top.as_fd(), b"", &listing.digest(), old.as_ref())?;
        watch.check()?;
        if !making.lacking.is_empty() {
            return Ok(Err(making.lacking));
        }
        let from = std::mem::take(&mut making.copied_from);
        self.committer.sync()?;
        self.replace(&staged, &place.directory)?;
        // With another tree comes another listing, and so another stamp.
        self.write(&place.listing, &listing.encode(), 0o444)?;
        if let Some(parent) = place.directory.parent() {
            self.committer.sync_directory(parent)?;
        }
        Ok(Ok(Remedy::Copied(from.into_iter().collect())))
    }
}

/// A tree on its way.
struct Making<'a> {
    place: &'a Place,
    listing: &'a Listing,
    damaged: HashSet<&'a [u8]>,
    equals: &'a Equals,
    cancel: Option<&'a AtomicBool>,
    copied_from: BTreeSet<PathBuf>,
    /// Files that are nowhere.
    lacking: Vec<String>,
}

impl Making<'_> {
    fn is_damaged(&self, path: &[u8]) -> bool {
        self.damaged.contains(path)
    }

    /// Fills a new directory; `old` is the one in the damaged tree. It recurses no deeper than trees
    /// may be.
    fn directory(
        &mut self,
        to: BorrowedFd<'_>,
        path: &[u8],
        digest: &Digest,
        old: Option<&OwnedFd>,
    ) -> Result<(), StoreError> {
        let listing = self.listing;
        let directory = listing.directory(digest).expect("a listing has all its directories");
        for (name, entry) in directory.iter() {
            let path = join(path, name);
            let shown = || self.place.directory.join(std::ffi::OsStr::from_bytes(&path));
            let old = old.filter(|_| !self.is_damaged(&path));
            match entry {
                Entry::Symlink { target } => rustix::fs::symlinkat(&**target, to, name)
                    .and_then(|()| {
                        rustix::fs::utimensat(to, name, &TREE_TIME, AtFlags::SYMLINK_NOFOLLOW)
                    })
                    .at("make again", &shown())?,
                Entry::Directory { digest } => {
                    let made = rustix::fs::mkdirat(to, name, Mode::RWXU)
                        .and_then(|()| open_tree::open_directory(to, name))
                        .at("make again", &shown())?;
                    let old = old.and_then(|it| open_tree::open_directory(it.as_fd(), name).ok());
                    self.directory(made.as_fd(), &path, digest, old.as_ref())?;
                    finish_file(&made.into(), 0o555)
                        .at("change", &self.place.directory.join(printable(&path)))?;
                }
                Entry::File { digest, size_bytes, executable } => {
                    let linked = old.is_some_and(|old| {
                        rustix::fs::linkat(old, name, to, name, AtFlags::empty()).is_ok()
                    });
                    if linked {
                        continue;
                    }
                    let mode = if *executable { 0o555 } else { 0o444 };
                    // What can't be linked can be copied, as can what was not as it should be in
                    // this process's eyes only.
                    let own = old.map(|_| shown());
                    let equals = self.equals.0.get(digest).map(Vec::as_slice).unwrap_or_default();
                    let places: Vec<PathBuf> = own.into_iter().chain(equals.to_vec()).collect();
                    let wanted = (*digest, *size_bytes);
                    let found = places
                        .into_iter()
                        .find_map(|from| self.copy(&from, to, name, wanted, mode).transpose());
                    match found.transpose()? {
                        Some(from) => drop(self.copied_from.insert(from)),
                        None => self.lacking.push(printable(&path)),
                    }
                }
            }
        }
        finish_top(to).at("change", &self.place.directory)
    }

    /// Copies an equal file; where it came from, if it is one.
    fn copy(
        &self,
        from: &Path,
        to: BorrowedFd<'_>,
        name: &[u8],
        (digest, size_bytes): (Digest, u64),
        mode: u32,
    ) -> Result<Option<PathBuf>, StoreError> {
        let Ok(mut file) = files::open_plain(from) else { return Ok(None) };
        let Ok(stat) = rustix::fs::fstat(&file) else { return Ok(None) };
        if stat.st_size as u64 != size_bytes {
            return Ok(None);
        }
        let mut made = create(to, name).at("copy", from)?;
        let copied = content::copy(&mut file, &stat, &mut made, self.cancel);
        if copied.as_ref().is_ok_and(|(found, _)| *found == digest) {
            finish_file(&made, mode).at("change", from)?;
            return Ok(Some(from.to_owned()));
        }
        rustix::fs::unlinkat(to, name, AtFlags::empty()).at("remove the copy of", from)?;
        match copied {
            // Reading may fail, writing must not.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                Err(error).at("copy", from)
            }
            _ => Ok(None),
        }
    }
}

fn finish_top(directory: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(rustix::fs::futimens(directory, &TREE_TIME)?)
}
