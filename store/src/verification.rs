//! Verification: all bytes of a tree compared with their digests, and when that was last done.
//!
//! A tree's **stamp** is the modification time of its `trees/<digest>.listing`. The listing is
//! written when all the tree's bytes have been hashed, and its time is set again whenever all of them
//! were found to be what the listing says. Where damage was found the time is [`DAMAGED`], and the
//! tree counts as not here until it was replaced or put right. A time that is no such time (before
//! trees were, or in the future: the clock was wrong, or the store was copied without times) says
//! that the tree was never verified. So a stamp costs no file, and nothing to read where the listing
//! is looked at anyway.
//!
//! What is compared is what a build can see: kinds, names, bytes, links' texts, modes and times.
//! Nothing is repaired here, and nothing changed but the stamp. In a store that can't be written to,
//! a process remembers the stamps that it would set.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::content;
use crate::crew::{Crew, Tasks};
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::ingest::FILES_PER_TASK;
use crate::listing::Listing;
use crate::open_tree::{self, Listed, OpenTree, in_words};
use crate::presence::hash_tree;
use crate::store::Store;
use crate::tree::{Directory, Entry, TREE_TIME_SECONDS, printable};
use crate::visit::join;

/// The stamp, in seconds since 1970, of a tree in which damage was found: a time that neither
/// clocks nor tools give to files (reproducible images take 0 and 1).
const DAMAGED: u64 = 86_399;

/// When a tree was last verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// It has no listing, or a time that says nothing.
    Never,
    /// All its bytes agreed with their digests then.
    At(SystemTime),
    /// Some did not.
    Damaged,
}

/// What verification found in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeReport {
    /// The tree.
    pub tree: Digest,
    /// How many files were hashed.
    pub files: u64,
    /// How many bytes that were.
    pub size_bytes: u64,
    /// Everything that is not as it should be, in the order of paths.
    pub damages: Vec<Damage>,
}

/// A place in a tree that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The path below the tree; empty for the tree itself.
    pub path: Vec<u8>,
    /// In what way.
    pub kind: DamageKind,
}

/// In what way a place in a tree is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    /// It should be there.
    #[error("missing")]
    Missing,
    /// Nothing should be there.
    #[error("not part of the tree")]
    Extra,
    /// It is something else than it should be.
    #[error("{found} instead of {expected}")]
    Kind {
        /// In words.
        expected: &'static str,
        /// In words.
        found: &'static str,
    },
    /// A file has another length.
    #[error("{found} bytes long instead of {expected}")]
    Size {
        /// In bytes.
        expected: u64,
        /// In bytes.
        found: u64,
    },
    /// A file has other bytes.
    #[error("other bytes: its digest is {found} instead of {expected}")]
    Bytes {
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A symlink leads elsewhere.
    #[error("a link to {} instead of {}", printable(found), printable(expected))]
    Target {
        /// The text that it should have.
        expected: Vec<u8>,
        /// The text that it has.
        found: Vec<u8>,
    },
    /// A file or directory has other mode bits.
    #[error("mode {found:04o} instead of {expected:04o}")]
    Mode {
        /// The twelve bits that it should have.
        expected: u32,
        /// Those that it has.
        found: u32,
    },
    /// It was changed, or touched, after it had become part of the tree.
    #[error("modification time {seconds} instead of {TREE_TIME_SECONDS}")]
    Time {
        /// The time that it has, since 1970.
        seconds: i64,
    },
    /// The system can't read it.
    #[error("unreadable: {reason}")]
    Unreadable {
        /// What the system said.
        reason: String,
    },
    /// The tree has no listing that could say which files are wrong.
    #[error("its listing is lost, and its files have the digest {found} together")]
    Unlisted {
        /// What the files come to.
        found: Digest,
    },
}

impl DamageKind {
    /// What it says of a file that it can't be opened or read; none if it is this process that
    /// can't.
    pub(crate) fn of(error: Errno) -> Option<DamageKind> {
        match error {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::STALE => None,
            Errno::NOENT => Some(DamageKind::Missing),
            error => {
                let reason = std::io::Error::from(error).to_string();
                Some(DamageKind::Unreadable { reason })
            }
        }
    }
}

