//! Kills srp, fills its disk and damages its files, and asks a verifier of its own whether the store
//! is sound after that, and srp whether it can go on.
//!
//! What is run are real commands. After each round the store must be sound by [`sound`] (which knows
//! docs/store-layout.md and no code of srp's), the same command must succeed, and what it prints
//! must be what it always prints. `SRP_CRASH_ROUNDS` says how many rounds each test makes at most;
//! `SRP_CRASH_SEED` repeats a run.

#![allow(clippy::unwrap_used)] // a test that can't go on should panic

mod cut;
mod damage;
mod full;
mod many;
mod power;
mod sound;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cut::Ended;
use support::{Place, Run};

/// A chain of two builds, and what they are built with.
const COMPONENTS: &str = r#"
dep = sh("dep", "echo dep > $out/usr/dep; mkdir $out/usr/empty; echo x > $out/usr/x; chmod +x $out/usr/x")
app = sh("app", "cp /usr/dep $out/usr/app", tools = [dep])
return {"": app, "dep": dep, "seed": applets, "busybox": busybox}
"#;

/// How many rounds a test makes at most.
fn rounds() -> usize {
    std::env::var("SRP_CRASH_ROUNDS").map_or(16, |text| text.parse().unwrap())
}

/// A place with a store, and copies of that store to begin with.
struct Ground {
    place: Place,
}

impl Ground {
    fn new() -> Ground {
        Ground { place: Place::new(COMPONENTS) }
    }

    /// Keeps the store as it is, under a name.
    fn keep(&self, name: &str) {
        copy(&self.place.store(), &self.kept(name));
    }

    /// Makes the store what was kept.
    fn begin(&self, name: &str) {
        remove(&self.place.store());
        copy(&self.kept(name), &self.place.store());
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.place.path("kept").join(name)
    }

    /// Fails unless the store is sound, and the command succeeds and prints what it should.
    fn assert_goes_on(&self, when: &str, arguments: &[&str], expected: &str) {
        self.assert_sound(when);
        let run = self.place.srp(arguments);
        assert_eq!(run.code, Some(0), "{when}: {arguments:?} fails after it: {run}");
        assert_eq!(run.stdout, expected, "{when}: {arguments:?}");
        self.assert_sound(&format!("{when}, and again"));
    }

    fn assert_sound(&self, when: &str) {
        let problems = sound::problems(&self.place.store());
        assert!(problems.is_empty(), "{when}: {problems:#?}");
    }

    /// Cuts the command off at its calls, in turn, from the store that was kept as `from`.
    fn cut(&self, from: &str, arguments: &[&str]) {
        self.begin(from);
        let expected = self.place.srp(arguments).succeeded().stdout;
        self.assert_sound("nothing was cut off");
        self.begin(from);
        let Ended::Exited { code: 0, calls } = cut::run(&self.place.command(arguments), usize::MAX)
        else {
            panic!("it can't be traced")
        };
        assert!(calls >= 3, "{arguments:?} syncs and renames {calls} times");
        let step = calls.div_ceil(rounds());
        let first = seed() as usize % step;
        let mut killed = 0;
        for at in (first..calls).step_by(step) {
            self.begin(from);
            // Threads may need a call less than the last time.
            killed += usize::from(cut::run(&self.place.command(arguments), at) == Ended::Killed);
            self.assert_goes_on(&format!("cut off at call {at} of {calls}"), arguments, &expected);
        }
        println!("{arguments:?}: cut off {killed} times, of {calls} calls each {step}.");
        assert!(killed > 0, "nothing was cut off");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        remove(&self.place.path("kept"));
        remove(&self.place.store());
    }
}

#[test]
fn an_addition_that_is_cut_off_is_whole_or_not_there() {
    let ground = Ground::new();
    ground.place.write("tree/usr/file", "content");
    ground.place.write("tree/usr/share/other", "more");
    ground.place.write("second/file", "content");
    ground.place.srp(&["add", "second"]).succeeded();
    ground.keep("one");
    ground.cut("one", &["add", "tree", "second", "--quiet"]);
}

#[test]
fn a_new_store_that_is_cut_off_is_made_by_the_next() {
    let ground = Ground::new();
    ground.place.write("tree/file", "content");
    let arguments = ["add", "tree"];
    let expected = ground.place.srp(&arguments).succeeded().stdout;
    for at in 0..rounds() {
        remove(&ground.place.store());
        if cut::run(&ground.place.command(&arguments), at) != Ended::Killed {
            assert!(at > 3, "nothing was cut off");
            return;
        }
        let run = ground.place.srp(&arguments).succeeded();
        assert_eq!(run.stdout, expected);
        ground.assert_sound(&format!("cut off at call {at}"));
    }
}

