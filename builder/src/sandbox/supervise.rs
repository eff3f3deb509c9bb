//! Watches over one running sandbox: reads its log and reports, enforces limits, kills it when it
//! must, and makes the outcome.
//!
//! It never trusts the sandbox to end by itself: whatever happens, it returns only when the
//! launcher has reaped the sandbox's init, which the kernel lets happen only after every other
//! process of the sandbox is gone.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::disk::Disk;
use super::error::SandboxError;
use super::outcome::{Isolation, Limit, LimitsBy, Observation, Outcome, Status};
use super::plan::Limits;
use super::relay::Relay;
use super::sys;
use super::watch::{Usage, Watch};
use super::wire::{self, Order, Report, tell};
use crate::cancel::CancelToken;

/// What is known of a sandbox when its request has been sent.
#[derive(Debug)]
pub(super) struct Supervision<'a> {
    pub(super) limits: &'a Limits,
    pub(super) exe: &'a Path,
    pub(super) report: OwnedFd,
    /// Where its log comes from, if it has one.
    pub(super) output: Option<OwnedFd>,
    /// What copies its standard streams, if it has them.
    pub(super) relay: Option<Relay>,
    /// Numbers of signals that srp got and that are the sandbox's to answer.
    pub(super) signals: Option<BorrowedFd<'a>>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) disk: Option<Disk>,
    pub(super) start: Instant,
}

/// How long killed processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_LOOK: Duration = Duration::from_millis(50);

pub(super) fn supervise(
    mut supervision: Supervision<'_>,
    log: &mut dyn Write,
    cancel: &CancelToken,
) -> Result<Outcome, SandboxError> {
    let mut state = State::new(&mut supervision);
    let watched = state.watch_over(&mut supervision, log, cancel);
    let ended = watched.is_ok();
    if let Err(error) = watched {
        state.fail(error);
        state.bury();
    }
    // Every writer is gone: what the pipe still holds is the end of the log.
    state.read_log(&supervision, log);
    if let Some(relay) = supervision.relay.take()
        && let Err(error) = relay.finish(ended, cancel)
    {
        state.failure.get_or_insert(error);
    }
    state.conclude(supervision)
}

#[derive(Debug)]
struct State<'a> {
    limits: &'a Limits,
    start: Instant,
    process: Option<OwnedFd>,
    watch: Option<Watch>,
    disk: Option<Disk>,
    isolation: Isolation,
    /// The command's own end, from init.
    ended: Option<i32>,
    observation: Option<Observation>,
    reaped: Option<Reaped>,
    /// Why the sandbox was or will be killed, and since when.
    doomed: Option<(Doom, Instant)>,
    failure: Option<SandboxError>,
    has_log: bool,
    log_open: bool,
    log_bytes: u64,
    last_output: Instant,
    peak_memory_bytes: u64,
    next_look: Instant,
    buffer: Vec<u8>,
}