impl TreeReport {
    /// Whether the tree is what its digest says.
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }

    /// The damage that says most, if there is any: what is lost before what has another mode.
    pub fn first(&self) -> Option<&Damage> {
        let lost = self.damages.iter().find(|damage| !damage.is_of_attributes());
        lost.or(self.damages.first())
    }
}

impl Damage {
    /// Whether only modes or times are wrong: those can be set right without another copy.
    pub fn is_of_attributes(&self) -> bool {
        matches!(self.kind, DamageKind::Mode { .. } | DamageKind::Time { .. })
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.is_empty() {
            true => write!(f, "the tree: {}", self.kind),
            false => write!(f, "{}: {}", printable(&self.path), self.kind),
        }
    }
}

/// Stamps that couldn't be written, by listing: of a store that can only be read. Each holds for as
/// long as the listing has the time that it had: whoever may write to the store knows better.
pub(crate) type Remembered = Mutex<HashMap<PathBuf, (Option<SystemTime>, Stamp)>>;

/// What becomes of a listing that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is made again from the tree, which is hashed for it.
    MakeAgain,
    /// It stays lost, and the tree is hashed without it.
    Leave,
}

/// A tree and its listing, wherever in the store they lie.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) digest: Digest,
    pub(crate) directory: PathBuf,
    pub(crate) listing: PathBuf,
}

impl Store {
    /// When all bytes of a tree were last found to agree with its digest; none if they never were,
    /// or didn't the last time.
    ///
    /// # Errors
    /// What the system says. That there is no such tree is none.
    pub fn verified_at(&self, tree: &Digest) -> Result<Option<SystemTime>, StoreError> {
        match self.stamp(&self.place(tree))? {
            Stamp::At(time) => Ok(Some(time)),
            Stamp::Never | Stamp::Damaged => Ok(None),
        }
    }

