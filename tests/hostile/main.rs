//! Attacks a running srp: hostile builders, archives, definitions, roots, peers and surroundings.
//!
//! Each module is a kind of attack; each test is made as root, as an unprivileged user, and in a
//! container (a PID namespace of its own). The attacks on the sandbox alone, below srp, are in
//! `builder/tests/sandbox/`. What can't be tried in a situation says so loudly.

#![allow(clippy::unwrap_used)] // a test that can't go on should panic

#[path = "../support/harness.rs"]
mod harness;
#[path = "../crash/sound.rs"]
mod sound;
#[path = "../support/mod.rs"]
mod support;

mod archives;
mod definitions;
mod inheritance;
mod manifests;
mod messages;
mod neighbours;
mod outputs;
mod rootfs;
mod sandboxes;
mod serving;
mod shells;
mod stores;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use harness::{Kind, NOBODY, Situation};
use support::{host, seed};

const KINDS: &[Kind] = &[
    ("archives", archives::TESTS),
    ("definitions", definitions::TESTS),
    ("inheritance", inheritance::TESTS),
    ("manifests", manifests::TESTS),
    ("messages", messages::TESTS),
    ("neighbours", neighbours::TESTS),
    ("outputs", outputs::TESTS),
    ("rootfs", rootfs::TESTS),
    ("sandboxes", sandboxes::TESTS),
    ("serving", serving::TESTS),
    ("shells", shells::TESTS),
    ("stores", stores::TESTS),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut passed = harness::run(KINDS, &arguments);
    let listing = arguments.iter().any(|text| text == "--list");
    if Situation::current() == Situation::Root && !listing {
        // The user may not reach the build directory: everything that the tests need is copied.
        let home = tempfile::tempdir().unwrap();
        let program = furnish(home.path());
        passed &= harness::repeat_as_nobody(
            &program,
            &arguments,
            &[(seed::HOME, home.path().to_owned())],
        );
        passed &= harness::repeat_in_container(&std::env::current_exe().unwrap(), &arguments);
    }
    harness::exit_code(passed)
}

/// Copies this program, srp, and the tests' seed; this program's copy.
fn furnish(home: &Path) -> std::path::PathBuf {
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(home, executable.clone()).unwrap();
    let program = home.join("hostile");
    for (from, to) in [
        (std::env::current_exe().unwrap(), program.clone()),
        (support::program(), home.join("srp")),
    ] {
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, executable.clone()).unwrap();
    }
    let package = seed::package(std::env::consts::ARCH, "busybox-static");
    let file = format!("{}-{}", package.sha256, package.name);
    let sources = seed::sources(&package);
    let lock = Path::new(seed::LOCK);
    for (from, to) in [
        (sources.join(&file), home.join("seed/sources").join(&file)),
        (seed::repository().join(lock), home.join(lock)),
    ] {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
    host::give(home, NOBODY);
    program
}
