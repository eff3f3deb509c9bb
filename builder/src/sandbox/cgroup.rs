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

/// The most memory that this process and all that it starts may use, where a cgroup of it or above
/// it says so: of version 2, and of version 1 where that has the memory controller.
#[must_use]
pub fn memory_limit_bytes() -> Option<u64> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    memory_limit_in(&mounts, &own)
}

fn memory_limit_in(mountinfo: &str, own_cgroups: &str) -> Option<u64> {
    let unified = hierarchy(mountinfo, |kind, _| kind == "cgroup2");
    let own = own_cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    let unified = unified.zip(own).and_then(|(hierarchy, own)| {
        hierarchy.ancestors_of(own).filter_map(|path| number(&path.join("memory.max"))).min()
    });
    let has_memory = |options: &str| options.split(',').any(|option| option == "memory");
    let classic = hierarchy(mountinfo, |kind, options| kind == "cgroup" && has_memory(options));
    let own = own_cgroups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        has_memory(controllers).then_some(path)
    });
    let classic = classic.zip(own).and_then(|(hierarchy, own)| {
        let paths = hierarchy.ancestors_of(own);
        paths.filter_map(|path| number(&path.join("memory.limit_in_bytes"))).min()
    });
    [unified, classic].into_iter().flatten().min()
}

/// A number; none where there is "max" or no such file. (Version 1 says "none" by a number that no
/// machine has.)
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Where a hierarchy of cgroups is mounted.
struct Hierarchy {
    /// The cgroup that is seen at the mount point.
    root: PathBuf,
    place: PathBuf,
}

impl Hierarchy {
    /// The directories of a cgroup and of those above it, as far as they are to be seen. In a
    /// container without a namespace for cgroups the mount point is its own.
    fn ancestors_of(&self, cgroup: &str) -> impl Iterator<Item = PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let own = self.place.join(below);
        let place = self.place.clone();
        let all: Vec<PathBuf> = own.ancestors().map(Path::to_owned).collect();
        all.into_iter().take_while(move |path| path.starts_with(&place))
    }
}

/// The hierarchy of this kind and with these options.
fn hierarchy(mountinfo: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<Hierarchy> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
        wanted(kind, options).then(|| Hierarchy { root: root.into(), place: place.into() })
    })
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
    fn the_least_of_all_memory_limits_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        };
        let place = root.path().display();
        let mounts = format!(
            "33 22 0:28 / {place}/two rw - cgroup2 cgroup2 rw\n\
             34 22 0:29 /pod {place}/one rw - cgroup cgroup rw,memory\n"
        );
        let own = "4:cpu,memory:/pod/box\n1:cpu:/\n0::/a.slice/b.scope\n";
        assert_eq!(memory_limit_in(&mounts, own), None);
        write("two/a.slice/b.scope/memory.max", "max\n");
        write("two/a.slice/memory.max", "4096000\n");
        assert_eq!(memory_limit_in(&mounts, own), Some(4_096_000));
        write("one/box/memory.limit_in_bytes", "9223372036854771712\n");
        write("one/memory.limit_in_bytes", "2048000\n");
        assert_eq!(memory_limit_in(&mounts, own), Some(2_048_000));
        // Its own cgroup is not to be seen: it is what is mounted.
        assert_eq!(memory_limit_in(&mounts, "4:memory:/elsewhere\n"), Some(2_048_000));
    }

    #[test]
    fn events_are_counted_by_whole_name() {
        let text = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 1\n";
        assert_eq!(event_count(text, "oom_kill"), 1);
        assert_eq!(event_count(text, "max"), 7);
        assert_eq!(event_count(text, "oo"), 0);
    }
}
