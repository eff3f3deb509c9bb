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
    /// How long it is expected to take.
    duration: Duration,
}

/// Memory that is kept for a piece of work that doesn't fit yet.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// How long what runs is expected to take until it fits.
    wait: Duration,
    /// What will be left when it runs.
    spare_bytes: u64,
}

impl Reservation {
    /// Whether a smaller piece of work may begin without making the one wait that this is for: it
    /// has ended by then, or there is room for both.
    pub(crate) fn admits(&mut self, memory_bytes: u64, duration: Duration) -> bool {
        if duration <= self.wait {
            return true;
        }
        match self.spare_bytes.checked_sub(memory_bytes) {
            Some(spare) => {
                self.spare_bytes = spare;
                true
            }
            None => false,
        }
    }
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
    pub(crate) fn take(
        &mut self,
        node: NodeIndex,
        kind: Kind,
        memory_bytes: u64,
        duration: Duration,
    ) {
        let started = Instant::now();
        self.running.insert(node, Running { kind, slot: true, memory_bytes, started, duration });
    }

    /// Reserves memory for a build that doesn't fit now. What takes longer than was expected of it
    /// is expected to end at any moment, so that a wrong expectation keeps nothing waiting for ever.
    pub(crate) fn reserve(&self, memory_bytes: u64) -> Reservation {
        let limit = self.options.memory_bytes.unwrap_or(u64::MAX);
        let mut ends: Vec<(Duration, u64)> = self
            .running
            .values()
            .filter(|it| it.slot)
            .map(|it| (it.duration.saturating_sub(it.started.elapsed()), it.memory_bytes))
            .collect();
        ends.sort_unstable();
        let mut held: u64 = ends.iter().map(|(_, held)| held).sum();
        let mut wait = Duration::ZERO;
        for (end, freed) in ends {
            if held.saturating_add(memory_bytes) <= limit {
                break;
            }
            wait = end;
            held -= freed;
        }
        let spare_bytes = limit.saturating_sub(held.saturating_add(memory_bytes));
        Reservation { wait, spare_bytes }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn options(memory_bytes: u64) -> Options {
        Options {
            jobs: 8,
            cores: 8,
            fetches: 1,
            substitutions: 1,
            no_build: false,
            keep_going: false,
            timeout_seconds: None,
            silence_seconds: None,
            log_bytes: None,
            memory_bytes: Some(memory_bytes),
            disk_bytes: None,
            output_limits: Default::default(),
        }
    }

    #[test]
    fn small_builds_take_nothing_from_a_large_one_that_waits() {
        let options = options(100);
        let mut slots = Slots::new(&options);
        slots.take(NodeIndex::new(0), Kind::Build, 40, MINUTE);
        slots.take(NodeIndex::new(1), Kind::Build, 20, 10 * MINUTE);
        assert!(!slots.fits(Kind::Build, 70));
        let mut reserved = slots.reserve(70);
        // What has ended when the first does, and what is small enough for all three.
        assert!(reserved.admits(40, MINUTE / 2));
        assert!(!reserved.admits(40, 2 * MINUTE));
        assert!(reserved.admits(10, 2 * MINUTE) && !reserved.admits(1, 2 * MINUTE));
    }

    #[test]
    fn what_takes_longer_than_expected_keeps_nobody_waiting() {
        let options = options(100);
        let mut slots = Slots::new(&options);
        slots.take(NodeIndex::new(0), Kind::Build, 60, Duration::ZERO);
        let mut reserved = slots.reserve(100);
        assert!(!reserved.admits(1, Duration::from_millis(1)), "every small build would delay it");
        assert!(slots.reserve(200).spare_bytes == 0, "it will run alone");
    }
}
