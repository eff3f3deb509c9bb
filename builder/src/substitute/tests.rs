//! How often caches are asked, and how much of it at once.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use srp_store::OpenTree;
use srp_store::cache::{
    Body, Cache, CacheError, CachePath, Content, DirectoryRemote, Policy, PublicKey, Publisher,
    Remote, Scope, SecretKey, Stat,
};
use srp_store::ingest::{self, Rules};
use srp_store::{
    Access, Action, Advice, Build, Claim, Derivation, InputKey, Object, OutputName, Realisation,
    Reference, ReferenceKind, Registration, Route, Store,
};

use super::{Substituters, Upstream};
use crate::cancel::CancelToken;
use crate::plan::Plan;
use crate::request::Request;

/// A directory that counts what is asked of it, and takes its time.
struct Counting {
    remote: DirectoryRemote,
    /// Whether the connection breaks when something is asked for the first time.
    breaks: bool,
    /// Nothing is answered before so many requests have come.
    together: usize,
    gets: AtomicUsize,
    under_way: AtomicUsize,
    most_at_once: AtomicUsize,
    paths: Mutex<Vec<String>>,
}

impl Counting {
    fn new(root: &Path) -> Counting {
        Counting {
            remote: DirectoryRemote::new(root),
            breaks: false,
            together: 0,
            gets: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            paths: Mutex::default(),
        }
    }
}

