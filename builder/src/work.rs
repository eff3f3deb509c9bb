//! One piece of work: making the outputs of one derivation whose inputs are all there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use srp_store::ingest::{self, Rules};
use srp_store::manifest::Manifest;
use srp_store::{
    Action, Claim, Derivation, Fetch, Format, History, InputKey, Object, ObjectId, OpenTree,
    OutputName, Realisation, Reference, ReferenceKind, Registration, ResolvedHash, Role, Route,
    Stage, StaticHash, Store,
};

use crate::cancel::CancelToken;
use crate::event::{Activity, Event, Observer, Task};
use crate::fetch::{FetchRequest, Fetcher, Place, PlaceFailure, Progress};
use crate::jobserver::Broker;
use crate::request::{Failure, FailureCause, Options, RunnerSpec};
use crate::runner::Machine;
use crate::sandbox::Launcher;
use crate::substitute::{Substituters, TransferError};
use crate::unpack::{self, UnpackSpec};

/// The object of each output.
pub(crate) type Chosen = BTreeMap<OutputName, ObjectId>;

/// A derivation with everything that is needed to work on it.
pub(crate) struct Work<'a> {
    pub(crate) store: &'a Store,
    pub(crate) launcher: &'a Launcher,
    pub(crate) fetcher: &'a Fetcher,
    pub(crate) substituters: Option<&'a Substituters>,
    pub(crate) broker: &'a Broker,
    pub(crate) machine: &'a Machine,
    pub(crate) options: &'a Options,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: &'a CancelToken,
    pub(crate) derivation: &'a Derivation,
    pub(crate) hash: StaticHash,
    pub(crate) resolved: ResolvedHash,
    /// The object chosen for each input.
    pub(crate) inputs: BTreeMap<InputKey, ObjectId>,
    /// The emulator, where one is needed and known, and its object.
    pub(crate) runner: Option<(&'a RunnerSpec, ObjectId)>,
    /// Whether it is rebuilt for an audit: nothing is registered then.
    pub(crate) is_audit: bool,
}

/// How the outputs came about.
pub(crate) enum Came {
    /// They were made here; that is worth remembering for the next time.
    Made(History),
    /// They came from a cache, after all.
    Substituted,
}

/// Why there are no outputs.
pub(crate) enum Ended {
    /// It failed.
    Failed(Box<Failure>),
    /// An input was damaged: everything is to be planned anew.
    Damaged,
}

/// What work came to: what is to be registered, and how it was made.
pub(crate) struct Made {
    pub(crate) registration: Registration,
    pub(crate) outputs: Chosen,
    pub(crate) route: Route,
}

