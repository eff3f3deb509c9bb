//! Transferring: an offer's objects into the store, then the claim.
//!
//! Several objects come at a time, each once however many offers need it. What one cache can't
//! bring, or brings wrong, is asked of the next: an object's id says what it is, whoever has it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use srp_store::cache::{Asked, Fetcher, Holdings, Sealed, Signer, Statement, concurrently};
use srp_store::{Object, ObjectId, Registration, ResolvedHash, Store, StoreError};

use crate::substitute::offer::{Offer, Part};
use crate::substitute::substituters::Substituters;

/// So many objects of one offer come at a time: each needs two round trips before it fills the line.
const OBJECTS: usize = 8;

/// Why an offer did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// No cache could bring it; what there is to say of them was said.
    #[error("no cache could bring {object}")]
    Unavailable {
        /// What was missing.
        object: String,
    },
    /// This machine failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Substituters {
    /// Fetches what an offer needs and adopts it. `progress` is told how many bytes have come,
    /// as they come.
    pub(crate) fn transfer(
        &self,
        store: &Store,
        offer: &Offer,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), TransferError> {
        let sum = Mutex::new(0);
        let came = |bytes| {
            // Held meanwhile, so that the sum that is told last is the largest.
            let mut sum = sum.lock().expect("no holder panics");
            *sum += bytes;
            progress(*sum);
        };
        let fetched = concurrently(OBJECTS, &offer.parts, |part| self.once(store, part, &came));
        // Trees come in any order, and objects are there after those that they refer to. If not
        // everything came, that of which everything did is kept.
        let objects: Vec<&Object> = offer.parts.iter().map(|part| &part.record.object).collect();
        let registered = store.register_trees(&objects);
        fetched?;
        registered?;
        store.adopt(&offer.statement, &offer.evidence)?;
        if offer.statement.derivation != offer.derivation {
            // Another derivation with the same resolved hash was stated: what it came out as is this
            // one's, too.
            let mut registration = Registration::default();
            registration.claim(store, &offer.derivation, &offer.claim);
            store.commit(registration)?;
        }
        Ok(())
    }

    /// Fetches one object, which its id says all of, from the first cache that has it; the cache's
    /// address. What it refers to must be here.
    pub(crate) fn bring(
        &self,
        store: &Store,
        id: &ObjectId,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Option<String>, StoreError> {
        let Some((site, record)) = self.record(id)? else { return Ok(None) };
        let part = Part { record, cache: self.sites[site].url().to_owned(), site };
        // Only its record may be lost.
        if !store.register_trees(&[&part.record.object])? {
            match self.once(store, &part, progress) {
                Ok(()) => {}
                Err(TransferError::Unavailable { .. }) => return Ok(None),
                Err(TransferError::Store(error)) => return Err(error),
            }
            store.register_trees(&[&part.record.object])?;
        }
        Ok(store.contains(id)?.then_some(part.cache))
    }

    /// A statement on a resolved derivation by a signer, from the first cache that has it.
    pub(crate) fn statement(
        &self,
        resolved: ResolvedHash,
        signer: Signer,
    ) -> Result<Option<(Sealed<Statement>, String)>, StoreError> {
        for site in &self.sites {
            let asked = Asked::Resolved(resolved);
            let found = site.ask(|cache| cache.statements(asked, &[signer]).map(Some))?;
            let sound = |it: &Sealed<Statement>| {
                let is_signed = it.check(&self.policy.trusted).is_ok();
                it.signer() == signer && it.unverified().resolved == resolved && is_signed
            };
            if let Some(found) = found.into_iter().flatten().find(sound) {
                return Ok(Some((found, site.url().to_owned())));
            }
        }
        Ok(None)
    }

    /// Fetches an object's tree unless another thread is at it; then waits for that.
    fn once(
        &self,
        store: &Store,
        part: &Part,
        came: &(dyn Fn(u64) + Sync),
    ) -> Result<(), TransferError> {
        let id = part.record.object.id();
        {
            let flights = self.flights.lock().expect("no holder panics");
            let mut flights = self
                .landed
                .wait_while(flights, |flights| flights.contains(&id))
                .expect("no holder panics");
            flights.insert(id);
        }
        let fetched = self.object(store, &id, part, came);
        self.flights.lock().expect("no holder panics").remove(&id);
        self.landed.notify_all();
        fetched
    }

    fn object(
        &self,
        store: &Store,
        id: &ObjectId,
        part: &Part,
        came: &(dyn Fn(u64) + Sync),
    ) -> Result<(), TransferError> {
        if store.contains(id)? {
            return Ok(());
        }
        for number in self.order(part.site) {
            if self.cancel.is_cancelled() {
                break;
            }
            let site = &self.sites[number];
            let deltas = self.deltas.lock().expect("no holder panics").get(&number).cloned();
            let deltas = deltas.unwrap_or_default();
            let holdings = self.holdings(store)?;
            let fetched = site.ask(|cache| {
                let record = if number == part.site {
                    Some(part.record.clone())
                } else {
                    cache.object(id)?
                };
                let Some(record) = record else { return Ok(None) };
                let began = Instant::now();
                let fetched = Fetcher::new(store, cache, Arc::clone(&holdings))
                    .with_deltas(&deltas)
                    .with_progress(came)
                    .fetch_tree(&record)?;
                site.measured(fetched.fetched_bytes, began.elapsed());
                Ok(Some(fetched))
            })?;
            if fetched.is_some() {
                return Ok(());
            }
        }
        Err(TransferError::Unavailable { object: part.record.object.path_name().to_string() })
    }

    fn holdings(&self, store: &Store) -> Result<Arc<Holdings>, StoreError> {
        if let Some(holdings) = self.holdings.get() {
            return Ok(Arc::clone(holdings));
        }
        let holdings = Arc::new(Holdings::of_store(store)?);
        Ok(Arc::clone(self.holdings.get_or_init(|| holdings)))
    }
}
