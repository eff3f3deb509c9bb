//! A cgroup of version 2 for one sandbox, where the system has delegated one.
//!
//! Nothing is moved and no controller is switched on: a place is used only if the nearest ancestor
//! of srp's own cgroup that passes `memory` and `pids` on to its children lets srp make a child and
//! move processes into it. Everywhere else the watchdog of `watch` does the work, and the outcome
//! says so.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{AccessFlags, access};

use super::plan::Limits;

/// The cgroup of one sandbox; removed when dropped, by when its processes are gone.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

/// What the kernel did in a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    pub(super) killed_for_memory: bool,
    pub(super) refused_process: bool,
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Cgroup {
    /// A new cgroup below `parent` with these limits.
    pub(super) fn create_in(parent: &Path, limits: &Limits) -> io::Result<Cgroup> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("srp-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Cgroup { path };
        let limit = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        cgroup.write("memory.max", &limit(limits.memory_bytes))?;
        cgroup.write("pids.max", &limit(limits.processes.map(|n| n.saturating_add(1))))?; // init
        if limits.memory_bytes.is_some() {
            // Without swap accounting there is no such file, and no swap to account for.
            match cgroup.write("memory.swap.max", "0") {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            cgroup.write("memory.oom.group", "1")?;
        }
        Ok(cgroup)
    }

    /// The cgroup's directory, for whoever moves a process into it.
    pub(super) fn directory(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(&self.path)?.into())
    }

    /// The most memory that was charged at one time; `None` before Linux 5.19.
    pub(super) fn peak_memory_bytes(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.peak")).ok()?.trim().parse().ok()
    }

    /// What happened so far.
    pub(super) fn events(&self) -> Events {
        let count = |file: &str, name: &str| {
            let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
            event_count(&text, name)
        };
        Events {
            killed_for_memory: count("memory.events", "oom_kill") > 0,
            refused_process: count("pids.events", "max") > 0,
        }
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(name), value)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process is reaped a moment before the kernel takes it out of its cgroup.
        for _ in 0..50 {
            match fs::remove_dir(&self.path) {
                Err(e) if e.raw_os_error() == Some(nix::libc::EBUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                _ => return,
            }
        }
        tracing::warn!(cgroup = %self.path.display(), "cannot remove the sandbox's cgroup");
    }
}

/// How many processes the kernel has killed for lack of memory: of srp's own cgroup and those below
/// it, or of the whole machine where that isn't told apart. 0 where nothing is told.
pub(crate) fn out_of_memory_kills() -> u64 {
    let of_own = own_cgroup().and_then(|path| fs::read_to_string(path.join("memory.events")).ok());
    let counts = of_own.or_else(|| fs::read_to_string("/proc/vmstat").ok());
    event_count(&counts.unwrap_or_default(), "oom_kill")
}

fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own_cgroup_in(&mount_point(&mounts)?, &own)
}

fn own_cgroup_in(mount_point: &Path, own_cgroups: &str) -> Option<PathBuf> {
    own_cgroups.lines().find_map(|line| line.strip_prefix("0::/")).map(|own| mount_point.join(own))
}

/// Where a cgroup for a sandbox can be made.
pub(super) fn find_parent() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    find_parent_in(&mount_point(&mounts)?, &own)
}

fn find_parent_in(mount_point: &Path, own_cgroups: &str) -> Option<PathBuf> {
    let own = own_cgroup_in(mount_point, own_cgroups)?;
    own.ancestors().take_while(|path| path.starts_with(mount_point)).find_map(|path| {
        let passed_on = fs::read_to_string(path.join("cgroup.subtree_control")).ok()?;
        let has = |name| passed_on.split_whitespace().any(|controller| controller == name);
        let may = access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
            && access(&path.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
        (has("memory") && has("pids") && may).then(|| path.to_owned())
    })
}

/// Where the version 2 hierarchy is mounted whole.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(place))
    })
}

fn event_count(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_on_hybrid_systems_too() {
        let mounts = "\
            31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            32 22 0:28 /x /mnt rw - cgroup2 cgroup2 rw\n\
            33 22 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("1 2 0:3 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn the_nearest_ancestor_that_passes_both_controllers_on_is_used() {
        let root = tempfile::tempdir().expect("a directory");
        let scope = root.path().join("user.slice/app.slice/term.scope");
        fs::create_dir_all(&scope).expect("directories");
        let write = |path: &Path, controllers: &str| {
            fs::write(path.join("cgroup.subtree_control"), controllers).expect("a file");
            fs::write(path.join("cgroup.procs"), "").expect("a file");
        };
        write(&scope, "");
        write(&root.path().join("user.slice/app.slice"), "memory\n");
        write(&root.path().join("user.slice"), "cpu memory pids\n");
        write(root.path(), "cpu memory pids\n");
        let own = "3:memory:/elsewhere\n0::/user.slice/app.slice/term.scope\n";
        assert_eq!(find_parent_in(root.path(), own), Some(root.path().join("user.slice")));
        write(root.path(), "");
        write(&root.path().join("user.slice"), "");
        assert_eq!(find_parent_in(root.path(), own), None);
        assert_eq!(find_parent_in(root.path(), "3:memory:/x\n"), None);
    }

    #[test]
    fn events_are_counted_by_whole_name() {
        let text = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 1\n";
        assert_eq!(event_count(text, "oom_kill"), 1);
        assert_eq!(event_count(text, "max"), 7);
        assert_eq!(event_count(text, "oo"), 0);
    }
}
