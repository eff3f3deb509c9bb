//! The graph of all objects: who refers to whom, in arrays of integers.
//!
//! Objects are numbered in the order of their ids. What object `n` refers to are the numbers
//! `targets[starts[n]..starts[n + 1]]` (compressed sparse rows), so a million objects with ten
//! references each take a hundred megabytes, and a set of objects is a bit for each.
//!
//! Reading a million records takes longer than everything else, and a record never changes. So the
//! graph is kept in the file `graph` of the store, and only what the directory `info/` lists beyond
//! that is read. The file decides nothing: what it has and the directory hasn't is dropped, and
//! a file that is missing or damaged is made anew from the records.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rayon::prelude::*;

use crate::digest::{Digest, ObjectId};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::object::ReferenceKind;
use crate::open_tree;
use crate::presence::undamaged;
use crate::staged;
use crate::store::Store;

/// An object's number.
pub(crate) type Number = u32;

/// No tree: an object that others refer to, and that has no record.
const NONE: u32 = u32::MAX;
/// How many bytes a tree takes isn't known yet.
const UNKNOWN: u64 = u64::MAX;
const MAGIC: &[u8; 8] = b"srpg\x01\0\0\0";
const CHECKSUM_BYTES: usize = 32;

/// All objects of a store and what they refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Graph {
    /// Ascending.
    ids: Vec<ObjectId>,
    /// For each object the number of its tree, or [`NONE`].
    tree_of: Vec<u32>,
    starts: Vec<u32>,
    targets: Vec<Number>,
    /// Ascending.
    trees: Vec<Digest>,
    /// What each takes on the disk, or [`UNKNOWN`].
    disk_bytes: Vec<u64>,
}

/// What a record says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: ObjectId,
    pub(crate) tree: Digest,
    pub(crate) references: Vec<ObjectId>,
}

impl Store {
    /// The graph as the records are now. Whoever may write to the store leaves it for the next one.
    ///
    /// # Errors
    /// A record can't be read, or is damaged: what it refers to isn't known.
    pub(crate) fn graph(&self) -> Result<Graph, StoreError> {
        let listed = || list_ids(&self.directory("info"));
        let (known, listed) = rayon::join(|| self.known_graph(), listed);
        let mut listed = listed?;
        listed.par_sort_unstable();
        let known = known?.unwrap_or_default();
        let new: Vec<ObjectId> = {
            let is_known = |id: &ObjectId| known.number(id).is_some_and(|it| known.is_here(it));
            listed.par_iter().filter(|id| !is_known(id)).copied().collect()
        };
        if new.is_empty() && known.count() == listed.len() {
            return Ok(known);
        }
        let read = |id: &ObjectId| self.node(id).transpose();
        let new = new.par_iter().filter_map(read).collect::<Result<Vec<Node>, _>>()?;
        let graph = known.updated(&listed, new);
        self.keep_graph(&graph);
        Ok(graph)
    }

    /// What a record says; none if it is gone.
    pub(crate) fn node(&self, id: &ObjectId) -> Result<Option<Node>, StoreError> {
        let Some(info) = self.find_info(id)? else { return Ok(None) };
        let mut references: Vec<ObjectId> = info.object.references(ReferenceKind::ALL).collect();
        references.sort_unstable();
        references.dedup();
        Ok(Some(Node { id: *id, tree: info.object.tree, references }))
    }

    /// The graph as it was kept, if there is one and all of it is right.
    fn known_graph(&self) -> Result<Option<Graph>, StoreError> {
        let path = self.directory("graph");
        // Whatever else is there is replaced.
        let Some(bytes) = undamaged(files::read_if_exists(&path))?.flatten() else {
            return Ok(None);
        };
        let graph = Graph::decode(&bytes);
        if graph.is_none() {
            tracing::warn!(path = %path.display(), "the graph was damaged, and is made anew");
        }
        Ok(graph)
    }

    /// Leaves the graph for the next one. If that fails, it is made anew.
    pub(crate) fn keep_graph(&self, graph: &Graph) {
        if !self.is_writable() {
            return;
        }
        let path = self.directory("graph");
        if let Err(error) = staged::write(&path, &graph.encode()) {
            tracing::debug!(%error, path = %path.display(), "the graph is not kept");
        }
    }
}

impl Graph {
    /// How many numbers there are. Some may be of objects that have no record.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many objects have a record.
    pub(crate) fn count(&self) -> usize {
        self.tree_of.par_iter().filter(|tree| **tree != NONE).count()
    }

    pub(crate) fn id(&self, number: Number) -> &ObjectId {
        &self.ids[number as usize]
    }

    pub(crate) fn number(&self, id: &ObjectId) -> Option<Number> {
        self.ids.binary_search(id).ok().map(|at| at as Number)
    }

