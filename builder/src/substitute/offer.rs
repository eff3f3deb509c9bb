//! Offers: what caches could bring of one derivation, decided but not yet fetched.

use std::collections::BTreeSet;

use srp_store::cache::{ObjectRecord, Sealed, Statement};
use srp_store::{Claim, StaticHash};

/// What a derivation came out as elsewhere, believed, and where the missing parts of it lie.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The derivation.
    pub derivation: StaticHash,
    /// What is to be registered for it.
    pub claim: Claim,
    /// Who vouches for it.
    pub by: BTreeSet<String>,
    /// The objects that this store doesn't have yet.
    pub parts: Vec<Part>,
    /// The statement to go by.
    pub(crate) statement: Statement,
    /// All statements that say so.
    pub(crate) evidence: Vec<Sealed<Statement>>,
}

/// An object, and the cache that has it.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is, and where in the cache it lies.
    pub record: ObjectRecord,
    /// The cache's address.
    pub cache: String,
    /// The cache's number.
    pub(crate) site: usize,
}

impl Offer {
    /// How many bytes will be transferred at most.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.record.location.pack_bytes).sum()
    }

    /// The caches that it would come from.
    pub fn caches(&self) -> BTreeSet<&str> {
        self.parts.iter().map(|part| part.cache.as_str()).collect()
    }
}
