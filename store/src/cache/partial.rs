//! Partial objects: what a transfer that broke off has brought, for the next one.
//!
//! `partial/<pack digest>` of a store holds the tree as far as it had been unpacked, and the
//! numbers of the pack's blocks that had been. The next transfer of that pack, from whichever cache
//! and by whichever process, begins with it. It is a hint, as [`Holdings`](super::Holdings) are:
//! every file is compared with its digest before it counts as there, so nothing is synced, and a
//! partial object that a power cut has damaged costs a transfer and no more.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::unpack::Unpacking;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::store::Store;

/// What nobody took up for so long is removed.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The directory of one transfer, in a scratch directory of the store's.
pub(crate) struct Workplace {
    path: PathBuf,
}

impl Workplace {
    /// A new one in the empty directory `scratch`.
    pub(crate) fn new(scratch: &Path) -> Result<Workplace, StoreError> {
        let path = scratch.join("object");
        fs::create_dir(&path).at("create", &path)?;
        Ok(Workplace { path })
    }

    /// Where the tree is unpacked.
    pub(crate) fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// Takes what an earlier transfer of this pack left: the files that are whole, and parts of
    /// long ones. The blocks that needn't be read any more; none if nothing was left.
    pub(crate) fn resume(
        &self,
        store: &Store,
        pack: &Digest,
        unpacking: &Unpacking<'_>,
    ) -> Result<Option<BTreeSet<usize>>, StoreError> {
        // Moved away first: whoever else fetches the same pack gets it whole or not at all.
        let old = self.path.with_file_name("old");
        match fs::rename(path(store, pack), &old) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            moved => moved.at("move", &path(store, pack))?,
        }
        let numbers = fs::read(old.join("blocks")).unwrap_or_default();
        let (numbers, _) = numbers.as_chunks::<4>();
        let blocks = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize).collect();
        let done = unpacking.take_over(&old.join("tree"), &blocks)?;
        files::remove_tree(&old)?;
        Ok(Some(done))
    }

    /// Leaves what was unpacked for the next transfer of this pack. If that fails, it is fetched
    /// again: nothing is lost but time.
    pub(crate) fn leave(self, store: &Store, pack: &Digest, blocks: &BTreeSet<usize>) {
        let leave = || {
            let numbers: Vec<u8> =
                blocks.iter().flat_map(|number| (*number as u32).to_le_bytes()).collect();
            fs::write(self.path.join("blocks"), numbers)?;
            fs::create_dir_all(store.directory("partial"))?;
            fs::rename(&self.path, path(store, pack))
        };
        if let Err(error) = leave() {
            tracing::debug!(%error, %pack, "a broken transfer begins anew");
        }
    }
}

impl Store {
    /// Removes partial objects that nobody took up.
    pub(crate) fn sweep_partial(&self) -> Result<(), StoreError> {
        for path in files::entries(&self.directory("partial"))? {
            let modified = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEPT)) {
                match files::remove_tree(&path) {
                    // Somebody took it up, or swept it, too.
                    Err(error) if error.is_not_found() => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    }
}

fn path(store: &Store, pack: &Digest) -> PathBuf {
    store.directory("partial").join(pack.to_string())
}
