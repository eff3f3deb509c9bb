//! Outputs that lead srp elsewhere, or that have no end.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Test, tests};
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    an_output_that_is_a_link_leads_nowhere,
    an_output_that_is_a_link_to_another_tree_damages_no_object,
    a_link_in_an_audits_round_leads_nowhere,
    an_output_stays_a_directory,
    closed_outputs_are_opened_again,
    directories_nested_without_end_are_an_error,
    an_output_larger_than_it_may_be_is_refused_before_it_is_read,
    an_output_of_too_many_files_is_refused,
    hashing_ends_when_it_is_interrupted,
    holes_stay_holes,
    memory_grows_no_faster_than_entries,
];

/// A directory that a hostile output would have srp normalise, and how it looks.
fn bait(place: &Place) -> (String, String) {
    place.write("bait/.ssh/id", "secret");
    place.write("bait/proj/__pycache__/a.pyc", "compiled");
    place.write("bait/usr/lib/libx.la", "libtool");
    symlink("/usr/bin", place.path("bait/link")).unwrap();
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(place.path("bait/.ssh/id"), private).unwrap();
    let bait = place.path("bait");
    (bait.display().to_string(), picture(&bait))
}

/// Everything below a directory with modes, times and links: what a change would change.
fn picture(top: &Path) -> String {
    let mut text = String::new();
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let link = fs::read_link(&path).unwrap_or_default();
        let (mode, time) = (metadata.mode(), metadata.mtime_nsec());
        text += &format!("{path:?} {mode:o} {}.{time} {link:?}\n", metadata.mtime());
        if metadata.is_dir() {
            let mut below: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            pending.extend(below);
        }
    }
    text
}

fn an_output_that_is_a_link_leads_nowhere() {
    let place = Place::new("");
    let (bait, before) = bait(&place);
    place.define(&format!(
        "return {{\n\
         \"out\": sh(\"out\", \"rm -r $out; ln -s {bait} $out\"),\n\
         \"dev\": sh(\"dev\", \"echo a > $out/usr/a; rmdir $dev; ln -s {bait} $dev\", \
         outputs = [\"out\", \"dev\"]),\n\
         }}"
    ));
    for name in ["out", "dev"] {
        // A mount can't be replaced. What would take in a link refuses it, too (store/src/ingest.rs).
        let run = place.srp(&["realise", &format!("t.x.{name}")]).exited(3);
        run.says(&[
            &format!("'/srp/out/{name}': Read-only file system"),
            &format!("hint: its output {name} is a directory already (${name}), and must be one"),
        ]);
        assert_eq!(picture(Path::new(&bait)), before);
    }
    place.assert_tidy();
}

fn an_output_that_is_a_link_to_another_tree_damages_no_object() {
    let place =
        Place::new("return {\"\": sh(\"good\", \"echo a > $out/usr/a; ln -s a $out/usr/b\")}");
    let object = fs::canonicalize(place.realise("t.x")).unwrap();
    // As long as srp keeps what it works on below the store, this is the way from there.
    let digest = object.file_name().unwrap().to_str().unwrap();
    let before = picture(&object);
    for up in ["../..", "../../..", "../../../.."] {
        place.define(&format!(
            "return {{\"\": sh(\"bad\", \"rm -r $out; ln -s {up}/trees/{digest} $out\")}}"
        ));
        place.srp(&["realise", "t.x"]).exited(3).says(&["Read-only file system"]);
        assert_eq!(picture(&object), before);
    }
}

fn a_link_in_an_audits_round_leads_nowhere() {
    let place = Place::new("");
    let (bait, before) = bait(&place);
    // The host name is what audits vary: the first build is innocent.
    place.define(&format!(
        "return {{\"\": sh(\"sly\", \"echo a > $out/usr/a\\n\
         if [ $(cat /proc/sys/kernel/hostname) != srp ]; then rm -r $out; ln -s {bait} $out; fi\")}}"
    ));
    place.realise("t.x");
    let run = place.srp(&["audit", "t.x"]);
    assert_eq!(run.code, Some(5), "{run}");
    assert!(format!("{run}").contains("its builder exited with status 1"), "{run}");
    assert_eq!(picture(Path::new(&bait)), before);
}

fn an_output_stays_a_directory() {
    // What the builder may do about it: nothing, however it goes about it.
    for script in [
        "rmdir $out",
        "mv $out $out.old",
        "mv -T /tmp $out",
        "ln -sfT /tmp $out",
        "mkdir /srp/out/other",
        "ln -s /tmp /srp/out/other",
        "umount $out",
        "mount --bind /tmp $out",
    ] {
        let place = Place::new(&format!(
            "return {{\"\": sh(\"x\", \"rm -r $out/usr; {script} || echo refused\\n\
             mkdir -p $out/usr; echo a > $out/usr/a; test -d $out; test ! -L $out\")}}"
        ));
        let object = place.realise("t.x");
        assert_eq!(fs::read_to_string(object.join("usr/a")).unwrap(), "a\n", "{script}");
        let log = place.srp(&["log", "t.x"]).succeeded().stdout;
        assert!(log.ends_with("refused\n"), "{script}: {log}");
    }
}

