//! What is kept: by roots, by living processes, by recent use.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use crate::derivation::Action;
use crate::digest::{Digest, ObjectId, Sha256, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::gc::graph::{Graph, Number};
use crate::gc::mark::Bits;
use crate::rely::Relied;
use crate::roots::Root;
use crate::store::Store;

/// What is kept. It only ever grows while a collection runs.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) graph: Graph,
    /// The objects that are.
    pub(crate) objects: Bits,
    /// The graph's trees that kept objects have.
    graph_trees: Bits,
    /// Trees, composed roots, derivations and sources that processes rely on.
    trees: HashSet<Digest>,
    composed: HashSet<Digest>,
    pub(crate) derivations: HashSet<StaticHash>,
    pub(crate) sources: HashSet<Sha256>,
    /// Objects that aren't in the graph and that processes rely on: followed once.
    others: HashSet<ObjectId>,
}

impl Kept {
    /// What roots and processes keep. A root that leads to an object without a record is an error:
    /// what that refers to isn't known.
    pub(crate) fn new(
        store: &Store,
        graph: Graph,
        roots: &[Root],
        relied: &[(String, Relied)],
    ) -> Result<Kept, StoreError> {
        let mut kept = Kept {
            objects: Bits::new(graph.len()),
            graph_trees: Bits::new(graph.trees().len()),
            graph,
            trees: HashSet::new(),
            composed: HashSet::new(),
            derivations: HashSet::new(),
            sources: HashSet::new(),
            others: HashSet::new(),
        };
        for root in roots {
            let number = kept.graph.number(&root.object.id);
            match number.filter(|number| kept.graph.is_here(*number)) {
                Some(number) => kept.keep_all([number]),
                // Realised and named since the graph was read.
                None if store.find_info(&root.object.id)?.is_some() => {
                    kept.keep(store, &Relied::Object(root.object.id))?;
                }
                None => {
                    let (name, generation) = (&root.name, root.generation);
                    let path = store.directory("roots").join(name).join(generation.to_string());
                    // Removed since it was read, and collected by another process.
                    if metadata(&path)?.is_some() {
                        let reason = format!("it keeps {}, which has no record", root.object);
                        return Err(StoreError::Damaged { path, reason });
                    }
                }
            }
        }
        relied.iter().try_for_each(|(_, relied)| kept.keep(store, relied))?;
        Ok(kept)
    }

    /// Keeps objects of the graph, and all that they refer to.
    pub(crate) fn keep_all(&mut self, numbers: impl IntoIterator<Item = Number>) {
        let Kept { graph, objects, graph_trees, .. } = self;
        graph.mark(numbers, objects, &mut |number| {
            if let Some(tree) = graph.tree_of(number) {
                graph_trees.insert(tree);
            }
        });
    }

    /// Keeps what a process relies on.
    pub(crate) fn keep(&mut self, store: &Store, relied: &Relied) -> Result<(), StoreError> {
        match relied {
            Relied::Object(id) => return self.keep_object(store, *id),
            Relied::Tree(digest) => drop(self.trees.insert(*digest)),
            Relied::Composed(digest) => drop(self.composed.insert(*digest)),
            Relied::Derivation(hash) => {
                self.derivations.insert(*hash);
                if let Some(derivation) = store.read_derivation(hash)?
                    && let Action::Fetch(fetch) = &derivation.action
                {
                    self.sources.insert(fetch.sha256);
                }
            }
        }
        Ok(())
    }

    fn keep_object(&mut self, store: &Store, id: ObjectId) -> Result<(), StoreError> {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let number = self.graph.number(&id);
            if let Some(number) = number {
                self.keep_all([number]);
            }
            // It may have come since the graph was read.
            if number.is_none_or(|number| !self.graph.is_here(number))
                && self.others.insert(id)
                && let Some(node) = store.node(&id)?
            {
                self.trees.insert(node.tree);
                pending.extend(node.references);
            }
        }
        Ok(())
    }

    /// Whether an object is.
    pub(crate) fn has(&self, id: &ObjectId) -> bool {
        let marked = self.graph.number(id).is_some_and(|number| self.objects.has(number));
        marked || self.others.contains(id)
    }

    /// Whether a tree is: because a kept object has it, or a process relies on it.
    pub(crate) fn has_tree(&self, digest: &Digest) -> bool {
        let number = self.graph.trees().binary_search(digest).ok();
        number.is_some_and(|it| self.graph_trees.has(it as u32)) || self.trees.contains(digest)
    }

    pub(crate) fn has_composed(&self, digest: &Digest) -> bool {
        self.composed.contains(digest)
    }

    /// The objects that are not kept.
    pub(crate) fn dead(&self) -> Vec<Number> {
        let is_dead = |number: &Number| self.graph.is_here(*number) && !self.objects.has(*number);
        (0..self.graph.len() as Number).into_par_iter().filter(is_dead).collect()
    }

    /// Keeps what was used lately; of each of the others, when it was made or last used, and what
    /// its record takes on the disk.
    pub(crate) fn keep_young(
        &mut self,
        store: &Store,
        age: &Age,
    ) -> Result<BTreeMap<Number, (i64, u64)>, StoreError> {
        let dead = self.dead();
        let directory = store.directory("info");
        let time = |number: &Number| {
            let path = directory.join(self.graph.id(*number).to_string());
            let found = metadata(&path)?;
            Ok(found.map(|found| (*number, (found.mtime(), found.blocks() * 512))))
        };
        let times = dead.par_iter().filter_map(|it| time(it).transpose());
        let times: Vec<(Number, (i64, u64))> = times.collect::<Result<_, StoreError>>()?;
        let young = times.iter().filter(|(_, (time, _))| age.is_young(*time));
        self.keep_all(young.map(|(number, _)| *number));
        Ok(times.into_iter().filter(|(number, _)| !self.objects.has(*number)).collect())
    }
}

/// The age from which on something may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    /// Seconds since 1970: what is younger is kept.
    limit: i64,
}

impl Age {
    pub(crate) fn of(older_than: Duration) -> Age {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let limit = now as i64 - i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX);
        // What was made within this very second is old enough if nothing else is asked for.
        Age { limit: if older_than.is_zero() { i64::MAX } else { limit } }
    }

    /// Whether something of this time is too young to go. What is from the future is not known
    /// to be old.
    pub(crate) fn is_young(self, seconds: i64) -> bool {
        seconds > self.limit
    }
}

/// When a file was last written to, in seconds; none if it is gone.
pub(crate) fn modified(path: &Path) -> Result<Option<i64>, StoreError> {
    Ok(metadata(path)?.map(|found| found.mtime()))
}

/// When a file was last changed in any way, its name included; none if it is gone.
pub(crate) fn changed(path: &Path) -> Result<Option<i64>, StoreError> {
    Ok(metadata(path)?.map(|found| found.ctime()))
}

fn metadata(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        metadata => metadata.at("read", path).map(Some),
    }
}

/// Seconds since 1970 as a time.
pub(crate) fn as_time(seconds: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}
