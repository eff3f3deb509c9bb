//! Carrying a plan out, in batches between which everybody else goes on.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::digest::ObjectId;
use crate::error::{IoContext, StoreError};
use crate::gc::kept::{Kept, as_time};
use crate::gc::plan::{Plan, Removal, Unless, Victim};
use crate::gc::trash::Trash;
use crate::gc::{Amount, Collected, Control, Item, Kind, Progress, Retention};
use crate::realisation::{Claim, Realisation};
use crate::rely::{Collecting, Gate, Relied, is_full};
use crate::store::Store;

/// How many things go while the gate is held: a few milliseconds' worth.
const BATCH: usize = if cfg!(test) { 2 } else { 128 };

impl Store {
    /// What [`collect_garbage`](Store::collect_garbage) would remove now.
    ///
    /// # Errors
    /// As there.
    pub fn plan_garbage(
        &self,
        retention: &Retention,
        control: &Control<'_>,
    ) -> Result<Collected, StoreError> {
        self.check_writable()?;
        let relied = {
            let gate = Gate::exclusive(self, control.is_cancelled)?;
            self.relied_on(&gate)?
        };
        let mut kept = self.kept(&relied, control)?;
        let plan = Plan::new(self, &mut kept, retention)?;
        let mut collected = Collected { kept_objects: plan.kept_objects, ..Collected::default() };
        collected.items.extend(plan.caches.iter().map(|it| self.item(it)));
        for path in &plan.realisations {
            collected.items.push(self.realisation_item(path));
        }
        collected.items.extend(plan.objects.iter().map(Victim::item));
        collected.items.extend(plan.others.iter().map(|it| self.item(it)));
        Ok(collected)
    }

    /// Removes whatever neither a root, nor a living process, nor `retention` keeps. `None`: another
    /// collection is at work.
    ///
    /// # Errors
    /// A root, a record or what a process says it relies on can't be read: then nothing is removed.
    /// [`StoreError::Cancelled`], and what the system says: then what was removed by then is gone,
    /// and the store is as sound as before.
    pub fn collect_garbage(
        &self,
        retention: &Retention,
        control: &Control<'_>,
    ) -> Result<Option<Collected>, StoreError> {
        self.check_writable()?;
        self.sweep_sessions()?;
        self.sweep_trash(control.is_cancelled)?;
        let gate = Gate::exclusive(self, control.is_cancelled)?;
        let (passage, relied) = match Collecting::begin(self, &gate) {
            Ok(None) => return Ok(None),
            Ok(Some(collecting)) => {
                let relied = self.relied_on(&gate)?;
                drop(gate);
                (Passage::Batches(collecting), relied)
            }
            Err(StoreError::Io { source, .. }) if is_full(&source) => {
                let relied = self.relied_on(&gate)?;
                (Passage::Held(gate), relied)
            }
            Err(error) => return Err(error),
        };
        check(control)?;
        let mut kept = self.kept(&relied, control)?;
        let plan = Plan::new(self, &mut kept, retention)?;
        check(control)?;
        let mut planned = Amount::default();
        let removals = plan.caches.iter().chain(&plan.others).map(|it| it.disk_bytes);
        removals.chain(plan.objects.iter().map(|it| it.disk_bytes)).for_each(|it| planned.add(it));
        (control.progress)(Progress::Planned(planned));
        let trash = Trash::new(self)?;
        let collected = Collected { kept_objects: plan.kept_objects, ..Collected::default() };
        let mut collecting = Collection { store: self, passage, kept, trash, collected, control };
        let done = collecting.carry_out(&plan);
        // What was moved away is nobody's any more, whatever came after it.
        let Collection { trash, mut collected, passage, .. } = collecting;
        drop(passage);
        done?;
        trash.empty(control)?;
        let gone = collected.items.iter().filter(|item| item.kind == Kind::Objects).count();
        collected.kept_objects += (plan.objects.len() - gone) as u64;
        Ok(Some(collected))
    }

    /// What roots and processes keep. In this order: what is named by a root later than here was
    /// relied on before, and what is registered later than here as well.
    fn kept(&self, relied: &[(String, Relied)], control: &Control<'_>) -> Result<Kept, StoreError> {
        let roots = self.roots()?;
        check(control)?;
        let graph = self.graph()?;
        check(control)?;
        Kept::new(self, graph, &roots, relied)
    }

    fn item(&self, removal: &Removal) -> Item {
        Item {
            kind: removal.kind,
            path: self.relative(&removal.path),
            disk_bytes: removal.disk_bytes,
            used: as_time(removal.used),
        }
    }

    fn realisation_item(&self, path: &Path) -> Item {
        let disk_bytes = crate::gc::graph::disk_bytes(path).unwrap_or_default();
        Item { kind: Kind::Realisations, path: self.relative(path), disk_bytes, used: None }
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(self.root()).unwrap_or(path).display().to_string()
    }
}

