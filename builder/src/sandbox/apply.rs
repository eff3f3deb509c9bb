//! Carries out the steps of a plan, in the sandbox's future init.
//!
//! It runs in a single-threaded process that was cloned into new user and PID namespaces. Every
//! step that fails ends the set-up with an error that names it: there is no weaker sandbox to fall
//! back to. Nothing here follows a path that an earlier build could have made: inside the composed
//! root every path is resolved without symbolic links.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, UtimensatFlags, fstat, mkdirat, stat, umask, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{fchdir, symlinkat};
use srp_store::TREE_TIME_SECONDS;

use super::identity;
use super::plan::{RootMode, SandboxPlan, SkeletonEntry};
use super::seccomp;
use super::steps::{SYSROOT, Step};
use super::sys::{self, MountAttributes};
use super::wire::Failure;

/// The unfinished sandbox.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    pub(super) plan: &'a SandboxPlan,
    /// Detached mounts of the plan's sources; each is taken when it is attached.
    sources: Vec<Option<OwnedFd>>,
    /// The host's root, until it is left.
    host: Option<OwnedFd>,
    pub(super) staging: Option<OwnedFd>,
    /// The composed root: first where it is put together, then on its own.
    pub(super) root: Option<OwnedFd>,
    pub(super) proc: Option<OwnedFd>,
    /// The same without what MaskProc puts on it; attached nowhere.
    pub(super) bare_proc: Option<OwnedFd>,
    pub(super) binfmt: Option<OwnedFd>,
    /// The registered emulators: device and inode.
    pub(super) emulators: Vec<(u64, u64)>,
}

/// What a finished sandbox leaves to its init.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) proc: OwnedFd,
    pub(super) staging: OwnedFd,
    /// The root's mounts, which belong to no namespace, stay as long as this is open.
    pub(super) root: OwnedFd,
    /// The sandbox's instance of binfmt_misc lives as long as this is open. `None`: the kernel has
    /// none for a user namespace, and the host's has nothing that would run.
    pub(super) binfmt: Option<OwnedFd>,
    /// The registered emulators: device and inode.
    pub(super) emulators: Vec<(u64, u64)>,
}

/// Directories and files of the staging file system.
pub(super) mod staging {
    pub(in super::super) const SKELETON: &str = "skeleton";
    pub(in super::super) const LAYERS: &str = "layers";
    pub(in super::super) const ROOT: &str = "root";
    pub(in super::super) const INPUTS: &str = "inputs";
    pub(in super::super) const EMPTY_ROOT: &str = "empty-root";
    pub(in super::super) const UPPER: &str = "upper";
    pub(in super::super) const WORK: &str = "work";
    pub(in super::super) const DEV: &str = "dev";
    pub(in super::super) const SHM: &str = "shm";
    pub(in super::super) const TMP: &str = "tmp";
    pub(in super::super) const MEMORY: &str = "memory";
    pub(in super::super) const EMULATORS: &str = "run";
    pub(in super::super) const NOTHING: &str = "nothing";
    pub(in super::super) const TOLD: &str = "told";
    pub(in super::super) const NO_ENTRIES: &str = "no-entries";
}

/// What went wrong within a step.
pub(super) struct Trouble {
    pub(super) action: String,
    pub(super) errno: Errno,
}

pub(super) type Done<T = ()> = Result<T, Trouble>;

pub(super) trait While<T> {
    /// Says what was being done.
    fn during(self, action: impl FnOnce() -> String) -> Done<T>;
}

impl<T> While<T> for Result<T, Errno> {
    fn during(self, action: impl FnOnce() -> String) -> Done<T> {
        self.map_err(|errno| Trouble { action: action(), errno })
    }
}

impl<'a> Setup<'a> {
    /// A set-up of `plan`. `sources` holds the plan's sources as detached mounts when the launcher
    /// opened them (as root, with mapped identities), and is empty otherwise.
    pub(super) fn new(plan: &'a SandboxPlan, sources: Vec<OwnedFd>) -> Self {
        let sources = sources.into_iter().map(Some).collect();
        Setup {
            plan,
            sources,
            host: None,
            staging: None,
            root: None,
            proc: None,
            bare_proc: None,
            binfmt: None,
            emulators: Vec::new(),
        }
    }

