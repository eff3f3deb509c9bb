//! How a sandbox ended, what it used, and how well it was isolated: plain data for records.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What became of a sandbox whose command was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How the command ended.
    pub status: Status,
    /// The most memory that all processes together were seen to use. The watchdog looks a few
    /// times a second: a build shorter than that reports its largest process.
    pub peak_memory_bytes: u64,
    /// Processor time of all processes, user and system.
    pub cpu: Duration,
    /// Time from request to the last process's end.
    pub wall: Duration,
    /// Bytes of log that were written.
    pub log_bytes: u64,
    /// What enforced the isolation.
    pub isolation: Isolation,
    /// What the command saw when it began, if the plan asked for that.
    pub observation: Option<Observation>,
}

/// What the process that became the command saw around it, just before: proof that what a plan
/// varies took effect. Of what isn't here (the environment) the kernel passes on what it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The host's name.
    pub hostname: String,
    /// The working directory.
    pub cwd: String,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The file mode creation mask.
    pub umask: u32,
    /// How many processors it may use.
    pub processors: usize,
    /// How many there are, as `/proc/stat` tells; 0 if it can't be read.
    pub processors_told: usize,
    /// Whether standard input and output are a terminal.
    pub terminal: bool,
    /// Whether address spaces are laid out at random.
    pub random_addresses: bool,
    /// The kernel's release, as `uname` says it.
    pub kernel_release: String,
    /// The type of the working directory's file system, as `statfs` numbers it.
    pub file_system: i64,
    /// The processor's model and what it can do, as `/proc/cpuinfo` says it.
    pub cpu_model: String,
    /// Whether a directory is listed in another order than the file system's.
    pub reversed_directories: bool,
    /// The time of day, in seconds since 1970.
    pub seconds: i64,
    /// Whether an emulator runs the command: seen from outside, when it had begun; none if it ended
    /// before that.
    pub emulated: Option<bool>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It exited with this code.
    Exited(i32),
    /// It was killed by this signal.
    Signaled(i32),
    /// The sandbox passed a limit and was killed.
    LimitExceeded(Limit),
    /// The caller cancelled it.
    Cancelled,
}

/// Why a command could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// There is no such file.
    Absent,
    /// Nobody may execute it.
    NotExecutable,
    /// The kernel doesn't know what it is.
    NotAProgram,
    /// What runs it, a script's interpreter or a program's loader, isn't there.
    NoInterpreter {
        /// The interpreter's path.
        interpreter: String,
    },
    /// Something else failed.
    Other {
        /// What was being done, and what the kernel answered.
        what: String,
    },
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotStarted::Absent => formatter.write_str("it is not there"),
            NotStarted::NotExecutable => formatter.write_str("it is not executable"),
            NotStarted::NotAProgram => formatter.write_str(
                "it is neither a program for this machine nor a script that begins with #!",
            ),
            NotStarted::NoInterpreter { interpreter } => {
                write!(formatter, "its interpreter {interpreter} is not there")
            }
            NotStarted::Other { what } => formatter.write_str(what),
        }
    }
}

/// A limit of [`Limits`](super::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// `memory_bytes`
    Memory,
    /// `processes`
    Processes,
    /// `seconds`
    Time,
    /// `silence_seconds`
    Silence,
    /// `log_bytes`
    Log,
}

/// What a sandbox's isolation rested on where machines differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Who enforced the limits of memory and processes.
    pub limits_by: LimitsBy,
    /// Whether srp ran as root: sources are then mounted with mapped identities, and the build's
    /// user outside is an unprivileged one.
    pub idmapped: bool,
    /// Whether the sandbox had a binfmt_misc instance of its own; without one, the kernel was
    /// found to have no handler that would run anything.
    pub own_binfmt: bool,
}

/// Who enforces limits of memory and processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitsBy {
    /// The kernel, by a cgroup (version 2).
    Cgroup,
    /// srp, by looking at the sandbox's processes.
    Watchdog,
}
