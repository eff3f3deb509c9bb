//! A tree's listing: the canonical encodings of all its directories in one file.
//!
//! It lies beside the tree as `<digest>.listing`, so that verification can name the file that is
//! wrong, and merges, packs and deltas never hash anything again. The file is each directory's
//! encoding ([`Directory::encode`]) in pre-order, preceded by its length as 8 bytes, little endian;
//! the root comes first and a directory that occurs twice is written once. It needs no checksum:
//! every directory is hashed when it is read, and the root's digest is the file's name.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::digest::Digest;
use crate::tree::{Directory, Entry, MAX_DEPTH};

/// All directories of one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    root: Digest,
    directories: HashMap<Digest, Directory>,
}

/// How much a tree is when it is written out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Files, symlinks and directories below the root.
    pub entries: u64,
    /// The sum of all files' lengths.
    pub size_bytes: u64,
    /// The longest path below the root.
    pub path_bytes: u64,
}

/// What a path in a tree leads to, symlinks not followed.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// A file or symlink.
    Entry(&'a Entry),
    /// A directory.
    Directory(&'a Directory),
}

impl Listing {
    /// A listing from its root and the directories that it leads to.
    ///
    /// # Panics
    /// If the root is not among them.
    pub fn new(root: Digest, directories: HashMap<Digest, Directory>) -> Listing {
        assert!(directories.contains_key(&root), "the root is one of the directories");
        Listing { root, directories }
    }

    /// The tree's digest.
    pub fn digest(&self) -> Digest {
        self.root
    }

    /// The top directory.
    pub fn root(&self) -> &Directory {
        &self.directories[&self.root]
    }

    /// The directory with this digest.
    pub fn directory(&self, digest: &Digest) -> Option<&Directory> {
        self.directories.get(digest)
    }

    /// What lies at `path` (relative, `/` between names, empty for the root).
    pub fn find(&self, path: &[u8]) -> Option<Found<'_>> {
        let mut found = Found::Directory(self.root());
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Found::Directory(directory) = found else { return None };
            found = match directory.get(name)? {
                Entry::Directory { digest } => Found::Directory(self.directories.get(digest)?),
                entry => Found::Entry(entry),
            };
        }
        Some(found)
    }

    /// Calls `visit` with every path below the root, parents first, names in byte order.
    pub fn walk(&self, visit: &mut dyn FnMut(&[u8], &Entry)) {
        // An explicit stack: depth comes from foreign bytes.
        let mut stack = vec![(Vec::new(), self.root().iter())];
        while let Some((prefix, entries)) = stack.last_mut() {
            let Some((name, entry)) = entries.next() else {
                stack.pop();
                continue;
            };
            let mut path = prefix.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            visit(&path, entry);
            if let Entry::Directory { digest } = entry
                && let Some(directory) = self.directories.get(digest)
            {
                stack.push((path, directory.iter()));
            }
        }
    }

    /// How much the tree is when it is written out, found without writing or walking it.
    ///
    /// Equal directories are one in a listing, so a few hundred bytes can stand for 2^64 files:
    /// whoever is about to walk a listing of foreign origin asks this first. Sums saturate.
    pub fn extent(&self) -> Extent {
        let mut done: HashMap<Digest, Extent> = HashMap::new();
        // An explicit stack, as in `walk`: a directory is summed up after those that it holds.
        let mut stack = vec![(self.root, false)];
        while let Some((digest, below_is_done)) = stack.pop() {
            let Some(directory) = self.directories.get(&digest) else { continue };
            if done.contains_key(&digest) {
                continue;
            }
            if !below_is_done {
                stack.push((digest, true));
                stack.extend(directory.iter().rev_directories().into_iter().map(|it| (it, false)));
                continue;
            }
            let mut sum = Extent::default();
            for (name, entry) in directory.iter() {
                let mut longest = name.len() as u64;
                sum.entries = sum.entries.saturating_add(1);
                match entry {
                    Entry::File { size_bytes, .. } => {
                        sum.size_bytes = sum.size_bytes.saturating_add(*size_bytes);
                    }
                    Entry::Directory { digest } => {
                        let below = done.get(digest).copied().unwrap_or_default();
                        sum.entries = sum.entries.saturating_add(below.entries);
                        sum.size_bytes = sum.size_bytes.saturating_add(below.size_bytes);
                        longest = longest.saturating_add(1 + below.path_bytes);
                    }
                    Entry::Symlink { .. } => {}
                }
                sum.path_bytes = sum.path_bytes.max(longest);
            }
            done.insert(digest, sum);
        }
        done.get(&self.root).copied().unwrap_or_default()
    }

    /// What it takes in memory, roughly.
    pub(crate) fn memory_bytes(&self) -> u64 {
        // A name, an entry, and what a node of a map of them takes.
        const ENTRY_BYTES: u64 = 120;
        let entries: usize = self.directories.values().map(|it| it.iter().count()).sum();
        200 * self.directories.len() as u64 + ENTRY_BYTES * entries as u64
    }

    /// The sum of all files' lengths.
    pub fn size_bytes(&self) -> u64 {
        let mut total = 0;
        self.walk(&mut |_, entry| {
            if let Entry::File { size_bytes, .. } = entry {
                total += size_bytes;
            }
        });
        total
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut seen = HashSet::new();
        let mut stack = vec![self.root];
        while let Some(digest) = stack.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let Some(directory) = self.directories.get(&digest) else { continue };
            let text = directory.encode();
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&text);
            let below = directory.iter().rev_directories();
            stack.extend(below);
        }
        bytes
    }

    /// The listing in `bytes`, whose root must have the digest `root`; `path` is for the error.
    pub fn decode(bytes: &[u8], root: Digest, path: &Path) -> Result<Listing, crate::StoreError> {
        let damaged = |reason: String| crate::StoreError::Damaged { path: path.to_owned(), reason };
        let mut directories = HashMap::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (length, tail) = rest
                .split_first_chunk::<8>()
                .ok_or_else(|| damaged("it ends in the middle of a length".to_owned()))?;
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (text, tail) = tail
                .split_at_checked(length)
                .ok_or_else(|| damaged("it ends in the middle of a directory".to_owned()))?;
            let directory = Directory::decode(text).map_err(|error| damaged(error.to_string()))?;
            directories.insert(directory.digest(), directory);
            rest = tail;
        }
        // Every directory that is named must be there: nothing below may come as a surprise.
        // They are gone through as deep as they lie in one another, so deep that whoever walks the
        // tree later needs no care.
        let mut depths: HashMap<Digest, usize> = HashMap::new();
        let mut stack = vec![(root, false)];
        while let Some((digest, below_is_done)) = stack.pop() {
            if depths.contains_key(&digest) {
                continue;
            }
            let directory = directories
                .get(&digest)
                .ok_or_else(|| damaged(format!("the directory {digest} is not in it")))?;
            let below = directory.iter().rev_directories();
            if !below_is_done && !below.is_empty() {
                stack.push((digest, true));
                stack.extend(below.into_iter().map(|digest| (digest, false)));
                continue;
            }
            let depth = 1 + below.iter().map(|digest| depths[digest]).max().unwrap_or(0);
            if depth > MAX_DEPTH {
                let reason = format!("directories lie in one another more than {MAX_DEPTH} deep");
                return Err(damaged(reason));
            }
            depths.insert(digest, depth);
        }
        Ok(Listing { root, directories })
    }
}

