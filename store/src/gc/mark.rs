//! Marking: what is reached from where, by one bit for each object.

use std::collections::VecDeque;

use crate::gc::graph::{Graph, Number};

/// A set of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// The empty set of numbers below `length`.
    pub(crate) fn new(length: usize) -> Bits {
        Bits(vec![0; length.div_ceil(64)])
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        self.0[number as usize / 64] >> (number % 64) & 1 == 1
    }

    /// Adds a number; false if it was there.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (&mut self.0[number as usize / 64], 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

impl Graph {
    /// Adds to `marked` whatever is reached from `from`, and visits it. What is marked already has
    /// been followed.
    pub(crate) fn mark(
        &self,
        from: impl IntoIterator<Item = Number>,
        marked: &mut Bits,
        visit: &mut dyn FnMut(Number),
    ) {
        let mut pending: Vec<Number> = Vec::new();
        for number in from {
            if marked.insert(number) {
                pending.push(number);
            }
            while let Some(number) = pending.pop() {
                visit(number);
                for target in self.references(number) {
                    if marked.insert(*target) {
                        pending.push(*target);
                    }
                }
            }
        }
    }

    /// The objects of `some`, each before what it refers to. Ids are hashes over what they refer
    /// to, so there is no cycle; should a graph have one all the same, its objects come last.
    pub(crate) fn referrers_first(&self, some: &[Number]) -> Vec<Number> {
        let mut among = Bits::new(self.len());
        for number in some {
            among.insert(*number);
        }
        let mut referrers = vec![0u32; self.len()];
        let inner = |number: Number| {
            self.references(number).iter().copied().filter(|target| among.has(*target))
        };
        for number in some {
            inner(*number).for_each(|target| referrers[target as usize] += 1);
        }
        let is_free = |number: &Number, referrers: &[u32]| referrers[*number as usize] == 0;
        let mut order: Vec<Number> =
            some.iter().copied().filter(|it| is_free(it, &referrers)).collect();
        let mut at = 0;
        while let Some(number) = order.get(at).copied() {
            at += 1;
            for target in inner(number) {
                referrers[target as usize] -= 1;
                if referrers[target as usize] == 0 {
                    order.push(target);
                }
            }
        }
        if order.len() < some.len() {
            order.extend(some.iter().copied().filter(|it| !is_free(it, &referrers)));
        }
        order
    }

    /// The shortest chain of references that leads to `to` from one that `is_start`, that one
    /// first: found from its end, so that nothing is computed for any other object.
    pub(crate) fn chain_to(
        &self,
        to: Number,
        is_start: &dyn Fn(Number) -> bool,
    ) -> Option<Vec<Number>> {
        let (starts, sources) = self.reversed();
        let mut leads_to: Vec<Number> = vec![Number::MAX; self.len()];
        leads_to[to as usize] = to;
        let mut pending = VecDeque::from([to]);
        while let Some(number) = pending.pop_front() {
            if is_start(number) {
                let mut chain = vec![number];
                let mut at = number;
                while at != to {
                    at = leads_to[at as usize];
                    chain.push(at);
                }
                return Some(chain);
            }
            let range = starts[number as usize] as usize..starts[number as usize + 1] as usize;
            for source in &sources[range] {
                if leads_to[*source as usize] == Number::MAX {
                    leads_to[*source as usize] = number;
                    pending.push_back(*source);
                }
            }
        }
        None
    }

