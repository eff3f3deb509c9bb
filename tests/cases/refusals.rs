//! Bad definitions, bad stores, bad requests: each an error that a user can act on.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::host::{NOBODY, as_nobody, give, is_root, skipped};
use crate::support::{Place, Run, place};

const ONE: &str = "return {\"\": sh(\"one\", \"echo 1 > $out/usr/one\")}";

#[test]
fn unknown_attributes_suggest_the_nearest() {
    let place = Place::new("return {\"\": busybox, \"library\": busybox}");
    for (asked, answer) in [
        ("t.x.libary", "t.x has no component \"libary\""),
        ("t.y", "there is no target \"y\" of the stage t"),
        ("u.x", "there is no stage for \"u.x\""),
        ("t", "names no target"),
        ("", "there is no stage for \"\""),
    ] {
        place.srp(&["realise", asked]).exited(1).says(&[answer]);
    }
    place.srp(&["realise", "t.x.libary"]).exited(1).says(&["library", "srp list shows"]);
    place.srp(&["realise", "/no/such/path"]).exited(1).says(&["is not a store path"]);
    place.srp(&["realise"]).exited(2);
    place.srp(&["relaise", "t.x"]).exited(2).says(&["realise"]);
}

#[test]
fn a_runner_that_no_sandbox_can_use_is_refused_before_anything_is_built() {
    let place = Place::new("return {\"\": busybox}");
    let main = fs::read_to_string(place.path("derivations/main.star")).unwrap();
    for arch in ["ppc64le", "armv7l"] {
        let runner =
            "struct(derivation = busybox, program = \"/usr/bin/q\", cpu = \"c\", uname = \"6\")";
        let text = format!("{main}\ndef runners(build):\n    return {{\"{arch}\": {runner}}}\n");
        place.write("derivations/main.star", &text);
        for command in
            [["realise", "t.x"].as_slice(), &["realise", "-n", "t.x"], &["instantiate", "t.x"]]
        {
            let known = "no sandbox can run (known: x86_64, i386, aarch64, arm, riscv64)";
            place.srp(command).exited(1).says(&["runners", arch, known]);
        }
    }
}

#[test]
fn malformed_definitions_name_file_and_line() {
    let place = Place::new("x = 1 +\nreturn {}");
    place.srp(&["realise", "t.x"]).exited(1).says(&["main.star:4"]);
    place.define("return {\"\": sh(\"a\", nothing)}");
    place.srp(&["realise", "t.x"]).exited(1).says(&["main.star:4", "nothing"]);
    place.define("return {\"\": sh(\"bad name/\", \"\")}");
    place.srp(&["realise", "t.x"]).exited(1).says(&["seed.star:", "main.star:4", "bad name/"]);
    place.define("return {\"\": sh(\"a\", \"\", colour = 1)}");
    place.srp(&["realise", "t.x"]).exited(1).says(&["sh has no argument `colour`", "main.star:4"]);
    place.write("derivations/main.star", "stages = {}");
    place.srp(&["list"]).exited(1).says(&["main.star", "targets"]);
    fs::remove_file(place.path("derivations/main.star")).unwrap();
    place.srp(&["list"]).exited(1).says(&["main.star"]);
}

#[test]
fn loads_in_a_circle_are_refused() {
    let place = Place::new("return {}");
    place.write("derivations/main.star", "load(\"//a.star\", \"x\")\nstages = {}\ntargets = {}");
    place.write("derivations/a.star", "load(\"//b.star\", \"x\")");
    place.write("derivations/b.star", "load(\"//a.star\", \"x\")");
    place.srp(&["realise", "t.x"]).exited(1).says(&["a.star", "b.star"]);
}

#[test]
fn definitions_cannot_run_away() {
    let place = Place::new("for i in range(1000000000):\n    pass\nreturn {}");
    place.srp(&["realise", "t.x"]).exited(1).says(&["main.star"]);
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let place = Place::new(ONE);
    place.realise("t.x");
    place.write("store/meta", "srp store\nformat 99\n");
    place.srp(&["realise", "t.x"]).exited(1).says(&["has format 99, and this srp knows format 2"]);
    place.write("store/meta", "srp store\nformat 2\nfeature time-travel\n");
    place.srp(&["realise", "t.x"]).exited(1).says(&["time-travel"]);
    place.write("store/meta", "");
    place.srp(&["realise", "t.x"]).exited(1).says(&["has a damaged `meta`"]);
}

#[test]
fn what_is_no_store_is_left_alone() {
    let place = Place::new(ONE);
    place.write("store/letter.txt", "dear diary");
    place.srp(&["realise", "t.x"]).exited(1).says(&["is not a store", "--store DIR"]);
    assert_eq!(place::list(&place.store()).len(), 1);
}

