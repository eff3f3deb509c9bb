//! The srp store: identity, objects on disk, closures and composition.
//!
//! Up to [`realisation`] everything is a pure value: no I/O, no panic on foreign bytes. From there
//! on it is about files. This crate knows nothing of definitions, builders or terminals.

mod base32;
pub mod derivation;
pub mod digest;
pub mod encode;
pub mod listing;
pub mod name;
pub mod object;
pub mod realisation;
pub mod revision;
pub mod tree;

mod assurance;
pub mod cache;
mod commit;
pub mod compose;
mod content;
mod crew;
mod db;
mod error;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gc;
pub mod ingest;
mod lock;
pub mod manifest;
mod materialise;
mod open_tree;
mod presence;
mod rely;
mod replaced;
mod roots;
pub mod staged;
mod store;
mod upgrade;
mod verification;
pub mod verify;
mod visit;

pub use assurance::{Assurance, Validity};
pub use commit::Registration;
pub use crew::{Crew, Tasks};
pub use db::{History, Index, IndexError, Info, is_index_panic};
pub use derivation::{
    Action, Advice, Build, Derivation, Fetch, FileExceptions, Format, Input, InputKey, Role, Stage,
};
pub use digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
pub use encode::Canonical;
pub use error::{Conflict, StoreError};
pub use files::{open_followed, open_plain, read as read_plain, remove_tree};
pub use listing::{Extent, Found, Listing};
pub use lock::{Lock, Scratch};
pub use materialise::{BASE_LAYOUT, Materialised, Skeleton};
pub use name::{Name, OutputName, RootName, Triple};
pub use object::{Object, ObjectName, Permission, Reference, ReferenceKind};
pub use open_tree::{Listed, OpenTree};
pub use realisation::{Claim, Realisation, Route};
pub use roots::Root;
pub use store::{Access, FORMAT, Store};
pub use tree::{Directory, Entry, MAX_DEPTH, TREE_TIME_SECONDS};
pub use verification::{Damage, DamageKind, Stamp, TreeReport};
