//! The audit of one derivation: what it is compared with, and the rounds that are asked for.
//!
//! All dimensions are varied together, as often as asked for, and the runner, if that is asked for,
//! by itself. Only if that differs there are more rounds (`bisect`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use srp_store::{
    Action, Build, Claim, InputKey, ObjectId, ObjectName, Role, Scratch, StaticHash, Store,
    StoreError,
};

use super::compare::Point;
use super::dimension::{Dimension, Emulator, Surroundings, Variation};
use super::remembered;
use super::report::{Audit, RoundReport, Status, Tried};
use super::round::{self, Rebuilt};
use super::witness::Witness;
use crate::build::{Roots, Trees};
use crate::cancel::CancelToken;
use crate::event::{Activity, Event, Observer};
use crate::plan::adopted;
use crate::realise::Builder;
use crate::request::{FailureCause, Request, RunnerSpec};
use crate::sandbox::{BinfmtHandler, SandboxError, copy_apart};
use crate::work::Work;

/// How derivations are audited.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// What is varied.
    pub dimensions: BTreeSet<Dimension>,
    /// How many rounds vary everything; at least one.
    pub rounds: usize,
    /// Whether it is also measured what each dimension costs.
    pub costs: bool,
    /// Where differing outputs are kept, one directory for each derivation. It need not be there.
    pub keep: PathBuf,
    /// Whether to rebuild what is remembered from an earlier audit, too.
    pub again: bool,
}

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The request doesn't hold the derivation.
    #[error("the derivation {hash} is not part of the request")]
    NoDerivation {
        /// Which.
        hash: StaticHash,
    },
    /// It was cancelled.
    #[error("interrupted; the store is as it was")]
    Cancelled,
    /// Something other than the derivation failed.
    #[error("{name} can't be audited")]
    Failed {
        /// The derivation's name.
        name: String,
        /// What failed.
        source: Box<FailureCause>,
    },
}

