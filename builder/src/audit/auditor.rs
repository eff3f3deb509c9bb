//! The audit of one derivation: rounds, and the bisection that finds what makes them differ.
//!
//! First all dimensions are varied together, as often as asked for, and the runner, if that is asked
//! for, by itself. Only if that differs there are more rounds: one without variation, whose differences have nothing to do with any dimension, and
//! then halves of the dimensions, down to single ones, for whatever else differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use srp_store::ingest::{self, Rules};
use srp_store::{
    Action, Build, Claim, InputKey, ObjectId, ObjectName, Role, Scratch, StaticHash, Store,
    StoreError,
};

use super::cause::{self, Seen};
use super::compare::{self, Point, Sign};
use super::dimension::{Dimension, Emulator, Surroundings, Variation};
use super::remembered;
use super::report::{Audit, Difference, RoundReport, Status, Tried};
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
        let varies_runner = options.dimensions.contains(&Dimension::Runner);
        if let Err(reason) = &other
            && varies_runner
            && options.dimensions.len() == 1
        {
            return unknown(&format!("its runner can't be varied: {reason}"));
        }
        // Beside what is found out without: it takes long, and seldom is both asked for.
        let with = if varies_runner { "-runner" } else { "" };
        let name = format!("{}-{}{with}", derivation.name, &hash.to_string()[..12]);
        let place = remembered::place(self.store, &name);
        let emulator = other.as_ref().ok().map(|(spec, object)| {
            let told: Vec<String> = spec.environment().map(|(_, value)| value).collect();
            format!("{object} {}", told.join(" "))
        });
        if !options.again
            && let Some(audit) = remembered::recall(&place, &claim, options, emulator.as_deref())
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

type Set = BTreeSet<Dimension>;

/// What needs more of the kernel than any sandbox does, and is left out where that is refused.
const MAY_BE_REFUSED: [Dimension; 3] =
    [Dimension::Clock, Dimension::DirectoryOrder, Dimension::Runner];

