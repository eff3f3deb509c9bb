//! Collections of real stores: alone, interrupted at every step, and between the steps of others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::commit::Registration;
use crate::derivation::{Action, Advice, Derivation, Fetch, Format};
use crate::digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
use crate::error::StoreError;
use crate::ingest::{self, Rules};
use crate::object::{Object, Reference, ReferenceKind};
use crate::open_tree::OpenTree;
use crate::realisation::{Claim, Realisation, Route};
use crate::store::{Access, Store};

const ALL: Retention = Retention {
    older_than: Duration::ZERO,
    max_freed_bytes: None,
    keep_derivations: false,
    keep_sources: false,
};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().expect("a directory") }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// A process that works in the store.
    fn open(&self) -> Store {
        Store::open(&self.root(), Access::WriteUnsynced).expect("opened")
    }

    /// What is wrong with what lies in the store, as a new process sees it.
    fn problems(&self) -> Vec<String> {
        let store = Store::open(&self.root(), Access::Read).expect("opened");
        let mut problems = Vec::new();
        let names = |directory: &str| -> Vec<String> {
            let entries = fs::read_dir(self.root().join(directory)).expect("listed");
            entries.map(|it| it.expect("read").file_name().into_string().expect("text")).collect()
        };
        for name in names("info") {
            let id: ObjectId = name.parse().expect("an id");
            if !store.contains_closure(&[id]).expect("asked") {
                problems.push(format!("info/{name} names what is not there"));
            }
        }
        for name in names("objects") {
            if !store.directory("objects").join(&name).exists() {
                problems.push(format!("objects/{name} leads nowhere"));
            }
        }
        for name in names("trees").iter().filter(|it| !it.ends_with(".listing")) {
            if !store.directory("trees").join(format!("{name}.listing")).exists() {
                problems.push(format!("trees/{name} has no listing"));
            }
        }
        for name in names("realisations/resolved") {
            let hash: ResolvedHash = name.parse().expect("a hash");
            let found = store.realisation(&hash).expect("read").expect("there");
            if found.outputs.values().any(|id| store.find(id).expect("asked").is_none()) {
                problems.push(format!("realisations/resolved/{name} names what is not there"));
            }
        }
        for name in names("realisations/static") {
            let hash: StaticHash = name.parse().expect("a hash");
            let found = store.claim(&hash).expect("read").expect("there");
            if found.outputs.values().any(|id| store.find(id).expect("asked").is_none()) {
                problems.push(format!("realisations/static/{name} names what is not there"));
            }
        }
        for root in store.roots().expect("read") {
            if !store.contains_closure(&[root.object.id]).expect("asked") {
                problems.push(format!("the root {} leads nowhere", root.name));
            }
        }
        problems
    }
}

/// An object whose tree is that of every object with the same text.
fn object(name: &str, text: &str, references: &[ObjectId]) -> Object {
    let scratch = tempfile::tempdir().expect("a directory");
    let listing = tree(scratch.path(), text);
    let reference = |id: &ObjectId| Reference { kind: ReferenceKind::Run, object: *id };
    Object {
        name: name.parse().expect("a name"),
        tree: listing.digest(),
        references: references.iter().map(reference).collect(),
        permissions: BTreeMap::new(),
    }
}

fn tree(scratch: &Path, text: &str) -> Arc<crate::Listing> {
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree).expect("created");
    fs::create_dir(tree.join("below")).expect("created");
    fs::write(tree.join("below/file"), text).expect("written");
    Arc::new(
        ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
    )
}