/// What there is to do.
struct Ready {
    heard: bool,
    logged: bool,
    signalled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Reaped {
    status: i32,
    cpu: Duration,
    largest_process_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doom {
    Limit(Limit),
    Cancelled,
    /// For the reason in `failure`.
    Failed,
}

impl<'a> State<'a> {
    fn new(supervision: &mut Supervision<'a>) -> Self {
        let limits_by = match supervision.cgroup {
            Some(_) => LimitsBy::Cgroup,
            None => LimitsBy::Watchdog,
        };
        State {
            limits: supervision.limits,
            start: supervision.start,
            process: None,
            watch: None,
            disk: supervision.disk.take(),
            isolation: Isolation { limits_by, idmapped: false, own_binfmt: false },
            ended: None,
            observation: None,
            reaped: None,
            doomed: None,
            failure: None,
            has_log: supervision.output.is_some(),
            log_open: supervision.output.is_some(),
            log_bytes: 0,
            last_output: supervision.start,
            peak_memory_bytes: 0,
            next_look: supervision.start + FIRST_LOOK,
            buffer: vec![0; 1 << 16],
        }
    }

    /// Until init is reaped.
    fn watch_over(
        &mut self,
        supervision: &mut Supervision<'_>,
        log: &mut dyn Write,
        cancel: &CancelToken,
    ) -> Result<(), SandboxError> {
        loop {
            let wait = self.check_the_clock(Instant::now())?;
            let Ready { heard, logged, signalled } = self.wait(supervision, cancel, wait)?;
            if signalled {
                pass_signals_on(supervision)?;
            }
            if logged {
                self.read_log(supervision, log);
            }
            if heard && self.hear(supervision)? {
                return Ok(());
            }
        }
    }

    /// After an error: waits until the killed sandbox is gone, as far as that can be told.
    fn bury(&self) {
        let deadline = Instant::now() + PATIENCE;
        // A process descriptor is readable when its process is a zombie, and the first process of
        // a PID namespace becomes one only after all others are gone.
        let Some(process) = &self.process else { return };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut events = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            match poll(&mut events, timeout) {
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }

    /// Does what is due; how long nothing else will be.
    fn check_the_clock(&mut self, now: Instant) -> Result<Duration, SandboxError> {
        if let Some((_, since)) = self.doomed {
            let left = (since + PATIENCE).saturating_duration_since(now);
            if left.is_zero() {
                return Err(SandboxError::Unkillable { seconds: PATIENCE.as_secs() });
            }
            return Ok(left);
        }
        // Also after the build closed its output: that is no way around the limit.
        let silence = if self.has_log { self.limits.silence_seconds } else { None };
        let deadlines = [
            (self.limits.seconds.map(|n| self.start + Duration::from_secs(n)), Limit::Time),
            (silence.map(|n| self.last_output + Duration::from_secs(n)), Limit::Silence),
        ];
        for (deadline, limit) in deadlines {
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.doom(Doom::Limit(limit));
                return Ok(Duration::ZERO);
            }
        }
        if self.watch.is_some() && self.next_look <= now {
            self.look(now);
        }
        let next = deadlines.into_iter().filter_map(|(deadline, _)| deadline);
        let next = next.chain(self.watch.is_some().then_some(self.next_look)).min();
        Ok(next.map_or(PATIENCE, |next| next.saturating_duration_since(now)))
    }

    /// Waits for a report, log output, a signal or cancellation; which of the first three are there.
    fn wait(
        &mut self,
        supervision: &Supervision<'_>,
        cancel: &CancelToken,
        wait: Duration,
    ) -> Result<Ready, SandboxError> {
        let cancellable = self.doomed.is_none();
        let output = supervision.output.as_ref().filter(|_| self.log_open);
        let report = supervision.report.as_fd();
        let asked = [
            Some(report),
            cancellable.then(|| cancel.descriptor()),
            output.map(AsFd::as_fd),
            supervision.signals,
        ];
        // In the place of what there is none of: the report once more, and nothing asked of it.
        let mut events = asked.map(|fd| match fd {
            Some(fd) => PollFd::new(fd, PollFlags::POLLIN),
            None => PollFd::new(report, PollFlags::empty()),
        });
        // Rounded up, or the last millisecond of every deadline would be spent spinning.
        let milliseconds = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        match poll(&mut events, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => {
                return Err(SandboxError::System { action: "watch the sandbox", source });
            }
        }
        let mut ready = [false; 4];
        for ((ready, event), asked) in ready.iter_mut().zip(&events).zip(&asked) {
            *ready = asked.is_some() && event.any().unwrap_or(true);
        }
        let [heard, cancelled, logged, signalled] = ready;
        if cancelled {
            self.doom(Doom::Cancelled);
        }
        Ok(Ready { heard, logged, signalled })
    }

    /// Reads one report; whether it was the last one.
    fn hear(&mut self, supervision: &mut Supervision<'_>) -> Result<bool, SandboxError> {
        let died = || SandboxError::LauncherDied { exe: supervision.exe.to_owned() };
        let (report, fds) = match wire::hear::<Report>(&supervision.report) {
            Ok(Some(message)) => message,
            Ok(None) | Err(Errno::ECONNRESET) => {
                return Err(self.failure.take().unwrap_or_else(died));
            }
            Err(source) => {
                return Err(SandboxError::System { action: "read the sandbox's report", source });
            }
        };
        let mut fds = fds.into_iter();
        match report {
            Report::Started { idmapped } => {
                self.isolation.idmapped = idmapped;
                self.process = fds.next();
                if self.doomed.is_some() {
                    self.kill();
                }
            }
            Report::Ready { own_binfmt } => {
                self.isolation.own_binfmt = own_binfmt;
                if let (Some(proc), Some(staging)) = (fds.next(), fds.next()) {
                    self.watch = Some(Watch::new(proc, staging));
                }
                if let Some(relay) = &mut supervision.relay {
                    relay.start(fds.next())?;
                }
            }
            Report::Failed(failure) => {
                self.failure.get_or_insert_with(|| SandboxError::setup(failure));
            }
            Report::NotExecuted { program, why, errno } => {
                self.failure.get_or_insert_with(|| SandboxError::command(program, why, errno));
            }
            Report::Ended { status, others } => {
                self.ended = Some(status);
                // A builder that could start no more may fail before the next look.
                if self.limits.processes.is_some_and(|limit| others > limit) {
                    self.doom(Doom::Limit(Limit::Processes));
                }
            }
            Report::Reaped { status, cpu_microseconds, largest_process_bytes } => {
                let cpu = Duration::from_micros(cpu_microseconds);
                self.reaped = Some(Reaped { status, cpu, largest_process_bytes });
                return Ok(true);
            }
            Report::Observed(observation) => self.observation = Some(*observation),
            Report::Began { emulated } => {
                if let Some(observation) = &mut self.observation {
                    observation.emulated = Some(emulated);
                }
            }
            Report::Probed(_) => {}
        }
        Ok(false)
    }

    fn read_log(&mut self, supervision: &Supervision<'_>, log: &mut dyn Write) {
        let Some(output) = supervision.output.as_ref().filter(|_| self.log_open) else { return };
        // A few pipes full, then the clock and the other events get their turn.
        for _ in 0..16 {
            match nix::unistd::read(output, &mut self.buffer) {
                Ok(0) => {
                    self.log_open = false;
                    return;
                }
                Ok(length) => self.take_log(length, log),
                Err(Errno::EINTR) => {}
                // A terminal ends like this when nobody has it open any more.
                Err(Errno::EIO) => {
                    self.log_open = false;
                    return;
                }
                Err(_) => return, // EAGAIN: empty
            }
        }
    }

    fn take_log(&mut self, length: usize, log: &mut dyn Write) {
        self.last_output = Instant::now();
        let room = self.limits.log_bytes.map_or(u64::MAX, |limit| limit - self.log_bytes);
        let kept = length.min(usize::try_from(room).unwrap_or(usize::MAX));
        self.log_bytes += kept as u64;
        let broken = matches!(self.failure, Some(SandboxError::Log { .. }));
        if !broken && let Err(source) = log.write_all(&self.buffer[..kept]) {
            self.fail(SandboxError::Log { source });
        }
        if kept < length {
            self.doom(Doom::Limit(Limit::Log));
        }
    }

    /// Looks at what the sandbox uses, and when to look again: rarely enough to cost at most two
    /// per cent of a processor, ten when memory runs short.
    fn look(&mut self, now: Instant) {
        let Some(watch) = &self.watch else { return };
        let usage = match watch.usage() {
            Ok(usage) => usage,
            // Its init is gone; a report is under way.
            Err(Errno::ESRCH | Errno::ENOENT) => Usage::default(),
            // Without sight there are no limits: fail closed.
            Err(source) => {
                let action = "look at the sandbox's processes";
                return self.fail(SandboxError::System { action, source });
            }
        };
        let limit = self.limits.memory_bytes.unwrap_or(u64::MAX);
        let mut used = usage.memory_bytes;
        if used > limit && self.isolation.limits_by == LimitsBy::Watchdog {
            used = watch.proportional_bytes().unwrap_or(used);
            if used > limit {
                self.doom(Doom::Limit(Limit::Memory));
            }
        }
        self.peak_memory_bytes = self.peak_memory_bytes.max(used);
        if self.limits.processes.is_some_and(|limit| usage.tasks > limit) {
            self.doom(Doom::Limit(Limit::Processes));
        }
        let looked = self.disk.as_mut().zip(self.watch.as_ref());
        match looked.map(|(disk, watch)| disk.is_exceeded(watch.proc(), now)).transpose() {
            Ok(Some(true)) => self.doom(Doom::Limit(Limit::Disk)),
            Ok(_) => {}
            Err(source) => {
                let action = "look at the sandbox's directories";
                return self.fail(SandboxError::System { action, source });
            }
        }
        let cost = now.elapsed();
        self.next_look = match used > limit / 2 {
            true => now + (cost * 10).clamp(Duration::from_millis(10), Duration::from_millis(250)),
            false => now + (cost * 50).clamp(FIRST_LOOK, Duration::from_secs(1)),
        };
    }

    fn fail(&mut self, error: SandboxError) {
        self.failure.get_or_insert(error);
        self.doom(Doom::Failed);
    }

    fn doom(&mut self, doom: Doom) {
        if self.doomed.is_none() {
            self.doomed = Some((doom, Instant::now()));
            self.kill();
        }
    }

    /// Kills init, and the kernel everything with it. Before init is known it can't be done, and
    /// is made up for when it is.
    fn kill(&self) {
        if let Some(process) = &self.process {
            let _ = sys::kill_process(process.as_fd()); // ESRCH: it is over already
        }
    }

    fn conclude(mut self, supervision: Supervision<'_>) -> Result<Outcome, SandboxError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let reaped = self.reaped.expect("the supervision ends when init is reaped");
        let mut peak = self.peak_memory_bytes.max(reaped.largest_process_bytes);
        let mut exceeded = None;
        if let Some(cgroup) = &supervision.cgroup {
            peak = cgroup.peak_memory_bytes().unwrap_or(peak);
            let events = cgroup.events();
            if events.killed_for_memory {
                exceeded = Some(Limit::Memory);
            } else if events.refused_process && self.ended != Some(0) {
                exceeded = Some(Limit::Processes);
            }
        }
        let status = match (self.doomed, exceeded) {
            (Some((Doom::Limit(limit), _)), _) | (None, Some(limit)) => {
                Status::LimitExceeded(limit)
            }
            (Some((Doom::Cancelled, _)), _) => Status::Cancelled,
            // Without a word from init it was killed, by the kernel or by the machine's owner.
            (_, None) | (Some((Doom::Failed, _)), _) => decode(self.ended.unwrap_or(reaped.status)),
        };
        Ok(Outcome {
            status,
            peak_memory_bytes: peak,
            cpu: reaped.cpu,
            wall: self.start.elapsed(),
            log_bytes: self.log_bytes,
            isolation: self.isolation,
            observation: self.observation,
        })
    }
}

/// What came on the signals' descriptor: about the terminal, or for the command.
fn pass_signals_on(supervision: &mut Supervision<'_>) -> Result<(), SandboxError> {
    let Some(signals) = supervision.signals else { return Ok(()) };
    let mut numbers = [0; 64];
    let failed = |source| SandboxError::System { action: "read signals", source };
    let length = match nix::unistd::read(signals, &mut numbers) {
        Ok(0) => {
            supervision.signals = None;
            return Ok(());
        }
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
        length => length.map_err(failed)?,
    };
    for number in &numbers[..length] {
        match i32::from(*number) {
            libc::SIGWINCH | libc::SIGCONT => supervision.relay.iter().for_each(Relay::refresh),
            // An init that is gone, or not there yet, has no command to be signalled.
            number => drop(tell(&supervision.report, &Order::Signal(number), &[])),
        }
    }
    Ok(())
}

fn decode(status: i32) -> Status {
    match WaitStatus::from_raw(Pid::from_raw(1), status) {
        Ok(WaitStatus::Exited(_, code)) => Status::Exited(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Status::Signaled(signal as i32),
        // Real-time signals have no name there; the low seven bits are the number.
        _ => Status::Signaled(status & 0x7f),
    }
}
