//! The store on disk: what lies where, and reading it.
//!
//! Files are the truth: everything here is answered from them. Writing is `commit.rs`'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use quick_cache::Weighter;

use crate::assurance::Validity;
use crate::commit::Committer;
use crate::db::{self, Info};
use crate::derivation::Derivation;
use crate::digest::{Digest, ObjectId, ResolvedHash, StaticHash};
use crate::encode::Canonical;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::lock::Session;
use crate::object::{ObjectName, ReferenceKind};
use crate::presence::undamaged;
use crate::realisation::{Claim, Realisation};
use crate::rely::Relying;
use crate::staged::Staged;
use crate::upgrade;
use crate::verification;

/// The store format that this program writes. It reads 1, too, and makes it this one (`upgrade`).
pub const FORMAT: u32 = 2;

/// The directories of a store, in the order in which they are made.
pub(crate) const DIRECTORIES: &[&str] = &[
    "objects",
    "trees",
    "info",
    "realisations/static",
    "realisations/resolved",
    "derivations",
    "eval",
    "logs",
    "roots",
    "locks",
    "composed",
    "sources",
    "tmp",
];

/// A store directory that was opened.
///
/// It is shared between threads by reference.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    writable: bool,
    pub(crate) committer: Committer,
    /// Made when it is first needed.
    pub(crate) session: Mutex<Option<Arc<Session>>>,
    /// What this process relies on, and whether it relies on anything.
    pub(crate) relying: Mutex<Relying>,
    pub(crate) relies: bool,
    pub(crate) listings: Kept<Digest, Arc<Listing>>,
    infos: Kept<ObjectId, Info>,
    /// What verification found, where it can't be written down.
    pub(crate) stamps: verification::Remembered,
    /// Whose turn it is to verify.
    pub(crate) assuring: Mutex<()>,
    /// Trees that were given up.
    pub(crate) given_up: Mutex<BTreeSet<Digest>>,
    /// When it was opened.
    pub(crate) opened: SystemTime,
    pub(crate) validity: Validity,
}

/// What was read lately, within a bound: a server asks for all that there is.
type Kept<K, V> = quick_cache::sync::Cache<K, V, MemoryBytes>;

/// How much listings and records are kept in memory, each.
const KEPT_BYTES: u64 = 128 << 20;
/// How many of them that is expected to be.
const KEPT_ITEMS: usize = 1024;

/// The parts of each that are locked by themselves. Left out, every start of srp would ask the control
/// group how many processors there are.
const SHARDS: usize = 8;

fn kept<K: Eq + std::hash::Hash, V: Clone>() -> Kept<K, V>
where
    MemoryBytes: Weighter<K, V>,
{
    let options = quick_cache::OptionsBuilder::new()
        .shards(SHARDS)
        .estimated_items_capacity(KEPT_ITEMS)
        .weight_capacity(KEPT_BYTES)
        .build()
        .expect("both capacities are set");
    Kept::with_options(options, MemoryBytes, Default::default(), Default::default())
}

/// What something that is kept takes in memory, roughly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryBytes;

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading only: by anybody who may read the files, also from a read-only disk.
    Read,
    /// For writing too: by its owner; it is made if there is none.
    Write,
    /// As `Write`, without ever waiting for the disk. A process that is killed still leaves whole
    /// objects or none; after a power cut the store may name trees that are damaged or not there.
    WriteUnsynced,
}

impl Store {
    /// Opens the store at `root`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] (reading), [`StoreError::NotAStore`], [`StoreError::Format`],
    /// [`StoreError::Owner`], or what the system says.
    pub fn open(root: &Path, access: Access) -> Result<Store, StoreError> {
        let (writable, synced) = (access != Access::Read, access != Access::WriteUnsynced);
        let meta = root.join("meta");
        match files::read_text(&meta) {
            Ok(text) => match check_format(root, &text)? {
                FORMAT => {}
                // What differs is of no interest to whoever only reads.
                _ if !writable => {}
                found => {
                    check_owner(root)?;
                    upgrade::upgrade(root, found, synced)?;
                }
            },
            Err(error) if error.kind() == ErrorKind::NotFound && writable => {
                create(root, synced)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(StoreError::Missing { path: root.to_owned() });
            }
            Err(error) => return Err(error).at("read", &meta),
        }
        Store::of(root, access)
    }

