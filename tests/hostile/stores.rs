//! Several srps, containers and deaths on one store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use nix::unistd::geteuid;

use crate::harness::{Test, tests};
use crate::sound;
use crate::support::place::list;
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    containers_add_to_one_store,
    containers_push_to_one_cache,
    processes_set_one_root,
    additions_beside_builds,
    pipes_in_the_place_of_files,
];

const COMPONENTS: &str = r#"
dep = sh("dep", "echo dep > $out/usr/dep")
return {"": sh("app", "cp /usr/dep $out/usr/app", tools = [dep]), "dep": dep}
"#;

/// `srp` as process 1 of a PID namespace of its own: all of them have the same number.
fn contained(place: &Place, arguments: &[&str]) -> Run {
    let mut command = Command::new("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork"]).arg(crate::support::program()).args(arguments);
    Run::of(place.surround(&mut command))
}

/// Runs several threads that fail together.
fn at_once(threads: usize, action: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let action = &action;
            scope.spawn(move || action(thread));
        }
    });
}

fn assert_sound(store: &Path) {
    let problems = sound::problems(store);
    assert!(problems.is_empty(), "{problems:#?}");
}

fn containers_add_to_one_store() {
    let place = Place::new(COMPONENTS);
    let paths = Mutex::new(Vec::new());
    at_once(4, |thread| {
        for number in 0..8 {
            let name = format!("tree-{thread}-{number}");
            place.write(&format!("{name}/file"), &name);
            // Something that all of them add, too.
            place.write(&format!("own-{thread}/same-{number}/file"), &number.to_string());
            let same = format!("own-{thread}/same-{number}");
            let run = contained(&place, &["add", &name, &same]).succeeded();
            let lines = run.stdout.lines().map(PathBuf::from);
            paths.lock().unwrap().extend(lines.take(1).map(|path| (path, name.clone())));
        }
    });
    for (path, name) in paths.into_inner().unwrap() {
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), name);
    }
    assert_sound(&place.store());
    place.assert_tidy();
}

fn containers_push_to_one_cache() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    let cache = place.path("cache");
    at_once(4, |_| {
        for _ in 0..3 {
            contained(&place, &["cache", "push", "t.x", "--to", "cache", "--unsigned"]).succeeded();
        }
    });
    place.srp(&["cache", "verify", "cache"]).succeeded();
    assert_eq!(list(&cache.join(".staging")), Vec::<PathBuf>::new());
}

fn processes_set_one_root() {
    let place = Place::new(COMPONENTS);
    let paths: Vec<String> = (0..4)
        .map(|number| {
            place.write(&format!("tree-{number}/file"), &number.to_string());
            let run = place.srp(&["add", &format!("tree-{number}")]).succeeded();
            run.stdout.trim_end().to_owned()
        })
        .collect();
    at_once(4, |thread| {
        for number in 0..8 {
            let path = &paths[(thread + number) % paths.len()];
            place.srp(&["root", "add", "shared", path]).succeeded();
            place.srp(&["root", "list"]).succeeded();
        }
    });
    let generations = list(&place.store().join("roots/shared"));
    assert!((1..=6).contains(&generations.len()), "{generations:?}");
    assert_sound(&place.store());
    // Whoever comes next leaves three.
    place.srp(&["root", "add", "shared", &paths[0]]).succeeded();
    place.srp(&["root", "add", "shared", &paths[1]]).succeeded();
    assert_eq!(list(&place.store().join("roots/shared")).len(), 3);
}

fn additions_beside_builds() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    at_once(3, |thread| {
        if thread == 0 {
            for number in 0..5 {
                place.define(&COMPONENTS.replace("echo dep", &format!("echo {number}")));
                place.srp(&["realise", "t.x"]).succeeded();
            }
            return;
        }
        for number in 0..15 {
            let name = format!("tree-{thread}-{number}");
            place.write(&format!("{name}/file"), &name);
            contained(&place, &["add", &name]).succeeded();
        }
    });
    assert_sound(&place.store());
    place.assert_tidy();
}

/// A named pipe that nobody writes to, in the place of each file of a store and of a cache in turn, holds up
/// nobody.
fn pipes_in_the_place_of_files() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    place.srp(&["cache", "push", "t.x", "--to", "cache", "--unsigned"]).succeeded();
    let in_time = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "20"]).arg(crate::support::program()).args(arguments);
        let run = Run::of(place.surround(&mut command));
        assert!(matches!(run.code, Some(0 | 1 | 3 | 4)), "{arguments:?}: {run}");
        run
    };
    let files = |root: &Path| -> Vec<PathBuf> {
        let found = Command::new("find").arg(root).args(["-type", "f"]).output().unwrap().stdout;
        String::from_utf8(found).unwrap().lines().map(PathBuf::from).collect()
    };
    let replaced = |path: &Path, with: &dyn Fn()| {
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        with();
        // What srp has put in its place is right.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }
    };
    let cache = files(&place.path("cache"));
    assert!(cache.len() > 4, "{cache:?}");
    for path in &cache {
        replaced(path, &|| {
            for command in ["list", "info", "verify"] {
                in_time(&["cache", command, "cache"]);
            }
            in_time(&["cache", "push", "t.x", "--to", "cache", "--unsigned"]);
        });
    }
    place.srp(&["store", "verify", "--all"]).succeeded();
    place.srp(&["store", "gc"]).succeeded();
    let mut of_store: Vec<PathBuf> =
        ["meta", "verified", "graph"].map(|it| place.store().join(it)).into();
    for kind in ["info", "realisations", "derivations", "eval", "roots", "logs", "sources"] {
        of_store.extend(files(&place.store().join(kind)));
    }
    let listings = files(&place.store().join("trees"));
    of_store.extend(listings.into_iter().filter(|it| it.extension().is_some()));
    for path in of_store.iter().filter(|it| it.exists()) {
        replaced(path, &|| {
            in_time(&["store", "verify", "--all"]);
            in_time(&["store", "gc", "--dry-run"]);
            in_time(&["store", "stat"]);
            in_time(&["realise", "t.x"]);
            in_time(&["log", "t.x"]);
            in_time(&["closure", "t.x"]);
        });
    }
}
