//! The one write order.
//!
//! What is to be registered is staged beside its place: trees below `trees/`, records beside the
//! records. Then, for everything that finished together (a *group*), in this order: one `syncfs`
//! makes all of it survive a power cut; trees are renamed to their places; their directory is
//! synced; then records are renamed, an object's before the realisation that names it, and their
//! directories synced. A crash at
//! any point leaves a whole object or none, and never a record of what isn't there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use crate::compose::RESERVED;
use crate::db::{self, Info};
use crate::digest::{ResolvedHash, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::manifest;
use crate::object::Object;
use crate::realisation::{Claim, Realisation};
use crate::store::Store;

/// Where records are renamed to.
const RECORDS: &[&str] = &["info", "objects", "realisations/static", "realisations/resolved"];

/// What is registered together: all of it or, after a crash, none that refers to the rest.
#[derive(Debug, Default)]
pub struct Registration {
    trees: Vec<(PathBuf, PathBuf)>,
    records: Vec<(PathBuf, Vec<u8>)>,
    links: Vec<(PathBuf, PathBuf)>,
    realisations: Vec<(PathBuf, Vec<u8>)>,
    /// Objects with something at `/srp`, and where their trees lie for now.
    reserved: Vec<(Object, Arc<Listing>, PathBuf)>,
}

/// Lets threads that finish together share one `syncfs`.
#[derive(Debug)]
pub(crate) struct Committer {
    root: PathBuf,
    /// Whether anything is synced at all.
    synced: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(u64, Registration)>,
    finished: BTreeMap<u64, Result<(), StoreError>>,
    next: u64,
    leading: bool,
}

impl Registration {
    /// Adds an object whose normalised tree lies at `staged`, on the store's file system.
    pub fn object(
        &mut self,
        store: &Store,
        object: &Object,
        listing: Arc<Listing>,
        staged: PathBuf,
    ) {
        self.records.push((store.listing_path(&object.tree), listing.encode()));
        self.record(store, object, &listing, &staged);
        self.trees.push((staged, store.tree_path(&object.tree)));
        store.remember_listing(listing);
    }

    /// Adds an object whose tree is in the store already, and holds what `listing` says.
    pub fn existing_tree(&mut self, store: &Store, object: &Object, listing: &Arc<Listing>) {
        self.record(store, object, listing, &store.tree_path(&object.tree));
    }

    fn record(&mut self, store: &Store, object: &Object, listing: &Arc<Listing>, tree: &Path) {
        if listing.find(RESERVED).is_some() {
            self.reserved.push((object.clone(), Arc::clone(listing), tree.to_owned()));
        }
        let size_bytes = listing.extent().size_bytes;
        let info = Info { object: object.clone(), size_bytes };
        self.records.push((store.info_path(&object.id()), db::encode(&info)));
        let target = Path::new("../trees").join(object.tree.to_string());
        self.links.push((store.object_path(&object.path_name()), target));
    }

    /// As what a forger's own program would register.
    #[cfg(test)]
    pub(crate) fn ungated(mut self) -> Registration {
        self.reserved.clear();
        self
    }

    /// Whether there is nothing to register.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty() && self.records.is_empty() && self.realisations.is_empty()
    }

    /// Adds what a resolved derivation came out as.
    pub fn realisation(&mut self, store: &Store, hash: &ResolvedHash, realisation: &Realisation) {
        self.realisations.push((store.realisation_path(hash), db::encode(realisation)));
    }

    /// Adds what was chosen for a derivation by its static hash.
    pub fn claim(&mut self, store: &Store, hash: &StaticHash, claim: &Claim) {
        self.realisations.push((store.claim_path(hash), db::encode(claim)));
    }
}

impl Store {
    /// Registers everything in `registration`; when this returns, it survives a power cut.
    ///
    /// Calls from several threads at once are committed as a group.
    ///
    /// # Errors
    /// [`StoreError::Reserved`] and [`StoreError::NotAStage`] for what would forge a stage.
    pub fn commit(&self, registration: Registration) -> Result<(), StoreError> {
        self.check_writable()?;
        for (object, listing, tree) in &registration.reserved {
            manifest::admit(object, listing, tree)?;
        }
        self.committer.commit(registration)
    }
}