impl Victim {
    fn item(&self) -> Item {
        Item {
            kind: Kind::Objects,
            path: format!("objects/{}", self.name),
            disk_bytes: self.disk_bytes,
            used: as_time(self.used),
        }
    }
}

/// How others are kept out while something is removed.
enum Passage {
    /// For each batch anew; in between they say what they come to rely on.
    Batches(Collecting),
    /// All the time: there was no room on the disk for what they would say.
    Held(#[expect(dead_code, reason = "it is held")] Gate),
}

struct Collection<'a> {
    store: &'a Store,
    passage: Passage,
    kept: Kept,
    trash: Trash,
    collected: Collected,
    control: &'a Control<'a>,
}

impl Collection<'_> {
    fn carry_out(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let store = self.store;
        self.remove_all(&plan.caches)?;
        self.in_batches(&plan.realisations, |this, path| {
            if this.has_fallen(path)? {
                let item = store.realisation_item(path);
                if unlink(path)? {
                    this.collected.items.push(item);
                }
            }
            Ok(())
        })?;
        if !plan.realisations.is_empty() {
            for name in ["realisations/static", "realisations/resolved"] {
                store.committer.sync_directory(&store.directory(name))?;
            }
        }
        let mut gone = Vec::new();
        self.in_batches(&plan.objects, |this, victim| {
            if !this.kept.objects.has(victim.number) {
                let id = this.kept.graph.id(victim.number);
                unlink(&store.info_path(id))?;
                gone.push(victim);
            }
            Ok(())
        })?;
        if !gone.is_empty() {
            store.committer.sync_directory(&store.directory("info"))?;
        }
        self.in_batches(&gone, |this, victim| {
            // Made anew meanwhile, or about to be: then what is there is as good as what would be.
            if this.kept.objects.has(victim.number) {
                return Ok(());
            }
            unlink(&store.directory("objects").join(&victim.name))?;
            let mut item = victim.item();
            match victim.tree.filter(|tree| !this.kept.has_tree(tree)) {
                Some(tree) => {
                    // A tree before its listing: whoever looks for a tree looks for both.
                    this.trash.take(&store.tree_path(&tree), victim.tree_bytes)?;
                    unlink(&store.listing_path(&tree))?;
                }
                None => item.disk_bytes -= victim.tree_bytes,
            }
            this.collected.items.push(item);
            Ok(())
        })?;
        self.remove_all(&plan.others)
    }

    fn remove_all(&mut self, removals: &[Removal]) -> Result<(), StoreError> {
        self.in_batches(removals, |this, removal| {
            let is_gone = !this.stays(&removal.unless)
                && this.trash.take(&removal.path, removal.disk_bytes)?;
            if is_gone {
                this.collected.items.push(this.store.item(removal));
            }
            Ok(())
        })
    }

    /// Does something with each item, a batch at a time: with the gate held, and after a look at
    /// what others have come to rely on.
    fn in_batches<'i, T>(
        &mut self,
        items: &'i [T],
        mut remove: impl FnMut(&mut Self, &'i T) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for batch in items.chunks(BATCH) {
            check(self.control)?;
            let _gate = match &mut self.passage {
                Passage::Batches(collecting) => {
                    let gate = Gate::exclusive(self.store, self.control.is_cancelled)?;
                    let added = collecting.added(&gate)?;
                    added.iter().try_for_each(|relied| self.kept.keep(self.store, relied))?;
                    Some(gate)
                }
                Passage::Held(_) => None,
            };
            batch.iter().try_for_each(|item| remove(self, item))?;
        }
        Ok(())
    }

    /// Whether a realisation or claim, as it is now, names an object that goes or is gone. It may
    /// have been written again since it was read.
    fn has_fallen(&self, path: &Path) -> Result<bool, StoreError> {
        let is_claim = path.parent().is_some_and(|it| it.ends_with("static"));
        let outputs: Option<Vec<ObjectId>> = if is_claim {
            let claim = self.store.record::<Claim>(path)?;
            claim.map(|claim| claim.outputs.into_values().collect())
        } else {
            let realisation = self.store.record::<Realisation>(path)?;
            realisation.map(|realisation| realisation.outputs.into_values().collect())
        };
        Ok(outputs.is_some_and(|outputs| outputs.iter().any(|id| !self.kept.has(id))))
    }

    fn stays(&self, unless: &Unless) -> bool {
        match unless {
            Unless::Nothing => false,
            Unless::Tree(digest) => self.kept.has_tree(digest),
            Unless::Object(id) => self.kept.has(id),
            Unless::Composed(digest) => self.kept.has_composed(digest),
            Unless::Derivation(hash) => self.kept.derivations.contains(hash),
            Unless::Source(sha256) => self.kept.sources.contains(sha256),
        }
    }
}

fn check(control: &Control<'_>) -> Result<(), StoreError> {
    if (control.is_cancelled)() { Err(StoreError::Cancelled) } else { Ok(()) }
}

/// Removes a file; false if it is gone.
fn unlink(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("remove", path),
    }
}
