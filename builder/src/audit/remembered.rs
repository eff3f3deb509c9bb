//! What earlier audits found, so that it isn't found out twice.
//!
//! One JSON file for each derivation, and another for its audits that vary the runner, too, in the
//! store beside the outputs that are kept. It is no part of what the store says: whatever can't be
//! read, or was found out about other objects, by fewer dimensions or in fewer rounds, counts as not
//! there. No file is older than what it tells of: each audit replaces its derivation's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use srp_store::{Claim, ObjectId, OutputName, ResolvedHash, Route, StaticHash, Store};

use super::auditor::AuditOptions;
use super::dimension::Dimension;
use super::report::{Audit, Status};
use super::witness::Witness;
use crate::request::FailureCause;

/// Counts up when an older file no longer tells what an audit would.
const FORMAT: u32 = 3;

/// In the store.
const DIRECTORY: &str = "audits";

#[derive(Serialize, Deserialize)]
struct Remembered {
    format: u32,
    resolved: ResolvedHash,
    outputs: BTreeMap<OutputName, ObjectId>,
    dimensions: BTreeSet<Dimension>,
    rounds: usize,
    /// What the runner was varied by, with what it is told; none if it wasn't to be, or couldn't be.
    emulator: Option<String>,
    audit: Audit,
    /// How a rebuild that came out the same was done, by the usual runner.
    route: Option<Route>,
}

/// What an earlier audit of the same claim found, if it was at least as thorough as is asked for.
///
/// `emulator` is as in [`Remembered`].
pub(super) fn recall(
    path: &Path,
    hash: &StaticHash,
    claim: &Claim,
    options: &AuditOptions,
    emulator: Option<&str>,
) -> Option<Audit> {
    let bytes = srp_store::read_plain(path).ok()?;
    let found: Remembered = serde_json::from_slice(&bytes).ok()?;
    let same = found.format == FORMAT
        && found.audit.derivation == *hash
        && found.resolved == claim.resolved
        && found.outputs == claim.outputs
        // An emulator is in no hash.
        && found.emulator.as_deref() == emulator
        && (emulator.is_none() || found.audit.has_varied(Dimension::Runner))
        // What differs may do so because of what isn't to be varied now.
        && (found.dimensions == options.dimensions
            || found.audit.status == Status::Identical
                && found.dimensions.is_superset(&options.dimensions))
        && found.rounds >= options.rounds
        && (found.audit.costs.is_some() || !options.costs)
        // What differed is to be looked at where this audit would have kept it.
        && found.audit.differences.iter().filter_map(|it| it.kept.as_ref()).all(|kept| {
            kept.starts_with(&options.keep) && kept.exists()
        });
    same.then(|| {
        let witness = found.route.map(|route| Witness::new(*hash, claim.clone(), route));
        Audit { remembered: true, claim: Some(claim.clone()), witness, ..found.audit }
    })
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
    emulator: Option<String>,
    audit: &Audit,
) -> Result<(), FailureCause> {
    if !matches!(audit.status, Status::Identical | Status::Differs) {
        return Ok(());
    }
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
    let remembered = Remembered {
        format: FORMAT,
        resolved: claim.resolved,
        outputs: claim.outputs.clone(),
        dimensions: options.dimensions.clone(),
        rounds: options.rounds,
        emulator,
        audit: audit.clone(),
        route: audit.witness.as_ref().map(|witness| witness.route().clone()),
    };
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
