//! Sightings: what this machine has seen of a cache, so that it notices being served old news.
//!
//! A signature says who wrote a manifest, not that it is their newest. `caches/<address>/<root>.<key>`
//! of a store holds the newest pointer seen; an older one later is a rollback, another one of the
//! same generation a fork (or two publishers with one key).

use crate::cache::closure::Pointer;
use crate::cache::path::Signer;
use crate::cache::sealed::Sealed;
use crate::digest::{Digest, Domain};
use crate::error::StoreError;
use crate::files;
use crate::name::RootName;
use crate::store::Store;

/// The newest that was seen of one root, by one key, in one cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The pointer, as it was served.
    pub pointer: Pointer,
}

/// How a pointer compares with what was seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was seen before.
    First,
    /// It is the same.
    Same,
    /// It is newer.
    Newer,
    /// It is older than what the cache served before.
    RolledBack {
        /// The generation that was seen.
        seen: u64,
    },
    /// It is another manifest of the generation that was seen.
    Forked,
}

impl Freshness {
    /// Whether the user must hear of it.
    pub fn is_suspicious(&self) -> bool {
        matches!(self, Freshness::RolledBack { .. } | Freshness::Forked)
    }
}

impl Store {
    /// Compares a pointer, whose signature was checked, with what this store has seen of the cache
    /// at `url`, and remembers it if it is newer.
    pub fn sight(
        &self,
        url: &str,
        signer: Signer,
        pointer: &Pointer,
    ) -> Result<Freshness, StoreError> {
        let freshness = match self.sighting(url, signer, &pointer.root)? {
            None => Freshness::First,
            Some(Sighting { pointer: seen }) if seen == *pointer => Freshness::Same,
            Some(Sighting { pointer: seen }) if seen.generation > pointer.generation => {
                Freshness::RolledBack { seen: seen.generation }
            }
            Some(Sighting { pointer: seen }) if seen.generation == pointer.generation => {
                Freshness::Forked
            }
            Some(_) => Freshness::Newer,
        };
        if matches!(freshness, Freshness::First | Freshness::Newer) {
            self.check_writable()?;
            let path = self.sighting_path(url, signer, &pointer.root);
            self.write(&path, &Sealed::new(pointer.clone(), None).to_bytes(), 0o644)?;
        }
        Ok(freshness)
    }

    /// What was seen of a root. A damaged memory is an error: it must not pass for none.
    pub fn sighting(
        &self,
        url: &str,
        signer: Signer,
        root: &RootName,
    ) -> Result<Option<Sighting>, StoreError> {
        let path = self.sighting_path(url, signer, root);
        let Some(bytes) = files::read_if_exists(&path)? else { return Ok(None) };
        let sealed = Sealed::<Pointer>::from_bytes(&bytes).map_err(|error| {
            StoreError::Damaged { path: path.clone(), reason: error.to_string() }
        })?;
        let pointer = sealed.unverified().clone();
        if pointer.root != *root {
            let reason = format!("it is of the root {}", pointer.root);
            return Err(StoreError::Damaged { path, reason });
        }
        Ok(Some(Sighting { pointer }))
    }

    fn sighting_path(&self, url: &str, signer: Signer, root: &RootName) -> std::path::PathBuf {
        let address = Digest::from_bytes(Domain::CacheAddress.hash(url.as_bytes()));
        let signer = signer.map_or_else(|| "unsigned".to_owned(), |key| key.to_string());
        self.directory("caches").join(address.to_string()).join(format!("{root}.{signer}"))
    }
}