    /// Compares all of a tree with its digest, and stamps it with what was found.
    ///
    /// It takes as many threads as the machine has processors, and ends soon when `cancel` becomes
    /// true. `progress` is called from them with the number of bytes that were hashed since the last
    /// call.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`], or what the system says. Damage is none: it is in the report, as a
    /// tree is that isn't there.
    pub fn verify_tree(
        &self,
        tree: &Digest,
        cancel: Option<&AtomicBool>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<TreeReport, StoreError> {
        let place = self.place(tree);
        let kept = || self.listings.get(tree);
        self.verify(&place, kept, Lost::MakeAgain, cancel, progress)
    }

    pub(crate) fn place(&self, tree: &Digest) -> Place {
        let (directory, listing) = (self.tree_path(tree), self.listing_path(tree));
        Place { digest: *tree, directory, listing }
    }

    pub(crate) fn stamp(&self, place: &Place) -> Result<Stamp, StoreError> {
        match fs::symlink_metadata(&place.listing) {
            Ok(metadata) => Ok(self.stamp_in(&place.listing, &metadata)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Stamp::Never),
            Err(error) => Err(error).at("read", &place.listing),
        }
    }

    /// What the listing that was looked at says, unless this process knows better.
    pub(crate) fn stamp_in(&self, listing: &Path, metadata: &Metadata) -> Stamp {
        let remembered = self.remembered().get(listing).copied();
        let time = metadata.modified().ok();
        let remembered = remembered.filter(|(at, _)| *at == time);
        remembered.map_or_else(|| Stamp::of(time), |(_, stamp)| stamp)
    }

    /// As [`verify_tree`](Store::verify_tree); `kept` is the listing, if it is known in memory.
    pub(crate) fn verify(
        &self,
        place: &Place,
        kept: impl FnOnce() -> Option<Arc<Listing>>,
        lost: Lost,
        cancel: Option<&AtomicBool>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<TreeReport, StoreError> {
        // The time at which it began: what is damaged from now on may be past its turn.
        let now = SystemTime::now();
        let mut report =
            TreeReport { tree: place.digest, files: 0, size_bytes: 0, damages: Vec::new() };
        let whole = |kind| vec![Damage { path: Vec::new(), kind }];
        // What is stamped is the listing that was there before the tree was looked at: whoever puts
        // another tree in its place meanwhile brings another listing.
        let mut file = files::open_plain(&place.listing).ok();
        let tree = match OpenTree::open(&place.directory) {
            Ok(tree) => tree,
            Err(StoreError::NotADirectory { what: "missing", .. }) => {
                report.damages = whole(DamageKind::Missing);
                return Ok(report);
            }
            Err(StoreError::NotADirectory { what: found, .. }) => {
                report.damages = whole(DamageKind::Kind { expected: "a directory", found });
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        let listing = match self.listing_in(place)? {
            Some(listing) => Arc::new(listing),
            None if lost == Lost::Leave => {
                let found = hash_tree(&place.directory)?;
                if found.digest() != place.digest {
                    report.damages = whole(DamageKind::Unlisted { found: found.digest() });
                    self.set_stamp(place, file.as_ref(), Stamp::Damaged);
                }
                found.walk(&mut |_, entry| {
                    if let Entry::File { size_bytes, .. } = entry {
                        report.files += 1;
                        report.size_bytes += size_bytes;
                    }
                });
                progress(report.size_bytes);
                return Ok(report);
            }
            None => {
                let listing = match kept() {
                    Some(listing) => self.write_lost_listing(place, &listing).map(|()| listing),
                    None => self.list_again(place).map(Arc::new),
                };
                match listing {
                    Ok(listing) => {
                        file = files::open_plain(&place.listing).ok();
                        listing
                    }
                    Err(StoreError::Corrupt { found, .. }) => {
                        report.damages = whole(DamageKind::Unlisted { found });
                        self.set_stamp(place, file.as_ref(), Stamp::Damaged);
                        return Ok(report);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let comparing = Comparing {
            listing: &listing,
            tree: &tree,
            // Those of a store in an earlier format, which nobody has written to since, differ.
            times: self.is_writable(),
            cancel,
            progress,
            files: AtomicU64::new(0),
            size_bytes: AtomicU64::new(0),
            damages: Mutex::default(),
        };
        let top = Task::Directory(Vec::new(), listing.digest());
        Crew::begin(&[&tree], &[], |crew| {
            crew.run(vec![top], |task, tasks| comparing.work(task, tasks))
        })??;
        report.files = comparing.files.into_inner();
        report.size_bytes = comparing.size_bytes.into_inner();
        report.damages = comparing.damages.into_inner().expect("no holder panics");
        report.damages.sort_by(|one, other| one.path.cmp(&other.path));
        let stamp = if report.is_sound() { Stamp::At(now) } else { Stamp::Damaged };
        self.set_stamp(place, file.as_ref(), stamp);
        Ok(report)
    }

    /// The listing on disk; none if it is missing or damaged.
    fn listing_in(&self, place: &Place) -> Result<Option<Listing>, StoreError> {
        let bytes = files::read_if_exists(&place.listing);
        let read = bytes.and_then(|bytes| {
            bytes.map(|bytes| Listing::decode(&bytes, place.digest, &place.listing)).transpose()
        });
        Ok(crate::presence::undamaged(read)?.flatten())
    }

    /// Writes down what verification found. That it can't be written is no failure: then this
    /// process alone knows.
    pub(crate) fn set_stamp(&self, place: &Place, listing: Option<&File>, stamp: Stamp) {
        let time = match stamp {
            Stamp::Never => UNIX_EPOCH,
            Stamp::At(time) => time,
            Stamp::Damaged => UNIX_EPOCH + Duration::from_secs(DAMAGED),
        };
        let set = || {
            let listing = listing.filter(|_| self.is_writable()).ok_or(Errno::ROFS)?;
            let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let time =
                Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(listing, &times)?;
            // What is known to be damaged must not be forgotten in a power cut.
            if stamp == Stamp::Damaged {
                rustix::fs::fsync(listing)?;
            }
            Ok::<_, Errno>(())
        };
        let mut remembered = self.remembered();
        match set() {
            Ok(()) => remembered.remove(&place.listing),
            Err(_) => {
                let time = listing.and_then(|it| it.metadata().and_then(|it| it.modified()).ok());
                remembered.insert(place.listing.clone(), (time, stamp))
            }
        };
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<PathBuf, (Option<SystemTime>, Stamp)>> {
        self.stamps.lock().expect("no holder panics")
    }
}

impl Stamp {
    /// What a listing's time says.
    fn of(time: Option<SystemTime>) -> Stamp {
        let Some(time) = time else { return Stamp::Never };
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        if seconds == DAMAGED {
            Stamp::Damaged
        } else if seconds <= TREE_TIME_SECONDS as u64 || time > SystemTime::now() {
            Stamp::Never
        } else {
            Stamp::At(time)
        }
    }
}

/// The comparison of one tree with its listing.
struct Comparing<'a> {
    listing: &'a Listing,
    tree: &'a OpenTree,
    /// Whether modification times are compared.
    times: bool,
    cancel: Option<&'a AtomicBool>,
    progress: &'a (dyn Fn(u64) + Sync),
    files: AtomicU64,
    size_bytes: AtomicU64,
    damages: Mutex<Vec<Damage>>,
}

/// What there is to compare.
enum Task {
    /// A directory, by its path and the digest that it should have.
    Directory(Vec<u8>, Digest),
    /// Files and symlinks in a directory.
    Files(Arc<Opened>, Vec<(Box<[u8]>, Entry)>),
}

/// A directory whose files are being compared.
struct Opened {
    path: Vec<u8>,
    directory: OwnedFd,
}

impl Comparing<'_> {
    fn work(&self, task: Task, tasks: &Tasks<'_, Task>) -> Result<(), StoreError> {
        if self.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        match task {
            Task::Directory(path, digest) => self.directory(path, &digest, tasks),
            Task::Files(opened, files) => self.files(&opened, files),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Compares a directory's names and some of its files, and leaves the rest to others.
    fn directory(
        &self,
        path: Vec<u8>,
        digest: &Digest,
        tasks: &Tasks<'_, Task>,
    ) -> Result<(), StoreError> {
        let expected = self.listing.directory(digest).expect("a listing has all its directories");
        let opened = self.tree.directory(&path).and_then(|directory| {
            let stat = rustix::fs::fstat(&directory)?;
            Ok((open_tree::list(directory.as_fd())?, stat, directory))
        });
        let (listed, stat, directory) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.unreadable(path, error),
        };
        // A process that is killed right after the renaming leaves the top one so.
        let mode = stat.st_mode & 0o7777;
        if mode != 0o555 && !(path.is_empty() && mode == 0o755) {
            self.damage(path.clone(), DamageKind::Mode { expected: 0o555, found: mode });
        }
        self.compare_time(&path, &stat);
        let mut files = self.compare_names(&path, expected, listed, tasks);
        let opened = Arc::new(Opened { path, directory });
        let mut rest = files.split_off(files.len().min(FILES_PER_TASK));
        while !rest.is_empty() {
            // From its end: what is split off takes only the room that it needs.
            let some = rest.split_off(rest.len().saturating_sub(FILES_PER_TASK));
            tasks.add(Task::Files(Arc::clone(&opened), some));
        }
        self.files(&opened, files)
    }

    /// The files and symlinks that are there and should be; directories become tasks.
    fn compare_names(
        &self,
        path: &[u8],
        expected: &Directory,
        listed: Vec<Listed>,
        tasks: &Tasks<'_, Task>,
    ) -> Vec<(Box<[u8]>, Entry)> {
        let mut found: BTreeMap<_, _> =
            listed.into_iter().map(|Listed { name, kind }| (name, kind)).collect();
        let mut files = Vec::new();
        for (name, entry) in expected.iter() {
            let path = join(path, name);
            let should_be = match entry {
                Entry::File { .. } => FileType::RegularFile,
                Entry::Symlink { .. } => FileType::Symlink,
                Entry::Directory { .. } => FileType::Directory,
            };
            match (found.remove(name), entry) {
                (None, _) => self.damage(path, DamageKind::Missing),
                (Some(kind), _) if kind != should_be => {
                    let (expected, found) = (in_words(should_be), in_words(kind));
                    self.damage(path, DamageKind::Kind { expected, found });
                }
                (Some(_), Entry::Directory { digest }) => {
                    tasks.add(Task::Directory(path, *digest));
                }
                (Some(_), entry) => files.push((name.into(), entry.clone())),
            }
        }
        found.into_keys().for_each(|name| self.damage(join(path, &name), DamageKind::Extra));
        files
    }

    fn files(&self, opened: &Opened, files: Vec<(Box<[u8]>, Entry)>) -> Result<(), StoreError> {
        let directory = opened.directory.as_fd();
        for (name, entry) in files {
            let path = join(&opened.path, &name);
            match entry {
                Entry::File { digest, size_bytes, executable } => {
                    self.file(directory, &name, path, (digest, size_bytes, executable))?;
                }
                Entry::Symlink { target } => self.symlink(directory, &name, path, &target)?,
                Entry::Directory { .. } => unreachable!("a directory is a task of its own"),
            }
        }
        Ok(())
    }

    fn file(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
        (expected, size_bytes, executable): (Digest, u64, bool),
    ) -> Result<(), StoreError> {
        let (mut file, stat) = match open_tree::open_file(directory, name) {
            Ok(opened) => opened,
            Err(error) => return self.unreadable(path, error),
        };
        let (mode, found) = (if executable { 0o555 } else { 0o444 }, stat.st_mode & 0o7777);
        if mode != found {
            self.damage(path.clone(), DamageKind::Mode { expected: mode, found });
        }
        self.compare_time(&path, &stat);
        if stat.st_size as u64 != size_bytes {
            let found = stat.st_size as u64;
            self.damage(path, DamageKind::Size { expected: size_bytes, found });
            return Ok(());
        }
        let hashed = content::hash_with(&mut file, &stat, self.cancel, self.progress);
        match hashed {
            Ok((found, _)) if found != expected => {
                self.damage(path, DamageKind::Bytes { expected, found });
            }
            Ok(_) => {}
            Err(_) if self.is_cancelled() => return Err(StoreError::Cancelled),
            Err(error) => {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return self.unreadable(path, error);
            }
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        self.size_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn symlink(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
        expected: &[u8],
    ) -> Result<(), StoreError> {
        let read = rustix::fs::readlinkat(directory, name, Vec::new())
            .and_then(|target| Ok((target, open_tree::stat(directory, name)?)));
        match read {
            Ok((target, stat)) => {
                self.compare_time(&path, &stat);
                if target.as_bytes() != expected {
                    let (expected, found) = (expected.to_vec(), target.into_bytes());
                    self.damage(path, DamageKind::Target { expected, found });
                }
                Ok(())
            }
            Err(error) => self.unreadable(path, error),
        }
    }

    fn compare_time(&self, path: &[u8], stat: &Stat) {
        let seconds = stat.st_mtime;
        if self.times && (seconds != TREE_TIME_SECONDS || stat.st_mtime_nsec != 0) {
            self.damage(path.to_vec(), DamageKind::Time { seconds });
        }
    }

    /// What can't be read is damaged, unless it is this process that can't.
    fn unreadable(&self, path: Vec<u8>, error: Errno) -> Result<(), StoreError> {
        let Some(kind) = DamageKind::of(error) else {
            return Err(error).at("read", &self.tree.path_of(&path));
        };
        self.damage(path, kind);
        Ok(())
    }

    fn damage(&self, path: Vec<u8>, kind: DamageKind) {
        self.damages.lock().expect("no holder panics").push(Damage { path, kind });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::commit::Registration;
    use crate::ingest::{self, Rules};
    use crate::store::Access;

    const DAY: Duration = Duration::from_secs(86_400);

    fn open(directory: &tempfile::TempDir, access: Access) -> Store {
        Store::open(&directory.path().join("store"), access).expect("opened")
    }

    /// A tree with a few files, a link and directories, and where it lies.
    fn tree(store: &Store) -> (Digest, PathBuf) {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("usr/bin")).expect("created");
        fs::write(tree.join("usr/bin/program"), "code").expect("written");
        fs::set_permissions(tree.join("usr/bin/program"), fs::Permissions::from_mode(0o755))
            .expect("set");
        symlink("program", tree.join("usr/bin/link")).expect("linked");
        for number in 0..100 {
            fs::write(tree.join(format!("usr/{number:02}")), number.to_string()).expect("written");
        }
        fs::write(tree.join("large"), vec![7; 3 << 20]).expect("written");
        let listing = ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default());
        let listing = Arc::new(listing.expect("taken"));
        let digest = listing.digest();
        let mut registration = Registration::default();
        registration.tree(store, listing, tree);
        store.commit(registration).expect("committed");
        (digest, store.tree_path(&digest))
    }

    fn verify(store: &Store, tree: &Digest) -> TreeReport {
        store.verify_tree(tree, None, &|_| {}).expect("verified")
    }

    /// Sets a time that is not the file's own any more right again, so that it shows nothing.
    fn keep_times(path: &Path, change: impl FnOnce()) {
        let parent = path.parent().expect("it has one");
        let modes = [parent, path].map(|it| fs::symlink_metadata(it).expect("read").permissions());
        for (it, mode) in [(parent, 0o755), (path, 0o644)] {
            fs::set_permissions(it, fs::Permissions::from_mode(mode)).expect("set");
        }
        change();
        for (it, mode) in [parent, path].into_iter().zip(modes) {
            if let Ok(file) = File::open(it) {
                rustix::fs::futimens(&file, &content::TREE_TIME).expect("set");
                fs::set_permissions(it, mode).expect("set");
            }
        }
    }

    #[test]
    fn a_sound_tree_is_stamped_and_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let before = SystemTime::now() - Duration::from_secs(5);
        let (digest, _) = tree(&store);
        assert!(store.verified_at(&digest).expect("asked").expect("hashed on the way") > before);
        let place = store.place(&digest);
        let listing = File::open(&place.listing).expect("opened");
        store.set_stamp(&place, Some(&listing), Stamp::At(before - 40 * DAY));
        assert!(store.verified_at(&digest).expect("asked").expect("long ago") < before - 39 * DAY);
        let bytes = AtomicU64::new(0);
        let count = |more| _ = bytes.fetch_add(more, Ordering::Relaxed);
        let report = store.verify_tree(&digest, None, &count).expect("verified");
        assert_eq!((report.files, &*report.damages), (102, &[][..]));
        assert_eq!(report.size_bytes, bytes.into_inner());
        assert!(store.verified_at(&digest).expect("asked").expect("just now") > before);
        for never in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1), SystemTime::now() + DAY] {
            store.set_stamp(&place, Some(&listing), Stamp::At(never));
            assert_eq!(store.verified_at(&digest).expect("asked"), None, "{never:?}");
            assert_eq!(store.stamp(&place).expect("asked"), Stamp::Never);
        }
        let nothing = Digest::of_file(b"nothing");
        assert_eq!(store.verified_at(&nothing).expect("asked"), None);
        let report = verify(&store, &nothing);
        assert_eq!(report.damages, [Damage { path: Vec::new(), kind: DamageKind::Missing }]);
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        type Case = (&'static str, fn(&Path), &'static str);
        let damages: &[Case] = &[
            ("usr/07", |it| fs::write(it, "8").expect("written"), "usr/07: other bytes"),
            ("usr/07", |it| fs::write(it, "").expect("written"), "usr/07: 0 bytes long instead"),
            ("usr/07", |it| fs::remove_file(it).expect("removed"), "usr/07: missing"),
            ("usr/bin", |it| fs::remove_dir_all(it).expect("removed"), "usr/bin: missing"),
            (
                "usr/07",
                |it| fs::write(it.with_file_name("new"), "").expect("written"),
                "usr/new: not part of the tree",
            ),
            (
                "usr/07",
                |it| {
                    fs::remove_file(it).expect("removed");
                    symlink("/etc/passwd", it).expect("linked");
                },
                "usr/07: a symbolic link instead of a file",
            ),
            (
                "usr/bin/link",
                |it| {
                    fs::remove_file(it).expect("removed");
                    symlink("other", it).expect("linked");
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(rustix::fs::CWD, it, &content::TREE_TIME, flags)
                        .expect("set");
                },
                "usr/bin/link: a link to other instead of program",
            ),
        ];
        for (path, damage, expected) in damages {
            let directory = tempfile::tempdir().expect("a directory");
            let store = open(&directory, Access::Write);
            let (digest, root) = tree(&store);
            let path = root.join(path);
            if path.is_symlink() {
                let parent = path.parent().expect("it has one");
                keep_times(&parent.join("program"), || damage(&path));
            } else {
                keep_times(&path, || damage(&path));
            }
            let report = verify(&store, &digest);
            let [found] = &*report.damages else { panic!("{expected}: {report:?}") };
            assert!(found.to_string().starts_with(expected), "{found}");
            assert!(!found.is_of_attributes());
            assert_eq!(store.stamp(&store.place(&digest)).expect("asked"), Stamp::Damaged);
            assert_eq!(store.tree(&digest).expect("asked"), None, "it counts as not here");
        }
    }

    #[test]
    fn modes_and_times_are_what_builds_see_and_belong_to_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let (digest, root) = tree(&store);
        let mode = |path: &str, mode| {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).expect("set");
        };
        mode("usr/bin", 0o755);
        mode("usr/bin/program", 0o755);
        mode("usr/00", 0o555);
        let file = File::open(root.join("large")).expect("opened");
        file.set_modified(SystemTime::now()).expect("set");
        let report = verify(&store, &digest);
        let told: Vec<_> = report.damages.iter().map(ToString::to_string).collect();
        let [time, zero, bin, program] = &*told else { panic!("{told:?}") };
        assert!(time.starts_with("large: modification time "), "{time}");
        assert_eq!(zero, "usr/00: mode 0555 instead of 0444");
        assert_eq!(bin, "usr/bin: mode 0755 instead of 0555");
        assert_eq!(program, "usr/bin/program: mode 0755 instead of 0555");
        assert!(report.damages.iter().all(Damage::is_of_attributes));
    }

    #[test]
    fn a_lost_listing_is_made_of_a_sound_tree_and_of_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let (digest, root) = tree(&store);
        let listing = store.listing_path(&digest);
        let right = fs::read(&listing).expect("read");
        for damage in [&b""[..], b"something else"] {
            crate::staged::write(&listing, damage).expect("written");
            for store in [&store, &open(&directory, Access::Write)] {
                assert!(verify(store, &digest).is_sound());
                assert_eq!(fs::read(&listing).expect("read"), right);
            }
        }
        keep_times(&root.join("large"), || {
            fs::write(root.join("large"), "small").expect("written");
        });
        fs::remove_file(&listing).expect("removed");
        let told = verify(&open(&directory, Access::Write), &digest).damages;
        assert!(matches!(&*told, [Damage { kind: DamageKind::Unlisted { .. }, .. }]), "{told:?}");
        // Whoever has it in memory can still say more.
        let told = verify(&store, &digest).damages;
        assert!(matches!(&*told, [Damage { kind: DamageKind::Size { .. }, .. }]), "{told:?}");
    }

    #[test]
    fn where_nothing_can_be_written_the_process_remembers() {
        let directory = tempfile::tempdir().expect("a directory");
        let (digest, root) = tree(&open(&directory, Access::Write));
        let listing = directory.path().join("store/trees").join(format!("{digest}.listing"));
        let set = |time| {
            File::open(&listing).expect("opened").set_modified(time).expect("set");
        };
        set(UNIX_EPOCH);
        let store = open(&directory, Access::Read);
        assert_eq!(store.verified_at(&digest).expect("asked"), None);
        assert!(verify(&store, &digest).is_sound());
        assert!(store.verified_at(&digest).expect("asked").is_some());
        assert_eq!(fs::metadata(&listing).expect("read").modified().expect("a time"), UNIX_EPOCH);
        keep_times(&root.join("large"), || {
            fs::write(root.join("large"), "small").expect("written");
        });
        assert!(!verify(&store, &digest).is_sound());
        assert_eq!(store.tree(&digest).expect("asked"), None);
        // Somebody else has put it right.
        set(SystemTime::now());
        assert!(store.verified_at(&digest).expect("asked").is_some());
    }

    #[test]
    fn it_ends_when_somebody_says_stop_and_stamps_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let (digest, _) = tree(&store);
        let before = store.verified_at(&digest).expect("asked");
        let stopped = AtomicBool::new(true);
        let failed = store.verify_tree(&digest, Some(&stopped), &|_| {});
        assert!(matches!(failed, Err(StoreError::Cancelled)), "{failed:?}");
        let stop = AtomicBool::new(false);
        let failed =
            store.verify_tree(&digest, Some(&stop), &|_| stop.store(true, Ordering::Relaxed));
        assert!(matches!(failed, Err(StoreError::Cancelled)), "{failed:?}");
        assert_eq!(store.verified_at(&digest).expect("asked"), before);
    }
}
