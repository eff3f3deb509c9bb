//! What an audit found, as plain data: printed by the command, and its JSON as it is.
//!
//! `docs/audit.md` describes the JSON; a change here is a change of that page.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use srp_store::{Claim, Derivation, StaticHash};

use super::cause::Cause;
use super::compare::Change;
use super::cost::Costs;
use super::dimension::{Dimension, Variation};
use super::witness::Witness;

/// The audit of one derivation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Audit {
    /// Which.
    pub derivation: StaticHash,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it came to.
    #[serde(flatten)]
    pub status: Status,
    /// When it was found out, in seconds since 1970; none: nothing was rebuilt.
    pub audited_at: Option<u64>,
    /// Whether that was an earlier audit, and nothing was rebuilt for this one.
    pub remembered: bool,
    /// Every dimension that was asked for, and what became of it.
    pub dimensions: Vec<Tried>,
    /// Every rebuild, in order.
    pub rounds: Vec<RoundReport>,
    /// When and how it differs; empty if it is identical.
    pub differences: Vec<Difference>,
    /// What each dimension costs, if that was asked for.
    pub costs: Option<Costs>,
    /// What it was compared with; of what was rebuilt.
    #[serde(skip)]
    pub claim: Option<Claim>,
    /// That it was built here and is the same; of what is identical.
    #[serde(skip)]
    pub witness: Option<Witness>,
}

impl Audit {
    /// Whether that dimension was varied.
    pub(super) fn has_varied(&self, dimension: Dimension) -> bool {
        self.dimensions.iter().any(|it| it.dimension == dimension && it.variation.is_some())
    }

    /// The report of what was not rebuilt.
    #[must_use]
    pub fn of(hash: &StaticHash, derivation: &Derivation, status: Status) -> Audit {
        Audit {
            derivation: *hash,
            name: derivation.name.to_string(),
            version: derivation.version.clone(),
            status,
            audited_at: None,
            remembered: false,
            dimensions: Vec::new(),
            rounds: Vec::new(),
            differences: Vec::new(),
            costs: None,
            claim: None,
            witness: None,
        }
    }
}

/// What an audit came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Status {
    /// Every rebuild gave the registered trees.
    Identical,
    /// A rebuild gave others, or failed.
    Differs,
    /// There is nothing to rebuild.
    NotAudited {
        /// Why.
        reason: String,
    },
    /// It could not be found out.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A dimension, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Which.
    pub dimension: Dimension,
    /// What was varied, if it took effect.
    pub variation: Option<Variation>,
    /// Why it is not applicable, if it isn't.
    pub not_applicable: Option<String>,
}

/// One rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// The dimensions that were varied.
    pub varied: Vec<Dimension>,
    /// Whether it gave the registered trees.
    pub identical: bool,
    /// Wall time of the whole round.
    pub milliseconds: u64,
    /// Of that, normalising, hashing and comparing.
    pub compare_milliseconds: u64,
}

/// One way in which rebuilds differ.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// When they do: one dimension; several that do it only together; none: they do whatever is
    /// varied.
    pub when: Vec<Dimension>,
    /// Whether some of the rebuilds under the same circumstances were identical.
    pub sometimes: bool,
    /// What makes rebuilds agree with each other although otherwise they don't.
    pub steady_under: Vec<Dimension>,
    /// Whether rebuilds one after the other agree with each other, though not with the registered.
    pub recurs: bool,
    /// How the builder failed, if that is the difference.
    pub failed: Option<Failed>,
    /// The paths that differ, in order; explained as far as there is room.
    pub changes: Vec<Change>,
    /// The likely causes, the likeliest first.
    pub causes: Vec<Cause>,
    /// Where the rebuilt outputs are kept.
    pub kept: Option<PathBuf>,
    /// Reports of another tool on that, if any were made afterwards.
    #[serde(default)]
    pub diffoscope: Vec<PathBuf>,
}

/// How a rebuild failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// In one sentence.
    pub how: String,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
}
