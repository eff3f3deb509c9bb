//! What the kernel must offer for a sandbox: each feature tried for real, never judged by version,
//! and the advice that goes with its absence.
//!
//! The trials run in the launcher process and a clone of it, since srp itself has threads and must
//! not change its namespaces.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{fchdir, geteuid, pipe2};
use serde::{Deserialize, Serialize};

use super::apply::prepare_source;
use super::cgroup;
use super::error::SandboxError;
use super::launcher::Launcher;
use super::seccomp;
use super::sys::{self, Cloned, MountAttributes};
use super::wire::{self, Failure, Report, Request, tell};
use super::zygote::{FIRST_SANDBOX_UID, identity_map, read_body, write_maps};

/// A feature of the kernel or of its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Whether it works here.
    pub present: bool,
    /// Whether srp can do without.
    pub optional: bool,
    /// What for.
    pub needed_for: &'static str,
    /// What the kernel answered, if it is absent.
    pub reason: Option<String>,
    /// What to do, if it is absent and there is something to do.
    pub fix: Option<String>,
}

/// One trial's result; `errno` 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProbeResult {
    probe: Probe,
    errno: i32,
}

/// What is tried, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Probe {
    UserNamespace,
    Namespaces,
    Mounts,
    MountAttributes,
    Proc,
    Overlay,
    WritableOverlay,
    Loopback,
    Resolution,
    Filter,
    Binfmt,
    IdMap,
}

impl Probe {
    const ALL: [Probe; 12] = [
        Probe::UserNamespace,
        Probe::Namespaces,
        Probe::Mounts,
        Probe::MountAttributes,
        Probe::Proc,
        Probe::Overlay,
        Probe::WritableOverlay,
        Probe::Loopback,
        Probe::Resolution,
        Probe::Filter,
        Probe::Binfmt,
        Probe::IdMap,
    ];

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Probe::UserNamespace => ("user and PID namespaces", "every build"),
            Probe::Namespaces => ("mount, IPC, UTS, network and cgroup namespaces", "every build"),
            Probe::Mounts => ("mounts in a user namespace", "every build"),
            Probe::MountAttributes => ("mount_setattr (Linux 5.12)", "every build"),
            Probe::Proc => ("/proc in a user namespace", "every build"),
            Probe::Overlay => ("overlayfs in a user namespace (Linux 5.11)", "every build"),
            Probe::WritableOverlay => ("writable overlayfs in a user namespace", "srp shell"),
            Probe::Loopback => ("loopback in a network namespace", "every build"),
            Probe::Resolution => ("openat2 and close_range (Linux 5.11)", "every build"),
            Probe::Filter => ("seccomp filters", "every build"),
            Probe::Binfmt => {
                ("binfmt_misc per user namespace (Linux 6.7)", "running foreign programs")
            }
            Probe::IdMap => {
                ("overlays of mounts with mapped identities (Linux 5.19)", "builds by root")
            }
        }
    }
}

/// Tries every feature. `store` is a directory of the store, whose file system root's builds need
/// to support mapped identities.
pub fn features(launcher: &Launcher, store: &Path) -> Result<Vec<Feature>, SandboxError> {
    let (report, _process) = launcher.request(Request::Probe, &store.to_owned(), &[])?;
    let results = match wire::hear::<Report>(&report) {
        Ok(Some((Report::Probed(results), _))) => results,
        Ok(Some((Report::Failed(failure), _))) => return Err(SandboxError::setup(failure)),
        _ => return Err(SandboxError::LauncherDied { exe: launcher.exe().to_owned() }),
    };
    let mut features: Vec<Feature> = Probe::ALL
        .into_iter()
        .filter(|probe| *probe != Probe::IdMap || geteuid().is_root())
        .map(|probe| feature(probe, results.iter().find(|result| result.probe == probe)))
        .collect();
    let delegated = cgroup::find_parent().is_some();
    features.push(Feature {
        name: "a delegated cgroup (version 2) with memory and pids",
        present: delegated,
        optional: true,
        needed_for: "exact limits of memory and processes; else a watchdog enforces them",
        reason: None,
        fix: (!delegated).then(|| {
            "run srp by `systemd-run --user --scope -p Delegate=yes`, or go on without".to_owned()
        }),
    });
    Ok(features)
}