impl Remote for Counting {
    fn url(&self) -> &str {
        self.remote.url()
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let first = {
            let mut paths = self.paths.lock().expect("no holder panics");
            let first = !paths.contains(&path.to_string());
            paths.push(path.to_string());
            first
        };
        if self.breaks && first {
            let (url, path) = (self.url().to_owned(), path.to_string());
            let source = std::io::ErrorKind::ConnectionReset.into();
            return Err(CacheError::Transport { action: "read", url, path, source });
        }
        let began = Instant::now();
        while self.gets.load(Ordering::SeqCst) < self.together {
            assert!(began.elapsed().as_secs() < 30, "{path} is asked for before anything else");
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        let body = self.remote.get(path, range);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        body
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        self.remote.put(path, content)
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        self.remote.stat(path)
    }

    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError> {
        self.remote.refresh(path)
    }
}

/// Puts an object into a registration whose tree is one file. It is written to `scratch`.
fn add(
    store: &Store,
    scratch: &Path,
    to: &mut Registration,
    number: usize,
    references: &[Object],
) -> Object {
    let tree = scratch.join(number.to_string());
    fs::create_dir(&tree).expect("created");
    fs::write(tree.join("file"), number.to_string()).expect("written");
    let listing = Arc::new(
        ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
    );
    let run = |it: &Object| Reference { kind: ReferenceKind::Run, object: it.id() };
    let object = Object {
        name: format!("o{number}").parse().expect("a name"),
        tree: listing.digest(),
        references: references.iter().map(run).collect(),
        permissions: BTreeMap::new(),
    };
    to.object(store, &object, listing, tree);
    object
}

fn derivation() -> Derivation {
    let triple = "x86_64-unknown-linux-gnu".parse().expect("a triple");
    Derivation {
        name: "all".parse().expect("a name"),
        version: String::new(),
        action: Action::Build(Build {
            build: triple,
            host: "x86_64-unknown-linux-gnu".parse().expect("a triple"),
            target: None,
            builder: "/bin/sh".to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            inputs: Vec::new(),
            outputs: [OutputName::out()].into(),
            run: [].into(),
            develop: [].into(),
            ignore_references: BTreeMap::new(),
            permissions: BTreeMap::new(),
            allow_sandbox_paths: None,
            for_files: Default::default(),
        }),
        advice: Advice::default(),
    }
}

/// A cache in `directory` of one root whose closure has so many objects; who signed it.
fn publish(directory: &Path, count: usize) -> PublicKey {
    let store = Store::open(&directory.join("builder"), Access::Write).expect("opened");
    let scratch = store.scratch().expect("a scratch directory");
    let mut registration = Registration::default();
    let mut add = |number, references: &[Object]| {
        add(&store, scratch.path(), &mut registration, number, references)
    };
    let objects: Vec<Object> = (1..count).map(|number| add(number, &[])).collect();
    let all = add(0, &objects);
    let (derivation, outputs) = (derivation(), [(OutputName::out(), all.id())].into());
    let resolved = derivation.resolved_hash(&[]);
    let claim = Claim { resolved, outputs, inputs: BTreeMap::new() };
    let realisation = Realisation { outputs: claim.outputs.clone(), route: Route::default() };
    registration.realisation(&store, &resolved, &realisation);
    let hash = derivation.static_hash();
    registration.claim(&store, &hash, &claim);
    store.commit(registration).expect("committed");
    let remote = Arc::new(DirectoryRemote::new(&directory.join("cache")));
    let cache = Cache::create(remote).expect("created");
    let key = SecretKey::generate("builder-1".parse().expect("a name")).expect("a key");
    let publisher = Publisher::new(&store, &cache, Some(&key), "builder-1");
    let root = "stage.x".parse().expect("a name");
    publisher.publish(&root, &hash, Scope::Closure).expect("published");
    key.public()
}

/// What is planned in a new store, for a cache and those who are trusted.
fn plan(directory: &Path, remote: Arc<Counting>, keys: &[&PublicKey]) -> Plan {
    let store = tempfile::tempdir_in(directory).expect("a directory");
    let store = Store::open(&store.path().join("store"), Access::Write).expect("opened");
    let derivation = derivation();
    let hash = derivation.static_hash();
    let request = Request {
        goals: vec![InputKey { derivation: hash, output: OutputName::out() }],
        derivations: [(hash, derivation)].into(),
        ..Request::default()
    };
    let trusted = keys.iter().map(|key| (key.id(), (*key).clone())).collect();
    let policy = Policy { trusted, ..Policy::default() };
    let upstream = Upstream { remote, priority: 50, trusted_outright: false };
    let cancel = CancelToken::new().expect("a descriptor");
    let substituters = Substituters::new(vec![upstream], policy, cancel);
    Plan::new(&store, &request, &|_| None, Some(&substituters)).expect("planned")
}

fn directory() -> tempfile::TempDir {
    // In memory where that can be: what is committed is synced.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    directory.expect("a directory")
}

/// How many objects a plan would fetch.
fn parts(plan: &Plan) -> usize {
    plan.offers.values().map(|offer| offer.parts.len()).sum()
}

#[test]
fn a_connection_that_breaks_once_is_no_reason_to_build() {
    let directory = directory();
    let key = publish(directory.path(), 3);
    let cache = directory.path().join("cache");
    let remote = Arc::new(Counting { breaks: true, ..Counting::new(&cache) });
    assert_eq!(parts(&plan(directory.path(), remote.clone(), &[&key])), 3);
    assert_eq!(remote.gets.load(Ordering::SeqCst), 2 * 2, "its format and the manifest, twice");
}

#[test]
fn whether_500_objects_are_there_is_known_after_one_round_trip() {
    let directory = directory();
    let key = publish(directory.path(), 500);
    let cache = directory.path().join("cache");

    let remote = Arc::new(Counting { together: 2, ..Counting::new(&cache) });
    assert_eq!(parts(&plan(directory.path(), remote.clone(), &[&key])), 500);
    let paths = remote.paths.lock().expect("no holder panics").clone();
    assert_eq!(paths.len(), 2, "its format and the manifest: {paths:?}");

    // Another key's manifest is asked for at the same time.
    let other = SecretKey::generate("builder-2".parse().expect("a name")).expect("a key");
    let remote = Arc::new(Counting { together: 3, ..Counting::new(&cache) });
    assert_eq!(parts(&plan(directory.path(), remote.clone(), &[&key, &other.public()])), 500);
    assert_eq!(remote.gets.load(Ordering::SeqCst), 3);

    // Without a manifest, objects are asked for one by one, but several at a time.
    fs::remove_dir_all(cache.join("closures")).expect("removed");
    let remote = Arc::new(Counting::new(&cache));
    assert_eq!(parts(&plan(directory.path(), remote.clone(), &[&key])), 500);
    assert_eq!(remote.gets.load(Ordering::SeqCst), 1 + 1 + 1 + 500);
    let most = remote.most_at_once.load(Ordering::SeqCst);
    assert!((6..=8).contains(&most), "{most} requests at once");
}

#[test]
fn of_equals_the_faster_cache_is_asked_first() {
    let directory = directory();
    let upstream = |priority| Upstream {
        remote: Arc::new(DirectoryRemote::new(directory.path())),
        priority,
        trusted_outright: true,
    };
    let upstreams = [50, 50, 50, 60].map(upstream).into();
    let cancel = CancelToken::new().expect("a descriptor");
    let substituters = Substituters::new(upstreams, Policy::default(), cancel);
    let second = Duration::from_secs(1);
    let measured = |site: usize, bytes| substituters.sites[site].measured(bytes, second);
    assert_eq!(substituters.order(1), [1, 0, 2, 3], "nothing is known");

    measured(0, 10_000_000);
    assert_eq!(substituters.order(0), [0, 1, 2, 3], "it is fast enough to try no other");
    measured(1, 100_000);
    assert_eq!(substituters.order(1)[0], 2, "it is slow: one of which nothing is known is tried");
    measured(2, 100_000);
    assert_eq!(substituters.order(1), [0, 1, 2, 3], "a faster one is known");
    measured(3, 1_000_000_000);
    assert_eq!(substituters.order(1)[0], 0, "what has another priority comes after all equals");
    assert_eq!(substituters.order(2)[0], 0);
    measured(2, 10);
    assert_eq!(substituters.order(0)[0], 0, "few bytes say nothing");
}
