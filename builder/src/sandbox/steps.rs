//! What is done to make a sandbox, in order: a list derived from a plan and nothing else.
//!
//! The list is the sandbox's documentation that cannot go stale, since `apply` carries out exactly
//! these steps; an error names the step by what `Display` prints here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::plan::{Attributes, RootMode, SandboxPlan, SkeletonEntry, Stdio, is_beneath};
use super::seccomp::Abi;
use super::told;

/// One step of the set-up. Sources are counted as [`SandboxPlan`] lists them: layers, sysroot,
/// binds, emulators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Becomes root of the outer user namespace, in which the launcher made this process, and asks
    /// to be killed when the launcher dies.
    BecomeOuterRoot,
    /// Enters new mount, IPC, UTS, network and cgroup namespaces (the first user namespace and the
    /// PID namespace are older). The outer user namespace owns them all.
    EnterNamespaces,
    /// Lets no mount event in or out.
    PrivateMounts,
    /// Takes a private reference to a directory or file of the host. When srp runs as root this
    /// was done before, because the sandbox's user can't.
    OpenSource {
        /// Number of the source.
        source: usize,
        /// Path on the host.
        path: PathBuf,
        /// Whether the sandbox may write to it.
        writable: bool,
    },
    /// Mounts one file system in memory, from which everything made up is taken.
    Staging {
        /// Its size; `None`: the kernel's default, half the memory.
        bytes: Option<u64>,
    },
    /// Makes an entry of the skeleton.
    Create(SkeletonEntry),
    /// Sets every time in the skeleton to 1.
    SealSkeleton,
    /// Composes the root of sources 0 to `layers` and the skeleton.
    ComposeRoot {
        /// How many sources are layers.
        layers: usize,
        /// Whether it can be written to.
        mode: RootMode,
    },
    /// Composes `/srp/sysroot`.
    ComposeSysroot {
        /// Its first source.
        first: usize,
        /// How many there are.
        layers: usize,
    },
    /// Mounts an empty `/tmp` in memory.
    ScratchTmp,
    /// Mounts another empty directory in memory.
    Memory {
        /// Path inside.
        target: String,
    },
    /// Attaches a source.
    Bind {
        /// Number of the source.
        source: usize,
        /// Path inside.
        target: String,
    },
    /// Makes `/dev`.
    Devices {
        /// Whether there are pseudo-terminals.
        terminals: bool,
    },
    /// Mounts `/proc`.
    Proc,
    /// Covers what in `/proc` is not about the sandbox's own processes.
    MaskProc,
    /// Covers a file of `/proc` by what the kernel would tell of another machine.
    TellOtherwise {
        /// Its path in `/proc`.
        path: &'static str,
    },
    /// Brings the loopback interface up; there is no other.
    Loopback,
    /// Names the host.
    HostNames {
        /// The host's name.
        hostname: String,
    },
    /// Makes the sandbox's own instance of binfmt_misc, mounted nowhere, held by init.
    Binfmt {
        /// Whether the plan has handlers. Without any, a kernel that has no instances per user
        /// namespace will do as long as the host has registered none that would work.
        required: bool,
    },
    /// Registers an emulator.
    RegisterHandler {
        /// Number of the emulator's source.
        source: usize,
        /// Number of the handler in the plan.
        handler: usize,
    },
    /// Makes the composed root `/` and detaches the host's.
    EnterRoot,
    /// Enters the inner user namespace, which owns nothing and in which no other can be made. A
    /// build is one user namespace away from whatever its mounts and network belong to; and the
    /// outer one needs a user 0, because binfmt_misc's files belong to it.
    BecomeUser {
        /// User id inside.
        uid: u32,
        /// Group id inside.
        gid: u32,
    },
    /// Sets umask, personality, processors and resource limits.
    ProcessLimits {
        /// Ceiling for processes, above the limit that ends the sandbox.
        processes: Option<u64>,
        /// What the plan says of the rest.
        attributes: Attributes,
    },
    /// Gives up every capability, for good, and hides init from tracing.
    DropPrivileges {
        /// Shells keep one: to write to directories that the store made read-only. It reaches
        /// files of the sandbox's own user only, and those of the store are mounted read-only.
        keep_file_override: bool,
    },
    /// Installs the system-call filter.
    Filter {
        /// Admitted beside the native ABI.
        abis: Vec<Abi>,
        /// Whether processes may trace each other.
        debuggers: bool,
    },
}