#[test]
fn builds_that_are_cut_off_are_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.realise("t.x.seed");
    ground.keep("seed");
    ground.cut("seed", &["realise", "t.x"]);
    ground.place.srp(&["realise", "t.x"]).succeeded();
    ground.place.define(&COMPONENTS.replace("echo dep", "echo other"));
    ground.place.srp(&["realise", "t.x"]).succeeded();
    ground.place.assert_tidy();
}

#[test]
fn an_import_that_is_cut_off_is_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.write("tree/file", "content");
    ground.place.srp(&["add", "tree"]).succeeded();
    ground.keep("empty");
    ground.place.realise("t.x");
    let export = ground.place.path("export.srp");
    ground.place.srp(&["export", "t.x", "--output", export.to_str().unwrap()]).succeeded();
    ground.cut("empty", &["import", "export.srp", "--trusted-unsigned"]);
}

#[test]
fn a_substitution_that_is_cut_off_is_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.write("tree/file", "content");
    ground.place.srp(&["add", "tree"]).succeeded();
    ground.keep("empty");
    ground.place.realise("t.x");
    let cache = ground.place.path("cache");
    let url = cache.to_str().unwrap();
    ground.place.srp(&["cache", "push", "t.x", "--to", url, "--unsigned"]).succeeded();
    let config = ground.place.path("home/.config/srp/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[[caches]]\nurl = '{url}'\ntrusted_unsigned = true\n"))
        .unwrap();
    ground.cut("empty", &["realise", "t.x", "--no-build"]);
}

#[test]
fn a_collection_that_is_cut_off_is_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.realise("t.x");
    ground.place.realise("t.x.dep");
    ground.place.srp(&["root", "remove", "t.x"]).succeeded();
    ground.keep("garbage");
    ground.cut("garbage", &["store", "gc", "--older-than", "0s", "--quiet"]);
    let left = support::place::list(&ground.place.store().join("trash"));
    assert!(left.is_empty(), "{left:?}");
    let objects = support::place::list(&ground.place.store().join("info"));
    assert_eq!(objects.len(), 1, "{objects:?}");
}

/// What is in a cache is signed, or named by its digest: reading all of it is `srp cache verify`.
#[test]
fn a_publication_that_is_cut_off_is_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.realise("t.x");
    ground.keep("full");
    let cache = ground.place.path("cache");
    let url = cache.to_str().unwrap();
    let push = ["cache", "push", "t.x", "--to", url, "--unsigned"];
    let Ended::Exited { code: 0, calls } = cut::run(&ground.place.command(&push), usize::MAX)
    else {
        panic!("it can't be traced")
    };
    let step = calls.div_ceil(rounds());
    for at in (seed() as usize % step..calls).step_by(step) {
        fs::remove_dir_all(&cache).unwrap();
        cut::run(&ground.place.command(&push), at);
        ground.place.srp(&push).succeeded();
        ground.place.srp(&["cache", "verify", url]).succeeded();
        let staged = support::place::list(&cache.join(".staging"));
        assert!(staged.is_empty(), "{staged:?} stays when cut off at call {at}");
    }
    ground.assert_sound("published");
}

#[test]
fn what_is_killed_at_random_is_finished_by_the_next() {
    let ground = Ground::new();
    ground.place.realise("t.x.seed");
    ground.keep("seed");
    let arguments = ["realise", "t.x"];
    let began = Instant::now();
    let expected = ground.place.srp(&arguments).succeeded().stdout;
    let took = began.elapsed();
    let mut random = seed();
    for round in 0..rounds() {
        ground.begin("seed");
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = took.mul_f64((random >> 33) as f64 / (1_u64 << 31) as f64);
        kill_after(&mut ground.place.command(&arguments), after);
        ground.assert_goes_on(
            &format!("round {round}, killed after {after:?}"),
            &arguments,
            &expected,
        );
    }
}

fn kill_after(command: &mut Command, time: Duration) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(time);
    // It may be done already.
    let _ = child.kill();
    child.wait().unwrap();
}

/// Repeated by `SRP_CRASH_SEED`.
fn seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SRP_CRASH_SEED").map_or_else(|_| now(), |it| it.parse().unwrap());
        println!("SRP_CRASH_SEED={seed}");
        seed
    })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn remove(path: &Path) {
    if path.exists() {
        run(Command::new("chmod").args(["-R", "u+rwX"]).arg(path));
        fs::remove_dir_all(path).unwrap();
    }
}

fn run(command: &mut Command) {
    let run = Run::of(command);
    assert_eq!(run.code, Some(0), "{run}");
}
