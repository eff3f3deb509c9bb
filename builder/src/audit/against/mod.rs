//! Comparing with others: what the signers of caches say that derivations came out as, beside what
//! this store has registered. Nothing is built.
//!
//! The way in is [`Hearing`]. Each statement is judged alone, with its standing: what doesn't
//! count is told as well, and decides nothing. If a statement that counts names another object for
//! the same build, the other object's listing is fetched, and of its content those files that
//! differ, into a scratch directory; they are looked into as an audit looks into a rebuild. If it
//! is about other inputs, it is no statement on the same build, and the input is named with which
//! the disagreement begins.
//!
//! What this deliberately isn't: a [`Policy`](srp_store::cache::Policy) decision. Nothing is
//! adopted or registered by it, however many agree.

mod explain;
mod hearing;

use std::collections::BTreeMap;

use serde::Serialize;
use srp_store::cache::{KeyId, Standing};
use srp_store::{Digest, ObjectId, OutputName, Reference, ResolvedHash, StaticHash};

use super::cause::Cause;
use super::compare::Change;
pub use hearing::Hearing;

/// What others say of one derivation.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Which.
    pub derivation: StaticHash,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it comes to.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The derivation with its inputs as they were here; none if it is not realised.
    pub resolved: Option<ResolvedHash>,
    /// What each output is here.
    pub outputs: BTreeMap<OutputName, Identity>,
    /// Everybody who says something, in the order of caches and keys.
    pub voices: Vec<Voice>,
    /// How what others have differs; only of voices that count and are about the same build.
    pub differences: Vec<Difference>,
}

/// What a comparison comes to. Only voices that count decide it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Outcome {
    /// Somebody says the same, and nobody anything else.
    Agree,
    /// Somebody says something else.
    Disagree,
    /// Nobody who counts says anything.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// What an output is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Identity {
    /// The object.
    pub object: ObjectId,
    /// The digest of its tree.
    pub tree: Digest,
}

/// One statement, from one cache.
#[derive(Clone, Debug, Serialize)]
pub struct Voice {
    /// The cache's address.
    pub cache: String,
    /// Whose it is, and how much it counts.
    #[serde(flatten)]
    pub by: By,
    /// What it says, compared with what is here.
    pub says: Says,
    /// Who built it, in the statement's own words.
    pub builder: String,
    /// `built`, or `substituted`: only passed on.
    pub provenance: String,
    /// What executed the builder.
    pub runner: String,
    /// The machine's architecture.
    pub machine: String,
    /// The derivation with its inputs as they were there.
    pub resolved: ResolvedHash,
    /// Whether it is about the same build: the same inputs.
    pub same_build: bool,
    /// Each output that this store has.
    pub outputs: Vec<Stated>,
    /// With what the disagreement begins, if the inputs are others: the first input that differs,
    /// the first of that one's, and so on as far as the same signer says so.
    pub because: Vec<OtherInput>,
}

/// Whose a statement is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct By {
    /// How much it counts: `trusted`, `outright`, `unsigned`, `untrusted`, `revoked`,
    /// `wrong-signature`.
    pub standing: &'static str,
    /// The key that signed it, or is said to have.
    pub key: Option<KeyId>,
    /// The name under which that key is trusted.
    pub name: Option<String>,
}

/// What a statement says, compared with what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// The same of every output.
    Agree,
    /// Something else of at least one.
    Disagree,
    /// Nothing that makes sense: other outputs than the derivation has, or a resolved hash that
    /// doesn't follow from the inputs that it names.
    Nonsense,
}

/// One output, as somebody states it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stated {
    /// Which.
    pub output: OutputName,
    /// Whether it is the same object.
    pub agrees: bool,
    /// What it is there.
    #[serde(flatten)]
    pub there: Identity,
}

/// An input that is another object there than here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherInput {
    /// Its derivation's name.
    pub name: String,
    /// Its derivation.
    pub derivation: StaticHash,
    /// Which output of that.
    pub output: OutputName,
    /// What it is here.
    pub here: ObjectId,
    /// What it is there; none if the statement names no such input.
    pub there: Option<ObjectId>,
}

/// How one output differs from what others have.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The output.
    pub output: OutputName,
    /// What it is there.
    pub there: Identity,
    /// The cache that had its listing; none if none had.
    pub listed_by: Option<String>,
    /// References that only the object here has.
    pub references_here: Vec<Reference>,
    /// References that only the object there has.
    pub references_there: Vec<Reference>,
    /// Whether declared modes and owners differ.
    pub permissions_differ: bool,
    /// The paths that differ; `rebuilt` is what others have.
    pub changes: Vec<Change>,
    /// What the files look like.
    pub causes: Vec<Cause>,
}

impl Comparison {
    /// Whether somebody's signature is wrong.
    pub fn has_wrong_signature(&self) -> bool {
        self.voices.iter().any(|voice| voice.by.standing == WRONG)
    }
}

impl Voice {
    /// Whether it counts.
    pub fn counts(&self) -> bool {
        matches!(self.by.standing, TRUSTED | OUTRIGHT)
    }
}

const TRUSTED: &str = "trusted";
const OUTRIGHT: &str = "outright";
const WRONG: &str = "wrong-signature";

impl From<Standing> for By {
    fn from(standing: Standing) -> By {
        let by = |standing, key, name| By { standing, key, name };
        match standing {
            Standing::Trusted { key, name } => by(TRUSTED, Some(key), Some(name)),
            Standing::Outright => by(OUTRIGHT, None, None),
            Standing::Unsigned => by("unsigned", None, None),
            Standing::Untrusted { key } => by("untrusted", Some(key), None),
            Standing::Revoked { key } => by("revoked", Some(key), None),
            Standing::Wrong { key, name } => by(WRONG, Some(key), Some(name)),
        }
    }
}

/// What voices come to.
fn outcome(voices: &[Voice]) -> Outcome {
    let says = |wanted: Says| voices.iter().any(|voice| voice.counts() && voice.says == wanted);
    if says(Says::Disagree) {
        return Outcome::Disagree;
    }
    if says(Says::Agree) {
        return Outcome::Agree;
    }
    let reason = match voices {
        [] => "nobody says anything of it",
        _ if voices.iter().any(Voice::counts) => "what is said of it makes no sense",
        _ => "nobody who is trusted says anything of it",
    };
    Outcome::Unknown { reason: reason.to_owned() }
}