fn feature(probe: Probe, result: Option<&ProbeResult>) -> Feature {
    let (name, needed_for) = probe.describe();
    let errno = result.map(|result| Errno::from_raw(result.errno));
    let present = result.is_some_and(|result| result.errno == 0);
    let optional = matches!(probe, Probe::Binfmt | Probe::WritableOverlay);
    let reason = match errno {
        _ if present => None,
        Some(errno) => Some(errno.to_string()),
        None => Some("not tried, because an earlier one is missing".to_owned()),
    };
    let fix = errno.filter(|_| !present).and_then(|errno| advice(probe, errno, &Host::look()));
    Feature { name, present, optional, needed_for, reason, fix }
}

/// Advice for a step of the set-up that failed.
pub(super) fn fix(step: &str, action: &str, errno: Errno) -> Option<String> {
    if step == super::inherited::LIMITS_STEP {
        let fix = "start srp where that limit is not set (`ulimit -H` in a shell, LimitXXX= of a \
                   systemd unit, /etc/security/limits.conf)";
        return Some(fix.to_owned());
    }
    let probe = match step {
        "enter user and PID namespaces" | "map the user" => Probe::UserNamespace,
        "enter mount, IPC, UTS, network and cgroup namespaces" => Probe::Namespaces,
        "make the mounts private" | "mount a staging file system" => Probe::Mounts,
        "mount /proc" => Probe::Proc,
        "make a binfmt_misc instance" => Probe::Binfmt,
        "bring the loopback interface up" => Probe::Loopback,
        "install the system-call filter" => Probe::Filter,
        _ if action == "map its identities" => Probe::IdMap,
        _ if action == "mount an overlay" => Probe::Overlay,
        _ if errno == Errno::ENOSYS => Probe::MountAttributes,
        _ => return None,
    };
    advice(probe, errno, &Host::look())
}

/// What of the host's configuration is known to stand in a sandbox's way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Host {
    apparmor_restricts: bool,
    debian_switch_off: bool,
    no_user_namespaces: bool,
    wsl1: bool,
    container: bool,
}

impl Host {
    fn look() -> Host {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let is = |path: &str, value: &str| read(path).trim() == value;
        let release = read("/proc/sys/kernel/osrelease");
        Host {
            apparmor_restricts: is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            debian_switch_off: is("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            no_user_namespaces: is("/proc/sys/user/max_user_namespaces", "0"),
            wsl1: release.contains("Microsoft") && !release.contains("WSL2"),
            container: ["/.dockerenv", "/run/.containerenv"]
                .iter()
                .any(|path| Path::new(path).exists()),
        }
    }
}

fn advice(probe: Probe, errno: Errno, host: &Host) -> Option<String> {
    if host.wsl1 {
        return Some("WSL 1 has no namespaces: convert it with `wsl --set-version`".to_owned());
    }
    let refused = matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS);
    let text = match probe {
        Probe::UserNamespace | Probe::Namespaces if host.no_user_namespaces => {
            "user namespaces are switched off: `sysctl user.max_user_namespaces=15000`"
        }
        Probe::UserNamespace | Probe::Namespaces if errno == Errno::ENOSPC => {
            "too many namespaces exist, or they are nested too deeply: raise \
             user.max_user_namespaces and its siblings"
        }
        Probe::UserNamespace if host.debian_switch_off => {
            "user namespaces are for root only: `sysctl kernel.unprivileged_userns_clone=1`"
        }
        Probe::UserNamespace | Probe::Namespaces | Probe::Mounts
            if refused && host.apparmor_restricts =>
        {
            "AppArmor restricts user namespaces: \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give srp a profile with \
             `userns,`"
        }
        Probe::Proc if refused => {
            "the host's /proc is partly covered, as in containers: run the container with \
             `--security-opt systempaths=unconfined`"
        }
        Probe::UserNamespace | Probe::Namespaces | Probe::Mounts | Probe::Overlay
            if refused && host.container =>
        {
            "the container forbids it: run it with `--security-opt seccomp=unconfined --security-opt \
             apparmor=unconfined`"
        }
        Probe::UserNamespace if errno == Errno::EINVAL => {
            "the kernel has no user namespaces (CONFIG_USER_NS)"
        }
        Probe::Overlay | Probe::WritableOverlay if errno == Errno::ENODEV => {
            "the kernel has no overlayfs: `modprobe overlay`"
        }
        Probe::Overlay | Probe::WritableOverlay if errno == Errno::EPERM => {
            "overlayfs in a user namespace needs Linux 5.11"
        }
        Probe::MountAttributes | Probe::Resolution | Probe::IdMap if errno == Errno::ENOSYS => {
            "Linux 5.12 is needed"
        }
        Probe::Binfmt if errno == Errno::EPERM => {
            "Linux 6.7 is needed to run foreign programs; on an older one a host whose own \
             binfmt_misc handlers would run in builds must remove them first"
        }
        Probe::Binfmt if errno == Errno::ENODEV => {
            "the kernel has no binfmt_misc: `modprobe binfmt_misc`"
        }
        Probe::IdMap if errno == Errno::EINVAL => {
            "root's builds need the store and the build directories on a file system that supports \
             mapped identities, such as ext4, XFS, btrfs or (Linux 6.3) tmpfs; or run srp as a user"
        }
        Probe::IdMap if errno == Errno::EPERM => {
            "srp runs as a root without CAP_SYS_ADMIN: run it as an ordinary user"
        }
        Probe::Filter => "the kernel needs CONFIG_SECCOMP_FILTER",
        _ => return None,
    };
    Some(text.to_owned())
}

