//! The launcher process: srp executed once more, single-threaded, cloning a sandbox per request.
//!
//! One such process serves an srp for as long as it lives. It is small, so cloning it is cheap,
//! and it has one thread, so a clone of it may run ordinary code. It writes identity maps, opens a
//! plan's sources when it is root, and reports the end of each sandbox; it decides nothing.
//! When srp ends, it ends, and the kernel kills its sandboxes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Pid, Uid, fchown, getegid, geteuid, pipe2, setgroups};

use super::apply::prepare_source;
use super::features;
use super::inherited::{LIMITS_STEP, normalise_process, raise_hard_limits};
use super::init::{self, Inheritance};
use super::plan::Stdio;
use super::sys::{self, Cloned};
use super::wire::{self, Failure, Job, Report, Request, tell};

/// First of the user ids under which sandboxes run when srp is root ("SRP" and a zero, read as a
/// number); the slot is added. Nothing on disk ever belongs to them.
pub const FIRST_SANDBOX_UID: u32 = 0x5352_5000;

/// How many sandboxes of one srp run at the same time at most.
pub(super) const SLOTS: u32 = 4096;

/// The hidden argument by which the program becomes the launcher process.
pub(super) const ARGUMENT: &str = "__sandbox";

/// Is the launcher process: what the program does when its first argument is `__sandbox`, before
/// anything else. Its standard input is a socket to srp.
pub fn launcher_main() -> ! {
    let status = match serve() {
        Ok(()) => 0,
        Err(failure) => {
            let Failure { step, action, errno } = failure;
            let errno = Errno::from_raw(errno);
            eprintln!("srp: sandbox launcher: {step}: {action}: {errno}");
            1
        }
    };
    sys::exit_now(status)
}

/// The launcher's state.
#[derive(Debug)]
struct Zygote {
    socket: OwnedFd,
    identity: Identity,
    /// Why builds can't have the limits that they always have, if they can't.
    limits: Result<(), Failure>,
    /// The sandboxes that run: their init and where to report its end.
    running: HashMap<Pid, OwnedFd>,
    /// User namespaces that say how owners on disk appear, by slot; only as root.
    maps: HashMap<u32, OwnedFd>,
}

/// Who srp is, and so whom a sandbox's user is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// An ordinary user: the sandbox's user is the same one.
    User { uid: u32, gid: u32 },
    /// The machine's root: the sandbox's user is an unprivileged one, by slot.
    Root,
}

fn serve() -> Result<(), Failure> {
    normalise_process()
        .map_err(|limit| Failure::new(LIMITS_STEP, limit.to_string(), Errno::EPERM))?;
    let at = |action: &'static str| move |errno| Failure::new("start", action, errno);
    let io = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(io)
        .map_err(at("take over the socket"))?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(at("open /dev/null"))?;
    sys::duplicate_to(null.as_fd(), 0).map_err(at("release standard input"))?;
    drop(null);
    super::program::forbid_execution().map_err(at("forbid the program's execution"))?;
    // What srp itself inherited without a close-on-exec mark, a build must never see.
    sys::close_all_except(&[0, 1, 2, socket.as_raw_fd()]).map_err(at("close descriptors"))?;
    let threads = std::fs::read_dir("/proc/self/task").map_err(io).map_err(at("count threads"))?;
    if threads.count() != 1 {
        return Err(at("check that there is one thread")(Errno::EINVAL));
    }
    // A terminal's Ctrl-C is srp's to answer; sandboxes inherit the mask, commands reset it.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(at("block signals"))?;
    let _ = nix::sys::prctl::set_name(c"srp-launcher");
    let identity = Identity::of_this_process();
    if identity == Identity::Root {
        setgroups(&[]).map_err(at("leave root's groups"))?;
    }
    raise_open_files();
    let limits = raise_hard_limits();
    let (running, maps) = (HashMap::new(), HashMap::new());
    let mut zygote = Zygote { socket, identity, limits, running, maps };
    zygote.serve().map_err(at("wait for requests"))
}

