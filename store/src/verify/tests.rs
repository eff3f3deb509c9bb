//! What verifying finds, and what repairing puts right, on stores of a few objects.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::commit::Registration;
use crate::ingest::{self, Rules};
use crate::object::{Object, Reference, ReferenceKind};
use crate::open_tree::OpenTree;
use crate::store::Access;

fn open(directory: &tempfile::TempDir, access: Access) -> Store {
    Store::open_damaged(&directory.path().join("store"), access).expect("opened")
}

fn add(store: &Store, name: &str, files: &[(&str, &str)], references: &[&Object]) -> Object {
    let scratch = store.scratch().expect("a scratch directory");
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).expect("created");
    for (path, text) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(path, text).expect("written");
    }
    let listing = ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default());
    let listing = Arc::new(listing.expect("taken"));
    let reference = |it: &&Object| Reference { kind: ReferenceKind::Run, object: it.id() };
    let object = Object {
        name: name.parse().expect("a name"),
        tree: listing.digest(),
        references: references.iter().map(reference).collect(),
        permissions: BTreeMap::new(),
    };
    let mut registration = Registration::default();
    registration.object(store, &object, listing, tree);
    store.commit(registration).expect("committed");
    object
}

fn verify(store: &Store, part: &Part) -> Report {
    let (watch, keys) = (Watch::default(), BTreeMap::new());
    store.verify_store(Verification { part, keys: &keys, watch: &watch }).expect("verified")
}

fn repair(store: &Store) -> Report {
    let mut report = verify(store, &Part::All);
    let (watch, keys) = (Watch::default(), BTreeMap::new());
    let how = Verification { part: &Part::All, keys: &keys, watch: &watch };
    store.repair(how, &mut report).expect("repaired");
    report
}

/// Replaces a file, whatever its mode.
fn write(path: &Path, bytes: &[u8]) {
    let parent = path.parent().expect("a parent");
    let mode = fs::metadata(parent).expect("read").permissions();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("set");
    fs::remove_file(path).expect("removed");
    fs::write(path, bytes).expect("written");
    fs::set_permissions(parent, mode).expect("set");
}

#[test]
fn each_kind_is_found_alone_and_mended_from_the_rest() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(&directory, Access::Write);
    let libc = add(&store, "libc", &[("usr/lib/libc.so", "same"), ("a", "a")], &[]);
    let tool = add(&store, "tool", &[("usr/bin/tool", "same"), ("a", "b")], &[&libc]);
    store.set_root("tool", &tool.path_name()).expect("set");
    assert_eq!(verify(&store, &Part::All).findings, []);
    let tree = store.tree_path(&tool.tree);
    let link = store.object_path(&tool.path_name());
    let root = store.directory("roots").join("tool/1");
    let damages: &[(&str, &dyn Fn())] = &[
        ("info", &|| write(&store.info_path(&libc.id()), b"srpi")),
        ("info", &|| fs::remove_file(store.info_path(&libc.id())).expect("removed")),
        ("listing", &|| write(&store.listing_path(&tool.tree), b"")),
        ("path", &|| fs::remove_file(&link).expect("removed")),
        ("tree", &|| write(&tree.join("usr/bin/tool"), b"else")),
        ("tree", &|| {
            let mode = fs::Permissions::from_mode(0o700);
            fs::set_permissions(tree.join("usr"), mode).expect("set");
        }),
        ("root", &|| {
            let text = fs::read_link(&root).expect("read");
            let text = text.to_str().expect("text");
            fs::remove_file(&root).expect("removed");
            std::os::unix::fs::symlink(&text[..text.len() - 2], &root).expect("linked");
        }),
        ("meta", &|| write(&store.root().join("meta"), b"srp store")),
        ("directory", &|| fs::remove_dir(store.directory("logs")).expect("removed")),
    ];
    for (kind, damage) in damages {
        damage();
        // A process that remembers nothing.
        let store = open(&directory, Access::Write);
        let report = verify(&store, &Part::All);
        let kinds: Vec<&str> = report.findings.iter().map(|it| it.subject.kind()).collect();
        assert_eq!(kinds, [*kind], "{:#?}", report.findings);
        let report = repair(&store);
        assert_eq!(report.unmended().count(), 0, "{kind}: {:#?}", report.findings);
        let store = open(&directory, Access::Write);
        assert_eq!(verify(&store, &Part::All).findings, [], "after {kind}");
        assert!(store.contains_closure(&[tool.id()]).expect("asked"));
    }
}

#[test]
fn what_is_nowhere_else_stays_and_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(&directory, Access::Write);
    let only = add(&store, "only", &[("file", "nowhere else"), ("sound", "sound")], &[]);
    let file = store.tree_path(&only.tree).join("file");
    write(&file, b"damaged");
    let report = repair(&store);
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert!(
        matches!(&finding.outcome, Some(Outcome::Unmended(why)) if why.contains("equals file")),
        "{finding:?}"
    );
    assert_eq!(fs::read(&file).expect("read"), b"damaged", "it is all that there is");
    let foreign = store.directory("info").join("foreign");
    fs::write(&foreign, "precious").expect("written");
    repair(&store);
    assert_eq!(fs::read(&foreign).expect("read"), b"precious");
}

#[test]
fn a_tree_that_others_may_use_stays_until_they_are_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, other) = (open(&directory, Access::Write), open(&directory, Access::Write));
    let one = add(&store, "one", &[("file", "same"), ("a", "1")], &[]);
    add(&store, "two", &[("file", "same"), ("a", "2")], &[]);
    let working = other.scratch().expect("a scratch directory");
    write(&store.tree_path(&one.tree).join("file"), b"damaged");
    let mounted = fs::File::open(store.tree_path(&one.tree)).expect("opened");
    assert_eq!(repair(&store).unmended().count(), 0);
    let kept = fs::read_dir(store.directory("replaced")).expect("listed");
    let kept: Vec<_> = kept.map(|it| it.expect("read").path()).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(fs::read(kept[0].join("tree/file")).expect("read"), b"damaged");
    store.sweep().expect("swept");
    assert!(kept[0].exists(), "the other one is still at work");
    drop((working, other, mounted));
    store.sweep().expect("swept");
    assert!(!kept[0].exists());
}

#[test]
fn only_a_closure_is_looked_at_if_that_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(&directory, Access::Write);
    let libc = add(&store, "libc", &[("c", "c")], &[]);
    let tool = add(&store, "tool", &[("t", "t")], &[&libc]);
    let other = add(&store, "other", &[("o", "o")], &[]);
    write(&store.tree_path(&libc.tree).join("c"), b"d");
    write(&store.tree_path(&other.tree).join("o"), b"d");
    let report = verify(&store, &Part::Closure(vec![tool.id()]));
    assert_eq!(report.looked_at.trees, 2);
    let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!(finding.subject, Subject::Tree(libc.tree));
    assert!(finding.damages.iter().any(|it| it.path == b"c"), "{:?}", finding.damages);
}
