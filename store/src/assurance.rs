//! Assurance: that trees were verified lately, before something is built from them or signed.
//!
//! What is damaged is not repaired here, but for modes and times, which need no other copy. It is
//! given up by whoever has it built or fetched again ([`Store::give_up`]), and stays until what comes of that
//! takes its place: it may be the only copy.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode};

use crate::content::TREE_TIME;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::open_tree::{self, OpenTree};
use crate::store::Store;
use crate::tree::{Entry, TREE_TIME_SECONDS};
use crate::verification::{Damage, DamageKind, Lost, Place, Stamp, TreeReport};

/// How lately trees must have been verified, and what happens while they are.
#[derive(Clone, Copy)]
pub struct Assurance<'a> {
    /// What was verified within this time needn't be again. If it is zero, nothing is believed but
    /// what was verified since the store was opened.
    pub within: Duration,
    /// When this becomes true, it ends soon, with [`StoreError::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
    /// Called with how many bytes were verified, and of how many, if any have to be: from several
    /// threads.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// How long what verification found is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// For building from it, and for shells.
    pub building: Duration,
    /// For signing it, and what was made from it.
    pub signing: Duration,
}

impl Default for Validity {
    fn default() -> Validity {
        const DAY: u64 = 24 * 60 * 60;
        Validity { building: Duration::from_secs(30 * DAY), signing: Duration::from_secs(DAY) }
    }
}

impl<'a> Assurance<'a> {
    /// Without anybody who watches or stops it.
    pub fn within(within: Duration) -> Assurance<'a> {
        Assurance { within, cancel: None, progress: &|_, _| {} }
    }
}

impl std::fmt::Debug for Assurance<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assurance").field("within", &self.within).finish_non_exhaustive()
    }
}

