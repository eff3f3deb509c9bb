//! The evaluation cache: when it knows, when it doesn't, and that it never lies.

use std::fs::{self, File, FileTimes};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Fixture, with_component};
use crate::definitions::DefinitionPath;
use crate::{Cache, CachedGoal};

struct Cached {
    fixture: Fixture,
    cache: Cache,
    directory: tempfile::TempDir,
}

impl Cached {
    /// Definitions that read a file of each kind, evaluated and remembered.
    fn new() -> Cached {
        let fixture = with_component("build(version = read_text(\"//version\"), tools = [tool])");
        fixture.write("version", "1");
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(&directory.path().join("eval"));
        let cached = Cached { fixture, cache, directory };
        cached.store();
        cached
    }

    fn store(&self) {
        let evaluation = self.fixture.evaluate(&["s.t"]);
        self.cache.store("x86_64", &evaluation).expect("a writable directory");
    }

    fn lookup(&self) -> Option<CachedGoal> {
        self.cache.lookup(&self.fixture.definitions(), "x86_64", "s.t")
    }

    /// The entry's small file and its graph.
    fn entry(&self) -> [PathBuf; 2] {
        let mut files: Vec<PathBuf> = fs::read_dir(self.directory.path().join("eval"))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        files.try_into().expect("two files and nothing left behind")
    }

    /// Makes all definitions look as if they had been written an hour ago; times of change can't
    /// be set, so for those the record is given what a look-up an hour later would learn.
    fn age(&self) {
        for path in ["main.star", "lib.star", "package.star", "version"] {
            let hour_ago = SystemTime::now() - Duration::from_secs(3600);
            let file = File::options().write(true).open(self.fixture.root().join(path));
            file.and_then(|file| file.set_times(FileTimes::new().set_modified(hour_ago)))
                .expect("a file of ours");
        }
    }
}

#[test]
fn what_was_stored_is_found_again() {
    let cached = Cached::new();
    let evaluation = cached.fixture.evaluate(&["s.t"]);
    let found = cached.lookup().expect("a hit");
    assert_eq!(found.key, evaluation.goals[0].1);
    assert_eq!(found.runners, evaluation.runners);
    assert_eq!(found.files, evaluation.files);
    assert_eq!(found.graph().expect("a graph"), evaluation.derivations);
}

#[test]
fn another_machine_or_attribute_is_another_entry() {
    let cached = Cached::new();
    let definitions = cached.fixture.definitions();
    assert_eq!(cached.cache.lookup(&definitions, "aarch64", "s.t"), None);
    assert_eq!(cached.cache.lookup(&definitions, "x86_64", "s.t.a"), None);
    // An entry under another's name is none.
    let other = cached.cache.clone();
    let [entry, _] = cached.entry();
    let key = |attr: &str| other.path("x86_64", attr);
    assert_eq!(entry, key("s.t"));
    fs::copy(&entry, key("s.u")).expect("a copy");
    assert_eq!(cached.cache.lookup(&definitions, "x86_64", "s.u"), None);
}

#[test]
fn any_changed_file_is_a_miss_until_it_is_as_it_was() {
    for path in ["main.star", "lib.star", "package.star", "version"] {
        let cached = Cached::new();
        let before = fs::read(cached.fixture.root().join(path)).expect("a file");
        // Of the same length, at once: nothing but the content tells.
        let mut changed = before.clone();
        *changed.last_mut().expect("a byte") ^= 1;
        cached.fixture.write(path, &changed);
        assert_eq!(cached.lookup(), None, "{path}");
        cached.fixture.write(path, &before);
        assert!(cached.lookup().is_some(), "{path}");
        fs::remove_file(cached.fixture.root().join(path)).expect("a file");
        assert_eq!(cached.lookup(), None, "{path}");
    }
}

#[test]
fn a_file_that_now_leads_out_of_the_directory_is_a_miss() {
    let cached = Cached::new();
    let outside = tempfile::NamedTempFile::new().expect("a file");
    fs::write(outside.path(), "1").expect("a file");
    fs::remove_file(cached.fixture.root().join("version")).expect("a file");
    cached.fixture.link("version", outside.path().to_str().expect("UTF-8"));
    assert_eq!(cached.lookup(), None);
}