    /// As [`open`](Store::open), also if what makes the directory a store is damaged or missing,
    /// as long as everything else says that it is one: to be verified and repaired.
    ///
    /// # Errors
    /// As there.
    pub fn open_damaged(root: &Path, access: Access) -> Result<Store, StoreError> {
        let text = files::read(&root.join("meta")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // Of another format is what says so in due form.
        let damaged = match check_format(root, &text) {
            Err(StoreError::Format { found, .. }) => found == DAMAGED_META,
            _ => false,
        };
        if damaged && ["trees", "info", "objects"].iter().all(|name| root.join(name).is_dir()) {
            return Store::of(root, access);
        }
        Store::open(root, access)
    }

    fn of(root: &Path, access: Access) -> Result<Store, StoreError> {
        let (writable, synced) = (access != Access::Read, access != Access::WriteUnsynced);
        if writable {
            check_owner(root)?;
            let locks = root.join("locks");
            nix::unistd::access(&locks, nix::unistd::AccessFlags::W_OK).at("write to", &locks)?;
        }
        let store = Store {
            committer: Committer::new(root, synced),
            root: root.to_owned(),
            writable,
            session: Mutex::default(),
            relying: Mutex::default(),
            relies: true,
            listings: kept(),
            infos: kept(),
            stamps: verification::Remembered::default(),
            assuring: Mutex::default(),
            given_up: Mutex::default(),
            opened: SystemTime::now(),
            validity: Validity::default(),
        };
        Ok(store)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the store was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// An error unless the store was opened for writing.
    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        if self.writable { Ok(()) } else { Err(StoreError::ReadOnly { path: self.root.clone() }) }
    }

    /// A directory of the store: `logs`, `sources`, `eval` …
    pub fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// An object's path. There need be nothing there.
    pub fn object_path(&self, name: &ObjectName) -> PathBuf {
        self.root.join("objects").join(name.to_string())
    }

    /// The directory of a tree's files. There need be nothing there.
    pub fn tree_path(&self, tree: &Digest) -> PathBuf {
        self.root.join("trees").join(tree.to_string())
    }

    /// Where the log of a build is kept.
    pub fn log_path(&self, resolved: &ResolvedHash) -> PathBuf {
        self.root.join("logs").join(format!("{resolved}.log"))
    }

    /// An object's record. Kept in memory: it never changes, and every build asks for those of its
    /// inputs.
    pub fn info(&self, id: &ObjectId) -> Result<Info, StoreError> {
        if let Some(info) = self.infos.get(id) {
            return Ok(info);
        }
        let found = self.find_info(id)?;
        let info =
            found.ok_or_else(|| StoreError::NoObject { id: *id, path: self.root.clone() })?;
        self.infos.insert(*id, info.clone());
        Ok(info)
    }

    /// An object's record, if there is one. Whether the object is here is said by
    /// [`present`](Store::present).
    ///
    /// # Errors
    /// The record is damaged, or can't be read.
    pub fn find_info(&self, id: &ObjectId) -> Result<Option<Info>, StoreError> {
        let info: Option<Info> = self.record(&self.info_path(id))?;
        match info {
            Some(info) if info.object.id() != *id => Err(StoreError::Damaged {
                path: self.info_path(id),
                reason: format!("it describes the object {}", info.object.id()),
            }),
            info => Ok(info),
        }
    }

    /// What a resolved derivation came out as here. A damaged record counts as none: it is written
    /// again when the derivation is realised.
    pub fn realisation(&self, resolved: &ResolvedHash) -> Result<Option<Realisation>, StoreError> {
        Ok(undamaged(self.record(&self.realisation_path(resolved)))?.flatten())
    }

    /// What was chosen here for a derivation by its static hash. A damaged claim counts as none, be
    /// it a goal's or an input's: it is made again from the realisation.
    pub fn claim(&self, hash: &StaticHash) -> Result<Option<Claim>, StoreError> {
        Ok(undamaged(self.record(&self.claim_path(hash)))?.flatten())
    }

    /// A derivation that was instantiated here. A damaged file counts as none: it is written again
    /// when the derivation is instantiated.
    pub fn derivation(&self, hash: &StaticHash) -> Result<Option<Derivation>, StoreError> {
        Ok(undamaged(self.read_derivation(hash))?.flatten())
    }

    pub(crate) fn read_derivation(
        &self,
        hash: &StaticHash,
    ) -> Result<Option<Derivation>, StoreError> {
        let path = self.derivation_path(hash);
        let Some(bytes) = files::read_if_exists(&path)? else { return Ok(None) };
        match Derivation::from_canonical(&bytes) {
            Ok(derivation) if derivation.static_hash() == *hash => Ok(Some(derivation)),
            Ok(_) => {
                let reason = "it is another derivation than its name says".to_owned();
                Err(StoreError::Damaged { path, reason })
            }
            Err(error) => Err(StoreError::Damaged { path, reason: error.to_string() }),
        }
    }

    /// Keeps a derivation, so that `show` and `log` find it later.
    pub fn add_derivation(&self, derivation: &Derivation) -> Result<StaticHash, StoreError> {
        self.check_writable()?;
        let hash = derivation.static_hash();
        let path = self.derivation_path(&hash);
        let bytes = derivation.to_canonical();
        // Advice may have changed under the same hash: the newest is kept.
        if undamaged(files::read_if_exists(&path))?.flatten().as_deref() != Some(&bytes) {
            self.write(&path, &bytes, 0o644)?;
        }
        Ok(hash)
    }

    /// All derivations whose static hash begins with `prefix` (hexadecimal digits).
    pub fn derivations_by_prefix(&self, prefix: &str) -> Result<Vec<StaticHash>, StoreError> {
        let directory = self.root.join("derivations");
        let mut found = Vec::new();
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let name = entry.at("list", &directory)?.file_name();
            if let Some(hash) = name.to_str().filter(|name| name.starts_with(prefix)) {
                found.extend(hash.parse::<StaticHash>().ok());
            }
        }
        found.sort();
        Ok(found)
    }

