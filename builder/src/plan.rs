//! The plan: which derivations have to be worked on, and how they depend on each other.
//!
//! It is computed without side effects and is what `--dry-run` prints. A derivation whose claim
//! can be adopted is not in it, nor is what only such derivations need.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use srp_store::{
    Action, Claim, Derivation, InputKey, ObjectId, OutputName, StaticHash, Store, StoreError,
};

use crate::request::{RealiseError, Request};
use crate::substitute::{Offer, Substituters};

/// What remains to be done for a request.
///
/// Edges lead from a derivation to those that need it.
#[derive(Debug)]
pub struct Plan {
    /// The derivations to be worked on.
    pub graph: DiGraph<StaticHash, ()>,
    /// Where each derivation is in the graph.
    pub nodes: HashMap<StaticHash, NodeIndex>,
    /// What is chosen for derivations that need no work: the object of each output.
    pub chosen: BTreeMap<StaticHash, BTreeMap<OutputName, ObjectId>>,
    /// What caches bring of derivations in the graph. Their inputs are needed by nobody.
    pub offers: BTreeMap<StaticHash, Offer>,
}

impl Plan {
    /// Plans `request` against what `store` has.
    ///
    /// `runner` names the emulator's output that a derivation's builder needs, if it needs one.
    /// `substituters` are asked for whatever the store hasn't, a whole level of inputs at a time.
    pub fn new(
        store: &Store,
        request: &Request,
        runner: &dyn Fn(&Derivation) -> Option<InputKey>,
        substituters: Option<&Substituters>,
    ) -> Result<Plan, RealiseError> {
        let mut plan = Plan {
            graph: DiGraph::new(),
            nodes: HashMap::new(),
            chosen: BTreeMap::new(),
            offers: BTreeMap::new(),
        };
        let goals: BTreeSet<StaticHash> = request.goals.iter().map(|it| it.derivation).collect();
        let mut pending: Vec<StaticHash> =
            request.goals.iter().map(|goal| goal.derivation).rev().collect();
        let mut seen = BTreeSet::new();
        let mut edges = Vec::new();
        while !pending.is_empty() {
            let level = match substituters {
                Some(_) => std::mem::take(&mut pending),
                None => pending.pop().into_iter().collect(),
            };
            let mut missing = Vec::new();
            for hash in level {
                if !seen.insert(hash) {
                    continue;
                }
                let derivation = request.derivations.get(&hash).ok_or_else(|| {
                    RealiseError::Incomplete { name: hash.to_string(), input: hash }
                })?;
                match adopted(store, &hash)? {
                    Some(claim) => drop(plan.chosen.insert(hash, claim.outputs)),
                    None => missing.push((hash, derivation)),
                }
            }
            if let Some(substituters) = substituters {
                plan.offers.extend(substituters.offers(store, &missing, &goals)?);
            }
            for (hash, derivation) in missing {
                let node = plan.graph.add_node(hash);
                plan.nodes.insert(hash, node);
                if plan.offers.contains_key(&hash) {
                    continue;
                }
                let inputs = derivation.inputs().iter().map(|input| input.key.clone());
                for key in inputs.chain(runner(derivation)) {
                    if !request.derivations.contains_key(&key.derivation) {
                        let name = derivation.name.to_string();
                        return Err(RealiseError::Incomplete { name, input: key.derivation });
                    }
                    edges.push((key.derivation, hash));
                    pending.push(key.derivation);
                }
            }
        }
        for (input, user) in edges {
            if let (Some(input), Some(user)) = (plan.nodes.get(&input), plan.nodes.get(&user)) {
                plan.graph.update_edge(*input, *user, ());
            }
        }
        petgraph::algo::toposort(&plan.graph, None).map_err(|cycle| {
            let hash = plan.graph[cycle.node_id()];
            RealiseError::Cycle { name: request.derivations[&hash].name.to_string() }
        })?;
        Ok(plan)
    }

    /// How many fetches, and how many builds and stages, there are beside the offers.
    pub fn counts(&self, request: &Request) -> (usize, usize) {
        let fetches = self
            .graph
            .node_weights()
            .filter(|hash| !self.offers.contains_key(hash))
            .filter(|hash| matches!(request.derivations[hash].action, Action::Fetch(_)))
            .count();
        (fetches, self.graph.node_count() - self.offers.len() - fetches)
    }

    /// The builds that would surely be necessary: something that goes into them is to be fetched
    /// from its origin, built or composed.
    pub(crate) fn builds(&self, request: &Request) -> Vec<String> {
        let nodes = self.graph.node_indices().filter(|node| {
            let hash = self.graph[*node];
            !self.offers.contains_key(&hash)
                && matches!(request.derivations[&hash].action, Action::Build(_))
                && self
                    .graph
                    .neighbors_directed(*node, Direction::Incoming)
                    .any(|input| !self.offers.contains_key(&self.graph[input]))
        });
        nodes.map(|node| request.derivations[&self.graph[node]].name.to_string()).collect()
    }

    /// How many bytes the offers are, each object counted once.
    pub fn offered_bytes(&self) -> u64 {
        let parts = self.offers.values().flat_map(|offer| &offer.parts);
        let objects: BTreeMap<ObjectId, u64> =
            parts.map(|part| (part.record.object.id(), part.record.location.pack_bytes)).collect();
        objects.values().sum()
    }

    /// The derivations in an order in which they could be done one by one.
    pub fn order(&self) -> Vec<StaticHash> {
        petgraph::algo::toposort(&self.graph, None)
            .expect("a plan has no cycle")
            .into_iter()
            .map(|node| self.graph[node])
            .collect()
    }

    /// For each derivation, the time from its start to the end of everything above it, were
    /// there no limit to what runs at once; `milliseconds` estimates a single one.
    pub fn remaining(&self, milliseconds: &dyn Fn(&StaticHash) -> u64) -> HashMap<NodeIndex, u64> {
        let order = petgraph::algo::toposort(&self.graph, None).expect("a plan has no cycle");
        let mut remaining = HashMap::new();
        for node in order.into_iter().rev() {
            let above = self
                .graph
                .neighbors_directed(node, Direction::Outgoing)
                .map(|user| remaining[&user])
                .max()
                .unwrap_or(0);
            remaining.insert(node, above + milliseconds(&self.graph[node]));
        }
        remaining
    }
}

/// The claim of a derivation, if it may be adopted and everything that it leads to is there.
///
/// It needs the derivation's hash alone: what has nothing to do needn't read any graph.
pub fn adopted(store: &Store, hash: &StaticHash) -> Result<Option<Claim>, StoreError> {
    let Some(claim) = store.claim(hash)? else { return Ok(None) };
    let chosen = |hash: &StaticHash, output: &OutputName| {
        store.claim(hash).ok().flatten().and_then(|claim| claim.outputs.get(output).copied())
    };
    let objects: Vec<ObjectId> = claim.outputs.values().copied().collect();
    let adopted = claim.agrees_with(chosen) && store.contains_closure(&objects)?;
    Ok(adopted.then_some(claim))
}
