//! What a sandbox is, as plain data.
//!
//! A [`SandboxPlan`] says everything about a sandbox that its caller decides; nothing here touches
//! the machine. The order in which it is done is derived in `steps`, doing it is `apply`'s. What no
//! plan can change (namespaces, capabilities, the network, `/proc`, `/dev`) isn't in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::binfmt::BinfmtHandler;
use super::seccomp::Abi;

/// A sandbox: a root composed of read-only trees, a few writable directories, one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Directories of the host, uppermost first, composed at `/` above the skeleton.
    pub layers: Vec<PathBuf>,
    /// The same for `/srp/sysroot`; none: there is no sysroot.
    pub sysroot: Vec<PathBuf>,
    /// The lowest layer, made in memory. Mount points are added by themselves.
    pub skeleton: Vec<SkeletonEntry>,
    /// Files and directories of the host that appear in the sandbox.
    pub binds: Vec<Bind>,
    /// Whether the root can be written to.
    pub root: RootMode,
    /// Program and arguments. A name without a slash is looked up in `env`'s `PATH`.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Host name inside.
    pub hostname: String,
    /// User id inside; it owns everything that the plan brings.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Emulators of foreign programs. Without one, foreign programs don't run, whatever the host
    /// has registered.
    pub binfmt: Vec<BinfmtHandler>,
    /// System-call ABIs that are admitted beside the native one, such as `i386` on x86_64.
    pub abis: Vec<Abi>,
    /// Whether processes may trace each other: for shells with a debugger, not for builds.
    pub debuggers: bool,
    /// What the sandbox may use.
    pub limits: Limits,
    /// Where input comes from and output goes.
    pub stdio: Stdio,
    /// Empty, writable directories in memory, gone afterwards.
    pub memory: Vec<String>,
    /// What processes begin with that isn't the same in every sandbox.
    pub attributes: Attributes,
    /// Whether the process that becomes the command looks around first
    /// ([`Observation`](super::Observation)).
    pub observe: bool,
}

impl SandboxPlan {
    /// A plan for `command` with an empty root, the project's fixed identity and no limits.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        SandboxPlan {
            layers: Vec::new(),
            sysroot: Vec::new(),
            skeleton: Vec::new(),
            binds: Vec::new(),
            root: RootMode::ReadOnly,
            command,
            env: BTreeMap::new(),
            cwd: "/".to_owned(),
            hostname: "srp".to_owned(),
            uid: 1000,
            gid: 1000,
            binfmt: Vec::new(),
            abis: Vec::new(),
            debuggers: false,
            limits: Limits::default(),
            stdio: Stdio::Log,
            memory: Vec::new(),
            attributes: Attributes::default(),
            observe: false,
        }
    }

    /// Checks what can be checked without looking at the machine.
    pub fn validate(&self) -> Result<(), PlanError> {
        let program = self.command.first().filter(|program| !program.is_empty());
        if program.is_none() {
            return Err(PlanError::NoCommand);
        }
        for text in self.command.iter().chain(self.env.keys()).chain(self.env.values()) {
            if text.contains('\0') {
                return Err(PlanError::Nul { text: text.clone() });
            }
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(PlanError::VariableName { name: name.clone() });
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 {
            return Err(PlanError::Hostname { hostname: self.hostname.clone() });
        }
        check_inside_path(&self.cwd)?;
        for source in self.sources() {
            if !source.is_absolute() {
                return Err(PlanError::RelativeSource { path: source.clone() });
            }
        }
        let mut seen = BTreeSet::new();
        for entry in &self.skeleton {
            check_inside_path(entry.path())?;
            if entry.path() == "/" || !seen.insert(entry.path()) {
                return Err(PlanError::Twice { path: entry.path().to_owned() });
            }
        }
        let mut targets = BTreeSet::new();
        for target in self.binds.iter().map(|bind| &bind.target).chain(&self.memory) {
            check_inside_path(target)?;
            if ["/proc", "/dev"].iter().any(|own| is_beneath(target, own)) {
                return Err(PlanError::Reserved { path: target.clone() });
            }
            if target == "/" || !targets.insert(target) {
                return Err(PlanError::Twice { path: target.clone() });
            }
        }
        match self.binfmt.iter().find(|handler| !handler.is_valid()) {
            Some(handler) => Err(PlanError::Handler { name: handler.name.clone() }),
            None => Ok(()),
        }
    }

    /// Every path of the host that the sandbox opens, in the order in which `steps` counts them:
    /// layers, sysroot, binds, emulators.
    pub(super) fn sources(&self) -> impl Iterator<Item = &PathBuf> {
        self.layers
            .iter()
            .chain(&self.sysroot)
            .chain(self.binds.iter().map(|bind| &bind.source))
            .chain(self.binfmt.iter().map(|handler| &handler.emulator))
    }

    /// Whether the sandbox may write to that source; only binds can say so.
    pub(super) fn is_writable_source(&self, number: usize) -> bool {
        let first_bind = self.layers.len() + self.sysroot.len();
        let bind = number.checked_sub(first_bind).and_then(|n| self.binds.get(n));
        bind.is_some_and(|bind| bind.writable)
    }
}

