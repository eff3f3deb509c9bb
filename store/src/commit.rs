//! The one write order.
//!
//! What is to be registered is staged below `tmp/`. Then, for everything that finished together (a
//! *group*): one `syncfs` makes all of it survive a power cut, and it is renamed to its places, each
//! thing after what it relies on, the directories of that synced in between:
//!
//! 1. listings, the trees that they are of, and the store paths that lead to these;
//! 2. info records;
//! 3. realisations and claims.
//!
//! A crash at any point leaves a whole object or none, and never a record of what isn't there. The
//! order is that of [`presence`](crate::presence), which says when an object is here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempPath;

use crate::compose::RESERVED;
use crate::db::{self, Info};
use crate::digest::{Digest, ResolvedHash, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::manifest;
use crate::object::Object;
use crate::open_tree::OpenTree;
use crate::presence::link_target;
use crate::realisation::{Claim, Realisation};
use crate::rely::Relied;
use crate::store::Store;
use crate::verification::Lost;

/// What is registered together: all of it or, after a crash, none that refers to the rest.
#[derive(Debug, Default)]
pub struct Registration {
    /// Trees and where they lie for now.
    trees: Vec<(PathBuf, Arc<Listing>)>,
    /// Those of them in whose place a damaged one lies.
    instead: BTreeSet<Digest>,
    infos: Vec<(PathBuf, Vec<u8>)>,
    links: Vec<(PathBuf, PathBuf)>,
    realisations: Vec<(PathBuf, Vec<u8>)>,
    /// Objects with something at `/srp`, and where their trees lie for now.
    reserved: Vec<(Object, Arc<Listing>, PathBuf)>,
    /// What is to stay once it is placed, and what may be here already.
    relied: Vec<Relied>,
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
    waiting: Vec<(u64, Staged)>,
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
        self.record(store, object, &listing, &staged);
        self.tree(store, listing, staged);
    }

    /// Adds a normalised tree at `staged`, on the store's file system, without an object: what is
    /// to refer to others that aren't here yet.
    pub(crate) fn tree(&mut self, store: &Store, listing: Arc<Listing>, staged: PathBuf) {
        self.relied.push(Relied::Tree(listing.digest()));
        store.remember_listing(Arc::clone(&listing));
        self.trees.push((staged, listing));
    }

    /// Adds an object whose tree is in the store already or in this registration, and holds what
    /// `listing` says.
    pub fn existing_tree(&mut self, store: &Store, object: &Object, listing: &Arc<Listing>) {
        self.record(store, object, listing, &store.tree_path(&object.tree));
    }

    fn record(&mut self, store: &Store, object: &Object, listing: &Arc<Listing>, tree: &Path) {
        if listing.find(RESERVED).is_some() {
            self.reserved.push((object.clone(), Arc::clone(listing), tree.to_owned()));
        }
        self.relied.extend([Relied::Tree(object.tree), Relied::Object(object.id())]);
        let size_bytes = listing.size_bytes();
        let info = Info { object: object.clone(), size_bytes };
        let (path, name) = (store.info_path(&object.id()), object.id().to_string());
        self.infos.push((path, db::encode(&info, &name)));
        let path = store.object_path(&object.path_name());
        self.links.push((path, link_target(&object.tree)));
    }

    /// As what a forger's own program would register.
    #[cfg(test)]
    pub(crate) fn ungated(mut self) -> Registration {
        self.reserved.clear();
        self
    }

    /// Whether there is nothing to register.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty() && self.infos.is_empty() && self.realisations.is_empty()
    }

    /// Adds what a resolved derivation came out as.
    pub fn realisation(&mut self, store: &Store, hash: &ResolvedHash, realisation: &Realisation) {
        let bytes = db::encode(realisation, &hash.to_string());
        self.realisations.push((store.realisation_path(hash), bytes));
    }

    /// Adds what was chosen for a derivation by its static hash.
    pub fn claim(&mut self, store: &Store, hash: &StaticHash, claim: &Claim) {
        let bytes = db::encode(claim, &hash.to_string());
        self.realisations.push((store.claim_path(hash), bytes));
    }
}