pub(super) struct Auditor<'a> {
    work: Work<'a>,
    build: &'a Build,
    roots: Roots,
    claim: &'a Claim,
    registered: Trees,
    /// What the first output is.
    object: ObjectName,
    around: Surroundings,
    pub(super) options: &'a AuditOptions,
    /// Where this derivation's differing outputs are kept.
    keep: PathBuf,
    pub(super) tried: BTreeMap<Dimension, Result<Variation, String>>,
    rounds: Vec<RoundReport>,
    /// Where rebuilds with nothing varied differ, once that is known.
    control: Option<BTreeSet<Point>>,
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
            emulator,
        };
        let roots = work.roots()?;
        // What an earlier audit kept is no longer what this one says.
        srp_store::remove_tree(&keep)?;
        let (tried, rounds) = (BTreeMap::new(), Vec::new());
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
        let (alone, together): (Set, Set) = options.dimensions.iter().partition(|it| it.alone());
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
                let rebuilt = self.round(&dimensions)?;
                if !rebuilt.points.is_empty() {
                    differences.extend(self.explain(rebuilt, round > 0)?);
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
            let (measured, differs) = self.costs()?;
            costs = Some(measured);
            if differences.is_empty()
                && let Some(rebuilt) = differs
            {
                // That one of them differs alone says nothing of how often it does.
                differences = self.explain(rebuilt, false)?;
            }
        }
        let status = if differences.is_empty() { Status::Identical } else { Status::Differs };
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
        for (dimension, variation) in &rebuilt.varied {
            self.tried.entry(*dimension).or_insert_with(|| variation.clone());
        }
        Ok(rebuilt)
    }

    /// Finds out when it differs, and how. `sometimes`: the same round was identical before.
    fn explain(
        &mut self,
        combined: Rebuilt,
        sometimes: bool,
    ) -> Result<Vec<Difference>, FailureCause> {
        let mut differences = Vec::new();
        let control = match self.control.take() {
            Some(points) => points,
            None => {
                let control = self.round(&Set::new())?;
                let points = control.points.clone();
                if !points.is_empty() {
                    differences.push(self.unsteady(control)?);
                }
                points
            }
        };
        let target: BTreeSet<Point> = combined.points.difference(&control).cloned().collect();
        self.control = Some(control);
        if !target.is_empty() {
            let effective: Set = combined.report.varied.iter().copied().collect();
            self.narrow(&effective, combined, &target, sometimes, &mut differences)?;
        }
        Ok(differences)
    }

    /// What makes a set differ at points of `target`: single dimensions where there are such.
    fn narrow(
        &mut self,
        set: &Set,
        rebuilt: Rebuilt,
        target: &BTreeSet<Point>,
        sometimes: bool,
        differences: &mut Vec<Difference>,
    ) -> Result<(), FailureCause> {
        let points: BTreeSet<Point> = rebuilt.points.intersection(target).cloned().collect();
        let all: Vec<Dimension> = set.iter().copied().collect();
        let hits = |rebuilt: &Rebuilt| rebuilt.points.intersection(target).next().is_some();
        if set.len() < 2 {
            // A race differs now and then: before a dimension is accused, it has to do it twice,
            // and nothing must have done it twice.
            let sure = hits(&self.round(set)?) && !hits(&self.round(&Set::new())?);
            let when: &[Dimension] = if sure { &all } else { &[] };
            differences.push(self.difference(when, rebuilt, &points, sometimes || !sure)?);
            return Ok(());
        }
        let (first, second) = all.split_at(all.len() / 2);
        let before = differences.len();
        for half in [first, second] {
            let half: Set = half.iter().copied().collect();
            let rebuilt = self.round(&half)?;
            if hits(&rebuilt) {
                self.narrow(&half, rebuilt, target, sometimes, differences)?;
            }
        }
        if differences.len() == before {
            // Neither half does it alone. Does the whole do it again?
            let sometimes = !hits(&self.round(set)?);
            let when: &[Dimension] = if sometimes { &[] } else { &all };
            differences.push(self.difference(when, rebuilt, &points, sometimes)?);
        }
        Ok(())
    }

    /// What differs although nothing is varied: looks for what makes it steady.
    ///
    /// The rounds that must differ from each other lie between those that must agree. So what
    /// changes slowly, such as the date, can't look as if it were made steady.
    fn unsteady(&mut self, control: Rebuilt) -> Result<Difference, FailureCause> {
        let points = control.points.clone();
        let candidates: Vec<Dimension> = [Dimension::Addresses, Dimension::Processors]
            .into_iter()
            .filter(|it| self.options.dimensions.contains(it))
            .filter(|it| self.tried.get(it).is_none_or(Result::is_ok))
            .collect();
        let single = |dimension: &Dimension| Set::from([*dimension]);
        let mut before = Vec::new();
        for dimension in &candidates {
            before.push(self.round(&single(dimension))?.trees);
        }
        let plain = [self.round(&Set::new())?.trees, self.round(&Set::new())?.trees];
        let agree = |one: &Trees, other: &Trees| {
            // A failure has no trees, and agrees with nothing.
            !one.is_empty() && !other.is_empty() && compare::points(one, other).is_disjoint(&points)
        };
        let recurs = agree(&plain[0], &plain[1]);
        let mut steady_under = Vec::new();
        for (dimension, before) in candidates.iter().zip(&before).rev() {
            let after = self.round(&single(dimension))?.trees;
            if !recurs && agree(before, &after) {
                steady_under.push(*dimension);
            }
        }
        let mut difference = self.difference(&[], control, &points, false)?;
        (difference.steady_under, difference.recurs) = (steady_under, recurs);
        difference.causes = self.causes(&difference);
        Ok(difference)
    }

    /// Describes what differs in a round, and keeps its outputs.
    fn difference(
        &self,
        when: &[Dimension],
        rebuilt: Rebuilt,
        points: &BTreeSet<Point>,
        sometimes: bool,
    ) -> Result<Difference, FailureCause> {
        let traces: Vec<(&str, Sign)> = rebuilt
            .report
            .varied
            .iter()
            .filter_map(|dimension| Some((dimension.trace()?, sign_of(*dimension)?)))
            .collect();
        let changes = compare::changes(&self.registered, &rebuilt.trees, points, &traces);
        let kept = self.keep(when, &rebuilt)?;
        let mut difference = Difference {
            when: when.to_vec(),
            sometimes,
            steady_under: Vec::new(),
            recurs: false,
            failed: rebuilt.failed,
            changes,
            causes: Vec::new(),
            kept: Some(kept),
            diffoscope: Vec::new(),
        };
        difference.causes = self.causes(&difference);
        Ok(difference)
    }

    fn causes(&self, difference: &Difference) -> Vec<cause::Cause> {
        if difference.failed.is_some() {
            return Vec::new();
        }
        cause::causes(&Seen {
            when: &difference.when,
            steady_under: &difference.steady_under,
            recurs: difference.recurs,
            changes: &difference.changes,
        })
    }

    /// Moves a round's outputs and log to where they are kept.
    fn keep(&self, when: &[Dimension], rebuilt: &Rebuilt) -> Result<PathBuf, FailureCause> {
        let names: Vec<&str> = when.iter().map(|dimension| dimension.name()).collect();
        let name = if names.is_empty() { "nothing-varied".to_owned() } else { names.join("+") };
        // A name that holds all dimensions is long, but no longer than a file system bears.
        let kept = (1..).map(|number| match number {
            1 => self.keep.join(&name),
            _ => self.keep.join(format!("{name}-{number}")),
        });
        let kept = kept.into_iter().find(|kept| !kept.exists()).expect("numbers have no end");
        let failed = |action: &str, path: &Path| {
            let action = format!("{action} {}", path.display());
            move |source| FailureCause::Io { action, source }
        };
        fs::create_dir_all(&kept).map_err(failed("create", &kept))?;
        let log = kept.join(round::LOG);
        fs::copy(rebuilt.scratch.path().join(round::LOG), &log).map_err(failed("write", &log))?;
        for (output, (tree, _)) in &rebuilt.trees {
            let place = kept.join(output.as_str());
            match fs::rename(tree, &place) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                    let rules = Rules { permissions: None, drop_shared: false };
                    ingest::copy(tree, &place, rules)?;
                }
                Err(error) => return Err(failed("keep", &place)(error)),
            }
        }
        Ok(kept)
    }
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

/// What it is a sign of that a dimension's text is in an output.
fn sign_of(dimension: Dimension) -> Option<Sign> {
    Some(match dimension {
        Dimension::Hostname => Sign::Hostname,
        Dimension::BuildPath => Sign::BuildPath,
        Dimension::User => Sign::User,
        Dimension::Locale => Sign::Locale,
        Dimension::TimeZone => Sign::TimeZone,
        Dimension::Environment => Sign::Environment,
        Dimension::Kernel => Sign::Kernel,
        Dimension::CpuModel => Sign::CpuModel,
        _ => return None,
    })
}
