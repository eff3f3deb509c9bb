//! `srp store verify`: what is damaged is found, and put right, each kind of file in each way.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sound;
use crate::support::host::{as_nobody, is_root, mark, skipped};
use crate::support::place::list;
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run};

/// Builds with equal files, with references, and with many inputs, so that their root is composed.
const COMPONENTS: &str = r#"
one = sh("one", "seq 5000 > $out/usr/one; mkdir $out/usr/d; echo x > $out/usr/d/x; ln -s one $out/usr/link")
two = sh("two", "seq 5000 > $out/usr/two; seq 9000 > $out/usr/own", tools = [one], run = [one])
many = [sh("m%d" % n, "echo %d > $out/usr/m%d" % (n, n)) for n in range(6)]
all = sh("all", "cat /usr/m* > $out/usr/all; seq 70 >> $out/usr/all", tools = many + [two])
return {"": all, "one": one, "two": two}
"#;

const GOALS: &[&str] = &["realise", "t.x", "t.x.one", "t.x.two"];

/// A store that can be put back to what it was.
struct Ground {
    place: Place,
    expected: String,
}

impl Ground {
    fn new() -> Ground {
        let place = Place::new(COMPONENTS);
        let expected = place.srp(GOALS).succeeded().stdout;
        place.write("added/file", "kept by a root");
        let added = place.srp(&["add", "added"]).succeeded().stdout;
        place.srp(&["root", "add", "added", added.trim_end()]).succeeded();
        // No derivation makes it: only a cache can give it back.
        let cache = place.path("added-cache");
        let url = cache.to_str().unwrap();
        place.srp(&["cache", "push", added.trim_end(), "--to", url, "--unsigned"]).succeeded();
        let config = place.path("home/.config/srp/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text}[[caches]]\nurl = '{url}'\ntrusted_unsigned = true\n"))
            .unwrap();
        let ground = Ground { place, expected };
        copy(&ground.place.store(), &ground.kept());
        ground
    }

    fn kept(&self) -> PathBuf {
        self.place.path("kept")
    }

    fn begin(&self) {
        remove(&self.place.store());
        copy(&self.kept(), &self.place.store());
    }

    fn assert_mended(&self, when: &str) {
        let again = self.place.srp(&["store", "verify", "--all"]);
        assert_eq!(again.code, Some(0), "{when}: {again}");
        let problems = sound::problems(&self.place.store());
        assert!(problems.is_empty(), "{when}: {problems:#?}");
        let run = self.place.srp(GOALS);
        assert_eq!((run.code, &run.stdout), (Some(0), &self.expected), "{when}: {run}");
        assert_eq!(run.built(), Vec::<&str>::new(), "{when}: {run}");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        remove(&self.kept());
        remove(&self.place.store());
    }
}

/// What can be damaged: the files of a kind, and in which ways that must be noticed. That a claim, a
/// derivation, a source or a root is gone is no damage: nothing says that there must be one.
const KINDS: &[(&str, &str)] = &[
    ("info", "flip truncate empty delete swap"),
    ("tree", "flip truncate empty delete swap mode"),
    ("tree", "flip truncate empty delete swap mode"),
    ("listing", "flip truncate empty delete swap"),
    ("objects", "flip truncate delete swap"),
    ("realisations/resolved", "flip truncate empty delete swap"),
    ("realisations/static", "flip truncate empty swap"),
    ("derivations", "flip truncate empty swap"),
    ("sources", "flip truncate empty"),
    ("composed", "flip truncate empty delete mode"),
    ("roots", "flip truncate"),
    ("eval", "flip truncate empty"),
    ("meta", "truncate empty delete"),
];

