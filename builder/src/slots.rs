//! Slots: how much runs at once, of each kind of work, and whether one more fits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use petgraph::graph::NodeIndex;

use crate::request::Options;

/// So much runs at once at most, with what is only being registered: enough to fill one group
/// commit; more would only wait for the disk.
const REGISTERING: usize = 64;

/// What work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Cores and memory.
    Build,
    /// The servers of sources.
    Fetch,
    /// Caches.
    Substitution,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Substitution, Kind::Fetch, Kind::Build];
}

/// What runs.
pub(crate) struct Slots<'a> {
    options: &'a Options,
    running: HashMap<NodeIndex, Running>,
}

/// A piece of work that a thread does.
struct Running {
    kind: Kind,
    /// Whether it still takes a slot: not while its outputs are written to disk.
    slot: bool,
    memory_bytes: u64,
    started: Instant,
}

impl Slots<'_> {
    pub(crate) fn new(options: &Options) -> Slots<'_> {
        Slots { options, running: HashMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether one more piece of work may run now.
    pub(crate) fn fits(&self, kind: Kind, memory_bytes: u64) -> bool {
        if self.running.len() >= REGISTERING {
            return false;
        }
        let with_slot = || self.running.values().filter(|it| it.slot);
        let slots = with_slot().filter(|it| it.kind == kind).count();
        match kind {
            Kind::Fetch => slots < self.options.fetches,
            Kind::Substitution => slots < self.options.substitutions,
            Kind::Build => {
                let expected: u64 = with_slot().map(|it| it.memory_bytes).sum();
                let limit = self.options.memory_bytes;
                let memory = limit.is_none_or(|limit| expected + memory_bytes <= limit);
                // What is larger than the machine runs alone.
                slots < self.options.jobs && (memory || slots == 0)
            }
        }
    }

    /// Work begins.
    pub(crate) fn take(&mut self, node: NodeIndex, kind: Kind, memory_bytes: u64) {
        let running = Running { kind, slot: true, memory_bytes, started: Instant::now() };
        self.running.insert(node, running);
    }

    /// Work needs its slot no longer, but hasn't ended.
    pub(crate) fn free(&mut self, node: NodeIndex) {
        if let Some(running) = self.running.get_mut(&node) {
            running.slot = false;
        }
    }

    /// Work has ended; how long it took.
    pub(crate) fn end(&mut self, node: NodeIndex) -> Duration {
        self.running.remove(&node).expect("it was begun").started.elapsed()
    }
}