/// Registers an object with what it is a derivation's output of.
fn add(store: &Store, name: &str, text: &str, references: &[ObjectId]) -> Object {
    let object = object(name, text, references);
    let scratch = store.scratch().expect("a scratch directory");
    let listing = tree(scratch.path(), text);
    let mut registration = Registration::default();
    registration.object(store, &object, listing, scratch.path().join("tree"));
    let resolved = ResolvedHash::from_bytes(*Digest::of_file(name.as_bytes()).as_bytes());
    let outputs: BTreeMap<_, _> = [(crate::OutputName::out(), object.id())].into();
    let realisation = Realisation { outputs: outputs.clone(), route: Route::default() };
    registration.realisation(store, &resolved, &realisation);
    let claim = Claim { resolved, outputs, inputs: BTreeMap::new() };
    registration.claim(store, &StaticHash::from_bytes(*resolved.as_bytes()), &claim);
    store.commit(registration).expect("committed");
    object
}

fn paths(collected: &Collected) -> BTreeSet<String> {
    collected.items.iter().map(|item| item.path.clone()).collect()
}

/// Everything that lies in the store, but for what isn't part of it.
fn all(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("listed") {
            let path = entry.expect("read").path();
            if path.symlink_metadata().expect("there").is_dir() {
                pending.push(path.clone());
            }
            found.insert(path);
        }
    }
    found.retain(|path| !path.ends_with("graph"));
    found
}

#[test]
fn what_roots_processes_and_recent_use_keep_stays_and_the_rest_goes() {
    let place = Place::new();
    let store = place.open();
    let libc = add(&store, "libc", "c", &[]);
    let tool = add(&store, "tool", "t", &[libc.id()]);
    let twin = add(&store, "twin", "t", &[]);
    let old = add(&store, "old", "o", &[libc.id()]);
    store.set_root("tool", &tool.path_name()).expect("set");
    drop(store);
    let collector = place.open();
    // By age, everything.
    let nothing = collector.collect_garbage(&Retention::default(), &Control::NONE);
    assert_eq!(nothing.expect("collected").expect("alone").items, []);
    // By a process, what it asked for.
    let process = place.open();
    assert!(process.contains_closure(&[old.id()]).expect("asked"));
    let why = collector.why_alive(&libc.id(), &ALL).expect("asked").expect("kept");
    assert_eq!(why.by, Keeper::Root { name: "tool".to_owned(), generation: 1 });
    assert_eq!(why.chain, [tool.path_name(), libc.path_name()]);
    let why = collector.why_alive(&old.id(), &ALL).expect("asked").expect("kept");
    assert!(matches!(why.by, Keeper::Process { .. }), "{why:?}");
    assert_eq!(collector.why_alive(&twin.id(), &ALL).expect("asked"), None);
    let young = collector.why_alive(&twin.id(), &Retention::default()).expect("asked");
    assert!(matches!(young.expect("kept").by, Keeper::Recent { .. }));

    let planned = collector.plan_garbage(&ALL, &Control::NONE).expect("planned");
    let collected = collector.collect_garbage(&ALL, &Control::NONE).expect("collected");
    let collected = collected.expect("alone");
    assert_eq!(collected, planned, "a dry run says what a run does");
    let gone: Vec<_> = collected.items.iter().filter(|it| it.kind == Kind::Objects).collect();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].path, format!("objects/{}", twin.path_name()));
    assert_eq!(collected.kept_objects, 3);
    assert_eq!(place.problems(), Vec::<String>::new());
    // Its tree is another's, too.
    assert!(collector.tree_path(&twin.tree).is_dir());
    assert!(collector.find(&twin.id()).expect("asked").is_none());
    drop(process);
    let collected = collector.collect_garbage(&ALL, &Control::NONE).expect("collected");
    let gone = paths(&collected.expect("alone"));
    assert!(gone.contains(&format!("objects/{}", old.path_name())), "{gone:?}");
    assert!(!collector.tree_path(&old.tree).exists());
    assert!(!collector.listing_path(&old.tree).exists());
    assert_eq!(place.problems(), Vec::<String>::new());
    let left = fs::read_dir(collector.directory("trash")).expect("listed").count();
    assert_eq!(left, 0, "the trash is empty");
}

