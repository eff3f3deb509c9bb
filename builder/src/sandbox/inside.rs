//! What every sandbox has of its own: `/dev`, `/proc` and a binfmt_misc instance.
//!
//! More steps of `apply`, which owns the order; nothing here depends on the plan but the handlers.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, UtimensatFlags, fstat, major, minor, stat, utimensat};
use nix::sys::time::TimeSpec;
use srp_store::TREE_TIME_SECONDS;

use super::apply::{CLOEXEC, Done, NONE, Setup, Trouble, While, c_string, staging, write_file};
use super::sys::{self, MountAttributes};
use super::told;

/// What in `/proc` tells about the host, or would let root act on it, and no build needs: files.
const MASKED_FILES: &[&str] = &[
    "cmdline",
    "config.gz",
    "diskstats",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "keys",
    "key-users",
    "kmsg",
    "latency_stats",
    "locks",
    "modules",
    "partitions",
    "sched_debug",
    "softirqs",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
];

/// Directories of that kind.
const MASKED_DIRECTORIES: &[&str] = &["acpi", "asound", "bus", "driver", "fs", "irq", "scsi"];

/// How many pseudo-terminals a sandbox can have at one time: their number on the machine is limited.
const TERMINALS: &CStr = c"64";

/// Character devices of the host that a build sees, with their numbers.
const DEVICES: &[(&str, u64, u64)] = &[
    ("full", 1, 7),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];

