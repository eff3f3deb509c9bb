//! Standard streams between the caller and a shell's sandbox: by pipes, or by a terminal of the
//! sandbox's own.
//!
//! The sandbox never has a descriptor of the caller's: a file could be opened again by
//! `/proc/self/fd/0`, for writing too, a directory is a way into the whole file system, and a
//! terminal is the caller's to control. What comes in and goes out is copied here instead, by
//! threads that wait in system calls: a full pipe stops its writer, a closed one ends it, as if
//! there were no copy between.
//!
//! Only where both input and output are a terminal has the sandbox one. In `srp shell X -- prog | less`
//! the terminal is `less`'s to set up, and Ctrl-C is for all of the pipeline.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, open, splice};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{getpgrp, pipe2, read, tcgetpgrp};

use super::error::SandboxError;
use super::terminal::{RawMode, TerminalSettings};
use crate::cancel::CancelToken;

/// What one pipe holds, and one step copies: the most that an ordinary user's pipe can hold.
const PIPE_BYTES: i32 = 1 << 20;
const BUFFER_BYTES: usize = 1 << 16;
/// How often a terminal is looked at that belongs to another job.
const BACKGROUND: Duration = Duration::from_millis(250);
/// How long the last output of a cancelled sandbox may take.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// The streams of one sandbox.
#[derive(Debug)]
pub(super) struct Relay {
    copies: Vec<Copying>,
    /// Of the sandbox's terminal, if it is to have one.
    settings: Option<TerminalSettings>,
    terminal: Option<(OwnedFd, RawMode)>,
    /// At its end when all output has been passed on.
    output_ended: OwnedFd,
    output_open: Option<OwnedFd>,
    failure: Arc<Mutex<Option<SandboxError>>>,
}

/// What one thread does.
#[derive(Debug)]
struct Copying {
    stream: Stream,
    from: OwnedFd,
    to: OwnedFd,
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// 0
    Input,
    /// 1
    Output,
    /// 2
    Errors,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Stream::Input => "standard input",
            Stream::Output => "standard output",
            Stream::Errors => "standard error",
        })
    }
}

