//! The same definitions give the same paths and the same trees, whoever builds them and where.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::host::{NOBODY, as_nobody, is_root, skipped};
use crate::support::{Place, Run, place, seed};

/// Whatever could differ between users and machines is written into the output; but for the link
/// count of /proc, which is the host's number of processes, by no choice of anybody but the kernel,
/// and the time of /tmp, which is now.
const CURIOUS: &str = r##"
curious = sh("curious", """
    { id; hostname; pwd; umask; env | sort; date +%Y; uname -m; nproc > /dev/null; stat -c '%n %a %u %g %h' /tmp /srp/build /srp/out; ls -ln / /usr/bin | grep -v -e ' proc$' -e ' tmp$' | head -50; } | sed 's,/srp/,/SRP/,g' > $out/usr/seen
    mkdir -p $out/usr/bin $out/usr/lib/deep/er "$out/usr/lib/a name"
    cp /usr/bin/busybox $out/usr/bin/prog; chmod 4711 $out/usr/bin/prog 2> /dev/null || chmod 711 $out/usr/bin/prog
    ln -s ../lib/deep $out/usr/bin/relative; ln -s /usr/lib/deep $out/usr/bin/absolute
    echo a > $out/usr/lib/a; ln $out/usr/lib/a $out/usr/lib/b; chmod 600 $out/usr/lib/a
    : > $out/usr/lib/deep/er/empty; touch -d 2001-01-01 $out/usr/lib/deep
""", env = {"A_VARIABLE": "a value"})
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [curious, applets])
return {"": root, "curious": curious}
"##;

/// The store paths' last components and the rootfs's digest.
fn realised(place: &Place, srp: &Path, root: &str, user: Option<u32>) -> (Vec<String>, String) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(srp);
        place.surround(&mut command).args(arguments);
        if user.is_some() {
            as_nobody(&mut command);
        }
        Run::of(&mut command).succeeded()
    };
    let first = run(&["realise", "t.x", "--rootfs", root]);
    let (digest, _) = first.stderr.lines().last().unwrap().split_once(' ').unwrap();
    let all = run(&["closure", "--develop", "t.x"]).stdout;
    let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    (all.lines().map(name).collect(), digest.to_owned())
}

#[test]
fn users_and_places_make_no_difference() {
    let srp = Path::new(env!("CARGO_BIN_EXE_srp"));
    let here = Place::new(CURIOUS);
    let first = realised(&here, srp, "rootfs", None);
    assert_eq!(first.1.len(), 64, "{first:?}");

    // The same user with another umask, another directory, given as a link.
    let there = Place::new(CURIOUS);
    fs::create_dir_all(there.path("a long way/down")).unwrap();
    std::os::unix::fs::symlink("a long way/down", there.store()).unwrap();
    let script = format!("#!/bin/sh\numask 077\nexec '{}' \"$@\"\n", srp.display());
    there.write("srp", &script);
    let private = there.path("srp");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(realised(&there, &private, "rootfs", None), first);

    if !is_root() {
        skipped("the same paths as another user", "only root can become one");
        return;
    }
    let other = Place::new(CURIOUS);
    let program = other.give_to(NOBODY);
    assert_eq!(realised(&other, &program, "rootfs", Some(NOBODY)), first);
    assert_eq!(fs::metadata(other.store().join("objects")).unwrap().uid(), NOBODY);
}

#[test]
fn a_rootfs_is_what_its_digest_says() {
    let place = Place::new(CURIOUS);
    let (_, digest) = realised(&place, Path::new(env!("CARGO_BIN_EXE_srp")), "rootfs", None);
    assert_eq!(independent_digest(&place.path("rootfs")), digest);
    // The independent way notices what it should.
    fs::write(place.path("rootfs/usr/new"), "").unwrap();
    assert_ne!(independent_digest(&place.path("rootfs")), digest);
}

/// The digest by tests/tree-digest.sh, run in the seed's base system, which has all that it needs.
fn independent_digest(tree: &Path) -> String {
    let srp = Seed::new();
    srp.bash(tree, &fs::read_to_string(seed::repository().join("tests/tree-digest.sh")).unwrap())
}

/// A shell of the project's own definitions.
struct Seed(Place);

impl Seed {
    fn new() -> Seed {
        let place = Place::new("return {}");
        Seed(place)
    }

    fn bash(&self, tree: &Path, script: &str) -> String {
        let definitions = seed::repository().join("derivations");
        let sources = seed_sources();
        let config = format!("sources = ['{}']\n", sources.display());
        self.0.write("home/.config/srp/config.toml", &config);
        let attr = format!("seed.{}.b3sum", std::env::consts::ARCH);
        let bind = format!("{}:/tree", tree.display());
        // What is bound must be readable for the user inside.
        let mut command = self.0.command(&["shell", "--bind", &bind, &attr, "--"]);
        command.args(["bash", "-c", script, "tree-digest", "/tree"]);
        command.env("SRP_DEFINITIONS", definitions);
        if let Some(mirror) = std::env::var_os("SRP_MIRROR_DEBIAN") {
            command.env("SRP_MIRROR_DEBIAN", mirror);
        }
        Run::of(&mut command).succeeded().stdout.trim_end().to_owned()
    }
}

/// The packages of the seed's `b3sum` and what that lies over.
fn seed_sources() -> PathBuf {
    let mut directory = None;
    for name in seed::packages_of_set(std::env::consts::ARCH, "b3sum") {
        let package = seed::package(std::env::consts::ARCH, &name);
        directory = Some(seed::sources(&package));
    }
    directory.expect("the set has packages")
}

#[test]
fn a_rootfs_is_a_copy_that_can_be_changed() {
    let place = Place::new(CURIOUS);
    realised(&place, Path::new(env!("CARGO_BIN_EXE_srp")), "rootfs", None);
    let root = place.path("rootfs");
    assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    for name in ["etc/passwd", "etc/group", "proc", "dev", "root"] {
        assert!(root.join(name).exists(), "{name}");
    }
    fs::write(root.join("usr/lib/a"), "changed\n").unwrap();
    let object = place.realise("t.x.curious");
    assert_eq!(fs::read_to_string(object.join("usr/lib/a")).unwrap(), "a\n");
    assert!(place::list(&place.store().join("tmp")).is_empty());
}

#[test]
fn objects_are_normalised() {
    let place = Place::new(CURIOUS);
    let object = place.realise("t.x.curious");
    for (path, mode) in [("usr/bin/prog", 0o555), ("usr/lib/a", 0o444), ("usr/lib/deep", 0o555)] {
        let found = fs::metadata(object.join(path)).unwrap();
        let time = srp_store::TREE_TIME_SECONDS;
        assert_eq!((found.permissions().mode() & 0o7777, found.mtime()), (mode, time), "{path}");
    }
    assert_eq!(fs::metadata(object.join("usr/lib/a")).unwrap().nlink(), 1);
    assert_eq!(fs::read_link(object.join("usr/bin/absolute")).unwrap(), Path::new("../lib/deep"));
}