impl Setup<'_> {
    pub(super) fn make_devices(&mut self) -> Done {
        let inside = |name: &str| format!("{}/{name}", staging::DEV);
        for (name, ..) in DEVICES {
            self.file(&inside(name), 0o444, b"")?;
        }
        self.directory(&inside("shm"), 0o1777)?;
        self.directory(&inside("pts"), 0o755)?;
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            self.symlink(target, &inside(name))?;
            self.seal(&inside(name))?;
        }
        self.seal(staging::DEV)?;
        let plain = MountAttributes { no_exec: true, ..Default::default() };
        let attributes = MountAttributes { read_only: true, no_devices: true, ..plain };
        self.attach_staged(staging::DEV, "/dev", &attributes)?;
        let attributes = MountAttributes { no_devices: true, ..plain };
        self.attach_staged(staging::SHM, "/dev/shm", &attributes)?;
        // They can be written to, but their owners and times are the host's.
        let attributes = MountAttributes { read_only: true, ..plain };
        for (name, device_major, device_minor) in DEVICES {
            let path = format!("/dev/{name}");
            let covered = self.cover(&path, &path)?;
            let found = stat(covered.as_str()).during(|| format!("examine the host's {path}"))?;
            let is_device = found.st_mode & libc::S_IFMT == libc::S_IFCHR;
            let number = (major(found.st_rdev), minor(found.st_rdev));
            if !is_device || number != (*device_major, *device_minor) {
                let action = format!("check that the host's {path} is that device");
                return Err(Trouble { action, errno: Errno::ENODEV });
            }
            sys::set_mount_attributes_at(&c_string(covered)?, &attributes)
                .during(|| format!("restrict {path}"))?;
        }
        let options = [(c"mode", c"0620"), (c"ptmxmode", c"0666"), (c"max", TERMINALS)];
        let terminals = sys::new_filesystem(c"devpts", &options, &plain)
            .during(|| "make pseudo-terminals".to_owned())?;
        let time = TimeSpec::new(TREE_TIME_SECONDS, 0);
        utimensat(&terminals, ".", &time, &time, UtimensatFlags::NoFollowSymlink)
            .during(|| "set the time of /dev/pts".to_owned())?;
        self.attach(terminals.as_fd(), "/dev/pts")
    }

    pub(super) fn mount_proc(&mut self, writable: bool) -> Done {
        let attributes = MountAttributes { no_devices: true, no_exec: true, ..Default::default() };
        let proc = sys::new_filesystem(c"proc", &[], &attributes)
            .during(|| "make a proc file system".to_owned())?;
        // Another mount of it, which nothing will cover.
        let bare = sys::clone_mount(proc.as_fd(), c"").during(|| "clone it".to_owned())?;
        let attributes = MountAttributes { read_only: !writable, ..attributes };
        sys::set_mount_attributes(proc.as_fd(), &attributes).during(|| "restrict it".to_owned())?;
        self.attach(proc.as_fd(), "/proc")?;
        self.bare_proc = Some(bare);
        self.proc = Some(proc);
        Ok(())
    }

    pub(super) fn mask_proc(&mut self) -> Done {
        let proc = self.proc.as_ref().expect("Proc comes before MaskProc").as_fd();
        let read_only =
            MountAttributes { read_only: true, no_devices: true, no_exec: true, id_map: None };
        let sys = sys::clone_mount(proc, c"sys").during(|| "take /proc/sys".to_owned())?;
        sys::set_mount_attributes(sys.as_fd(), &read_only)
            .during(|| "make /proc/sys read-only".to_owned())?;
        self.attach(sys.as_fd(), "/proc/sys")?;
        for (cover, names) in
            [(staging::NOTHING, MASKED_FILES), (staging::NO_ENTRIES, MASKED_DIRECTORIES)]
        {
            // A copy of a mount has its attributes, so these are set once.
            let covering = self.staged_mount(cover, &read_only)?;
            self.attach_in_staging(covering.as_fd(), cover)?;
            for name in names {
                match self.cover(cover, &format!("/proc/{name}")) {
                    // Kernels differ in what they have.
                    Err(Trouble { errno: Errno::ENOENT, .. }) | Ok(_) => {}
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        Ok(())
    }

    /// Mounts a copy of `source` at a path beneath a mount of the sandbox's own, `/dev` or `/proc`;
    /// that path as it is seen from here.
    ///
    /// By paths: which costs the kernel a fraction of what it does by descriptors. The working
    /// directory is the staging area; no link lies on the way from there to `/dev` and `/proc`,
    /// else these couldn't have been attached, nor is there any in them that the host made.
    fn cover(&self, source: &str, target: &str) -> Done<String> {
        let seen = format!("{}{target}", staging::ROOT);
        mount(Some(source), seen.as_str(), NONE, MsFlags::MS_BIND, NONE)
            .during(|| format!("cover {target}"))?;
        Ok(seen)
    }

    pub(super) fn tell_otherwise(&mut self, path: &str) -> Done {
        let proc = self.proc.as_ref().expect("Proc comes before TellOtherwise").as_fd();
        let file = match openat(proc, path, OFlag::O_RDONLY | CLOEXEC, Mode::empty()) {
            // Nothing is told of the machine itself, then.
            Err(Errno::ENOENT) => return Ok(()),
            file => file.during(|| format!("open /proc/{path}"))?,
        };
        let text = std::io::read_to_string(std::fs::File::from(file)).map_err(|_| Errno::EIO);
        let text = text.during(|| format!("read /proc/{path}"))?;
        let told = told::instead(path, &text, &self.plan.attributes).ok_or(Errno::ENODATA);
        let told = told.during(|| format!("find the machine in /proc/{path}"))?;
        let staged = format!("{}-{}", staging::TOLD, path.replace('/', "-"));
        self.file(&staged, 0o444, told.as_bytes())?;
        self.seal(&staged)?;
        let attributes =
            MountAttributes { read_only: true, no_devices: true, no_exec: true, id_map: None };
        self.attach_staged(&staged, &format!("/proc/{path}"), &attributes)
    }

    pub(super) fn make_binfmt(&mut self, required: bool) -> Done {
        let attributes = MountAttributes { no_devices: true, no_exec: true, ..Default::default() };
        match sys::new_filesystem(c"binfmt_misc", &[], &attributes) {
            Ok(instance) => {
                self.binfmt = Some(instance);
                Ok(())
            }
            // The kernel was built without it: then the host has no handlers, either.
            Err(Errno::ENODEV) if !required => Ok(()),
            Err(Errno::EPERM) if !required && !host_handlers_would_run() => Ok(()),
            Err(errno) => Err(Trouble { action: "make the instance".to_owned(), errno }),
        }
    }

    pub(super) fn register(&mut self, source: usize, handler: usize) -> Done {
        let handler = &self.plan.binfmt[handler];
        let emulator = self.take_source(source)?;
        let found =
            fstat(&emulator).during(|| format!("examine {}", handler.emulator.display()))?;
        self.emulators.push((found.st_dev, found.st_ino));
        let interpreter = format!("{}/{}", staging::EMULATORS, handler.name);
        self.file(&interpreter, 0o444, b"")?;
        self.attach_in_staging(emulator.as_fd(), &interpreter)?;
        let instance = self.binfmt.as_ref().expect("Binfmt comes before RegisterHandler");
        // Flag F makes the kernel open the interpreter now, relative to the working directory,
        // which is the staging area. Afterwards no path leads to it.
        let line = handler.registration(&interpreter);
        write_file(instance.as_fd(), "register", line.as_bytes())
            .during(|| format!("register {}", handler.name))
    }
}

/// Whether the host has handlers that would run foreign programs in the sandbox. Asked only where
/// the kernel shares one instance of binfmt_misc; what can't be read counts as one.
fn host_handlers_would_run() -> bool {
    let directory = Path::new("/proc/sys/fs/binfmt_misc");
    let Ok(entries) = std::fs::read_dir(directory) else { return true };
    let mut found = false;
    for entry in entries {
        let Ok(entry) = entry else { return true };
        let name = entry.file_name();
        if name == "register" || name == "status" {
            found = true; // mounted: what isn't listed doesn't exist
            continue;
        }
        match std::fs::read_to_string(entry.path()) {
            Ok(text) if !text.starts_with("enabled") => {}
            _ => return true,
        }
    }
    !found
}
