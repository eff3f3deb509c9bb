//! What goes, and in which order. Nothing is changed here but the file of the graph.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::derivation::{Action, Derivation};
use crate::digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
use crate::error::StoreError;
use crate::files;
use crate::gc::graph::{self, Number, disk_bytes};
use crate::gc::kept::{self, Age, Kept};
use crate::gc::{Kind, Retention};
use crate::realisation::{Claim, Realisation};
use crate::staged;
use crate::store::Store;

/// What goes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Caches and leftovers: what goes before all else.
    pub(crate) caches: Vec<Removal>,
    /// Realisations and claims.
    pub(crate) realisations: Vec<PathBuf>,
    /// Objects, each before what it refers to, and before those that were used later.
    pub(crate) objects: Vec<Victim>,
    /// What belonged to realisations: what goes after all else.
    pub(crate) others: Vec<Removal>,
    pub(crate) kept_objects: u64,
}

/// A file or directory that goes.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    pub(crate) disk_bytes: u64,
    /// Seconds since 1970.
    pub(crate) used: i64,
    pub(crate) unless: Unless,
}

/// What keeps something from going after all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unless {
    Nothing,
    /// A process relies on it, or an object has it.
    Tree(Digest),
    Object(ObjectId),
    Composed(Digest),
    Derivation(StaticHash),
    Source(Sha256),
}

/// An object that goes.
#[derive(Clone, Debug)]
pub(crate) struct Victim {
    pub(crate) number: Number,
    /// Its name in `objects/`; its id, should there be none.
    pub(crate) name: String,
    /// Its tree, if no object has that after it.
    pub(crate) tree: Option<Digest>,
    /// What goes with it, and how much of that is the tree.
    pub(crate) disk_bytes: u64,
    pub(crate) tree_bytes: u64,
    pub(crate) used: i64,
}

/// How much is left to free.
struct Budget(Option<u64>);

impl Budget {
    /// Whether more is to go; this then does.
    fn take(&mut self, bytes: u64) -> bool {
        match &mut self.0 {
            Some(0) => false,
            Some(left) => {
                *left = left.saturating_sub(bytes);
                true
            }
            None => true,
        }
    }
}

impl Plan {
    /// What goes of all that is not kept. `kept` gets what is young, too.
    pub(crate) fn new(
        store: &Store,
        kept: &mut Kept,
        retention: &Retention,
    ) -> Result<Plan, StoreError> {
        let age = Age::of(retention.older_than);
        let times = kept.keep_young(store, &age)?;
        let links = Links::of(store)?;
        let planning = Planning { store, age, retention };
        let mut budget = Budget(retention.max_freed_bytes);
        let mut caches = planning.caches()?;
        caches.extend(planning.leftovers(kept, &links)?);
        caches.sort_by_key(|removal| removal.used);
        caches.retain(|removal| budget.take(removal.disk_bytes));
        let objects = planning.victims(kept, &times, &links, &mut budget)?;
        let goes: HashSet<Number> = objects.iter().map(|victim| victim.number).collect();
        let is_here = |id: &ObjectId| {
            kept.graph.number(id).is_some_and(|it| kept.graph.is_here(it) && !goes.contains(&it))
        };
        let standing = Standing::of(store, &is_here)?;
        let mut others = planning.others(kept, &standing)?;
        others.sort_by_key(|removal| (removal.kind, removal.used));
        others.retain(|removal| budget.take(removal.disk_bytes));
        let kept_objects = (kept.graph.count() - objects.len()) as u64;
        Ok(Plan { caches, realisations: standing.fallen, objects, others, kept_objects })
    }
}

/// Realisations and claims: those that stand on objects that stay, and the others.
struct Standing {
    resolved: HashSet<ResolvedHash>,
    derivations: HashSet<StaticHash>,
    fallen: Vec<PathBuf>,
}

