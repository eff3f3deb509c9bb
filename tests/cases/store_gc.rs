//! Garbage collection as a user sees it: what stays, what goes, and what is said of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sound;
use crate::support::host::{mark, skipped};
use crate::support::place::list;
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run};

const COMPONENTS: &str = r#"
lib = sh("lib", "echo lib > $out/usr/lib-of-it")
app = sh("app", "echo app > $out/usr/app", tools = [lib], run = [lib])
tool = sh("tool", "echo tool > $out/usr/tool")
user = sh("user", "cp /usr/tool $out/usr/user", tools = [tool])
return {"": app, "lib": lib, "tool": tool, "user": user}
"#;

const EVERYTHING: &[&str] = &["store", "gc", "--older-than", "0s"];

fn assert_sound(place: &Place) {
    assert_eq!(sound::problems(&place.store()), Vec::<String>::new());
}

fn collect(place: &Place, options: &[&str]) -> Value {
    let run = place.srp(&[EVERYTHING, &["--json"], options].concat()).succeeded();
    serde_json::from_str(&run.stdout).unwrap()
}

/// The paths of what went.
fn items(answer: &Value) -> BTreeSet<String> {
    let items = answer["items"].as_array().unwrap().iter();
    items.map(|item| item["path"].as_str().unwrap().to_owned()).collect()
}

/// Everything in the store but what nothing depends on.
fn contents(store: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![store.to_owned()];
    while let Some(directory) = pending.pop() {
        for path in list(&directory) {
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            found.insert(path);
        }
    }
    let derived = ["index", "graph", "locks", "tmp", "trash"].map(|name| store.join(name));
    found.retain(|path| !derived.iter().any(|it| path.starts_with(it)));
    found
}

#[test]
fn what_roots_keep_stays_and_a_dry_run_says_what_goes() {
    let place = Place::new(COMPONENTS);
    let app = place.realise("t.x");
    let user = place.realise("t.x.user");
    place.srp(&["root", "remove", "t.x.user"]).succeeded();
    // By their age they stay.
    let run = place.srp(&["store", "gc"]).succeeded();
    assert!(run.stderr.contains("freed 0 B (0 items)"), "{run}");

    let before = contents(&place.store());
    let planned = collect(&place, &["--dry-run"]);
    assert_eq!(contents(&place.store()), before, "a dry run changes nothing");
    let collected = collect(&place, &[]);
    assert_eq!(planned["items"], collected["items"]);
    assert_eq!(planned["kinds"], collected["kinds"]);
    assert_sound(&place);
    let after = contents(&place.store());
    assert!(after.is_subset(&before));
    for path in items(&collected) {
        assert!(!Path::new(&path).exists() && !Path::new(&path).is_symlink(), "{path}");
    }
    assert!(items(&collected).contains(user.to_str().unwrap()), "{collected:#}");
    assert!(app.join("usr/app").exists() && !user.exists());
    // What it refers to is there too, and what it is made of is known.
    place.srp(&["closure", app.to_str().unwrap()]).succeeded();
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
    place.show("t.x");
    place.srp(&["log", "t.x"]).succeeded();
    assert_eq!(place.realise("t.x.user"), user, "it is made again");
    let freed = collected["freed_bytes"].as_u64().unwrap();
    let sizes = collected["items"].as_array().unwrap().iter();
    assert_eq!(freed, sizes.map(|item| item["disk_bytes"].as_u64().unwrap()).sum::<u64>());
    assert_eq!(list(&place.store().join("trash")), Vec::<PathBuf>::new());
    place.assert_tidy();
    assert_sound(&place);
}

#[test]
fn every_generation_of_a_root_is_kept() {
    let place = Place::new(COMPONENTS);
    let first = place.realise("t.x.tool");
    place.define(&COMPONENTS.replace("echo tool", "echo other"));
    let second = place.realise("t.x.tool");
    assert_ne!(first, second);
    collect(&place, &[]);
    assert!(first.exists() && second.exists());
    assert_sound(&place);
}

