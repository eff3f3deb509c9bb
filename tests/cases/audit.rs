//! `srp audit` as a command: what it says, keeps, remembers and refuses, and how it ends.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::host::{is_root, mark, skipped};
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run, place};

/// The audits of a run by name.
pub(crate) fn audits(run: &Run) -> BTreeMap<String, Value> {
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run}"));
    assert_eq!(answer["format"], 1);
    let audits = answer["audits"].as_array().unwrap().iter();
    audits.map(|it| (it["name"].as_str().unwrap().to_owned(), it.clone())).collect()
}

pub(crate) fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

#[test]
fn costs_are_told_of_each_dimension() {
    let place = Place::new(
        r#"return {"": sh("slow", "i=$(hostname); [ $i = srp ] || sleep 2; sleep 1; echo > $out/usr/f"),
    "host": sh("host", "hostname > $out/usr/f")}"#,
    );
    place.realise("t.x");
    let vary = ["--costs", "--vary", "hostname,user", "--json"];
    let run = place.srp(&[&["audit", "t.x"], &vary[..]].concat()).succeeded();
    let audit = &audits(&run)["slow"];
    let rounds = audit["rounds"].as_array().unwrap();
    let varied: Vec<_> = rounds.iter().map(|round| texts(&round["varied"])).collect();
    let expected: [&[&str]; 5] = [&["hostname", "user"], &[], &["hostname"], &["user"], &[]];
    assert_eq!(varied, expected);
    let costs = &audit["costs"];
    let usual = costs["nothing_varied_milliseconds"].as_u64().unwrap();
    assert!(usual >= 1000, "{audit:#}");
    let [hostname, user] = [0, 1].map(|number| &costs["dimensions"][number]);
    assert_eq!([&hostname["dimension"], &user["dimension"]], ["hostname", "user"]);
    let took = hostname["milliseconds"].as_u64().unwrap();
    assert!(took >= 3000, "{audit:#}");
    assert_eq!(hostname["percent"].as_u64().unwrap(), took * 100 / usual);
    assert!(user["milliseconds"].as_u64().unwrap() < took, "{audit:#}");
    let run = place.srp(&["audit", "t.x", "--costs", "--vary", "user", "--again"]).succeeded();
    for part in ["% of it comparing)", "s when nothing is varied", "    user "] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    assert!(!run.stdout.contains("hostname"), "{run}");
    // That it differs is found all the same, and once.
    place.realise("t.x.host");
    let run = place.srp(&[&["audit", "t.x.host"], &vary[..]].concat()).exited(5);
    let audit = &audits(&run)["host"];
    let differences = audit["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1);
    assert_eq!(texts(&differences[0]["when"]), ["hostname"]);
    assert_eq!(audit["costs"]["dimensions"].as_array().unwrap().len(), 2);
}