impl Standing {
    fn of(
        store: &Store,
        is_here: &(dyn Fn(&ObjectId) -> bool + Sync),
    ) -> Result<Standing, StoreError> {
        let realisations = files::entries(&store.directory("realisations/resolved"))?;
        let read = |path: &PathBuf| {
            let Some(realisation) = store.record::<Realisation>(path)? else { return Ok(None) };
            let stands = realisation.outputs.values().all(is_here);
            let hash: Option<ResolvedHash> = file_name(path).parse().ok();
            Ok(Some((path.clone(), stands, hash)))
        };
        let is_record = |path: &&PathBuf| !staged::is_staged(path.file_name().unwrap_or_default());
        let realisations = realisations.par_iter().filter(is_record).map(read);
        let realisations = realisations.collect::<Result<Vec<_>, StoreError>>()?;
        let claims = files::entries(&store.directory("realisations/static"))?;
        let read = |path: &PathBuf| {
            let Some(claim) = store.record::<Claim>(path)? else { return Ok(None) };
            let stands = claim.outputs.values().all(is_here);
            let hash: Option<StaticHash> = file_name(path).parse().ok();
            Ok(Some((path.clone(), stands, hash, claim.resolved)))
        };
        let claims = claims.par_iter().filter(is_record).map(read);
        let claims = claims.collect::<Result<Vec<_>, StoreError>>()?;
        let mut standing =
            Standing { resolved: HashSet::new(), derivations: HashSet::new(), fallen: Vec::new() };
        // Claims before what they are of: they name it.
        for (path, stands, hash, resolved) in claims.into_iter().flatten() {
            match stands {
                true => {
                    standing.derivations.extend(hash);
                    standing.resolved.insert(resolved);
                }
                false => standing.fallen.push(path),
            }
        }
        for (path, stands, hash) in realisations.into_iter().flatten() {
            match stands {
                true => standing.resolved.extend(hash),
                false => standing.fallen.push(path),
            }
        }
        Ok(standing)
    }
}

struct Planning<'a> {
    store: &'a Store,
    age: Age,
    retention: &'a Retention,
}

