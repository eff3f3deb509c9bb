//! Publishing and fetching together: a cache in memory that counts, breaks and lies.

mod export;
mod faults;
mod memory;
mod mutations;
mod resuming;
mod upkeep;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use self::memory::Memory;
use super::pack_writer::write_pack;
use super::statement::tests::{ring, secret};
use super::*;
use crate::OpenTree;
use crate::commit::Registration;
use crate::derivation::InputKey;
use crate::error::StoreError;
use crate::ingest::{self, Rules};
use crate::name::OutputName;
use crate::object::{Object, Reference, ReferenceKind};
use crate::realisation::{Claim, Realisation, Route};
use crate::store::{Access, Store};
use crate::{ResolvedHash, StaticHash, TREE_TIME_SECONDS};

/// A machine: a store, and a directory around it.
struct Machine {
    directory: TempDir,
    store: Store,
}

impl Machine {
    fn new() -> Machine {
        // In memory where that can be: these tests make many stores, and each commit syncs.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        Machine { directory, store }
    }

    /// Adds an object whose tree `write` writes.
    fn add(&self, name: &str, references: &[&Object], write: &dyn Fn(&Path)) -> Object {
        let scratch = self.store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).expect("created");
        write(&tree);
        let listing = Arc::new(
            ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
        );
        let references = references
            .iter()
            .map(|it| Reference { kind: ReferenceKind::Run, object: it.id() })
            .collect();
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references,
            permissions: BTreeMap::new(),
        };
        let mut registration = Registration::default();
        registration.object(&self.store, &object, listing, tree);
        self.store.commit(registration).expect("committed");
        object
    }

    /// Says that the derivation number `hash` came out as `object` here, from `inputs`.
    fn realise(&self, hash: u8, object: &Object, inputs: &[(u8, &Object)]) -> StaticHash {
        let derivation = StaticHash::from_bytes([hash; 32]);
        let resolved = ResolvedHash::from_bytes([hash; 32]);
        let outputs: BTreeMap<_, _> = [(OutputName::out(), object.id())].into();
        let key = |hash| InputKey {
            derivation: StaticHash::from_bytes([hash; 32]),
            output: OutputName::out(),
        };
        let inputs = inputs.iter().map(|(hash, object)| (key(*hash), object.id())).collect();
        let route = Route { runner: "native".to_owned(), ..Route::default() };
        let realisation = Realisation { outputs: outputs.clone(), route };
        let mut registration = Registration::default();
        registration.realisation(&self.store, &resolved, &realisation);
        registration.claim(&self.store, &derivation, &Claim { resolved, outputs, inputs });
        self.store.commit(registration).expect("committed");
        derivation
    }

    fn path(&self, object: &Object) -> PathBuf {
        self.store.object_path(&object.path_name())
    }

    fn publish(&self, cache: &Cache, key: &SecretKey, hash: &StaticHash) -> Published {
        let publisher = Publisher::new(&self.store, cache, Some(key), "builder-1");
        publisher.publish(&root(), hash, Scope::Closure).expect("published")
    }

    /// Fetches everything in a closure; what that took.
    fn fetch(&self, cache: &Cache, closure: &Closure) -> Transfer {
        let holdings = Arc::new(Holdings::of_store(&self.store).expect("readable"));
        let fetcher = Fetcher::new(&self.store, cache, holdings).with_deltas(&closure.deltas);
        let mut sum = Transfer::default();
        for record in &closure.objects {
            let transfer = fetcher.fetch(record).expect("fetched");
            sum.fetched_bytes += transfer.fetched_bytes;
            sum.requests += transfer.requests;
            sum.copied_bytes += transfer.copied_bytes;
            sum.delta_bytes += transfer.delta_bytes;
        }
        sum
    }
}

fn root() -> RootName {
    "stage1.x86_64".parse().expect("a name")
}

/// Compares an object's tree, as it lies there, with its digest.
fn assert_intact(store: &Store, object: &Object) {
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("copy");
    let listing = ingest::copy(&store.tree_path(&object.tree), &copy, Rules::default());
    assert_eq!(listing.expect("copied").digest(), object.tree);
    assert_eq!(store.listing(&object.tree).expect("listed").digest(), object.tree);
}

