//! Substituting: taking from binary caches what would have to be built.
//!
//! A cache can only ever save work: one that is down, slow or answers nonsense is one that has
//! nothing, said once. What is wrong rather than missing (a signature, a digest) is said each time.
//! What to believe is decided by the store's [`Policy`](srp_store::cache::Policy).

mod freshness;
mod lookup;
mod offer;
mod site;
mod substituters;
mod transfer;

#[cfg(test)]
mod tests;

pub use offer::{Offer, Part};
pub(crate) use site::Site;
pub use substituters::{Substituters, Upstream};
pub(crate) use transfer::TransferError;