impl Planning<'_> {
    /// The objects that go, those first that were used longest ago. What something refers to was
    /// used when that was.
    fn victims(
        &self,
        kept: &mut Kept,
        times: &BTreeMap<Number, (i64, u64)>,
        links: &Links,
        budget: &mut Budget,
    ) -> Result<Vec<Victim>, StoreError> {
        let dead = kept.dead();
        self.measure(kept, &dead)?;
        let graph = &kept.graph;
        let mut used = vec![i64::MIN; graph.len()];
        let mut users = vec![0u32; graph.trees().len()];
        for number in (0..graph.len() as Number).filter(|number| graph.is_here(*number)) {
            users[graph.tree_of(number).expect("it is here") as usize] += 1;
        }
        let mut order = graph.referrers_first(&dead);
        for number in &order {
            let own = times.get(number).map_or(i64::MIN, |(time, _)| *time);
            let own = own.max(used[*number as usize]);
            used[*number as usize] = own;
            for target in graph.references(*number) {
                let last = &mut used[*target as usize];
                *last = (*last).max(own);
            }
        }
        // Stable: of those that were used at one time, what refers still goes first.
        order.sort_by_key(|number| used[*number as usize]);
        let mut victims = Vec::new();
        for number in order {
            let tree = graph.tree_of(number).expect("it is here");
            let users = &mut users[tree as usize];
            let digest = graph.trees()[tree as usize];
            let is_last = *users == 1 && !kept.has_tree(&digest);
            let of_tree = if is_last { graph.disk_bytes(tree).unwrap_or_default() } else { 0 };
            let disk_bytes = of_tree + times.get(&number).map_or(0, |(_, bytes)| *bytes);
            if !budget.take(disk_bytes) {
                break;
            }
            *users -= 1;
            let id = graph.id(number);
            let name = links.name(id).map_or_else(|| id.to_string(), str::to_owned);
            let tree = is_last.then_some(digest);
            let (tree_bytes, used) = (of_tree, used[number as usize]);
            victims.push(Victim { number, name, tree, disk_bytes, tree_bytes, used });
        }
        Ok(victims)
    }

    /// Finds out what the trees of objects take, and remembers it.
    fn measure(&self, kept: &mut Kept, objects: &[Number]) -> Result<(), StoreError> {
        let graph = &kept.graph;
        let trees: BTreeSet<u32> = objects
            .iter()
            .filter_map(|number| graph.tree_of(*number))
            .filter(|tree| graph.disk_bytes(*tree).is_none())
            .collect();
        measure(self.store, &mut kept.graph, &trees.into_iter().collect::<Vec<_>>())
    }

    /// What can be made anew at any time.
    fn caches(&self) -> Result<Vec<Removal>, StoreError> {
        let mut removals = Vec::new();
        for path in self.entries("composed")? {
            let name = file_name(&path);
            let root = name.strip_suffix(".listing").unwrap_or(name);
            let digest: Option<Digest> = root.parse().ok();
            let unless = digest.map_or(Unless::Nothing, Unless::Composed);
            // Its modification time is a tree's. A listing is used with its root.
            let used = kept::changed(&path.with_file_name(root))?.or(kept::changed(&path)?);
            removals.extend(self.old(Kind::Composed, path, used, unless)?);
        }
        let plain = [
            ("served", Kind::Packs),
            ("eval", Kind::Evaluations),
            ("partial", Kind::Partial),
            ("audits", Kind::Audits),
        ];
        for (directory, kind) in plain {
            for path in self.entries(directory)? {
                let used = kept::modified(&path)?;
                removals.extend(self.old(kind, path, used, Unless::Nothing)?);
            }
        }
        Ok(removals)
    }

    /// Trees without an object, and store paths without a record.
    fn leftovers(&self, kept: &Kept, links: &Links) -> Result<Vec<Removal>, StoreError> {
        let directory = self.store.directory("trees");
        let mut named: Vec<(Digest, bool)> = Vec::new();
        graph::each_name(&directory, &mut |name| {
            let Ok(name) = std::str::from_utf8(name) else { return };
            let digest = name.strip_suffix(".listing").unwrap_or(name);
            named.extend(digest.parse::<Digest>().ok().map(|it| (it, digest.len() < name.len())));
        })?;
        let is_left = |(digest, _): &&(Digest, bool)| {
            kept.graph.trees().binary_search(digest).is_err() && !kept.has_tree(digest)
        };
        let left: Vec<(Digest, bool)> = named.par_iter().filter(is_left).copied().collect();
        let mut removals = Vec::new();
        // A tree before its listing: whoever looks for a tree looks for both.
        let (listings, trees): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, it)| *it);
        for (digest, is_listing) in trees.into_iter().chain(listings) {
            let path = if is_listing {
                self.store.listing_path(&digest)
            } else {
                self.store.tree_path(&digest)
            };
            let used = kept::changed(&path)?;
            removals.extend(self.old(Kind::Leftovers, path, used, Unless::Tree(digest))?);
        }
        for (id, name) in links.all() {
            if !kept.graph.number(&id).is_some_and(|it| kept.graph.is_here(it)) && !kept.has(&id) {
                let path = self.store.directory("objects").join(name);
                let used = kept::changed(&path)?;
                removals.extend(self.old(Kind::Leftovers, path, used, Unless::Object(id))?);
            }
        }
        Ok(removals)
    }

    /// What belongs to derivations and realisations that are gone.
    fn others(&self, kept: &mut Kept, standing: &Standing) -> Result<Vec<Removal>, StoreError> {
        let mut removals = Vec::new();
        let stays = |path: &Path| {
            let name = file_name(path);
            let hash = name.strip_suffix(".log").unwrap_or(name);
            hash.parse().is_ok_and(|hash: ResolvedHash| standing.resolved.contains(&hash))
        };
        let by_hash =
            [("statements", Kind::Statements), ("rebuilt", Kind::Statements), ("logs", Kind::Logs)];
        for (directory, kind) in by_hash {
            for path in self.entries(directory)?.into_iter().filter(|path| !stays(path)) {
                let used = kept::modified(&path)?;
                removals.extend(self.old(kind, path, used, Unless::Nothing)?);
            }
        }
        let derivations = self.derivations(kept, standing, &mut removals)?;
        if self.retention.keep_sources {
            return Ok(removals);
        }
        let fetched = derivations.iter().filter_map(|derivation| match &derivation.action {
            Action::Fetch(fetch) => Some(fetch.sha256),
            Action::Build(_) | Action::Stage(_) => None,
        });
        kept.sources.extend(fetched);
        for path in self.entries("sources")? {
            let name = file_name(&path);
            let digits = name.strip_prefix(".partial-").unwrap_or(name).get(..64);
            let sha256: Option<Sha256> = digits.and_then(|digits| digits.parse().ok());
            // Nothing of srp's, so nothing that srp removes.
            let Some(sha256) = sha256 else { continue };
            if !kept.sources.contains(&sha256) {
                let used = kept::changed(&path)?;
                removals.extend(self.old(Kind::Sources, path, used, Unless::Source(sha256))?);
            }
        }
        Ok(removals)
    }

    /// The derivations that stay. Those are what standing claims are of, what processes rely on and
    /// what is young, with all that they are made from.
    fn derivations(
        &self,
        kept: &mut Kept,
        standing: &Standing,
        removals: &mut Vec<Removal>,
    ) -> Result<Vec<Derivation>, StoreError> {
        let mut paths: BTreeMap<StaticHash, (PathBuf, i64)> = BTreeMap::new();
        for path in self.entries("derivations")? {
            if let Ok(hash) = file_name(&path).parse()
                && let Some(time) = kept::modified(&path)?
            {
                paths.insert(hash, (path, time));
            }
        }
        let is_start = |hash: &StaticHash, time: i64| {
            self.retention.keep_derivations
                || self.age.is_young(time)
                || standing.derivations.contains(hash)
                || kept.derivations.contains(hash)
        };
        let starts = paths.iter().filter(|(hash, (_, time))| is_start(hash, *time));
        let mut pending: Vec<StaticHash> = starts.map(|(hash, _)| *hash).collect();
        let mut stay: HashSet<StaticHash> = HashSet::new();
        let mut derivations = Vec::new();
        while !pending.is_empty() {
            let level: Vec<StaticHash> =
                pending.drain(..).filter(|hash| stay.insert(*hash)).collect();
            let read = level.par_iter().map(|hash| self.store.read_derivation(hash));
            for derivation in read.collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
                pending.extend(derivation.inputs().iter().map(|input| input.key.derivation));
                derivations.push(derivation);
            }
        }
        for (hash, (path, time)) in paths {
            if !stay.contains(&hash) {
                let unless = Unless::Derivation(hash);
                removals.extend(self.old(Kind::Derivations, path, Some(time), unless)?);
            }
        }
        kept.derivations.extend(stay);
        Ok(derivations)
    }

    /// Something that goes, unless it is young, or gone.
    fn old(
        &self,
        kind: Kind,
        path: PathBuf,
        used: Option<i64>,
        unless: Unless,
    ) -> Result<Option<Removal>, StoreError> {
        let Some(used) = used.filter(|used| !self.age.is_young(*used)) else { return Ok(None) };
        let disk_bytes = disk_bytes(&path)?;
        Ok(Some(Removal { kind, path, disk_bytes, used, unless }))
    }

    /// What is in a directory of the store, but for what is being written.
    fn entries(&self, directory: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut entries = files::entries(&self.store.directory(directory))?;
        entries.retain(|path| !staged::is_staged(path.file_name().unwrap_or_default()));
        entries.sort();
        Ok(entries)
    }
}