impl Store {
    /// Registers everything in `registration`; when this returns, it survives a power cut.
    ///
    /// Calls from several threads at once are committed as a group.
    ///
    /// # Errors
    /// [`StoreError::Reserved`] and [`StoreError::NotAStage`] for what would forge a stage.
    pub fn commit(&self, mut registration: Registration) -> Result<(), StoreError> {
        self.check_writable()?;
        for (object, listing, tree) in &registration.reserved {
            manifest::admit(object, listing, tree)?;
        }
        if registration.is_empty() {
            return Ok(());
        }
        // Before any of it is looked for or placed: a tree that is here already must stay.
        self.rely(registration.relied.iter().copied())?;
        self.settle(&mut registration)?;
        let staged = Staged::new(self, registration)?;
        self.committer.commit(self, staged)
    }

    /// Decides what becomes of trees that are there already: one that is sound stays, since others
    /// may use it, and one that is damaged makes room. What was brought has just been hashed, so it
    /// costs no more to hash the other, too.
    fn settle(&self, registration: &mut Registration) -> Result<(), StoreError> {
        let mut new = Vec::with_capacity(registration.trees.len());
        for (staged, listing) in registration.trees.drain(..) {
            let place = self.place(&listing.digest());
            if fs::symlink_metadata(&place.directory).is_err() {
                new.push((staged, listing));
                continue;
            }
            let kept = || Some(Arc::clone(&listing));
            let mut report = self.verify(&place, kept, Lost::MakeAgain, None, &|_| {})?;
            self.mend_report(&place, &mut report)?;
            if let Some(damage) = report.first() {
                let path = place.directory.display();
                tracing::warn!("{path} is damaged ({damage}), and is replaced");
                registration.instead.insert(listing.digest());
                new.push((staged, listing));
            } else {
                files::remove_tree(&staged)?;
            }
        }
        registration.trees = new;
        Ok(())
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

    fn commit(&self, store: &Store, staged: Staged) -> Result<(), StoreError> {
        let mut queue = self.queue.lock().expect("no holder panics");
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.push((ticket, staged));
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
            let results = self.write(store, group);
            queue = self.queue.lock().expect("no holder panics");
            queue.finished.extend(results);
            queue.leading = false;
            self.changed.notify_all();
        }
    }

    /// Writes a group. A member that fails doesn't fail the others.
    fn write(
        &self,
        store: &Store,
        group: Vec<(u64, Staged)>,
    ) -> Vec<(u64, Result<(), StoreError>)> {
        let mut members: Vec<Member> = group
            .into_iter()
            .map(|(ticket, staged)| Member { ticket, staged, result: Ok(()) })
            .collect();
        // If nothing can be synced, nothing is placed; what is staged is removed.
        if let Err(error) = self.sync() {
            fail(&mut members, |_| true, &error);
        }
        for (place, concerned, directories) in STEPS {
            for member in members.iter_mut().filter(|it| it.result.is_ok()) {
                member.result = place(store, &mut member.staged);
            }
            if members.iter().any(|it| it.result.is_ok() && concerned(it)) {
                for name in *directories {
                    if let Err(error) = self.sync_directory(&self.root.join(name)) {
                        fail(&mut members, concerned, &error);
                    }
                }
            }
        }
        members.into_iter().map(|member| (member.ticket, member.result)).collect()
    }

