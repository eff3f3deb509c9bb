//! The store's disk is full, or has no inodes left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use crate::support::Run;
use crate::{Ground, rounds};

/// Mounts a small file system where the store is, works there, makes room, and works again. What
/// the store is each time is copied out, where it can be looked at.
const SCRIPT: &str = r#"
set -eu
kept=$1 store=$2 out=$3 options=$4; shift 4
mount -t tmpfs -o "$options" none "$store"
cp -a "$kept/." "$store"
"$@" >"$out.first" 2>&1 && code=0 || code=$?
cp -a "$store" "$out.store"
mount -o remount,size=1g,nr_inodes=1000000 "$store"
"$@" >"$out.second" 2>"$out.errors" || { cat "$out.errors"; exit 99; }
cp -a "$store" "$out.again"
exit $code
"#;

#[test]
fn a_full_disk_costs_the_work_and_nothing_else() {
    let ground = Ground::new();
    ground.place.realise("t.x.seed");
    ground.keep("seed");
    let kept = ground.kept("seed");
    let expected = ground.place.srp(&["realise", "t.x"]).succeeded().stdout;
    crate::remove(&ground.place.store());
    fs::create_dir(ground.place.store()).unwrap();
    let used_kib: u64 = number(&["du", "-s", "--block-size=1k", kept.to_str().unwrap()]);
    let used_inodes: u64 = number(&["du", "-s", "--inodes", kept.to_str().unwrap()]);
    let half = (rounds() / 2).max(1) as u64;
    // Room beyond what is used: none at first, then more and more.
    let sizes = (0..half).map(|n| format!("size={}k", used_kib + 64 + 600 * n / half));
    let inodes =
        (0..half).map(|n| format!("size=1g,nr_inodes={}", used_inodes + 2 + 80 * n / half));
    let (mut failed, mut all) = (0, 0);
    for options in sizes.chain(inodes) {
        let (run, out) = on_small_disk(&ground, SCRIPT, &kept, &options, &["realise", "t.x"]);
        let said = fs::read_to_string(out.with_extension("first")).unwrap_or_default();
        assert!(matches!(run.code, Some(0..=4)), "{options}: {run}{said}");
        assert!(!said.contains("panicked"), "{options}: {said}");
        failed += usize::from(run.code != Some(0));
        all += 1;
        let second = fs::read_to_string(out.with_extension("second")).unwrap();
        assert_eq!(second, expected, "{options}");
        for name in ["store", "again"] {
            let store = out.with_extension(name);
            let problems = crate::sound::problems(&store);
            assert!(problems.is_empty(), "{options}, {name}: {problems:#?}");
            crate::remove(&store);
        }
    }
    println!("full {failed} times of {all}");
    assert!(0 < failed && failed < all, "{failed} of {all} failed: the test tests nothing");
}

/// Fills the disk to its last block or inode, and collects.
const FILLED: &str = r#"
set -eu
kept=$1 store=$2 out=$3 options=$4; shift 4
mount -t tmpfs -o "$options" none "$store"
cp -a "$kept/." "$store"
dd if=/dev/zero of="$store/.filling" bs=4k 2>/dev/null || true
n=0; while [ $n -lt 5000 ] && touch "$store/.more-$n" 2>/dev/null; do n=$((n + 1)); done
"$@"
rm -f "$store"/.filling "$store"/.more-*
cp -a "$store" "$out.store"
"#;

#[test]
fn a_collection_makes_room_on_a_full_disk() {
    let ground = Ground::new();
    ground.place.realise("t.x");
    ground.place.realise("t.x.busybox");
    ground.place.srp(&["root", "remove", "t.x"]).succeeded();
    ground.keep("garbage");
    let kept = ground.kept("garbage");
    crate::remove(&ground.place.store());
    fs::create_dir(ground.place.store()).unwrap();
    let used_kib: u64 = number(&["du", "-s", "--block-size=1k", kept.to_str().unwrap()]);
    let used_inodes: u64 = number(&["du", "-s", "--inodes", kept.to_str().unwrap()]);
    for options in [
        format!("size={}k,nr_inodes=1000000", used_kib + 64),
        format!("size=1g,nr_inodes={}", used_inodes + 2),
    ] {
        let arguments = ["store", "gc", "--older-than", "0s"];
        let (run, out) = on_small_disk(&ground, FILLED, &kept, &options, &arguments);
        run.succeeded();
        let store = out.with_extension("store");
        let problems = crate::sound::problems(&store);
        assert!(problems.is_empty(), "{options}: {problems:#?}");
        let objects = crate::support::place::list(&store.join("info"));
        assert_eq!(objects.len(), 1, "{options}: {objects:?}");
        crate::remove(&store);
    }
}

/// Runs a script whose store is a tmpfs of these mount options, with srp and its arguments; and where the script
/// writes.
fn on_small_disk(
    ground: &Ground,
    script: &str,
    kept: &Path,
    options: &str,
    arguments: &[&str],
) -> (Run, PathBuf) {
    let out = ground.place.path("out").join(options.replace([',', '='], "-"));
    fs::create_dir_all(out.parent().unwrap()).unwrap();
    let mut command = Command::new("unshare");
    // A user may mount within a namespace of its own.
    let root = geteuid().is_root();
    command.args(if root { &["--mount"][..] } else { &["--mount", "--map-root-user"] });
    command.args(["sh", "-c", script, "sh"]);
    command.arg(kept).arg(ground.place.store()).arg(&out).arg(options);
    command.arg(crate::support::program()).args(arguments);
    (Run::of(ground.place.surround(&mut command)), out)
}

fn number(command: &[&str]) -> u64 {
    let run = Run::of(Command::new(command[0]).args(&command[1..])).succeeded();
    run.stdout.split_whitespace().next().unwrap().parse().unwrap()
}