#[test]
fn the_answers_of_why_alive_and_stat() {
    let place = Place::new(COMPONENTS);
    let app = place.realise("t.x");
    let tool = place.realise("t.x.tool");
    let lib = place.srp(&["realise", "t.x.lib", "--no-root"]).succeeded().stdout;
    let why = |path: &str| place.srp(&["store", "why-alive", path]).succeeded();
    let run = why(lib.trim_end());
    assert_eq!(
        run.stdout,
        format!("the root t.x, generation 1\n  {}\n    {}\n", app.display(), lib.trim_end())
    );
    place.srp(&["root", "remove", "t.x.tool"]).succeeded();
    let run = why(tool.to_str().unwrap());
    assert!(run.stdout.starts_with("its age: it was made or used"), "{run}");
    for entry in list(&place.store().join("info")) {
        make_old(&entry);
    }
    let run = why(tool.to_str().unwrap()).says(&["nothing keeps", "srp store gc removes it"]);
    assert_eq!(run.stdout, "");
    let json = place.srp(&["store", "why-alive", lib.trim_end(), "--json"]).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["why"]["by"]["root"], "t.x");
    assert_eq!(json["why"]["chain"].as_array().unwrap().len(), 2);

    let run = place.srp(&["store", "stat"]).succeeded();
    for part in ["objects", "sources", "logs", "in all", "t.x (1 generation)", "would be freed"] {
        assert!(run.stdout.contains(part), "{part}: {run}");
    }
    let json = place.srp(&["store", "stat", "--json"]).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    let roots = json["roots"].as_array().unwrap();
    assert_eq!(roots.len(), 1, "{json:#}");
    assert_eq!(roots[0]["own_objects"], 2);
    assert_eq!(roots[0]["shared_objects"], 0);
    // What du says, which counts blocks too: trees, listings and records.
    let counted = |name: &str| {
        let run = Run::of(Command::new("du").args(["-s", "-B1"]).arg(place.store().join(name)));
        let all: u64 = run.succeeded().stdout.split('\t').next().unwrap().parse().unwrap();
        let own = fs::metadata(place.store().join(name)).unwrap();
        all - std::os::unix::fs::MetadataExt::blocks(&own) * 512
    };
    let objects = json["kinds"]["objects"]["disk_bytes"].as_u64().unwrap();
    assert_eq!(objects, counted("trees") + counted("info"));
    assert_eq!(json["kinds"]["sources"]["disk_bytes"], counted("sources"));
}

fn make_old(path: &Path) {
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(100 * 24 * 60 * 60)).unwrap();
}