impl Zygote {
    fn serve(&mut self) -> Result<(), Errno> {
        let mut ended = SigSet::empty();
        ended.add(Signal::SIGCHLD);
        let ended = SignalFd::with_flags(&ended, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        loop {
            let mut events = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut events, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            let [request, child] = events.map(|event| event.any().unwrap_or(true));
            if child {
                while ended.read_signal()?.is_some() {}
                self.reap();
            }
            if request {
                match wire::hear::<Request>(&self.socket)? {
                    Some((request, fds)) => self.answer(request, fds),
                    None => return Ok(()),
                }
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(waited)) = sys::wait_for(None, false) {
            let Some(report) = self.running.remove(&waited.pid) else { continue };
            let reaped = Report::Reaped {
                status: waited.status,
                cpu_microseconds: waited.cpu_microseconds,
                largest_process_bytes: waited.largest_process_bytes,
            };
            let _ = tell(&report, &reaped, &[]); // srp may have lost interest
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let (Some(report), Some(body)) = (fds.next(), fds.next()) else { return };
        let result = match request {
            Request::Run => self.launch(&report, body, fds.collect()),
            Request::Probe => features::probe(&report, body),
        };
        if let Err(failure) = result {
            let _ = tell(&report, &Report::Failed(failure), &[]);
        }
    }

    fn launch(
        &mut self,
        report: &OwnedFd,
        body: OwnedFd,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        self.limits.clone()?;
        let at = |action: &'static str| move |errno| Failure::new("launch", action, errno);
        let cgroup = if fds.len() > 3 { fds.pop() } else { None };
        let stdio: [OwnedFd; 3] = fds.try_into().map_err(|_| Errno::EBADF).map_err(at("stdio"))?;
        let Job { plan, slot, terminal } = read_body(body).map_err(at("read the plan"))?;
        let (uid, gid) = match self.identity {
            Identity::User { uid, gid } => (uid, gid),
            Identity::Root => (FIRST_SANDBOX_UID + slot, FIRST_SANDBOX_UID + slot),
        };
        let mut sources = Vec::new();
        if self.identity == Identity::Root {
            // A user's build may open its log anew (`/dev/stderr`), so may root's. All but pipes
            // and a terminal made for this sandbox may be the host's: /dev/null holds a place.
            for stream in &stdio {
                let hand_over = "hand over standard input and output";
                let kind = SFlag::from_bits_truncate(fstat(stream).map_err(at(hand_over))?.st_mode);
                if kind & SFlag::S_IFMT == SFlag::S_IFIFO || plan.stdio == Stdio::Terminal {
                    fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                        .map_err(at(hand_over))?;
                }
            }
            let map = self.map_of(slot, uid).map_err(at("map root's files to the build's user"))?;
            for (number, path) in plan.sources().enumerate() {
                let writable = plan.is_writable_source(number);
                let source =
                    prepare_source(path, writable, Some(map)).map_err(|(action, errno)| {
                        Failure::new(format!("open {}", path.display()), action, errno)
                    })?;
                sources.push(source);
            }
        }
        let (go, let_go) = pipe2(OFlag::O_CLOEXEC).map_err(at("make a pipe"))?;
        let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWPID;
        let cloned = sys::clone_process(namespaces, true)
            .map_err(|errno| Failure::new("enter user and PID namespaces", "clone", errno))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => {
                // A panic must not unwind into the launcher's loop in its clone.
                let init = || {
                    let Ok(report) = report.try_clone() else { sys::exit_now(1) };
                    init::run(Inheritance { plan: &plan, sources, report, go, stdio, terminal })
                };
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(init));
                sys::exit_now(1)
            }
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        // Of the outer user namespace; init itself makes the inner one.
        let started = write_maps(pid, (0, 0), (uid, gid))
            .map_err(|(action, errno)| Failure::new("map the user", action, errno))
            .and_then(|()| match &cgroup {
                Some(cgroup) => join_cgroup(cgroup.as_fd(), pid)
                    .map_err(|errno| Failure::new("join the cgroup", "write cgroup.procs", errno)),
                None => Ok(()),
            })
            .and_then(|()| {
                let pidfd = pidfd.as_ref().ok_or(Errno::EBADF).map_err(at("watch init"))?;
                let idmapped = self.identity == Identity::Root;
                tell(report, &Report::Started { idmapped }, &[pidfd.as_fd()])
                    .map_err(at("report to srp"))
            })
            .and_then(|()| nix::unistd::write(&let_go, &[1]).map_err(at("let init go")));
        match started {
            Ok(_) => {
                let report =
                    report.try_clone().map_err(|_| at("keep the socket")(Errno::EMFILE))?;
                self.running.insert(pid, report);
                Ok(())
            }
            Err(failure) => {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = sys::wait_for(Some(pid), true);
                Err(failure)
            }
        }
    }

    /// The user namespace by which files of root on disk appear as those of `uid`.
    fn map_of(&mut self, slot: u32, uid: u32) -> Result<BorrowedFd<'_>, Errno> {
        let map: &OwnedFd = match self.maps.entry(slot) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(identity_map((0, 0), (uid, uid))?),
        };
        Ok(map.as_fd())
    }
}