    /// Whether the object has a record.
    pub(crate) fn is_here(&self, number: Number) -> bool {
        self.tree_of[number as usize] != NONE
    }

    /// The number of an object's tree; none without a record.
    pub(crate) fn tree_of(&self, number: Number) -> Option<u32> {
        Some(self.tree_of[number as usize]).filter(|tree| *tree != NONE)
    }

    pub(crate) fn references(&self, number: Number) -> &[Number] {
        let at = number as usize;
        &self.targets[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// The trees that objects have, ascending.
    pub(crate) fn trees(&self) -> &[Digest] {
        &self.trees
    }

    /// What a tree takes on the disk, if that is known.
    pub(crate) fn disk_bytes(&self, tree: u32) -> Option<u64> {
        Some(self.disk_bytes[tree as usize]).filter(|bytes| *bytes != UNKNOWN)
    }

    pub(crate) fn set_disk_bytes(&mut self, tree: u32, bytes: u64) {
        self.disk_bytes[tree as usize] = bytes;
    }

    /// The graph of these nodes alone.
    #[cfg(test)]
    pub(crate) fn of(nodes: Vec<Node>) -> Graph {
        let mut listed: Vec<ObjectId> = nodes.iter().map(|node| node.id).collect();
        listed.sort_unstable();
        Graph::default().updated(&listed, nodes)
    }

    /// As when the records become `after`.
    #[cfg(test)]
    pub(crate) fn update_to(&self, before: &[Node], after: &[Node]) -> Graph {
        let mut listed: Vec<ObjectId> = after.iter().map(|node| node.id).collect();
        listed.sort_unstable();
        let new = after.iter().filter(|it| !before.contains(it)).cloned().collect();
        self.updated(&listed, new)
    }

    /// The graph of what is `listed`, in ascending order: what of it is known, and what is `new`.
    fn updated(&self, listed: &[ObjectId], mut new: Vec<Node>) -> Graph {
        new.par_sort_unstable_by_key(|node| node.id);
        let is_listed = |id: &ObjectId| listed.binary_search(id).is_ok();
        // What stays of what is known, and what is referred to without being there.
        let stays: Vec<bool> = (0..self.ids.len())
            .into_par_iter()
            .map(|at| self.tree_of[at] != NONE && is_listed(&self.ids[at]))
            .collect();
        let mut absent: Vec<ObjectId> = new
            .par_iter()
            .flat_map_iter(|node| node.references.iter().copied())
            .filter(|id| !is_listed(id))
            .collect();
        let mut is_referred = vec![false; self.ids.len()];
        for at in (0..self.ids.len()).filter(|at| stays[*at]) {
            for target in self.references(at as Number) {
                is_referred[*target as usize] = true;
            }
        }
        let gone = (0..self.ids.len()).filter(|at| is_referred[*at] && !stays[*at]);
        absent.extend(gone.map(|at| self.ids[at]).filter(|id| !is_listed(id)));
        absent.par_sort_unstable();
        absent.dedup();
        let mut ids = listed.to_vec();
        ids.extend(absent);
        ids.par_sort_unstable();
        let number_of =
            |id: &ObjectId| ids.binary_search(id).expect("it is listed or referred to") as Number;
        let renumbered: Vec<Number> = (0..self.ids.len())
            .into_par_iter()
            .map(|at| if stays[at] || is_referred[at] { number_of(&self.ids[at]) } else { NONE })
            .collect();

        let mut trees: Vec<Digest> = new.iter().map(|node| node.tree).collect();
        trees.extend((0..self.ids.len()).filter(|at| stays[*at]).map(|at| self.tree(at)));
        trees.par_sort_unstable();
        trees.dedup();
        let known_bytes = |tree: &Digest| {
            self.trees.binary_search(tree).map_or(UNKNOWN, |at| self.disk_bytes[at])
        };
        let disk_bytes = trees.par_iter().map(known_bytes).collect();
        let tree_number =
            |tree: &Digest| trees.binary_search(tree).expect("it is an object's") as u32;

        let mut graph = Graph { disk_bytes, ..Graph::default() };
        let new_targets: Vec<Vec<Number>> =
            new.par_iter().map(|node| node.references.iter().map(number_of).collect()).collect();
        let mut known = (0..self.ids.len()).filter(|at| stays[*at]).peekable();
        let mut added = new.iter().zip(new_targets).peekable();
        graph.starts.push(0);
        for id in &ids {
            if let Some((node, targets)) = added.next_if(|(node, _)| node.id == *id) {
                graph.tree_of.push(tree_number(&node.tree));
                graph.targets.extend(targets);
            } else if let Some(at) = known.next_if(|at| self.ids[*at] == *id) {
                graph.tree_of.push(tree_number(&self.tree(at)));
                let targets = self.references(at as Number).iter();
                graph.targets.extend(targets.map(|target| renumbered[*target as usize]));
            } else {
                graph.tree_of.push(NONE);
            }
            graph.starts.push(graph.targets.len() as u32);
        }
        Graph { ids, trees, ..graph }
    }

    fn tree(&self, at: usize) -> Digest {
        self.trees[self.tree_of[at] as usize]
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            MAGIC.len() + 24 + 28 * self.ids.len() + 4 * self.targets.len() + 40 * self.trees.len(),
        );
        bytes.extend_from_slice(MAGIC);
        for count in [self.ids.len(), self.targets.len(), self.trees.len()] {
            bytes.extend_from_slice(&(count as u64).to_le_bytes());
        }
        self.ids.iter().for_each(|id| bytes.extend_from_slice(id.as_bytes()));
        for column in [&self.tree_of, &self.starts, &self.targets] {
            column.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        }
        self.trees.iter().for_each(|tree| bytes.extend_from_slice(tree.as_bytes()));
        self.disk_bytes.iter().for_each(|size| bytes.extend_from_slice(&size.to_le_bytes()));
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// What the bytes are; none if anything is wrong with them.
    fn decode(bytes: &[u8]) -> Option<Graph> {
        let (rest, sum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        if sum != checksum(rest) {
            return None;
        }
        let mut rest = rest.strip_prefix(MAGIC)?;
        let mut counts = [0; 3];
        for count in &mut counts {
            let (taken, after) = rest.split_first_chunk::<8>()?;
            *count = usize::try_from(u64::from_le_bytes(*taken)).ok()?;
            rest = after;
        }
        let [objects, targets, trees] = counts;
        let mut take = |count: usize, size: usize| {
            let (taken, after) = rest.split_at_checked(count.checked_mul(size)?)?;
            rest = after;
            Some(taken)
        };
        let ids = take(objects, 20)?.as_chunks().0.iter().map(|it| ObjectId::from_bytes(*it));
        let ids: Vec<ObjectId> = ids.collect();
        let mut numbers = |count: usize| {
            let taken = take(count, 4)?.as_chunks().0.iter().map(|it| u32::from_le_bytes(*it));
            Some(taken.collect::<Vec<u32>>())
        };
        let tree_of = numbers(objects)?;
        let starts = numbers(objects.checked_add(1)?)?;
        let targets = numbers(targets)?;
        let digests = take(trees, 32)?.as_chunks().0.iter().map(|it| Digest::from_bytes(*it));
        let digests: Vec<Digest> = digests.collect();
        let disk_bytes = take(trees, 8)?.as_chunks().0.iter().map(|it| u64::from_le_bytes(*it));
        let disk_bytes: Vec<u64> = disk_bytes.collect();
        let is_right = rest.is_empty()
            && ids.is_sorted_by(|one, next| one < next)
            && digests.is_sorted_by(|one, next| one < next)
            && starts.first() == Some(&0)
            && starts.is_sorted()
            && starts.last().is_some_and(|end| *end as usize == targets.len())
            && targets.iter().all(|target| (*target as usize) < objects)
            && tree_of.iter().all(|tree| *tree == NONE || (*tree as usize) < trees);
        is_right.then_some(Graph { ids, tree_of, starts, targets, trees: digests, disk_bytes })
    }
}

/// BLAKE3, which several processors compute together.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes()
}

/// The ids that are names in a directory, in any order. Staged files have other names.
fn list_ids(directory: &Path) -> Result<Vec<ObjectId>, StoreError> {
    let mut ids = Vec::new();
    each_name(directory, &mut |name| {
        ids.extend(std::str::from_utf8(name).ok().and_then(|name| name.parse::<ObjectId>().ok()));
    })?;
    Ok(ids)
}

/// Every name in a directory.
pub(crate) fn each_name(directory: &Path, visit: &mut dyn FnMut(&[u8])) -> Result<(), StoreError> {
    let open = File::open(directory).at("open", directory)?;
    open_tree::each(&open, &mut |name| visit(name))
        .map_err(std::io::Error::from)
        .at("list", directory)
}

/// What a file, or a directory with all that is in it, takes on the disk: blocks, so that holes
/// count nothing; of a file with several names its part.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64, StoreError> {
    let metadata = match std::fs::symlink_metadata(path) {
        // Somebody else removes it, too.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        metadata => metadata.at("read", path)?,
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return Ok(own / metadata.nlink().max(1));
    }
    let entries = match files::entries(path) {
        Err(error) if error.is_not_found() => Vec::new(),
        entries => entries?,
    };
    let below: Result<Vec<u64>, StoreError> =
        entries.par_iter().map(|path| disk_bytes(path)).collect();
    Ok(own + below?.iter().sum::<u64>())
}