    /// Makes what was renamed in a directory of the store survive a power cut.
    pub(crate) fn sync_directory(&self, path: &Path) -> Result<(), StoreError> {
        if self.synced { files::sync_directory(path) } else { Ok(()) }
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

/// A step of the write order: what is placed, whom it concerns, and what is synced afterwards.
type Step = (
    fn(&Store, &mut Staged) -> Result<(), StoreError>,
    fn(&Member) -> bool,
    &'static [&'static str],
);

const STEPS: &[Step] = &[
    (Staged::place_trees, |it| it.staged.has_objects, &["trees", "objects"]),
    (Staged::place_infos, |it| it.staged.has_objects, &["info"]),
    (
        Staged::place_realisations,
        |it| it.staged.has_realisations,
        &["realisations/resolved", "realisations/static"],
    ),
];

/// A member of a group.
struct Member {
    ticket: u64,
    staged: Staged,
    result: Result<(), StoreError>,
}

/// One failure to sync, as each member of a group that it concerns is given it.
fn fail(members: &mut [Member], concerned: impl Fn(&Member) -> bool, error: &StoreError) {
    for member in members.iter_mut().filter(|it| it.result.is_ok() && concerned(it)) {
        let (path, source) = match error {
            StoreError::Io { path, source, .. } => (path.clone(), again(source)),
            other => (PathBuf::new(), std::io::Error::other(other.to_string())),
        };
        member.result = Err(StoreError::Io { action: "sync", path, source });
    }
}

/// The same error, which can't be copied.
fn again(error: &std::io::Error) -> std::io::Error {
    let other = || std::io::Error::other(error.to_string());
    error.raw_os_error().map_or_else(other, std::io::Error::from_raw_os_error)
}

/// A registration whose files are written under temporary names: pairs of staged and final path.
/// What has no place when this is dropped is removed.
#[derive(Debug)]
struct Staged {
    /// Also: whether what is there is to be replaced.
    trees: Vec<(PathBuf, PathBuf, bool)>,
    listings: Vec<(TempPath, PathBuf)>,
    infos: Vec<(TempPath, PathBuf)>,
    links: Vec<(PathBuf, PathBuf)>,
    realisations: Vec<(TempPath, PathBuf)>,
    /// What it brings: the lists get empty as they are placed.
    has_objects: bool,
    has_realisations: bool,
}

impl Staged {
    fn new(store: &Store, registration: Registration) -> Result<Staged, StoreError> {
        let write = |records: Vec<(PathBuf, Vec<u8>)>| {
            records
                .into_iter()
                .map(|(path, bytes)| Ok((store.stage(&bytes, 0o444)?, path)))
                .collect::<Result<Vec<_>, StoreError>>()
        };
        let Registration { trees, instead, infos, links, realisations, reserved: _, relied: _ } =
            registration;
        let has_objects = !trees.is_empty() || !infos.is_empty();
        let listings = trees
            .iter()
            .map(|(_, listing)| (store.listing_path(&listing.digest()), listing.encode()));
        let listings = write(listings.collect())?;
        let trees = trees.into_iter().map(|(from, listing)| {
            let tree = listing.digest();
            (from, store.tree_path(&tree), instead.contains(&tree))
        });
        let has_realisations = !realisations.is_empty();
        Ok(Staged {
            trees: trees.collect(),
            listings,
            infos: write(infos)?,
            links,
            realisations: write(realisations)?,
            has_objects,
            has_realisations,
        })
    }

    fn place_trees(store: &Store, staged: &mut Staged) -> Result<(), StoreError> {
        // Where there is a tree, there is its listing: whoever has a tree to bring looks for that.
        place_all(&mut staged.listings)?;
        staged.trees.drain(..).try_for_each(|(from, to, instead)| match instead {
            true => store.replace(&from, &to),
            false => place_tree(&from, &to),
        })?;
        staged.links.drain(..).try_for_each(|(path, target)| store.link(&path, &target))
    }

    fn place_infos(_: &Store, staged: &mut Staged) -> Result<(), StoreError> {
        place_all(&mut staged.infos)
    }

    fn place_realisations(_: &Store, staged: &mut Staged) -> Result<(), StoreError> {
        place_all(&mut staged.realisations)
    }
}

fn place_all(staged: &mut Vec<(TempPath, PathBuf)>) -> Result<(), StoreError> {
    staged.drain(..).try_for_each(|(from, to)| files::place(from, &to))
}

/// Renames a tree to its place; one that somebody else has placed there just now is as good.
///
/// Nothing is followed: a link in either place is no tree, and what it points to stays as it is.
fn place_tree(staged: &Path, place: &Path) -> Result<(), StoreError> {
    let tree = OpenTree::open(staged)?;
    match fs::rename(staged, place) {
        Ok(()) => {
            let mode = rustix::fs::Mode::from_raw_mode(0o555);
            rustix::fs::fchmod(&tree, mode).at("change", place)
        }
        Err(error)
            if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists)
                || fs::symlink_metadata(place).is_ok_and(|there| there.is_dir()) =>
        {
            files::remove_tree(staged)
        }
        Err(error) => Err(error).at("rename", staged),
    }
}
