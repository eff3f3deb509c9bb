//! Holdings: which files this store has already, by digest.
//!
//! Listings say it, so that nothing has to be read or hashed to know. What is found is a hint: the
//! tree may be damaged or gone by then, so whoever copies a file checks what came out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::store::Store;
use crate::tree::Entry;

/// Files that can be copied instead of fetched.
#[derive(Debug, Default)]
pub struct Holdings {
    trees: Vec<PathBuf>,
    /// For each file the tree that it is in, and its path there.
    files: HashMap<Digest, (u32, Box<[u8]>)>,
}

impl Holdings {
    /// Every file of every tree in the store.
    ///
    /// A listing that can't be read is passed over: then its files are fetched again.
    pub fn of_store(store: &Store) -> Result<Holdings, StoreError> {
        let directory = store.directory("trees");
        let mut trees = Vec::new();
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let name = entry.at("list", &directory)?.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(".listing"));
            trees.extend(digest.and_then(|digest| digest.parse::<Digest>().ok()));
        }
        trees.sort();
        Ok(Holdings::of_trees(store, &trees))
    }

    /// Every file of these trees: those of a root's earlier generation, say.
    pub fn of_trees(store: &Store, trees: &[Digest]) -> Holdings {
        let listed: Vec<_> = trees
            .par_iter()
            .map(|tree| {
                let mut files = Vec::new();
                match store.read_listing(tree) {
                    Ok(listing) => listing.walk(&mut |path, entry| {
                        if let Entry::File { digest, size_bytes: 1.., .. } = entry {
                            files.push((*digest, Box::from(path)));
                        }
                    }),
                    Err(error) => tracing::debug!(%error, "a tree is passed over"),
                }
                files
            })
            .collect();
        let mut holdings = Holdings::default();
        holdings.files.reserve(listed.iter().map(Vec::len).sum());
        for (tree, files) in trees.iter().zip(listed) {
            let number = holdings.trees.len() as u32;
            holdings.trees.push(store.tree_path(tree));
            for (digest, path) in files {
                holdings.files.entry(digest).or_insert((number, path));
            }
        }
        holdings
    }

    /// Where a file with this digest lies, or should.
    pub fn find(&self, digest: &Digest) -> Option<PathBuf> {
        let (tree, path) = self.files.get(digest)?;
        Some(self.trees[*tree as usize].join(OsStr::from_bytes(path)))
    }

    /// How many different files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}