impl<'a> Work<'a> {
    /// How events name it.
    pub(crate) fn task(&self) -> Task<'a> {
        Task { hash: self.hash, name: self.derivation.name.as_str() }
    }

    /// Does the work and registers what came of it. `free` is called when a builder has ended and
    /// only the disk is still busy.
    pub(crate) fn run(&self, free: &dyn Fn()) -> Result<(Chosen, Came), Ended> {
        self.try_run(free).map_err(|cause| match self.give_up_damaged(&cause) {
            Ok(true) => Ended::Damaged,
            Ok(false) => Ended::Failed(Box::new(self.failure(cause))),
            Err(error) => Ended::Failed(Box::new(self.failure(error.into()))),
        })
    }

    fn try_run(&self, free: &dyn Fn()) -> Result<(Chosen, Came), FailureCause> {
        let started = Instant::now();
        if matches!(self.derivation.action, Action::Build(_)) {
            match self.substitute()? {
                Some(outputs) => return Ok((outputs, Came::Substituted)),
                None if self.options.no_build => return Err(FailureCause::NoBuild),
                None => {}
            }
        }
        let register = |(mut made, scratch): (Made, Option<srp_store::Scratch>)| {
            made.route.machine = self.machine.arch().to_owned();
            made.route.milliseconds = started.elapsed().as_millis() as u64;
            let Made { mut registration, outputs, route } = made;
            let history = History {
                milliseconds: route.milliseconds,
                peak_memory_bytes: route.peak_memory_bytes,
            };
            let realisation = Realisation { outputs: outputs.clone(), route };
            registration.realisation(self.store, &self.resolved, &realisation);
            let claim = Claim {
                resolved: self.resolved,
                outputs: outputs.clone(),
                inputs: self.inputs.clone(),
            };
            registration.claim(self.store, &self.hash, &claim);
            self.store.commit(registration)?;
            drop(scratch);
            Ok((outputs, Came::Made(history)))
        };
        self.make(free).and_then(register)
    }

    /// Does the work, whatever caches have. What came of it lies in the scratch directory.
    pub(crate) fn make(
        &self,
        free: &dyn Fn(),
    ) -> Result<(Made, Option<srp_store::Scratch>), FailureCause> {
        match &self.derivation.action {
            Action::Fetch(fetch) => self.fetch(fetch, free),
            Action::Stage(stage) => self.stage(stage),
            Action::Build(build) => self.build(build, free),
        }
    }

    /// Now that the inputs are known, a cache may have it by its resolved hash.
    fn substitute(&self) -> Result<Option<Chosen>, FailureCause> {
        let Some(substituters) = self.substituters else { return Ok(None) };
        let (hash, inputs) = (self.hash, &self.inputs);
        let offer =
            substituters.by_resolved(self.store, hash, self.derivation, self.resolved, inputs)?;
        let Some(offer) = offer else { return Ok(None) };
        let (task, total) = (self.task(), Some(offer.bytes()));
        let progress = |bytes| self.observer.event(Event::Fetched { task, bytes, total });
        self.observer.event(Event::Started { task, activity: Activity::Substituting });
        match substituters.transfer(self.store, &offer, &progress) {
            Ok(()) => Ok(Some(offer.claim.outputs)),
            Err(TransferError::Store(error)) => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "it is built instead");
                self.observer.event(Event::Started { task, activity: Activity::Building });
                Ok(None)
            }
        }
    }

    /// The objects of the inputs in one role, in composition order.
    pub(crate) fn role(&self, role: Role) -> Vec<ObjectId> {
        let inputs = self.derivation.inputs().iter().filter(|input| input.role == role);
        inputs.map(|input| self.inputs[&input.key]).collect()
    }

    fn fetch(
        &self,
        fetch: &Fetch,
        free: &dyn Fn(),
    ) -> Result<(Made, Option<srp_store::Scratch>), FailureCause> {
        let request = FetchRequest {
            name: self.derivation.name.to_string(),
            sha256: crate::fetch::Sha256::from_bytes(*fetch.sha256.as_bytes()),
            size_bytes: self.derivation.advice.size_bytes,
            urls: self.derivation.advice.urls.clone(),
        };
        let progress = Transfer {
            observer: self.observer,
            task: self.task(),
            sum: Mutex::default(),
            failures: Mutex::default(),
        };
        let sources = self.store.directory("sources");
        let fetched = self.fetcher.fetch(&request, &sources, &progress, self.cancel)?;
        free();
        // Had no place had it, the error would say so of each.
        for (reachable, failure) in progress.failures.into_inner().expect("no holder panics") {
            let told = format!("{} came from elsewhere, because {failure}", self.derivation.name);
            match reachable {
                true => tracing::warn!("{told}"),
                false => tracing::info!("{told}"),
            }
        }

        let scratch = self.store.scratch()?;
        let tree = scratch.path().join("tree");
        let create = |error| FailureCause::Io {
            action: format!("create {}", tree.display()),
            source: error,
        };
        std::fs::create_dir(&tree).map_err(create)?;
        let format = match fetch.format {
            Format::File => unpack::Format::File,
            Format::Tar => unpack::Format::Tar,
            Format::Zip => unpack::Format::Zip,
            Format::Deb => unpack::Format::Deb,
        };
        let spec = UnpackSpec {
            strip: u32::try_from(fetch.strip).unwrap_or(u32::MAX),
            only: fetch.only.clone(),
            exclude: fetch.exclude.clone(),
            rename: fetch.rename.clone(),
            file_name: Some(self.derivation.name.to_string()),
            max_bytes: None,
        };
        unpack::unpack(&fetched.path, format, &spec, &tree, self.cancel)?;
        let rules = Rules { drop_shared: fetch.format == Format::Deb, ..self.rules() };
        let listing = Arc::new(ingest::take(&OpenTree::open(&tree)?, rules)?);
        let object = Object {
            name: self.derivation.name.clone(),
            tree: listing.digest(),
            references: [].into(),
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.object(self.store, &object, listing, tree);
        let outputs = [(OutputName::out(), object.id())].into();
        Ok((Made { registration, outputs, route: Route::default() }, Some(scratch)))
    }

    fn stage(&self, stage: &Stage) -> Result<(Made, Option<srp_store::Scratch>), FailureCause> {
        let closure = |role| self.store.closure_ids(&self.role(role), ReferenceKind::RUN);
        let (tools, libs) = (closure(Role::Tools)?, closure(Role::Libs)?);
        let root = self.store.compose_roles(tools, libs, stage.build != stage.host)?;
        let components = stage
            .inputs
            .iter()
            .map(|input| {
                let info = self.store.info(&self.inputs[&input.key])?;
                Ok((input.role, info.object.path_name()))
            })
            .collect::<Result<Vec<_>, FailureCause>>()?;
        let manifest = Manifest {
            name: self.derivation.name.clone(),
            build: stage.build.clone(),
            host: stage.host.clone(),
            root: root.digest(),
            components,
        };
        let scratch = self.store.scratch()?;
        let tree = scratch.path().join("tree");
        let file = tree.join(Manifest::path(&manifest.name));
        let directory = file.parent().expect("it is below srp/stage");
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&file, manifest.encode()))
            .map_err(|source| FailureCause::Io {
                action: format!("write {}", file.display()),
                source,
            })?;
        let listing = Arc::new(ingest::take(&OpenTree::open(&tree)?, Rules::default())?);
        let references = manifest
            .components
            .iter()
            .map(|(_, object)| Reference { kind: ReferenceKind::Run, object: object.id });
        let object = Object {
            name: manifest.name.clone(),
            tree: listing.digest(),
            references: references.collect(),
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.object(self.store, &object, listing, tree);
        let outputs = [(OutputName::out(), object.id())].into();
        Ok((Made { registration, outputs, route: Route::default() }, Some(scratch)))
    }

    fn failure(&self, cause: FailureCause) -> Failure {
        const TAIL_LINES: usize = 25;
        let log = self.store.log_path(&self.resolved);
        let ran = !matches!(self.derivation.action, Action::Fetch(_) | Action::Stage(_));
        let log = (ran && log.exists()).then_some(log);
        let log_tail =
            log.as_deref().map(|log| crate::log::tail(log, TAIL_LINES)).unwrap_or_default();
        Failure {
            derivation: self.hash,
            name: self.derivation.name.to_string(),
            cause,
            log_tail,
            log,
            resolved: Some(self.resolved),
        }
    }
}

/// Turns what a fetch says into events.
struct Transfer<'a> {
    observer: &'a dyn Observer,
    task: Task<'a>,
    /// So far, and in all.
    sum: Mutex<(u64, Option<u64>)>,
    /// The places that didn't have it, and why.
    /// Whether somebody answered, and what there is to say.
    failures: Mutex<Vec<(bool, String)>>,
}

impl Progress for Transfer<'_> {
    fn began(&self, _: &Place, resumed_at: u64, total: Option<u64>) {
        *self.sum.lock().expect("no holder panics") = (resumed_at, total);
    }

    fn failed(&self, failure: &PlaceFailure) {
        let told = (!failure.reason.is_unreachable(), failure.to_string());
        self.failures.lock().expect("no holder panics").push(told);
    }

    fn received(&self, bytes: u64) {
        let (bytes, total) = {
            let mut sum = self.sum.lock().expect("no holder panics");
            sum.0 += bytes;
            *sum
        };
        self.observer.event(Event::Fetched { task: self.task, bytes, total });
    }
}