/// Every file of the store but the index, with its content.
fn content(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        for path in place::list(&directory) {
            let name = path.strip_prefix(store).unwrap().to_str().unwrap().to_owned();
            if ["index", "audits", "eval", "composed"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                directories.push(path.clone());
                found.insert(name, Vec::new());
            } else if !path.is_symlink() {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

const TWO_OUTPUTS: &str = r#"
two = sh("two", "mkdir -p $dev/usr/include; hostname > $dev/usr/include/h; id -u > $out/usr/f; mkdir $out/usr/same; echo same > $out/usr/same/s", outputs = ["out", "dev"])
steady = sh("steady", "echo steady > $out/usr/steady", tools = [two])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [steady])
return {"": root, "two": two, "steady": steady}
"#;

#[test]
fn the_store_is_as_it_was_and_what_differs_is_kept_aside() {
    let place = Place::new(TWO_OUTPUTS);
    place.realise("t.x");
    place.realise("t.x.two");
    // The first audit makes what can be made again: the cached evaluation.
    let run = place.srp(&["audit", "t.x.steady"]).succeeded();
    assert!(run.stdout.starts_with("identical: steady 1 (1 round, "), "{run}");
    let before = content(&place.store());
    let run = place.srp(&["audit", "t.x.two"]).exited(5);
    assert_eq!(content(&place.store()), before);
    place.assert_tidy();
    for part in [
        "differs: two 1 (",
        "differs when: hostname (srp → audit-host)",
        "differs when: user (1000:1000 → 2718:3141 (auditor))",
        "dev:/usr/include/h: 4 bytes, rebuilt 11",
        "-srp",
        "+audit-host",
        "likely cause: the host's name is in the output [host-name]",
        "0 identical, 1 differing",
    ] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    assert!(!run.stdout.contains("/usr/same"), "{run}");
    let kept = run.stdout.lines().find_map(|line| line.trim().strip_prefix("kept: ")).unwrap();
    let kept = Path::new(kept);
    assert!(kept.starts_with(place.store().join("audits")), "{kept:?}");
    assert_eq!(fs::read_to_string(kept.join("dev/usr/include/h")).unwrap(), "audit-host\n");
    // Elsewhere, and of one dimension only.
    let keep = place.path("kept");
    let arguments = ["audit", "t.x.two", "--vary", "user", "--keep", keep.to_str().unwrap()];
    let run = place.srp(&arguments).exited(5);
    assert!(!run.stdout.contains("hostname"), "{run}");
    let kept = place::list(&keep).remove(0).join("user/out/usr/f");
    assert_eq!(fs::read_to_string(kept).unwrap(), "2718\n");
}

#[test]
fn diffoscope_reports_on_what_differs_where_it_is_installed() {
    let place = Place::new(TWO_OUTPUTS);
    place.realise("t.x.two");
    let arguments = ["audit", "t.x.two", "--vary", "hostname,user", "--diffoscope"];
    let run = Run::of(place.command(&arguments).env("PATH", place.path("nowhere"))).exited(1);
    run.says(&["diffoscope is not installed", "diffoscope-minimal"]);
    // One that fails costs nobody the report.
    place.write("bin/diffoscope", "#!/bin/sh\n[ $1 = --version ] || { echo broken >&2; exit 2; }");
    let program = place.path("bin/diffoscope");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = Run::of(place.command(&arguments).env("PATH", place.path("bin"))).exited(5);
    let run = run.says(&["diffoscope failed", "broken", "1 derivation is not reproducible"]);
    assert!(run.stdout.contains("differs: two 1"), "{run}");
    if Command::new("diffoscope").arg("--version").output().is_err() {
        skipped("reports by diffoscope", "it is not installed (Debian: diffoscope-minimal)");
        return;
    }
    let run = place.srp(&arguments).exited(5).says(&["diffoscope compares"]);
    let reports: Vec<&str> =
        run.stdout.lines().filter_map(|line| line.trim().strip_prefix("diffoscope: ")).collect();
    assert_eq!(reports.len(), 4, "{run}");
    assert!(reports[0].ends_with("hostname/dev.diffoscope.txt"), "{run}");
    let text = fs::read_to_string(reports[0]).unwrap();
    assert!(text.contains("usr/include/h") && text.contains("+audit-host"), "{text}");
    assert!(fs::read_to_string(reports[1]).unwrap().contains("usr/include/h"));
    // What it has reported on it doesn't report on again.
    let again = place.srp(&arguments).exited(5);
    assert!(!again.stderr.contains("diffoscope compares"), "{again}");
    assert!(again.stdout.contains(reports[3]), "{again}");
}

#[test]
fn a_full_disk_leaves_the_store_clean_and_says_nothing_of_the_derivation() {
    let place =
        Place::new("return {\"\": sh(\"big\", \"dd if=/dev/zero of=$out/usr/big bs=1M count=8\")}");
    fs::create_dir(place.store()).unwrap();
    let script = "mount -t tmpfs -o size=24m,mode=755 none \"$SRP_ROOT\" || exit 77
        \"$0\" realise t.x || exit 78
        \"$0\" audit t.x || exit 79
        dd if=/dev/zero of=\"$SRP_ROOT/other\" bs=64k 2>/dev/null
        truncate -s -4M \"$SRP_ROOT/other\"
        \"$0\" audit t.x --again; echo full: $?
        ls -A \"$SRP_ROOT/tmp\"
        rm \"$SRP_ROOT/other\"
        \"$0\" audit t.x || exit 80
        ls -A \"$SRP_ROOT/tmp\"";
    let mut command = Command::new("unshare");
    let mounting = if is_root() { "-m" } else { "-Urm" };
    let arguments = [mounting, "sh", "-c", script, env!("CARGO_BIN_EXE_srp")];
    let run = Run::of(place.surround(command.args(arguments)));
    if run.code == Some(77) || run.stderr.contains("unshare failed") {
        return skipped("an audit on a full disk", "no file system can be mounted here");
    }
    let run = run.succeeded();
    assert!(run.stdout.contains("unknown: big 1\n  can't write "), "{run}");
    assert!(run.stdout.contains("No space left on device"), "{run}");
    assert!(run.stdout.contains("\nfull: 1\nidentical: big 1 ("), "{run}");
    assert!(run.stdout.ends_with("\n1 identical, 0 differing\n"), "an empty tmp/: {run}");
}

#[test]
fn what_was_found_is_not_found_out_twice() {
    let place = Place::new(TWO_OUTPUTS);
    for attr in ["t.x", "t.x.two"] {
        place.realise(attr);
    }
    let audit = |arguments: &[&str], name: &str, status: i32| {
        let run = place.srp(&[&["audit", "--json"], arguments].concat()).exited(status);
        audits(&run)[name].clone()
    };
    let is_remembered = |audit: &Value| audit["remembered"].as_bool().unwrap();
    let some = ["t.x.steady", "--vary", "hostname,user"];
    let first = audit(&some, "steady", 0);
    assert!(!is_remembered(&first), "{first:#}");
    let second = audit(&some, "steady", 0);
    assert!(is_remembered(&second), "{second:#}");
    assert_eq!(
        (&first["rounds"], &first["audited_at"]),
        (&second["rounds"], &second["audited_at"])
    );
    let run = place.srp(&[&["audit"], &some[..]].concat()).succeeded();
    assert!(run.stdout.contains(" comparing; found ") && run.stdout.contains(" ago)"), "{run}");
    // Fewer dimensions were varied, too; more were not, and more rounds there were not.
    assert!(is_remembered(&audit(&["t.x.steady", "--vary", "user"], "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--vary", "user,umask"], "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--rounds", "2"], "steady", 0)));
    assert!(is_remembered(&audit(&some, "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--again"], "steady", 0)));
    // What differs is, too, as long as there is something to look at.
    let differing = audit(&["t.x.two"], "two", 5);
    assert!(!is_remembered(&differing));
    let again = audit(&["t.x.two"], "two", 5);
    assert!(is_remembered(&again));
    assert_eq!(differing["differences"], again["differences"]);
    let kept = Path::new(again["differences"][0]["kept"].as_str().unwrap()).to_owned();
    fs::rename(&kept, kept.with_extension("elsewhere")).unwrap();
    assert!(!is_remembered(&audit(&["t.x.two"], "two", 5)));
    assert!(kept.exists());
    // It may do so because of what isn't to be varied now.
    assert!(!is_remembered(&audit(&["t.x.two", "--vary", "umask"], "two", 0)));
    // What was rebuilt then can be signed now.
    place.srp(&["key", "generate", "builder-1"]).succeeded();
    assert!(!place.store().join("rebuilt").exists());
    assert!(is_remembered(&audit(&["t.x.steady", "--sign"], "steady", 0)));
    assert!(!place::list(&place.store().join("rebuilt")).is_empty());
    // A file that holds nothing of use is no obstacle.
    for path in place::list(&place.store().join("audits")) {
        if path.extension() == Some("json".as_ref()) {
            fs::write(path, "{\"format\": 1").unwrap();
        }
    }
    assert!(!is_remembered(&audit(&some, "steady", 0)));
    assert!(is_remembered(&audit(&some, "steady", 0)));
}

