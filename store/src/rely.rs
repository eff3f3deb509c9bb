//! What running processes rely on, and how a collection (`gc`) learns of it.
//!
//! Whoever writes to a store says what it relies on *before* it asks whether that is here: an object
//! (and with it all that it refers to), a tree that has no object yet, a composed root, a derivation
//! (with its source). It appends a line for each to `tmp/<random>-<n>/relied`, in its own directory,
//! whose lock says that it lives. From then on, and until the process ends, a collection leaves that
//! alone. So what a process has once found here stays here for it, and what it hasn't found it makes.
//!
//! Lines are appended under a shared lock (`flock`) of the directory `locks/`, the *gate*. A
//! collection takes the gate for itself when it reads what others rely on, and whenever it removes
//! something; in between it learns what was added since from `locks/collecting`, to which everybody
//! appends the same lines while that file is there.
//!
//! Who is through in a moment, if all is as it hopes ([`Store::hold_gate`]), keeps the gate instead
//! of writing anything; and so does who can't append because the disk is full, until it ends. Who may not
//! write to the store relies on nothing, and may find that something is gone.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::digest::{Digest, ObjectId, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::lock;
use crate::store::Store;

/// Something that a collection is to leave alone while a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Relied {
    /// An object and everything that it refers to.
    Object(ObjectId),
    /// A tree, whether an object has it or not.
    Tree(Digest),
    /// A composed root.
    Composed(Digest),
    /// A derivation and its source.
    Derivation(StaticHash),
}

impl fmt::Display for Relied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Relied::Object(id) => write!(f, "object {id}"),
            Relied::Tree(digest) => write!(f, "tree {digest}"),
            Relied::Composed(digest) => write!(f, "composed {digest}"),
            Relied::Derivation(hash) => write!(f, "derivation {hash}"),
        }
    }
}

impl FromStr for Relied {
    type Err = ();

    fn from_str(line: &str) -> Result<Relied, ()> {
        let (kind, value) = line.split_once(' ').ok_or(())?;
        match kind {
            "object" => value.parse().map(Relied::Object).map_err(drop),
            "tree" => value.parse().map(Relied::Tree).map_err(drop),
            "composed" => value.parse().map(Relied::Composed).map_err(drop),
            "derivation" => value.parse().map(Relied::Derivation).map_err(drop),
            _ => Err(()),
        }
    }
}

/// What this process relies on.
#[derive(Debug, Default)]
pub(crate) struct Relying {
    said: HashSet<Relied>,
    /// Objects whose use was remembered.
    used: HashSet<ObjectId>,
    /// Where it is said, and how long that is.
    file: Option<(File, u64)>,
    /// The gate, if that is kept instead.
    kept: Option<Gate>,
    /// Whether what is relied on is to be said when the gate is let go.
    briefly: bool,
}