#[test]
fn a_truncated_record_is_named() {
    let place = Place::new(ONE);
    let path = place.realise("t.x");
    let id = path.file_name().unwrap().to_str().unwrap()[..32].to_owned();
    let info = place::list(&place.store().join("info"))
        .into_iter()
        .find(|record| record.to_str().unwrap().contains(&id))
        .unwrap();
    let bytes = fs::read(&info).unwrap();
    fs::remove_file(&info).unwrap();
    fs::write(&info, &bytes[..bytes.len() / 2]).unwrap();
    let run = place.srp(&["closure", path.to_str().unwrap()]).exited(4);
    run.says(&["is damaged", info.to_str().unwrap()]);
    let flipped: Vec<u8> =
        bytes.iter().enumerate().map(|(i, byte)| if i == 20 { byte ^ 1 } else { *byte }).collect();
    fs::write(&info, flipped).unwrap();
    place.srp(&["closure", path.to_str().unwrap()]).exited(4).says(&["is damaged"]);
}

#[test]
fn the_store_of_another_user_can_be_read_and_not_changed() {
    if !is_root() {
        skipped("a store of another user", "only root can make one");
        return;
    }
    let place = Place::new(ONE);
    let path = place.realise("t.x");
    give(&place.store(), NOBODY);
    place.srp(&["realise", "t.x"]).exited(1).says(&["belongs to user 65534", "--store DIR"]);
    let closure = place.srp(&["closure", path.to_str().unwrap()]).succeeded().stdout;
    assert_eq!(closure.lines().next(), path.to_str());
}

#[test]
fn a_read_only_store_can_be_read() {
    let place = Place::new(ONE);
    place.open_to_all();
    let path = place.realise("t.x");
    let read_only = fs::Permissions::from_mode(0o555);
    fs::set_permissions(place.store(), read_only.clone()).unwrap();
    for name in ["objects", "tmp", "locks", "derivations", "roots", "sources", "eval", "info"] {
        fs::set_permissions(place.store().join(name), read_only.clone()).unwrap();
    }
    // What root may write to whatever its mode is, nobody may not.
    let program = place.path("srp");
    fs::copy(env!("CARGO_BIN_EXE_srp"), &program).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        place.surround(&mut command).args(arguments);
        if is_root() {
            as_nobody(&mut command);
        }
        Run::of(&mut command)
    };
    if is_root() {
        give(&place.store(), NOBODY);
    }
    assert_eq!(run(&["closure", path.to_str().unwrap()]).succeeded().stdout.lines().count(), 1);
    place.define("return {\"\": sh(\"two\", \"echo 2 > $out/usr/two\")}");
    let refused = run(&["realise", "t.x"]);
    assert!(matches!(refused.code, Some(1 | 3)), "{refused}");
    assert!(refused.stderr.contains("ermission denied"), "{refused}");
    for path in place::list(&place.store()) {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_full_disk_is_an_error_and_breaks_nothing() {
    let place = Place::new(
        "return {\"\": sh(\"big\", \"dd if=/dev/zero of=$out/usr/big bs=1M count=64\"), \
         \"small\": sh(\"small\", \"echo 1 > $out/usr/small\")}",
    );
    fs::create_dir(place.store()).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=24m,mode=755 none '{store}' || exit 77\n\
         '{srp}' realise t.x.small || exit 78\n\
         '{srp}' realise t.x; code=$?\n\
         '{srp}' realise t.x.small || exit 79\n\
         ls -A '{store}/tmp'\n\
         exit $code",
        store = place.store().display(),
        srp = env!("CARGO_BIN_EXE_srp")
    );
    let mut command = std::process::Command::new("unshare");
    let mounting = if is_root() { "-m" } else { "-Urm" };
    let run = Run::of(place.surround(command.args([mounting, "sh", "-c", &script])));
    if run.code == Some(77) || run.stderr.contains("unshare failed") {
        skipped("a full disk", "no file system can be mounted here");
        return;
    }
    let run = run.exited(3).says(&["failed: big", "No space left on device"]);
    assert_eq!(run.stdout.lines().count(), 2, "only store paths, and an empty tmp/\n{run}");
}

#[test]
fn a_rootfs_needs_an_empty_directory() {
    let place = Place::new(ONE);
    place.write("root/precious", "do not touch");
    let root = place.path("root");
    let run = place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).exited(1);
    run.says(&["exists and is not an empty directory"]);
    assert_eq!(place::list(&root).len(), 1);
    place.srp(&["realise", "t.x", "t.x", "--rootfs", "other"]).exited(2);
    assert!(!place.path("other").exists());
}
