//! Machines that lack something: each says what, and what to do about it, and builds nothing.

use std::collections::BTreeMap;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::support::host::skipped;
use crate::support::{Place, Run};

const ONE: &str = "return {\"\": sh(\"one\", \"echo 1 > $out/usr/one\")}";

#[test]
fn without_user_namespaces_nothing_is_built_and_the_switch_is_named() {
    let place = Place::new(ONE);
    // In a user namespace of its own, whose limit only counts for what is made below it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces || exit 77; exec \"$@\"";
    let run = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        place.surround(&mut command).args(["-Ur", "sh", "-c", script, "sh"]);
        Run::of(command.arg(env!("CARGO_BIN_EXE_srp")).args(arguments))
    };
    let refused = run(&["realise", "t.x"]);
    if refused.code == Some(77) || refused.stderr.contains("unshare failed") {
        skipped("a host without user namespaces", "there is none to take them away in");
        return;
    }
    let fix = "user namespaces are switched off: `sysctl user.max_user_namespaces=15000`";
    refused.exited(3).says(&["failed: applets: ", fix, "hint: srp doctor shows"]);
    place.assert_tidy();
    let doctor = run(&["doctor"]).exited(1).says(&["this machine can't build as it is"]);
    let missing = "missing  user and PID namespaces, needed for every build";
    assert!(doctor.stdout.contains(missing) && doctor.stdout.contains(fix), "{doctor}");
}

#[test]
fn a_kernel_older_than_what_builds_need_is_refused_with_the_version_that_does() {
    let place = Place::new(ONE);
    let run = |arguments: &[&str]| old_kernel(place.command(arguments));
    let fix = "Linux 5.12 is needed";
    run(&["realise", "t.x"]).exited(3).says(&["failed: applets: ", fix]);
    place.assert_tidy();
    let doctor = run(&["doctor"]).exited(1);
    let missing = "missing  mount_setattr (Linux 5.12), needed for every build";
    assert!(doctor.stdout.contains(missing) && doctor.stdout.contains(fix), "{doctor}");
}

/// Runs a command as Linux 5.11 would: there is no `mount_setattr`.
fn old_kernel(mut command: Command) -> Run {
    const MOUNT_SETATTR: i64 = 442; // on every architecture
    let absent = SeccompAction::Errno(nix::libc::ENOSYS.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = BTreeMap::from([(MOUNT_SETATTR, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    // The filter is of one thread, and of what that thread starts.
    let filtered = std::thread::spawn(move || {
        seccompiler::apply_filter(&filter).unwrap();
        Run::of(&mut command)
    });
    filtered.join().unwrap()
}

#[test]
fn a_processor_below_the_baseline_is_refused_by_what_it_lacks() {
    let place = Place::new(
        "return {\"\": sh(\"modern\", \"echo 1 > $out/usr/x\", cpu_features = [\"time_travel\"])}",
    );
    place.srp(&["realise", "t.x"]).exited(3).says(&[
        "failed: modern: its builder needs a processor with time_travel, which this machine's lacks",
    ]);
    place.assert_tidy();
    // It is advice, no part of what it makes: once the builder no longer needs it, it builds here.
    assert_eq!(place.planned("t.x"), ["modern"]);
    place.define("return {\"\": sh(\"modern\", \"echo 1 > $out/usr/x\")}");
    place.realise("t.x");
}
