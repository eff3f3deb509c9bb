//! Starts sandboxes and watches over them: srp's side.
//!
//! Each [`Launcher::run`] blocks its thread until the sandbox's last process is gone; any number of
//! threads may be in it. All of them share one launcher process (see `zygote`).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::pipe2;
use serde::Serialize;

use crate::cancel::CancelToken;

use super::cgroup::{self, Cgroup};
use super::error::SandboxError;
use super::outcome::Outcome;
use super::plan::{SandboxPlan, Stdio};
use super::program::sealed_copy;
use super::relay::Relay;
use super::supervise::{Supervision, supervise};
use super::sys;
use super::wire::{Job, Request, tell};
use super::zygote::{ARGUMENT, SLOTS};

/// Starts sandboxes by way of a launcher process, which it starts when first needed.
#[derive(Debug)]
pub struct Launcher {
    exe: PathBuf,
    process: Mutex<Option<Arc<LauncherProcess>>>,
    slots: Mutex<BTreeSet<u32>>,
    /// Where a sandbox's cgroup can be made; looked for once.
    cgroups: OnceLock<Option<PathBuf>>,
}

impl Launcher {
    /// A launcher that executes `exe` as `exe __sandbox`, which must call
    /// [`launcher_main`](super::launcher_main).
    #[must_use]
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Launcher {
            exe: exe.into(),
            process: Mutex::default(),
            slots: Mutex::default(),
            cgroups: OnceLock::new(),
        }
    }

    /// Runs one sandbox to its end. Unless its streams are relayed, what it prints goes to `log`.
    ///
    /// When this returns, no process of the sandbox exists any more, except after
    /// [`SandboxError::Unkillable`].
    pub fn run(
        &self,
        plan: &SandboxPlan,
        log: &mut dyn Write,
        cancel: &CancelToken,
    ) -> Result<Outcome, SandboxError> {
        self.run_with(plan, log, None, cancel)
    }

    /// Runs a shell's sandbox to its end. On `signals` come numbers of signals that this process
    /// got, a byte each: those about its terminal change the sandbox's, others go to the command.
    pub fn run_interactive(
        &self,
        plan: &SandboxPlan,
        signals: BorrowedFd<'_>,
        cancel: &CancelToken,
    ) -> Result<Outcome, SandboxError> {
        self.run_with(plan, &mut io::sink(), Some(signals), cancel)
    }

    fn run_with(
        &self,
        plan: &SandboxPlan,
        log: &mut dyn Write,
        signals: Option<BorrowedFd<'_>>,
        cancel: &CancelToken,
    ) -> Result<Outcome, SandboxError> {
        plan.validate()?;
        let start = Instant::now();
        let slot = self.take_slot()?;
        let parent = self.cgroups.get_or_init(cgroup::find_parent).as_deref();
        let cgroup = parent.and_then(|parent| Cgroup::create_in(parent, &plan.limits).ok());
        let Streams { output, relay, theirs: stdio } = standard_streams(plan.stdio)?;
        let mut fds: Vec<BorrowedFd<'_>> = stdio.iter().map(AsFd::as_fd).collect();
        let directory = cgroup.as_ref().map(Cgroup::directory).transpose();
        let directory = directory.map_err(system("open the sandbox's cgroup"))?;
        fds.extend(directory.as_ref().map(AsFd::as_fd));
        let terminal = relay.as_ref().and_then(Relay::settings).cloned();
        let job = Job { plan: plan.clone(), slot: slot.number, terminal };
        let (report, _process) = self.request(Request::Run, &job, &fds)?;
        drop((stdio, directory));
        supervise(
            Supervision {
                limits: &plan.limits,
                exe: &self.exe,
                report,
                output,
                relay,
                signals,
                cgroup,
                start,
            },
            log,
            cancel,
        )
    }

    /// Starts the launcher process, so that the first sandbox needn't wait for it. Whether that works
    /// is said to whoever runs one.
    pub(crate) fn prepare(&self) {
        if let Err(error) = self.process() {
            tracing::debug!(%error, "the sandbox launcher does not start");
        }
    }

    /// Sends a request; the socket on which reports come, and the process, kept alive.
    pub(super) fn request(
        &self,
        request: Request,
        body: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(OwnedFd, Arc<LauncherProcess>), SandboxError> {
        let (report, theirs) = socket_pair()?;
        let body = memory_file(body)?;
        let mut all = vec![theirs.as_fd(), body.as_fd()];
        all.extend(fds);
        // A launcher process that died while idle is replaced, once.
        for last in [false, true] {
            let process = self.process()?;
            match tell(&process.socket, &request, &all) {
                Ok(()) => return Ok((report, process)),
                Err(Errno::EPIPE | Errno::ECONNRESET) if !last => {
                    let mut current = lock(&self.process);
                    if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &process)) {
                        *current = None;
                    }
                }
                Err(Errno::EPIPE | Errno::ECONNRESET) => break,
                Err(source) => {
                    let action = "send a request to the sandbox launcher";
                    return Err(SandboxError::System { action, source });
                }
            }
        }
        Err(SandboxError::LauncherDied { exe: self.exe.clone() })
    }

    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    fn process(&self) -> Result<Arc<LauncherProcess>, SandboxError> {
        let mut process = lock(&self.process);
        if let Some(process) = &*process {
            return Ok(Arc::clone(process));
        }
        let (socket, theirs) = socket_pair()?;
        let program = sealed_copy(&self.exe)?;
        // Its standard input is the socket: a descriptor number that needs no agreement.
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("srp") // builds can read init's arguments: no path of the host among them
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/") // where srp was started may be removed, or to be unmounted
            .stdin(theirs)
            .stdout(std::process::Stdio::null())
            .spawn()
            .map_err(|source| SandboxError::Launch { exe: self.exe.clone(), source })?;
        let started = Arc::new(LauncherProcess { socket, child: child.into() });
        *process = Some(Arc::clone(&started));
        Ok(started)
    }

    fn take_slot(&self) -> Result<Slot<'_>, SandboxError> {
        let mut taken = lock(&self.slots);
        let number = (0..SLOTS).find(|number| !taken.contains(number));
        let number = number.ok_or(SandboxError::TooMany { slots: SLOTS })?;
        taken.insert(number);
        Ok(Slot { launcher: self, number })
    }
}

