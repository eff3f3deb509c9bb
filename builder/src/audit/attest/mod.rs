//! Attesting: what an audit found, as in-toto statements that others' tools read.
//!
//! A statement (<https://in-toto.io/Statement/v1>) says something about subjects, which here are a
//! derivation's outputs as they are registered. Of what came out identical it is two: SLSA
//! provenance (<https://slsa.dev/provenance/v1>), as this machine has built it, and the audit. Of
//! what differs it is the audit, with what differs. There is no time in them, nor anything else
//! that another audit with the same outcome wouldn't say, so they can be compared.
//!
//! `docs/audit.md` describes every field; a change here is a change of that page. Who signs them,
//! and where they are written, is the caller's business.

mod directory;

use serde_json::{Value, json};
use srp_store::cache::KeyId;
use srp_store::{
    Action, Claim, Derivation, ObjectId, ObjectName, Route, Store, StoreError, revision,
};

use super::report::{Audit, Difference, Status};
use crate::request::Request;

/// The type of what an audit says.
pub const AUDIT: &str = "urn:srp:audit:v1";
/// The type of what a builder says.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
/// How the outputs of a derivation come about.
const BUILD: &str = "urn:srp:build:v1";

/// What there is to attest of one audit by the owner of `key`: nothing of what was not audited.
///
/// # Errors
/// The store's, also if a file of an output can't be read.
pub fn statements(
    store: &Store,
    request: &Request,
    audit: &Audit,
    key: &KeyId,
) -> Result<Vec<Value>, StoreError> {
    let Some(claim) = &audit.claim else { return Ok(Vec::new()) };
    let mut subject = Vec::new();
    for (output, id) in &claim.outputs {
        let mut described = described(store, id)?;
        let tree = store.info(id)?.object.tree;
        let digest = directory::digest(&*store.listing(&tree)?, &store.tree_path(&tree))?;
        if let Some(digest) = digest {
            described["digest"]["dirHash"] = json!(digest);
        }
        described["annotations"] = json!({ "output": output });
        subject.push(described);
    }
    let statement = |kind: &str, predicate: Value| {
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subject,
            "predicateType": kind,
            "predicate": predicate,
        })
    };
    let mut statements = Vec::new();
    if let Some(witness) = &audit.witness {
        let derivation = &request.derivations[&audit.derivation];
        let predicate = provenance(store, request, audit, derivation, claim, witness.route(), key)?;
        statements.push(statement(PROVENANCE, predicate));
    }
    statements.push(statement(AUDIT, audited(audit, claim, key)));
    Ok(statements)
}

fn provenance(
    store: &Store,
    request: &Request,
    audit: &Audit,
    derivation: &Derivation,
    claim: &Claim,
    route: &Route,
    key: &KeyId,
) -> Result<Value, StoreError> {
    let mut dependencies = Vec::new();
    for input in derivation.inputs() {
        let mut described = described(store, &claim.inputs[&input.key])?;
        let (hash, output) = (&input.key.derivation, &input.key.output);
        described["annotations"] =
            json!({ "role": input.role, "derivation": hash, "output": output });
        if let Some(Action::Fetch(fetch)) = request.derivations.get(hash).map(|it| &it.action) {
            // Of the file as it was fetched, not of what was unpacked of it.
            described["annotations"]["fetchedSha256"] = json!(fetch.sha256);
        }
        dependencies.push(described);
    }
    Ok(json!({
        "buildDefinition": {
            "buildType": BUILD,
            "externalParameters": {
                "derivation": audit.derivation,
                "name": audit.name,
                "version": audit.version,
            },
            "internalParameters": {
                "resolved": claim.resolved,
                "sandbox": revision::SANDBOX,
                "runner": route.runner,
                "machine": route.machine,
                "limitsBy": route.limits_by,
            },
            "resolvedDependencies": dependencies,
        },
        "runDetails": { "builder": builder(key) },
    }))
}

fn audited(audit: &Audit, claim: &Claim, key: &KeyId) -> Value {
    let rounds: Vec<Value> = audit
        .rounds
        .iter()
        .map(|round| json!({ "varied": round.varied, "identical": round.identical }))
        .collect();
    let differences: Vec<Value> = audit.differences.iter().map(difference).collect();
    let dimensions: Vec<Value> = audit
        .dimensions
        .iter()
        .map(|it| {
            json!({
                "dimension": it.dimension,
                "variation": it.variation,
                "notApplicable": it.not_applicable,
            })
        })
        .collect();
    let verdict = match audit.status {
        Status::Identical => "identical",
        Status::Differs => "differs",
        Status::NotAudited { .. } | Status::Unknown { .. } => "unknown",
    };
    json!({
        "verdict": verdict,
        "derivation": audit.derivation,
        "name": audit.name,
        "version": audit.version,
        "resolved": claim.resolved,
        "sandbox": revision::SANDBOX,
        "dimensions": dimensions,
        "rounds": rounds,
        "differences": differences,
        "auditor": builder(key),
    })
}

fn difference(difference: &Difference) -> Value {
    let paths: Vec<Value> = difference
        .changes
        .iter()
        .map(|change| json!({ "output": change.output, "path": change.path }))
        .collect();
    let causes: Vec<&str> = difference.causes.iter().map(|cause| &*cause.pattern).collect();
    json!({
        "when": difference.when,
        "sometimes": difference.sometimes,
        "failed": difference.failed.as_ref().map(|failed| &failed.how),
        "paths": paths,
        "causes": causes,
    })
}

/// A machine, by the key that it signs with.
fn builder(key: &KeyId) -> Value {
    json!({
        "id": format!("urn:srp:key:{key}"),
        "version": { "srp": env!("CARGO_PKG_VERSION") },
    })
}

/// An object as in-toto describes a resource.
fn described(store: &Store, id: &ObjectId) -> Result<Value, StoreError> {
    let object = store.info(id)?.object;
    let name: ObjectName = object.path_name();
    Ok(json!({ "name": name, "digest": { "srpTree1": object.tree } }))
}