#[test]
fn what_is_not_built_is_said_so() {
    let place = Place::new(TWO_OUTPUTS);
    place.srp(&["audit", "t.x"]).exited(1).says(&["there is no store"]);
    place.realise("t.x.two");
    let run = place.srp(&["audit", "t.x.steady"]).exited(1).says(&["could not be audited"]);
    assert!(run.stdout.contains("unknown: steady 1\n  it is not realised"), "{run}");
    place.realise("t.x");
    let run = place.srp(&["audit", "t.x"]).succeeded().says(&["--closure"]);
    assert!(run.stdout.contains("1 not audited"), "{run}");
    let mut run = place.srp(&["audit", "--closure", "t.x", "--json"]);
    if audits(&run)["applets"]["status"] == "unknown" {
        // The machine failed, not the build (other tests use up its memory): what is known stays.
        eprintln!("tried again: {}", audits(&run)["applets"]);
        run = place.srp(&["audit", "--closure", "t.x", "--json"]);
    }
    let audits = audits(&run.exited(5));
    let status = |name: &str| audits[name]["status"].as_str().unwrap();
    assert_eq!(["root", "busybox-static"].map(status), ["not-audited"; 2]);
    assert_eq!(["applets", "steady"].map(status), ["identical"; 2]);
    assert_eq!(status("two"), "differs");
    place.srp(&["audit", "t.x", "--vary", "moon"]).exited(2).says(&["moon", "build-path"]);
}