#[test]
fn the_limit_takes_what_was_used_longest_ago() {
    let place = Place::new();
    let store = place.open();
    let age = |object: &Object, hours: u64| {
        let time = SystemTime::now() - Duration::from_secs(hours * 60 * 60);
        let file = fs::File::open(store.info_path(&object.id())).expect("opened");
        file.set_modified(time).expect("set");
    };
    let base = add(&store, "base", "base", &[]);
    let old = add(&store, "old", "old", &[]);
    let newer = add(&store, "newer", "newer", &[base.id()]);
    // What `newer` refers to was used when that was.
    for (object, hours) in [(&base, 9), (&old, 5), (&newer, 2)] {
        age(object, hours);
    }
    drop(store);
    let store = place.open();
    let limited = Retention { max_freed_bytes: Some(1), ..ALL };
    let planned = store.plan_garbage(&limited, &Control::NONE).expect("planned");
    let objects = |planned: &Collected| -> Vec<String> {
        let objects = planned.items.iter().filter(|it| it.kind == Kind::Objects);
        objects.map(|it| it.path.clone()).collect()
    };
    assert_eq!(objects(&planned), [format!("objects/{}", old.path_name())]);
    let planned = store.plan_garbage(&ALL, &Control::NONE).expect("planned");
    let order = [&old, &newer, &base].map(|it| format!("objects/{}", it.path_name()));
    assert_eq!(objects(&planned), order);
    let hours = Retention { older_than: Duration::from_secs(3 * 60 * 60), ..ALL };
    let planned = store.plan_garbage(&hours, &Control::NONE).expect("planned");
    assert_eq!(objects(&planned), [format!("objects/{}", old.path_name())]);
    // A use makes it young again.
    assert!(place.open().contains(&old.id()).expect("asked"));
    let planned = store.plan_garbage(&hours, &Control::NONE).expect("planned");
    assert_eq!(objects(&planned), Vec::<String>::new());
}

#[test]
fn derivations_and_sources_stay_with_what_was_made_of_them() {
    let place = Place::new();
    let store = place.open();
    let fetch = |name: &str, byte: u8| {
        let fetch = Fetch {
            sha256: Sha256::from_bytes([byte; 32]),
            format: Format::File,
            strip: 0,
            only: Vec::new(),
            exclude: Vec::new(),
            rename: BTreeMap::new(),
        };
        Derivation {
            name: name.parse().expect("a name"),
            version: String::new(),
            action: Action::Fetch(fetch),
            advice: Advice::default(),
        }
    };
    let mut sources = Vec::new();
    for (name, byte) in [("kept", 1), ("gone", 2)] {
        let derivation = fetch(name, byte);
        let hash = store.add_derivation(&derivation).expect("added");
        let object = add(&store, name, name, &[]);
        let outputs = [(crate::OutputName::out(), object.id())].into();
        let resolved = ResolvedHash::from_bytes(*Digest::of_file(name.as_bytes()).as_bytes());
        let mut registration = Registration::default();
        registration.claim(&store, &hash, &Claim { resolved, outputs, inputs: [].into() });
        store.commit(registration).expect("committed");
        let source =
            store.directory("sources").join(format!("{}-x", Sha256::from_bytes([byte; 32])));
        fs::write(&source, "source").expect("written");
        sources.push((source, store.derivation_path(&hash), hash));
        if name == "kept" {
            store.set_root("kept", &object.path_name()).expect("set");
        }
    }
    drop(store);
    let collector = place.open();
    let keeping = Retention { keep_derivations: true, ..ALL };
    let planned = paths(&collector.plan_garbage(&keeping, &Control::NONE).expect("planned"));
    let names = |it: &str| planned.iter().any(|path| path.starts_with(it));
    assert!(!names("derivations/") && !names("sources/"), "{planned:?}");
    let keeping = Retention { keep_sources: true, ..ALL };
    let planned = paths(&collector.plan_garbage(&keeping, &Control::NONE).expect("planned"));
    let names = |it: &str| planned.iter().any(|path| path.starts_with(it));
    assert!(names("derivations/") && !names("sources/"), "{planned:?}");
    // Who builds relies on both.
    let process = place.open();
    process.rely_on_derivations([&sources[1].2]).expect("said");
    collector.collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
    assert!(sources[1].0.exists() && sources[1].1.exists());
    drop(process);
    collector.collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
    assert!(sources[0].0.exists() && sources[0].1.exists());
    assert!(!sources[1].0.exists() && !sources[1].1.exists());
}