/// A lock of the directory `locks/`: shared by those who rely on something, exclusive for those who
/// remove something. It is no file of its own: so it needs no room on a full disk.
#[derive(Debug)]
pub(crate) struct Gate(#[expect(dead_code, reason = "it is held")] Flock<File>);

/// Uses are remembered to the minute: of many runs in a row most write nothing.
const USE_GRAIN: Duration = Duration::from_secs(60);

impl Store {
    /// Serves whoever takes it as it comes: this process relies on nothing, and what it asks about
    /// may be collected afterwards. For servers, which would else keep for weeks what anybody once
    /// asked for.
    #[must_use]
    pub fn relying_on_nothing(mut self) -> Store {
        self.relies = false;
        self
    }

    /// Keeps derivations, and the sources of those that fetch, from being collected while this
    /// process has the store open.
    pub fn rely_on_derivations<'a>(
        &self,
        hashes: impl IntoIterator<Item = &'a StaticHash>,
    ) -> Result<(), StoreError> {
        self.rely(hashes.into_iter().map(|hash| Relied::Derivation(*hash)))
    }

    /// Keeps objects, and all that they refer to, from being collected while this process has the
    /// store open; those that are here when this returns.
    pub fn rely_on_objects(&self, ids: &[ObjectId]) -> Result<(), StoreError> {
        self.rely(ids.iter().map(|id| Relied::Object(*id)))?;
        self.remember_use(ids);
        Ok(())
    }

    /// Lets no collection begin until [`let_gate_go`](Store::let_gate_go) or the end of this process:
    /// for who only looks whether everything is here, and makes it a root, which takes a moment.
    ///
    /// A collection that runs has read the roots already, and has to hear what is relied on: beside
    /// one this does nothing.
    pub fn hold_gate(&self) -> Result<(), StoreError> {
        if self.is_writable() && self.relies {
            let mut relying = self.relying.lock().expect("no holder panics");
            if relying.kept.is_none() {
                let gate = Gate::shared(self)?;
                if !self.collecting_path().try_exists().unwrap_or(true) {
                    relying.kept = Some(gate);
                    relying.briefly = true;
                }
            }
        }
        Ok(())
    }

    /// Lets collections go on. What this process has come to rely on meanwhile is said now, and what
    /// it will, as it comes.
    pub fn let_gate_go(&self) -> Result<(), StoreError> {
        let mut relying = self.relying.lock().expect("no holder panics");
        if !std::mem::take(&mut relying.briefly) {
            return Ok(());
        }
        let gate = relying.kept.take();
        let all: Vec<Relied> = relying.said.iter().copied().collect();
        if all.is_empty() { Ok(()) } else { self.say_or_keep(&mut relying, &all, gate) }
    }

    /// Keeps these from being collected while this process has the store open. To be said before it
    /// is asked whether they are here.
    pub(crate) fn rely(&self, on: impl IntoIterator<Item = Relied>) -> Result<(), StoreError> {
        if !self.is_writable() || !self.relies {
            return Ok(());
        }
        let mut relying = self.relying.lock().expect("no holder panics");
        if relying.kept.is_some() {
            if relying.briefly {
                relying.said.extend(on);
            }
            return Ok(());
        }
        let new: Vec<Relied> = on.into_iter().filter(|it| !relying.said.contains(it)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let gate = Gate::shared(self)?;
        self.say_or_keep(&mut relying, &new, Some(gate))?;
        relying.said.extend(new);
        Ok(())
    }

    /// Says what is relied on, with the gate held, which is kept if the disk is full.
    fn say_or_keep(
        &self,
        relying: &mut Relying,
        new: &[Relied],
        gate: Option<Gate>,
    ) -> Result<(), StoreError> {
        match self.say(relying, new) {
            Err(StoreError::Io { source, .. }) if is_full(&source) => {
                tracing::debug!("the disk is full: collections wait until this process ends");
                relying.kept = gate;
                Ok(())
            }
            said => said,
        }
    }

    fn say(&self, relying: &mut Relying, new: &[Relied]) -> Result<(), StoreError> {
        let text: String = new.iter().map(|it| format!("{it}\n")).collect();
        let path = self.session()?.relied();
        if relying.file.is_none() {
            let options = OpenOptions::new().create(true).append(true).clone();
            relying.file = Some((options.open(&path).at("write", &path)?, 0));
        }
        let (file, length) = relying.file.as_mut().expect("it was made");
        if let Err(error) = file.write_all(text.as_bytes()) {
            // Half a line would stop every collection.
            let _ = file.set_len(*length);
            return Err(error).at("write", &path);
        }
        *length += text.len() as u64;
        let path = self.collecting_path();
        match OpenOptions::new().append(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            file => file.and_then(|mut file| file.write_all(text.as_bytes())).at("write", &path),
        }
    }

    /// Remembers that an object is used: its record's modification time says when that was last.
    /// Nothing fails if it can't be remembered.
    pub(crate) fn remember_use(&self, ids: &[ObjectId]) {
        if !self.is_writable() || !self.relies {
            return;
        }
        for id in ids {
            if !self.relying.lock().expect("no holder panics").used.insert(*id) {
                continue;
            }
            let path = self.info_path(id);
            let modified = fs::symlink_metadata(&path).and_then(|it| it.modified());
            let age = modified.ok().and_then(|it| SystemTime::now().duration_since(it).ok());
            if age.is_some_and(|age| age >= USE_GRAIN) {
                let (keep, now) = (TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
                let _ = utimensat(AT_FDCWD, &path, &keep, &now, UtimensatFlags::NoFollowSymlink);
            }
        }
    }

    /// The file that is there while a collection runs, locked by it.
    pub(crate) fn collecting_path(&self) -> PathBuf {
        self.directory("locks").join("collecting")
    }

    /// What every living process that writes to this store relies on; `None` for the name of what
    /// has ended meanwhile. To be asked with the gate held exclusively.
    pub(crate) fn relied_on(&self, _gate: &Gate) -> Result<Vec<(String, Relied)>, StoreError> {
        let mut all = Vec::new();
        for path in files::entries(&self.directory("tmp"))? {
            if path.extension().is_some_and(|it| it == "lock") || !lock::is_alive(&path)? {
                continue;
            }
            let file = path.join("relied");
            let Some(bytes) = files::read_if_exists(&file)? else { continue };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.extend(parse(&bytes, &file)?.into_iter().map(|it| (name.clone(), it)));
        }
        Ok(all)
    }
}

impl Gate {
    fn open(store: &Store) -> Result<(File, PathBuf), StoreError> {
        let path = store.directory("locks");
        let file = File::open(&path).at("open", &path)?;
        Ok((file, path))
    }

    fn shared(store: &Store) -> Result<Gate, StoreError> {
        let (mut file, path) = Gate::open(store)?;
        loop {
            match Flock::lock(file, FlockArg::LockShared) {
                Ok(held) => return Ok(Gate(held)),
                Err((back, Errno::EINTR)) => file = back,
                Err((_, error)) => return Err(error).at("lock", &path),
            }
        }
    }

    /// For whoever removes something. `is_cancelled` ends the waiting.
    pub(crate) fn exclusive(
        store: &Store,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Gate, StoreError> {
        let (mut file, path) = Gate::open(store)?;
        let mut pause = Duration::from_micros(50);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Ok(Gate(held)),
                Err((_, _)) if is_cancelled() => return Err(StoreError::Cancelled),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                Err((_, error)) => return Err(error).at("lock", &path),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

/// `locks/collecting`: that a collection runs, and what others have come to rely on since it began.
#[derive(Debug)]
pub(crate) struct Collecting {
    file: Flock<File>,
    path: PathBuf,
    read: u64,
}

impl Collecting {
    /// Begins; `None` if another collection runs. The gate is held exclusively: what is said before
    /// is in the files of those who said it, what is said later is in this one.
    pub(crate) fn begin(store: &Store, _gate: &Gate) -> Result<Option<Collecting>, StoreError> {
        let path = store.collecting_path();
        let Some(file) = lock::hold_file(&path)? else { return Ok(None) };
        // What a collection that was killed has left.
        file.set_len(0).at("empty", &path)?;
        Ok(Some(Collecting { file, path, read: 0 }))
    }

    /// What was added since the last time that this was asked.
    pub(crate) fn added(&mut self, _gate: &Gate) -> Result<Vec<Relied>, StoreError> {
        if self.file.metadata().at("read", &self.path)?.len() == self.read {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.read)).at("read", &self.path)?;
        self.file.read_to_end(&mut bytes).at("read", &self.path)?;
        self.read += bytes.len() as u64;
        parse(&bytes, &self.path)
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        lock::remove_lock(&self.path);
    }
}

/// Lines, all of them whole and known: what can't be read would be lost.
fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Relied>, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(damaged("its last line is not whole".to_owned()));
    }
    text.lines()
        .map(|line| line.parse().map_err(|()| damaged(format!("{line:?} is nothing known"))))
        .collect()
}

/// Whether there is no room on the disk, or none for this user.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