impl SandboxPlan {
    /// Everything that is done, in order, before the command starts.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::BecomeOuterRoot, Step::EnterNamespaces, Step::PrivateMounts];
        let first_sysroot = self.layers.len();
        let first_bind = first_sysroot + self.sysroot.len();
        let first_emulator = first_bind + self.binds.len();
        steps.extend(self.sources().enumerate().map(|(source, path)| {
            let writable = self.is_writable_source(source);
            Step::OpenSource { source, path: path.clone(), writable }
        }));
        steps.push(Step::Staging { bytes: self.limits.scratch_bytes });
        steps.extend(self.whole_skeleton().into_values().map(Step::Create));
        steps.push(Step::SealSkeleton);
        steps.push(Step::ComposeRoot { layers: self.layers.len(), mode: self.root });
        if !self.sysroot.is_empty() {
            let layers = self.sysroot.len();
            steps.push(Step::ComposeSysroot { first: first_sysroot, layers });
        }
        if self.has_scratch_tmp() {
            steps.push(Step::ScratchTmp);
        }
        steps.extend(self.memory.iter().map(|target| Step::Memory { target: target.clone() }));
        steps.extend(
            self.binds.iter().enumerate().map(|(n, bind)| Step::Bind {
                source: first_bind + n,
                target: bind.target.clone(),
            }),
        );
        steps.extend([
            Step::Devices { terminals: self.stdio == Stdio::Relayed },
            Step::Proc,
            Step::MaskProc,
        ]);
        let covered = told::covered(&self.attributes).into_iter();
        steps.extend(covered.map(|path| Step::TellOtherwise { path }));
        steps.extend([
            Step::Loopback,
            Step::HostNames { hostname: self.hostname.clone() },
            Step::Binfmt { required: !self.binfmt.is_empty() },
        ]);
        steps.extend(
            (0..self.binfmt.len())
                .map(|handler| Step::RegisterHandler { source: first_emulator + handler, handler }),
        );
        // Above the limit, so that the watchdog sees it passed and says so; a fork bomb stops here.
        let processes = self.limits.processes.map(|n| n.saturating_add(64));
        steps.extend([
            Step::EnterRoot,
            Step::BecomeUser { uid: self.uid, gid: self.gid },
            Step::ProcessLimits { processes, attributes: self.attributes.clone() },
            Step::DropPrivileges { keep_file_override: self.root == RootMode::Ephemeral },
            Step::Filter {
                abis: self.abis.clone(),
                // Init answers programs by looking into them; they get a stricter filter then.
                debuggers: self.debuggers || self.attributes.need_answers(),
            },
        ]);
        steps
    }

    fn has_scratch_tmp(&self) -> bool {
        self.binds.iter().all(|bind| bind.target != "/tmp")
    }

    /// The plan's skeleton with mount points and missing parents, by path.
    pub(super) fn whole_skeleton(&self) -> BTreeMap<String, SkeletonEntry> {
        let mut entries: BTreeMap<String, SkeletonEntry> = BTreeMap::new();
        for entry in &self.skeleton {
            entries.insert(entry.path().to_owned(), entry.clone());
        }
        let own = [("/dev", 0o755), ("/proc", 0o555), ("/tmp", 0o1777)];
        for (path, mode) in own {
            let entry = || SkeletonEntry::Dir { path: path.to_owned(), mode };
            entries.entry(path.to_owned()).or_insert_with(entry);
        }
        if !self.sysroot.is_empty() {
            let entry = || directory(SYSROOT);
            entries.entry(SYSROOT.to_owned()).or_insert_with(entry);
        }
        for bind in &self.binds {
            // A mount point below another bind is that bind's matter.
            let below = |other: &str| bind.target != other && is_beneath(&bind.target, other);
            if self.binds.iter().any(|other| below(&other.target)) {
                continue;
            }
            let path = bind.target.clone();
            entries.entry(path.clone()).or_insert_with(|| match bind.directory {
                true => directory(&path),
                false => SkeletonEntry::File { path, mode: 0o644, content: String::new() },
            });
        }
        for path in &self.memory {
            entries.entry(path.clone()).or_insert_with(|| directory(path));
        }
        let mut parents: Vec<String> = Vec::new();
        for path in entries.keys() {
            let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
            parents.extend(ends.map(|at| path[..at].to_owned()));
        }
        for parent in parents {
            let entry = directory(&parent);
            entries.entry(parent).or_insert(entry);
        }
        entries
    }
}

/// Where the sysroot is composed.
pub(super) const SYSROOT: &str = "/srp/sysroot";

