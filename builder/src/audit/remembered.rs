//! What earlier audits found, so that it isn't found out twice.
//!
//! One JSON file for each derivation, in the store beside the outputs that are kept. It is no part
//! of what the store says: whatever can't be read, or was found out about other objects, by fewer
//! dimensions or in fewer rounds, counts as not there. No file is older than what it tells of:
//! each audit replaces its derivation's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use srp_store::{Claim, ObjectId, OutputName, ResolvedHash, Route, Store};

use super::auditor::AuditOptions;
use super::dimension::Dimension;
use super::report::{Audit, Status, Tried};
use super::witness::Witness;
use crate::request::FailureCause;

/// Counts up when an older file no longer tells what an audit would.
const FORMAT: u32 = 1;

/// In the store.
const DIRECTORY: &str = "audits";

#[derive(Serialize, Deserialize)]
struct Remembered {
    format: u32,
    resolved: ResolvedHash,
    outputs: BTreeMap<OutputName, ObjectId>,
    dimensions: BTreeSet<Dimension>,
    rounds: usize,
    audit: Audit,
    /// How the last rebuild that came out the same was done.
    route: Option<Route>,
}

impl Remembered {
    /// Takes over what an earlier audit found about other dimensions, if both found it identical,
    /// and one of them has varied together whatever the other has.
    fn join(&mut self, earlier: Remembered) {
        let both = [&self.audit.status, &earlier.audit.status];
        if both != [&Status::Identical; 2] || earlier.dimensions.is_subset(&self.dimensions) {
            return;
        }
        let together = |dimensions: &BTreeSet<Dimension>| -> BTreeSet<Dimension> {
            dimensions.iter().copied().filter(|it| !it.alone()).collect()
        };
        let (now, before) = (together(&self.dimensions), together(&earlier.dimensions));
        if !now.is_subset(&before) && !before.is_subset(&now) {
            return;
        }
        self.dimensions.extend(earlier.dimensions);
        self.rounds = self.rounds.min(earlier.rounds);
        self.route = earlier.route.or(self.route.take());
        let audit = &mut self.audit;
        audit.audited_at = audit.audited_at.min(earlier.audit.audited_at);
        let mut dimensions = earlier.audit.dimensions;
        let tried = |it: &Tried| audit.dimensions.iter().any(|now| now.dimension == it.dimension);
        dimensions.retain(|it| !tried(it));
        dimensions.append(&mut audit.dimensions);
        dimensions.sort_by_key(|it| it.dimension);
        audit.dimensions = dimensions;
        audit.rounds.splice(0..0, earlier.audit.rounds);
        audit.costs = audit.costs.take().or(earlier.audit.costs);
    }
}

/// What an earlier audit of the same claim found, if it was at least as thorough as is asked for.
pub(super) fn recall(path: &Path, claim: &Claim, options: &AuditOptions) -> Option<Audit> {
    let found = read(path, claim)?;
    let same =
        // What differs may do so because of what isn't to be varied now.
        (found.dimensions == options.dimensions
            || found.audit.status == Status::Identical
                && found.dimensions.is_superset(&options.dimensions))
        && found.rounds >= options.rounds
        && (found.audit.costs.is_some() || !options.costs)
        // What differed is to be looked at where this audit would have kept it.
        && found.audit.differences.iter().filter_map(|it| it.kept.as_ref()).all(|kept| {
            kept.starts_with(&options.keep) && kept.exists()
        });
    same.then(|| {
        let hash = found.audit.derivation;
        let witness = found.route.map(|route| Witness::new(hash, claim.clone(), route));
        Audit { remembered: true, claim: Some(claim.clone()), witness, ..found.audit }
    })
}

/// What is remembered of the same claim.
fn read(path: &Path, claim: &Claim) -> Option<Remembered> {
    let bytes = fs::read(path).ok()?;
    let found: Remembered = serde_json::from_slice(&bytes).ok()?;
    let same = found.format == FORMAT
        && found.resolved == claim.resolved
        && found.outputs == claim.outputs;
    same.then_some(found)
}

/// Keeps what an audit found, unless that may have been this machine's fault: a rebuild that fails
/// may have had too little memory, or time.
///
/// # Errors
/// The file can't be written.
pub(super) fn remember(
    store: &Store,
    path: &Path,
    claim: &Claim,
    options: &AuditOptions,
    audit: &Audit,
) -> Result<(), FailureCause> {
    debug_assert!(matches!(audit.status, Status::Identical | Status::Differs));
    if audit.differences.iter().any(|it| it.failed.is_some()) {
        // Nor does what an earlier audit found hold any more.
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let action = format!("remove {}", path.display());
                Err(FailureCause::Io { action, source: error })
            }
            _ => Ok(()),
        };
    }
    let mut remembered = Remembered {
        format: FORMAT,
        resolved: claim.resolved,
        outputs: claim.outputs.clone(),
        dimensions: options.dimensions.clone(),
        rounds: options.rounds,
        audit: audit.clone(),
        route: audit.witness.as_ref().map(|witness| witness.route().clone()),
    };
    if !options.again
        && let Some(earlier) = read(path, claim)
    {
        remembered.join(earlier);
    }
    // A scratch directory is swept if this process is killed.
    let scratch = store.scratch()?;
    let write = || -> io::Result<()> {
        let staged = scratch.path().join("audit");
        fs::write(&staged, serde_json::to_vec(&remembered)?)?;
        fs::create_dir_all(store.directory(DIRECTORY))?;
        fs::rename(staged, path)
    };
    let action = || format!("write {}", path.display());
    write().map_err(|source| FailureCause::Io { action: action(), source })
}

/// Where an audit of a derivation is remembered: beside what differed, with the same name.
pub(super) fn place(store: &Store, name: &str) -> PathBuf {
    store.directory(DIRECTORY).join(format!("{name}.json"))
}