/// The digests of the directories among entries, last name first: a stack then pops them in order.
trait RevDirectories {
    fn rev_directories(self) -> Vec<Digest>;
}

impl<'a, I: Iterator<Item = (&'a [u8], &'a Entry)>> RevDirectories for I {
    fn rev_directories(self) -> Vec<Digest> {
        let mut digests: Vec<Digest> = self
            .filter_map(|(_, entry)| match entry {
                Entry::Directory { digest } => Some(*digest),
                _ => None,
            })
            .collect();
        digests.reverse();
        digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Listing {
        let mut inner = Directory::default();
        inner.insert(b"link", Entry::Symlink { target: (*b"x").into() }).expect("valid");
        let file = Entry::File { digest: Digest::of_file(b"abc"), size_bytes: 3, executable: true };
        inner.insert(b"run", file).expect("valid");
        let mut root = Directory::default();
        for name in [&b"a"[..], b"b"] {
            root.insert(name, Entry::Directory { digest: inner.digest() }).expect("valid");
        }
        Listing::new(root.digest(), [inner, root].map(|it| (it.digest(), it)).into())
    }

    #[test]
    fn a_listing_is_read_back_and_finds_paths() {
        let listing = sample();
        let bytes = listing.encode();
        let path = Path::new("x.listing");
        assert_eq!(Listing::decode(&bytes, listing.digest(), path).expect("decoded"), listing);
        assert!(matches!(
            listing.find(b"a/run"),
            Some(Found::Entry(Entry::File { size_bytes: 3, .. }))
        ));
        assert!(matches!(listing.find(b"/b/"), Some(Found::Directory(_))));
        assert!(listing.find(b"a/run/x").is_none() && listing.find(b"c").is_none());
        assert_eq!(listing.size_bytes(), 6);
        let mut paths = Vec::new();
        listing.walk(&mut |path, _| paths.push(String::from_utf8_lossy(path).into_owned()));
        assert_eq!(paths, ["a", "a/link", "a/run", "b", "b/link", "b/run"]);
    }

    #[test]
    fn the_extent_of_a_bomb_is_told_without_walking_it() {
        let listing = sample();
        let extent = Extent { entries: 6, size_bytes: 6, path_bytes: 6 };
        assert_eq!(listing.extent(), extent);
        let mut directory = listing.root().clone();
        let mut directories = HashMap::new();
        for _ in 0..100 {
            let digest = directory.digest();
            directories.insert(digest, directory);
            directory = Directory::default();
            for name in [&b"x"[..], b"y"] {
                directory.insert(name, Entry::Directory { digest }).expect("valid");
            }
        }
        directories.extend(listing.directories);
        let root = directory.digest();
        directories.insert(root, directory);
        let extent = Listing::new(root, directories).extent();
        assert_eq!((extent.entries, extent.size_bytes), (u64::MAX, u64::MAX));
        assert_eq!(extent.path_bytes, 206);
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let listing = sample();
        let bytes = listing.encode();
        for length in 0..bytes.len() {
            let error = Listing::decode(&bytes[..length], listing.digest(), Path::new("x.listing"))
                .expect_err("truncated");
            assert!(error.to_string().starts_with("x.listing is damaged: "), "{error}");
        }
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1;
            assert!(Listing::decode(&flipped, listing.digest(), Path::new("x")).is_err());
        }
    }
}