impl Builder<'_> {
    /// Audits one derivation of a request against what the store has registered for it.
    ///
    /// The store gets no object, record or root by it. What remains of a process that is killed
    /// is swept by the next one. What was found is remembered, and isn't found out again about the
    /// same objects unless by more dimensions or in more rounds.
    pub fn audit(
        &self,
        request: &Request,
        hash: &StaticHash,
        options: &AuditOptions,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Audit, AuditError> {
        let derivation = request.derivations.get(hash);
        let derivation = derivation.ok_or(AuditError::NoDerivation { hash: *hash })?;
        let failed = |source: FailureCause| match cancel.is_cancelled() {
            true => AuditError::Cancelled,
            false => {
                let name = derivation.name.to_string();
                AuditError::Failed { name, source: Box::new(source) }
            }
        };
        let build = match &derivation.action {
            Action::Build(build) => build,
            Action::Fetch(_) => {
                let reason = "it is fetched, and verified by its hash".to_owned();
                return Ok(Audit::of(hash, derivation, Status::NotAudited { reason }));
            }
            Action::Stage(_) => {
                let reason = "it is composed of its components, which can be audited".to_owned();
                return Ok(Audit::of(hash, derivation, Status::NotAudited { reason }));
            }
        };
        let unknown = |reason: &str| {
            let reason = reason.to_owned();
            Ok(Audit::of(hash, derivation, Status::Unknown { reason }))
        };
        let store = |error: StoreError| failed(error.into());
        let Some(claim) = adopted(self.store, hash).map_err(store)? else {
            return unknown("it is not realised");
        };
        let object_of = |key: &InputKey| -> Result<Option<ObjectId>, StoreError> {
            let claim = adopted(self.store, &key.derivation)?;
            Ok(claim.and_then(|claim| claim.outputs.get(&key.output).copied()))
        };
        let other = match options.dimensions.contains(&Dimension::Runner) {
            true if !self.machine.runs(&build.build) => {
                Err("an emulator runs it already, and nothing else here can".to_owned())
            }
            true => match request.runners.get(build.build.arch()) {
                Some(spec) => match object_of(&spec.key).map_err(store)? {
                    Some(object) => Ok((spec, object)),
                    None => {
                        let emulator = &request.derivations[&spec.key.derivation].name;
                        return unknown(&format!(
                            "{emulator}, which would be its other runner, is not in the store"
                        ));
                    }
                },
                None => Err(format!("the definitions have no runner for {}", build.build.arch())),
            },
            false => Err("it is not to be varied".to_owned()),
        };
        // Beside what is found out without: it takes long, and seldom is both asked for.
        let with = if options.dimensions.contains(&Dimension::Runner) { "-runner" } else { "" };
        let name = format!("{}-{}{with}", derivation.name, &hash.to_string()[..12]);
        let place = remembered::place(self.store, &name);
        let emulator = other.as_ref().ok().map(|(spec, object)| {
            let told: Vec<String> = spec.environment().map(|(_, value)| value).collect();
            format!("{object} {}", told.join(" "))
        });
        if !options.again
            && let Some(audit) =
                remembered::recall(&place, hash, &claim, options, emulator.as_deref())
        {
            return Ok(audit);
        }
        let inputs: Vec<_> = claim.inputs.values().copied().collect();
        if !self.store.contains_closure(&inputs).map_err(store)? {
            return unknown("not all that it was built from is in the store");
        }
        let runner = match self.runner(request, derivation) {
            None => None,
            Some(spec) => match object_of(&spec.key).map_err(store)? {
                Some(object) => Some((spec, object)),
                None => return unknown("the emulator that it needs is not in the store"),
            },
        };
        let Some(_lock) = self.store.lock(&claim.resolved).map_err(store)? else {
            return unknown("another srp builds or audits it just now");
        };
        let work = Work {
            store: self.store,
            launcher: self.launcher,
            fetcher: self.fetcher,
            substituters: None,
            broker: self.broker,
            machine: &self.machine,
            options: &self.options,
            observer,
            cancel,
            derivation,
            hash: *hash,
            resolved: claim.resolved,
            inputs: claim.inputs.clone(),
            runner,
            is_audit: true,
        };
        let keep = options.keep.join(name);
        let auditor = Auditor::new(work, build, &claim, options, keep, other).map_err(&failed)?;
        let audit = auditor.run().map_err(&failed)?;
        // That it can't be remembered costs nobody what was found.
        if let Err(error) =
            remembered::remember(self.store, &place, &claim, options, emulator, &audit)
        {
            tracing::warn!("the audit of {} is not remembered: {error}", derivation.name);
        }
        Ok(audit)
    }
}

pub(super) type Set = BTreeSet<Dimension>;

/// What needs more of the kernel than any sandbox does, and is left out where that is refused.
const MAY_BE_REFUSED: [Dimension; 3] =
    [Dimension::Clock, Dimension::DirectoryOrder, Dimension::Runner];

pub(super) struct Auditor<'a> {
    work: Work<'a>,
    build: &'a Build,
    roots: Roots,
    claim: &'a Claim,
    pub(super) registered: Trees,
    /// What the first output is.
    object: ObjectName,
    around: Surroundings,
    pub(super) options: &'a AuditOptions,
    /// Where this derivation's differing outputs are kept.
    pub(super) keep: PathBuf,
    pub(super) tried: BTreeMap<Dimension, Result<Variation, String>>,
    rounds: Vec<RoundReport>,
    /// What was varied in each of these rounds, and where it was not as registered.
    pub(super) seen: Vec<(Set, BTreeSet<Point>)>,
    /// Where rebuilds with nothing varied differ, once that is known.
    pub(super) control: Option<BTreeSet<Point>>,
    /// Holds the emulator's copy.
    _scratch: Scratch,
}

