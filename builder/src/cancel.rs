//! A way for several threads to be told "stop". It knows nothing of signals: the binary's handler
//! uses it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Tells running work to stop soon. Clones share one state; once cancelled it stays cancelled.
#[derive(Clone, Debug)]
pub struct CancelToken(Arc<State>);

#[derive(Debug)]
struct State {
    cancelled: AtomicBool,
    event: EventFd,
}

impl CancelToken {
    /// A token that nobody has cancelled yet. It fails only when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(CancelToken(Arc::new(State { cancelled: AtomicBool::new(false), event })))
    }

    /// Asks the work to stop. Safe from any thread, any number of times.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // The only failure is that the counter is full: cancelled often enough.
        let _ = self.0.event.write(1);
    }

    /// Whether the work was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// True once cancelled, for those who know no token.
    pub fn flag(&self) -> &AtomicBool {
        &self.0.cancelled
    }

    /// Readable once cancelled, for `poll`.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
