//! Packs of a store's own trees: written when they are asked for, kept within a limit.
//!
//! A pack's name is its digest, which nobody knows before it is written, and readers ask for parts of
//! it in any order. So a tree is packed to a file once, by whoever asks first, and read from there.
//! The directory is laid out as a cache is: `packs/<digest>`, and `objects/<object id>` for what
//! was packed. A record stays when its pack is removed, and the same pack is written again when it
//! is asked for: a tree always gives the same one.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::SystemTime;

use crate::cache::CachePath;
use crate::cache::closure::{Location, ObjectRecord};
use crate::cache::pack_writer::write_pack;
use crate::cache::sealed::Sealed;
use crate::db::Info;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::lock::Scratch;
use crate::staged::{self, Staged};
use crate::store::Store;

/// A directory of packs. It is shared by threads; several processes may use one directory.
#[derive(Debug)]
pub struct Packs {
    directory: PathBuf,
    limit_bytes: u64,
    state: Mutex<State>,
    packed: Condvar,
    /// What the directory lies in, if it goes with the value.
    _owned: Option<Workspace>,
}

/// A directory that goes with the value: in the store's scratch space, or where temporary files are
/// if the store can only be read.
#[derive(Debug)]
pub(crate) enum Workspace {
    Scratch(Scratch),
    Temporary(tempfile::TempDir),
}

impl Workspace {
    pub(crate) fn of(store: &Store) -> Result<Workspace, StoreError> {
        match store.scratch() {
            Err(StoreError::ReadOnly { .. }) => {
                let made =
                    tempfile::tempdir().at("create a directory in", &std::env::temp_dir())?;
                Ok(Workspace::Temporary(made))
            }
            scratch => scratch.map(Workspace::Scratch),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Workspace::Scratch(scratch) => scratch.path(),
            Workspace::Temporary(directory) => directory.path(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Where each tree lies that was ever packed here.
    locations: HashMap<Digest, Location>,
    /// The tree of each pack.
    trees: HashMap<Digest, Digest>,
    /// Trees that a thread is packing.
    busy: HashSet<Digest>,
}

impl Packs {
    /// The packs in `directory`, which is made if it isn't there. When a pack is added, those that
    /// were not used for the longest time are removed until the others have `limit_bytes` at most;
    /// the one just added always stays.
    pub fn open(directory: &Path, limit_bytes: u64) -> Result<Packs, StoreError> {
        for name in ["objects", "packs"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).at("create", &path)?;
            staged::sweep(&path).at("list", &path)?;
        }
        let mut state = State::default();
        let records = directory.join("objects");
        for entry in fs::read_dir(&records).at("list", &records)? {
            let path = entry.at("list", &records)?.path();
            // One that is damaged, or being written, is as good as none.
            let bytes = files::read(&path).unwrap_or_default();
            if let Ok(sealed) = Sealed::<ObjectRecord>::from_bytes(&bytes) {
                let record = sealed.unverified();
                state.know(record.object.tree, record.location);
            }
        }
        let directory = directory.to_owned();
        let (state, packed) = (Mutex::new(state), Condvar::new());
        Ok(Packs { directory, limit_bytes, state, packed, _owned: None })
    }

    /// Packs that go with the value.
    pub fn temporary(store: &Store, limit_bytes: u64) -> Result<Packs, StoreError> {
        let owned = Workspace::of(store)?;
        let packs = Packs::open(owned.path(), limit_bytes)?;
        Ok(Packs { _owned: Some(owned), ..packs })
    }

    /// An object's record. Its tree is packed unless it was before.
    pub fn record(&self, store: &Store, info: &Info) -> Result<ObjectRecord, StoreError> {
        let tree = info.object.tree;
        let known = self.state().locations.get(&tree).copied();
        let location = match known {
            Some(location) => location,
            None => self.pack(store, &tree, |state| state.locations.get(&tree).copied())?,
        };
        let object = info.object.clone();
        let record = ObjectRecord { object, size_bytes: info.size_bytes, location };
        if known.is_none() {
            let path = self.path(&CachePath::object(&info.object.id()));
            let bytes = Sealed::new(record.clone(), None).to_bytes();
            staged::write(&path, &bytes).at("write", &path)?;
        }
        Ok(record)
    }

    /// A pack, written again if it was removed; none if no tree that was packed here has it.
    pub fn file(&self, store: &Store, pack: &Digest) -> Result<Option<File>, StoreError> {
        if let Some(file) = self.kept(pack) {
            return Ok(Some(file));
        }
        let Some(tree) = self.state().trees.get(pack).copied() else { return Ok(None) };
        // Whoever else wanted it may have written it meanwhile.
        let there = |state: &State| {
            let location = state.locations.get(&tree)?;
            self.path(&CachePath::pack(&location.pack)).is_file().then_some(*location)
        };
        self.pack(store, &tree, there)?;
        Ok(self.kept(pack))
    }

    /// A pack that is there; it is noted that it was used.
    fn kept(&self, pack: &Digest) -> Option<File> {
        let file = files::open_plain(&self.path(&CachePath::pack(pack))).ok()?;
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Packs a tree, unless `there` finds it when nobody else is at it any more.
    fn pack(
        &self,
        store: &Store,
        tree: &Digest,
        there: impl Fn(&State) -> Option<Location>,
    ) -> Result<Location, StoreError> {
        let mut state = self
            .packed
            .wait_while(self.state(), |state| state.busy.contains(tree))
            .expect("no holder panics");
        if let Some(location) = there(&state) {
            return Ok(location);
        }
        state.busy.insert(*tree);
        drop(state);
        let written = self.write(store, tree);
        let mut state = self.state();
        state.busy.remove(tree);
        if let Ok(location) = &written {
            state.know(*tree, *location);
        }
        drop(state);
        self.packed.notify_all();
        written
    }

    fn write(&self, store: &Store, tree: &Digest) -> Result<Location, StoreError> {
        let listing = store.listing(tree)?;
        let packs = self.directory.join("packs");
        let staged = Staged::new_in(&packs, 0o644).at("create a file in", &packs)?;
        let location = write_pack(&store.tree_path(tree), &listing, staged.path())
            .inspect_err(|error| store.distrust_by(error))?;
        let path = self.path(&CachePath::pack(&location.pack));
        staged.place(&path).at("rename to", &path)?;
        self.make_room(&path)?;
        Ok(location)
    }

    /// Removes what was not used for the longest time, but for `newest`. Who has it open goes on
    /// reading.
    fn make_room(&self, newest: &Path) -> Result<(), StoreError> {
        let packs = self.directory.join("packs");
        let (mut kept, mut total_bytes) = (Vec::new(), 0);
        for entry in fs::read_dir(&packs).at("list", &packs)? {
            let path = entry.at("list", &packs)?.path();
            // Another process may have removed it.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if !path.file_name().is_some_and(staged::is_staged) {
                total_bytes += metadata.len();
                kept.push((used, metadata.len(), path));
            }
        }
        kept.sort();
        for (_, length, path) in kept.iter().filter(|(_, _, path)| path != newest) {
            if total_bytes <= self.limit_bytes {
                break;
            }
            let _ = fs::remove_file(path);
            total_bytes -= length;
        }
        Ok(())
    }

    fn path(&self, path: &CachePath) -> PathBuf {
        self.directory.join(path.as_str())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn know(&mut self, tree: Digest, location: Location) {
        self.locations.insert(tree, location);
        self.trees.insert(location.pack, tree);
    }
}
