//! Starlark definitions to derivations.
//!
//! [`evaluate()`] turns the attributes of a [`Definitions`] directory into the
//! [`Derivation`](srp_store::Derivation)s they stand for; [`Cache`] remembers that by the content
//! of the files which were loaded. [`Evaluator`] does it in a process of its own, whose memory and
//! time are bounded, as definitions of others must be. Evaluation is deterministic and reads nothing but the
//! definitions directory: no environment, no clock, no network. This crate knows nothing of
//! building, of stores on disk or of terminals.

mod attribute;
mod builtin;
mod cache;
mod check;
mod confine;
mod definitions;
mod error;
mod evaluate;
mod exports;
mod invalid;
mod misnamed;
mod module;
mod nesting;
mod process;
mod session;
#[cfg(test)]
mod tests;
mod value;
mod wire;
mod worker;

pub use cache::{Cache, CacheError, CachedGoal};
pub use definitions::{DefinitionPath, Definitions, DefinitionsError};
pub use error::EvalError;
pub use evaluate::{Evaluation, Listed, Runner, evaluate, list};
pub use process::{Bound, Evaluator, Limits};
pub use wire::WireError;
#[cfg(fuzzing)]
pub use wire::fuzz_answer;
pub use worker::worker_main;