impl<'a> Auditor<'a> {
    fn new(
        work: Work<'a>,
        build: &'a Build,
        claim: &'a Claim,
        options: &'a AuditOptions,
        keep: PathBuf,
        other: Result<(&RunnerSpec, ObjectId), String>,
    ) -> Result<Auditor<'a>, FailureCause> {
        let store = work.store;
        let mut registered = Trees::new();
        let mut size_bytes = 0;
        let mut object = None;
        for (output, id) in &claim.outputs {
            let info = store.info(id)?;
            object.get_or_insert_with(|| info.object.path_name());
            size_bytes += info.size_bytes;
            let tree = info.object.tree;
            registered.insert(output.clone(), (store.tree_path(&tree), store.listing(&tree)?));
        }
        let object = object.expect("every derivation has an output");
        let mut sources_bytes = 0;
        for source in work.role(Role::Sources) {
            sources_bytes += store.info(&source)?.size_bytes;
        }
        let realisation = store.realisation(&claim.resolved)?;
        let took = realisation.map(|it| it.route.milliseconds).filter(|it| *it > 0);
        let store_in_memory = nix::sys::statfs::statfs(store.root())
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC);
        let scratch = store.scratch()?;
        let emulator = match other {
            Ok((spec, object)) => emulator(store, spec, &object, build.build.arch(), &scratch)?,
            Err(reason) => Err(reason),
        };
        let around = Surroundings {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: work.options.memory_bytes.unwrap_or(0) / 4,
            // Objects, programs with debug information, and a copy of the sources.
            build_bytes: 6 * sources_bytes + 3 * size_bytes,
            store_in_memory,
            limit_seconds: limit_seconds(took),
            turn: 0,
            emulator,
        };
        let roots = work.roots()?;
        // What it is compared with, and what it is rebuilt from.
        let compared = registered.values().map(|(_, listing)| listing.digest()).collect();
        work.with_assurance(|assurance| store.assure_all(&compared, assurance))?;
        work.assure(&roots)?;
        // What an earlier audit kept is no longer what this one says.
        srp_store::remove_tree(&keep)?;
        let (tried, rounds, seen) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Auditor {
            work,
            build,
            roots,
            claim,
            registered,
            object,
            around,
            options,
            keep,
            tried,
            rounds,
            seen,
            control: None,
            _scratch: scratch,
        })
    }

    fn run(mut self) -> Result<Audit, FailureCause> {
        let task = self.work.task();
        let activity = Activity::Auditing;
        let began = Instant::now();
        self.work.observer.event(Event::Started { task, activity });
        let mut differences = Vec::new();
        let mut route = None;
        let options = self.options;
        let (alone, together): (Set, Set) =
            options.dimensions.iter().partition(|it| it.by_itself());
        let mut groups: Vec<Set> = alone.into_iter().map(|it| Set::from([it])).collect();
        if !together.is_empty() || groups.is_empty() {
            groups.insert(0, together);
        }
        for dimensions in groups {
            let other_runner = dimensions.contains(&Dimension::Runner);
            if let Err(reason) = &self.around.emulator
                && other_runner
            {
                self.tried.insert(Dimension::Runner, Err(reason.clone()));
                continue;
            }
            for round in 0..options.rounds.max(1) {
                // What was varied otherwise before neither bears anything out nor refutes it.
                self.around.turn = round;
                self.seen.clear();
                let rebuilt = self.round(&dimensions)?;
                if !rebuilt.points.is_empty() {
                    differences.extend(self.explain(vec![rebuilt])?);
                    break;
                }
                // Nobody takes an emulated build for a native one's witness.
                if !other_runner {
                    route = rebuilt.route;
                }
            }
        }
        let mut costs = None;
        if options.costs {
            self.around.turn = 0;
            self.seen.clear();
            let (measured, differs) = self.costs()?;
            costs = Some(measured);
            if differences.is_empty() && !differs.is_empty() {
                differences = self.explain(differs)?;
            }
        }
        let status = match self.tried.values().any(Result::is_ok) || options.dimensions.is_empty() {
            _ if !differences.is_empty() => Status::Differs,
            true => Status::Identical,
            false => {
                Status::Unknown { reason: "nothing of what was to be varied can be".to_owned() }
            }
        };
        let route = route.filter(|_| status == Status::Identical);
        let (hash, claim) = (self.work.hash, self.claim);
        let witness = route.map(|route| Witness::new(hash, claim.clone(), route));
        let elapsed = began.elapsed();
        let object = &self.object;
        self.work.observer.event(Event::Finished { task, activity, object, elapsed });
        let tried = self.tried.into_iter().map(|(dimension, variation)| {
            let not_applicable = variation.as_ref().err().cloned();
            Tried { dimension, variation: variation.ok(), not_applicable }
        });
        let dimensions = tried.collect();
        let mut audit = Audit::of(&self.work.hash, self.work.derivation, status);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        audit.audited_at = Some(now.as_secs());
        (audit.dimensions, audit.rounds, audit.differences) =
            (dimensions, self.rounds, differences);
        (audit.claim, audit.witness) = (Some(claim.clone()), witness);
        audit.costs = costs;
        Ok(audit)
    }

    /// One rebuild.
    pub(super) fn round(&mut self, dimensions: &Set) -> Result<Rebuilt, FailureCause> {
        let names: Vec<&str> = dimensions.iter().map(|dimension| dimension.name()).collect();
        let varied = match names.len() {
            0 => "nothing varied".to_owned(),
            1..4 => format!("{} varied", names.join(", ")),
            many => format!("{many} dimensions varied"),
        };
        self.work.observer.event(Event::Round { task: self.work.task(), varied: &varied });
        let rebuild = |dimensions: &Set| {
            let (work, around) = (&self.work, &self.around);
            round::rebuild(work, self.build, &self.roots, &self.registered, dimensions, around)
        };
        let mut possible = dimensions.clone();
        let rebuilt = loop {
            let error = match rebuild(&possible) {
                Err(FailureCause::Sandbox(
                    error @ (SandboxError::Setup { .. } | SandboxError::Command { .. }),
                )) => error,
                result => break result?,
            };
            // This kernel refuses something; without that there may still be an audit. What it has
            // not refused before it doesn't refuse now: then it is something else.
            let worked = |it: &Dimension| self.tried.get(it).is_some_and(Result::is_ok);
            let refused = MAY_BE_REFUSED.iter().find(|it| !worked(it) && possible.remove(it));
            let Some(refused) = refused else { return Err(error.into()) };
            self.tried.insert(*refused, Err(error.to_string()));
        };
        self.rounds.push(rebuilt.report.clone());
        let varied = rebuilt.report.varied.iter().copied().collect();
        self.seen.push((varied, rebuilt.points.clone()));
        for (dimension, variation) in &rebuilt.varied {
            let known = self.tried.entry(*dimension).or_insert_with(|| variation.clone());
            if variation.is_ok() {
                known.clone_from(variation);
            }
        }
        Ok(rebuilt)
    }
}

