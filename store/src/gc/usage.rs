//! What a store takes on the disk: by kind, and by root.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::StoreError;
use crate::files;
use crate::gc::graph::{Graph, Number, disk_bytes};
use crate::gc::mark::Bits;
use crate::gc::plan::measure;
use crate::gc::{Amount, Kind};
use crate::roots::Root;
use crate::store::Store;

/// What a store takes on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By kind. What objects take is their trees, listings and records.
    pub kinds: BTreeMap<Kind, Amount>,
    /// By root, in the order of their names.
    pub roots: Vec<RootUsage>,
    /// The objects that no root keeps.
    pub unrooted: Amount,
}

/// What a root keeps, all its generations together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootUsage {
    /// The root.
    pub name: String,
    /// How many generations it has.
    pub generations: u64,
    /// The objects that only this root keeps, and their trees.
    pub own: Amount,
    /// The objects that others keep, too.
    pub shared: Amount,
}

impl Usage {
    /// All of it.
    pub fn disk_bytes(&self) -> u64 {
        self.kinds.values().map(|amount| amount.disk_bytes).sum()
    }
}

/// Where what isn't an object lies, in files or directories that belong together.
const PLACES: &[(&str, Kind)] = &[
    ("composed", Kind::Composed),
    ("replaced", Kind::Leftovers),
    ("served", Kind::Packs),
    ("eval", Kind::Evaluations),
    ("partial", Kind::Partial),
    ("audits", Kind::Audits),
    ("realisations/resolved", Kind::Realisations),
    ("realisations/static", Kind::Realisations),
    ("statements", Kind::Statements),
    ("rebuilt", Kind::Statements),
    ("derivations", Kind::Derivations),
    ("sources", Kind::Sources),
    ("logs", Kind::Logs),
];

impl Store {
    /// What the store takes on the disk. The first time, every file is looked at for it; later,
    /// the files of trees that are new.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let roots = self.roots()?;
        let mut graph = self.graph()?;
        let unmeasured: Vec<u32> = (0..graph.trees().len() as u32)
            .filter(|tree| graph.disk_bytes(*tree).is_none())
            .collect();
        measure(self, &mut graph, &unmeasured)?;
        let mut usage = Usage::default();
        for (directory, kind) in PLACES {
            let entries = files::entries(&self.directory(directory))?;
            let sizes: Vec<u64> =
                entries.par_iter().map(|path| disk_bytes(path)).collect::<Result<_, _>>()?;
            let amount = usage.kinds.entry(*kind).or_default();
            sizes.into_iter().for_each(|bytes| amount.add(bytes));
            // A composed root's listing is a part of it.
            let listings =
                entries.iter().filter(|it| it.extension().is_some_and(|it| it == "listing"));
            amount.count -= listings.count() as u64;
        }
        let objects = usage.kinds.entry(Kind::Objects).or_default();
        objects.count = graph.count() as u64;
        let trees = graph.trees().len() as u32;
        let records: Vec<u64> = files::entries(&self.directory("info"))?
            .par_iter()
            .map(|path| disk_bytes(path))
            .collect::<Result<_, _>>()?;
        objects.disk_bytes = records.iter().sum::<u64>()
            + (0..trees).filter_map(|tree| graph.disk_bytes(tree)).sum::<u64>();
        self.by_root(&graph, &roots, &mut usage);
        usage.kinds.retain(|_, amount| amount.count > 0);
        Ok(usage)
    }

    /// How many roots keep an object is counted, and not which: that takes no more memory with a
    /// thousand roots than with one.
    fn by_root(&self, graph: &Graph, roots: &[Root], usage: &mut Usage) {
        let mut by_name: BTreeMap<&str, Vec<Number>> = BTreeMap::new();
        for root in roots {
            let number = graph.number(&root.object.id);
            by_name.entry(&root.name).or_default().extend(number);
        }
        let mut keepers = vec![0u32; graph.len()];
        let mut tree_keepers = vec![0u32; graph.trees().len()];
        let reached = |starts: &[Number], visit: &mut dyn FnMut(Number, Option<u32>)| {
            let mut objects = Bits::new(graph.len());
            let mut trees = Bits::new(graph.trees().len());
            graph.mark(starts.iter().copied(), &mut objects, &mut |number| {
                if let Some(tree) = graph.tree_of(number) {
                    visit(number, Some(tree).filter(|tree| trees.insert(*tree)));
                }
            });
        };
        for starts in by_name.values() {
            reached(starts, &mut |number, tree| {
                keepers[number as usize] += 1;
                tree.into_iter().for_each(|tree| tree_keepers[tree as usize] += 1);
            });
        }
        let bytes = |tree: u32| graph.disk_bytes(tree).unwrap_or_default();
        for (name, starts) in &by_name {
            let (mut own, mut shared) = (Amount::default(), Amount::default());
            reached(starts, &mut |number, tree| {
                let is_own = keepers[number as usize] == 1;
                if is_own {
                    own.count += 1
                } else {
                    shared.count += 1
                }
                if let Some(tree) = tree {
                    let is_own = tree_keepers[tree as usize] == 1;
                    let amount = if is_own { &mut own } else { &mut shared };
                    amount.disk_bytes += bytes(tree);
                }
            });
            let generations = roots.iter().filter(|root| root.name == *name).count() as u64;
            usage.roots.push(RootUsage { name: (*name).to_owned(), generations, own, shared });
        }
        let unkept = |number: &Number| graph.is_here(*number) && keepers[*number as usize] == 0;
        usage.unrooted.count = (0..graph.len() as Number).filter(unkept).count() as u64;
        let trees = (0..graph.trees().len() as u32).filter(|it| tree_keepers[*it as usize] == 0);
        usage.unrooted.disk_bytes = trees.map(bytes).sum();
    }
}
