//! Evaluation in a process of its own, so that its bounds are bounds: the side that starts it.
//!
//! Starlark counts calls and what lies in its heap, now and then; a single step can still take any
//! memory, time or stack ("x" * 2**40, `repr` of a list 200,000 lists deep). So definitions are
//! evaluated by a child ([`worker_main`](crate::worker_main)) whose memory and time the kernel
//! limits, and which has no right but to read the definitions. It answers over a pipe
//! ([`crate::wire`]). How it ended is looked at here, and made an error that names the bound.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::definitions::Definitions;
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Listed};
use crate::wire::{self, Answer, Frames, WireError};
use crate::worker::{ARGUMENT, Order, Task};

/// What one evaluation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Address space, the interpreter's own included.
    pub memory_mib: u64,
    /// Processor time.
    pub cpu_seconds: u64,
    /// Time by the clock: more than processor time, for slow disks and busy machines.
    pub seconds: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { memory_mib: 1024, cpu_seconds: 10, seconds: 60 }
    }
}

impl Limits {
    /// The least address space in which the interpreter starts: its stack is part of it.
    pub const LEAST_MEMORY_MIB: u64 = 512;
}

/// Evaluates definitions, each time in a new process.
#[derive(Clone, Debug)]
pub struct Evaluator {
    exe: PathBuf,
    limits: Limits,
}

/// A bound that ended an evaluating process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// [`Limits::memory_mib`].
    Memory {
        /// The limit.
        mib: u64,
    },
    /// The stack: values or source text that are nested too deeply.
    Depth,
    /// [`Limits::cpu_seconds`].
    CpuTime {
        /// The limit.
        seconds: u64,
    },
    /// [`Limits::seconds`].
    Time {
        /// The limit.
        seconds: u64,
    },
    /// SIGKILL that srp has not sent: of the kernel, when the machine runs out of memory, or of
    /// somebody else.
    Killed,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Memory { mib } => {
                write!(f, "the evaluation takes more than {mib} MiB of memory")
            }
            Bound::Depth => f.write_str(
                "a value or an expression is nested too deeply: the evaluation's stack overflowed",
            ),
            Bound::CpuTime { seconds } => {
                write!(f, "the evaluation takes more than {seconds} s of processor time")
            }
            Bound::Time { seconds } => write!(f, "the evaluation takes more than {seconds} s"),
            Bound::Killed => f.write_str(
                "the evaluating process was killed, perhaps because the machine ran out of memory",
            ),
        }
    }
}

/// How a process ended.
enum End<T> {
    /// It gave an answer.
    Answer(Result<T, EvalError>),
    /// A bound ended it.
    Bound { bound: Bound, during: During },
}

/// What was evaluated last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct During {
    /// `//lib/make.star`, or `stages["s"] for the target t`.
    what: Option<String>,
    /// `//lib/make.star:12:5`.
    position: Option<String>,
}