fn closed_outputs_are_opened_again() {
    let place = Place::new(
        "return {\"\": sh(\"x\", \"mkdir $out/usr/d; echo a > $out/usr/d/a; echo b > $out/usr/b\\n\
         chmod 0 $out/usr/d/a $out/usr/d $out/usr/b $out\")}",
    );
    let object = place.realise("t.x");
    assert_eq!(fs::read_to_string(object.join("usr/d/a")).unwrap(), "a\n");
    assert_eq!(fs::metadata(object.join("usr/b")).unwrap().mode() & 0o7777, 0o444);
}

fn directories_nested_without_end_are_an_error() {
    // Also beside thousands of files: threads that wait must not dig deeper meanwhile.
    for depth in [300, 1500] {
        let place = Place::new(&format!(
            "return {{\"\": sh(\"x\", \"cd $out/usr; i=0\\n\
             while [ $i -lt {depth} ]; do mkdir d; : > f; cd d; i=$((i+1)); done\")}}"
        ));
        let run = place.srp(&["realise", "t.x"]).exited(3);
        run.says(&["more than 256 directories deep"]);
        place.assert_tidy();
    }
    let place = Place::new(
        "return {\"\": sh(\"x\", \"cd $out/usr; i=0\\n\
         while [ $i -lt 200 ]; do mkdir d; : > f; cd d; i=$((i+1)); done\")}",
    );
    place.realise("t.x");
    let root = place.path("root");
    place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
}

fn configure(place: &Place, text: &str) {
    let path = "home/.config/srp/config.toml";
    let before = fs::read_to_string(place.path(path)).unwrap();
    place.write(path, &format!("{text}\n{before}"));
}

fn an_output_larger_than_it_may_be_is_refused_before_it_is_read() {
    // No file is longer than what srp would take in.
    let place = Place::new("return {\"\": sh(\"x\", \"truncate -s 400G $out/usr/huge\")}");
    let began = Instant::now();
    place.srp(&["realise", "t.x"]).exited(3).says(&["its builder was killed by signal 25"]);
    // But several together may be.
    place.define("return {\"\": sh(\"x\", \"truncate -s 40G $out/usr/a $out/usr/huge\")}");
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["which is 42949672960 bytes long", "68719476736", "output_mib"]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    place.define("return {\"\": sh(\"x\", \"truncate -s 3M $out/usr/huge\")}");
    configure(&place, "output_mib = 2");
    place.srp(&["realise", "t.x"]).exited(3).says(&["/usr/huge", "3145728", "2097152"]);
}

fn an_output_of_too_many_files_is_refused() {
    let place = Place::new(
        "return {\"\": sh(\"x\", \"i=0; while [ $i -lt 100 ]; do : > $out/usr/$i; i=$((i+1)); done\")}",
    );
    configure(&place, "output_entries = 60");
    place.srp(&["realise", "t.x"]).exited(3).says(&["more than the 60", "output_entries"]);
}

fn hashing_ends_when_it_is_interrupted() {
    let place = Place::new("return {\"\": sh(\"x\", \"truncate -s 60G $out/usr/huge\")}");
    let mut command = place.command(&["realise", "t.x"]);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    // The builder is through at once; hashing takes a minute or so.
    let log = place.store().join("logs");
    let began = Instant::now();
    while fs::read_dir(&log).map_or(true, |mut entries| entries.next().is_none()) {
        assert!(began.elapsed() < Duration::from_secs(120), "no build began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let interrupted = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let took = interrupted.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?} to end");
    place.assert_tidy();
}

fn holes_stay_holes() {
    let place = Place::new(
        "return {\"\": sh(\"x\", \"truncate -s 64M $out/usr/a; echo end >> $out/usr/a\\n\
         ln $out/usr/a $out/usr/b; truncate -s 32M $out/usr/c\")}",
    );
    let object = place.realise("t.x");
    let root = place.path("root");
    place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
    for tree in [&object, &root] {
        for (name, size) in [("a", (64 << 20) + 4), ("b", (64 << 20) + 4), ("c", 32 << 20)] {
            let metadata = fs::metadata(tree.join("usr").join(name)).unwrap();
            assert_eq!(metadata.len(), size, "{name}");
            assert!(metadata.blocks() * 512 < 1 << 20, "{name} takes {}", metadata.blocks() * 512);
        }
    }
}

/// Adds directories of so many files each, in a process that may have so much memory.
fn memory_grows_no_faster_than_entries() {
    let place = Place::new("");
    let flat = place.path("flat");
    fs::create_dir(&flat).unwrap();
    for number in 0..60_000 {
        fs::write(flat.join(format!("f{number:06}")), "x").unwrap();
    }
    let mut limited = Command::new("prlimit");
    limited.arg("--data=300000000").arg(crate::support::program());
    let run = Run::of(place.surround(&mut limited).args(["add", flat.to_str().unwrap()]));
    run.succeeded();
}