    pub(crate) fn remember_listing(&self, listing: Arc<Listing>) {
        self.listings.insert(listing.digest(), listing);
    }

    /// The closure of `ids` over references of `kinds`: each object once, an object before what
    /// it refers to, in the order of `ids` and then of references.
    pub fn closure(
        &self,
        ids: &[ObjectId],
        kinds: &[ReferenceKind],
    ) -> Result<Vec<(ObjectId, Info)>, StoreError> {
        let mut closure = Vec::new();
        let mut seen = BTreeSet::new();
        let mut pending: Vec<ObjectId> = ids.iter().rev().copied().collect();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let info = self.info(&id)?;
            let references: BTreeSet<ObjectId> = info.object.references(kinds).collect();
            pending.extend(references.iter().rev());
            closure.push((id, info));
        }
        Ok(closure)
    }

    /// The shortest chain of references from `from` to `to`, both included, or none.
    pub fn reference_chain(
        &self,
        from: &ObjectId,
        to: &ObjectId,
        kinds: &[ReferenceKind],
    ) -> Result<Option<Vec<ObjectName>>, StoreError> {
        let mut came_from: BTreeMap<ObjectId, Option<ObjectId>> = [(*from, None)].into();
        let mut pending = std::collections::VecDeque::from([*from]);
        while let Some(id) = pending.pop_front() {
            if id == *to {
                let mut chain = Vec::new();
                let mut at = Some(id);
                while let Some(id) = at {
                    chain.push(self.info(&id)?.object.path_name());
                    at = came_from[&id];
                }
                chain.reverse();
                return Ok(Some(chain));
            }
            for reference in self.info(&id)?.object.references(kinds) {
                came_from.entry(reference).or_insert_with(|| {
                    pending.push_back(reference);
                    Some(id)
                });
            }
        }
        Ok(None)
    }

    pub(crate) fn info_path(&self, id: &ObjectId) -> PathBuf {
        self.root.join("info").join(id.to_string())
    }

    pub(crate) fn listing_path(&self, tree: &Digest) -> PathBuf {
        self.root.join("trees").join(format!("{tree}.listing"))
    }

    pub(crate) fn realisation_path(&self, resolved: &ResolvedHash) -> PathBuf {
        self.root.join("realisations/resolved").join(resolved.to_string())
    }

    pub(crate) fn claim_path(&self, hash: &StaticHash) -> PathBuf {
        self.root.join("realisations/static").join(hash.to_string())
    }

    pub(crate) fn derivation_path(&self, hash: &StaticHash) -> PathBuf {
        self.root.join("derivations").join(hash.to_string())
    }

    pub(crate) fn record<R: db::Record>(&self, path: &Path) -> Result<Option<R>, StoreError> {
        files::read_if_exists(path)?
            .map(|bytes| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                db::decode(&bytes, name)
                    .map_err(|reason| StoreError::Damaged { path: path.to_owned(), reason })
            })
            .transpose()
    }
}

