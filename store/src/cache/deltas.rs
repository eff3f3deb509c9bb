//! Which files of a publication get deltas.
//!
//! For each large file that the root's generation before had at the same path with other content,
//! and that this store still has: an update then costs what changed. Deltas of the generation
//! before that still lead to a file of this one stay named, for those who come from further back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::cache::closure::{Closure, Delta, ObjectRecord};
use crate::cache::delta::{MAX_FILE_BYTES, MIN_FILE_BYTES, WORTH_PERCENT, make};
use crate::cache::publish::Publisher;
use crate::cache::sending::Sending;
use crate::cache::{CacheError, CachePath};
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::name::Name;
use crate::tree::Entry;

/// A file of the generation before.
#[derive(Clone, Copy)]
struct Old {
    digest: Digest,
    size_bytes: u64,
    tree: Digest,
}

impl Publisher<'_> {
    /// Makes and sends the deltas from `previous` to `objects`, and says which there are.
    pub(crate) fn publish_deltas(
        &self,
        previous: &Closure,
        objects: &[ObjectRecord],
        sending: &Sending<'_>,
    ) -> Result<BTreeSet<Delta>, CacheError> {
        let before: HashSet<Digest> = previous.objects.iter().map(|it| it.object.tree).collect();
        let now: HashSet<Digest> = objects.iter().map(|it| it.object.tree).collect();
        if before == now {
            return Ok(previous.deltas.clone());
        }
        let mut digests = HashSet::new();
        let mut by_name: HashMap<(Name, Vec<u8>), Old> = HashMap::new();
        let mut by_path: HashMap<Vec<u8>, Old> = HashMap::new();
        for record in &previous.objects {
            let (tree, name) = (record.object.tree, &record.object.name);
            // It may be gone here since.
            let Ok(listing) = self.store.listing(&tree) else { continue };
            let here = self.store.tree_path(&tree).is_dir();
            listing.walk(&mut |path, entry| {
                let Entry::File { digest, size_bytes, .. } = *entry else { return };
                digests.insert(digest);
                let old = Old { digest, size_bytes, tree };
                if here && (MIN_FILE_BYTES / 4..=MAX_FILE_BYTES).contains(&size_bytes) {
                    by_name.insert((name.clone(), path.to_vec()), old);
                    by_path.insert(path.to_vec(), old);
                }
            });
        }
        let mut deltas = BTreeMap::new();
        let mut all = digests.clone();
        for record in objects {
            if before.contains(&record.object.tree) {
                continue;
            }
            let mut wanted = Vec::new();
            self.store.listing(&record.object.tree)?.walk(&mut |path, entry| {
                let Entry::File { digest, size_bytes, .. } = *entry else { return };
                let new = all.insert(digest);
                if new && (MIN_FILE_BYTES..=MAX_FILE_BYTES).contains(&size_bytes) {
                    let named = by_name.get(&(record.object.name.clone(), path.to_vec()));
                    if let Some(old) = named.or_else(|| by_path.get(path)) {
                        wanted.push((path.to_vec(), digest, *old));
                    }
                }
            });
            if wanted.is_empty() {
                continue;
            }
            let (index, _) = self.cache.index(record)?;
            for (path, digest, old) in wanted {
                let Some(file) = index.files.iter().find(|file| file.digest == digest) else {
                    continue;
                };
                let bytes = self.make_delta(&path, old.tree, record.object.tree)?;
                let delta_bytes = bytes.len() as u64;
                if delta_bytes * 100 > index.share_bytes(file) * WORTH_PERCENT {
                    continue;
                }
                let delta = Delta {
                    to: digest,
                    to_bytes: file.size_bytes,
                    from: old.digest,
                    from_bytes: old.size_bytes,
                    delta: sending.delta(&bytes)?,
                    delta_bytes,
                };
                deltas.insert((delta.to, delta.from), delta);
            }
        }
        for delta in &previous.deltas {
            // A delta to a file that this generation still has.
            if digests.contains(&delta.to)
                && objects.iter().any(|it| before.contains(&it.object.tree))
                && sending.rely_on(&CachePath::delta(&delta.delta), Some(delta.delta_bytes))?
            {
                deltas.entry((delta.to, delta.from)).or_insert(*delta);
            }
        }
        Ok(deltas.into_values().collect())
    }

    fn make_delta(&self, path: &[u8], old: Digest, new: Digest) -> Result<Vec<u8>, StoreError> {
        let read = |tree: &Digest| {
            let path = self.store.tree_path(tree).join(OsStr::from_bytes(path));
            files::read(&path).at("read", &path)
        };
        let (old, new) = (read(&old)?, read(&new)?);
        make(&old, &new).at("make a delta of", Path::new(OsStr::from_bytes(path)))
    }
}