impl Store {
    /// Verifies those of these trees that were not within the time that is asked for, or aren't
    /// there. Reports on those that are damaged, of which nothing may be used.
    ///
    /// One call at a time verifies, with a thread for each processor, of low priority: builds go on
    /// meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`], or what the system says.
    pub fn assure(
        &self,
        trees: &BTreeSet<Digest>,
        assurance: &Assurance<'_>,
    ) -> Result<Vec<TreeReport>, StoreError> {
        let stale = |tree: &Digest| -> Result<bool, StoreError> {
            let place = self.place(tree);
            Ok(!self.is_fresh(&place, assurance.within)? || !place.directory.is_dir())
        };
        let mut found = Vec::new();
        for tree in trees {
            if stale(tree)? {
                found.push(*tree);
            }
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let _turn = self.assuring.lock().expect("no holder panics");
        // Whoever had the turn before may have verified some of them.
        let mut waiting = Vec::new();
        for tree in found {
            if stale(&tree)? {
                let size = self.listing(&tree).map_or(0, |listing| listing.extent().size_bytes);
                waiting.push((size, self.place(&tree), self.listings.get(&tree)));
            }
        }
        // The largest first: one that comes last would be waited for alone.
        waiting.sort_by_key(|(size, ..)| std::cmp::Reverse(*size));
        self.verify_all(&waiting, assurance)
    }

    /// How long what verification found is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Sets how long what verification found is valid.
    pub fn with_validity(mut self, validity: Validity) -> Store {
        self.validity = validity;
        self
    }

    /// An error if a tree isn't there, or is known to be damaged: for whoever can't have it verified.
    pub fn refuse_damaged(&self, tree: &Digest) -> Result<(), StoreError> {
        let place = self.place(tree);
        let damaged = self.stamp(&place)? == Stamp::Damaged || !place.directory.is_dir();
        let (tree, path) = (Some(*tree), place.directory);
        let kind = Box::new(DamageKind::Missing);
        if damaged { Err(StoreError::Unsound { tree, path, kind }) } else { Ok(()) }
    }

    /// The error that a report on a damaged tree is.
    pub fn unsound(&self, report: &TreeReport) -> StoreError {
        let directory = self.tree_path(&report.tree);
        let (path, kind) = match report.first() {
            Some(damage) if damage.path.is_empty() => (directory, damage.kind.clone()),
            Some(damage) => {
                let path = directory.join(OsStr::from_bytes(&damage.path));
                (path, damage.kind.clone())
            }
            None => (directory, DamageKind::Missing),
        };
        StoreError::Unsound { tree: Some(report.tree), path, kind: Box::new(kind) }
    }

    /// A report on a damaged tree in one line.
    pub fn in_words(&self, report: &TreeReport) -> String {
        let path = self.tree_path(&report.tree);
        let first = report.first().map(ToString::to_string).unwrap_or_default();
        let more = match report.damages.len().saturating_sub(1) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        format!("{} is damaged: {first}{more}", path.display())
    }

    /// Gives a tree up that is damaged: it counts as not here, so that it is built or fetched again.
    /// It stays where it is until what comes of that takes its place. False if this process had given
    /// up the same tree before.
    pub fn give_up(&self, tree: &Digest) -> bool {
        self.distrust(tree);
        self.given_up.lock().expect("no holder panics").insert(*tree)
    }

    /// Notes that something in a tree was found to be damaged while it was read for another purpose:
    /// it counts as not here from now on, and is verified before it is used again.
    pub fn distrust(&self, tree: &Digest) {
        let place = self.place(tree);
        let listing = files::open_plain(&place.listing).ok();
        self.set_stamp(&place, listing.as_ref(), Stamp::Damaged);
    }

    /// As [`distrust`](Store::distrust), if that is what an error says.
    pub fn distrust_by(&self, error: &StoreError) {
        if let StoreError::Unsound { tree: Some(tree), .. } = error {
            self.distrust(tree);
        }
    }

    pub(crate) fn is_fresh(&self, place: &Place, within: Duration) -> Result<bool, StoreError> {
        let Stamp::At(time) = self.stamp(place)? else { return Ok(false) };
        let since = match within.is_zero() {
            true => Some(self.opened),
            false => SystemTime::now().checked_sub(within),
        };
        // A time so long that there was none.
        Ok(since.is_none_or(|since| time >= since))
    }

    /// Compares what costs nothing to compare: that all directories are there, with the mode and
    /// time that they had when all was in them. Adding, removing and renaming change that time.
    pub(crate) fn looks_whole(&self, place: &Place, listing: &Listing) -> bool {
        let Ok(tree) = OpenTree::open(&place.directory) else { return false };
        let mut whole = true;
        let mut look = |path: &[u8], modes: &[u32]| {
            let path = if path.is_empty() { b"." } else { path };
            let stat = rustix::fs::statat(&tree, path, AtFlags::SYMLINK_NOFOLLOW);
            whole &= stat.is_ok_and(|stat| {
                modes.contains(&(stat.st_mode & 0o7777))
                    && rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
                    && (stat.st_mtime, stat.st_mtime_nsec) == (TREE_TIME_SECONDS, 0)
            });
        };
        // A process that is killed right after the renaming leaves the top one writable.
        look(b"", &[0o555, 0o755]);
        listing.walk(&mut |path, entry| {
            if matches!(entry, Entry::Directory { .. }) {
                look(path, &[0o555]);
            }
        });
        whole
    }

    pub(crate) fn move_aside(&self, place: &Place) -> Result<(), StoreError> {
        let aside = self.aside()?;
        let renamed = OpenTree::open(&place.directory).and_then(|tree| {
            // A user may not move a read-only directory to another parent.
            rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o755)).at("change", tree.path())?;
            fs::rename(&place.directory, &aside).at("move aside", &place.directory)
        });
        match renamed {
            Err(StoreError::NotADirectory { what: "missing", .. }) => Ok(()),
            Err(StoreError::NotADirectory { .. }) => {
                fs::rename(&place.directory, &aside).at("move aside", &place.directory)
            }
            Err(error) if error.is_not_found() => Ok(()),
            renamed => renamed,
        }
    }

    fn verify_all(
        &self,
        waiting: &[(u64, Place, Option<Arc<Listing>>)],
        assurance: &Assurance<'_>,
    ) -> Result<Vec<TreeReport>, StoreError> {
        // Rayon's threads, which hash large files, would have the priority of who starts them.
        rayon::current_num_threads();
        let total = waiting.iter().map(|(size, ..)| size).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let outcome = Mutex::new((Vec::new(), None));
        let progress = |bytes| {
            let bytes = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            (assurance.progress)(bytes.min(total), total);
        };
        let work = || {
            // Builds come first. Where that isn't allowed, they have to share.
            let _ = rustix::process::setpriority_process(None, NICE);
            while let Some((_, place, kept)) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                let report = self.verify_and_mend(place, kept, assurance.cancel, &progress);
                let mut outcome = outcome.lock().expect("no holder panics");
                match report {
                    Ok(report) if report.is_sound() => {}
                    Ok(report) => outcome.0.push(report),
                    Err(error) => {
                        outcome.1.get_or_insert(error);
                        next.store(waiting.len(), Ordering::Relaxed);
                    }
                }
            }
        };
        (assurance.progress)(0, total);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| -> Result<(), StoreError> {
            for number in 0..threads.min(waiting.len()) {
                let started = std::thread::Builder::new().spawn_scoped(scope, work);
                // Fewer do it as well, and one has to.
                if number == 0 {
                    started.at("start", std::path::Path::new("a thread"))?;
                }
            }
            Ok(())
        })?;
        let (mut damaged, failure) = outcome.into_inner().expect("no holder panics");
        damaged.sort_by_key(|report| report.tree);
        failure.map_or(Ok(damaged), Err)
    }

    /// As `verify`; of what has other modes or times only, those are set right.
    fn verify_and_mend(
        &self,
        place: &Place,
        kept: &Option<Arc<Listing>>,
        cancel: Option<&AtomicBool>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<TreeReport, StoreError> {
        let mut report = self.verify(place, || kept.clone(), Lost::MakeAgain, cancel, progress)?;
        self.mend_report(place, &mut report)?;
        Ok(report)
    }

    /// Sets modes and times right if nothing else is wrong.
    pub(crate) fn mend_report(
        &self,
        place: &Place,
        report: &mut TreeReport,
    ) -> Result<(), StoreError> {
        let only_attributes = report.damages.iter().all(Damage::is_of_attributes);
        if report.is_sound() || !only_attributes || !self.is_writable() {
            return Ok(());
        }
        let verified = SystemTime::now();
        self.mend(place, &report.damages)?;
        tracing::warn!(
            "modes and times in {} were changed, and are set right",
            place.directory.display()
        );
        let listing = files::open_plain(&place.listing).ok();
        self.set_stamp(place, listing.as_ref(), Stamp::At(verified));
        report.damages.clear();
        Ok(())
    }

    fn mend(&self, place: &Place, damages: &[Damage]) -> Result<(), StoreError> {
        let tree = OpenTree::open(&place.directory)?;
        for Damage { path, kind } in damages {
            let mode = match kind {
                DamageKind::Mode { expected, .. } => Some(Mode::from_raw_mode(*expected)),
                DamageKind::Time { .. } => None,
                _ => continue,
            };
            let mend = || {
                let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (&b""[..], &path[..]),
                };
                if path.is_empty() {
                    set_attributes(&tree.directory(b"")?, mode)
                } else {
                    let above = tree.directory(above)?;
                    let stat = open_tree::stat(above.as_fd(), name)?;
                    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                        rustix::fs::FileType::Directory => {
                            set_attributes(open_tree::open_directory(above.as_fd(), name)?, mode)
                        }
                        rustix::fs::FileType::RegularFile => {
                            set_attributes(open_tree::open_file(above.as_fd(), name)?.0, mode)
                        }
                        _ => {
                            let flags = AtFlags::SYMLINK_NOFOLLOW;
                            rustix::fs::utimensat(above, name, &TREE_TIME, flags)
                        }
                    }
                }
            };
            mend().at("set right", &tree.path_of(path))?;
        }
        Ok(())
    }

    /// Verifies something that isn't among the trees; as [`assure`](Store::assure). None if it is
    /// sound.
    pub(crate) fn assure_place(
        &self,
        place: &Place,
        listing: Arc<Listing>,
        assurance: &Assurance<'_>,
    ) -> Result<Option<TreeReport>, StoreError> {
        let _turn = self.assuring.lock().expect("no holder panics");
        let size = listing.extent().size_bytes;
        let waiting = [(size, place.clone(), Some(listing))];
        Ok(self.verify_all(&waiting, assurance)?.pop())
    }
}

