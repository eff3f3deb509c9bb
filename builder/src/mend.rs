//! Mending: what a store can't repair from itself (`srp_store::verify`) comes from caches, is fetched
//! again, or built again.
//!
//! What is lost is known by its id or digest, so whatever brings it is compared with that. A build
//! that comes out differently is no repair, and isn't registered. Objects are mended one after the
//! other, each after what it refers to and what it was built from.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use srp_store::cache::{KeyId, Signer};
use srp_store::verify::{Finding, Remedy, Report, Subject, Verification};
use srp_store::{
    Action, Build, Claim, Derivation, InputKey, Object, ObjectId, ReferenceKind, Registration,
    ResolvedHash, Sha256, StaticHash, StoreError,
};

use crate::build::Trees;
use crate::cancel::CancelToken;
use crate::event::{Activity, Event, Observer};
use crate::fetch::{self, FetchRequest, Place, PlaceFailure};
use crate::realise::Builder;
use crate::request::{FailureCause, RealiseError, Request, RunnerSpec};
use crate::work::Work;

/// What definitions say, beside what the store has kept of them.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Derivations.
    pub derivations: BTreeMap<StaticHash, Derivation>,
    /// Emulators by architecture.
    pub runners: BTreeMap<String, RunnerSpec>,
}

/// How often what shows only after a repair is mended, too.
const ROUNDS: usize = 8;

impl Builder<'_> {
    /// Repairs what was found wrong in the store: from itself, then from elsewhere.
    ///
    /// # Errors
    /// [`RealiseError::Cancelled`], or what the system says; what was mended until then is. That
    /// something can't be mended is none: its finding says so.
    pub fn mend(
        &self,
        how: Verification<'_>,
        report: &mut Report,
        known: &Known,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<(), RealiseError> {
        let mending =
            Mending { builder: self, known, observer, cancel, failed: RefCell::default() };
        for _ in 0..ROUNDS {
            self.store.repair(how, report)?;
            let before = report.unmended().count();
            if before == 0 {
                break;
            }
            mending.derivations(report)?;
            mending.sources(report)?;
            mending.objects(report)?;
            mending.statements(report)?;
            if cancel.is_cancelled() {
                return Err(RealiseError::Cancelled);
            }
            let found_more = self.store.look_again(&how, report)?;
            if report.unmended().count() == before && !found_more {
                break;
            }
        }
        for finding in report.findings.iter_mut().filter(|it| it.outcome.is_none()) {
            finding.unmended(match finding.subject {
                Subject::Claim(_) | Subject::Realisation(_) => {
                    "nothing says what it was: remove it, and srp realise makes it anew"
                }
                Subject::Derivation(_) => {
                    "no definitions at hand have it: remove it, and srp instantiate makes it anew"
                }
                _ => "nothing here can make it anew",
            });
        }
        Ok(())
    }
}

/// A round of mending.
struct Mending<'a> {
    builder: &'a Builder<'a>,
    known: &'a Known,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
    /// What was tried to be made anew in vain, and why: it is not tried again.
    failed: RefCell<BTreeMap<StaticHash, String>>,
}