/// Bytes that don't compress, and are others for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn write_odd_tree(tree: &Path) {
    let odd: [&[u8]; 5] = [b"a b", b"new\nline", b"\xff\xfe", b"-rf", b"'\"\\"];
    for name in odd {
        let directory = tree.join("odd").join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(&directory).expect("created");
        fs::write(directory.join(std::ffi::OsStr::from_bytes(name)), name).expect("written");
    }
    fs::create_dir_all(tree.join("empty/directory")).expect("created");
    fs::write(tree.join("empty/file"), "").expect("written");
    fs::write(tree.join("empty/program"), "").expect("written");
    fs::write(tree.join("data"), "same").expect("written");
    fs::write(tree.join("program"), "same").expect("written");
    fs::write(tree.join("large"), noise(1, 3_500_000)).expect("written");
    fs::write(tree.join("large2"), noise(1, 3_500_000)).expect("written");
    fs::write(tree.join("one"), noise(2, 1 << 20)).expect("written");
    for name in ["program", "empty/program", "large2"] {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(tree.join(name), mode).expect("changed");
    }
    symlink("../data", tree.join("odd/link")).expect("linked");
    symlink("nowhere", tree.join("odd/broken")).expect("linked");
    symlink("/proc/self", tree.join("odd/away")).expect("linked");
}

#[test]
fn odd_trees_come_out_as_they_went_in() {
    let (builder, user) = (Machine::new(), Machine::new());
    let object = builder.add("odd", &[], &write_odd_tree);
    let empty = builder.add("empty", &[], &|_| {});
    let path = builder.directory.path().join("cache");
    let cache = Cache::create(Arc::new(DirectoryRemote::new(&path))).expect("created");
    let publisher = Publisher::new(&builder.store, &cache, None, "builder-1");
    let ids = [object.id(), empty.id()];
    let published = publisher.publish_objects(&ids).expect("published");
    assert_eq!((published.objects, published.packs), (2, 2));
    assert_eq!(publisher.publish_objects(&ids).expect("again").packs, 0);

    let cache = Cache::open(Arc::new(DirectoryRemote::new(&path))).expect("opened");
    let fetcher = Fetcher::new(&user.store, &cache, Arc::default());
    for object in [&object, &empty] {
        let record = cache.object(&object.id()).expect("readable").expect("there");
        fetcher.fetch(&record).expect("fetched");
        assert_intact(&user.store, object);
    }
    let mode = |name: &str| {
        let metadata = fs::symlink_metadata(user.path(&object).join(name)).expect("there");
        (metadata.permissions().mode() & 0o7777, std::os::unix::fs::MetadataExt::mtime(&metadata))
    };
    assert_eq!(
        (mode("data"), mode("program"), mode("large2")),
        ((0o444, TREE_TIME_SECONDS), (0o555, TREE_TIME_SECONDS), (0o555, TREE_TIME_SECONDS))
    );
    assert_eq!(
        (mode("odd"), mode("large"), mode("empty/file")),
        ((0o555, TREE_TIME_SECONDS), (0o444, TREE_TIME_SECONDS), (0o444, TREE_TIME_SECONDS))
    );
    assert_eq!(mode("odd/link").1, TREE_TIME_SECONDS);
}

#[test]
fn a_tree_has_one_pack_and_a_damaged_store_publishes_nothing() {
    let machine = Machine::new();
    let object = machine.add("odd", &[], &write_odd_tree);
    let listing = machine.store.listing(&object.tree).expect("listed");
    let tree = machine.store.tree_path(&object.tree);
    let write = |name| write_pack(&tree, &listing, &machine.directory.path().join(name));
    let location = write("one").expect("written");
    assert_eq!(write("two").expect("written"), location);
    let bytes = fs::read(machine.directory.path().join("one")).expect("readable");
    assert_eq!(Digest::of_file(&bytes), location.pack);
    let begin = bytes.len() - location.index_bytes as usize;
    let index = Index::decode(&bytes[begin..], &location, &object.tree).expect("an index");
    assert_eq!(index.files.len(), 8, "each content once");
    assert_eq!(index.stream_bytes(), index.files.iter().map(|file| file.size_bytes).sum::<u64>());

    for (name, byte) in [("data", 0), ("large", 3_000_000)] {
        let path = tree.join(name);
        let good = fs::read(&path).expect("readable");
        let mut bad = good.clone();
        bad[byte] ^= 1;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        fs::write(&path, bad).expect("written");
        let error = write("three").expect_err("damaged").to_string();
        assert!(error.contains(name) && error.contains("is damaged: other bytes"), "{error}");
        fs::remove_file(machine.directory.path().join("three")).expect("removed");
        fs::write(&path, good).expect("written");
    }
}

