//! Files of a store are damaged, one at a time, each kind in each way.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::place::list;
use crate::{Ground, rounds, run, seed};

/// Each kind of file: where it is, and which of that there.
const KINDS: &[(&str, &str)] = &[
    ("info", ""),
    ("trees", ".listing"),
    ("objects", ""),
    ("realisations/static", ""),
    ("realisations/resolved", ""),
    ("derivations", ""),
    ("eval", ""),
    ("index", ""),
    ("roots/t.x", ""),
    ("locks", ""),
    ("logs", ""),
];

/// What becomes of a file; the other is another one of its kind.
type Damage = (&'static str, fn(&Path, &Path));

const DAMAGES: &[Damage] = &[
    ("is flipped", |path, _| {
        rewrite(path, |bytes| {
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
        });
    }),
    ("is truncated", |path, _| rewrite(path, |bytes| bytes.truncate(bytes.len() / 2))),
    ("is emptied", |path, _| rewrite(path, Vec::clear)),
    ("is gone", |path, _| discard(path)),
    ("is a directory", |path, _| {
        discard(path);
        fs::create_dir(path).unwrap();
    }),
    ("is another's", |path, other| {
        discard(path);
        run(std::process::Command::new("cp").arg("-a").arg(other).arg(path));
    }),
];

#[test]
fn what_is_damaged_is_noticed_and_made_anew() {
    let ground = Ground::new();
    ground.place.realise("t.x");
    ground.place.srp(&["show", "t.x"]).succeeded();
    ground.keep("full");
    // Every derivation, so that each claim is asked for.
    let work = ["realise", "t.x", "t.x.dep", "t.x.seed", "t.x.busybox"];
    let expected = ground.place.srp(&work).succeeded().stdout;
    ground.keep("full and named");
    let mut rounds_left = 5 * rounds();
    let mut turn = seed() as usize;
    for (directory, ending) in KINDS {
        let files = files(&ground.kept("full"), directory, ending);
        assert!(!files.is_empty(), "there is no {directory}/*{ending}");
        for (what, damage) in DAMAGES {
            if rounds_left == 0 {
                return;
            }
            rounds_left -= 1;
            turn += 1;
            ground.begin("full");
            let store = ground.place.store();
            let file = &files[turn % files.len()];
            let alike = |path: &&PathBuf| *path != file && path.extension() == file.extension();
            let other = files.iter().cycle().skip(turn).take(files.len()).find(alike);
            if other.is_none() && *what == "is another's" {
                eprintln!("there is no other {directory}/*{ending} that could be in its place");
                continue;
            }
            damage(&store.join(file), &store.join(other.unwrap_or(file)));
            let when = format!("{} {what}", file.display());
            if *directory == "realisations/resolved" {
                // It is asked for where there is no claim.
                for claim in list(&store.join("realisations/static")) {
                    discard(&claim);
                }
            }
            let run = ground.place.srp(&work);
            assert_eq!(run.code, Some(0), "{when}: {run}");
            assert_eq!(run.stdout, expected, "{when}");
            for path in run.stdout.lines() {
                assert!(fs::metadata(path).is_ok(), "{when}: {path} is printed, and not there");
            }
            if *directory == "trees" {
                // A listing is read, and found to be damaged, where its tree is asked for.
                let all =
                    ["export", "t.x", "t.x.dep", "t.x.seed", "--output", "/dev/null", "--unsigned"];
                let run = ground.place.srp(&all);
                assert_eq!(run.code, Some(0), "{when}: {run}");
            }
            let mut problems = crate::sound::problems(&store);
            if *directory == "roots/t.x" {
                // The root is set anew; what it named before is nobody's to decide.
                problems.retain(|problem| !problem.starts_with(file.to_str().unwrap()));
            }
            assert!(problems.is_empty(), "{when}: {problems:#?}");
        }
    }
}

/// What can be deleted at any time is deleted, alone and together.
#[test]
fn caches_of_a_store_can_be_deleted() {
    let ground = Ground::new();
    ground.place.realise("t.x");
    let names = ["composed", "eval", "index", "served", "audits"];
    let subsets = (0..1_usize << 3)
        .map(|bits| names.iter().enumerate().filter(move |(at, _)| *at > 2 || bits >> at & 1 == 1));
    for (round, subset) in subsets.enumerate() {
        let store = ground.place.store();
        let subset: Vec<&str> = subset.map(|(_, name)| *name).collect();
        for name in &subset {
            crate::remove(&store.join(name));
        }
        let other = crate::COMPONENTS.replace("echo dep", &format!("echo {round}"));
        // More trees than an overlay has layers: they are composed.
        let many: String =
            (0..7).map(|n| format!("m{n} = sh(\"m{n}\", \"echo {n} > $out/usr/{n}\")\n")).collect();
        let all = (0..7).map(|n| format!("m{n}")).collect::<Vec<_>>().join(", ");
        let many = format!(
            "{many}many = sh(\"many\", \"echo {round} > $out/usr/many\", tools = [{all}])\nreturn {{\"many\": many, "
        );
        ground.place.define(&other.replace("return {", &many));
        for arguments in [
            &["list"][..],
            &["realise", "t.x", "t.x.many"],
            &["show", "t.x"],
            &["realise", "t.x", "--dry-run"],
            &["audit", "t.x.dep"],
            &["root", "list"],
        ] {
            let run = ground.place.srp(arguments);
            assert_eq!(run.code, Some(0), "without {subset:?}: {arguments:?}: {run}");
        }
        ground.assert_sound(&format!("without {subset:?}"));
    }
}

/// The files of a kind, relative to the store.
fn files(store: &Path, directory: &str, ending: &str) -> Vec<PathBuf> {
    let paths = list(&store.join(directory)).into_iter();
    let paths = paths.filter(|path| path.to_str().unwrap().ends_with(ending));
    paths.map(|path| path.strip_prefix(store).unwrap().to_owned()).collect()
}

/// Changes a file's bytes, or a link's text.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    if path.is_symlink() {
        let mut text = fs::read_link(path).unwrap().into_os_string().into_vec();
        change(&mut text);
        text.retain(|byte| *byte != 0);
        discard(path);
        // There are no links to nothing.
        if !text.is_empty() {
            symlink(std::ffi::OsStr::from_bytes(&text), path).unwrap();
        }
    } else if path.is_file() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

fn discard(path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        run(std::process::Command::new("rm").arg("-rf").arg(path));
    } else {
        fs::remove_file(path).unwrap();
    }
}