    /// Who refers to each object, in rows as those of the graph.
    fn reversed(&self) -> (Vec<u32>, Vec<Number>) {
        let mut starts = vec![0u32; self.len() + 1];
        let all = || 0..self.len() as Number;
        for number in all() {
            self.references(number).iter().for_each(|target| starts[*target as usize + 1] += 1);
        }
        for at in 0..self.len() {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut sources = vec![0; starts[self.len()] as usize];
        for number in all() {
            for target in self.references(number) {
                let at = &mut next[*target as usize];
                sources[*at as usize] = number;
                *at += 1;
            }
        }
        (starts, sources)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::digest::{Digest, ObjectId};
    use crate::gc::graph::Node;

    fn id(number: u8) -> ObjectId {
        // Neither in the order of numbers nor apart in the first byte only.
        let mut bytes = [number.reverse_bits() / 3; 20];
        bytes[19] = number;
        ObjectId::from_bytes(bytes)
    }

    /// Objects that refer to those of lower numbers, some of which aren't there.
    fn nodes() -> impl Strategy<Value = Vec<Node>> {
        prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..6)), 1..60)
            .prop_map(|all| {
                let mut nodes = Vec::new();
                for (number, (is_here, references)) in (0u8..).zip(all) {
                    let below = references.iter().filter(|_| number > 0).map(|it| it % number);
                    let references: BTreeSet<ObjectId> = below.map(id).collect();
                    let tree = Digest::of_file(&[number / 2]);
                    if is_here || number % 4 > 0 {
                        let references = references.into_iter().collect();
                        nodes.push(Node { id: id(number), tree, references });
                    }
                }
                nodes
            })
    }

    /// What is reached, by the book.
    fn reached(nodes: &[Node], from: &[ObjectId]) -> BTreeSet<ObjectId> {
        let by_id: BTreeMap<_, _> = nodes.iter().map(|node| (node.id, node)).collect();
        let mut seen = BTreeSet::new();
        let mut pending = from.to_vec();
        while let Some(id) = pending.pop() {
            if seen.insert(id) {
                pending.extend(by_id.get(&id).into_iter().flat_map(|node| &node.references));
            }
        }
        seen
    }

    proptest! {
        #[test]
        fn what_is_marked_is_what_a_plain_search_reaches(nodes in nodes(), from: Vec<u8>) {
            let graph = Graph::of(nodes.clone());
            prop_assert_eq!(graph.count(), nodes.len());
            let from: Vec<ObjectId> =
                from.into_iter().map(id).filter(|id| graph.number(id).is_some()).collect();
            let mut marked = Bits::new(graph.len());
            graph.mark(from.iter().filter_map(|id| graph.number(id)), &mut marked, &mut drop);
            let all = (0..graph.len() as Number).filter(|it| marked.has(*it));
            let marked: BTreeSet<ObjectId> = all.map(|it| *graph.id(it)).collect();
            prop_assert_eq!(marked, reached(&nodes, &from));
        }

        #[test]
        fn nothing_comes_before_what_refers_to_it(nodes in nodes(), chosen: Vec<u8>) {
            let graph = Graph::of(nodes);
            let some: BTreeSet<Number> =
                chosen.into_iter().filter_map(|it| graph.number(&id(it))).collect();
            let order = graph.referrers_first(&some.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(&order.iter().copied().collect::<BTreeSet<_>>(), &some);
            prop_assert_eq!(order.len(), some.len());
            let place: BTreeMap<Number, usize> = order.iter().copied().zip(0..).collect();
            for number in &order {
                for target in graph.references(*number).iter().filter(|it| some.contains(it)) {
                    prop_assert!(place[number] < place[target]);
                }
            }
        }

        #[test]
        fn a_chain_is_found_where_there_is_one(nodes in nodes(), starts: Vec<u8>, to: u8) {
            let graph = Graph::of(nodes.clone());
            let Some(number) = graph.number(&id(to)) else { return Ok(()) };
            let starts: BTreeSet<Number> =
                starts.into_iter().filter_map(|it| graph.number(&id(it))).collect();
            let chain = graph.chain_to(number, &|it| starts.contains(&it));
            let reaches = |start: &&Number| {
                reached(&nodes, &[*graph.id(**start)]).contains(&id(to))
            };
            prop_assert_eq!(chain.is_some(), starts.iter().any(|it| reaches(&it)));
            if let Some(chain) = chain {
                prop_assert!(starts.contains(&chain[0]) && chain.last() == Some(&number));
                prop_assert!(chain.windows(2).all(|it| graph.references(it[0]).contains(&it[1])));
            }
        }

        /// Whatever came and went between two looks, the graph is as if it were made anew.
        #[test]
        fn an_update_is_as_good_as_a_new_graph(
            nodes in nodes(), before: Vec<bool>, after: Vec<bool>,
        ) {
            let some = |chosen: &[bool]| -> Vec<Node> {
                let chosen = chosen.iter().copied().chain(std::iter::repeat(true));
                nodes.iter().zip(chosen).filter(|(_, it)| *it).map(|(node, _)| node.clone()).collect()
            };
            let (before, after) = (some(&before), some(&after));
            let updated = Graph::of(before.clone()).update_to(&before, &after);
            prop_assert_eq!(updated, Graph::of(after));
        }
    }
}
