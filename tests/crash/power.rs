//! The power is cut: what a real file system has on its disk at each call that syncs or renames is
//! all that is left.
//!
//! The store lies on a loop device. When srp has been killed before a call, the device is copied as
//! it is: what lay in memory alone is lost, in the order in which this file system writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::cut::{self, Ended};
use crate::support::Run;
use crate::{Ground, rounds, seed};

/// Programs that make file systems, and how large these must be at least.
const FILE_SYSTEMS: &[(&str, &[&str], &str)] = &[
    ("mkfs.ext4", &["-q"], "64M"),
    ("mkfs.btrfs", &["-q"], "128M"),
    ("mkfs.xfs", &["-q"], "320M"),
];

#[test]
fn a_power_cut_leaves_whole_objects_or_none() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can mount file systems with a disk of their own");
        return;
    }
    for (program, arguments, size) in FILE_SYSTEMS {
        let ground = Ground::new();
        ground.place.realise("t.x.seed");
        ground.keep("seed");
        let command = ["realise", "t.x"];
        let expected = ground.place.srp(&command).succeeded().stdout;
        let Some(disk) = Disk::new(&ground, program, arguments, size) else { continue };
        let mounted = disk.mount();
        let calls = match cut::run(&ground.place.command(&command), usize::MAX) {
            Ended::Exited { code: 0, calls } => calls,
            ended => panic!("{program}: {ended:?}: {}", ground.place.srp(&command)),
        };
        drop(mounted);
        let step = calls.div_ceil((rounds() / 5).max(2));
        for at in (seed() as usize % step..calls).step_by(step) {
            disk.begin();
            let mounted = disk.mount();
            cut::run(&ground.place.command(&command), at);
            disk.cut_power();
            drop(mounted);
            let mounted = disk.mount_what_is_left();
            let when = format!("{program}: the power is cut at call {at} of {calls}");
            ground.assert_goes_on(&when, &command, &expected);
            drop(mounted);
        }
        println!("{program}: the power was cut at every {step}th of {calls} calls");
    }
}

/// An image with the seed's store, mounted where the store is.
struct Disk {
    first: PathBuf,
    used: PathBuf,
    left: PathBuf,
    store: PathBuf,
}

impl Disk {
    /// None if this machine can't make or mount such a file system.
    fn new(ground: &Ground, program: &str, arguments: &[&str], size: &str) -> Option<Disk> {
        let at = |name: &str| ground.place.path(name);
        let disk =
            Disk { first: at("first"), used: at("used"), left: at("left"), store: at("store") };
        crate::remove(&disk.store);
        fs::create_dir(&disk.store).unwrap();
        crate::run(Command::new("truncate").args(["-s", size]).arg(&disk.first));
        let made = Command::new(program).args(arguments).arg(&disk.first).output();
        if !made.is_ok_and(|made| made.status.success()) {
            println!("SKIPPED: {program} isn't here, or fails");
            return None;
        }
        let Some(mounted) = Mounted::new(&disk.first, &disk.store) else {
            println!("SKIPPED: what {program} makes can't be mounted here");
            return None;
        };
        let mut kept = ground.kept("seed").into_os_string();
        kept.push("/.");
        crate::run(Command::new("cp").arg("-a").arg(kept).arg(&disk.store));
        drop(mounted);
        disk.begin();
        Some(disk)
    }

    fn begin(&self) {
        copy(&self.first, &self.used);
    }

    fn mount(&self) -> Mounted {
        self.mount_image(&self.used)
    }

    /// Copies what is on the disk at one moment. It is that if a second copy is the same: whatever
    /// the kernel wrote behind the first one's back would be in the second.
    fn cut_power(&self) {
        let again = self.left.with_extension("again");
        for _ in 0..20 {
            copy(&self.used, &self.left);
            copy(&self.used, &again);
            if Run::of(Command::new("cmp").arg("-s").arg(&self.left).arg(&again)).code == Some(0) {
                return;
            }
        }
        panic!("the kernel doesn't stop writing");
    }

    fn mount_what_is_left(&self) -> Mounted {
        self.mount_image(&self.left)
    }

    fn mount_image(&self, image: &Path) -> Mounted {
        // Some file systems can't be mounted twice, and a sandbox that hasn't ended yet may hold the
        // last one in its mount namespace.
        for _ in 0..100 {
            if let Some(mounted) = Mounted::new(image, &self.store) {
                return mounted;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{} can't be mounted", image.display());
    }
}

/// A mounted image, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Option<Mounted> {
        let run = Run::of(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
        (run.code == Some(0)).then(|| Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What srp had started may end a moment after it.
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|it| it.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} stays mounted", self.0.display());
    }
}

fn copy(from: &Path, to: &Path) {
    // A new file: the old one may still be mounted somewhere.
    crate::run(Command::new("rm").arg("-f").arg(to));
    crate::run(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
}
