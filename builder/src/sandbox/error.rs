//! What can go wrong with a sandbox, each with the way out where there is one.
//!
//! A command that fails is no error here: that is an [`Outcome`](super::Outcome).

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::outcome::NotStarted;
use super::plan::PlanError;
use super::relay::Stream;
use super::wire::Failure;

/// Why a sandbox could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The plan can't be carried out anywhere.
    #[error("the sandbox's plan is invalid")]
    Plan {
        /// What is wrong with it.
        #[from]
        source: PlanError,
    },
    /// The launcher process could not be started.
    #[error("cannot start the sandbox launcher {}", exe.display())]
    Launch {
        /// The program that should have become it.
        exe: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The launcher runs out of memory that nobody can change, and this machine forbids to execute
    /// any.
    #[error(
        "this machine lets nobody execute memory files, out of which the sandbox launcher runs; \
         `sysctl vm.memfd_noexec=1` allows it for those that ask for it"
    )]
    NoExecutableMemory,
    /// The launcher process is gone, killed from outside or by the kernel for want of memory.
    #[error("the sandbox launcher {} died", exe.display())]
    LauncherDied {
        /// The program that was the launcher.
        exe: PathBuf,
    },
    /// A step of the set-up failed. Nothing of the build has run.
    #[error("cannot {step}: {action}: {errno}{}", fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default())]
    Setup {
        /// The step, as [`Step`](super::Step) prints it.
        step: String,
        /// What was being done.
        action: String,
        /// What the kernel answered.
        errno: Errno,
        /// What to do about it, if the cause is known.
        fix: Option<String>,
    },
    /// The command could not be executed.
    #[error("cannot start {program} in the sandbox: {why}")]
    Command {
        /// The program.
        program: String,
        /// What is the matter with it.
        why: NotStarted,
        /// What the kernel answered.
        errno: Errno,
    },
    /// The log could not be written; the build was stopped.
    #[error("cannot write the build's log")]
    Log {
        /// Why not.
        source: io::Error,
    },
    /// A standard stream is a directory: a way into the caller's file system.
    #[error("{stream} is a directory, which no sandbox is given")]
    DirectoryStream {
        /// Which.
        stream: Stream,
    },
    /// A standard stream of the caller's failed while it was copied.
    #[error("{} {stream}", if *stream == Stream::Input { "cannot read" } else { "cannot write to" })]
    Relay {
        /// Which.
        stream: Stream,
        /// Why.
        source: Errno,
    },
    /// A system call of srp's own failed.
    #[error("cannot {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// Processes of the sandbox survive SIGKILL, as those that wait for a broken disk do.
    #[error("the sandbox's processes did not end within {seconds} s after they were killed")]
    Unkillable {
        /// How long srp waited.
        seconds: u64,
    },
    /// More sandboxes than there are user ids for.
    #[error("{slots} sandboxes run already")]
    TooMany {
        /// How many may.
        slots: u32,
    },
}

impl SandboxError {
    pub(super) fn setup(failure: Failure) -> Self {
        let Failure { step, action, errno } = failure;
        let errno = Errno::from_raw(errno);
        let fix = super::features::fix(&step, &action, errno);
        SandboxError::Setup { step, action, errno, fix }
    }

    pub(super) fn command(program: String, why: NotStarted, errno: i32) -> Self {
        SandboxError::Command { program, why, errno: Errno::from_raw(errno) }
    }
}
