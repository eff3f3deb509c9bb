//! Attacks the sandbox, and checks that it keeps what it promises: real sandboxes, no mocks.
//!
//! This program has its own `main`, because it is also the launcher (`__sandbox`), an srp that gets
//! killed (`run PLAN`), and another user's srp (`view DIR`). As root it runs every test twice: as
//! root, and as an unprivileged user. The programs that run in the sandboxes are the seed's (see
//! `seed.rs`); `SRP_TEST_BUSYBOX`, `SRP_TEST_QEMU_AARCH64` and `SRP_TEST_BUSYBOX_AARCH64` can name
//! others, and hand them to the other user.

#![allow(clippy::unwrap_used)] // a test that can't go on should panic

mod basics;
mod circumstances;
mod escapes;
mod fixture;
mod limits;
mod machine_code;
mod orders;
#[path = "../../../tests/support/processes.rs"]
mod processes;
#[path = "../../../tests/support/seed.rs"]
mod seed;
mod views;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::unistd::geteuid;
use srp_builder::sandbox::launcher_main;

/// The user as whom root repeats the tests.
const NOBODY: u32 = 65_534;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["__sandbox"] => launcher_main(),
        ["run", plan] => fixture::run_plan_file(plan),
        ["view", directory] => views::print(directory.as_ref()),
        _ => return run_tests(&arguments),
    }
    ExitCode::SUCCESS
}

fn run_tests(arguments: &[String]) -> ExitCode {
    let filters: Vec<&String> = arguments.iter().filter(|text| !text.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    let lists: [&[Test]; 6] = [
        basics::TESTS,
        circumstances::TESTS,
        escapes::TESTS,
        limits::TESTS,
        orders::TESTS,
        views::TESTS,
    ];
    let all = lists.concat();
    let tests: Vec<Test> = all.iter().copied().filter(|(name, _)| wanted(name)).collect();
    let filtered = all.len() - tests.len();
    if arguments.iter().any(|text| text == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let user = geteuid();
    let began = std::time::Instant::now();
    println!("\nrunning {} tests", tests.len());
    let failed = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((name, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = std::panic::catch_unwind(test).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    if !passed {
                        failed.lock().unwrap().push(*name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    // The closing line is libtest's, so that whoever reads test results can read these.
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; \
         finished in {:.2}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        tests.len() - failed.len(),
        failed.len(),
        began.elapsed().as_secs_f64()
    );
    println!("these were the sandbox tests as user {user}; failed: {failed:?}\n");
    let others_passed = if user.is_root() { repeat_as_nobody(arguments) } else { true };
    if failed.is_empty() && others_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a copy of this program as an unprivileged user, who may not reach the build directory.
fn repeat_as_nobody(arguments: &[String]) -> bool {
    let copy = fixture::Copy::of_this_program();
    let mut command = Command::new(copy.program());
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    // A busybox must be called by a name that begins so.
    for (variable, name, file) in [
        ("SRP_TEST_BUSYBOX", "busybox", fixture::busybox()),
        ("SRP_TEST_BUSYBOX_AARCH64", "busybox-aarch64", fixture::foreign_busybox()),
        ("SRP_TEST_QEMU_AARCH64", "qemu-aarch64", fixture::qemu()),
    ] {
        command.env(variable, copy.add(name, &file));
    }
    command.status().is_ok_and(|status| status.success())
}

/// Says that a test checks less than it could here, so that nobody believes otherwise.
fn skipped(what: &str, why: &str) {
    println!("SKIPPED: {what}: {why}");
}

/// Makes a file executable.
/// Makes a file that this program wrote one that can be executed. It is copied by another process:
/// a process that another test starts at this moment inherits the descriptor it was written by, and
/// until that one executes its program, the kernel answers ETXTBSY to whoever executes the file.
fn make_executable(path: &std::path::Path) {
    let copy = path.with_extension("copy");
    let copied = std::process::Command::new("cp").args([path, &copy]).status().unwrap();
    assert!(copied.success());
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o555)).unwrap();
    std::fs::rename(copy, path).unwrap();
}