#[test]
fn who_holds_the_gate_is_waited_for_and_then_relies_on_what_it_saw() {
    let place = Place::new();
    let (seen, gone) = {
        let store = place.open();
        (add(&store, "seen", "s", &[]), add(&store, "gone", "g", &[]))
    };
    let (process, collector) = (place.open(), place.open());
    process.hold_gate().expect("held");
    assert!(process.contains_closure(&[seen.id()]).expect("asked"));
    assert!(
        !place
            .root()
            .join("tmp")
            .read_dir()
            .expect("listed")
            .any(|it| { it.expect("an entry").path().join("relied").exists() })
    );
    let impatient = Control { is_cancelled: &|| true, ..Control::NONE };
    let ended = collector.collect_garbage(&ALL, &impatient);
    assert!(matches!(ended, Err(StoreError::Cancelled)), "{ended:?}");
    process.let_gate_go().expect("said");
    collector.collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
    assert!(place.open().contains_closure(&[seen.id()]).expect("asked"));
    assert!(!place.open().contains_closure(&[gone.id()]).expect("asked"));
}

/// The collection has read the roots by then: a root that is made afterwards is none to it.
#[test]
fn who_comes_to_hold_the_gate_during_a_collection_is_heard() {
    let place = Place::new();
    let seen = add(&place.open(), "seen", "s", &[]);
    let (process, collector) = (place.open(), place.open());
    let (asked, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let collect = || {
            let progress = |_| {
                // First when all is planned, and nothing removed.
                begun.store(true, Ordering::SeqCst);
                while !asked.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            };
            let control = Control { progress: &progress, ..Control::NONE };
            collector.collect_garbage(&ALL, &control).expect("collected").expect("alone")
        };
        let collecting = scope.spawn(collect);
        while !begun.load(Ordering::SeqCst) && !collecting.is_finished() {
            std::thread::yield_now();
        }
        assert!(begun.load(Ordering::SeqCst), "it says nothing of its progress");
        process.hold_gate().expect("asked");
        let here = process.contains_closure(&[seen.id()]).expect("asked");
        if here {
            process.set_root("seen", &seen.path_name()).expect("set");
        }
        drop(process);
        asked.store(true, Ordering::SeqCst);
        collecting.join().expect("no panic");
        assert_eq!(place.open().contains_closure(&[seen.id()]).expect("asked"), here);
    });
}

#[test]
fn a_composed_root_that_is_used_stays_with_its_listing() {
    let place = Place::new();
    let process = place.open();
    let digest = Digest::of_file(b"composed");
    let composed = process.composed_place(&digest);
    fs::create_dir(&composed.directory).expect("created");
    fs::write(&composed.listing, "listing").expect("written");
    process.rely([crate::rely::Relied::Composed(digest)]).expect("said");
    let collector = place.open();
    collector.collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
    assert!(composed.directory.exists() && composed.listing.exists());
    drop(process);
    collector.collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
    assert!(!composed.directory.exists() && !composed.listing.exists());
}