impl Identity {
    /// Root counts as the machine's root only in the initial user namespace: elsewhere it is an
    /// ordinary user of the machine with another number.
    fn of_this_process() -> Self {
        let (uid, gid) = (geteuid(), getegid());
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
        match uid.is_root() && whole {
            true => Identity::Root,
            false => Identity::User { uid: uid.as_raw(), gid: gid.as_raw() },
        }
    }
}

/// A user namespace that maps one user and group, for `mount_setattr`.
pub(super) fn identity_map(inside: (u32, u32), outside: (u32, u32)) -> Result<OwnedFd, Errno> {
    let pid = match sys::clone_process(libc::CLONE_NEWUSER, false)? {
        Cloned::Child => {
            // Killed below, or with the launcher.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            loop {
                nix::unistd::pause();
            }
        }
        Cloned::Parent { pid, .. } => pid,
    };
    let namespace = write_maps(pid, inside, outside).map_err(|(_, errno)| errno).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
    });
    let _ = kill(pid, Signal::SIGKILL);
    let _ = sys::wait_for(Some(pid), true);
    namespace
}

/// Writes the identity maps of a process in a new user namespace, one user and one group.
pub(super) fn write_maps(
    pid: Pid,
    inside: (u32, u32),
    outside: (u32, u32),
) -> Result<(), (String, Errno)> {
    let lines = [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{} {} 1", inside.1, outside.1)),
        ("uid_map", format!("{} {} 1", inside.0, outside.0)),
    ];
    for (name, line) in lines {
        let path = format!("/proc/{pid}/{name}");
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written.map_err(|e| {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            (format!("write {name}"), errno)
        })?;
    }
    Ok(())
}

fn join_cgroup(cgroup: BorrowedFd<'_>, pid: Pid) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let procs = openat(cgroup, "cgroup.procs", flags, Mode::empty())?;
    nix::unistd::write(&procs, pid.to_string().as_bytes()).map(drop)
}

/// Reads the JSON that a memory file holds.
pub(super) fn read_body<B: serde::de::DeserializeOwned>(body: OwnedFd) -> Result<B, Errno> {
    let mut file = File::from(body);
    let mut bytes = Vec::new();
    let io = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    file.rewind().map_err(io)?;
    file.read_to_end(&mut bytes).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|_| Errno::EBADMSG)
}

/// Many sandboxes with many sources need more descriptors than the usual soft limit.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = if geteuid().is_root() { hard.max(65_536) } else { hard };
        if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}