impl Mending<'_> {
    fn derivations(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in unmended(report) {
            if let Subject::Derivation(hash) = finding.subject
                && let Some(derivation) = self.known.derivations.get(&hash)
            {
                self.builder.store.add_derivation(derivation)?;
                finding.mended(Remedy::Derived("definitions".to_owned()));
            }
        }
        Ok(())
    }

    /// Files as they were fetched: the same file under another name, or in a tree; else fetched.
    fn sources(&self, report: &mut Report) -> Result<(), RealiseError> {
        let damaged: Vec<(Sha256, PathBuf)> = unmended(report)
            .filter_map(|it| match it.subject {
                Subject::Source(sha256) => Some((sha256, it.path.clone())),
                _ => None,
            })
            .collect();
        if damaged.is_empty() {
            return Ok(());
        }
        let store = self.builder.store;
        let mut places: BTreeMap<Sha256, Vec<Derivation>> = BTreeMap::new();
        for hash in store.derivations_by_prefix("")? {
            if let Some(derivation) = self.derivation(&hash)?
                && let Action::Fetch(fetch) = &derivation.action
                && damaged.iter().any(|(sha256, _)| *sha256 == fetch.sha256)
            {
                places.entry(fetch.sha256).or_default().push(derivation);
            }
        }
        for (sha256, path) in damaged {
            let fetched =
                self.source(&sha256, &path, places.get(&sha256).map_or(&[], Vec::as_slice))?;
            let finding = unmended(report).find(|it| it.path == path).expect("it was found here");
            match fetched {
                Ok(from) => finding.mended(Remedy::Fetched(from)),
                Err(why) => finding.unmended(why),
            }
        }
        Ok(())
    }

    /// Fetches a file beside its place, and moves it there; from where, or why not.
    fn source(
        &self,
        sha256: &Sha256,
        path: &Path,
        derivations: &[Derivation],
    ) -> Result<Result<String, String>, RealiseError> {
        let store = self.builder.store;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.split_once('-').map(|(_, name)| name).unwrap_or_default();
        let Some(derivation) = derivations.first() else {
            return Ok(Err(
                "no derivation here says where it was fetched from: remove it, and it \
                           is fetched when it is needed"
                    .to_owned(),
            ));
        };
        let mut urls: Vec<String> =
            derivations.iter().flat_map(|it| it.advice.urls.clone()).collect();
        // Other names of the same file, which are tried first: they cost nothing.
        let digits = format!("{sha256}-");
        for entry in fs::read_dir(store.directory("sources")).into_iter().flatten().flatten() {
            let other = entry.path();
            if other != path && entry.file_name().to_string_lossy().starts_with(&digits) {
                urls.insert(0, format!("file://{}", other.display()));
            }
        }
        let request = FetchRequest {
            name: name.to_owned(),
            sha256: fetch::Sha256::from_bytes(*sha256.as_bytes()),
            size_bytes: derivation.advice.size_bytes,
            urls,
        };
        let task = crate::event::Task { hash: derivation.static_hash(), name };
        let scratch = store.scratch()?;
        self.observer.event(Event::Started { task, activity: Activity::Fetching });
        let fetched = self.builder.fetcher.fetch(&request, scratch.path(), &Silent, self.cancel);
        if self.cancel.is_cancelled() {
            return Err(RealiseError::Cancelled);
        }
        match fetched {
            Ok(fetched) => {
                store.place_source(&fetched.path, path)?;
                Ok(Ok(fetched.from.to_string()))
            }
            Err(error) => {
                let reason = error.to_string();
                self.observer.event(Event::Failed { task, reason: &reason });
                Ok(Err(reason))
            }
        }
    }

    /// Objects whose record, tree or listing is lost or damaged.
    fn objects(&self, report: &mut Report) -> Result<(), RealiseError> {
        loop {
            let damaged = damaged_objects(report);
            let mut progress = false;
            for id in &damaged {
                if self.cancel.is_cancelled() {
                    return Err(RealiseError::Cancelled);
                }
                let outcome = self.object(id, &damaged, report)?;
                progress |= outcome.is_ok();
                let object = self.builder.store.find_info(id).ok().flatten().map(|it| it.object);
                settle(report, id, object.as_ref(), &outcome);
            }
            // What was waited for may be there now.
            if !progress || damaged_objects(report).is_empty() {
                return Ok(());
            }
        }
    }

    /// Brings one object back; how, or why not.
    fn object(
        &self,
        id: &ObjectId,
        damaged: &BTreeSet<ObjectId>,
        report: &Report,
    ) -> Result<Result<Remedy, String>, RealiseError> {
        let store = self.builder.store;
        if store.contains(id)? {
            // Another object had the same tree.
            return Ok(Ok(Remedy::Derived("another object with the same tree".to_owned())));
        }
        if let Some(substituters) = self.builder.substituters
            && let Some(url) = substituters.bring(store, id, &|_| {})?
        {
            return Ok(Ok(Remedy::Cached(url)));
        }
        let mut claims = report
            .structure
            .claims()
            .filter(|(_, claim)| claim.outputs.values().any(|it| it == id));
        let Some((hash, claim)) = claims.next() else {
            return Ok(Err(match store.find_info(id).is_ok_and(|it| it.is_some()) {
                true => {
                    "no cache has it, and no derivation here makes it: if srp add made it, add \
                         it again"
                        .to_owned()
                }
                false => "no cache has it, and no derivation here makes it".to_owned(),
            }));
        };
        let Some(derivation) = self.derivation(hash)? else {
            let why = "no cache has it, and the derivation that makes it isn't known here: give \
                       the definitions that it came from (--definitions)";
            return Ok(Err(why.to_owned()));
        };
        self.derived(&derivation, *hash, claim, damaged)
    }

    /// Makes a derivation's outputs anew.
    fn derived(
        &self,
        derivation: &Derivation,
        hash: StaticHash,
        claim: &Claim,
        damaged: &BTreeSet<ObjectId>,
    ) -> Result<Result<Remedy, String>, RealiseError> {
        let store = self.builder.store;
        let name = &derivation.name;
        if let Some(why) = self.failed.borrow().get(&hash) {
            return Ok(Err(why.clone()));
        }
        if let Some(input) = self.damaged_input(claim, damaged)? {
            return Ok(Err(format!(
                "no cache has it, and {input}, which {name} is made from, is damaged"
            )));
        }
        if let Err(why) = self.bring_inputs(derivation, claim)? {
            return Ok(Err(why));
        }
        let Some(_lock) = store.lock(&claim.resolved)? else {
            return Ok(Err(format!("another srp is making {name} now")));
        };
        let work = self.work(derivation, hash, claim)?;
        let task = work.task();
        if let Action::Build(build) = &derivation.action
            && self.scan_again(&work, build, claim)?
        {
            return Ok(Ok(Remedy::Derived("its tree, searched for references again".to_owned())));
        }
        let (activity, remedy) = match &derivation.action {
            Action::Fetch(_) => (Activity::Fetching, Remedy::Fetched("its source".to_owned())),
            Action::Stage(_) => (Activity::Composing, Remedy::Derived("its components".to_owned())),
            Action::Build(_) if self.builder.options.no_build => {
                return Ok(Err(format!(
                    "no cache has it, and {name} may not be built (--no-build)"
                )));
            }
            Action::Build(_) => (Activity::Building, Remedy::Rebuilt),
        };
        let began = Instant::now();
        self.observer.event(Event::Started { task, activity });
        let made = work.make(&|| {});
        if self.cancel.is_cancelled() {
            return Err(RealiseError::Cancelled);
        }
        let (made, _scratch) = match made {
            Ok(made) => made,
            Err(FailureCause::Store(error @ StoreError::Io { .. })) => return Err(error.into()),
            Err(cause) => {
                let reason = cause.to_string();
                self.observer.event(Event::Failed { task, reason: &reason });
                let why = format!("{name} can't be made anew: {reason}");
                self.failed.borrow_mut().insert(hash, why.clone());
                return Ok(Err(why));
            }
        };
        if made.outputs != claim.outputs {
            let reason = format!(
                "made anew, {name} is something else ({}): it is not reproducible, and what was \
                 lost can't be had again",
                made.outputs.values().next().map(ToString::to_string).unwrap_or_default()
            );
            self.observer.event(Event::Failed { task, reason: &reason });
            self.failed.borrow_mut().insert(hash, reason.clone());
            return Ok(Err(reason));
        }
        store.commit(made.registration)?;
        if let Some(id) = claim.outputs.values().next() {
            let object = store.info(id)?.object.path_name();
            let elapsed = began.elapsed();
            self.observer.event(Event::Finished { task, activity, object: &object, elapsed });
        }
        Ok(Ok(remedy))
    }

    /// An input, or something that one refers to, that is damaged itself.
    fn damaged_input(
        &self,
        claim: &Claim,
        damaged: &BTreeSet<ObjectId>,
    ) -> Result<Option<String>, StoreError> {
        let mut pending: Vec<ObjectId> = claim.inputs.values().copied().collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let info = self.builder.store.find_info(&id).ok().flatten();
            if damaged.contains(&id) && !self.builder.store.contains(&id)? {
                return Ok(Some(match info {
                    Some(info) => info.object.path_name().to_string(),
                    None => id.to_string(),
                }));
            }
            pending.extend(info.iter().flat_map(|it| it.object.references(ReferenceKind::ALL)));
        }
        Ok(None)
    }

    /// Sees to it that all inputs are here: what came from a cache came without them.
    fn bring_inputs(
        &self,
        derivation: &Derivation,
        claim: &Claim,
    ) -> Result<Result<(), String>, RealiseError> {
        let store = self.builder.store;
        let ids: Vec<ObjectId> = claim.inputs.values().copied().collect();
        if store.contains_closure(&ids)? {
            return Ok(Ok(()));
        }
        let missing = derivation.inputs().iter().map(|input| input.key.clone());
        let goals: BTreeSet<InputKey> = missing.collect();
        let mut derivations = BTreeMap::new();
        let mut pending: Vec<StaticHash> = goals.iter().map(|key| key.derivation).collect();
        let runners = self.known.runners.values().map(|it| it.key.derivation);
        pending.extend(runners);
        while let Some(hash) = pending.pop() {
            if derivations.contains_key(&hash) {
                continue;
            }
            let Some(input) = self.derivation(&hash)? else {
                let why = format!(
                    "no cache has it, and not all that {} is built from is here: give the \
                     definitions that it came from (--definitions)",
                    derivation.name
                );
                return Ok(Err(why));
            };
            pending.extend(input.inputs().iter().map(|input| input.key.derivation));
            derivations.insert(hash, input);
        }
        let request = Request {
            goals: goals.into_iter().collect(),
            derivations,
            runners: self.known.runners.clone(),
            roots: Vec::new(),
        };
        match self.builder.realise(&request, self.observer, self.cancel) {
            Ok(_) if store.contains_closure(&ids)? => Ok(Ok(())),
            Ok(_) => {
                let name = &derivation.name;
                Ok(Err(format!("what {name} is built from comes out differently now")))
            }
            Err(RealiseError::Failed { failures, .. }) => {
                let first = failures.first().map(|it| format!("{}: {}", it.name, it.cause));
                Ok(Err(first.unwrap_or_else(|| "its inputs can't be made".to_owned())))
            }
            Err(RealiseError::NoBuild { names }) => {
                Ok(Err(format!("{} may not be built (--no-build)", names.join(", "))))
            }
            Err(error) => Err(error),
        }
    }

    /// Where only the record of a build's object is lost, what it refers to is found in its tree,
    /// as it was when it was built.
    fn scan_again(
        &self,
        work: &Work<'_>,
        build: &Build,
        claim: &Claim,
    ) -> Result<bool, RealiseError> {
        let store = self.builder.store;
        let mut trees = Trees::new();
        for (output, id) in &claim.outputs {
            let Some(tree) = store.tree_of(id, &work.derivation.object_name(output))? else {
                return Ok(false);
            };
            let Ok(listing) = store.listing(&tree) else { return Ok(false) };
            trees.insert(output.clone(), (store.tree_path(&tree), Arc::clone(&listing)));
        }
        for (_, listing) in trees.values() {
            let cancel = Some(self.cancel.flag());
            if !store.verify_tree(&listing.digest(), cancel, &|_| {})?.is_sound() {
                return Ok(false);
            }
        }
        let Ok(objects) = work.objects_again(build, &trees) else { return Ok(false) };
        let mut registration = Registration::default();
        for (output, object) in &objects {
            if claim.outputs.get(output) != Some(&object.id()) {
                return Ok(false);
            }
            registration.existing_tree(store, object, &trees[output].1);
        }
        store.commit(registration)?;
        Ok(true)
    }

    fn work<'w>(
        &'w self,
        derivation: &'w Derivation,
        hash: StaticHash,
        claim: &Claim,
    ) -> Result<Work<'w>, StoreError> {
        let builder = self.builder;
        let runner = match &derivation.action {
            Action::Build(build) if !builder.machine.runs(&build.build) => {
                self.known.runners.get(build.build.arch())
            }
            _ => None,
        };
        let runner = match runner {
            Some(spec) => {
                let claim = builder.store.claim(&spec.key.derivation)?;
                let object = claim.and_then(|it| it.outputs.get(&spec.key.output).copied());
                object.map(|object| (spec, object))
            }
            None => None,
        };
        Ok(Work {
            store: builder.store,
            launcher: builder.launcher,
            fetcher: builder.fetcher,
            substituters: builder.substituters,
            broker: builder.broker,
            machine: &builder.machine,
            options: &builder.options,
            observer: self.observer,
            cancel: self.cancel,
            derivation,
            hash,
            resolved: claim.resolved,
            inputs: claim.inputs.clone(),
            runner,
            is_audit: false,
        })
    }

    fn derivation(&self, hash: &StaticHash) -> Result<Option<Derivation>, StoreError> {
        match self.known.derivations.get(hash) {
            Some(derivation) => Ok(Some(derivation.clone())),
            None => self.builder.store.derivation(hash),
        }
    }

    /// Statements by which something was taken from others: caches still have them.
    fn statements(&self, report: &mut Report) -> Result<(), StoreError> {
        let Some(substituters) = self.builder.substituters else { return Ok(()) };
        let store = self.builder.store;
        let statements = store.directory("statements");
        for finding in unmended(report).filter(|it| it.subject == Subject::Statement) {
            let Ok(below) = finding.path.strip_prefix(&statements) else { continue };
            let mut parts = below.iter().filter_map(|part| part.to_str());
            let resolved = parts.next().and_then(|text| text.parse::<ResolvedHash>().ok());
            let signer: Option<Signer> = match parts.next() {
                Some("unsigned") => Some(None),
                Some(key) => key.parse::<KeyId>().ok().map(Some),
                None => None,
            };
            let (Some(resolved), Some(signer)) = (resolved, signer) else { continue };
            if let Some((sealed, url)) = substituters.statement(resolved, signer)? {
                store.keep_statement(&sealed)?;
                finding.mended(Remedy::Cached(url));
            }
        }
        Ok(())
    }
}

