//! The same view inside: as root, as a user, in another store, on another file system.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;

use super::fixture::{Copy, Fixture, busybox};
use super::harness::NOBODY;
use super::harness::Test;

pub(crate) const TESTS: &[Test] = &[("every_path_looks_the_same", every_path_looks_the_same)];

/// Prints what a build sees of every path: type, mode, owner, link count and time. Outside `/proc`;
/// devices' times are the host's.
pub(crate) fn print(directory: &Path) {
    let fixture = Fixture::at(directory);
    let mut plan = fixture.plan(
        "find / -path /proc -prune -o -exec stat -c '%n %F %a %u:%g %h %Y' {} + | sort | \
         sed 's/\\(character special file.* \\)[0-9]*$/\\1-/'",
    );
    plan.sysroot = vec![fixture.directory.join("other"), fixture.directory.join("busybox")];
    let (outcome, log) = fixture.run(&plan).unwrap();
    print!("{log}{:?}", outcome.status);
}

fn every_path_looks_the_same() {
    let copy = Copy::of_this_program();
    let busybox = copy.add("busybox", &busybox());
    let mut views: Vec<(String, String)> = Vec::new();
    let users: &[Option<u32>] = match geteuid().is_root() {
        true => &[None, Some(NOBODY)],
        false => {
            super::skipped("comparing root's view", "this is no root");
            &[None]
        }
    };
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        for user in users {
            let directory = tempfile::tempdir_in(&place).unwrap();
            let mut command = Command::new(copy.program());
            command.arg("view").arg(directory.path()).env("SRP_TEST_BUSYBOX", &busybox);
            if let Some(user) = user {
                chown(directory.path(), Some(*user), Some(*user)).unwrap();
                command.uid(*user).gid(*user);
            }
            let output = command.output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{errors}");
            let view = String::from_utf8(output.stdout).unwrap();
            assert!(view.ends_with("Exited(0)"), "{view}{errors}");
            assert!(view.lines().count() > 250, "{view}");
            views.push((format!("{} as {user:?}", place.display()), view));
            let _ = fs::remove_dir_all(directory);
        }
    }
    let (first_name, first) = &views[0];
    for (name, view) in &views[1..] {
        for (expected, found) in first.lines().zip(view.lines()) {
            assert_eq!(expected, found, "{first_name} against {name}");
        }
        assert_eq!(first, view, "{first_name} against {name}");
    }
}
