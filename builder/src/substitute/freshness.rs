//! Freshness: whether what a cache calls its newest is as new as what it called so before.
//!
//! Derivations are asked for by their hashes, so what comes is right or wrong however old it is.
//! But a cache that was rolled back, or that somebody keeps what is new out of, looks like one that
//! just hasn't got it. So the pointers to each goal's newest manifest are compared with those that
//! this store has seen. Nothing is decided by it, and nothing waits for it; the user hears of it.

use srp_store::cache::{Freshness, Signer, concurrently};
use srp_store::{RootName, Store, StoreError};

use crate::substitute::lookup::QUESTIONS;
use crate::substitute::substituters::Substituters;

impl Substituters {
    /// Compares what the caches serve of these roots with what they served before.
    pub(crate) fn compare_with_memory(&self, store: &Store, roots: &[RootName]) {
        let mut questions = Vec::new();
        // Those that nothing was asked of needn't be connected for this.
        for (number, site) in self.sites.iter().enumerate().filter(|(_, site)| site.is_open()) {
            let signers = self.signers(site);
            questions.extend(
                roots.iter().flat_map(|root| signers.iter().map(move |it| (number, root, *it))),
            );
        }
        let compared = concurrently(QUESTIONS, &questions, |(number, root, signer)| {
            self.compare(store, *number, root, *signer)
        });
        if let Err(error) = compared {
            tracing::error!(%error, "what caches serve can't be compared with what they served");
        }
    }

    fn compare(
        &self,
        store: &Store,
        number: usize,
        root: &RootName,
        signer: Signer,
    ) -> Result<(), StoreError> {
        let site = &self.sites[number];
        let url = site.url();
        let key = signer.map(|id| &self.policy.trusted[&id]);
        let by = key.map_or_else(|| "nobody".to_owned(), |key| key.name().to_string());
        let Some(pointer) = site.ask(|cache| cache.pointer(root, key))? else {
            if !site.is_down() && store.sighting(url, signer, root)?.is_some() {
                tracing::warn!("the cache {url} no longer says what is the newest {root} by {by}");
            }
            return Ok(());
        };
        let generation = pointer.generation;
        match store.sight(url, signer, &pointer)? {
            Freshness::First | Freshness::Same | Freshness::Newer => {}
            Freshness::RolledBack { seen } => tracing::error!(
                "the cache {url} serves generation {generation} of {root} by {by} as the newest, \
                 and served generation {seen} before: it was rolled back, or somebody withholds \
                 what is new"
            ),
            Freshness::Forked => tracing::error!(
                "the cache {url} serves another generation {generation} of {root} by {by} than \
                 before: two publishers share that key, or one generation was withheld"
            ),
        }
        let manifests = self.manifests.lock().expect("no holder panics");
        let older = manifests.iter().find(|(site, by, manifest)| {
            (*site, *by, &manifest.root) == (number, signer, root)
                && manifest.derivation == pointer.derivation
                && manifest.generation < pointer.generation
        });
        if let Some((_, _, manifest)) = older {
            tracing::error!(
                "the cache {url} serves the manifest of generation {} of {root} by {by} where \
                 that of generation {generation} should be",
                manifest.generation
            );
        }
        Ok(())
    }
}
