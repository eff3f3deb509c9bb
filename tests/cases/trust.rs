//! Nothing damaged is built from, signed, attested or written out, and what is damaged is made anew.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::place::list;
use crate::support::{Place, Run};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What `srp` sets all times in trees to.
const TREE_TIME: Duration = Duration::from_secs(315_619_200);

/// What becomes of a file.
type Damage = (&'static str, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("flipped", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[0] ^= 1;
        write(path, &bytes);
    }),
    ("truncated", |path| {
        let bytes = fs::read(path).unwrap();
        write(path, &bytes[..bytes.len() / 2]);
    }),
    ("removed", |path| unobtrusively(path.parent().unwrap(), || fs::remove_file(path).unwrap())),
];

fn write(path: &Path, bytes: &[u8]) {
    unobtrusively(path, || fs::write(path, bytes).unwrap());
}

/// Changes something such that neither its mode nor its time shows it.
fn unobtrusively(path: &Path, change: impl FnOnce()) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    change();
    File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + TREE_TIME).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// Makes it so long ago that any tree was verified.
fn age(place: &Place, age: Duration) {
    for directory in ["trees", "composed"] {
        for path in list(&place.store().join(directory)) {
            if path.extension().is_some_and(|it| it == "listing") {
                File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            }
        }
    }
}

/// Two inputs, and what is built from them: `round` makes it another.
fn components(round: usize) -> String {
    format!(
        r#"
dep = sh("dep", "echo from dep > $out/usr/dep")
top = sh("top", "cat /usr/dep > $out/usr/top; echo {round} > $out/usr/round", tools = [dep])
return {{"": top, "dep": dep}}
"#
    )
}

