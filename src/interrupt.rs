//! Signals: the first one cancels, the second one ends srp at once.
//!
//! Signals are blocked in all threads and waited for by one of its own, so that no code ever runs
//! in a signal handler. Sandboxes and their launcher have a mask of their own; they end with srp,
//! whatever happens to it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};
use srp_builder::CancelToken;

use crate::error::{CommandError, CommandResult, ExitCode};

static TOKEN: OnceLock<CancelToken> = OnceLock::new();
/// Whether another program has the terminal, so that Ctrl-C is for it.
static LENT: AtomicBool = AtomicBool::new(false);

/// Answers signals from here on, for the rest of the process's life.
///
/// To be called before threads are started: they inherit what is blocked. Further calls return the
/// same token.
pub(crate) fn install() -> CommandResult<CancelToken> {
    if let Some(token) = TOKEN.get() {
        return Ok(token.clone());
    }
    let signals =
        SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    let internal = |error| CommandError::chain(ExitCode::Internal, error);
    let token = CancelToken::new().map_err(internal)?;
    let token = TOKEN.get_or_init(|| token).clone();
    signals.thread_block().map_err(std::io::Error::from).map_err(internal)?;
    let cancel = token.clone();
    std::thread::Builder::new()
        .name("srp-signals".to_owned())
        .spawn(move || answer(&signals, &cancel))
        .map_err(internal)?;
    Ok(token)
}

/// The token that signals cancel, once they are answered. Until then they end srp.
pub(crate) fn token() -> Option<&'static CancelToken> {
    TOKEN.get()
}

/// From here on Ctrl-C is for the program that has the terminal.
pub(crate) fn lend_terminal() {
    LENT.store(true, Ordering::Release);
}

fn answer(signals: &SigSet, cancel: &CancelToken) {
    while let Ok(signal) = signals.wait() {
        let lent = LENT.load(Ordering::Acquire);
        if lent && matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            continue;
        }
        if cancel.is_cancelled() {
            std::process::exit(ExitCode::Interrupted as i32);
        }
        cancel.cancel();
        if !lent {
            crate::terminal::say("stopping; once more ends srp at once");
        }
    }
}