#[test]
fn a_root_is_published_once_believed_fetched_and_passed_on() {
    let (builder, user) = (Machine::new(), Machine::new());
    let libc = builder.add("libc", &[], &|tree| fs::write(tree.join("c"), "c").expect("written"));
    let tool = builder.add("tool", &[&libc], &|tree| {
        fs::write(tree.join("t"), "t").expect("written");
    });
    let compiler = builder.add("cc", &[], &|tree| fs::write(tree.join("k"), "k").expect("written"));
    builder.realise(1, &libc, &[(3, &compiler)]);
    builder.realise(3, &compiler, &[]);
    let derivation = builder.realise(2, &tool, &[(1, &libc), (3, &compiler)]);
    let key = secret("builder-1", 7);
    let public = key.public();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let published = builder.publish(&cache, &key, &derivation);
    assert_eq!((published.objects, published.packs, published.generation), (2, 2, Some(1)));
    memory.assert_content_first();

    memory.forget_requests();
    let again = builder.publish(&cache, &key, &derivation);
    assert_eq!((again.packs, again.files, again.generation), (0, 0, Some(1)));
    assert_eq!(memory.puts(), 0);

    // One request, and everything is known.
    memory.forget_requests();
    let found = cache.closure(&derivation, Some(&public)).expect("readable").expect("there");
    assert_eq!(memory.gets(), 1);
    assert_eq!(found.closure.objects.len(), 2);
    let policy = Policy { trusted: ring(&[&key]), ..Policy::default() };
    let evidence = |statements: Vec<Sealed<Statement>>| -> Vec<Evidence> {
        let evidence = |statement| Evidence {
            cache: cache.url().to_owned(),
            trusted_outright: false,
            statement,
        };
        statements.into_iter().map(evidence).collect()
    };
    let asked = Asked::Static(derivation);
    let statements = cache.statements(asked, &[Some(public.id()), None]).expect("readable");
    assert_eq!(statements.len(), 1);
    let decision = policy.decide(asked, &evidence(statements.clone()));
    let Verdict::Accepted { statement, .. } = decision.verdict else { panic!("{decision:?}") };
    assert!(user.store.adopt(&statement, &statements).is_err(), "the object isn't there yet");
    user.fetch(&cache, &found.closure);
    assert_intact(&user.store, &tool);
    user.store.adopt(&statement, &statements).expect("adopted");
    let claim = user.store.claim(&derivation).expect("readable").expect("there");
    assert_eq!(Some(claim), builder.store.claim(&derivation).expect("readable"));

    // Who only passes it on says so, and shows whose word it is.
    let other = secret("mirror", 8);
    let mirror = Cache::create(Arc::new(Memory::default())).expect("created");
    user.publish(&mirror, &other, &derivation);
    let signers = [Some(other.public().id()), Some(public.id())];
    let statements = mirror.statements(asked, &signers).expect("readable");
    assert_eq!(statements[0].unverified().provenance, Provenance::Substituted);
    assert_eq!(statements[1].unverified().provenance, Provenance::Built);
    let two = Policy { trusted: ring(&[&key, &other]), threshold: 2, ..Policy::default() };
    let verdict = two.decide(asked, &evidence(statements)).verdict;
    assert!(matches!(&verdict, Verdict::NotEnough { have, .. } if have.len() == 1), "{verdict:?}");

    let inputs = Publisher::new(&builder.store, &cache, Some(&key), "builder-1")
        .publish(&root(), &derivation, Scope::Inputs)
        .expect("published");
    assert_eq!((inputs.objects, inputs.packs, inputs.generation), (3, 1, Some(2)));
}

#[test]
fn a_forged_stage_comes_in_by_no_way() {
    let (builder, user) = (Machine::new(), Machine::new());
    let scratch = builder.store.scratch().expect("a scratch directory");
    let tree = scratch.path().join("tree");
    let secret = user.add("secret", &[], &|tree| fs::write(tree.join("s"), "s").expect("written"));
    fs::create_dir_all(tree.join("srp/stage")).expect("created");
    let manifest = format!(
        "srp stage 1\nname forged\nbuild x86_64-linux-musl\nhost x86_64-linux-musl\nroot {}\ntools {}\n",
        "00".repeat(32),
        secret.path_name()
    );
    fs::write(tree.join("srp/stage/forged"), manifest).expect("written");
    let listing = Arc::new(
        ingest::take(&crate::open_tree::OpenTree::open(&tree).expect("opened"), Rules::default())
            .expect("taken"),
    );
    let forged = Object {
        name: "forged".parse().expect("a name"),
        tree: listing.digest(),
        references: [].into(),
        permissions: BTreeMap::new(),
    };
    let mut registration = Registration::default();
    registration.object(&builder.store, &forged, listing, tree);
    builder.store.commit(registration.ungated()).expect("a forger's own store");
    assert!(matches!(builder.store.manifest(&forged), Err(StoreError::NotAStage { .. })));

    let cache = Cache::create(Arc::new(Memory::default())).expect("created");
    let publisher = Publisher::new(&builder.store, &cache, None, "builder-1");
    publisher.publish_objects(&[forged.id()]).expect("published");
    let record = cache.object(&forged.id()).expect("readable").expect("there");
    let fetcher = Fetcher::new(&user.store, &cache, Arc::default());
    let error = fetcher.fetch(&record).expect_err("a forgery");
    assert!(matches!(error, CacheError::Store(StoreError::NotAStage { .. })), "{error}");
    assert_eq!(error.severity(), Severity::Integrity);
    assert!(!user.store.contains(&forged.id()).expect("readable"));

    let packs = Packs::temporary(&builder.store, 0).expect("made");
    let exporter =
        Exporter { store: &builder.store, packs: &packs, key: None, builder: "builder-1" };
    let asked = Exported { name: "x".to_owned(), derivation: None, object: forged.id() };
    let mut file = tempfile::tempfile().expect("a file");
    exporter.export(&[asked], &mut file).expect("exported");
    std::io::Seek::rewind(&mut file).expect("rewound");
    let policy = Policy::default();
    let importer = Importer { store: &user.store, policy: &policy, trusted_outright: true };
    let error = importer.import(file, "x", Arc::new(|_| Ok(()))).expect_err("a forgery");
    assert!(error.to_string().contains("which it does not refer to"), "{error}");
    assert!(!user.store.contains(&forged.id()).expect("readable"));
}