#[test]
fn what_cannot_be_read_ends_it_before_anything_goes() {
    let place = Place::new();
    let store = place.open();
    let kept = add(&store, "kept", "k", &[]);
    let gone = add(&store, "gone", "g", &[]);
    store.set_root("kept", &kept.path_name()).expect("set");
    drop(store);
    let living = place.open();
    assert!(living.contains(&gone.id()).expect("asked"));
    let relied = living.session().expect("one").relied();
    let broken = |path: &Path, bytes: &[u8]| {
        let before = fs::read(path).expect("read");
        crate::staged::write(path, bytes).expect("written");
        let there = all(&place.root());
        let error = place.open().collect_garbage(&ALL, &Control::NONE).expect_err("stopped");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert_eq!(all(&place.root()), there, "{}", path.display());
        crate::staged::write(path, &before).expect("written");
    };
    broken(&relied, b"object ");
    broken(&relied, b"nonsense\n");
    let store = place.open();
    broken(&store.info_path(&gone.id()), b"srp");
    let records = crate::files::entries(&store.directory("realisations/resolved")).expect("listed");
    broken(&records[0], b"srp");
    let bogus = store.directory("roots").join("bogus");
    fs::create_dir(&bogus).expect("created");
    fs::write(bogus.join("1"), "no link").expect("written");
    assert!(matches!(store.collect_garbage(&ALL, &Control::NONE), Err(StoreError::Damaged { .. })));
    fs::remove_file(bogus.join("1")).expect("removed");
    std::os::unix::fs::symlink(
        format!("../../objects/{}-lost", ObjectId::from_bytes([7; 20])),
        bogus.join("1"),
    )
    .expect("linked");
    let error = store.collect_garbage(&ALL, &Control::NONE).expect_err("stopped").to_string();
    assert!(error.contains("bogus/1") && error.contains("has no record"), "{error}");
}

#[test]
fn a_damaged_graph_is_made_anew() {
    let place = Place::new();
    let store = place.open();
    let libc = add(&store, "libc", "c", &[]);
    add(&store, "tool", "t", &[libc.id(), ObjectId::from_bytes([9; 20])]);
    let right = store.graph().expect("read");
    let path = store.directory("graph");
    let bytes = fs::read(&path).expect("kept");
    assert_eq!(store.graph().expect("read"), right);
    let mut damages: Vec<Vec<u8>> = (0..bytes.len()).map(|it| bytes[..it].to_vec()).collect();
    damages.extend((0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    }));
    damages.push([bytes.clone(), vec![0]].concat());
    for damaged in damages {
        fs::write(&path, &damaged).expect("written");
        assert_eq!(store.graph().expect("read"), right);
        assert_eq!(fs::read(&path).expect("kept"), bytes);
    }
    for damage in [0, 1] {
        fs::remove_file(&path).expect("removed");
        if damage == 1 {
            fs::create_dir(&path).expect("created");
        }
        assert_eq!(store.graph().expect("read"), right);
        if damage == 1 {
            fs::remove_dir(&path).expect("removed");
            store.graph().expect("read");
        }
    }
    // One that is right in itself, and of another store.
    let other = Place::new();
    let stranger = other.open();
    add(&stranger, "stranger", "s", &[]);
    stranger.graph().expect("read");
    fs::copy(stranger.directory("graph"), &path).expect("copied");
    assert_eq!(store.graph().expect("read"), right);
}

#[test]
fn one_that_is_ended_at_any_step_leaves_a_sound_store_that_the_next_one_finishes() {
    for step in 0.. {
        let place = Place::new();
        let store = place.open();
        let libc = add(&store, "libc", "c", &[]);
        let tool = add(&store, "tool", "t", &[libc.id()]);
        add(&store, "top", "p", &[tool.id(), libc.id()]);
        let kept = add(&store, "kept", "k", &[]);
        store.set_root("kept", &kept.path_name()).expect("set");
        drop(store);
        let steps = std::sync::atomic::AtomicUsize::new(0);
        let is_cancelled = || steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= step;
        let control = Control { is_cancelled: &is_cancelled, progress: &|_| {} };
        let collector = place.open();
        let ended = collector.collect_garbage(&ALL, &control);
        // As after SIGKILL: nothing of it is cleaned up but its lock.
        assert_eq!(place.problems(), Vec::<String>::new(), "step {step}");
        drop(collector);
        place.open().collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
        assert_eq!(place.problems(), Vec::<String>::new(), "step {step}");
        let store = place.open();
        let left = |name: &str| fs::read_dir(store.directory(name)).expect("listed").count();
        assert_eq!([left("info"), left("objects"), left("trees")], [1, 1, 2], "step {step}");
        assert_eq!(left("trash"), 0, "step {step}");
        match ended {
            Ok(_) => return,
            Err(error) => assert!(matches!(error, StoreError::Cancelled), "{error}"),
        }
    }
}

