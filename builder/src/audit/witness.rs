//! A witness: that something was rebuilt here and came out as it is registered.
//!
//! Only an audit makes one, and only of rebuilds that all were identical; so whoever has one may
//! sign it. Of a rebuild whose circumstances were varied it is worth no less: it is a build by the
//! same code, from the same inputs, and the outcome is the same.

use srp_store::cache::SecretKey;
use srp_store::{Claim, Route, StaticHash, Store, StoreError};

/// An identical rebuild.
#[derive(Clone, Debug)]
pub struct Witness {
    derivation: StaticHash,
    claim: Claim,
    route: Route,
}

impl Witness {
    pub(super) fn new(derivation: StaticHash, claim: Claim, route: Route) -> Witness {
        Witness { derivation, claim, route }
    }

    /// What it came out as, and from what.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// How it was rebuilt.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Has the store keep that the owner of `key` has built this.
    pub fn sign(&self, store: &Store, key: &SecretKey) -> Result<(), StoreError> {
        store.keep_rebuilt(&self.derivation, &self.claim, &self.route, key)
    }
}