/// Tries everything, in the launcher process.
pub(super) fn probe(report: &OwnedFd, body: OwnedFd) -> Result<(), Failure> {
    let at = |action: &'static str| move |errno| Failure::new("try features", action, errno);
    let store: PathBuf = read_body(body).map_err(at("read the request"))?;
    let mut results = Vec::new();
    let mut note = |probe, result: Result<(), Errno>| {
        results.push(ProbeResult { probe, errno: result.err().map_or(0, |errno| errno as i32) });
    };
    let (go, let_go) = pipe2(OFlag::O_CLOEXEC).map_err(at("make a pipe"))?;
    let (answer, say) = pipe2(OFlag::O_CLOEXEC).map_err(at("make a pipe"))?;
    let mut as_root = (FIRST_SANDBOX_UID, FIRST_SANDBOX_UID);
    let root = geteuid().is_root();
    if !root {
        as_root = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
    }
    match sys::clone_process(libc::CLONE_NEWUSER | libc::CLONE_NEWPID, false) {
        Err(errno) => note(Probe::UserNamespace, Err(errno)),
        Ok(Cloned::Child) => {
            drop((let_go, answer));
            let mut byte = [0];
            if nix::unistd::read(&go, &mut byte) == Ok(1) {
                let results = probes_inside();
                let bytes = serde_json::to_vec(&results).unwrap_or_default();
                let _ = File::from(say).write_all(&bytes);
            }
            sys::exit_now(0)
        }
        Ok(Cloned::Parent { pid, .. }) => {
            let mapped = write_maps(pid, (0, 0), as_root).map_err(|(_, errno)| errno);
            note(Probe::UserNamespace, mapped);
            if mapped.is_ok() {
                let _ = nix::unistd::write(&let_go, &[1]);
            }
            drop((let_go, say));
            let mut text = Vec::new();
            let _ = File::from(answer).read_to_end(&mut text);
            let _ = sys::wait_for(Some(pid), true);
            results.extend(serde_json::from_slice::<Vec<ProbeResult>>(&text).unwrap_or_default());
        }
    }
    if root {
        let map = identity_map((0, 0), as_root);
        let tried = map.and_then(|map| {
            prepare_source(&store, false, Some(map.as_fd())).map(drop).map_err(|(_, errno)| errno)
        });
        let errno = tried.err().map_or(0, |errno| errno as i32);
        results.push(ProbeResult { probe: Probe::IdMap, errno });
    }
    tell(report, &Report::Probed(results), &[]).map_err(at("report to srp"))
}