#[test]
fn a_second_collection_is_refused_while_one_runs() {
    let place = Place::new();
    let store = place.open();
    add(&store, "gone", "g", &[]);
    let asked = std::sync::atomic::AtomicBool::new(false);
    let other = || {
        if !asked.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let second = place.open().collect_garbage(&ALL, &Control::NONE);
            assert_eq!(second.expect("no error"), None);
        }
        false
    };
    let control = Control { is_cancelled: &other, progress: &|_| {} };
    // The gate is taken without waiting, so this asks first where the collection has begun.
    assert!(store.collect_garbage(&ALL, &control).expect("collected").is_some());
    assert!(asked.into_inner());
}

#[test]
fn the_trash_of_a_killed_collection_is_deleted_and_that_of_a_living_one_is_not() {
    let place = Place::new();
    let store = place.open();
    let living = store.session().expect("one").name().to_owned();
    let trash = store.directory("trash");
    for name in [std::ffi::OsStr::new("killed-0"), &living] {
        tree(&trash.join(name).join("0"), "text");
    }
    place.open().sweep_trash(&|| true).expect("ended early");
    assert!(trash.join("killed-0").exists());
    place.open().sweep_trash(&|| false).expect("swept");
    assert!(!trash.join("killed-0").exists());
    assert!(trash.join(&living).join("0/tree/below/file").exists());
}

/// What a process may do between two steps of a collection.
#[derive(Clone, Debug)]
enum Step {
    /// Ends, and begins anew.
    Restart(usize),
    /// Asks whether an object is here, and relies on it if so.
    Ask(usize, usize),
    /// Makes an object if what it refers to is here.
    Make(usize, usize),
    /// Has a tree without its object, as an import does.
    Bring(usize, usize),
    /// Names what it relies on.
    Name(usize, usize),
    /// Removes a name.
    Forget(usize),
    /// Sweeps.
    Sweep(usize),
}

const OBJECTS: usize = 8;
const PROCESSES: usize = 3;

fn steps() -> impl Strategy<Value = Step> {
    let (process, object) = (0..PROCESSES, 0..OBJECTS);
    prop_oneof![
        3 => process.clone().prop_map(Step::Restart),
        3 => (process.clone(), object.clone()).prop_map(|(p, o)| Step::Ask(p, o)),
        4 => (process.clone(), object.clone()).prop_map(|(p, o)| Step::Make(p, o)),
        1 => (process.clone(), object.clone()).prop_map(|(p, o)| Step::Bring(p, o)),
        2 => (process.clone(), object.clone()).prop_map(|(p, o)| Step::Name(p, o)),
        2 => object.prop_map(Step::Forget),
        1 => process.prop_map(Step::Sweep),
    ]
}

/// Several processes at work in one store, and what each of them relies on.
struct World {
    place: Place,
    objects: Vec<Object>,
    processes: Vec<(Option<Store>, BTreeSet<usize>)>,
}

impl World {
    fn new() -> World {
        let mut objects: Vec<Object> = Vec::new();
        for number in 0..OBJECTS {
            // Each refers to two before it; some have one tree.
            let below = [number.checked_sub(2), number.checked_sub(3)].into_iter().flatten();
            let references: Vec<ObjectId> = below.map(|it| objects[it].id()).collect();
            objects.push(object(&format!("o{number}"), &format!("{}", number / 2), &references));
        }
        let place = Place::new();
        let processes = (0..PROCESSES).map(|_| (Some(place.open()), BTreeSet::new())).collect();
        World { place, objects, processes }
    }