#[test]
fn a_hundred_random_damages_are_all_found_and_all_mended() {
    let ground = Ground::new();
    let seed: u64 = std::env::var("SRP_VERIFY_SEED").map_or(14, |it| it.parse().unwrap());
    let mut random = Random(seed);
    let (mut damages, mut by) = (0, BTreeMap::<String, usize>::new());
    while damages < 100 {
        ground.begin();
        let mut paths = Vec::new();
        // Several at once, but no more than that something can be made anew of the rest.
        for _ in 0..4 {
            let (kind, ways) = KINDS[random.below(KINDS.len())];
            let ways: Vec<&str> = ways.split(' ').collect();
            let way = ways[random.below(ways.len())];
            let damaged = damage(&ground.place.store(), kind, way, &paths, &mut random);
            paths.extend(damaged);
        }
        damages += paths.len();
        let when = format!("seed {seed}, {damages}: {paths:#?}");
        let found = ground.place.srp(&["store", "verify", "--all", "--json"]);
        assert_eq!(found.code, Some(4), "{when}: {found}");
        let answer: Value = serde_json::from_str(&found.stdout).unwrap();
        let findings = answer["findings"].as_array().unwrap();
        for (path, _) in &paths {
            let found = findings.iter().any(|it| {
                let at = Path::new(it["path"].as_str().unwrap());
                let below = it["files"].as_array().unwrap().iter();
                path == at
                    || below
                        .clone()
                        .any(|it| path.starts_with(at.join(it["path"].as_str().unwrap())))
            });
            assert!(found, "{} is not found; {when}: {found}", path.display());
        }
        let repaired = ground.place.srp(&["store", "verify", "--all", "--repair", "--json"]);
        assert_eq!(repaired.code, Some(0), "{when}: {repaired}");
        let answer: Value = serde_json::from_str(&repaired.stdout).unwrap();
        for finding in answer["findings"].as_array().unwrap() {
            let kind = finding["kind"].as_str().unwrap();
            let remedy = finding["mended_by"].as_str().unwrap();
            *by.entry(format!("{kind} {remedy}")).or_default() += 1;
        }
        ground.assert_mended(&when);
    }
    println!("{damages} damages: {by:#?}");
}

#[test]
fn a_sound_store_is_verified_in_ten_parts() {
    let ground = Ground::new();
    let verify = |arguments: &[&str]| -> Value {
        let mut all = vec!["store", "verify", "--json"];
        all.extend(arguments);
        let run = ground.place.srp(&all).succeeded();
        let answer: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(answer["findings"], Value::Array(Vec::new()), "{run}");
        answer["looked_at"].clone()
    };
    let all = verify(&["--all"]);
    assert_eq!(all["size_bytes"], all["of_bytes"]);
    let stamps = || {
        let trees = list(&ground.place.store().join("trees")).into_iter();
        let listings = trees.filter(|it| it.extension() == Some(OsStr::new("listing")));
        listings.map(|it| fs::metadata(it).unwrap().modified().unwrap()).min().unwrap()
    };
    let oldest = stamps();
    let mut sum = 0;
    for _ in 0..10 {
        let part = verify(&[]);
        assert!(
            part["size_bytes"].as_u64() >= all["of_bytes"].as_u64().map(|it| it / 10),
            "{part}"
        );
        sum += part["size_bytes"].as_u64().unwrap();
    }
    assert!(sum >= all["of_bytes"].as_u64().unwrap());
    assert!(stamps() > oldest, "each had its turn");
    let one = verify(&["t.x.one"]);
    assert_eq!(one["trees"], 1, "{one}");
    let two = verify(&["t.x.two"]);
    assert_eq!(two["trees"], 2, "what it refers to is verified, too: {two}");
}

#[test]
fn each_is_mended_by_what_is_nearest() {
    let ground = Ground::new();
    let store = ground.place.store();
    let object = |name: &str| {
        let paths = list(&store.join("objects")).into_iter();
        let path = paths.into_iter().find(|it| it.to_str().unwrap().ends_with(name)).unwrap();
        path.canonicalize().unwrap()
    };
    let source = || list(&store.join("sources")).remove(0);
    let repair = |path: &Path, kind: &str, remedy: &str| {
        let run = ground.place.srp(&["store", "verify", "--all", "--repair", "--json"]).succeeded();
        let answer: Value = serde_json::from_str(&run.stdout).unwrap();
        let [finding] = &answer["findings"].as_array().unwrap()[..] else { panic!("{run}") };
        assert_eq!(
            (&finding["kind"], &finding["mended_by"]),
            (&kind.into(), &remedy.into()),
            "{run}"
        );
        ground.assert_mended(&format!("{}", path.display()));
    };
    // The same file is in another tree.
    let equal = object("-one").join("usr/one");
    rewrite(&equal, |bytes| bytes[7] ^= 1);
    repair(&equal, "tree", "copied");
    // It is in a root that was composed of it.
    let own = object("-two").join("usr/own");
    rewrite(&own, |bytes| bytes[7] ^= 1);
    repair(&own, "tree", "copied");
    // This one is nowhere else, and no cache is configured.
    let own = object("-all").join("usr/all");
    rewrite(&own, |bytes| bytes[7] ^= 1);
    repair(&own, "tree", "rebuilt");
    // What is too much is left out.
    let extra = object("-one").join("usr");
    fs::set_permissions(&extra, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(extra.join("extra"), "").unwrap();
    repair(&extra, "tree", "copied");
    let mode = object("-one").join("usr/one");
    fs::set_permissions(&mode, fs::Permissions::from_mode(0o644)).unwrap();
    repair(&mode, "tree", "attributes");
    let fetched = source();
    rewrite(&fetched, |bytes| bytes[700] ^= 1);
    repair(&fetched, "source", "fetched");
    let whole = object("-all");
    remove(&whole);
    repair(&whole, "tree", "rebuilt");
    let info = list(&store.join("info")).remove(0);
    fs::remove_file(&info).unwrap();
    repair(&info, "info", "derived");
    // A cache has it: nothing is built.
    let cache = ground.place.path("cache");
    let url = cache.to_str().unwrap();
    ground.place.srp(&["cache", "push", "t.x", "--to", url, "--unsigned"]).succeeded();
    let config = ground.place.path("home/.config/srp/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[[caches]]\nurl = '{url}'\ntrusted_unsigned = true\n"))
        .unwrap();
    let own = object("-all").join("usr/all");
    rewrite(&own, |bytes| bytes[7] ^= 1);
    repair(&own, "tree", "cache");
}