fn unmended(report: &mut Report) -> impl Iterator<Item = &mut Finding> {
    report.findings.iter_mut().filter(|it| it.is_unmended())
}

/// The objects that are not here as they should be.
fn damaged_objects(report: &Report) -> BTreeSet<ObjectId> {
    let mut damaged = BTreeSet::new();
    for finding in report.unmended() {
        match &finding.subject {
            Subject::Info(id) => drop(damaged.insert(*id)),
            Subject::Tree(tree) | Subject::Listing(tree) => {
                damaged.extend(report.structure.objects_with(tree));
            }
            _ => {}
        }
    }
    damaged
}

/// Writes down what became of an object.
fn settle(
    report: &mut Report,
    id: &ObjectId,
    object: Option<&Object>,
    outcome: &Result<Remedy, String>,
) {
    for finding in unmended(report) {
        let concerned = match &finding.subject {
            Subject::Info(it) | Subject::StorePath(it) => it == id,
            Subject::Tree(tree) | Subject::Listing(tree) => {
                object.is_some_and(|object| object.tree == *tree)
            }
            _ => false,
        };
        if concerned {
            match outcome {
                Ok(remedy) => finding.mended(remedy.clone()),
                Err(why) => finding.unmended(why.clone()),
            }
        }
    }
}

/// Nobody watches.
struct Silent;

impl fetch::Progress for Silent {
    fn began(&self, _: &Place, _: u64, _: Option<u64>) {}
    fn failed(&self, _: &PlaceFailure) {}
    fn received(&self, _: u64) {}
}