/// Makes an empty store. What makes it one, `meta`, is written last.
fn create(root: &Path, synced: bool) -> Result<(), StoreError> {
    // What a crash in the middle of this function left is no reason to refuse.
    let ours = |name: &str| {
        name.starts_with('.') || DIRECTORIES.iter().any(|it| it.split('/').next() == Some(name))
    };
    if let Ok(mut entries) = fs::read_dir(root)
        && entries.any(|entry| entry.is_ok_and(|entry| !ours(&entry.file_name().to_string_lossy())))
    {
        return Err(StoreError::NotAStore { path: root.to_owned() });
    }
    for name in DIRECTORIES {
        let path = root.join(name);
        fs::create_dir_all(&path).at("create", &path)?;
    }
    write_meta(root, synced)
}

/// Writes that the store has this program's format.
pub(crate) fn write_meta(root: &Path, synced: bool) -> Result<(), StoreError> {
    let meta = root.join("meta");
    let mut staged = Staged::beside(&meta, 0o644).at("write", &meta)?;
    let text = format!("srp store\nformat {FORMAT}\n");
    staged.write_all(text.as_bytes()).at("write", staged.path())?;
    if !synced {
        return staged.place(&meta).at("write", &meta);
    }
    // The directories before what says that they are there.
    let directory = File::open(root).at("open", root)?;
    nix::unistd::syncfs(&directory).at("sync", root)?;
    staged.place_synced(&meta).at("write", &meta)
}

impl Weighter<Digest, Arc<Listing>> for MemoryBytes {
    fn weight(&self, _: &Digest, listing: &Arc<Listing>) -> u64 {
        listing.memory_bytes()
    }
}

impl Weighter<ObjectId, Info> for MemoryBytes {
    fn weight(&self, _: &ObjectId, info: &Info) -> u64 {
        // A reference, and what a node of a set of them takes.
        const REFERENCE_BYTES: u64 = 40;
        let references = info.object.references(ReferenceKind::ALL).count() as u64;
        200 + REFERENCE_BYTES * references + 200 * info.object.permissions.len() as u64
    }
}

fn check_owner(root: &Path) -> Result<(), StoreError> {
    let owner = fs::metadata(root).at("read", root)?.uid();
    let user = nix::unistd::geteuid().as_raw();
    match owner == user {
        true => Ok(()),
        false => Err(StoreError::Owner { path: root.to_owned(), owner, user }),
    }
}

const DAMAGED_META: &str = "a damaged `meta`";

