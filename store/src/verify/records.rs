//! What the store says of derivations: derivations themselves, claims and realisations.
//!
//! A claim and a realisation don't say which derivation they are of: only their file's name does. So
//! that two of them have not changed places is seen from the derivation, where it is here: it has
//! these outputs, they are called after it, and with these inputs it has this resolved hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::db::{self, Record};
use crate::derivation::Derivation;
use crate::digest::{ObjectId, ResolvedHash, StaticHash};
use crate::encode::Canonical;
use crate::error::StoreError;
use crate::name::OutputName;
use crate::realisation::{Claim, Realisation};
use crate::store::Store;
use crate::verify::names::{Looked, named, read};
use crate::verify::structure::{Structure, Wanted};
use crate::verify::{Report, Subject};

impl Store {
    pub(super) fn verify_records(&self, report: &mut Report) -> Result<(), StoreError> {
        let resolved = |hash: &ResolvedHash| Subject::Realisation(*hash);
        let directory = self.directory("realisations/resolved");
        let realisations: Vec<(_, _, Realisation)> = read_all(&directory, report, &resolved)?;
        let fixed = |hash: &StaticHash| Subject::Claim(*hash);
        let claims: Vec<(_, _, Claim)> =
            read_all(&self.directory("realisations/static"), report, &fixed)?;
        let structure = &mut report.structure;
        structure.realisations =
            realisations.into_iter().map(|(hash, _, value)| (hash, value)).collect();
        structure.claims = claims.into_iter().map(|(hash, _, value)| (hash, value)).collect();
        self.verify_derivations(report)?;
        self.verify_named(report);
        Ok(())
    }

    /// Derivations are what their names say, and what is said of them can be said of them.
    fn verify_derivations(&self, report: &mut Report) -> Result<(), StoreError> {
        let directory = self.directory("derivations");
        let names = named(&directory, report, |name| name.parse::<StaticHash>().ok())?;
        let structure = &report.structure;
        let looked: Vec<_> = names
            .par_iter()
            .map(|(hash, path)| {
                let looked = look_at_derivation(hash, path);
                let wrong = match (&looked, structure.claims.get(hash)) {
                    (Looked::Sound(derivation), Some(claim)) => {
                        contradiction(structure, derivation, claim)
                    }
                    _ => None,
                };
                (looked.and_then(|_| Ok(())), wrong)
            })
            .collect();
        for ((hash, path), (looked, wrong)) in names.into_iter().zip(looked) {
            report.take(Subject::Derivation(hash), &path, looked);
            match wrong {
                None => {}
                Some(Contradiction::Claim(problem)) => {
                    report.find(Subject::Claim(hash), &self.claim_path(&hash), problem);
                    report.structure.claims.remove(&hash);
                }
                Some(Contradiction::Realisation(resolved, problem)) => {
                    let path = self.realisation_path(&resolved);
                    report.find(Subject::Realisation(resolved), &path, problem);
                    report.structure.realisations.remove(&resolved);
                }
            }
        }
        Ok(())
    }

    /// Whether everything that claims and realisations name is there.
    fn verify_named(&self, report: &mut Report) {
        let mut wanted = Wanted::default();
        let mut missing: BTreeMap<ResolvedHash, PathBuf> = BTreeMap::new();
        for (hash, claim) in &report.structure.claims {
            let here = self.claim_path(hash);
            claim.outputs.values().for_each(|id| wanted.object(*id, &here));
            if !report.structure.realisations.contains_key(&claim.resolved) {
                missing.entry(claim.resolved).or_insert(here);
            }
        }
        for (hash, realisation) in &report.structure.realisations {
            let here = self.realisation_path(hash);
            realisation.outputs.values().for_each(|id| wanted.object(*id, &here));
        }
        self.miss_objects(report, wanted);
        for (hash, by) in missing {
            let (subject, path) = (Subject::Realisation(hash), self.realisation_path(&hash));
            if !report.findings.iter().any(|it| it.subject == subject) && !path.exists() {
                report.miss(subject, &path, &by);
            }
        }
    }
}

/// What can't both be so.
enum Contradiction {
    Claim(String),
    Realisation(ResolvedHash, String),
}

/// What can't be said of this derivation.
fn contradiction(
    structure: &Structure,
    derivation: &Derivation,
    claim: &Claim,
) -> Option<Contradiction> {
    let inputs: Option<Vec<ObjectId>> =
        derivation.inputs().iter().map(|it| claim.inputs.get(&it.key).copied()).collect();
    if inputs.map(|inputs| derivation.resolved_hash(&inputs)) != Some(claim.resolved) {
        let problem = "it is of another derivation, or other inputs, than it says";
        return Some(Contradiction::Claim(problem.to_owned()));
    }
    if let Some(problem) = misnamed(structure, derivation, &claim.outputs) {
        return Some(Contradiction::Claim(problem));
    }
    let realisation = structure.realisations.get(&claim.resolved)?;
    let problem = misnamed(structure, derivation, &realisation.outputs).or_else(|| {
        // Built twice it may have come out differently, and each be said of one; but not be
        // what another derivation came out as.
        let differs = realisation.outputs != claim.outputs;
        let other = || {
            structure
                .claims
                .values()
                .any(|it| it.resolved != claim.resolved && it.outputs == realisation.outputs)
        };
        (differs && other()).then(|| "it is what another derivation came out as".to_owned())
    })?;
    Some(Contradiction::Realisation(claim.resolved, problem))
}

/// Why these can't be a derivation's outputs.
fn misnamed(
    structure: &Structure,
    derivation: &Derivation,
    outputs: &BTreeMap<OutputName, ObjectId>,
) -> Option<String> {
    if !derivation.outputs().iter().eq(outputs.keys()) {
        return Some(format!("it has other outputs than {}", derivation.name));
    }
    let named_otherwise = |(output, id): (&OutputName, &ObjectId)| {
        let object = structure.objects.get(id)?;
        let name = derivation.object_name(output);
        (object.name != name).then(|| format!("it calls {} what should be {name}", object.name))
    };
    outputs.iter().find_map(named_otherwise)
}

pub(super) fn look_at_derivation(hash: &StaticHash, path: &Path) -> Looked<Derivation> {
    read(path).and_then(|bytes| match Derivation::from_canonical(&bytes) {
        Ok(derivation) if derivation.static_hash() == *hash => Ok(derivation),
        Ok(_) => Err("it is another derivation than its name says".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// The sound records of a directory.
fn read_all<N, R>(
    directory: &Path,
    report: &mut Report,
    subject: &dyn Fn(&N) -> Subject,
) -> Result<Vec<(N, PathBuf, R)>, StoreError>
where
    N: std::str::FromStr + ToString + Send + Sync,
    R: Record + Send,
{
    let names = named(directory, report, |name| name.parse::<N>().ok())?;
    let looked: Vec<Looked<R>> = names
        .par_iter()
        .map(|(name, path)| read(path).and_then(|bytes| db::decode(&bytes, &name.to_string())))
        .collect();
    let mut found = Vec::new();
    for ((name, path), looked) in names.into_iter().zip(looked) {
        if let Some(value) = report.take(subject(&name), &path, looked) {
            found.push((name, path, value));
        }
    }
    Ok(found)
}