/// Tries everything that needs a new user namespace, in one.
fn probes_inside() -> Vec<ProbeResult> {
    let mut results = Vec::new();
    let mut note = |probe, result: Result<(), Errno>| {
        results.push(ProbeResult { probe, errno: result.err().map_or(0, |errno| errno as i32) });
        result.is_ok()
    };
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    let user =
        nix::unistd::setresgid(gid, gid, gid).and_then(|()| nix::unistd::setresuid(uid, uid, uid));
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    if !note(Probe::Namespaces, user.and_then(|()| unshare(namespaces))) {
        return results;
    }
    note(Probe::Loopback, sys::loopback_up());
    let plain = MountAttributes { no_devices: true, ..Default::default() };
    let mounted = staging();
    note(Probe::Mounts, mounted.as_ref().map(drop).map_err(|errno| *errno));
    if let Ok(staging) = mounted {
        let read_only = MountAttributes { read_only: true, ..plain };
        let restricted = sys::clone_mount(staging.as_fd(), c"a")
            .and_then(|mount| sys::set_mount_attributes(mount.as_fd(), &read_only));
        note(Probe::MountAttributes, restricted);
        note(Probe::Overlay, overlay(staging.as_fd(), "lowerdir=a:b", MsFlags::MS_RDONLY));
        let options = "lowerdir=a:b,upperdir=u,workdir=w,userxattr";
        note(Probe::WritableOverlay, overlay(staging.as_fd(), options, MsFlags::empty()));
        let resolved = sys::open_beneath(staging.as_fd(), c"a").map(drop);
        note(Probe::Resolution, resolved.and_then(|()| sys::close_on_exec_from(3)));
    }
    note(Probe::Proc, sys::new_filesystem(c"proc", &[], &plain).map(drop));
    note(Probe::Binfmt, sys::new_filesystem(c"binfmt_misc", &[], &plain).map(drop));
    let filtered = nix::sys::prctl::set_no_new_privs()
        .and_then(|()| sys::install_filter(&seccomp::filter(&[], false)));
    note(Probe::Filter, filtered);
    results
}

/// A file system in memory with the directories of the overlay trials, on top of the root.
fn staging() -> Result<OwnedFd, Errno> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let plain = MountAttributes { no_devices: true, ..Default::default() };
    let staging = sys::new_filesystem(c"tmpfs", &[(c"mode", c"0755")], &plain)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty())?;
    sys::attach_mount(staging.as_fd(), root.as_fd())?;
    for name in ["a", "b", "u", "w", "m"] {
        mkdirat(&staging, name, Mode::S_IRWXU)?;
    }
    Ok(staging)
}

fn overlay(staging: BorrowedFd<'_>, options: &str, flags: MsFlags) -> Result<(), Errno> {
    fchdir(staging)?;
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), "m", Some("overlay"), flags, Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_with_the_way_out() {
        let advise = |probe, errno, host: Host| advice(probe, errno, &host).unwrap_or_default();
        let host = Host { apparmor_restricts: true, ..Host::default() };
        assert!(advise(Probe::Mounts, Errno::EPERM, host.clone()).contains("AppArmor"));
        assert!(advise(Probe::UserNamespace, Errno::EACCES, host).contains("AppArmor"));
        let host = Host { no_user_namespaces: true, ..Host::default() };
        assert!(advise(Probe::UserNamespace, Errno::ENOSPC, host).contains("max_user_namespaces"));
        let host = Host { container: true, ..Host::default() };
        assert!(advise(Probe::UserNamespace, Errno::EPERM, host.clone()).contains("seccomp"));
        assert!(advise(Probe::Proc, Errno::EPERM, host).contains("systempaths"));
        let host = Host { wsl1: true, ..Host::default() };
        assert!(advise(Probe::UserNamespace, Errno::EINVAL, host).contains("WSL"));
        assert!(advise(Probe::Binfmt, Errno::EPERM, Host::default()).contains("6.7"));
        assert!(advise(Probe::IdMap, Errno::EINVAL, Host::default()).contains("ext4"));
        assert!(advise(Probe::IdMap, Errno::ENOSYS, Host::default()).contains("5.12"));
    }

    #[test]
    fn every_step_that_a_feature_stands_for_is_still_called_so() {
        let mut plan = super::super::plan::SandboxPlan::new(vec!["/bin/true".to_owned()]);
        plan.layers.push("/l".into());
        let steps: Vec<String> = plan.steps().iter().map(ToString::to_string).collect();
        for name in [
            "enter mount, IPC, UTS, network and cgroup namespaces",
            "make the mounts private",
            "mount a staging file system",
            "mount /proc",
            "make a binfmt_misc instance",
            "bring the loopback interface up",
            "install the system-call filter",
        ] {
            assert!(steps.iter().any(|step| step == name), "{name}");
        }
    }
}