#[test]
fn an_update_reads_only_what_changed() {
    let (builder, user) = (Machine::new(), Machine::new());
    let write = |changed: &'static str| {
        move |tree: &Path| {
            for number in 0..20 {
                let bytes = noise(number, 400_000);
                fs::write(tree.join(format!("file{number}.bin")), bytes).expect("written");
            }
            fs::write(tree.join("file7.bin"), noise(100, 400_000)).expect("written");
            fs::write(tree.join("changed.txt"), changed).expect("written");
        }
    };
    let key = secret("builder-1", 7);
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let old = builder.add("data", &[], &write("old"));
    let first = builder.realise(1, &old, &[]);
    builder.publish(&cache, &key, &first);
    let public = key.public();
    let closure = |hash| cache.closure(&hash, Some(&public)).expect("read").expect("there").closure;
    let cold = user.fetch(&cache, &closure(first));
    assert!(cold.requests <= 2, "{cold:?}");

    let new = builder.add("data", &[], &|tree| {
        write("new")(tree);
        fs::write(tree.join("file13.bin"), noise(200, 400_000)).expect("written");
    });
    let second = builder.realise(2, &new, &[]);
    let published = builder.publish(&cache, &key, &second);
    assert_eq!(published.generation, Some(2));
    memory.forget_requests();
    let closure = closure(second);
    let manifest_bytes = memory.sent();
    let update = user.fetch(&cache, &closure);
    assert_intact(&user.store, &new);
    assert_eq!(memory.sent() - manifest_bytes, update.fetched_bytes);
    // A block for each of the two files that changed, of eleven; and the index.
    assert!(update.fetched_bytes < 1_700_000, "{update:?}");
    assert!(update.requests <= 3, "{update:?}");
    assert_eq!(update.copied_bytes, 19 * 400_000);

    // A copy that is damaged is noticed, and fetched instead.
    let path = user.path(&new).join("file13.bin");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
    fs::write(&path, noise(0, 400_000)).expect("written");
    let third = builder.add("more", &[], &|tree| {
        fs::write(tree.join("copy"), noise(200, 400_000)).expect("written");
    });
    let hash = builder.realise(3, &third, &[]);
    builder.publish(&cache, &key, &hash);
    let found = cache.closure(&hash, Some(&public)).expect("read").expect("there");
    user.fetch(&cache, &found.closure);
    assert_intact(&user.store, &third);
}

#[test]
fn a_changed_library_comes_as_a_delta() {
    let (builder, user, late) = (Machine::new(), Machine::new(), Machine::new());
    let library = |edit: u64| {
        move |tree: &Path| {
            let mut bytes = noise(9, 3_000_000);
            bytes.splice(1_000_000..1_000_010, noise(edit, 200));
            fs::write(tree.join("lib.so"), bytes).expect("written");
        }
    };
    let key = secret("builder-1", 7);
    let public = key.public();
    let cache = Cache::create(Arc::new(Memory::default())).expect("created");
    let mut sizes = Vec::new();
    for edit in 1..4 {
        let object = builder.add("lib", &[], &library(edit.into()));
        let hash = builder.realise(edit, &object, &[]);
        let published = builder.publish(&cache, &key, &hash);
        assert_eq!(published.deltas, usize::from(edit > 1), "{published:?}");
        let found = cache.closure(&hash, Some(&public)).expect("read").expect("there").closure;
        sizes.push(user.fetch(&cache, &found));
        assert_intact(&user.store, &object);
        if edit == 3 {
            // Who has nothing to start from gets the file itself.
            assert!(late.fetch(&cache, &found).fetched_bytes > 3_000_000);
            assert_intact(&late.store, &object);
        }
    }
    assert!(sizes[0].fetched_bytes > 3_000_000);
    assert!(sizes[1].fetched_bytes < 3_000 && sizes[1].delta_bytes > 2_999_000, "{sizes:?}");
    assert!(sizes[2].fetched_bytes < 3_000, "{sizes:?}");
}