#[test]
fn a_directory_that_was_moved_or_copied_is_a_hit() {
    let cached = Cached::new();
    let copy = with_component("build(version = read_text(\"//version\"), tools = [tool])");
    copy.write("version", "1");
    let found = cached.cache.lookup(&copy.definitions(), "x86_64", "s.t");
    assert_eq!(found, cached.lookup());
    assert!(found.is_some());
}

#[test]
fn every_damaged_byte_is_a_miss() {
    let cached = Cached::new();
    let [entry, graph] = cached.entry();
    let whole = fs::read(&entry).expect("an entry");
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x40;
        fs::write(&entry, damaged).expect("a write");
        assert_eq!(cached.lookup(), None, "byte {position}");
    }
    for length in [0, 1, 31, 32, 33, whole.len() - 1] {
        fs::write(&entry, &whole[..length]).expect("a write");
        assert_eq!(cached.lookup(), None, "{length} bytes");
    }
    fs::write(&entry, &whole).expect("a write");
    let found = cached.lookup().expect("a hit");
    let bytes = fs::read(&graph).expect("a graph");
    for position in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1;
        fs::write(&graph, damaged).expect("a write");
        assert_eq!(found.graph(), None, "byte {position}");
    }
    fs::remove_file(&graph).expect("a graph");
    assert_eq!(found.graph(), None);
    // An evaluation mends it.
    cached.store();
    assert!(cached.lookup().expect("a hit").graph().is_some());
}

#[test]
fn a_graph_that_was_replaced_is_not_taken_for_the_entrys() {
    let cached = Cached::new();
    let found = cached.lookup().expect("a hit");
    cached.fixture.write("version", "2");
    cached.store();
    assert_eq!(found.graph(), None);
    assert!(cached.lookup().is_some_and(|found| found.graph().is_some()));
}

#[test]
fn a_file_just_written_is_hashed_and_one_long_settled_is_not() {
    let cached = Cached::new();
    let path: DefinitionPath = "//version".parse().expect("a path");
    let recorded = || {
        let seen = cached.fixture.definitions().read(&path, 100).expect("a file").1;
        seen.stat.is_some()
    };
    assert!(!recorded(), "a file changed within the last two seconds may change unseen");
    cached.age();
    assert!(!recorded(), "the time of change is recent still");
    std::thread::sleep(Duration::from_millis(2100));
    assert!(recorded());

    // The next look-up learns what `stat` says, the one after that hashes nothing: it doesn't
    // even open a file, so that files which can't be opened are no miss.
    let [entry, _] = cached.entry();
    let before = fs::read(&entry).expect("an entry");
    assert!(cached.lookup().is_some());
    let learned = fs::read(&entry).expect("an entry");
    assert_ne!(learned, before);
    assert!(cached.lookup().is_some());
    assert_eq!(fs::read(&entry).expect("an entry"), learned);

    // And a change is still seen, even one that sets the time of modification back.
    let version = cached.fixture.root().join("version");
    let modified = fs::metadata(&version).and_then(|it| it.modified()).expect("a time");
    fs::write(&version, "9").expect("a write");
    let file = File::options().write(true).open(&version).expect("a file");
    file.set_times(FileTimes::new().set_modified(modified)).expect("a file of ours");
    assert_eq!(cached.lookup(), None);
}

#[test]
fn a_directory_that_cant_be_written_is_an_error_of_storing_only() {
    let cached = Cached::new();
    let file = cached.directory.path().join("file");
    fs::write(&file, "").expect("a file");
    let cache = Cache::new(&file.join("eval"));
    assert_eq!(cache.lookup(&cached.fixture.definitions(), "x86_64", "s.t"), None);
    let error =
        cache.store("x86_64", &cached.fixture.evaluate(&["s.t"])).expect_err("no directory");
    assert_eq!(
        error.to_string(),
        format!("can't write to the evaluation cache {}", file.join("eval").display())
    );
}