impl Evaluator {
    /// An evaluator that executes `exe` as `exe __evaluate`, which must call
    /// [`worker_main`](crate::worker_main).
    pub fn new(exe: impl Into<PathBuf>) -> Evaluator {
        Evaluator { exe: exe.into(), limits: Limits::default() }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Evaluator {
        Evaluator { limits, ..self }
    }

    /// Evaluates attributes, as [`evaluate()`](crate::evaluate()) does.
    ///
    /// Once `cancel` is readable, it ends with [`EvalError::Cancelled`].
    pub fn evaluate(
        &self,
        definitions: &Definitions,
        build_arch: &str,
        attrs: &[String],
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Evaluation, EvalError> {
        let task = Task::Evaluate { attrs: attrs.to_vec() };
        let evaluation: Evaluation = self.run(definitions, build_arch, task, cancel)?;
        let asked = evaluation.goals.iter().map(|(attr, _)| attr);
        if !asked.eq(attrs) {
            return Err(EvalError::Answer { source: WireError::Goals });
        }
        Ok(evaluation)
    }

    /// Lists what can be asked for, as [`list()`](crate::list()) does.
    ///
    /// Once `cancel` is readable, it ends with [`EvalError::Cancelled`].
    pub fn list(
        &self,
        definitions: &Definitions,
        build_arch: &str,
        within: Option<&str>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<Listed>, EvalError> {
        let task = Task::List { within: within.map(str::to_owned) };
        self.run(definitions, build_arch, task, cancel)
    }

    fn run<T: Answer>(
        &self,
        definitions: &Definitions,
        build_arch: &str,
        task: Task,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<T, EvalError> {
        let mut order = Order {
            limits: self.limits,
            positions: false,
            build_arch: build_arch.to_owned(),
            task,
        };
        let (bound, mut during) = match self.once(definitions, &order, cancel)? {
            End::Answer(answer) => return answer,
            End::Bound { bound, during } => (bound, during),
        };
        // What it died of it could not say. It will die there again: this time it says before each
        // statement where it is, which takes too long to do it always.
        if matches!(bound, Bound::Memory { .. } | Bound::Depth) {
            order.positions = true;
            let again = self.once::<T>(&definitions.clone().on_print(|_| ()), &order, cancel)?;
            if let End::Bound { bound: second, during: found } = again
                && second == bound
            {
                during = found;
            }
        }
        Err(EvalError::Exhausted { bound, what: during.what, position: during.position })
    }

    /// Runs one process to its end.
    fn once<T: Answer>(
        &self,
        definitions: &Definitions,
        order: &Order,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<End<T>, EvalError> {
        let start = Instant::now();
        let process = |action: &'static str| move |source| failed(action, source);
        let directory = definitions.directory().map_err(process("copy the descriptor"))?;
        let child = Command::new(&self.exe)
            .arg0("srp")
            .arg(ARGUMENT)
            .args(order.to_arguments())
            .env_clear()
            // Signals of the terminal are for srp, which ends it.
            .process_group(0)
            .stdin(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = Running(child.map_err(process("start the evaluating process"))?);
        let (output, errors) = (child.0.stdout.take(), child.0.stderr.take());
        let (Some(output), Some(errors)) = (output, errors) else {
            unreachable!("both are piped");
        };
        let mut reader = Reader {
            output: Some(output),
            errors: Some(errors),
            frames: Frames::default(),
            said: Vec::new(),
            during: During::default(),
        };
        let deadline = start + Duration::from_secs(order.limits.seconds);
        let read = reader.read(definitions, deadline, cancel);
        // Its answer is there, or none comes any more: it isn't waited for in vain.
        let status = child.end().map_err(process("wait for the evaluating process"))?;
        match read? {
            Outcome::Answer(body) => {
                let answer = wire::decode_result(&body);
                tracing::debug!(elapsed = ?start.elapsed(), "evaluated");
                match answer.map_err(|source| EvalError::Answer { source })? {
                    Err(EvalError::OutOfMemory) => {
                        let bound = Bound::Memory { mib: order.limits.memory_mib };
                        Ok(End::Bound { bound, during: reader.during })
                    }
                    answer => Ok(End::Answer(answer)),
                }
            }
            Outcome::Deadline => {
                let bound = Bound::Time { seconds: order.limits.seconds };
                Ok(End::Bound { bound, during: reader.during })
            }
            Outcome::Closed => match bound(status, &reader.said, &order.limits) {
                Some(bound) => Ok(End::Bound { bound, during: reader.during }),
                None => {
                    let said = String::from_utf8_lossy(&reader.said).trim().to_owned();
                    Err(EvalError::Crashed { message: format!("{status}: {said}") })
                }
            },
        }
    }
}

/// A process that doesn't outlive whatever goes wrong here.
struct Running(Child);

impl Running {
    /// Ends it, if it hasn't ended, and says how it did.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // An ending process keeps the status that it ends with.
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `end` this does nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why nothing more is read.
enum Outcome {
    Answer(Vec<u8>),
    /// Both pipes were closed without one.
    Closed,
    Deadline,
}

struct Reader {
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    frames: Frames,
    /// The beginning of what came on standard error.
    said: Vec<u8>,
    during: During,
}

impl Reader {
    /// How much of standard error is kept.
    const SAID_BYTES: usize = 4 << 10;

    fn read(
        &mut self,
        definitions: &Definitions,
        deadline: Instant,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Outcome, EvalError> {
        let failed = |source| failed("read from the evaluating process", source);
        let mut buffer = vec![0; 64 << 10];
        while self.output.is_some() || self.errors.is_some() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(Outcome::Deadline);
            };
            let [output, errors, cancelled] = self.wait(left, cancel).map_err(failed)?;
            if cancelled {
                return Err(EvalError::Cancelled);
            }
            if errors && let Some(pipe) = &mut self.errors {
                let count = pipe.read(&mut buffer).map_err(failed)?;
                let room = Self::SAID_BYTES - self.said.len();
                self.said.extend_from_slice(&buffer[..count.min(room)]);
                if count == 0 {
                    self.errors = None;
                }
            }
            if output && let Some(pipe) = &mut self.output {
                let count = pipe.read(&mut buffer).map_err(failed)?;
                if count == 0 {
                    self.output = None;
                }
                let answer = self.frames(&buffer[..count], definitions);
                if let Some(body) = answer.map_err(|source| EvalError::Answer { source })? {
                    return Ok(Outcome::Answer(body));
                }
            }
        }
        Ok(Outcome::Closed)
    }

    /// Which of output, errors and `cancel` have something to read.
    fn wait(&self, left: Duration, cancel: Option<BorrowedFd<'_>>) -> io::Result<[bool; 3]> {
        let sources =
            [self.output.as_ref().map(AsFd::as_fd), self.errors.as_ref().map(AsFd::as_fd), cancel];
        let mut polled: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // A millisecond more, so that the deadline has passed when it returns.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        match poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut polled = polled.iter().map(|it| it.any().unwrap_or_default());
        Ok(sources.map(|source| source.is_some() && polled.next().unwrap_or_default()))
    }

    /// Takes in what came on standard output; the answer, once it is there.
    fn frames(
        &mut self,
        bytes: &[u8],
        definitions: &Definitions,
    ) -> Result<Option<Vec<u8>>, WireError> {
        self.frames.push(bytes)?;
        while let Some(wire::Frame { tag, body }) = self.frames.next()? {
            if tag == wire::DONE {
                return Ok(Some(body));
            }
            let text = String::from_utf8(body).map_err(|_| WireError::NotUtf8)?;
            match tag {
                wire::PRINTED => definitions.print(&text),
                wire::POSITION => self.during.position = Some(text),
                _ => self.during = During { what: Some(text), position: None },
            }
        }
        Ok(None)
    }
}

fn failed(action: &str, source: io::Error) -> EvalError {
    EvalError::Process { action: action.to_owned(), source }
}

/// The bound that ended a process, if it was one.
fn bound(status: ExitStatus, said: &[u8], limits: &Limits) -> Option<Bound> {
    let said = String::from_utf8_lossy(said);
    match Signal::try_from(status.signal()?).ok()? {
        // What Rust's runtime says before it aborts.
        Signal::SIGABRT if said.contains("memory allocation of") => {
            Some(Bound::Memory { mib: limits.memory_mib })
        }
        Signal::SIGABRT if said.contains("overflowed its stack") => Some(Bound::Depth),
        // Beyond the guard page, or where the stack couldn't grow.
        Signal::SIGSEGV | Signal::SIGBUS => Some(Bound::Depth),
        Signal::SIGXCPU => Some(Bound::CpuTime { seconds: limits.cpu_seconds }),
        Signal::SIGKILL => Some(Bound::Killed),
        _ => None,
    }
}
