//! The scheduler: works a plan off, as much of it at once as fits.
//!
//! One thread decides; each piece of work has a thread of its own. What has the longest way to
//! the end above it goes first. Nothing that happens here changes a result, only when it is there.

use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use srp_store::{
    Action, Claim, Derivation, History, InputKey, Lock, ObjectId, OutputName, Registration,
    ResolvedHash, StaticHash,
};

use crate::cancel::CancelToken;
use crate::estimates::Estimates;
use crate::event::{Activity, Event, Observer, Task};
use crate::plan::{Plan, adopted};
use crate::realise::Builder;
use crate::request::{Failure, FailureCause, RealiseError, Request};
use crate::slots::{Kind, Reservation, Slots};
use crate::substitute::TransferError;
use crate::work::{Came, Chosen, Ended, Work};

/// While another process builds something, it is asked for so often.
const POLL: Duration = Duration::from_millis(100);

/// One run of the scheduler.
pub(crate) struct Run<'a> {
    builder: &'a Builder<'a>,
    request: &'a Request,
    plan: &'a Plan,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
    estimates: Estimates,
    chosen: BTreeMap<StaticHash, BTreeMap<OutputName, ObjectId>>,
    /// How many inputs of a derivation are still missing.
    missing: HashMap<NodeIndex, usize>,
    remaining: HashMap<NodeIndex, u64>,
    /// What could start, by its kind: they wait for different slots, and what waits for one needn't
    /// be looked at when another gets free.
    ready: [BinaryHeap<(u64, NodeIndex)>; 3],
    /// Ready, but another process is at it.
    elsewhere: Vec<NodeIndex>,
    /// All that ever was: it is told of once.
    waited_for: HashSet<NodeIndex>,
    running: Slots<'a>,
    failures: Vec<Failure>,
    skipped: HashSet<NodeIndex>,
    /// Whether something that caches promised did not come, or an input was damaged.
    disappointed: bool,
    /// Claims of what was reused: committed together.
    claims: Registration,
    /// Whether there may be no more threads for now.
    crowded: Option<std::io::Error>,
}