impl Relay {
    /// The relay of this process's own streams, and the other ends: what the command has as its
    /// streams, but for those that will be its terminal.
    pub(super) fn of_this_process() -> Result<(Relay, [OwnedFd; 3]), SandboxError> {
        let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
        let ours = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let [_, of_output, of_errors] = examine(ours)?;
        let has_terminal = input.is_terminal() && output.is_terminal();
        let settings = has_terminal
            .then(|| TerminalSettings::of(input.as_fd(), errors.is_terminal()))
            .transpose()
            .map_err(failed("read the terminal's settings"))?;
        let mut relay = Relay::new(settings)?;
        let own = |fd: BorrowedFd<'_>| {
            let copy = fd.try_clone_to_owned().map_err(|e| from_io(&e));
            copy.map_err(failed("copy a standard stream"))
        };
        // In the place of what will be the terminal.
        let null = || {
            open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed("open /dev/null"))
        };
        if has_terminal {
            let errors = match errors.is_terminal() {
                true => null()?,
                false => relay.outwards(Stream::Errors, own(errors.as_fd())?)?,
            };
            return Ok((relay, [null()?, null()?, errors]));
        }
        let (theirs, to) = pipe()?;
        let from = own(input.as_fd())?;
        relay.copies.push(Copying { stream: Stream::Input, from, to });
        let their_output = relay.outwards(Stream::Output, own(output.as_fd())?)?;
        // Lines of one file stay in the order in which they were written.
        let their_errors = match same_file(&of_output, &of_errors) {
            true => own(their_output.as_fd())?,
            false => relay.outwards(Stream::Errors, own(errors.as_fd())?)?,
        };
        Ok((relay, [theirs, their_output, their_errors]))
    }

    fn new(settings: Option<TerminalSettings>) -> Result<Relay, SandboxError> {
        let (output_ended, output_open) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        Ok(Relay {
            copies: Vec::new(),
            settings,
            terminal: None,
            output_ended,
            output_open: Some(output_open),
            failure: Arc::default(),
        })
    }

    /// A pipe out of the sandbox; the end that the command writes to.
    fn outwards(&mut self, stream: Stream, to: OwnedFd) -> Result<OwnedFd, SandboxError> {
        let (from, theirs) = pipe()?;
        self.copies.push(Copying { stream, from, to });
        Ok(theirs)
    }

    /// How the sandbox's terminal is to be, if it is to have one.
    pub(super) fn settings(&self) -> Option<&TerminalSettings> {
        self.settings.as_ref()
    }

    /// Begins to copy. `terminal` is the sandbox's, if it has one: then the caller's is made raw,
    /// so that every key is the sandbox's to interpret.
    pub(super) fn start(&mut self, terminal: Option<OwnedFd>) -> Result<(), SandboxError> {
        if let Some(terminal) = terminal {
            let copy = |fd: BorrowedFd<'_>| {
                let copy = fd.try_clone_to_owned().map_err(|e| from_io(&e));
                copy.map_err(failed("copy the terminal's descriptor"))
            };
            let raw = RawMode::enter().map_err(failed("set the terminal up"))?;
            let (from, to) = (copy(io::stdin().as_fd())?, copy(terminal.as_fd())?);
            self.copies.push(Copying { stream: Stream::Input, from, to });
            let (from, to) = (copy(terminal.as_fd())?, copy(io::stdout().as_fd())?);
            self.copies.push(Copying { stream: Stream::Output, from, to });
            self.terminal = Some((terminal, raw));
        }
        for copying in std::mem::take(&mut self.copies) {
            let open =
                match copying.stream {
                    Stream::Input => None,
                    _ => self.output_open.as_ref().map(OwnedFd::try_clone).transpose().map_err(
                        |e| SandboxError::System {
                            action: "copy a pipe's descriptor",
                            source: from_io(&e),
                        },
                    )?,
                };
            let failure = Arc::clone(&self.failure);
            let name = format!("srp-{}", copying.stream).replace("standard ", "");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || {
                    let stream = copying.stream;
                    let result = match stream {
                        Stream::Input => copy_in(&copying.from, copying.to),
                        Stream::Output | Stream::Errors => copy_out(copying.from, &copying.to),
                    };
                    if let Err(source) = result {
                        let error = SandboxError::Relay { stream, source };
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                    drop(open);
                })
                .map_err(|e| SandboxError::System {
                    action: "start a thread",
                    source: from_io(&e),
                })?;
        }
        self.output_open = None;
        Ok(())
    }

    /// The caller's terminal has another size, or is the caller's again after a stop.
    pub(super) fn refresh(&self) {
        if let Some((terminal, raw)) = &self.terminal {
            raw.refresh(terminal.as_fd());
        }
    }

    /// After the sandbox's end: waits until what it wrote has been passed on, and gives the
    /// terminal back. Input is read no more: its thread sees that nobody is there to have it.
    /// `ended`: whether that end is known, and with it that nobody writes any more.
    pub(super) fn finish(mut self, ended: bool, cancel: &CancelToken) -> Result<(), SandboxError> {
        self.output_open = None;
        let passed_on = |timeout, cancellable: bool| loop {
            let mut events = vec![PollFd::new(self.output_ended.as_fd(), PollFlags::POLLIN)];
            if cancellable {
                events.push(PollFd::new(cancel.descriptor(), PollFlags::POLLIN));
            }
            match poll(&mut events, timeout) {
                Err(Errno::EINTR) => {}
                _ => return events[0].any().unwrap_or(true),
            }
        };
        // Whoever reads may take their time, but not after they had it cancelled.
        if !ended || !passed_on(PollTimeout::NONE, true) {
            passed_on(PollTimeout::try_from(LAST_OUTPUT).unwrap_or(PollTimeout::ZERO), false);
        }
        drop(self.terminal.take());
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

/// Copies until either side is at its end. Only what the sandbox can take is read.
fn copy_in(from: &OwnedFd, to: OwnedFd) -> Result<(), Errno> {
    let is_terminal = from.is_terminal();
    let mut to = File::from(to);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut events = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(to.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let [ready, gone] = events.map(|event| event.any().unwrap_or(true));
        if gone {
            return Ok(());
        }
        // Reading would stop srp, which may be busy with nothing but output.
        if is_terminal && tcgetpgrp(from).is_ok_and(|group| group != getpgrp()) {
            std::thread::sleep(BACKGROUND);
            continue;
        }
        if !ready {
            continue;
        }
        let length = match read(from, &mut buffer) {
            // A terminal that hung up is at its end.
            Ok(0) | Err(Errno::EIO) => return Ok(()),
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(errno) => return Err(errno),
        };
        if to.write_all(&buffer[..length]).is_err() {
            return Ok(()); // nobody is there to have it
        }
    }
}

/// Copies until the sandbox's side is at its end, or nobody reads any more: then the sandbox's
/// writers get the SIGPIPE that they would have got without the copy.
fn copy_out(from: OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut splicing = true;
    let mut buffer = Vec::new();
    loop {
        if splicing {
            let most = PIPE_BYTES as usize;
            match splice(&from, None, to, None, most, SpliceFFlags::SPLICE_F_MOVE) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => wait_for_room(to)?,
                Err(Errno::EPIPE) => return Ok(()),
                // A terminal, a file that is appended to …: most of what can be written to.
                Err(Errno::EINVAL | Errno::EBADF | Errno::ENOSYS) => {
                    splicing = false;
                    buffer.resize(BUFFER_BYTES, 0);
                }
                Err(errno) => return Err(errno),
            }
            continue;
        }
        let length = match read(&from, &mut buffer) {
            // A terminal ends like this.
            Ok(0) | Err(Errno::EIO) => return Ok(()),
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match nix::unistd::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::EINTR) => {}
                // The caller's descriptor may be one that doesn't block.
                Err(Errno::EAGAIN) => wait_for_room(to)?,
                // A terminal that hung up takes no more, and is none to tell anything to.
                Err(Errno::EPIPE | Errno::EIO) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn wait_for_room(to: &OwnedFd) -> Result<(), Errno> {
    let mut events = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut events, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What the caller's streams are; none may be a directory.
fn examine(streams: [BorrowedFd<'_>; 3]) -> Result<[FileStat; 3], SandboxError> {
    let names = [Stream::Input, Stream::Output, Stream::Errors];
    let found = streams.map(fstat);
    for (stream, found) in names.into_iter().zip(&found) {
        if found.is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            return Err(SandboxError::DirectoryStream { stream });
        }
    }
    let [input, output, errors] = found.map(|it| it.map_err(failed("examine a standard stream")));
    Ok([input?, output?, errors?])
}

fn same_file(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// A pipe: where it is read, and where it is written.
fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    let pipe = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
    // Where the user has too many such pipes already, an ordinary one does.
    let _ = fcntl(&pipe.0, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok(pipe)
}

fn failed(action: &'static str) -> impl Fn(Errno) -> SandboxError {
    move |source| SandboxError::System { action, source }
}

fn from_io(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
