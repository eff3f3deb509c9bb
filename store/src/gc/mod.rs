//! Collecting garbage: removing what no root, no running process and no recent use keeps.
//!
//! What is kept is decided in `kept`, on the graph of all objects (`graph`, `mark`); what
//! goes, and in which order, in `plan`, which changes nothing and is what a dry run shows;
//! `collect` carries it out. docs/store-layout.md has the table of what is kept by kind.
//!
//! A collection never waits for builds, and they wait for it only while a few files are renamed:
//!
//! 1. With the gate (`rely`) taken for a moment it reads what living processes rely
//!    on, and makes the file that tells it of whatever they come to rely on later.
//! 2. Roots and records are read, and everything is planned, without any lock.
//! 3. What goes, goes in small batches, each with the gate taken and after a look at what was added
//!    to that file: first realisations and claims, then info records, those that refer before those
//!    that are referred to, then store paths and trees. So at every moment a record names nothing
//!    that isn't there, and a tree that is gone was already nobody's.
//! 4. Trees are renamed into `trash/`, and deleted there in parallel, without any lock.
//!
//! Whatever can't be read ends it before anything is removed.

mod collect;
pub(crate) mod graph;
mod kept;
pub(crate) mod mark;
mod plan;
#[cfg(test)]
mod tests;
mod trash;
mod usage;
mod why;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

pub use usage::{RootUsage, Usage};
pub use why::{Keeper, WhyAlive};

/// What a collection keeps beside what roots and processes keep, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// What was made or used within this time is kept.
    pub older_than: Duration,
    /// It ends as soon as so many bytes are freed; what was used longest ago goes first.
    pub max_freed_bytes: Option<u64>,
    /// Derivations are kept even if nothing that came of them is.
    pub keep_derivations: bool,
    /// Sources are kept even if no derivation is that fetches them.
    pub keep_sources: bool,
}

impl Retention {
    /// Two weeks: what somebody works on was used within that time.
    pub const OLDER_THAN: Duration = Duration::from_secs(14 * 24 * 60 * 60);
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            older_than: Retention::OLDER_THAN,
            max_freed_bytes: None,
            keep_derivations: false,
            keep_sources: false,
        }
    }
}

/// The kinds of things in a store, in the order in which a collection takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Composed roots: caches.
    Composed,
    /// Packs that were served: caches.
    Packs,
    /// Evaluations: caches.
    Evaluations,
    /// What broken transfers have brought.
    Partial,
    /// What audits found.
    Audits,
    /// Trees without an object, and store paths that lead nowhere.
    Leftovers,
    /// What derivations came out as, and claims.
    Realisations,
    /// Objects with their trees.
    Objects,
    /// By whose word something was substituted, or that it was rebuilt here.
    Statements,
    /// Derivations.
    Derivations,
    /// Sources as they were fetched.
    Sources,
    /// Logs of builds.
    Logs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 12] = [
        Kind::Composed,
        Kind::Packs,
        Kind::Evaluations,
        Kind::Partial,
        Kind::Audits,
        Kind::Leftovers,
        Kind::Realisations,
        Kind::Objects,
        Kind::Statements,
        Kind::Derivations,
        Kind::Sources,
        Kind::Logs,
    ];

    /// Its name, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Composed => "composed roots",
            Kind::Packs => "packs",
            Kind::Evaluations => "evaluations",
            Kind::Partial => "partial transfers",
            Kind::Leftovers => "leftovers",
            Kind::Realisations => "realisations",
            Kind::Objects => "objects",
            Kind::Statements => "statements",
            Kind::Derivations => "derivations",
            Kind::Sources => "sources",
            Kind::Logs => "logs",
            Kind::Audits => "audits",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many there are of something, and what they take on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Blocks on the disk, in bytes: holes count nothing, and what several share counts once.
    pub disk_bytes: u64,
}

impl Amount {
    fn add(&mut self, disk_bytes: u64) {
        self.count += 1;
        self.disk_bytes += disk_bytes;
    }
}

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Each thing, in the order in which it goes.
    pub items: Vec<Item>,
    /// How many objects stay.
    pub kept_objects: u64,
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its path in the store.
    pub path: String,
    /// What it takes on the disk, in bytes. Of trees that several objects have, the last one's.
    pub disk_bytes: u64,
    /// When it was made or last used, as far as that is known.
    pub used: Option<SystemTime>,
}

impl Collected {
    /// All of it.
    pub fn total(&self) -> Amount {
        let mut total = Amount::default();
        self.items.iter().for_each(|item| total.add(item.disk_bytes));
        total
    }

    /// By kind; kinds of which there is nothing are left out.
    pub fn by_kind(&self) -> BTreeMap<Kind, Amount> {
        let mut kinds: BTreeMap<Kind, Amount> = BTreeMap::new();
        for item in &self.items {
            kinds.entry(item.kind).or_default().add(item.disk_bytes);
        }
        kinds
    }
}

/// What a collection says while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many things go, and so many bytes with them.
    Planned(Amount),
    /// So many more bytes were deleted.
    Deleted {
        /// On the disk.
        disk_bytes: u64,
    },
}

/// How a collection is followed, and ended.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Whether it is to end. What was moved away by then is gone; the rest stays.
    pub is_cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Is called now and then, from several threads.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

impl Control<'_> {
    /// Never ends early, and says nothing.
    pub const NONE: Control<'static> = Control { is_cancelled: &|| false, progress: &|_| {} };
}

impl fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}
