//! Substituters: all caches that may be asked, and what is remembered of their answers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use srp_store::cache::{Delta, Holdings, ObjectRecord, Pointer, Policy, Remote, Signer};
use srp_store::{ObjectId, ResolvedHash, StaticHash};

use crate::cancel::CancelToken;
use crate::substitute::site::Site;

/// To ask another cache for an object's record takes a round trip: it must be worth that.
const MUCH_FASTER: f64 = 2.0;
/// Bytes a second with which nobody is content.
const SLOW: f64 = 1e6;

/// A cache as it is configured.
pub struct Upstream {
    /// Where it lies.
    pub remote: Arc<dyn Remote>,
    /// Among equals the faster one may go first.
    pub priority: u32,
    /// Whether it is believed without any signature.
    pub trusted_outright: bool,
}

/// The caches that may be asked, in their order, and whom to believe.
pub struct Substituters {
    pub(crate) sites: Vec<Site>,
    pub(crate) policy: Policy,
    pub(crate) cancel: CancelToken,
    /// Which cache has an object, as far as that was asked.
    pub(crate) records: Mutex<HashMap<ObjectId, Option<(usize, ObjectRecord)>>>,
    /// Which manifests were read, by cache and key.
    pub(crate) manifests: Mutex<Vec<(usize, Signer, Pointer)>>,
    /// How to make new files of old ones, by the cache.
    pub(crate) deltas: Mutex<HashMap<usize, BTreeSet<Delta>>>,
    /// Derivations that could not be fetched as promised.
    pub(crate) refused: Mutex<HashSet<StaticHash>>,
    /// What was asked by resolved hash, and is not there.
    pub(crate) unknown: Mutex<HashSet<ResolvedHash>>,
    /// What the store has already, read when it is first needed.
    pub(crate) holdings: OnceLock<Arc<Holdings>>,
    /// Objects that are being fetched.
    pub(crate) flights: Mutex<HashSet<ObjectId>>,
    pub(crate) landed: Condvar,
}

impl Substituters {
    /// Caches in the order in which they are to be asked. Nothing is connected yet.
    pub fn new(upstreams: Vec<Upstream>, policy: Policy, cancel: CancelToken) -> Substituters {
        let anybody = !policy.trusted.is_empty();
        let sites: Vec<Site> = upstreams
            .into_iter()
            .filter(|it| {
                let useful = anybody || it.trusted_outright;
                if !useful {
                    tracing::warn!(
                        "the cache {} is not asked: no key is trusted (srp key trust NAME:BASE64)",
                        it.remote.url()
                    );
                }
                useful
            })
            .map(|it| Site::new(it, cancel.clone()))
            .collect();
        Substituters {
            sites,
            policy,
            cancel,
            records: Mutex::default(),
            manifests: Mutex::default(),
            deltas: Mutex::default(),
            refused: Mutex::default(),
            unknown: Mutex::default(),
            holdings: OnceLock::new(),
            flights: Mutex::default(),
            landed: Condvar::new(),
        }
    }

    /// The caches to fetch an object from, of which `first` is known to have it: it, then the
    /// others. It is behind another of the same priority that was measured to be much faster; and
    /// if it is slow, behind one of which nothing is known yet.
    pub(crate) fn order(&self, first: usize) -> Vec<usize> {
        let others = (0..self.sites.len()).filter(|number| *number != first);
        let mut order: Vec<usize> = std::iter::once(first).chain(others).collect();
        let Some(known) = self.sites[first].speed() else { return order };
        let speed = |number: &usize| match self.sites[*number].speed() {
            Some(speed) => (speed > known * MUCH_FASTER).then_some(speed),
            None => (known < SLOW).then_some(f64::INFINITY),
        };
        let equal = |number: &usize| {
            let site = &self.sites[*number];
            site.priority == self.sites[first].priority && !site.is_down()
        };
        let better = order.iter().copied().filter(equal);
        let better = better.filter_map(|number| Some((speed(&number)?, number)));
        if let Some((_, best)) = better.max_by(|a, b| a.0.total_cmp(&b.0)) {
            order.retain(|number| *number != best);
            order.insert(0, best);
        }
        order
    }

    /// Whose files are asked for in a cache.
    pub(crate) fn signers(&self, site: &Site) -> Vec<Signer> {
        let trusted = self.policy.trusted.keys().filter(|key| !self.policy.revoked.contains(key));
        let unsigned = site.trusted_outright.then_some(None);
        trusted.map(|key| Some(*key)).chain(unsigned).collect()
    }

    /// From here on the derivation is to be built.
    pub(crate) fn refuse(&self, hash: StaticHash) {
        self.refused.lock().expect("no holder panics").insert(hash);
    }
}

impl std::fmt::Debug for Substituters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sites.iter().map(Site::url)).finish()
    }
}