/// How long a rebuild may take if the build took so long; what was built elsewhere has no time.
fn limit_seconds(took_milliseconds: Option<u64>) -> u64 {
    const LEAST: u64 = 15 * 60;
    const UNKNOWN: u64 = 12 * 60 * 60;
    const TIMES: u64 = 20;
    took_milliseconds.map_or(UNKNOWN, |it| (it / 1000 * TIMES).max(LEAST))
}

/// An emulator of this machine's own architecture, made ready in a scratch directory.
fn emulator(
    store: &Store,
    spec: &RunnerSpec,
    object: &ObjectId,
    arch: &str,
    scratch: &Scratch,
) -> Result<Result<Emulator, String>, FailureCause> {
    let object = store.info(object)?.object;
    let copy = scratch.path().join("emulator");
    copy_apart(&spec.program_in(&store.tree_path(&object.tree)), &copy).map_err(|source| {
        FailureCause::Io { action: format!("copy {} of {}", spec.program, object.name), source }
    })?;
    let handler = BinfmtHandler::for_arch(arch, copy);
    let handler = handler.ok_or_else(|| format!("how programs for {arch} are told is not known"));
    Ok(handler.map(|handler| Emulator {
        handler,
        environment: spec.environment().collect(),
        name: object.path_name().to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rebuild_ends() {
        assert_eq!(limit_seconds(Some(100)), 900);
        assert_eq!(limit_seconds(Some(3_600_000)), 72_000);
        assert_eq!(limit_seconds(None), 43_200);
    }
}
