//! Several publishers, garbage collection, verification, and old news.

use std::time::Duration;

use super::memory::Memory;
use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn text(text: &'static str) -> impl Fn(&Path) {
    move |tree| fs::write(tree.join("file"), text).expect("written")
}

#[test]
fn two_publishers_at_once_do_no_harm() {
    let path = tempfile::tempdir().expect("a directory");
    let remote = || Arc::new(DirectoryRemote::new(&path.path().join("cache")));
    let keys = [secret("builder-1", 7), secret("builder-2", 8)];
    let machines = [Machine::new(), Machine::new()];
    std::thread::scope(|scope| {
        for (number, machine) in machines.iter().enumerate() {
            let key = &keys[number];
            let remote = remote();
            scope.spawn(move || {
                let cache = Cache::create(remote).expect("created");
                let libc = machine.add("libc", &[], &text("the same"));
                let tool = machine.add("tool", &[&libc], &text(["one", "two"][number]));
                machine.realise(1, &libc, &[]);
                let hash = machine.realise(2, &tool, &[(1, &libc)]);
                for _ in 0..3 {
                    machine.publish(&cache, key, &hash);
                }
            });
        }
    });
    let cache = Cache::open(remote()).expect("opened");
    assert_eq!(cache.verify(&ring(&[&keys[0], &keys[1]])).expect("read").findings, []);
    let summary = cache.summary().expect("listed");
    assert_eq!((summary.packs, summary.objects, summary.roots.len()), (3, 3, 2));
    let hash = StaticHash::from_bytes([2; 32]);
    for key in &keys {
        let found = cache.closure(&hash, Some(&key.public())).expect("read").expect("there");
        Machine::new().fetch(&cache, &found.closure);
    }
    // They built the same derivation and got different things: that is for the policy to see.
    let signers = keys.iter().map(|key| Some(key.public().id())).collect::<Vec<_>>();
    let statements = cache.statements(Asked::Static(hash), &signers).expect("read");
    assert_ne!(statements[0].unverified().objects(), statements[1].unverified().objects());
}

#[test]
fn garbage_goes_and_what_manifests_need_stays() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let libc = builder.add("libc", &[], &text("libc"));
    let old = builder.add("tool", &[&libc], &text("old"));
    let new = builder.add("tool", &[&libc], &text("new"));
    let (first, second) = (builder.realise(1, &old, &[]), builder.realise(2, &new, &[]));
    builder.publish(&cache, &key, &first);
    builder.publish(&cache, &key, &second);
    memory.age(100 * DAY);
    let stray = builder.add("stray", &[], &text("stray"));
    let publisher = Publisher::new(&builder.store, &cache, None, "builder-1");
    publisher.publish_objects(&[stray.id()]).expect("published");

    let retention = Retention { keep: [root()].into(), ..Retention::default() };
    let would = cache.collect(&retention, true).expect("collected");
    let collected = cache.collect(&retention, false).expect("collected");
    assert_eq!(would.deleted, collected.deleted);
    // The manifest, two statements, object and pack of the generation before.
    assert_eq!(collected.deleted.len(), 5, "{:?}", collected.deleted);
    assert_eq!(cache.verify(&ring(&[&key])).expect("read").findings, []);
    let public = key.public();
    assert!(cache.closure(&first, Some(&public)).expect("read").is_none());
    let found = cache.closure(&second, Some(&public)).expect("read").expect("there");
    Machine::new().fetch(&cache, &found.closure);
    assert!(cache.object(&stray.id()).expect("read").is_some(), "it is young");

    memory.age(100 * DAY);
    let all = cache.collect(&Retention::default(), false).expect("collected");
    assert_eq!(all.kept, 0);
    assert!(memory.files().iter().all(|(path, _)| !path.as_str().contains('/')));
}