/// `meta` is `srp store`, `format <number>`, then a line `feature <name>` for each feature without
/// knowing which the store can't be read. Returns the number, of a format that can be read.
pub(crate) fn check_format(root: &Path, text: &str) -> Result<u32, StoreError> {
    let unknown =
        |found: String| StoreError::Format { path: root.to_owned(), found, known: FORMAT };
    let mut lines = text.lines();
    if lines.next() != Some("srp store") {
        return Err(unknown(DAMAGED_META.to_owned()));
    }
    let format = lines.next().and_then(|line| line.strip_prefix("format "));
    let format = match format.and_then(|number| number.parse::<u32>().ok()) {
        Some(known @ 1..=FORMAT) => known,
        Some(other) => return Err(unknown(format!("format {other}"))),
        None => return Err(unknown(DAMAGED_META.to_owned())),
    };
    match lines.next() {
        None => Ok(format),
        Some(line) => Err(unknown(format!("the unknown {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::OpenTree;
    use crate::commit::Registration;
    use crate::ingest::{self, Rules};
    use crate::object::{Object, Reference};

    fn open(directory: &tempfile::TempDir) -> Store {
        Store::open(&directory.path().join("store"), Access::Write).expect("opened")
    }

    /// Adds an object of small files, as an import would.
    fn add(store: &Store, name: &str, files: &[(&str, &str)], references: &[&Object]) -> Object {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).expect("created");
        for (path, text) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            fs::write(path, text).expect("written");
        }
        let listing = Arc::new(
            ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
        );
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references: references
                .iter()
                .map(|it| Reference { kind: ReferenceKind::Run, object: it.id() })
                .collect(),
            permissions: BTreeMap::new(),
        };
        let mut registration = Registration::default();
        registration.object(store, &object, listing, tree);
        store.commit(registration).expect("committed");
        object
    }

    #[test]
    fn an_object_is_registered_read_back_and_composed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let libc = add(&store, "libc", &[("usr/lib/libc.so", "c"), ("usr/include/a.h", "h")], &[]);
        let tool = add(&store, "tool", &[("usr/bin/tool", "t")], &[&libc]);

        // A second process sees the same.
        let store = open(&directory);
        assert!(store.contains_closure(&[tool.id()]).expect("readable"));
        let closure = store.closure(&[tool.id()], ReferenceKind::RUN).expect("a closure");
        assert_eq!(closure.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [tool.id(), libc.id()]);
        let path = store.object_path(&tool.path_name());
        assert_eq!(fs::read_to_string(path.join("usr/bin/tool")).expect("readable"), "t");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o555);

        let root = directory.path().join("root");
        let composition = store.compose_object(&tool, ReferenceKind::RUN).expect("composed");
        let located = composition.locate("/usr/lib/../lib/libc.so").expect("located");
        assert_eq!(located.provider.expect("provided").object, libc.path_name());
        let written = composition.materialise(&root, true, None).expect("written");
        assert_eq!(fs::read_link(root.join("bin")).expect("a link"), Path::new("usr/bin"));
        assert_eq!(fs::read_to_string(root.join("lib/libc.so")).expect("readable"), "c");
        let again = ingest::copy(&root, &directory.path().join("copy"), Rules::default());
        assert!(matches!(again, Err(StoreError::Mode { .. })), "/tmp is sticky");
        for path in ["tmp", "var/tmp"] {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).expect("set");
        }
        let again = ingest::copy(&root, &directory.path().join("copy2"), Rules::default());
        assert_eq!(again.expect("copied").digest(), written.digest);
        let composition = store.compose_object(&tool, ReferenceKind::RUN).expect("composed");
        assert!(matches!(
            composition.materialise(&root, true, None),
            Err(StoreError::NotEmpty { .. })
        ));
    }

    #[test]
    fn two_objects_with_one_path_are_an_error_that_names_both() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let first = add(&store, "first", &[("usr/bin/x", "1"), ("usr/bin/same", "s")], &[]);
        let second = add(&store, "second", &[("usr/bin/x", "2"), ("usr/bin/same", "s")], &[]);
        let error = store.compose(&[vec![first.id(), second.id()]]).expect_err("a conflict");
        assert_eq!(
            error.to_string(),
            format!(
                "/usr/bin/x is a file in {} and another in {}",
                first.path_name(),
                second.path_name()
            )
        );
        let shadowing = store.compose(&[vec![first.id()], vec![second.id()]]).expect("shadowed");
        assert_eq!(shadowing.shadowed().len(), 1);
        let located = shadowing.locate("usr/bin/x").expect("located");
        assert_eq!(located.provider.expect("provided").object, first.path_name());
        assert_eq!(shadowing.listing().digest(), shadowing.digest());
    }

    #[test]
    fn a_store_that_is_newer_damaged_or_none_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(open(&directory));
        let root = directory.path().join("store");
        let message = |text: &str| {
            fs::write(root.join("meta"), text).expect("written");
            Store::open(&root, Access::Read).expect_err("refused").to_string()
        };
        assert!(message("srp store\nformat 3\n").contains("has format 3"));
        assert!(message("srp store\nformat 2\nfeature x\n").contains("has the unknown feature x"));
        assert!(message("srp").contains("has a damaged `meta`"));
        fs::remove_file(root.join("meta")).expect("removed");
        assert!(matches!(Store::open(&root, Access::Read), Err(StoreError::Missing { .. })));
        fs::write(root.join("precious"), "").expect("written");
        assert!(matches!(Store::open(&root, Access::Write), Err(StoreError::NotAStore { .. })));
    }

    #[test]
    fn a_truncated_record_is_named_and_a_missing_tree_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let object = add(&store, "libc", &[("usr/lib/libc.so", "c")], &[]);
        let tree = store.tree_path(&object.tree);
        fs::rename(&tree, tree.with_extension("away")).expect("renamed");
        assert!(!store.contains(&object.id()).expect("readable"));
        let info = store.info_path(&object.id());
        let bytes = fs::read(&info).expect("readable");
        fs::remove_file(&info).expect("removed");
        fs::write(&info, &bytes[..bytes.len() - 1]).expect("written");
        let error = store.info(&object.id()).expect_err("damaged").to_string();
        assert!(
            error.contains(&info.display().to_string()) && error.contains("is damaged"),
            "{error}"
        );
    }

    #[test]
    fn roots_have_generations() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let objects: Vec<_> = ["a", "b", "c", "d"]
            .iter()
            .map(|text| add(&store, text, &[("f", text)], &[]).path_name())
            .collect();
        for object in &objects {
            store.set_root("stage1.x", object).expect("set");
            store.set_root("stage1.x", object).expect("set again: no new generation");
        }
        let roots = store.roots().expect("readable");
        assert_eq!(roots.iter().map(|root| root.generation).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(roots[2].object, objects[3]);
        for bad in ["", "..", "a/b", ".hidden"] {
            assert!(matches!(store.set_root(bad, &objects[0]), Err(StoreError::RootName { .. })));
        }
        // A damaged one is an error of who asks for all, and doesn't keep the root from being set.
        let damaged = store.directory("roots").join("stage1.x/7");
        fs::write(&damaged, "").expect("written");
        assert!(matches!(store.roots(), Err(StoreError::Damaged { .. })));
        assert_eq!(store.set_root("stage1.x", &objects[0]).expect("set").generation, 8);
        fs::remove_file(&damaged).expect("removed");
        assert_eq!(store.roots().expect("readable").len(), 3);
        assert!(store.remove_root("stage1.x").expect("removed"));
        assert!(store.roots().expect("readable").is_empty());
    }

    #[test]
    fn threads_that_finish_together_commit_together() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        std::thread::scope(|scope| {
            for index in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    let text = format!("{index}");
                    let object = add(store, &format!("o{index}"), &[("f", &text)], &[]);
                    assert!(store.contains(&object.id()).expect("readable"));
                });
            }
        });
        let tmp = store.directory("tmp");
        drop(store);
        assert!(fs::read_dir(tmp).expect("readable").next().is_none());
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let hash = ResolvedHash::from_bytes([1; 32]);
        let held = store.lock(&hash).expect("no error").expect("locked");
        // Neither another thread nor another process gets it, and it is of no other derivation.
        assert!(store.lock(&hash).expect("no error").is_none());
        assert!(open(&directory).lock(&hash).expect("no error").is_none());
        let other = ResolvedHash::from_bytes([2; 32]);
        assert!(store.lock(&other).expect("no error").is_some());
        drop(held);
        assert!(store.lock(&hash).expect("no error").is_some());
    }

    #[test]
    fn a_scratch_directory_is_empty_again_when_it_is_used_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let first = store.scratch().expect("a scratch directory");
        let second = store.scratch().expect("another");
        assert_ne!(first.path(), second.path());
        fs::create_dir_all(first.path().join("build/deep")).expect("created");
        let path = first.path().to_owned();
        drop(first);
        let third = store.scratch().expect("a scratch directory");
        assert_eq!(third.path(), path);
        assert_eq!(fs::read_dir(&path).expect("readable").count(), 0);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_what_a_living_one_has_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let living = store.scratch().expect("a scratch directory");
        let tmp = store.directory("tmp");
        // One died with a directory, one before it had made one, one of an older srp.
        fs::create_dir_all(tmp.join("1-0/0/build")).expect("created");
        for lock in ["1-0.lock", "2-0.lock"] {
            fs::write(tmp.join(lock), "").expect("written");
        }
        fs::create_dir(tmp.join("3-0")).expect("created");
        open(&directory).sweep().expect("swept");
        assert!(living.path().is_dir());
        assert_eq!(fs::read_dir(&tmp).expect("readable").count(), 2, "the living one's");
        drop((living, store));
        assert_eq!(fs::read_dir(&tmp).expect("readable").count(), 0);
    }
}