#[test]
fn whatever_lies_in_the_place_of_a_directory_is_moved_aside() {
    let ground = Ground::new();
    let names = [
        "objects",
        "trees",
        "info",
        "realisations/static",
        "realisations/resolved",
        "derivations",
        "eval",
        "logs",
        "roots",
        "composed",
        "sources",
        "statements",
        "rebuilt",
        "imported",
        "served",
        "caches",
        "trash",
        "partial",
        "audits",
        "replaced",
        "index",
    ];
    for (number, name) in names.into_iter().enumerate() {
        ground.begin();
        let path = ground.place.store().join(name);
        if path.exists() {
            remove(&path);
        }
        match number % 3 {
            0 => fs::write(&path, "a file").unwrap(),
            1 => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            _ => symlink("nowhere", &path).unwrap(),
        }
        let found = ground.place.srp(&["store", "verify", "--all"]);
        assert_eq!(found.code, Some(4), "{name}: {found}");
        assert!(format!("{found}").contains("it is no directory"), "{name}: {found}");
        let mended = ground.place.srp(&["store", "verify", "--all", "--repair"]);
        assert_eq!(mended.code, Some(0), "{name}: {mended}");
        assert!(path.is_dir(), "{name}");
        let beside = list(path.parent().unwrap());
        let is_aside = |it: &PathBuf| it.to_str().unwrap().contains("-aside.");
        assert!(beside.iter().any(is_aside), "{name}: {beside:?}");
        let again = ground.place.srp(&["store", "verify", "--all"]);
        assert_eq!(again.code, Some(0), "{name}: {again}");
        assert_eq!(ground.place.srp(GOALS).succeeded().stdout, ground.expected, "{name}");
    }
}

#[test]
fn a_build_that_comes_out_differently_is_no_repair() {
    let place = Place::new(
        r#"return {"": sh("unsteady", "cat /proc/sys/kernel/random/uuid > $out/usr/id")}"#,
    );
    let object = place.realise("t.x");
    let file = object.join("usr/id").canonicalize().unwrap();
    rewrite(&file, |bytes| bytes[3] ^= 1);
    let damaged = fs::read(&file).unwrap();
    let run = place.srp(&["store", "verify", "--all", "--repair"]).exited(4);
    assert!(run.stdout.contains("it is not reproducible"), "{run}");
    assert_eq!(fs::read(&file).unwrap(), damaged, "what there is stays");
    let run = place.srp(&["store", "verify", "--all", "--repair", "--no-build"]).exited(4);
    assert!(run.stdout.contains("may not be built"), "{run}");
    remove(&place.store());
}

#[test]
fn others_may_verify_what_they_can_read() {
    let ground = Ground::new();
    if !is_root() {
        skipped("verifying as another user", "only root can be another user");
        return;
    }
    let program = ground.place.path("srp");
    ground.place.open_to_all();
    fs::copy(crate::support::program(), &program).unwrap();
    let as_other = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        ground.place.surround(&mut command).args(arguments).env("HOME", "/nonexistent");
        Run::of(as_nobody(&mut command))
    };
    let before = snapshot(&ground.place.store());
    for arguments in [&["store", "verify", "--all"][..], &["store", "verify"]] {
        as_other(arguments).succeeded();
    }
    assert!(snapshot(&ground.place.store()) == before, "nothing has changed");
    as_other(&["store", "verify", "--repair"]).exited(1).says(&["belongs to user"]);
    let file = ground.place.realise("t.x.one").join("usr/one").canonicalize().unwrap();
    rewrite(&file, |bytes| bytes[3] ^= 1);
    let run = as_other(&["store", "verify", "--all"]).exited(4);
    assert!(run.stdout.contains("usr/one: other bytes"), "{run}");
}