enum Message {
    /// The builder has ended; what it wrote is being registered.
    SlotFree(NodeIndex),
    Done(NodeIndex, Result<(Chosen, Came), Box<Failure>>),
    /// No cache could bring it, whatever was promised.
    Disappointed(NodeIndex),
    /// An input was damaged, and is no longer here.
    Damaged(NodeIndex),
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        builder: &'a Builder<'a>,
        request: &'a Request,
        plan: &'a Plan,
        observer: &'a dyn Observer,
        cancel: &'a CancelToken,
    ) -> Run<'a> {
        let estimates = Estimates::read(builder.store, request, plan);
        let remaining = estimates.remaining(request, plan);
        let missing: HashMap<NodeIndex, usize> = plan
            .graph
            .node_indices()
            .map(|node| (node, plan.graph.neighbors_directed(node, Direction::Incoming).count()))
            .collect();
        let first: Vec<NodeIndex> =
            missing.iter().filter(|(_, missing)| **missing == 0).map(|(node, _)| *node).collect();
        let mut run = Run {
            builder,
            request,
            plan,
            observer,
            cancel,
            estimates,
            chosen: plan.chosen.clone(),
            missing,
            remaining,
            ready: Default::default(),
            elsewhere: Vec::new(),
            waited_for: HashSet::new(),
            running: Slots::new(&builder.options),
            failures: Vec::new(),
            skipped: HashSet::new(),
            disappointed: false,
            claims: Registration::default(),
            crowded: None,
        };
        first.into_iter().for_each(|node| run.make_ready(node));
        run
    }

    /// What came out; none if something is to be planned anew.
    pub(crate) fn run(mut self) -> Result<Option<BTreeMap<StaticHash, Chosen>>, RealiseError> {
        let (sender, receiver) = mpsc::channel();
        let outcome = std::thread::scope(|scope| {
            // Should this thread panic, the scope waits for all others: that mustn't take hours.
            let _guard = CancelledByPanic(self.cancel);
            let mut fatal = None;
            let mut asked = Instant::now();
            loop {
                if fatal.is_none() && !self.stopping() {
                    self.crowded = None;
                    fatal = self.start(scope, &sender).err();
                    // What runs will end and make room; where nothing runs, there is none.
                    if self.running.is_empty() {
                        fatal = fatal
                            .or(self.crowded.take().map(|source| RealiseError::Threads { source }));
                    }
                }
                if self.running.is_empty()
                    && (fatal.is_some()
                        || self.stopping()
                        || (self.ready.iter().all(BinaryHeap::is_empty)
                            && self.elsewhere.is_empty()))
                {
                    return fatal.map_or(Ok(()), Err);
                }
                match receiver.recv_timeout(POLL) {
                    Ok(message) => self.receive(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is held here"),
                }
                // By the clock: own work that ends all the time must not keep it from being asked.
                if asked.elapsed() >= POLL {
                    asked = Instant::now();
                    let waited = std::mem::take(&mut self.elsewhere);
                    waited.into_iter().for_each(|node| self.make_ready(node));
                }
            }
        });
        // Whatever happened: what was found to be the same needn't be found again.
        let claims = std::mem::take(&mut self.claims);
        if !claims.is_empty() {
            self.builder.store.commit(claims)?;
        }
        self.estimates.flush();
        outcome?;
        if !self.failures.is_empty() {
            return Err(RealiseError::Failed {
                failures: self.failures,
                skipped: self.skipped.len(),
            });
        }
        if self.cancel.is_cancelled() {
            return Err(RealiseError::Cancelled);
        }
        Ok((!self.disappointed).then_some(self.chosen))
    }

    fn derivation(&self, node: NodeIndex) -> (StaticHash, &'a Derivation) {
        let hash = self.plan.graph[node];
        (hash, &self.request.derivations[&hash])
    }

    /// Whether nothing new is to be started.
    fn stopping(&self) -> bool {
        self.cancel.is_cancelled()
            || (!self.failures.is_empty() && !self.builder.options.keep_going)
    }

    /// Starts whatever is ready and fits.
    fn start<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &mpsc::Sender<Message>,
    ) -> Result<(), RealiseError>
    where
        'a: 'scope,
    {
        for kind in Kind::ALL {
            self.start_kind(kind, scope, sender)?;
        }
        Ok(())
    }

    fn start_kind<'scope>(
        &mut self,
        kind: Kind,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &mpsc::Sender<Message>,
    ) -> Result<(), RealiseError>
    where
        'a: 'scope,
    {
        let mut waiting = Vec::new();
        // Memory that the first that doesn't fit will need: what comes after it may only have
        // what it leaves, or small builds would keep a large one waiting for ever.
        let mut reserved: Option<Reservation> = None;
        while self.crowded.is_none()
            && self.running.fits(kind, 0)
            && let Some((priority, node)) = self.ready[kind as usize].pop()
        {
            let (hash, derivation) = self.derivation(node);
            if kind == Kind::Substitution {
                self.substitute(scope, sender, node)?;
                continue;
            }
            let memory_bytes = self.estimates.memory_bytes(&hash, derivation);
            let duration = self.estimates.duration(&hash, derivation);
            if !self.running.fits(kind, memory_bytes) {
                reserved.get_or_insert_with(|| self.running.reserve(memory_bytes));
                waiting.push((priority, node));
                continue;
            }
            if reserved.as_mut().is_some_and(|it| !it.admits(memory_bytes, duration)) {
                waiting.push((priority, node));
                continue;
            }
            let (resolved, inputs) = self.resolve(derivation);
            if self.reuse(node, derivation, resolved, &inputs)? {
                continue;
            }
            let task = Task { hash, name: derivation.name.as_str() };
            let Some(lock) = self.builder.store.lock(&resolved)? else {
                if self.waited_for.insert(node) {
                    self.observer.event(Event::Started { task, activity: Activity::Waiting });
                }
                self.elsewhere.push(node);
                continue;
            };
            // Whoever held the lock may just have finished.
            if self.reuse(node, derivation, resolved, &inputs)? {
                continue;
            }
            self.spawn(scope, sender, node, resolved, inputs, lock);
        }
        self.ready[kind as usize].extend(waiting);
        Ok(())
    }

    /// Starts to take an offer, unless somebody else has taken it or is at it.
    fn substitute<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &mpsc::Sender<Message>,
        node: NodeIndex,
    ) -> Result<(), RealiseError>
    where
        'a: 'scope,
    {
        let (store, observer) = (self.builder.store, self.observer);
        let (hash, derivation) = self.derivation(node);
        let task = Task { hash, name: derivation.name.as_str() };
        let (Some(offer), Some(substituters)) =
            (self.plan.offers.get(&hash), self.builder.substituters)
        else {
            unreachable!("only what is offered is substituted");
        };
        let Some(lock) = store.lock(&offer.claim.resolved)? else {
            if self.waited_for.insert(node) {
                observer.event(Event::Started { task, activity: Activity::Waiting });
            }
            self.elsewhere.push(node);
            return Ok(());
        };
        if let Some(claim) = adopted(store, &hash)? {
            if let Some(object) = self.object_name(&claim.outputs) {
                observer.event(Event::Reused { task, object: &object });
            }
            self.choose(node, claim.outputs);
            return Ok(());
        }
        let failure = move |cause| {
            Box::new(Failure {
                derivation: hash,
                name: derivation.name.to_string(),
                cause,
                log_tail: Vec::new(),
                log: None,
                resolved: Some(offer.claim.resolved),
            })
        };
        let work = move || {
            observer.event(Event::Started { task, activity: Activity::Substituting });
            let total = Some(offer.bytes());
            let progress = |bytes| observer.event(Event::Fetched { task, bytes, total });
            let result = substituters.transfer(store, offer, &progress);
            drop(lock);
            match result {
                Ok(()) => Message::Done(node, Ok((offer.claim.outputs.clone(), Came::Substituted))),
                Err(TransferError::Store(error)) => {
                    let failure = failure(error.into());
                    let reason = failure.cause.to_string();
                    observer.event(Event::Failed { task, reason: &reason });
                    Message::Done(node, Err(failure))
                }
                Err(error) => {
                    tracing::debug!(%error, "it is planned anew");
                    Message::Disappointed(node)
                }
            }
        };
        let panicked = move |cause| Message::Done(node, Err(failure(cause)));
        if self.work_in_a_thread(scope, sender, node, work, panicked) {
            self.running.take(node, Kind::Substitution, 0, Duration::ZERO);
        }
        Ok(())
    }

    /// Starts a thread for a piece of work, which ends with a message whatever happens in it: one
    /// that panics must not be waited for. Where there can't be a thread, the work is ready again.
    fn work_in_a_thread<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &mpsc::Sender<Message>,
        node: NodeIndex,
        work: impl FnOnce() -> Message + Send + 'scope,
        panicked: impl FnOnce(FailureCause) -> Message + Send + 'scope,
    ) -> bool {
        let sender = sender.clone();
        let started = std::thread::Builder::new().spawn_scoped(scope, move || {
            let message = match std::panic::catch_unwind(AssertUnwindSafe(work)) {
                Ok(message) => message,
                Err(payload) => panicked(FailureCause::of_panic(&*payload)),
            };
            // The receiver outlives every sender.
            drop(sender.send(message));
        });
        if let Err(error) = started {
            tracing::debug!(%error, "no thread: it is tried again when another has ended");
            self.crowded = Some(error);
            self.make_ready(node);
            return false;
        }
        true
    }

    fn spawn<'scope>(
        &mut self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        sender: &mpsc::Sender<Message>,
        node: NodeIndex,
        resolved: ResolvedHash,
        inputs: BTreeMap<InputKey, ObjectId>,
        lock: Lock,
    ) where
        'a: 'scope,
    {
        let (hash, derivation) = self.derivation(node);
        let runner = self.builder.runner(self.request, derivation).and_then(|spec| {
            let outputs = self.chosen.get(&spec.key.derivation)?;
            Some((spec, *outputs.get(&spec.key.output)?))
        });
        let work = Work {
            store: self.builder.store,
            launcher: self.builder.launcher,
            fetcher: self.builder.fetcher,
            substituters: self.builder.substituters,
            broker: self.builder.broker,
            machine: &self.builder.machine,
            options: &self.builder.options,
            observer: self.observer,
            cancel: self.cancel,
            derivation,
            hash,
            resolved,
            inputs,
            runner,
            is_audit: false,
        };
        let memory_bytes = self.estimates.memory_bytes(&hash, derivation);
        let duration = self.estimates.duration(&hash, derivation);
        let free_slot = sender.clone();
        let panicked = move |cause| {
            let failure = Failure {
                derivation: hash,
                name: derivation.name.to_string(),
                cause,
                log_tail: Vec::new(),
                log: None,
                resolved: Some(resolved),
            };
            Message::Done(node, Err(Box::new(failure)))
        };
        let work = move || {
            let task = work.task();
            announce(&work);
            let free = || drop(free_slot.send(Message::SlotFree(node)));
            let result = work.run(&free);
            drop(lock);
            match result {
                Ok(made) => Message::Done(node, Ok(made)),
                Err(Ended::Damaged) => Message::Damaged(node),
                Err(Ended::Failed(failure)) => {
                    let reason = failure.cause.to_string();
                    work.observer.event(Event::Failed { task, reason: &reason });
                    Message::Done(node, Err(failure))
                }
            }
        };
        if self.work_in_a_thread(scope, sender, node, work, panicked) {
            self.running.take(node, self.kind(node), memory_bytes, duration);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::SlotFree(node) => self.running.free(node),
            Message::Disappointed(node) => {
                self.running.end(node);
                let hash = self.plan.graph[node];
                if let Some(substituters) = self.builder.substituters {
                    substituters.refuse(hash);
                }
                self.disappointed = true;
                self.skip_above(node);
            }
            Message::Damaged(node) => {
                self.running.end(node);
                self.disappointed = true;
                self.skip_above(node);
            }
            Message::Done(node, result) => {
                let elapsed = self.running.end(node);
                match result {
                    Ok((outputs, came)) => {
                        let derivation = self.derivation(node).1;
                        let activity = match came {
                            Came::Made(history) => {
                                self.estimates.remember(derivation, history);
                                activity(derivation)
                            }
                            Came::Substituted => Activity::Substituting,
                        };
                        self.report(node, activity, &outputs, elapsed);
                        self.choose(node, outputs);
                    }
                    Err(_) if self.cancel.is_cancelled() => {}
                    Err(failure) => {
                        if let Some(peak_memory_bytes) = failure.cause.peak_memory_bytes() {
                            let (hash, derivation) = self.derivation(node);
                            let milliseconds = elapsed.as_millis() as u64;
                            let history = History { milliseconds, peak_memory_bytes };
                            self.estimates.remember_failed(&hash, derivation, history);
                        }
                        self.failures.push(*failure);
                        self.skip_above(node);
                    }
                }
            }
        }
    }

    fn report(&self, node: NodeIndex, activity: Activity, outputs: &Chosen, elapsed: Duration) {
        let (hash, derivation) = self.derivation(node);
        let task = Task { hash, name: derivation.name.as_str() };
        if let Some(object) = self.object_name(outputs) {
            self.observer.event(Event::Finished { task, activity, object: &object, elapsed });
        }
    }

    fn object_name(&self, outputs: &Chosen) -> Option<srp_store::ObjectName> {
        let id = outputs.get(&OutputName::out()).or_else(|| outputs.values().next())?;
        Some(self.builder.store.info(id).ok()?.object.path_name())
    }

    /// The outputs of a derivation are there: whoever waited for the last input is ready.
    fn choose(&mut self, node: NodeIndex, outputs: Chosen) {
        self.chosen.insert(self.plan.graph[node], outputs);
        for user in self.plan.graph.neighbors_directed(node, Direction::Outgoing) {
            let missing = self.missing.get_mut(&user).expect("every node was counted");
            *missing -= 1;
            if *missing == 0 && !self.skipped.contains(&user) {
                self.make_ready(user);
            }
        }
    }

    fn make_ready(&mut self, node: NodeIndex) {
        let kind = self.kind(node);
        self.ready[kind as usize].push((self.remaining[&node], node));
    }

    fn kind(&self, node: NodeIndex) -> Kind {
        let (hash, derivation) = self.derivation(node);
        match derivation.action {
            _ if self.plan.offers.contains_key(&hash) => Kind::Substitution,
            Action::Fetch(_) => Kind::Fetch,
            Action::Build(_) | Action::Stage(_) => Kind::Build,
        }
    }

    fn skip_above(&mut self, node: NodeIndex) {
        let mut pending: Vec<NodeIndex> =
            self.plan.graph.neighbors_directed(node, Direction::Outgoing).collect();
        while let Some(user) = pending.pop() {
            if self.skipped.insert(user) {
                pending.extend(self.plan.graph.neighbors_directed(user, Direction::Outgoing));
            }
        }
    }

    /// The resolved hash of a derivation whose inputs are all there, and the inputs.
    fn resolve(&self, derivation: &Derivation) -> (ResolvedHash, BTreeMap<InputKey, ObjectId>) {
        let objects: Vec<ObjectId> = derivation
            .inputs()
            .iter()
            .map(|input| self.chosen[&input.key.derivation][&input.key.output])
            .collect();
        let resolved = derivation.resolved_hash(&objects);
        let keys = derivation.inputs().iter().map(|input| input.key.clone());
        (resolved, keys.zip(objects).collect())
    }

    /// Adopts what the store has for these very inputs, if it has.
    fn reuse(
        &mut self,
        node: NodeIndex,
        derivation: &Derivation,
        resolved: ResolvedHash,
        inputs: &BTreeMap<InputKey, ObjectId>,
    ) -> Result<bool, RealiseError> {
        let store = self.builder.store;
        let Some(realisation) = store.realisation(&resolved)? else { return Ok(false) };
        let objects: Vec<ObjectId> = realisation.outputs.values().copied().collect();
        if !store.contains_closure(&objects)? {
            return Ok(false);
        }
        let hash = self.plan.graph[node];
        let outputs = realisation.outputs;
        let claim = Claim { resolved, outputs: outputs.clone(), inputs: inputs.clone() };
        self.claims.claim(store, &hash, &claim);
        if let Some(object) = self.object_name(&outputs) {
            let task = Task { hash, name: derivation.name.as_str() };
            self.observer.event(Event::Reused { task, object: &object });
        }
        self.choose(node, outputs);
        Ok(true)
    }
}