#[test]
fn an_unreadable_manifest_stops_a_collection() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let object = builder.add("tool", &[], &text("tool"));
    let hash = builder.realise(1, &object, &[]);
    builder.publish(&cache, &secret("builder-1", 7), &hash);
    let (path, bytes) = memory
        .files()
        .into_iter()
        .find(|(it, _)| it.as_str().starts_with("closures"))
        .expect("one");
    memory.set(&path, bytes[..100].to_vec());
    let before = memory.files().len();
    let retention = Retention { keep: [root()].into(), ..Retention::default() };
    assert!(matches!(cache.collect(&retention, false), Err(CacheError::Damaged { .. })));
    assert_eq!(memory.files().len(), before + 1, "the clock, and nothing is gone");
}

#[test]
fn a_root_that_is_not_there_stops_a_collection() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let object = builder.add("tool", &[], &text("tool"));
    let hash = builder.realise(1, &object, &[]);
    builder.publish(&cache, &secret("builder-1", 7), &hash);
    memory.age(100 * DAY);
    let before = memory.files().len();
    let misspelt: RootName = "stage1.x86_46".parse().expect("a name");
    let retention = Retention { keep: [root(), misspelt].into(), ..Retention::default() };
    let error = cache.collect(&retention, false).expect_err("an unknown root");
    assert!(
        error.to_string().ends_with("has no root stage1.x86_46; it has stage1.x86_64"),
        "{error}"
    );
    assert_eq!(memory.files().len(), before + 1, "the clock, and nothing is gone");
}

#[test]
fn no_flipped_bit_makes_a_collection_delete_what_is_needed() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    for (number, content) in ["one", "two"].into_iter().enumerate() {
        let object = builder.add("tool", &[], &text(content));
        let hash = builder.realise(number as u8, &object, &[]);
        builder.publish(&cache, &key, &hash);
    }
    // Two generations: the older one is kept by its age, and named by the newer one alone.
    memory.age(10 * DAY);
    let older_than = 10_000 * 10 * DAY;
    let keep = Retention { keep: [root()].into(), older_than, ..Retention::default() };
    let known = Retention { keys: ring(&[&key]), ..keep.clone() };
    for retention in [&keep, &known] {
        assert_eq!(cache.collect(retention, false).expect("collected").deleted, []);
    }
    let mut errors = 0;
    let names =
        |path: &CachePath| ["roots/", "closures/"].iter().any(|it| path.as_str().starts_with(it));
    for (path, bytes) in memory.files().into_iter().filter(|(path, _)| names(path)) {
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1 << (index % 8);
            memory.set(&path, flipped);
            memory.age(10 * DAY);
            for retention in [&keep, &known] {
                match cache.collect(retention, true) {
                    Ok(collected) => assert_eq!(collected.deleted, [], "{path} at {index}"),
                    Err(_) => errors += 1,
                }
            }
            memory.set(&path, bytes.clone());
        }
    }
    assert!(errors > 500, "{errors}");
}

#[test]
fn a_collection_during_a_push_takes_nothing_that_the_push_relies_on() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let libc = builder.add("libc", &[], &text("libc"));
    let tool = builder.add("tool", &[&libc], &text("tool"));
    let hash = builder.realise(1, &tool, &[]);
    let publisher = Publisher::new(&builder.store, &cache, None, "builder-1");
    publisher.publish_objects(&[libc.id()]).expect("published");
    memory.age(100 * DAY);
    // A collection that had looked at the pack before the push made it look new deletes it now.
    let pack = memory.files().into_iter().map(|(path, _)| path).find(is_pack).expect("there");
    let mut pack = Some(pack);
    memory.on_put(move |path| {
        if path.as_str().starts_with("closures/") {
            pack.take().into_iter().collect()
        } else {
            vec![]
        }
    });
    let published = builder.publish(&cache, &key, &hash);
    assert_eq!(published.packs, 2, "the one that disappeared was sent again");
    assert_eq!(cache.verify(&ring(&[&key])).expect("read").findings, []);

    // Otherwise what is relied on looks new, and stays.
    memory.age(100 * DAY);
    builder.publish(&cache, &key, &hash);
    let collected = cache.collect(&Retention::default(), false).expect("collected");
    assert_eq!(collected.deleted, []);
}