#[test]
fn a_rebuild_that_fails_is_a_difference_with_a_dimension() {
    let place = Place::new(
        r#"return {"": sh("here", "echo looking around; [ $(pwd | wc -c) = 11 ] || exit 3; echo > $out/usr/f"),
    "both": sh("both", "if [ $(hostname) != srp ] && [ $(id -u) != 1000 ]; then echo both; else echo no; fi > $out/usr/f")}"#,
    );
    place.realise("t.x");
    let run = place.srp(&["audit", "t.x"]).exited(5);
    for part in ["fails when: build-path", "exited with status 3", "| looking around"] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    place.realise("t.x.both");
    let run = place.srp(&["audit", "t.x.both", "--vary", "hostname,umask,user"]).exited(5);
    assert!(run.stdout.contains("differs when: only together: hostname, user, umask"), "{run}");
}

#[test]
fn a_killed_audit_is_swept_by_the_next() {
    let mark = mark();
    let script = format!("if [ $(hostname) != srp ]; then sleep {mark}; fi; echo > $out/usr/f");
    let place =
        Place::new(&format!("return {{\"\": sh(\"slow\", \"{script}\"), \"seed\": applets}}"));
    place.realise("t.x");
    let start = || {
        let mut command = place.command(&["audit", "t.x"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()));
        child
    };
    let send = |child: &std::process::Child, signal| {
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    };
    let mut killed = start();
    send(&killed, Signal::SIGKILL);
    killed.wait().unwrap();
    assert!(eventually(|| processes_with(&mark).is_empty()));
    assert!(!place::list(&place.store().join("tmp")).is_empty(), "the test tests nothing");
    place.srp(&["audit", "t.x.seed"]).succeeded();
    place.assert_tidy();

    let interrupted = start();
    send(&interrupted, Signal::SIGINT);
    let run = Run::from(interrupted.wait_with_output().unwrap()).exited(130);
    run.says(&["interrupted; the store is as it was"]);
    place.assert_tidy();
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
}