/// A running launcher process; dropping it ends it and every sandbox that it still has.
#[derive(Debug)]
pub(super) struct LauncherProcess {
    socket: OwnedFd,
    child: Mutex<Child>,
}

impl Drop for LauncherProcess {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        // It only has to notice; not waiting would leave a zombie.
        let _ = lock(&self.child).wait();
    }
}

/// One of the numbers that tell concurrent sandboxes apart.
#[derive(Debug)]
struct Slot<'a> {
    launcher: &'a Launcher,
    number: u32,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(&self.launcher.slots).remove(&self.number);
    }
}

/// The command's standard streams.
struct Streams {
    /// The end from which srp reads the log, if that is what they are.
    output: Option<OwnedFd>,
    /// What copies between them and the caller's.
    relay: Option<Relay>,
    theirs: [OwnedFd; 3],
}

fn standard_streams(stdio: Stdio) -> Result<Streams, SandboxError> {
    let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
    let copy = "copy standard input and output";
    match stdio {
        Stdio::Relayed => {
            let (relay, theirs) = Relay::of_this_process()?;
            Ok(Streams { output: None, relay: Some(relay), theirs })
        }
        Stdio::Log => {
            let failed = |source| SandboxError::System { action: "make the log's pipe", source };
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
            fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
            // Standard input is /dev/null of the sandbox; this one only takes its place.
            let input = duplicate(write.as_fd()).map_err(system(copy))?;
            let errors = duplicate(write.as_fd()).map_err(system(copy))?;
            Ok(Streams { output: Some(read), relay: None, theirs: [input, write, errors] })
        }
        Stdio::Terminal => {
            let (ours, theirs) = terminal()
                .map_err(|source| SandboxError::System { action: "make a terminal", source })?;
            let output = duplicate(theirs.as_fd()).map_err(system(copy))?;
            let errors = duplicate(theirs.as_fd()).map_err(system(copy))?;
            Ok(Streams { output: Some(ours), relay: None, theirs: [theirs, output, errors] })
        }
    }
}

/// A terminal that passes on what is printed as it is, shows nothing that is typed, and whose
/// input is at its end, again and again: who asks gets no answer instead of waiting for one.
fn terminal() -> Result<(OwnedFd, OwnedFd), Errno> {
    const END_OF_INPUT: [u8; 256] = [4; 256];
    let pair = openpty(None, None)?;
    let mut modes = tcgetattr(&pair.slave)?;
    modes.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHOCTL);
    modes.output_flags.remove(OutputFlags::OPOST);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
    nix::unistd::write(&pair.master, &END_OF_INPUT)?;
    Ok((pair.master, pair.slave))
}

fn socket_pair() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    sys::socket_pair()
        .map_err(|source| SandboxError::System { action: "make a socket pair", source })
}

/// A file in memory that holds `body` as JSON.
fn memory_file(body: &impl Serialize) -> Result<OwnedFd, SandboxError> {
    let action = "write the plan to memory";
    let failed = |source| SandboxError::System { action, source };
    let bytes = serde_json::to_vec(body).map_err(|e| failed(from_io(&e.into())))?;
    let file = memfd_create("srp-plan", MFdFlags::MFD_CLOEXEC).map_err(failed)?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).map_err(system(action))?;
    Ok(file.into())
}

fn system(action: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |e| SandboxError::System { action, source: from_io(&e) }
}

fn from_io(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

/// A panic elsewhere leaves these values whole: they change by single insertions and removals.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