impl Committer {
    pub(crate) fn new(root: &Path, synced: bool) -> Committer {
        Committer {
            root: root.to_owned(),
            synced,
            queue: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn commit(&self, registration: Registration) -> Result<(), StoreError> {
        let mut queue = self.queue.lock().expect("no holder panics");
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.push((ticket, registration));
        loop {
            if let Some(result) = queue.finished.remove(&ticket) {
                return result;
            }
            if queue.leading {
                queue = self.changed.wait(queue).expect("no holder panics");
                continue;
            }
            queue.leading = true;
            let group = std::mem::take(&mut queue.waiting);
            drop(queue);
            let results = self.write(group);
            queue = self.queue.lock().expect("no holder panics");
            queue.finished.extend(results);
            queue.leading = false;
            self.changed.notify_all();
        }
    }

    /// Writes a group. A member that fails doesn't fail the others.
    fn write(&self, group: Vec<(u64, Registration)>) -> Vec<(u64, Result<(), StoreError>)> {
        let mut staged = Vec::new();
        let mut results = Vec::new();
        for (ticket, registration) in group {
            match stage(registration) {
                Ok(registration) => staged.push((ticket, registration)),
                Err(error) => results.push((ticket, Err(error))),
            }
        }
        if staged.is_empty() {
            return results;
        }
        // If nothing can be synced, nothing is placed: what is staged is cleaned up as leftovers.
        if let Err(error) = self.sync() {
            let text = error.to_string();
            let failed = |(ticket, _)| (ticket, Err(self.not_synced(&text)));
            results.extend(staged.into_iter().map(failed));
            return results;
        }
        let placed: Vec<_> = staged
            .into_iter()
            .map(|(ticket, staged)| {
                let trees = staged.trees.iter().try_for_each(|(from, to)| place_tree(from, to));
                (ticket, staged, trees)
            })
            .collect();
        let trees_synced = self.sync_directory("trees");
        for (ticket, staged, trees) in placed {
            let placed = trees
                .and_then(|()| match &trees_synced {
                    Ok(()) => Ok(()),
                    Err(_) => self.sync_directory("trees"),
                })
                .and_then(|()| {
                    staged.records.iter().try_for_each(|(from, to)| files::place(from, to))?;
                    staged.links.iter().try_for_each(|(to, target)| {
                        if fs::read_link(to).is_ok_and(|old| old == *target) {
                            return Ok(());
                        }
                        files::symlink_atomically(to, target)
                    })?;
                    staged.realisations.iter().try_for_each(|(from, to)| files::place(from, to))
                });
            results.push((ticket, placed));
        }
        // The records' names are to survive, too: only then has a caller been told the truth.
        if let Err(error) = RECORDS.iter().try_for_each(|name| self.sync_directory(name)) {
            let text = error.to_string();
            for (_, result) in results.iter_mut().filter(|(_, result)| result.is_ok()) {
                *result = Err(self.not_synced(&text));
            }
        }
        results
    }

    /// One failure to sync, as each member of a group is told of it.
    fn not_synced(&self, text: &str) -> StoreError {
        StoreError::Io {
            action: "sync",
            path: self.root.clone(),
            source: std::io::Error::other(text.to_owned()),
        }
    }

    fn sync_directory(&self, name: &str) -> Result<(), StoreError> {
        if !self.synced {
            return Ok(());
        }
        files::sync_directory(&self.root.join(name))
    }

    /// Makes everything that was written to the store's file system survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        if !self.synced {
            return Ok(());
        }
        let root = File::open(&self.root).at("open", &self.root)?;
        nix::unistd::syncfs(&root).at("sync", &self.root)
    }
}

/// A registration whose files are written under temporary names: pairs of staged and final path.
struct Staged {
    trees: Vec<(PathBuf, PathBuf)>,
    records: Vec<(PathBuf, PathBuf)>,
    links: Vec<(PathBuf, PathBuf)>,
    realisations: Vec<(PathBuf, PathBuf)>,
}

fn stage(registration: Registration) -> Result<Staged, StoreError> {
    let write = |records: Vec<(PathBuf, Vec<u8>)>| {
        records
            .into_iter()
            .map(|(path, bytes)| Ok((files::stage_file(&path, &bytes, 0o444)?, path)))
            .collect::<Result<Vec<_>, StoreError>>()
    };
    Ok(Staged {
        trees: registration.trees,
        records: write(registration.records)?,
        links: registration.links,
        realisations: write(registration.realisations)?,
    })
}

/// Renames a tree to its place; a tree that is there already is as good, being the same.
fn place_tree(staged: &Path, place: &Path) -> Result<(), StoreError> {
    match fs::rename(staged, place) {
        Ok(()) => fs::set_permissions(place, fs::Permissions::from_mode(0o555)).at("change", place),
        Err(error)
            if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists)
                || (place.is_dir() && staged.is_dir()) =>
        {
            files::remove_tree(staged)
        }
        Err(error) => Err(error).at("rename", staged),
    }
}