/// An entry of the skeleton, owned by the sandbox's user and with modification time 1. Missing
/// parents are directories of mode 0755.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkeletonEntry {
    /// A directory.
    Dir {
        /// Absolute path inside.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Absolute path inside.
        path: String,
        /// The link's text.
        target: String,
    },
    /// A regular file.
    File {
        /// Absolute path inside.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Its bytes.
        content: String,
    },
}

impl SkeletonEntry {
    /// Where the entry is.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            SkeletonEntry::Dir { path, .. }
            | SkeletonEntry::Symlink { path, .. }
            | SkeletonEntry::File { path, .. } => path,
        }
    }
}

/// A file or directory of the host that appears in the sandbox, alone and without what is mounted
/// below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the host, absolute; links are followed.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: String,
    /// Whether the sandbox may write to it.
    pub writable: bool,
    /// Whether the source is a directory; anything else gets a file as its mount point.
    pub directory: bool,
}

/// Whether the composed root can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootMode {
    /// Only the writable binds, `/tmp` and `/dev/shm` can: builds.
    ReadOnly,
    /// Everything can, in memory, and is gone afterwards: shells.
    Ephemeral,
}

/// Where the command's input comes from and its output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// Input is empty; output and errors are one stream, the log. No terminal.
    Log,
    /// What the caller's standard input, output and error carry, copied; a terminal of the
    /// sandbox's own if input and output are one.
    Relayed,
    /// As `Log`, but all three are a terminal of the sandbox's own, whose input is at its end.
    Terminal,
}

/// What processes begin with. Builds have the default; an audit's rebuilds have others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The file mode creation mask.
    pub umask: u32,
    /// Of the processors that srp may use, the sandbox may use these; `None`: all.
    pub processors: Option<Processors>,
    /// Whether address spaces are laid out at random.
    pub random_addresses: bool,
    /// Whether the kernel is called a 2.6, by `uname` as for programs that can't bear another, and
    /// in `/proc`.
    pub old_kernel: bool,
    /// Whether `/proc/cpuinfo` is about another processor.
    pub other_processor: bool,
    /// How far the time of day is ahead, for programs of this machine's own ABI.
    pub clock_ahead_seconds: Option<u32>,
    /// Whether directories are listed the other way round, to programs of this machine's own ABI.
    pub reversed_directories: bool,
}

/// Some of the processors that srp may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// How many.
    pub count: usize,
    /// How many are passed over before them; after the last comes the first.
    pub after: usize,
}

impl Attributes {
    /// Whether init answers system calls for the sandbox's processes.
    pub(super) fn need_answers(&self) -> bool {
        self.clock_ahead_seconds.is_some() || self.reversed_directories
    }
}

impl Default for Attributes {
    fn default() -> Self {
        Attributes {
            umask: 0o022,
            processors: None,
            random_addresses: true,
            old_kernel: false,
            other_processor: false,
            clock_ahead_seconds: None,
            reversed_directories: false,
        }
    }
}

/// What a sandbox may use; `None` is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at one time.
    pub processes: Option<u64>,
    /// Wall time.
    pub seconds: Option<u64>,
    /// Time without a byte of log.
    pub silence_seconds: Option<u64>,
    /// Length of the log.
    pub log_bytes: Option<u64>,
    /// Size of what lives in memory: `/dev/shm`, `/tmp` unless bound, an ephemeral root's changes.
    pub scratch_bytes: Option<u64>,
}