/// Finds out what trees take on the disk, and keeps it with the graph.
pub(crate) fn measure(
    store: &Store,
    graph: &mut graph::Graph,
    trees: &[u32],
) -> Result<(), StoreError> {
    if trees.is_empty() {
        return Ok(());
    }
    let one = |tree: &u32| {
        let digest = &graph.trees()[*tree as usize];
        let listing = disk_bytes(&store.listing_path(digest))?;
        Ok((*tree, disk_bytes(&store.tree_path(digest))? + listing))
    };
    let measured = trees.par_iter().map(one).collect::<Result<Vec<_>, StoreError>>()?;
    measured.into_iter().for_each(|(tree, bytes)| graph.set_disk_bytes(tree, bytes));
    store.keep_graph(graph);
    Ok(())
}

/// The names in `objects/`, by id.
struct Links {
    names: Vec<u8>,
    by_id: Vec<(ObjectId, u32, u32)>,
}

impl Links {
    fn of(store: &Store) -> Result<Links, StoreError> {
        let mut links = Links { names: Vec::new(), by_id: Vec::new() };
        let Links { names, by_id } = &mut links;
        graph::each_name(&store.directory("objects"), &mut |name| {
            let id = name.get(..ObjectId::TEXT_LENGTH).and_then(|it| std::str::from_utf8(it).ok());
            if let Some(id) = id.and_then(|id| id.parse().ok())
                && std::str::from_utf8(name).is_ok()
            {
                let start = names.len() as u32;
                names.extend_from_slice(name);
                by_id.push((id, start, names.len() as u32));
            }
        })?;
        by_id.par_sort_unstable();
        Ok(links)
    }

    fn all(&self) -> impl Iterator<Item = (ObjectId, &str)> {
        self.by_id.iter().map(|(id, start, end)| (*id, self.text(*start, *end)))
    }

    fn name(&self, id: &ObjectId) -> Option<&str> {
        let at = self.by_id.binary_search_by_key(id, |(id, ..)| *id).ok()?;
        let (_, start, end) = self.by_id[at];
        Some(self.text(start, end))
    }

    fn text(&self, start: u32, end: u32) -> &str {
        std::str::from_utf8(&self.names[start as usize..end as usize]).expect("it was looked at")
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
