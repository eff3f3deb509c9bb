//! Sandboxes at the same time, with the same inputs, that look for each other.

use std::fs::{self, OpenOptions};

use nix::libc;
use nix::sys::stat::Mode;
use srp_builder::sandbox::{Bind, SandboxPlan, Status};

use super::fixture::Fixture;
use super::harness::{Test, tests};
use super::machine_code::{Call, DATA, Entry, write_program};
use super::processes::eventually;

pub(crate) const TESTS: &[Test] = tests![locks_are_not_shared, watches_see_no_neighbour];

/// The same file of the store as each kind of input.
const PLACES: &[&str] =
    &["/usr/share/word", "/srp/source/other/usr/share/word", "/srp/sysroot/usr/share/word"];

const SECOND: i32 = DATA + 64;
const THIRD: i32 = DATA + 96;
const BUFFER: i32 = DATA + 256;
const OPEN: Call = (257, [-100, DATA, 0, 0, 0, 0]);
/// Says that it has come so far, and waits until it may go on.
const MEET: [Call; 2] =
    [(257, [-100, SECOND, 0o101, 0o644, 0, 0]), (257, [-100, THIRD, 0, 0, 0, 0])];

/// A plan that makes system calls, with the inputs of `store`.
fn plan(fixture: &Fixture, store: &Fixture, place: &str, calls: &[Call]) -> SandboxPlan {
    let mut data = vec![0; 128];
    for (at, path) in [(0, place), (64, "/srp/build/held"), (96, "/srp/build/go")] {
        data[at..at + path.len()].copy_from_slice(path.as_bytes());
    }
    let program = fixture.directory.join("build/program");
    let _ = fs::remove_file(&program);
    write_program(&program, calls, &data, Entry::Native);
    let mut plan = fixture.plan("");
    plan.command = vec!["/srp/build/program".into()];
    let other = store.directory.join("other");
    plan.layers = vec![other.clone(), store.directory.join("busybox")];
    plan.sysroot = vec![other.clone()];
    let target = "/srp/source/other".to_owned();
    plan.binds.push(Bind { source: other, target, writable: false, directory: true });
    plan
}

/// What a sandbox that stops half-way and one that runs meanwhile end with.
fn meet(place: &str, first: &[Call], then: &[Call], neighbour: &[Call]) -> (Status, Status) {
    let [one, two] = [Fixture::new(), Fixture::new()];
    let go = one.directory.join("build/go");
    nix::unistd::mkfifo(&go, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let calls = [first, &MEET, then].concat();
    let waiting = plan(&one, &one, place, &calls);
    let neighbour = plan(&two, &one, place, neighbour);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| one.run(&waiting).unwrap().0.status);
        let held = one.directory.join("build/held");
        assert!(eventually(|| held.exists() || waiting.is_finished()));
        let neighbour = two.run(&neighbour).unwrap().0.status;
        assert!(!waiting.is_finished(), "{place}: it did not wait");
        drop(OpenOptions::new().write(true).open(&go).unwrap());
        (waiting.join().unwrap(), neighbour)
    })
}

fn locks_are_not_shared() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    let exclusive: Call = (73, [3, libc::LOCK_EX, 0, 0, 0, 0]);
    let at_once: Call = (73, [3, libc::LOCK_EX | libc::LOCK_NB, 0, 0, 0, 0]);
    for place in PLACES {
        let ended = meet(place, &[OPEN, exclusive], &[at_once], &[OPEN, at_once]);
        assert_eq!(ended, (Status::Exited(0), Status::Exited(0)), "{place}");
    }
}

fn watches_see_no_neighbour() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    let watch: [Call; 2] = [
        (294, [libc::IN_NONBLOCK, 0, 0, 0, 0, 0]),
        (254, [3, DATA, libc::IN_ALL_EVENTS as i32, 0, 0, 0]),
    ];
    let look: [Call; 1] = [(0, [3, BUFFER, 256, 0, 0, 0])];
    let read: [Call; 2] = [OPEN, (0, [3, BUFFER, 256, 0, 0, 0])];
    for place in PLACES {
        let ended = meet(place, &watch, &look, &read);
        assert_eq!(ended, (Status::Exited(libc::EAGAIN), Status::Exited(0)), "{place}");
        // What it does itself, it sees: there would be something to see.
        let own = [OPEN, look[0]];
        let ended = meet(place, &watch, &own, &read);
        assert_eq!(ended, (Status::Exited(0), Status::Exited(0)), "{place}");
    }
}