/// Why a plan can't be carried out anywhere.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The command is empty.
    #[error("there is no command")]
    NoCommand,
    /// A NUL byte can't be passed to the kernel.
    #[error("{text:?} contains a NUL byte")]
    Nul {
        /// The offending text.
        text: String,
    },
    /// An environment variable's name is empty or holds `=`.
    #[error("{name:?} is no name of an environment variable")]
    VariableName {
        /// The name.
        name: String,
    },
    /// A host name is 1 to 64 bytes long.
    #[error("{hostname:?} is no host name")]
    Hostname {
        /// The name.
        hostname: String,
    },
    /// A path inside isn't absolute and normal.
    #[error("{path:?} is no absolute path without `.`, `..` and repeated slashes")]
    InsidePath {
        /// The path.
        path: String,
    },
    /// A path of the host isn't absolute.
    #[error("the source {} is no absolute path", path.display())]
    RelativeSource {
        /// The path.
        path: PathBuf,
    },
    /// Two entries or binds are at one place, or one is at `/`.
    #[error("{path} is taken twice")]
    Twice {
        /// The path.
        path: String,
    },
    /// `/proc` and `/dev` are the sandbox's own.
    #[error("{path} belongs to the sandbox itself")]
    Reserved {
        /// The path.
        path: String,
    },
    /// A handler's name, magic or mask is malformed.
    #[error("the binfmt handler {name:?} is malformed")]
    Handler {
        /// The handler's name.
        name: String,
    },
}

/// Whether `path` is `top` or lies below it; both normal.
pub(super) fn is_beneath(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_inside_path(path: &str) -> Result<(), PlanError> {
    let normal = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    match path.strip_prefix('/') {
        Some("") => Ok(()),
        Some(rest) if rest.split('/').all(normal) => Ok(()),
        _ => Err(PlanError::InsidePath { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> SandboxPlan {
        SandboxPlan::new(vec!["/bin/true".to_owned()])
    }

    fn bind(target: &str) -> Bind {
        let source = PathBuf::from("/x");
        Bind { source, target: target.to_owned(), writable: true, directory: true }
    }

    #[test]
    fn plans_survive_a_round_trip() {
        let mut plan = plan();
        plan.skeleton
            .push(SkeletonEntry::Symlink { path: "/bin".into(), target: "usr/bin".into() });
        plan.binds.push(bind("/srp/build"));
        plan.binfmt.extend(BinfmtHandler::for_arch("aarch64", "/q"));
        plan.limits.memory_bytes = Some(1);
        let text = serde_json::to_string(&plan).expect("plans serialise");
        assert_eq!(serde_json::from_str::<SandboxPlan>(&text).expect("and back"), plan);
    }

    #[test]
    fn bad_plans_are_named() {
        type Spoil = fn(&mut SandboxPlan);
        let cases: &[(Spoil, PlanError)] = &[
            (|p| p.command.clear(), PlanError::NoCommand),
            (|p| p.command.push("a\0b".into()), PlanError::Nul { text: "a\0b".into() }),
            (|p| p.cwd = "/a/../b".into(), PlanError::InsidePath { path: "/a/../b".into() }),
            (|p| p.cwd = "tmp".into(), PlanError::InsidePath { path: "tmp".into() }),
            (|p| p.hostname.clear(), PlanError::Hostname { hostname: String::new() }),
            (|p| p.layers.push("usr".into()), PlanError::RelativeSource { path: "usr".into() }),
            (|p| p.binds.push(bind("/proc/1")), PlanError::Reserved { path: "/proc/1".into() }),
            (|p| p.binds.push(bind("/")), PlanError::Twice { path: "/".into() }),
            (|p| p.binds.extend([bind("/a"), bind("/a")]), PlanError::Twice { path: "/a".into() }),
            (
                |p| drop(p.env.insert("A=B".into(), String::new())),
                PlanError::VariableName { name: "A=B".into() },
            ),
        ];
        assert_eq!(plan().validate(), Ok(()));
        for (spoil, expected) in cases {
            let mut spoiled = plan();
            spoil(&mut spoiled);
            assert_eq!(spoiled.validate().as_ref(), Err(expected));
        }
        let mut fine = plan();
        fine.binds.push(bind("/process")); // only looks like /proc
        assert_eq!(fine.validate(), Ok(()));
    }
}
