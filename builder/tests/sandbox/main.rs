//! Attacks the sandbox, and checks that it keeps what it promises: real sandboxes, no mocks.
//!
//! This program has its own `main`, because it is also the launcher (`__sandbox`), an srp that gets
//! killed (`run PLAN`), and another user's srp (`view DIR`). As root it runs every test three times:
//! as root, as an unprivileged user, and in a container. The programs that run in the sandboxes are
//! the seed's (see `seed.rs`); `SRP_TEST_BUSYBOX`, `SRP_TEST_QEMU_AARCH64` and
//! `SRP_TEST_BUSYBOX_AARCH64` can name others, and hand them to the other user.

#![allow(clippy::unwrap_used)] // a test that can't go on should panic

mod basics;
mod circumstances;
mod escapes;
mod fixture;
#[path = "../../../tests/support/harness.rs"]
mod harness;
mod limits;
mod machine_code;
mod orders;
#[path = "../../../tests/support/processes.rs"]
mod processes;
mod program;
#[path = "../../../tests/support/seed.rs"]
mod seed;
mod views;

use std::process::ExitCode;

use harness::{Kind, Situation};
use srp_builder::sandbox::launcher_main;

const KINDS: &[Kind] = &[
    ("basics", basics::TESTS),
    ("circumstances", circumstances::TESTS),
    ("escapes", escapes::TESTS),
    ("limits", limits::TESTS),
    ("orders", orders::TESTS),
    ("program", program::TESTS),
    ("views", views::TESTS),
];

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
    let mut passed = harness::run(KINDS, arguments);
    let listing = arguments.iter().any(|text| text == "--list");
    if Situation::current() == Situation::Root && !listing {
        // The user may not reach the build directory.
        let copy = fixture::Copy::of_this_program();
        // A busybox must be called by a name that begins so.
        let programs = [
            ("SRP_TEST_BUSYBOX", "busybox", fixture::busybox()),
            ("SRP_TEST_BUSYBOX_AARCH64", "busybox-aarch64", fixture::foreign_busybox()),
            ("SRP_TEST_QEMU_AARCH64", "qemu-aarch64", fixture::qemu()),
        ]
        .map(|(variable, name, file)| (variable, copy.add(name, &file)));
        passed &= harness::repeat_as_nobody(&copy.program(), arguments, &programs);
        passed &= harness::repeat_in_container(&copy.program(), arguments);
    }
    harness::exit_code(passed)
}

/// Says that a test checks less than it could here, so that nobody believes otherwise.
fn skipped(what: &str, why: &str) {
    println!("SKIPPED: {what}: {why}");
}

/// Makes a file that this program wrote one that can be executed. It is copied by another process:
/// a process that another test starts at this moment inherits the descriptor it was written by, and
/// until that one executes its program, the kernel answers ETXTBSY to whoever executes the file.
fn make_executable(path: &std::path::Path) {
    let copy = path.with_extension("copy");
    let copied = std::process::Command::new("cp").args([path, &copy]).status().unwrap();
    assert!(copied.success());
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(&copy, executable).unwrap();
    std::fs::rename(copy, path).unwrap();
}