fn directory(path: &str) -> SkeletonEntry {
    SkeletonEntry::Dir { path: path.to_owned(), mode: 0o755 }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::BecomeOuterRoot => f.write_str("become root of the outer user namespace"),
            Step::BecomeUser { uid, gid } => {
                write!(f, "become user {uid} and group {gid} of the inner user namespace")
            }
            Step::EnterNamespaces => {
                f.write_str("enter mount, IPC, UTS, network and cgroup namespaces")
            }
            Step::PrivateMounts => f.write_str("make the mounts private"),
            Step::OpenSource { path, writable, .. } => {
                let access = if *writable { "for writing" } else { "for reading" };
                write!(f, "open {} {access}", path.display())
            }
            Step::Staging { bytes: Some(bytes) } => {
                write!(f, "mount a staging file system of {bytes} bytes")
            }
            Step::Staging { bytes: None } => f.write_str("mount a staging file system"),
            Step::Create(SkeletonEntry::Dir { path, mode }) => {
                write!(f, "create directory {path} with mode {mode:04o}")
            }
            Step::Create(SkeletonEntry::Symlink { path, target }) => {
                write!(f, "create link {path} to {target}")
            }
            Step::Create(SkeletonEntry::File { path, mode, content }) => {
                write!(f, "create file {path} with mode {mode:04o} and {} bytes", content.len())
            }
            Step::SealSkeleton => f.write_str("set the skeleton's times"),
            Step::ComposeRoot { layers, mode: RootMode::ReadOnly } => {
                write!(f, "compose a read-only root of {layers} layers")
            }
            Step::ComposeRoot { layers, mode: RootMode::Ephemeral } => {
                write!(f, "compose an ephemeral root of {layers} layers")
            }
            Step::ComposeSysroot { layers, .. } => {
                write!(f, "compose {SYSROOT} of {layers} layers")
            }
            Step::ScratchTmp => f.write_str("mount an empty /tmp"),
            Step::Memory { target } => write!(f, "mount an empty {target}"),
            Step::Bind { target, .. } => write!(f, "bind {target}"),
            Step::Devices { terminals: true } => f.write_str("make /dev with terminals"),
            Step::Devices { terminals: false } => f.write_str("make /dev"),
            Step::Proc => f.write_str("mount /proc"),
            Step::MaskProc => f.write_str("cover the host's part of /proc"),
            Step::TellOtherwise { path } => write!(f, "let /proc/{path} tell of another machine"),
            Step::Loopback => f.write_str("bring the loopback interface up"),
            Step::HostNames { hostname } => write!(f, "name the host {hostname}"),
            Step::Binfmt { .. } => f.write_str("make a binfmt_misc instance"),
            Step::RegisterHandler { handler, .. } => {
                write!(f, "register binfmt handler {handler}")
            }
            Step::EnterRoot => f.write_str("enter the composed root"),
            Step::ProcessLimits { .. } => f.write_str("set umask, personality and process limits"),
            Step::DropPrivileges { keep_file_override: false } => {
                f.write_str("drop every privilege")
            }
            Step::DropPrivileges { keep_file_override: true } => {
                f.write_str("drop every privilege but that over the user's own files")
            }
            Step::Filter { .. } => f.write_str("install the system-call filter"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::binfmt::BinfmtHandler;
    use super::super::plan::Bind;
    use super::*;

    #[test]
    fn a_build_is_these_steps() {
        let mut plan = SandboxPlan::new(vec!["/bin/sh".to_owned()]);
        plan.layers = vec!["/s/a".into(), "/s/b".into()];
        plan.sysroot = vec!["/s/c".into()];
        plan.skeleton =
            vec![SkeletonEntry::Symlink { path: "/bin".into(), target: "usr/bin".into() }];
        let bind = |source: &str, target: &str, directory| Bind {
            source: source.into(),
            target: target.to_owned(),
            writable: true,
            directory,
        };
        plan.binds =
            vec![bind("/t/build", "/srp/build", true), bind("/t/fifo", "/srp/jobserver", false)];
        plan.binfmt.extend(BinfmtHandler::for_arch("aarch64", "/s/q/qemu"));
        plan.limits.processes = Some(100);
        let printed: Vec<String> = plan.steps().iter().map(ToString::to_string).collect();
        assert_eq!(
            printed,
            [
                "become root of the outer user namespace",
                "enter mount, IPC, UTS, network and cgroup namespaces",
                "make the mounts private",
                "open /s/a for reading",
                "open /s/b for reading",
                "open /s/c for reading",
                "open /t/build for writing",
                "open /t/fifo for writing",
                "open /s/q/qemu for reading",
                "mount a staging file system",
                "create link /bin to usr/bin",
                "create directory /dev with mode 0755",
                "create directory /proc with mode 0555",
                "create directory /srp with mode 0755",
                "create directory /srp/build with mode 0755",
                "create file /srp/jobserver with mode 0644 and 0 bytes",
                "create directory /srp/sysroot with mode 0755",
                "create directory /tmp with mode 1777",
                "set the skeleton's times",
                "compose a read-only root of 2 layers",
                "compose /srp/sysroot of 1 layers",
                "mount an empty /tmp",
                "bind /srp/build",
                "bind /srp/jobserver",
                "make /dev",
                "mount /proc",
                "cover the host's part of /proc",
                "bring the loopback interface up",
                "name the host srp",
                "make a binfmt_misc instance",
                "register binfmt handler 0",
                "enter the composed root",
                "become user 1000 and group 1000 of the inner user namespace",
                "set umask, personality and process limits",
                "drop every privilege",
                "install the system-call filter",
            ]
        );
        assert!(plan.steps().contains(&Step::RegisterHandler { source: 5, handler: 0 }));
        let attributes = Attributes::default();
        assert!(plan.steps().contains(&Step::ProcessLimits { processes: Some(164), attributes }));
    }
}
