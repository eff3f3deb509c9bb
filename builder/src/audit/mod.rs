//! Audits: whether rebuilding what the store has comes out the same, wherever and however it is
//! built; and if not, when, where and why.
//!
//! The way in is [`Builder::audit`](crate::Builder::audit). A derivation is rebuilt from the inputs
//! that the store has registered, by the same code as any build, in a sandbox that is varied in
//! [`Dimension`]s; what comes out is normalised and hashed as any build's and compared by digest.
//! When a round differs, the dimensions are bisected, and the differing files are looked into
//! (`compare`) and explained (`cause`).
//!
//! What others say of the same derivations is another question, answered without building:
//! [`against`].
//!
//! What this deliberately isn't: it registers nothing. Of the store it uses scratch directories,
//! keeps differing outputs aside where it is told to, and remembers what it found (`remembered`). It
//! doesn't judge fetches, which are verified by their hash, nor stages, which follow from their
//! components.

pub mod against;
pub mod attest;
mod auditor;
mod bisect;
mod cause;
mod compare;
mod cost;
mod dimension;
mod remembered;
mod report;
mod round;
mod witness;

pub use auditor::{AuditError, AuditOptions};
pub use cause::{CAUSES, Cause, Pattern};
pub use compare::{Change, Kind, Part, Sign};
pub use cost::{Cost, Costs};
pub use dimension::{Dimension, NoDimension, Variation};
pub use report::{Audit, Difference, Failed, RoundReport, Status, Tried};
pub use witness::Witness;