    fn process(&self, number: usize) -> &Store {
        self.processes[number].0.as_ref().expect("it runs")
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Restart(process) => {
                self.processes[process].0 = None;
                self.processes[process] = (Some(self.place.open()), BTreeSet::new());
            }
            Step::Ask(process, object) => {
                let id = self.objects[object].id();
                if self.process(process).contains_closure(&[id]).expect("asked") {
                    self.processes[process].1.insert(object);
                }
            }
            Step::Make(process, object) => {
                let references: Vec<ObjectId> =
                    self.objects[object].references(ReferenceKind::ALL).collect();
                let store = self.process(process);
                if store.contains_closure(&references).expect("asked") {
                    let text = format!("{}", object / 2);
                    add(store, &format!("o{object}"), &text, &references);
                    self.processes[process].1.insert(object);
                }
            }
            Step::Bring(process, object) => {
                let store = self.process(process);
                let scratch = store.scratch().expect("a scratch directory");
                let listing = tree(scratch.path(), &format!("{}", object / 2));
                let mut registration = Registration::default();
                registration.tree(store, listing, scratch.path().join("tree"));
                store.commit(registration).expect("committed");
                if store.register_trees(&[&self.objects[object]]).expect("registered") {
                    self.processes[process].1.insert(object);
                }
            }
            Step::Name(process, object) => {
                if self.processes[process].1.contains(&object) {
                    let name = self.objects[object].path_name();
                    let root = format!("root{object}");
                    self.process(process).set_root(&root, &name).expect("set");
                }
            }
            Step::Forget(object) => {
                self.process(0).remove_root(&format!("root{object}")).expect("removed");
            }
            Step::Sweep(process) => self.process(process).sweep().expect("swept"),
        }
    }

    /// What anybody relies on is here, and all that it refers to.
    fn check(&self) {
        let store = Store::open(&self.place.root(), Access::Read).expect("opened");
        for (number, (_, relied)) in self.processes.iter().enumerate() {
            for object in relied {
                let id = self.objects[*object].id();
                let here = store.contains_closure(&[id]).expect("asked");
                assert!(here, "process {number} relied on object {object}");
            }
        }
        for root in store.roots().expect("read") {
            assert!(store.contains_closure(&[root.object.id]).expect("asked"), "{root:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The protocol as it is, its steps interleaved with those of others in every way that the
    /// generator comes upon.
    #[test]
    fn nothing_that_anybody_relies_on_vanishes(
        before in prop::collection::vec(steps(), 0..30),
        during in prop::collection::vec(prop::collection::vec(steps(), 0..4), 0..40),
    ) {
        let mut world = World::new();
        before.iter().for_each(|step| world.step(step));
        world.check();
        let root = world.place.root();
        let world = std::sync::Mutex::new(RefCell::new(world));
        let pending = std::sync::Mutex::new(during.into_iter());
        let main = std::thread::current().id();
        // Others come where the collection has nothing locked: that is where it asks this.
        let others = || {
            if std::thread::current().id() == main
                && let Some(steps) = pending.lock().expect("whole").next()
            {
                let world = world.lock().expect("whole");
                let mut world = world.borrow_mut();
                steps.iter().for_each(|step| world.step(step));
                world.check();
            }
            false
        };
        let control = Control { is_cancelled: &others, progress: &|_| {} };
        let collector = Store::open(&root, Access::WriteUnsynced).expect("opened");
        collector.collect_garbage(&ALL, &control).expect("collected").expect("alone");
        drop(collector);
        let world = world.into_inner().expect("whole").into_inner();
        world.check();
        // Whatever was left by one that was in nobody's way goes with the next one, when all ended.
        let World { place, processes, .. } = world;
        drop(processes);
        place.open().collect_garbage(&ALL, &Control::NONE).expect("collected").expect("alone");
        prop_assert_eq!(place.problems(), Vec::<String>::new());
    }
}
