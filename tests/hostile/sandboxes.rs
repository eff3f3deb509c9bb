//! Builds that attack srp's own processes, or look for the host.

use std::fs;

use crate::harness::{Test, tests};
use crate::support::host::skipped;
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    an_ordinary_build_succeeds,
    nothing_says_where_the_store_is,
    outputs_stay_where_they_are,
    what_is_closed_is_closed_for_everybody,
    init_and_the_order_of_victims_stay,
    no_host_admits_programs_of_another_abi,
    files_of_any_length_end_the_build,
    a_build_that_fills_the_disk_is_stopped,
];

/// Without this, all that is refused here might be refused for another reason.
fn an_ordinary_build_succeeds() {
    let place = Place::new(r#"return {"": sh("fine", "echo > $out/usr/file")}"#);
    let path = place.realise("t.x");
    assert!(path.join("usr/file").is_file());
    place.assert_tidy();
}

/// Runs a script as a builder.
fn build(place: &Place, script: &str) -> Run {
    place.define(&format!("return {{\"\": sh(\"attack\", r\"\"\"{script}\"\"\")}}"));
    place.srp(&["realise", "t.x"])
}

/// The store's place, and numbers that the kernel gives as it goes, in what tells of mounts: a build
/// that keeps them comes out otherwise elsewhere.
fn nothing_says_where_the_store_is() {
    let place = Place::new("return {}");
    let seen = build(
        &place,
        "cat /proc/self/mountinfo /proc/mounts /proc/self/mountstats /proc/1/mountinfo > $out/usr/tables
         cat /proc/self/maps /proc/self/environ /proc/1/cmdline > $out/usr/rest
         for it in root cwd exe fd/0 fd/1 fd/2; do readlink /proc/self/$it; done >> $out/usr/rest
         sed -i s,/srp/,/SRP/,g $out/usr/rest",
    )
    .succeeded();
    let path = std::path::PathBuf::from(seen.stdout.trim_end());
    assert_eq!(fs::read_to_string(path.join("usr/tables")).unwrap(), "");
    let rest = fs::read(path.join("usr/rest")).unwrap();
    let store = place.store();
    assert!(!String::from_utf8_lossy(&rest).contains(store.to_str().unwrap()));
}

/// CVE-2024-45593's kind: what stands at `$out` when the builder has ended is what srp made.
fn outputs_stay_where_they_are() {
    let place = Place::new("return {}");
    for attempt in [
        "rmdir $out/usr; rmdir $out && ln -s / $out",
        "mv $out /srp/out/gone",
        "mv /srp/out /srp/gone",
        "ln -s / /srp/out/dev",
        "mkdir /srp/out/dev",
        "chmod 0 /srp/out",
    ] {
        build(&place, &format!("! {{ {attempt}; }}; mkdir -p $out/usr; echo > $out/usr/x"))
            .succeeded();
    }
    place.assert_tidy();
}

/// What a build does to its own directories has the same end for root and for any other user.
fn what_is_closed_is_closed_for_everybody() {
    let place = Place::new("return {}");
    for closed in ["$out/usr", "$out", "$out/usr $out"] {
        build(&place, &format!("echo > $out/usr/x; chmod 0 {closed}")).succeeded();
    }
    place.assert_tidy();
}

/// Init is the same user's process as the build; and whoever takes the memory is to be killed for it.
fn init_and_the_order_of_victims_stay() {
    let place = Place::new("return {}");
    build(
        &place,
        "! renice -n 19 -p 1
         ! renice -n 19 -u 1000
         ! ionice -c 3 -p 1
         ! taskset -p 1 1
         ! chrt -b -p 0 1
         for it in oom_score_adj oom_adj coredump_filter autogroup; do
             ! echo 0 > /proc/self/$it
             ! echo 0 > /proc/1/$it
         done
         test $(cat /proc/self/oom_score_adj) = 500
         renice -n 5 -p $$
         echo > $out/usr/x",
    )
    .succeeded();
}

/// A triple is what a definition says of itself: it opens no system calls.
fn no_host_admits_programs_of_another_abi() {
    if !cfg!(target_arch = "x86_64") {
        return skipped("32-bit system calls", "the program is x86's");
    }
    // getpid by `int 0x80`, then exit(0) by `syscall`.
    const PROGRAM: &str = r"\177\105\114\106\002\001\001\000\000\000\000\000\000\000\000\000\002\000\076\000\001\000\000\000\170\000\100\000\000\000\000\000\100\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\100\000\070\000\001\000\000\000\000\000\000\000\001\000\000\000\005\000\000\000\000\000\000\000\000\000\000\000\000\000\100\000\000\000\000\000\000\000\100\000\000\000\000\000\210\000\000\000\000\000\000\000\210\000\000\000\000\000\000\000\000\020\000\000\000\000\000\000\270\024\000\000\000\315\200\061\377\270\074\000\000\000\017\005";
    let script = format!(
        "printf '{PROGRAM}' > /tmp/program; chmod +x /tmp/program
         if /tmp/program; then echo admitted; exit 1; fi; echo > $out/usr/x"
    );
    let place = Place::new(&format!(
        "return {{\"\": derivation(name = \"foreign\", version = \"1\", build = TRIPLE,
             host = \"i686-unknown-linux-gnu\", builder = \"/usr/bin/sh\", tools = [applets, busybox],
             args = [\"-euc\", r\"\"\"mkdir -p $out/usr
         {script}\"\"\"])}}"
    ));
    place.srp(&["realise", "t.x"]).succeeded();
    // And where a machine's own programs are, those of another are not.
    place.define(
        "return {\"\": derivation(name = \"foreign\", version = \"1\",
             build = \"i686-unknown-linux-gnu\", host = \"i686-unknown-linux-gnu\",
             builder = \"/usr/bin/sh\", tools = [applets, busybox], args = [\"-c\", \"true\"])}",
    );
    place.srp(&["realise", "t.x"]).exited(3).says(&["which this machine (x86_64) can't run"]);
}

/// Sparse: it takes no disk, but srp would read it to the end.
fn files_of_any_length_end_the_build() {
    let place = Place::new("return {}");
    build(&place, "truncate -s 400G $out/usr/x").exited(3);
    build(&place, "ulimit -f unlimited; truncate -s 400G $out/usr/x").exited(3);
    place.assert_tidy();
}

fn a_build_that_fills_the_disk_is_stopped() {
    let place = Place::new("return {}");
    let config = fs::read_to_string(place.path("home/.config/srp/config.toml")).unwrap();
    place.write("home/.config/srp/config.toml", &format!("disk_mib = 32\n{config}"));
    let write = "dd if=/dev/zero of=/tmp/d/large bs=1M count=256";
    for script in [
        format!("mkdir /tmp/d; {write}; sleep 60"),
        format!("mkdir /tmp/d; {write}; chmod 0 /tmp/d; sleep 60"),
    ] {
        build(&place, &script).exited(3).says(&["disk_mib of the configuration"]);
    }
    place.assert_tidy();
}
