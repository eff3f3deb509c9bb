//! A meter: counts what passes through a pipe or a file, shows it on a terminal, and ends it when srp
//! is to end.

use std::io::{Error, Result, Write};
use std::os::fd::AsFd;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use srp_builder::CancelToken;

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::interrupt;

/// Counts bytes.
#[derive(Clone)]
pub(crate) struct Meter {
    cancel: CancelToken,
    bar: ProgressBar,
}

impl Meter {
    /// Answers signals from here on; to be made before threads are.
    pub(crate) fn new(context: &Context, what: &'static str) -> CommandResult<Meter> {
        let cancel = interrupt::token()?;
        let shown = !context.options.quiet && console::Term::stderr().is_term();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(what);
        let style = ProgressStyle::with_template("{msg}  {bytes}  {bytes_per_sec}");
        bar.set_style(style.expect("the template is valid"));
        Ok(Meter { cancel, bar })
    }

    /// So many bytes have passed; an error if that is to end.
    pub(crate) fn pass(&self, bytes: u64) -> Result<()> {
        self.bar.inc(bytes);
        if self.cancel.is_cancelled() { Err(Error::other("it was interrupted")) } else { Ok(()) }
    }

    /// A file whose reading and writing the first signal ends, whoever is at its other end.
    pub(crate) fn interruptible<F>(&self, file: F) -> Interruptible<F> {
        Interruptible { file, cancel: self.cancel.clone() }
    }

    /// Nothing more will pass.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Why something failed: its own error, unless it is the signal's doing.
    pub(crate) fn explain(&self, error: impl Into<CommandError>, kept: &str) -> CommandError {
        if self.cancel.is_cancelled() {
            return CommandError::new(ExitCode::Interrupted, format!("interrupted; {kept}"));
        }
        error.into()
    }
}

/// What is written passes a meter.
pub(crate) struct Metered<W> {
    pub(crate) to: W,
    pub(crate) meter: Meter,
}

impl<W: Write> Write for Metered<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.to.write(bytes)?;
        self.meter.pass(count as u64)?;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}

/// See [`Meter::interruptible`].
pub(crate) struct Interruptible<F> {
    file: F,
    cancel: CancelToken,
}

/// As much as a pipe takes at once that has room for anything: a longer write could wait in the middle.
const PIPE_BYTES: usize = 4096;

impl<F: AsFd> Interruptible<F> {
    /// Waits until there is something to read, or the end; an error if srp is to end.
    pub(crate) fn wait_to_read(&self) -> Result<()> {
        self.wait(PollFlags::POLLIN)
    }

    /// Waits until the file is ready; an error if srp is to end.
    fn wait(&self, for_what: PollFlags) -> Result<()> {
        loop {
            let mut polled = [
                PollFd::new(self.cancel.descriptor(), PollFlags::POLLIN),
                PollFd::new(self.file.as_fd(), for_what),
            ];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            if self.cancel.is_cancelled() {
                return Err(Error::other("it was interrupted"));
            }
            if polled[1].any().unwrap_or(true) {
                return Ok(());
            }
        }
    }
}

impl<F: AsFd + Write> Write for Interruptible<F> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.wait(PollFlags::POLLOUT)?;
        let kind = rustix::fs::fstat(&self.file)?.st_mode;
        let is_file = rustix::fs::FileType::from_raw_mode(kind).is_file();
        let some = if is_file { bytes.len() } else { bytes.len().min(PIPE_BYTES) };
        self.file.write(&bytes[..some])
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}