#[test]
fn a_build_that_runs_is_not_disturbed_and_keeps_the_trees_that_it_uses() {
    let mark = mark();
    let place = Place::new(&format!(
        r#"
dep = sh("dep", "echo dep > $out/usr/dep; echo more > $out/usr/more")
same = sh("same", "echo dep > $out/usr/same")
slow = sh("slow", "sleep {mark} & wait $!; cat /usr/more > $out/usr/slow", tools = [dep, same])
return {{"": slow, "dep": dep, "same": same}}
"#
    ));
    let object = place.realise("t.x.dep");
    place.realise("t.x.same");
    let mut command = place.command(&["realise", "t.x"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()), "it never began");
    place.srp(&["store", "verify", "--all"]).succeeded();
    let file = object.join("usr/dep").canonicalize().unwrap();
    rewrite(&file, |bytes| bytes[1] ^= 1);
    place.srp(&["store", "verify", "--all", "--repair"]).succeeded();
    assert_eq!(list(&place.store().join("replaced")).len(), 1, "the build may have it mounted");
    for process in processes_with(&format!("sleep\0{mark}")) {
        kill(Pid::from_raw(process.try_into().unwrap()), Signal::SIGKILL).unwrap();
    }
    let _ = Run::from(child.wait_with_output().unwrap());
    place.srp(&["store", "verify", "--all", "--repair"]).succeeded();
    assert_eq!(list(&place.store().join("replaced")), Vec::<PathBuf>::new());
    remove(&place.store());
}

