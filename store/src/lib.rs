//! The srp store: identity, objects on disk, closures and composition.
//!
//! Up to [`realisation`] everything is a pure value: no I/O, no panic on foreign bytes. From there
//! on it is about files. This crate knows nothing of definitions, builders or terminals.

mod base32;
pub mod derivation;
pub mod digest;
pub mod encode;
pub mod name;
pub mod object;
pub mod realisation;
pub mod revision;
pub mod tree;

pub use derivation::{
    Action, Advice, Build, Derivation, Fetch, Format, Input, InputKey, Role, Stage,
};
pub use digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
pub use encode::Canonical;
pub use name::{Name, OutputName, Triple};
pub use object::{Object, ObjectName, Permission, Reference, ReferenceKind};
pub use realisation::{Claim, Realisation, Route};
pub use tree::{Directory, Entry};