    /// Carries out every step.
    pub(super) fn run(mut self) -> Result<Prepared, Failure> {
        for step in self.plan.steps() {
            self.apply(&step).map_err(|e| Failure::new(&step, e.action, e.errno))?;
        }
        let incomplete = || Failure::new("finish the set-up", "collect descriptors", Errno::EBADF);
        Ok(Prepared {
            proc: self.proc.ok_or_else(incomplete)?,
            staging: self.staging.ok_or_else(incomplete)?,
            root: self.root.ok_or_else(incomplete)?,
            binfmt: self.binfmt,
            emulators: self.emulators,
        })
    }

    fn apply(&mut self, step: &Step) -> Done {
        match step {
            Step::BecomeOuterRoot => identity::become_outer_root(),
            Step::EnterNamespaces => {
                let namespaces = CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS
                    | CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWCGROUP;
                unshare(namespaces).during(|| "unshare".to_owned())
            }
            Step::PrivateMounts => {
                let host = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | CLOEXEC, Mode::empty());
                self.host = Some(host.during(|| "open /".to_owned())?);
                let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(NONE, "/", NONE, flags, NONE).during(|| "change propagation".to_owned())
            }
            Step::OpenSource { source, path, writable } => {
                if self.sources.len() <= *source {
                    self.sources.push(Some(open_source(path, *writable, None)?));
                }
                Ok(())
            }
            Step::Staging { bytes } => self.mount_staging(*bytes),
            Step::Create(entry) => {
                let path = entry.path();
                let path = format!("{}{path}", staging::SKELETON);
                match entry {
                    SkeletonEntry::Dir { mode, .. } => self.directory(&path, *mode),
                    SkeletonEntry::Symlink { target, .. } => self.symlink(target, &path),
                    SkeletonEntry::File { mode, content, .. } => {
                        self.file(&path, *mode, content.as_bytes())
                    }
                }
            }
            Step::SealSkeleton => self.seal_skeleton(),
            Step::ComposeRoot { layers, mode } => self.compose_root(*layers, *mode),
            Step::ComposeSysroot { first, layers } => self.compose_sysroot(*first, *layers),
            Step::ScratchTmp => {
                let attributes = MountAttributes { no_devices: true, ..Default::default() };
                self.attach_staged(staging::TMP, "/tmp", &attributes)
            }
            Step::Memory { target } => self.mount_memory(target),
            Step::Bind { source, target } => {
                let mount = self.take_source(*source)?;
                self.attach(mount.as_fd(), target)
            }
            Step::Input { source, target } => self.mount_input(*source, target),
            Step::Devices => self.make_devices(),
            Step::Proc { writable } => self.mount_proc(*writable),
            Step::MaskProc => self.mask_proc(),
            Step::TellOtherwise { path } => self.tell_otherwise(path),
            Step::Loopback => sys::loopback_up().during(|| "set its flags".to_owned()),
            Step::HostNames { hostname } => {
                sys::set_host_names(hostname, "(none)").during(|| "set the names".to_owned())
            }
            Step::Binfmt { required } => self.make_binfmt(*required),
            Step::RegisterHandler { source, handler } => self.register(*source, *handler),
            Step::LeaveHost => self.leave_host(),
            Step::BecomeUser { uid, gid } => self.become_user(*uid, *gid),
            Step::EnterRoot => self.enter_root(),
            Step::ProcessLimits { processes, file_bytes, attributes } => {
                identity::process_limits(*processes, *file_bytes, attributes)
            }
            Step::DropPrivileges { keep_file_override } => {
                let keep = keep_file_override.then_some(sys::CAP_DAC_OVERRIDE);
                sys::drop_capabilities(keep).during(|| "drop capabilities".to_owned())?;
                nix::sys::prctl::set_no_new_privs().during(|| "set no_new_privs".to_owned())?;
                nix::sys::prctl::set_dumpable(false).during(|| "forbid tracing init".to_owned())
            }
            Step::Filter { abis, debuggers, uid, gid } => {
                sys::install_filter(&seccomp::filter(abis, *debuggers, (*uid, *gid)))
                    .during(|| "seccomp".to_owned())
            }
        }
    }

    fn mount_staging(&mut self, bytes: Option<u64>) -> Done {
        umask(Mode::empty());
        let size = bytes.map(|bytes| c_string(bytes.to_string())).transpose()?;
        let mut options = vec![(c"mode", c"0755")];
        options.extend(size.as_deref().map(|size| (c"size", size)));
        let attributes = MountAttributes { no_devices: true, ..Default::default() };
        let staging = sys::new_filesystem(c"tmpfs", &options, &attributes)
            .during(|| "make a tmpfs".to_owned())?;
        // On top of the host's root: no directory of the host is needed as a mount point, and
        // absolute paths still go to the host.
        let host = self.host.as_ref().expect("PrivateMounts opened the host's root");
        sys::attach_mount(staging.as_fd(), host.as_fd()).during(|| "attach it".to_owned())?;
        fchdir(&staging).during(|| "enter it".to_owned())?;
        self.staging = Some(staging);
        for name in [
            staging::SKELETON,
            staging::LAYERS,
            staging::ROOT,
            staging::INPUTS,
            staging::EMPTY_ROOT,
            staging::UPPER,
            staging::WORK,
            staging::DEV,
            staging::EMULATORS,
            staging::NO_ENTRIES,
        ] {
            self.directory(name, 0o755)?;
        }
        self.directory(staging::TMP, 0o1777)?;
        self.directory(staging::SHM, 0o1777)?;
        self.file(staging::NOTHING, 0o444, b"")?;
        for name in [staging::TMP, staging::SHM, staging::NOTHING, staging::NO_ENTRIES] {
            self.seal(name)?;
        }
        Ok(())
    }

    fn seal_skeleton(&self) -> Done {
        // In order of paths parents come first, and making a child changes its parent's time.
        let entries = self.plan.whole_skeleton();
        for path in entries.keys().rev().map(String::as_str).chain([""]) {
            self.seal(&format!("{}{path}", staging::SKELETON))?;
        }
        self.seal(staging::UPPER)
    }

    fn compose_root(&mut self, layers: usize, mode: RootMode) -> Done {
        let names = self.stage_layers(0, layers)?;
        let lower = names.iter().map(String::as_str).chain([staging::SKELETON]);
        let lower: Vec<&str> = lower.collect();
        match mode {
            RootMode::ReadOnly if layers == 0 => {
                self.mount_alone(staging::SKELETON, staging::ROOT)?;
            }
            RootMode::ReadOnly => overlay(&lower, staging::ROOT, false)?,
            RootMode::Ephemeral => overlay(&lower, staging::ROOT, true)?,
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | CLOEXEC;
        let root = openat(self.staging(), staging::ROOT, flags, Mode::empty());
        self.root = Some(root.during(|| "open the composed root".to_owned())?);
        Ok(())
    }

    fn compose_sysroot(&mut self, first: usize, layers: usize) -> Done {
        let names = self.stage_layers(first, layers)?;
        self.mount_inputs(first, &names, SYSROOT)
    }

    fn mount_input(&mut self, source: usize, target: &str) -> Done {
        let names = self.stage_layers(source, 1)?;
        self.mount_inputs(source, &names, target)
    }

    /// Mounts staged layers at a path of the root, behind an overlay that bears the number of the
    /// first source.
    fn mount_inputs(&self, first: usize, layers: &[String], target: &str) -> Done {
        let name = format!("{}/{first}", staging::INPUTS);
        self.directory(&name, 0o755)?;
        let mut lower: Vec<&str> = layers.iter().map(String::as_str).collect();
        if let [_] = *lower {
            lower.push(staging::NO_ENTRIES); // an overlay that can't be written to has two layers
        }
        overlay(&lower, &name, false)?;
        let mount = sys::clone_mount(self.staging(), &c_string(name)?)
            .during(|| "take the overlay".to_owned())?;
        self.attach(mount.as_fd(), target)
    }

    /// Attaches sources as numbered directories in the staging area; their names, uppermost first.
    /// Numbers keep the overlay's options short and free of separators, and the host's paths out
    /// of what the build can read in its mount table.
    fn stage_layers(&mut self, first: usize, count: usize) -> Done<Vec<String>> {
        let mut names = Vec::new();
        for source in first..first + count {
            let mount = self.take_source(source)?;
            let name = format!("{}/{source}", staging::LAYERS);
            self.directory(&name, 0o755)?;
            self.attach_in_staging(mount.as_fd(), &name)?;
            names.push(name);
        }
        Ok(names)
    }

    /// A read-only mount of a staged directory alone, attached elsewhere in the staging area.
    fn mount_alone(&self, from: &str, to: &str) -> Done {
        let attributes =
            MountAttributes { read_only: true, no_devices: true, ..Default::default() };
        let mount = self.staged_mount(from, &attributes)?;
        self.attach_in_staging(mount.as_fd(), to)
    }

    /// Attaches a mount at something staged, which it covers.
    pub(super) fn attach_in_staging(&self, mount: BorrowedFd<'_>, name: &str) -> Done {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | CLOEXEC;
        let place = openat(self.staging(), name, flags, Mode::empty())
            .during(|| format!("find staged {name}"))?;
        sys::attach_mount(mount, place.as_fd()).during(|| format!("attach staged {name}"))
    }

    /// A directory of the staging file system, alone, at a path of the root.
    fn mount_memory(&self, target: &str) -> Done {
        let name = format!("{}{}", staging::MEMORY, target.replace('/', "-"));
        self.directory(&name, 0o755)?;
        let attributes = MountAttributes { no_devices: true, ..Default::default() };
        self.attach_staged(&name, target, &attributes)
    }

    fn leave_host(&mut self) -> Done {
        let root = self.root.take().expect("ComposeRoot opened the root");
        let host = self.host.take().expect("PrivateMounts opened the host's root");
        let root = sys::clone_mount_tree(root.as_fd()).during(|| "take its mounts".to_owned())?;
        self.root = Some(root);
        self.mount_alone(staging::NO_ENTRIES, staging::EMPTY_ROOT)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | CLOEXEC;
        let empty = openat(self.staging(), staging::EMPTY_ROOT, flags, Mode::empty())
            .during(|| "open an empty directory".to_owned())?;
        fchdir(&empty).during(|| "enter it".to_owned())?;
        sys::pivot_here().during(|| "pivot_root".to_owned())?;
        // Now the host's root lies on top of the new one, and the staging area on top of that.
        // umount looks at the topmost, so it takes two: the first detaches the staging area.
        fchdir(&host).during(|| "return to the host's root".to_owned())?;
        umount2(".", MntFlags::MNT_DETACH).during(|| "detach the staging area".to_owned())?;
        umount2(".", MntFlags::MNT_DETACH).during(|| "detach the host's root".to_owned())?;
        nix::unistd::chdir("/").during(|| "enter the new root".to_owned())?;
        check_that_nothing_lies_above(&empty)
    }

    fn enter_root(&self) -> Done {
        let root = self.root.as_ref().expect("LeaveHost kept the root");
        fchdir(root).during(|| "enter it".to_owned())?;
        nix::unistd::chroot(".").during(|| "chroot".to_owned())?;
        check_that_nothing_lies_above(root)
    }

    pub(super) fn take_source(&mut self, source: usize) -> Done<OwnedFd> {
        let taken = self.sources.get_mut(source).and_then(Option::take);
        taken.ok_or(Errno::EBADF).during(|| format!("find source {source}"))
    }

    /// Attaches a mount at a path of the composed root, which must hold no symbolic link.
    pub(super) fn attach(&self, mount: BorrowedFd<'_>, target: &str) -> Done {
        let root = self.root.as_ref().expect("ComposeRoot comes before every mount in the root");
        let place = sys::open_beneath(root.as_fd(), &c_string(&target[1..])?)
            .during(|| format!("find the mount point {target}"))?;
        sys::attach_mount(mount, place.as_fd()).during(|| format!("attach {target}"))
    }

    pub(super) fn attach_staged(
        &self,
        name: &str,
        target: &str,
        attributes: &MountAttributes<'_>,
    ) -> Done {
        let mount = self.staged_mount(name, attributes)?;
        self.attach(mount.as_fd(), target)
    }

    pub(super) fn staged_mount(
        &self,
        name: &str,
        attributes: &MountAttributes<'_>,
    ) -> Done<OwnedFd> {
        let mount = sys::clone_mount(self.staging(), &c_string(name)?)
            .during(|| format!("take staged {name}"))?;
        sys::set_mount_attributes(mount.as_fd(), attributes)
            .during(|| format!("restrict staged {name}"))?;
        Ok(mount)
    }

    pub(super) fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_ref().expect("Staging comes before what is staged").as_fd()
    }

    pub(super) fn directory(&self, name: &str, mode: u32) -> Done {
        let mode = Mode::from_bits_truncate(mode); // exact: Staging cleared the umask
        mkdirat(self.staging(), name, mode).during(|| format!("make staged {name}"))
    }

    pub(super) fn symlink(&self, target: &str, name: &str) -> Done {
        symlinkat(target, self.staging(), name).during(|| format!("link staged {name}"))
    }

    pub(super) fn file(&self, name: &str, mode: u32, content: &[u8]) -> Done {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | CLOEXEC;
        let file = openat(self.staging(), name, flags, Mode::from_bits_truncate(mode))
            .during(|| format!("make staged {name}"))?;
        let written = std::fs::File::from(file).write_all(content);
        written.map_err(|e| from_io(&e)).during(|| format!("write staged {name}"))
    }

    /// Sets a staged entry's times to that of every file of the store.
    pub(super) fn seal(&self, name: &str) -> Done {
        let time = TimeSpec::new(TREE_TIME_SECONDS, 0);
        utimensat(self.staging(), name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .during(|| format!("set the time of staged {name}"))
    }
}