/// Cancels everything if its thread panics.
struct CancelledByPanic<'a>(&'a CancelToken);

impl Drop for CancelledByPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

fn announce(work: &Work<'_>) {
    let activity = activity(work.derivation);
    work.observer.event(Event::Started { task: work.task(), activity });
}

fn activity(derivation: &Derivation) -> Activity {
    match derivation.action {
        Action::Fetch(_) => Activity::Fetching,
        Action::Build(_) => Activity::Building,
        Action::Stage(_) => Activity::Composing,
    }
}

#[cfg(test)]
mod tests {
    use srp_store::{Access, Advice, Stage, Store};

    use super::*;
    use crate::fetch::{Fetcher, FetcherConfig};
    use crate::jobserver::Broker;
    use crate::request::Options;
    use crate::runner::Machine;
    use crate::sandbox::Launcher;

    /// Panics when work begins, and when its failure is told.
    struct Panicking;

    impl Observer for Panicking {
        fn event(&self, event: Event<'_>) {
            if matches!(event, Event::Started { .. } | Event::Failed { .. }) {
                panic!("nobody wants to see this");
            }
        }
    }

    #[test]
    fn work_that_panics_fails_and_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let triple: srp_store::Triple = "x86_64-linux-musl".parse().expect("a triple");
        let stage = Stage { build: triple.clone(), host: triple, inputs: Vec::new() };
        let derivation = Derivation {
            name: "stage".parse().expect("a name"),
            version: String::new(),
            action: Action::Stage(stage),
            advice: Advice::default(),
        };
        let hash = derivation.static_hash();
        let request = Request {
            goals: vec![InputKey { derivation: hash, output: OutputName::out() }],
            derivations: [(hash, derivation)].into(),
            ..Request::default()
        };
        let (launcher, fetcher) = (Launcher::new("/proc/self/exe"), FetcherConfig::default());
        let (fetcher, broker) = (Fetcher::new(fetcher), Broker::new(1).expect("a broker"));
        let options = Options {
            jobs: 1,
            cores: 1,
            fetches: 1,
            substitutions: 1,
            no_build: false,
            keep_going: true,
            timeout_seconds: None,
            silence_seconds: None,
            log_bytes: None,
            memory_bytes: None,
            disk_bytes: None,
            output_limits: Default::default(),
        };
        let builder = Builder {
            store: &store,
            launcher: &launcher,
            fetcher: &fetcher,
            substituters: None,
            broker: &broker,
            machine: Machine::here(),
            options,
        };
        let cancel = CancelToken::new().expect("a token");
        let error = builder.realise(&request, &Panicking, &cancel).expect_err("it panics");
        let RealiseError::Failed { failures, .. } = error else { panic!("{error}") };
        let [failure] = failures.as_slice() else { panic!("{failures:?}") };
        assert!(
            matches!(&failure.cause, FailureCause::Panicked { message } if message == "nobody wants to see this"),
            "{failure:?}"
        );
    }
}
