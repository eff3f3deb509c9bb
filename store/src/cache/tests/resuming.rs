//! Transfers that break, and are taken up: by the same cache, by another one, by another process.

use std::sync::Mutex;
use std::time::Duration;

use super::memory::{Memory, Misbehaviour};
use super::*;

/// A tree of one long file and some short ones, and a cache that has it.
fn large() -> (Arc<Memory>, Cache, Object, ObjectRecord) {
    let builder = Machine::new();
    let object = builder.add("large", &[], &|tree| {
        fs::write(tree.join("large"), noise(1, 6 << 20)).expect("written");
        for number in 0..20 {
            let name = format!("small{number}.txt");
            fs::write(tree.join(name), noise(2 + number, 3000)).expect("written");
        }
    });
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let publisher = Publisher::new(&builder.store, &cache, None, "builder-1");
    publisher.publish_objects(&[object.id()]).expect("published");
    let record = cache.object(&object.id()).expect("readable").expect("there");
    (memory, cache, object, record)
}

/// What broken transfers have left.
fn left(user: &Machine) -> Vec<PathBuf> {
    let entries = fs::read_dir(user.store.directory("partial")).into_iter().flatten();
    entries.map(|entry| entry.expect("listed").path()).collect()
}

/// A machine whose transfer from a cache has died after two blocks and a half.
fn interrupted() -> (Machine, Object) {
    let user = Machine::new();
    let (memory, cache, object, record) = large();
    memory.misbehave(Misbehaviour::DiesAfter(5 << 19));
    let error = Fetcher::new(&user.store, &cache, Arc::default()).fetch(&record);
    assert!(matches!(error, Err(CacheError::Transport { .. })), "{error:?}");
    assert!(!user.store.contains(&object.id()).expect("readable"));
    assert_eq!(left(&user).len(), 1);
    (user, object)
}

/// Fetches the same from a cache that is well.
fn fetch_again(user: &Machine) -> Transfer {
    let (_, cache, object, record) = large();
    let transfer = Fetcher::new(&user.store, &cache, Arc::default()).fetch(&record);
    assert_intact(&user.store, &object);
    assert_eq!(left(user), Vec::<PathBuf>::new());
    transfer.expect("fetched")
}

#[test]
fn a_transfer_that_breaks_is_taken_up_where_it_broke() {
    let user = Machine::new();
    let (memory, cache, object, record) = large();
    memory.misbehave(Misbehaviour::BreaksAfter(5 << 19));
    let told = Mutex::new(Vec::new());
    let tell = |bytes| told.lock().expect("no holder panics").push(bytes);
    let fetcher = Fetcher::new(&user.store, &cache, Arc::default()).with_progress(&tell);
    let transfer = fetcher.fetch(&record).expect("fetched");
    assert_intact(&user.store, &object);
    let told = told.into_inner().expect("no holder panics");
    assert_eq!(told.iter().sum::<u64>(), transfer.fetched_bytes);
    assert!(told.len() > 20, "bytes are told as they come, not object by object: {}", told.len());
    assert!(transfer.fetched_bytes < 8 << 20, "{transfer:?}");
    assert_eq!(transfer.requests, 4, "the index, and three times two blocks");
}

#[test]
fn what_a_dead_cache_has_brought_is_taken_up_from_another() {
    let (user, _) = interrupted();
    let transfer = fetch_again(&user);
    // Two blocks of a MiB each needn't come again.
    assert!((4 << 20..5 << 20).contains(&transfer.fetched_bytes), "{transfer:?}");
}

#[test]
fn another_process_takes_it_up_too() {
    let (user, object) = interrupted();
    let Machine { directory, store } = user;
    drop(store);
    let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
    store.sweep().expect("swept");
    let user = Machine { directory, store };
    let transfer = fetch_again(&user);
    assert!(transfer.fetched_bytes < 5 << 20, "{transfer:?}");
    assert_intact(&user.store, &object);
}

#[test]
fn a_partial_object_that_was_damaged_is_fetched_anew_and_no_cache_is_blamed() {
    for damage in ["part", "blocks", "everything"] {
        let (user, _) = interrupted();
        let partial = left(&user).remove(0);
        match damage {
            "part" => {
                let path = partial.join("tree/large");
                let mut bytes = fs::read(&path).expect("readable");
                let there = bytes.iter().position(|byte| *byte != 0).expect("something came");
                bytes[there + 100] ^= 1;
                fs::write(&path, bytes).expect("written");
            }
            "blocks" => fs::write(partial.join("blocks"), [255; 9]).expect("written"),
            _ => fs::remove_dir_all(partial.join("tree")).expect("removed"),
        }
        let transfer = fetch_again(&user);
        assert!(transfer.fetched_bytes > 6 << 20, "{damage}: {transfer:?}");
    }
}

#[test]
fn what_crawls_is_given_up_at_once() {
    let user = Machine::new();
    let (memory, _, _, record) = large();
    let patience = Patience { grace: Duration::from_millis(1500), bytes_per_second: 1 << 20 };
    let cache = Cache::open_with(memory.clone(), patience).expect("opened");
    memory.forget_requests();
    memory.misbehave(Misbehaviour::Crawls);
    let error = Fetcher::new(&user.store, &cache, Arc::default()).fetch(&record);
    assert!(error.expect_err("too slow").is_too_slow());
    assert_eq!(memory.gets(), 2, "the index came, and blocks are not tried again");
}

#[test]
fn single_files_come_by_their_blocks_only_and_nothing_is_registered() {
    let user = Machine::new();
    let (memory, cache, object, record) = large();
    let (index, whole) = cache.index(&record).expect("an index");
    memory.forget_requests();
    let to = user.directory.path().join("there");
    let wanted = [Digest::of_file(&noise(5, 3000))].into();
    let fetcher = Fetcher::new(&user.store, &cache, Arc::default());
    fetcher.fetch_files(&record, (&index, whole), &wanted, &to).expect("fetched");
    assert_eq!(fs::read(to.join("small3.txt")).expect("read"), noise(5, 3000));
    assert_eq!(fs::read_dir(&to).expect("listed").count(), 1);
    assert_eq!(memory.gets(), 1);
    assert!(memory.sent() < 1 << 20, "{} bytes were sent", memory.sent());
    assert!(!user.store.contains(&object.id()).expect("asked"));
    assert_eq!(left(&user), Vec::<PathBuf>::new());
}