/// How much lower the priority of verification is than that of builds.
const NICE: i32 = 10;

fn set_attributes(file: impl AsFd, mode: Option<Mode>) -> rustix::io::Result<()> {
    if let Some(mode) = mode {
        rustix::fs::fchmod(&file, mode)?;
    }
    rustix::fs::futimens(&file, &TREE_TIME)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::commit::Registration;
    use crate::ingest::{self, Rules};
    use crate::object::{Object, ReferenceKind};
    use crate::store::Access;

    const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    fn open(directory: &tempfile::TempDir) -> Store {
        Store::open(&directory.path().join("store"), Access::Write).expect("opened")
    }

    /// Registers an object with one file, as if it had just been built.
    fn add(store: &Store, name: &str) -> Object {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("usr")).expect("created");
        fs::write(tree.join("usr").join(name), name.repeat(100)).expect("written");
        let listing = ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default());
        let listing = Arc::new(listing.expect("taken"));
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references: [].into(),
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.object(store, &object, listing, tree);
        store.commit(registration).expect("committed");
        object
    }

    /// Changes one byte of a file, and nothing that `stat` shows.
    fn flip(path: &Path) {
        let mode = fs::metadata(path).expect("read").permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("set");
        let mut bytes = fs::read(path).expect("read");
        bytes[50] ^= 1;
        fs::write(path, bytes).expect("written");
        fs::set_permissions(path, mode).expect("set");
        let file = fs::File::open(path).expect("opened");
        rustix::fs::futimens(&file, &TREE_TIME).expect("set");
    }

    fn file(store: &Store, object: &Object) -> std::path::PathBuf {
        store.tree_path(&object.tree).join("usr").join(object.name.as_str())
    }

    fn assure(store: &Store, object: &Object, within: Duration) -> Vec<TreeReport> {
        let trees = [object.tree].into();
        store.assure(&trees, &Assurance::within(within)).expect("verified")
    }

    #[test]
    fn what_was_verified_lately_is_believed_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let object = add(&open(&directory), "object");
        let store = open(&directory);
        flip(&file(&store, &object));
        assert_eq!(assure(&store, &object, MONTH), []);
        assert!(store.contains(&object.id()).expect("asked"));
        // Zero: nothing is believed but what was verified since the store was opened.
        let damaged = assure(&store, &object, Duration::ZERO);
        assert_eq!(damaged[0].damages.len(), 1, "{damaged:?}");
        assert!(!store.contains(&object.id()).expect("asked"), "it counts as not here");
        assert_eq!(assure(&store, &object, MONTH), damaged, "from now on, for everybody");
        assert!(store.give_up(&object.tree));
        assert!(store.tree_path(&object.tree).exists(), "it may be the only copy");
        assert_eq!(add(&store, "object"), object);
        assert_eq!(assure(&store, &object, MONTH), []);
        flip(&file(&store, &object));
        assert!(!store.give_up(&object.tree), "for the second time");
        let tmp = store.directory("tmp");
        drop(store);
        assert!(fs::read_dir(tmp).expect("listed").next().is_none());
    }

    #[test]
    fn what_was_made_anew_takes_the_place_of_what_is_damaged_and_of_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let object = add(&store, "object");
        let path = file(&store, &object);
        let inode =
            |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("read"));
        let before = inode(&path);
        add(&store, "object");
        assert_eq!(inode(&path), before, "others may use it");
        flip(&path);
        add(&store, "object");
        assert_ne!(inode(&path), before);
        assert_eq!(fs::read_to_string(&path).expect("read"), "object".repeat(100));
        fs::set_permissions(path.parent().expect("one"), fs::Permissions::from_mode(0o755))
            .expect("set");
        fs::remove_file(&path).expect("removed");
        add(&store, "object");
        assert_eq!(fs::read_to_string(&path).expect("read"), "object".repeat(100));
    }

    #[test]
    fn modes_and_times_are_set_right() {
        let directory = tempfile::tempdir().expect("a directory");
        let object = add(&open(&directory), "object");
        let store = open(&directory);
        let path = file(&store, &object);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        fs::File::open(&path).expect("opened").set_modified(SystemTime::now()).expect("set");
        assert_eq!(assure(&store, &object, Duration::ZERO), []);
        let metadata = fs::metadata(&path).expect("read");
        let seconds = std::os::unix::fs::MetadataExt::mtime(&metadata);
        assert_eq!((metadata.permissions().mode() & 0o7777, seconds), (0o444, TREE_TIME_SECONDS));
    }

    #[test]
    fn a_composed_root_that_lacks_something_or_is_damaged_is_composed_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let objects: Vec<Object> = (0..8).map(|n| add(&store, &format!("object{n}"))).collect();
        let ids: Vec<_> = objects.iter().map(Object::id).collect();
        let compose = |store: &Store, within| {
            let ids = store.closure_ids(&ids, ReferenceKind::ALL).expect("there");
            let composition = store.compose(&[ids]).expect("composed");
            store.composed(&composition, &Assurance::within(within))
        };
        let path = compose(&store, MONTH).expect("composed");
        let (usr, file) = (path.join("usr"), path.join("usr/object3"));
        let listing = path.with_file_name(format!(
            "{}.listing",
            path.file_name().expect("a name").to_string_lossy()
        ));
        let open_up = || fs::set_permissions(&usr, fs::Permissions::from_mode(0o755)).expect("set");
        let sound = |within, what: &str| {
            assert_eq!(compose(&open(&directory), within).expect(what), path);
            for object in &objects {
                let name = object.name.as_str();
                let text = fs::read_to_string(usr.join(name)).expect(what);
                assert_eq!(text, name.repeat(100), "{what}");
            }
        };
        // What is missing is noticed each time.
        open_up();
        fs::remove_file(&file).expect("removed");
        sound(MONTH, "a file was gone");
        open_up();
        fs::remove_dir_all(&usr).ok();
        sound(MONTH, "nearly all was gone");
        // A flipped bit is, when it is its time.
        flip(&file);
        assert!(compose(&open(&directory), MONTH).is_ok());
        assert_ne!(fs::read_to_string(&file).expect("read"), "object3".repeat(100));
        sound(Duration::ZERO, "a bit was flipped");
        // Without a listing nobody knows when that was.
        flip(&file);
        fs::remove_file(&listing).expect("removed");
        sound(MONTH, "the listing was gone");
        // It is made of sound trees, or not at all.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        files::remove_tree(&path).expect("removed");
        flip(&self::file(&store, &objects[5]));
        let failed = compose(&store, MONTH);
        assert!(
            matches!(&failed, Err(StoreError::Unsound { tree: Some(tree), .. }) if *tree == objects[5].tree),
            "{failed:?}"
        );
        assert!(!store.contains(&objects[5].id()).expect("asked"));
        assert!(!path.exists());
    }
}
