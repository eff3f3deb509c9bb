//! What the tests run in: a root made of busybox, its plan, and ways to run it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use srp_builder::CancelToken;
use srp_builder::sandbox::{
    Bind, Launcher, Outcome, SandboxError, SandboxPlan, SkeletonEntry, Status,
};
use srp_store::TREE_TIME_SECONDS;
use tempfile::TempDir;

use super::seed;

/// A store with one object, a build directory, and a launcher.
pub(crate) struct Fixture {
    pub(crate) directory: PathBuf,
    pub(crate) launcher: Launcher,
    _owned: Option<TempDir>,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let owned = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::at(owned.path());
        fixture._owned = Some(owned);
        fixture
    }

    /// A fixture in a directory that stays.
    pub(crate) fn at(directory: &Path) -> Fixture {
        let bin = directory.join("busybox/usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(busybox(), bin.join("busybox")).unwrap();
        super::make_executable(&bin.join("busybox"));
        let list = Command::new(busybox()).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        for name in ["build", "out/out", "tmp", "other/usr/share"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        fs::write(directory.join("other/usr/share/word"), "upper\n").unwrap();
        let fixture = Fixture {
            directory: directory.to_owned(),
            launcher: Launcher::new(std::env::current_exe().unwrap()),
            _owned: None,
        };
        fixture.normalise("busybox", true);
        fixture.normalise("other", true);
        for name in ["build", "out", "tmp"] {
            fixture.normalise(name, false);
        }
        fixture
    }

    /// The store's time; of store objects also modes 0555 and 0444, as the store has them.
    pub(crate) fn normalise(&self, name: &str, object: bool) {
        normalise(&self.directory.join(name), object);
    }

    pub(crate) fn plan(&self, script: &str) -> SandboxPlan {
        let words = ["/usr/bin/sh", "-c", script];
        let mut plan = SandboxPlan::new(words.map(str::to_owned).to_vec());
        plan.layers = vec![self.directory.join("other"), self.directory.join("busybox")];
        plan.skeleton =
            vec![SkeletonEntry::Symlink { path: "/bin".into(), target: "usr/bin".into() }];
        for (name, target) in
            [("build", "/srp/build"), ("out/out", "/srp/out/out"), ("tmp", "/tmp")]
        {
            plan.binds.push(Bind {
                source: self.directory.join(name),
                target: target.to_owned(),
                writable: true,
                directory: true,
            });
        }
        plan.env.insert("PATH".into(), "/usr/bin".into());
        plan.cwd = "/srp/build".into();
        plan
    }

    pub(crate) fn run(&self, plan: &SandboxPlan) -> Result<(Outcome, String), SandboxError> {
        let mut log = Vec::new();
        let outcome = self.launcher.run(plan, &mut log, &CancelToken::new().unwrap())?;
        Ok((outcome, String::from_utf8_lossy(&log).into_owned()))
    }

    /// Runs a script that must succeed; its output.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (outcome, log) = self.run(&self.plan(script)).unwrap();
        assert_eq!(outcome.status, Status::Exited(0), "{script}\n{log}");
        log
    }
}

/// Runs a plan from a file, printing its log: an srp that can be killed.
pub(crate) fn run_plan_file(path: &str) {
    let plan: SandboxPlan = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let launcher = Launcher::new(std::env::current_exe().unwrap());
    let outcome = launcher.run(&plan, &mut std::io::stdout(), &CancelToken::new().unwrap());
    eprintln!("{outcome:?}");
}

/// A static busybox for this machine.
pub(crate) fn busybox() -> PathBuf {
    named("SRP_TEST_BUSYBOX").unwrap_or_else(seed::busybox)
}

/// A static busybox for another machine.
pub(crate) fn foreign_busybox() -> PathBuf {
    named("SRP_TEST_BUSYBOX_AARCH64")
        .unwrap_or_else(|| seed::program("aarch64", "busybox-static", "usr/bin/busybox"))
}

/// What runs programs of that machine.
pub(crate) fn qemu() -> PathBuf {
    named("SRP_TEST_QEMU_AARCH64").unwrap_or_else(|| {
        seed::program(std::env::consts::ARCH, "qemu-user", "usr/bin/qemu-aarch64")
    })
}

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// A copy of this program where every user can execute it.
pub(crate) struct Copy(TempDir);

impl Copy {
    pub(crate) fn of_this_program() -> Copy {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let copy = Copy(directory);
        copy.add("program", &std::env::current_exe().unwrap());
        copy
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.0.path().join("program")
    }

    pub(crate) fn add(&self, name: &str, file: &Path) -> PathBuf {
        let path = self.0.path().join(name);
        fs::copy(file, &path).unwrap();
        super::make_executable(&path);
        path
    }
}

fn normalise(path: &Path, object: bool) {
    let kind = fs::symlink_metadata(path).unwrap();
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            normalise(&entry.unwrap().path(), object);
        }
    }
    if kind.is_symlink() {
        let time = nix::sys::time::TimeSpec::new(TREE_TIME_SECONDS, 0);
        let no_follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, no_follow).unwrap();
        return;
    }
    let file = fs::File::open(path).unwrap();
    let time = Duration::from_secs(TREE_TIME_SECONDS.try_into().unwrap());
    file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
    let mode = match kind.is_dir() || kind.permissions().mode() & 0o100 != 0 {
        _ if !object => 0o755,
        true => 0o555,
        false => 0o444,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