fn is_pack(path: &CachePath) -> bool {
    path.as_str().starts_with("packs/")
}

#[test]
fn verification_finds_every_damaged_file() {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let object = builder.add("tool", &[], &text("tool"));
    let hash = builder.realise(1, &object, &[]);
    builder.publish(&cache, &key, &hash);
    let keys = ring(&[&key]);
    let files = memory.files().len() - 1;
    assert_eq!(cache.verify(&keys).expect("read"), Verified { files, findings: vec![] });
    for (path, bytes) in memory.files().into_iter().filter(|(it, _)| it.as_str().contains('/')) {
        for index in (0..bytes.len()).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1;
            memory.set(&path, flipped);
            assert!(!cache.verify(&keys).expect("read").findings.is_empty(), "{path} at {index}");
        }
        memory.set(&path, bytes[..bytes.len() - 1].to_vec());
        assert!(!cache.verify(&keys).expect("read").findings.is_empty(), "{path} shortened");
        memory.set(&path, bytes);
    }
}

#[test]
fn old_news_are_noticed() {
    let (builder, user) = (Machine::new(), Machine::new());
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let (public, signer) = (key.public(), Some(key.public().id()));
    let path = CachePath::root(&root(), signer);
    let mut pointers = Vec::new();
    for (number, content) in ["one", "two"].into_iter().enumerate() {
        let object = builder.add("tool", &[], &text(content));
        let hash = builder.realise(number as u8, &object, &[]);
        builder.publish(&cache, &key, &hash);
        pointers.push(memory.files().into_iter().find(|(it, _)| *it == path).expect("there").1);
    }
    let sight = |number: usize| {
        memory.set(&path, pointers[number].clone());
        let pointer = cache.pointer(&root(), Some(&public)).expect("read").expect("there");
        user.store.sight(cache.url(), signer, &pointer).expect("remembered")
    };
    assert_eq!(sight(0), Freshness::First);
    assert_eq!(sight(0), Freshness::Same);
    assert_eq!(sight(1), Freshness::Newer);
    assert_eq!(sight(0), Freshness::RolledBack { seen: 2 });
    assert_eq!(sight(1), Freshness::Same, "the memory is of the newest");
    let mut forked = cache.pointer(&root(), Some(&public)).expect("read").expect("there");
    forked.closure = Digest::of_file(b"another");
    assert_eq!(user.store.sight(cache.url(), signer, &forked).expect("read"), Freshness::Forked);
}

#[test]
fn what_died_before_it_was_registered_is_swept() {
    let machine = Machine::new();
    let object = machine.add("tool", &[], &text("tool"));
    machine.realise(1, &object, &[]);
    let statements = machine.store.directory("statements");
    let directory = |hash: u8| {
        let directory = statements.join(ResolvedHash::from_bytes([hash; 32]).to_string());
        fs::create_dir_all(&directory).expect("created");
        fs::write(directory.join("unsigned"), "x").expect("written");
        directory
    };
    let (registered, under_way, dead) = (directory(1), directory(2), directory(3));
    let lock = machine.store.lock(&ResolvedHash::from_bytes([2; 32])).expect("locked");
    let partial = |name: &str, age: Duration| {
        let path = machine.store.directory("partial").join(name);
        fs::create_dir_all(path.join("tree")).expect("created");
        let time = std::time::SystemTime::now() - age;
        fs::File::open(&path).and_then(|it| it.set_modified(time)).expect("changed");
        path
    };
    let (young, old) = (partial("young", DAY), partial("old", 8 * DAY));
    machine.store.sweep().expect("swept");
    let there = [&registered, &under_way, &dead, &young, &old].map(|path| path.is_dir());
    assert_eq!(there, [true, true, false, true, false]);
    drop(lock);
    machine.store.sweep().expect("swept");
    assert!(!under_way.is_dir());
}