#[test]
fn it_ends_when_it_is_interrupted() {
    let place = Place::new(r#"return {"": busybox}"#);
    fs::create_dir(place.path("tree")).unwrap();
    let file = fs::File::create(place.path("tree/hole")).unwrap();
    file.set_len(40 << 30).unwrap();
    place.srp(&["add", "tree"]).succeeded();
    let mut command = place.command(&["store", "verify", "--all"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let run = Run::from(child.wait_with_output().unwrap()).exited(130);
    run.says(&["interrupted; what was verified until then"]);
    place.assert_tidy();
    remove(&place.store());
}

/// Numbers that look random, and are the same again.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

/// Damages a file of a kind that isn't yet; its path, and that of the one that it has changed places
/// with.
fn damage(
    store: &Path,
    kind: &str,
    way: &str,
    damaged: &[(PathBuf, String)],
    random: &mut Random,
) -> Vec<(PathBuf, String)> {
    let mut files = files(store, kind);
    files.retain(|path| !damaged.iter().any(|(damaged, _)| damaged == path));
    if files.is_empty() || (way == "swap" && files.len() < 2) {
        return Vec::new();
    }
    let path = files.swap_remove(random.below(files.len()));
    let said = |path: &Path| (path.to_owned(), format!("{kind} {way}"));
    let parent = path.parent().unwrap().to_owned();
    let mode = fs::metadata(&parent).unwrap().permissions();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
    let mut damaged = vec![said(&path)];
    match way {
        "flip" => rewrite(&path, |bytes| {
            let bit = random.below(bytes.len() * 8);
            // The text of a link must stay one, and the roots' one that can be told.
            bytes[bit / 8] ^= if kind == "roots" || kind == "objects" { 1 } else { 1 << (bit % 8) };
        }),
        "truncate" => rewrite(&path, |bytes| {
            let length = bytes.len();
            bytes.truncate(length - 1 - random.below(length.min(20) - 1));
        }),
        "empty" => rewrite(&path, Vec::clear),
        "mode" => fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap(),
        "delete" => remove(&path),
        "swap" => {
            let other = files.swap_remove(random.below(files.len()));
            let (one, two) = (contents(&path), contents(&other));
            if one == two {
                fs::set_permissions(&parent, mode).unwrap();
                return Vec::new();
            }
            let other_parent = other.parent().unwrap().to_owned();
            let other_mode = fs::metadata(&other_parent).unwrap().permissions();
            fs::set_permissions(&other_parent, fs::Permissions::from_mode(0o755)).unwrap();
            rewrite(&path, |bytes| *bytes = two.clone());
            rewrite(&other, |bytes| *bytes = one.clone());
            let other_mode = if other_parent == parent { mode.clone() } else { other_mode };
            fs::set_permissions(&other_parent, other_mode).unwrap();
            damaged.push(said(&other));
        }
        other => panic!("{other}"),
    }
    if parent.exists() {
        fs::set_permissions(&parent, mode).unwrap();
    }
    damaged
}

/// The files of a kind that can be damaged; of what is not empty.
fn files(store: &Path, kind: &str) -> Vec<PathBuf> {
    let top = |name: &str| list(&store.join(name));
    let is_listing = |path: &PathBuf| path.extension() == Some(OsStr::new("listing"));
    let below = |name: &str| {
        let mut found = Vec::new();
        let mut pending: Vec<PathBuf> =
            top(name).into_iter().filter(|it| !is_listing(it)).collect();
        while let Some(path) = pending.pop() {
            match path.is_dir() && !path.is_symlink() {
                true => pending.extend(list(&path)),
                false => found.push(path),
            }
        }
        found.retain(|path| !path.is_symlink() && fs::metadata(path).unwrap().len() > 1);
        found.sort();
        found
    };
    match kind {
        "tree" => below("trees"),
        "listing" => top("trees").into_iter().filter(is_listing).collect(),
        "composed" => below("composed"),
        "roots" => top("roots").iter().flat_map(|root| list(root)).collect(),
        "meta" => vec![store.join("meta")],
        "eval" => {
            let entries = top("eval").into_iter();
            // A graph whose entry is lost says nothing of itself.
            entries.filter(|it| it.extension().is_none()).collect()
        }
        kind => top(kind),
    }
}

fn contents(path: &Path) -> Vec<u8> {
    match path.is_symlink() {
        true => fs::read_link(path).unwrap().into_os_string().into_vec(),
        false => fs::read(path).unwrap(),
    }
}

/// Changes a file's bytes, or a link's text, and neither its mode nor its times.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = contents(path);
    change(&mut bytes);
    if path.is_symlink() {
        bytes.retain(|byte| *byte != 0);
        fs::remove_file(path).unwrap();
        symlink(OsStr::from_bytes(&bytes), path).unwrap();
        return;
    }
    let metadata = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(metadata.modified().unwrap()).unwrap();
    fs::set_permissions(path, metadata.permissions()).unwrap();
}

/// Every path below, with its length, mode and time of change.
fn snapshot(directory: &Path) -> Vec<(PathBuf, u64, u32, i64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(list(&path));
        }
        found.push((path, metadata.len(), metadata.mode(), metadata.ctime_nsec()));
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    let run = Run::of(Command::new("cp").arg("-a").arg(from).arg(to));
    run.succeeded();
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|it| it.is_dir()) {
        Run::of(Command::new("chmod").args(["-R", "u+rwX"]).arg(path)).succeeded();
        let parent = path.parent().unwrap();
        let mode = fs::metadata(parent).unwrap().permissions();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_dir_all(path).unwrap();
        fs::set_permissions(parent, mode).unwrap();
    } else if fs::symlink_metadata(path).is_ok() {
        fs::remove_file(path).unwrap();
    }
}

/// Without --repair a lost listing stays lost, a tree's and a composed root's, and is damage each time.
#[test]
fn listings_are_not_made_anew_by_looking() {
    let place = Place::new(COMPONENTS);
    place.realise("t.x");
    let mut listings = Vec::new();
    for directory in ["trees", "composed"] {
        let of_it = list(&place.store().join(directory));
        let found = of_it.into_iter().find(|it| it.extension().is_some_and(|it| it == "listing"));
        listings.push(found.expect("a listing"));
    }
    for listing in listings {
        let right = fs::read(&listing).unwrap();
        let mut wrong = right.clone();
        wrong[20] ^= 4;
        fs::set_permissions(&listing, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&listing, &wrong).unwrap();
        for _ in 0..2 {
            let run = place.srp(&["store", "verify", "--all"]).exited(4);
            assert!(
                run.to_string().contains(listing.file_name().unwrap().to_str().unwrap()),
                "{run}"
            );
            assert_eq!(fs::read(&listing).unwrap(), wrong, "it was changed");
        }
        place.srp(&["store", "verify", "--all", "--repair"]).succeeded();
        place.srp(&["store", "verify", "--all"]).succeeded();
        place.realise("t.x");
    }
}
