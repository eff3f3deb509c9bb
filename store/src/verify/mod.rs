//! Verifying a store: whether everything in it is what its name says and agrees with the rest.
//!
//! *Structure* is verified always, and all of it: `meta`, records, listings, store paths, roots,
//! derivations, statements. *Bytes* are the files of trees, composed roots and sources, and are
//! hashed: all of them, those of some objects, or those whose turn it is ([`Part`]).
//!
//! Nothing is changed by it but stamps (`verification`). Others may write to
//! the store meanwhile, so what looks wrong is looked at twice before it is a finding. What can be
//! done about findings without a builder or a cache is in `repair`; the rest is the builder's.
//!
//! Logs, audits, partial transfers and the index are not looked at: nothing says what they should
//! be, or they are checked whenever they are used and nothing relies on them.

mod bytes;
mod equal;
mod names;
mod records;
mod repair;
mod sealed;
mod structure;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::cache::{KeyId, PublicKey};
use crate::digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
use crate::error::StoreError;
use crate::store::Store;
use crate::verification::Damage;

pub use repair::{Outcome, Remedy};
pub use structure::Structure;

/// Which bytes are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that were not verified for the longest time: one of [`PARTS`] of all bytes.
    Oldest,
    /// All.
    All,
    /// Those of these objects and of everything that they refer to; and of the structure only what
    /// is about them.
    Closure(Vec<ObjectId>),
}

/// After so many verifications of [`Part::Oldest`] all bytes have had their turn.
pub const PARTS: u64 = 10;

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// What makes the directory a store.
    Meta,
    /// One of the store's directories.
    Directory,
    /// An object's record.
    Info(ObjectId),
    /// A tree: files of it, or all of it.
    Tree(Digest),
    /// A tree's listing.
    Listing(Digest),
    /// An object's store path.
    StorePath(ObjectId),
    /// What a resolved derivation came out as.
    Realisation(ResolvedHash),
    /// What was chosen for a derivation.
    Claim(StaticHash),
    /// A derivation.
    Derivation(StaticHash),
    /// A generation of a root.
    Root,
    /// A file as it was fetched.
    Source(Sha256),
    /// A root of several objects, composed once.
    Composed(Digest),
    /// What somebody stated of a derivation.
    Statement,
    /// The newest that was seen of a binary cache's root.
    Sighting,
    /// A pack that `srp serve` has written.
    Pack,
    /// An entry of the evaluation cache.
    Evaluation,
    /// Something that srp doesn't make.
    Foreign,
}

/// Something that is wrong in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is damaged.
    pub subject: Subject,
    /// Where.
    pub path: PathBuf,
    /// In what way: "it is missing".
    pub problem: String,
    /// Of a tree or composed root: every place in it that is not as it should be.
    pub damages: Vec<Damage>,
    /// What became of it, if something was tried.
    pub outcome: Option<Outcome>,
}

/// Something that couldn't be read, so that nothing is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub reason: String,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LookedAt {
    /// Records, listings, store paths, roots and other small files.
    pub records: u64,
    /// Trees, composed roots and sources whose bytes were hashed.
    pub trees: u64,
    /// How many files that were.
    pub files: u64,
    /// Their lengths.
    pub size_bytes: u64,
    /// The lengths of all there are.
    pub of_bytes: u64,
}

/// What came of verifying a store.
#[derive(Debug, Default)]
pub struct Report {
    /// What the store's records say.
    pub structure: Structure,
    /// How much was looked at.
    pub looked_at: LookedAt,
    /// What is wrong: structure first, then bytes, by path.
    pub findings: Vec<Finding>,
    /// What this user couldn't read.
    pub unread: Vec<Unread>,
    /// What killed processes left. It is no damage: the next srp that has work to do removes it.
    pub leftovers: Vec<PathBuf>,
}

/// How a store is verified.
#[derive(Clone, Copy, Debug)]
pub struct Verification<'a> {
    /// Which bytes.
    pub part: &'a Part,
    /// The keys that are known: signatures by others can't be checked.
    pub keys: &'a BTreeMap<KeyId, PublicKey>,
    /// How it is seen and ended.
    pub watch: &'a Watch<'a>,
}

/// A verification that runs, as the caller sees it.
#[derive(Debug, Default)]
pub struct Watch<'a> {
    /// When this becomes true, it ends soon, with [`StoreError::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
    /// How many bytes are to be hashed, once that is known.
    pub total_bytes: AtomicU64,
    /// How many have been.
    pub read_bytes: AtomicU64,
}

impl Store {
    /// Verifies the structure and a part of the bytes.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`], or what the system says of the store's directories. Damage is none.
    pub fn verify_store(&self, how: Verification<'_>) -> Result<Report, StoreError> {
        let mut report = self.verify_structure(&how)?;
        if !report.findings.is_empty() {
            // Others may have been in the middle of it: what is damage is so again.
            let again = self.verify_structure(&how)?;
            let first = std::mem::replace(&mut report, again).findings;
            report.findings.retain(|finding| {
                let same = |it: &Finding| it.subject == finding.subject && it.path == finding.path;
                first.iter().any(same)
            });
        }
        self.verify_bytes(&how, &mut report)?;
        // Whoever hashes a tree that has lost its listing makes that anew.
        for finding in &mut report.findings {
            if let Subject::Listing(tree) = finding.subject
                && self.look_at_listing(&tree).is_sound()
            {
                finding.mended(Remedy::Derived("its tree".to_owned()));
            }
        }
        report.findings.sort_by(|one, other| one.order().cmp(&other.order()));
        Ok(report)
    }
}

impl Verification<'_> {
    /// The objects that alone are verified, if it is not all.
    fn closure(&self) -> Option<&[ObjectId]> {
        match self.part {
            Part::Closure(ids) => Some(ids),
            Part::Oldest | Part::All => None,
        }
    }
}

impl Finding {
    /// A finding, of which nothing has become yet.
    pub fn new(subject: Subject, path: PathBuf, problem: impl Into<String>) -> Finding {
        Finding { subject, path, problem: problem.into(), damages: Vec::new(), outcome: None }
    }

    fn order(&self) -> (bool, &PathBuf, &Subject) {
        (self.subject.has_bytes(), &self.path, &self.subject)
    }
}

impl Subject {
    /// One word, for machines.
    pub fn kind(&self) -> &'static str {
        match self {
            Subject::Meta => "meta",
            Subject::Directory => "directory",
            Subject::Info(_) => "info",
            Subject::Tree(_) => "tree",
            Subject::Listing(_) => "listing",
            Subject::StorePath(_) => "path",
            Subject::Realisation(_) => "realisation",
            Subject::Claim(_) => "claim",
            Subject::Derivation(_) => "derivation",
            Subject::Root => "root",
            Subject::Source(_) => "source",
            Subject::Composed(_) => "composed",
            Subject::Statement => "statement",
            Subject::Sighting => "sighting",
            Subject::Pack => "pack",
            Subject::Evaluation => "evaluation",
            Subject::Foreign => "foreign",
        }
    }

    /// Whether it is found by hashing.
    fn has_bytes(&self) -> bool {
        matches!(self, Subject::Tree(_) | Subject::Composed(_) | Subject::Source(_))
    }
}

impl Watch<'_> {
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            true => Err(StoreError::Cancelled),
            false => Ok(()),
        }
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
