//! Signals: the first one cancels, the second one ends srp at once.
//!
//! A command that has something to end in order asks for the [`token`], and ends when that is
//! cancelled. Until it asks, the first signal ends srp, with the same exit code: what a process leaves
//! is removed by the next one, as after a crash.
//!
//! Signals are blocked in all threads and waited for by one of its own, so that no code ever runs
//! in a signal handler. Sandboxes and their launcher have a mask of their own; they end with srp,
//! whatever happens to it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::pipe2;
use srp_builder::CancelToken;
use srp_builder::sandbox::{is_ignored, restore_terminal};

use crate::error::{CommandError, CommandResult, ExitCode};

static TOKEN: OnceLock<CancelToken> = OnceLock::new();
/// Whether the command ends by itself when the token is cancelled.
static ENDS_IN_ORDER: AtomicBool = AtomicBool::new(false);
/// Where signals go that are a shell's to answer.
static FORWARDED: OnceLock<OwnedFd> = OnceLock::new();

/// Answers signals from here on, for the rest of the process's life.
///
/// To be called before threads are started: they inherit what is blocked.
fn install() -> CommandResult<CancelToken> {
    // What the caller had ignored stays so: that is what nohup and a shell's `&` do.
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    let about_terminals = [Signal::SIGWINCH, Signal::SIGCONT];
    let answered = signals.into_iter().filter(|signal| !is_ignored(*signal));
    let signals: SigSet = answered.chain(about_terminals).collect();
    // No descriptor or no thread left: that is the machine's doing.
    let failed = |error| {
        CommandError::chain(ExitCode::User, error)
            .hint("this user or container may have too few open files (ulimit -n) or processes (ulimit -u)")
    };
    let token = CancelToken::new().map_err(failed)?;
    let token = TOKEN.get_or_init(|| token).clone();
    signals.thread_block().map_err(std::io::Error::from).map_err(failed)?;
    let cancel = token.clone();
    std::thread::Builder::new()
        .name("srp-signals".to_owned())
        .spawn(move || answer(&signals, &cancel))
        .map_err(failed)?;
    Ok(token)
}

/// Answers signals from here on: until [`token`] is asked for, the first one ends srp.
///
/// To be called before threads are started.
pub(crate) fn answer_signals() -> CommandResult {
    if TOKEN.get().is_none() {
        install()?;
    }
    Ok(())
}

/// Readable once a signal has come: for what ends early then, whoever else does.
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    TOKEN.get().map(CancelToken::descriptor)
}

/// The token that signals cancel. Who asks for it ends the command once it is cancelled.
pub(crate) fn token() -> CommandResult<CancelToken> {
    ENDS_IN_ORDER.store(true, Ordering::SeqCst);
    TOKEN.get().map_or_else(install, |token| Ok(token.clone()))
}

/// From here on a shell's program answers SIGINT and SIGQUIT, and what is about terminals: their
/// numbers come on this descriptor.
pub(crate) fn forward() -> CommandResult<OwnedFd> {
    let internal = |error| CommandError::chain(ExitCode::Internal, std::io::Error::from(error));
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(internal)?;
    // There is one shell in the life of a process.
    let _ = FORWARDED.set(write);
    Ok(read)
}

fn answer(signals: &SigSet, cancel: &CancelToken) {
    while let Ok(signal) = signals.wait() {
        let forwarded = FORWARDED.get();
        let for_shells =
            [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH, Signal::SIGCONT].contains(&signal);
        if let Some(pipe) = forwarded.filter(|_| for_shells) {
            // A pipe that is full has such a signal in it already.
            let _ = nix::unistd::write(pipe, &[signal as u8]);
            continue;
        }
        if matches!(signal, Signal::SIGWINCH | Signal::SIGCONT) {
            continue;
        }
        let ends_in_order = ENDS_IN_ORDER.load(Ordering::SeqCst);
        if cancel.is_cancelled() || !ends_in_order {
            if !ends_in_order {
                crate::terminal::say("interrupted");
            }
            restore_terminal();
            std::process::exit(ExitCode::Interrupted as i32);
        }
        cancel.cancel();
        if forwarded.is_none() {
            crate::terminal::say("stopping; once more ends srp at once");
        }
    }
}