/// Starts a command in a PID namespace of its own, where its number says nothing to others; none if
/// that can't be done here.
fn in_a_namespace(place: &Place, arguments: &[&str]) -> Option<Child> {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    let test = Run::of(command.arg("true"));
    if test.code != Some(0) {
        skipped("a collection beside another container", test.stderr.trim());
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(crate::support::program()).args(arguments);
    place.surround(&mut command);
    Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn what_a_build_in_another_container_needs_stays() {
    let seconds = format!("5.{}", mark());
    let place = Place::new(&format!(
        r#"
dep = sh("dep", "echo dep > $out/usr/dep")
slow = sh("slow", "sleep {seconds}; cp /usr/dep $out/usr/slow", tools = [dep])
return {{"": slow, "dep": dep}}
"#
    ));
    let dep = place.srp(&["realise", "t.x.dep", "--no-root"]).succeeded().stdout;
    let Some(child) = in_a_namespace(&place, &["realise", "t.x", "--no-root"]) else { return };
    let sleeps = format!("sleep\0{seconds}");
    assert!(eventually(|| !processes_with(&sleeps).is_empty()), "it never began");
    let collected = collect(&place, &[]);
    assert!(!processes_with(&sleeps).is_empty(), "the build was over too soon to be a test");
    assert!(Path::new(dep.trim_end()).exists(), "{collected:#}");
    assert!(!items(&collected).iter().any(|path| path.contains("/sources/")), "{collected:#}");
    let run = place.srp(&["store", "why-alive", dep.trim_end()]).succeeded();
    assert!(run.stdout.starts_with("a running command of srp (tmp/"), "{run}");
    let run = Run::from(child.wait_with_output().unwrap()).succeeded();
    assert_sound(&place);
    // It has ended: nothing keeps it.
    collect(&place, &[]);
    assert!(!Path::new(run.stdout.trim_end()).exists());
    assert_eq!(list(&place.store().join("info")), Vec::<PathBuf>::new());
    assert_eq!(list(&place.store().join("trees")), Vec::<PathBuf>::new());
    assert_eq!(list(&place.store().join("composed")), Vec::<PathBuf>::new());
    assert_sound(&place);
}

#[test]
fn the_root_of_a_shell_stays_while_it_runs() {
    let place = Place::new(
        "return {\"\": stage(name = \"root\", build = TRIPLE, host = TRIPLE, tools = [applets])}",
    );
    let path = place.srp(&["realise", "t.x", "--no-root"]).succeeded().stdout;
    let seconds = format!("4.{}", mark());
    let mut command = place.command(&["shell", path.trim_end(), "--"]);
    command.args(["/bin/sh", "-c", &format!("sleep {seconds}; /usr/bin/busybox echo alive")]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let sleeps = format!("sleep\0{seconds}");
    assert!(eventually(|| !processes_with(&sleeps).is_empty()), "it never began");
    collect(&place, &[]);
    let run = Run::from(child.wait_with_output().unwrap()).succeeded();
    assert_eq!(run.stdout, "alive\n");
    assert!(Path::new(path.trim_end()).exists());
    collect(&place, &[]);
    assert!(!Path::new(path.trim_end()).exists());
    assert_sound(&place);
}

#[test]
fn what_cannot_be_read_ends_it_with_what_and_where() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    place.srp(&["root", "remove", "t.x"]).succeeded();
    let store = place.store();
    let root = store.join("roots/broken/1");
    let attempts: [&dyn Fn(); 3] =
        [&|| fs::write(&root, "no link").unwrap(), &|| symlink("nowhere", &root).unwrap(), &|| {
            let id = "0".repeat(32);
            symlink(format!("../../objects/{id}-lost"), &root).unwrap();
        }];
    for damage in attempts {
        fs::create_dir_all(root.parent().unwrap()).unwrap();
        damage();
        let before = contents(&store);
        place.srp(EVERYTHING).exited(4).says(&["roots/broken/1"]);
        assert_eq!(contents(&store), before);
        fs::remove_dir_all(root.parent().unwrap()).unwrap();
    }
    // A record that the graph doesn't know yet.
    let record = list(&store.join("info")).remove(0);
    let bytes = fs::read(&record).unwrap();
    fs::remove_file(store.join("graph")).ok();
    fs::remove_file(&record).unwrap();
    fs::write(&record, &bytes[..bytes.len() / 2]).unwrap();
    let before = contents(&store);
    place.srp(EVERYTHING).exited(4).says(&[record.to_str().unwrap(), "is damaged"]);
    assert_eq!(contents(&store), before);
}

#[test]
fn the_first_signal_ends_it_while_it_waits() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    // As somebody who is about to say what it relies on, and doesn't get to it.
    let gate = fs::File::open(place.store().join("locks")).unwrap();
    let held = Flock::lock(gate, FlockArg::LockShared).unwrap();
    let mut command = place.command(EVERYTHING);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    Run::from(child.wait_with_output().unwrap()).exited(130).says(&["interrupted"]);
    drop(held);
    assert_sound(&place);
    place.srp(EVERYTHING).succeeded();
}

#[test]
fn garbage_is_collected_in_the_background_when_the_configuration_says_so() {
    let place = Place::new(COMPONENTS);
    let tool = place.srp(&["realise", "t.x.tool", "--no-root"]).succeeded().stdout;
    let tool = PathBuf::from(tool.trim_end());
    for directory in ["info", "derivations", "logs"] {
        list(&place.store().join(directory)).iter().for_each(|path| make_old(path));
    }
    let config = place.path("home/.config/srp/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[gc]\nmax_size_mib = 1000000\n")).unwrap();
    place.realise("t.x.lib");
    assert!(tool.exists());
    // More than any disk has.
    fs::write(&config, format!("{text}[gc]\nmin_free_mib = 4000000000\n")).unwrap();
    let run = place.srp(&["realise", "t.x"]).succeeded();
    run.says(&["less are free than min_free_mib asks for", "in the background"]);
    assert!(eventually(|| !tool.exists()), "nothing was collected");
    let collects =
        || processes_with(&format!("--automatic\0--quiet\0--store\0{}", place.store().display()));
    assert!(eventually(|| collects().is_empty()));
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
    assert_sound(&place);
    // With nothing to do nothing is collected, and nothing said.
    let run = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(run.stderr, "");
}
