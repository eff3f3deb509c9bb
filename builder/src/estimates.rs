//! What earlier builds say about how long a derivation takes and how much memory it holds.
//!
//! It decides only what is started first and how much at once. Without an index, or with a wrong
//! one, the same things come out.

use std::collections::HashMap;
use std::time::Duration;

use petgraph::graph::NodeIndex;
use srp_store::{Action, Derivation, History, Index, StaticHash, Store};

use crate::plan::Plan;
use crate::request::Request;

/// Expectations of the derivations in a plan.
pub(crate) struct Estimates {
    index: Option<Index>,
    history: HashMap<StaticHash, History>,
}

impl Estimates {
    /// What the store's index knows about what is planned.
    pub(crate) fn read(store: &Store, request: &Request, plan: &Plan) -> Estimates {
        // The index is only worth its opening where there is an order to choose.
        let index = (plan.graph.node_count() > 1).then(|| Index::open(store)).and_then(|index| {
            index.inspect_err(|error| tracing::debug!(%error, "no build history")).ok()
        });
        let history = plan
            .graph
            .node_weights()
            .filter_map(|hash| {
                let history = index.as_ref()?.history(&key(&request.derivations[hash]))?;
                Some((*hash, history))
            })
            .collect();
        Estimates { index, history }
    }

    /// For each derivation, the time from its start to the end of everything above it.
    pub(crate) fn remaining(&self, request: &Request, plan: &Plan) -> HashMap<NodeIndex, u64> {
        plan.remaining(&|hash| self.milliseconds(hash, &request.derivations[hash]))
    }

    /// The time that it will take: what it took the last time, else what such things do.
    pub(crate) fn duration(&self, hash: &StaticHash, derivation: &Derivation) -> Duration {
        Duration::from_millis(self.milliseconds(hash, derivation))
    }

    fn milliseconds(&self, hash: &StaticHash, derivation: &Derivation) -> u64 {
        match self.history.get(hash) {
            Some(history) => history.milliseconds,
            None => match &derivation.action {
                Action::Build(_) => 60_000,
                Action::Fetch(_) => 2_000,
                Action::Stage(_) => 100,
            },
        }
    }

    /// The memory that it will hold at most: what it held the last time, else what its definition
    /// says, else nothing worth counting.
    pub(crate) fn memory_bytes(&self, hash: &StaticHash, derivation: &Derivation) -> u64 {
        let advised = derivation.advice.memory_mib.map(|mib| mib << 20);
        let seen = self.history.get(hash).map(|it| it.peak_memory_bytes);
        seen.filter(|seen| *seen > 0).or(advised).unwrap_or(0)
    }

    /// Keeps how it went.
    pub(crate) fn remember(&self, derivation: &Derivation, history: History) {
        if let Some(index) = &self.index {
            index.remember(&key(derivation), history);
        }
    }

    /// Keeps of a failed build what it held, and of the time what is the most that is known: the next
    /// try is admitted by what this one needed, and takes no less time.
    pub(crate) fn remember_failed(
        &self,
        hash: &StaticHash,
        derivation: &Derivation,
        history: History,
    ) {
        let known = self.history.get(hash).map_or(0, |it| it.milliseconds);
        let milliseconds = history.milliseconds.max(known);
        self.remember(derivation, History { milliseconds, ..history });
    }

    /// Has the index written.
    pub(crate) fn flush(&self) {
        if let Some(index) = &self.index {
            index.flush();
        }
    }
}

/// What history goes by: builds of one package for one platform resemble each other, whatever
/// their hash.
fn key(derivation: &Derivation) -> String {
    match &derivation.action {
        Action::Build(build) => format!("{} {} {}", derivation.name, build.build, build.host),
        _ => derivation.name.to_string(),
    }
}
