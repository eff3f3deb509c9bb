//! What srp, its launcher process and a sandbox's init say to each other: small JSON datagrams over
//! sequenced-packet sockets, with descriptors beside them.
//!
//! The words never leave the machine nor one version of the program, so they need no stability.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::features::ProbeResult;
use super::outcome::{NotStarted, Observation};
use super::plan::SandboxPlan;
use super::sys;
use super::terminal::TerminalSettings;

/// srp → launcher, on the launcher's socket. Descriptors: the report socket, a memory file that
/// holds the body, then what the request itself names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run the [`Job`] in the body. Descriptors: standard input, output and error, and the cgroup's
    /// directory if there is one.
    Run,
    /// Try every kernel feature; the body is the path of a directory, as a JSON string.
    Probe,
}

/// The body of [`Request::Run`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) plan: SandboxPlan,
    /// Number of the sandbox among those that run at the same time: as root, its user id.
    pub(super) slot: u32,
    /// The terminal that the sandbox is to make for its command.
    pub(super) terminal: Option<TerminalSettings>,
}

/// srp → init, on the report socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Send this signal to the command and what it started as one job with it.
    Signal(i32),
}

/// Launcher or init → srp, on the report socket of one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Launcher: the sandbox's init exists. Descriptor: its process.
    Started { idmapped: bool },
    /// Init: the sandbox is about to start its command. Descriptors: its `/proc`, its staging file
    /// system, and where its terminal is controlled, if it has one.
    Ready { own_binfmt: bool },
    /// Launcher or init: a step failed.
    Failed(Failure),
    /// Init's child: what it saw before it became the command.
    Observed(Box<Observation>),
    /// Init: the command has begun, in an emulator or not.
    Began { emulated: bool },
    /// Init's child: the command could not be executed.
    NotExecuted { program: String, why: NotStarted, errno: i32 },
    /// Init: the command ended, with this wait status; if it failed, with so many other processes
    /// left.
    Ended { status: i32, others: u64 },
    /// Launcher: init is gone, and with it every process of the sandbox.
    Reaped { status: i32, cpu_microseconds: u64, largest_process_bytes: u64 },
    /// Launcher: what the probes found.
    Probed(Vec<ProbeResult>),
}

/// Which step failed, in which action, with which errno.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) step: String,
    pub(super) action: String,
    pub(super) errno: i32,
}

impl Failure {
    pub(super) fn new(step: impl ToString, action: impl Into<String>, errno: Errno) -> Self {
        Failure { step: step.to_string(), action: action.into(), errno: errno as i32 }
    }
}

/// Reports are at most this long; a plan is longer, and comes in a memory file.
const LONGEST: usize = 16 * 1024;

/// Sends one message.
pub(super) fn tell(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
    sys::send(socket.as_fd(), &bytes, fds)
}

/// Receives one message; `None`: the other side is gone.
pub(super) fn hear<M: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<Option<(M, Vec<OwnedFd>)>, Errno> {
    let mut buffer = vec![0; LONGEST];
    let Some((length, fds)) = sys::receive(socket.as_fd(), &mut buffer)? else {
        return Ok(None);
    };
    let message = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG)?;
    Ok(Some((message, fds)))
}
