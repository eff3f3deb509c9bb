//! Runs a list of tests several times, each time from another situation: as the user who started
//! it, and, started by root, as an unprivileged user and in a container.
//!
//! A container here is what its sandboxes and locks notice of one: a PID namespace of its own, with
//! a `/proc` of its own. The closing line of each run is libtest's, so that whoever reads test
//! results can read these. Programs with this `main` stand alone: two test programs share the file.

#![allow(dead_code)] // each of the two uses a part

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

/// The user as whom root repeats the tests.
pub(crate) const NOBODY: u32 = 65_534;

/// Names the situation to the program that is started for it.
const VARIABLE: &str = "SRP_TEST_SITUATION";

/// How many tests run at the same time.
const THREADS: usize = 4;

/// A test: its name, and what panics if it fails.
pub(crate) type Test = (&'static str, fn());

/// Tests of one kind, such as attacks through archives.
pub(crate) type Kind = (&'static str, &'static [Test]);

/// Lists functions as tests under their own names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        &[$((stringify!($test), $test as fn())),*]
    };
}
pub(crate) use tests;

/// From where the tests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Situation {
    /// As the machine's root.
    Root,
    /// As a user without privileges.
    User,
    /// As root in a PID namespace with a `/proc` of its own.
    Container,
}

impl Situation {
    /// The one that this process is in.
    pub(crate) fn current() -> Situation {
        match std::env::var(VARIABLE).as_deref() {
            Ok("container") => Situation::Container,
            _ if geteuid().is_root() => Situation::Root,
            _ => Situation::User,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Situation::Root => "root",
            Situation::User => "user",
            Situation::Container => "container",
        }
    }
}

/// Runs the tests whose names, `kind::name`, contain one of the arguments (all, without any); whether all passed.
pub(crate) fn run(kinds: &[Kind], arguments: &[String]) -> bool {
    let filters: Vec<&String> = arguments.iter().filter(|text| !text.starts_with('-')).collect();
    let wanted = |kind: &str, name: &str| {
        let whole = format!("{kind}::{name}");
        filters.is_empty() || filters.iter().any(|filter| whole.contains(*filter))
    };
    let named = |&(kind, tests): &Kind| {
        tests.iter().map(move |&(name, test)| (kind, name, test)).collect::<Vec<_>>()
    };
    let all: Vec<_> = kinds.iter().flat_map(named).collect();
    let total = all.len();
    let tests: Vec<_> = all.into_iter().filter(|(kind, name, _)| wanted(kind, name)).collect();
    if arguments.iter().any(|text| text == "--list") {
        tests.iter().for_each(|(kind, name, _)| println!("{kind}::{name}: test"));
        return true;
    }
    let situation = Situation::current().name();
    let began = Instant::now();
    println!("\nrunning {} tests as {situation}", tests.len());
    let results = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((kind, name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let started = Instant::now();
                    let passed = std::panic::catch_unwind(test).is_ok();
                    let verdict = if passed { "ok" } else { "FAILED" };
                    println!("test {kind}::{name} ... {verdict}{}", time(started.elapsed()));
                    results.lock().expect("no holder panics").push((*kind, *name, passed));
                }
            });
        }
    });
    let results = results.into_inner().expect("no holder panics");
    println!("\nby kind, as {situation}:");
    for (kind, _) in kinds {
        let verdicts = results.iter().filter(|(of, ..)| of == kind).map(|(.., passed)| *passed);
        let (passed, failed): (Vec<bool>, Vec<bool>) = verdicts.partition(|passed| *passed);
        if passed.len() + failed.len() > 0 {
            println!("  {kind}: {} passed, {} failed", passed.len(), failed.len());
        }
    }
    let failed: Vec<_> =
        results.iter().filter(|(.., passed)| !passed).map(|(_, name, _)| name).collect();
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        results.len() - failed.len(),
        failed.len(),
        total - tests.len(),
        began.elapsed().as_secs_f64()
    );
    println!("these were the tests as {situation}; failed: {failed:?}\n");
    failed.is_empty()
}

/// Said of tests that take long.
fn time(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..=9 => String::new(),
        seconds => format!(" ({seconds} s)"),
    }
}

/// Runs `program` once more as an unprivileged user, who has to be able to reach it; whether all
/// passed there.
pub(crate) fn repeat_as_nobody(program: &Path, arguments: &[String], home: &[Variable]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    succeeds(command.envs(home.iter().cloned()))
}

/// Runs `program` once more in a container. Its process 1 is a shell, as in many.
pub(crate) fn repeat_in_container(program: &Path, arguments: &[String]) -> bool {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
    command.args(["\"$@\"; exit $?", "sh"]).arg(program).args(arguments);
    succeeds(command.env(VARIABLE, "container"))
}

/// A variable of the environment and its value.
pub(crate) type Variable = (&'static str, std::path::PathBuf);

fn succeeds(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("can't start {:?}: {error}", command.get_program());
            false
        }
    }
}

/// What a test program's `main` returns.
pub(crate) fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