/// Were anything of the host still above the root, `..` would lead to it: look, rather than believe.
fn check_that_nothing_lies_above(root: &OwnedFd) -> Done {
    let root = fstat(root).during(|| "examine it".to_owned())?;
    for path in ["/", "/..", ".", ".."] {
        let found = stat(path).during(|| format!("look up {path}"))?;
        if (found.st_dev, found.st_ino) != (root.st_dev, root.st_ino) {
            return Err(Errno::EXDEV).during(|| "check that nothing lies above".to_owned());
        }
    }
    Ok(())
}

pub(super) const NONE: Option<&str> = None;
pub(super) const CLOEXEC: OFlag = OFlag::O_CLOEXEC;

/// A detached mount of a directory or file of the host, without what is mounted below it.
///
/// `id_map`, for srp as root: the user namespace by which identities on disk appear in the mount.
pub(super) fn prepare_source(
    path: &Path,
    writable: bool,
    id_map: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, (String, Errno)> {
    open_source(path, writable, id_map).map_err(|trouble| (trouble.action, trouble.errno))
}

fn open_source(path: &Path, writable: bool, id_map: Option<BorrowedFd<'_>>) -> Done<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL);
    let name = name.during(|| "read its path".to_owned())?;
    let mount = sys::clone_mount_at(&name).during(|| "open_tree".to_owned())?;
    let attributes =
        MountAttributes { read_only: !writable, no_devices: true, no_exec: false, id_map };
    let action = if id_map.is_some() { "map its identities" } else { "restrict the mount" };
    sys::set_mount_attributes(mount.as_fd(), &attributes).during(|| action.to_owned())?;
    Ok(mount)
}

/// Mounts an overlay of staged directories; the working directory is the staging area.
fn overlay(lower: &[&str], target: &str, writable: bool) -> Done {
    let mut options = format!("lowerdir={}", lower.join(":"));
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if writable {
        // userxattr only here: a read-only overlay has no use for the attributes of overlays, and
        // so never looks at any that a layer might bring.
        options += &format!(",upperdir={},workdir={},userxattr", staging::UPPER, staging::WORK);
    } else {
        // And what a kernel may be configured to do with them is switched off.
        options += ",redirect_dir=nofollow,metacopy=off";
        flags |= MsFlags::MS_RDONLY;
    }
    if options.len() >= 4096 {
        // The kernel would cut them off in silence.
        return Err(Trouble { action: "list the layers".to_owned(), errno: Errno::E2BIG });
    }
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))
        .during(|| "mount an overlay".to_owned())
}

pub(super) fn write_file(dir: BorrowedFd<'_>, path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let file = openat(dir, path, OFlag::O_WRONLY | CLOEXEC, Mode::empty())?;
    // One write: both /proc and binfmt_misc take each write as a whole.
    match nix::unistd::write(&file, bytes)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

pub(super) fn c_string(text: impl Into<Vec<u8>>) -> Done<CString> {
    sys::c_string(text).during(|| "pass a path to the kernel".to_owned())
}

fn from_io(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