fn file_of(place: &Place, attr: &str, file: &str) -> PathBuf {
    fs::canonicalize(place.realise(attr)).unwrap().join(file)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_damaged_input_is_made_anew_before_anything_is_built_from_it() {
    let place = Place::new(&components(0));
    place.realise("t.x");
    for (round, (what, damage)) in DAMAGES.iter().enumerate() {
        let dep = file_of(&place, "t.x.dep", "usr/dep");
        damage(&dep);
        age(&place, 31 * DAY);
        place.define(&components(round + 1));
        let run = place.srp(&["realise", "t.x"]).succeeded();
        assert_eq!(run.built(), ["dep", "top"], "{what}: {run}");
        let run = run.says(&["usr/dep is damaged", "-dep", "built or fetched again"]);
        assert_eq!(read(Path::new(run.stdout.trim_end()).join("usr/top").as_path()), "from dep\n");
        assert_eq!(read(&dep), "from dep\n", "{what}");
        place.assert_tidy();
    }
    // What is sound is verified once, and then believed.
    age(&place, 31 * DAY);
    place.define(&components(10));
    place.srp(&["realise", "t.x"]).succeeded().says(&["verifying inputs of top"]);
    place.define(&components(11));
    let run = place.srp(&["realise", "t.x"]).succeeded();
    assert!(!run.stderr.contains("verifying"), "{run}");
    // Unless the configuration says that nothing is.
    place.define(&components(12));
    let mut command = place.command(&["realise", "t.x"]);
    Run::of(command.env("SRP_VERIFY_BUILDING", "0s"))
        .succeeded()
        .says(&["verifying inputs of top"]);
    let mut command = place.command(&["realise", "t.x"]);
    Run::of(command.env("SRP_VERIFY_BUILDING", "often")).exited(1).says(&["SRP_VERIFY_BUILDING"]);
}

#[test]
fn a_source_that_is_damaged_is_fetched_again_before_anything_is_built_from_it() {
    let components = |round: usize| {
        format!(
            r#"
top = sh("top", "cmp /srp/source/busybox-static/usr/bin/busybox /usr/bin/busybox; echo {round} > $out/usr/top", sources = [busybox])
return {{"": top, "seed": busybox}}
"#
        )
    };
    let place = Place::new(&components(0));
    place.realise("t.x");
    let seed = file_of(&place, "t.x.seed", "usr/bin/busybox");
    let right = fs::read(&seed).unwrap();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    write(&seed, &wrong);
    age(&place, 31 * DAY);
    place.define(&components(1));
    place
        .srp(&["realise", "t.x"])
        .succeeded()
        .says(&["usr/bin/busybox is damaged", "built or fetched again"]);
    assert!(fs::read(&seed).unwrap() == right);
}

/// A build with more inputs than an overlay has layers.
fn many(round: usize) -> String {
    let made: String =
        (0..7).map(|n| format!("m{n} = sh(\"m{n}\", \"echo {n} > $out/usr/m{n}\")\n")).collect();
    let all = (0..7).map(|n| format!("m{n}")).collect::<Vec<_>>().join(", ");
    format!(
        "{made}many = sh(\"many\", \"cat /usr/m* > $out/usr/many; echo {round} > $out/usr/round\", tools = [{all}])\nreturn {{\"\": many}}\n"
    )
}

#[test]
fn a_damaged_composed_root_is_composed_anew() {
    let place = Place::new(&many(0));
    place.realise("t.x");
    let composed = || {
        let all = list(&place.store().join("composed")).into_iter();
        all.filter(|path| path.is_dir()).map(|path| path.join("usr/m3")).next().unwrap()
    };
    for (round, (what, damage)) in DAMAGES.iter().enumerate() {
        damage(&composed());
        age(&place, 31 * DAY);
        place.define(&many(round + 1));
        let run = place.srp(&["realise", "t.x"]).succeeded();
        let run = run.says(&["is damaged", "m3", "is composed anew"]);
        assert_eq!(run.built(), ["many"], "{what}");
        let path = Path::new(run.stdout.trim_end()).join("usr/many");
        assert_eq!(read(&path), "0\n1\n2\n3\n4\n5\n6\n", "{what}");
    }
    // What is deleted in part is noticed at once.
    fs::set_permissions(composed().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(composed()).unwrap();
    place.define(&many(10));
    let run = place.srp(&["realise", "t.x"]).succeeded().says(&["m3", "is composed anew"]);
    let path = Path::new(run.stdout.trim_end()).join("usr/many");
    assert_eq!(read(&path), "0\n1\n2\n3\n4\n5\n6\n");
}

#[test]
fn nothing_damaged_is_published_or_attested_nor_what_was_made_of_it() {
    let place = Place::new(&components(0));
    place.srp(&["key", "generate", "builder-1"]).succeeded();
    let (cache, attested) = (place.path("cache"), place.path("attested"));
    let (cache, attested) = (cache.to_str().unwrap(), attested.to_str().unwrap());
    let push = ["cache", "push", "t.x", "--to", cache];
    let audit = ["audit", "t.x", "--vary", "hostname", "--again", "--sign", "--attest", attested];
    let export = ["export", "t.x", "--output", "/dev/null"];
    let signed = || {
        let directories = [
            place.store().join("rebuilt"),
            attested.into(),
            Path::new(cache).join("realisations/static"),
        ];
        directories.iter().filter(|path| path.is_dir()).map(|path| list(path).len()).sum::<usize>()
    };
    place.realise("t.x");
    for (attr, file) in [("t.x.dep", "usr/dep"), ("t.x", "usr/top")] {
        for (what, damage) in DAMAGES {
            for command in [&push[..], &audit, &export] {
                let path = file_of(&place, attr, file);
                let right = fs::read(&path).unwrap();
                damage(&path);
                age(&place, 2 * DAY);
                let run = place.srp(command).exited(4);
                run.says(&["is damaged", "srp realise"]);
                assert_eq!(signed(), 0, "{what} {command:?}");
                // As the hint says.
                place.realise(attr);
                assert!(fs::read(&path).unwrap() == right, "{what} {command:?}");
            }
        }
    }
    place.srp(&audit).succeeded();
    place.srp(&push).succeeded();
    place.srp(&export).succeeded();
    assert!(signed() >= 3);
    // What was verified lately is believed.
    let before = list(&place.store().join("trees"));
    let times = |paths: &[PathBuf]| -> Vec<SystemTime> {
        paths.iter().map(|path| fs::symlink_metadata(path).unwrap().modified().unwrap()).collect()
    };
    let stamps = times(&before);
    place.srp(&push).succeeded();
    assert_eq!(times(&before), stamps);
}

#[test]
fn a_damaged_tree_is_called_that_wherever_it_is_read() {
    let place = Place::new(
        r#"
dep = sh("dep", "echo from dep > $out/usr/dep")
top = sh("top", "cat /usr/dep > $out/usr/top", tools = [dep])
return {"": stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [top, applets, busybox]), "top": top}
"#,
    );
    place.realise("t.x");
    let (rootfs, cache) = (place.path("rootfs"), place.path("cache"));
    let (rootfs, cache) = (rootfs.to_str().unwrap(), cache.to_str().unwrap());
    let commands: &[&[&str]] = &[
        &["realise", "t.x", "--rootfs", rootfs],
        &["export", "t.x", "--output", "/dev/null", "--unsigned"],
        &["cache", "push", "t.x", "--to", cache, "--unsigned"],
        &["shell", "t.x", "--", "cat", "/usr/top"],
    ];
    for (what, damage) in DAMAGES {
        for command in commands {
            let top = file_of(&place, "t.x.top", "usr/top");
            damage(&top);
            if command[0] == "shell" {
                age(&place, 31 * DAY);
            }
            // What is there already is not read again.
            let _ = fs::remove_dir_all(cache);
            let run = place.srp(command).exited(4);
            run.says(&["usr/top is damaged", "srp realise"]);
            assert!(!Path::new(rootfs).exists(), "{what}");
            // It isn't forgotten: it counts as not here, and is made anew by whoever may.
            let makes_anew = ["realise", "shell"].contains(&command[0]);
            let run = place.srp(command).exited(if makes_anew { 0 } else { 1 });
            if !makes_anew {
                run.says(&["is not realised", "srp realise t.x"]);
            }
            if command[0] == "realise" {
                assert_eq!(read(&Path::new(rootfs).join("usr/top")), "from dep\n", "{what}");
                fs::remove_dir_all(rootfs).unwrap();
            }
            place.realise("t.x");
            place.srp(command).succeeded();
            if command[0] == "realise" {
                fs::remove_dir_all(rootfs).unwrap();
            }
        }
    }
}
