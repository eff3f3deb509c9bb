//! The sandbox's process 1: sets the sandbox up, starts the command, reaps, and ends with it.
//!
//! When it exits, for whatever reason, the kernel kills every process of the sandbox. It watches
//! the report socket, so that it ends when srp does. It measures and limits nothing; that is done
//! from outside, where the build can't reach.

use std::ffi::CString;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::personality::{self, Persona};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, execve, getpid, pipe2, setsid};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

use super::answers::{self, Answers};
use super::apply::Setup;
use super::outcome::{NotStarted, Observation};
use super::plan::{SandboxPlan, Stdio};
use super::sys::{self, Cloned};
use super::terminal::TerminalSettings;
use super::told;
use super::wire::{Failure, Order, Report, hear, tell};

/// What the launcher hands to a new sandbox.
#[derive(Debug)]
pub(super) struct Inheritance<'a> {
    pub(super) plan: &'a SandboxPlan,
    /// The plan's sources as mounts, if the launcher opened them.
    pub(super) sources: Vec<OwnedFd>,
    /// Where to report, shared with the launcher; its end means that srp is gone.
    pub(super) report: OwnedFd,
    /// Becomes readable when the identity maps are written; its end means "give up".
    pub(super) go: OwnedFd,
    /// Standard input, output and error of the command.
    pub(super) stdio: [OwnedFd; 3],
    /// The terminal that is to take the place of the first two of them, or of all.
    pub(super) terminal: Option<TerminalSettings>,
}

/// Is the sandbox's init, in a process that was just cloned.
pub(super) fn run(inheritance: Inheritance<'_>) -> ! {
    let Inheritance { plan, sources, report, go, stdio, terminal } = inheritance;
    // 0 to 2 are the launcher's own, empty but for its errors; the command gets others.
    let mut keep = vec![0, 1, 2, report.as_raw_fd(), go.as_raw_fd()];
    keep.extend(stdio.iter().chain(&sources).map(AsRawFd::as_raw_fd));
    if sys::close_all_except(&keep).is_err() || !may_go(&go) {
        sys::exit_now(1);
    }
    drop(go);
    let failure = match prepare_and_start(plan, sources, &report, stdio, terminal) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // If srp is gone, nobody is left to tell.
    let _ = tell(&report, &Report::Failed(failure), &[]);
    sys::exit_now(1)
}

enum Never {}

fn prepare_and_start(
    plan: &SandboxPlan,
    sources: Vec<OwnedFd>,
    report: &OwnedFd,
    mut stdio: [OwnedFd; 3],
    settings: Option<TerminalSettings>,
) -> Result<Never, Failure> {
    let prepared = Setup::new(plan, sources).run()?;
    let starting = |action: &str, errno| Failure::new("start the command", action, errno);
    let ready = Report::Ready { own_binfmt: prepared.binfmt.is_some() };
    let mut fds = vec![prepared.proc.as_fd(), prepared.staging.as_fd()];
    let has_terminal = settings.is_some();
    let pair = settings.as_ref().map(TerminalSettings::open).transpose();
    let pair = pair.map_err(|e| starting("make its terminal", e))?;
    fds.extend(pair.as_ref().map(|(controlled, _)| controlled.as_fd()));
    tell(report, &ready, &fds).map_err(|e| starting("report to srp", e))?;
    drop(fds);
    // Held until the end: a terminal that nobody has open looks as if it had hung up.
    let terminal = pair.map(|(_, terminal)| terminal);
    if let (Some(terminal), Some(settings)) = (&terminal, &settings) {
        let streams = if settings.has_errors { 3 } else { 2 };
        for stream in &mut stdio[..streams] {
            let copy = terminal.try_clone();
            *stream =
                copy.map_err(|_| starting("copy its terminal's descriptor", Errno::EMFILE))?;
        }
    }
    // Held until the end: closing it would drop the registered handlers.
    let _binfmt = prepared.binfmt;
    let emulators = prepared.emulators;
    drop((prepared.proc, prepared.staging));
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    let ended = SignalFd::with_flags(&ended, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| starting("watch for its end", e))?;
    let questions = plan.attributes.need_answers().then(sys::socket_pair).transpose();
    let questions = questions.map_err(|e| starting("make a socket pair", e))?;
    // Its other end is closed when the command begins.
    let begin = plan.observe.then(|| pipe2(OFlag::O_CLOEXEC)).transpose();
    let begin = begin.map_err(|e| starting("make a pipe", e))?;
    let command = match sys::clone_process(0, false).map_err(|e| starting("fork", e))? {
        Cloned::Child => {
            let questions = questions.as_ref().map(|(_, it)| it);
            let _ = tell(report, &execute(plan, stdio, has_terminal, report, questions), &[]);
            sys::exit_now(127);
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(stdio);
    let mut beginning = begin.map(|(beginning, _)| beginning);
    let answering = |e| starting("answer its system calls", e);
    let mut answers = None;
    if let Some((questions, theirs)) = questions {
        drop(theirs);
        let received = sys::receive(questions.as_fd(), &mut [0]).map_err(answering)?;
        // Nothing: it could not be started, and is about to say why.
        let listener = received.and_then(|(_, fds)| fds.into_iter().next());
        answers = listener.map(|it| Answers::new(plan, it)).transpose().map_err(answering)?;
    }
    loop {
        while let Ok(Some(waited)) = sys::wait_for(None, false) {
            if libc::WIFSTOPPED(waited.status) {
                if let Some(answers) = &mut answers {
                    answers.stopped(waited.pid, waited.status).map_err(answering)?;
                }
                continue;
            }
            if let Some(answers) = &mut answers {
                answers.ended(waited.pid);
            }
            if waited.pid == command {
                let others = if waited.status == 0 { 0 } else { other_processes() };
                let _ = tell(report, &Report::Ended { status: waited.status, others }, &[]);
                sys::exit_now(0);
            }
        }
        // What there is none of is the report's socket once more, at whose end this ends.
        let mut events = [
            report.as_fd(),
            ended.as_fd(),
            answers.as_ref().map_or(report.as_fd(), Answers::descriptor),
            beginning.as_ref().map_or(report.as_fd(), AsFd::as_fd),
        ]
        .map(|it| PollFd::new(it, PollFlags::POLLIN));
        // To the next millisecond: what ends earlier was not over.
        let next_end = answers.as_ref().and_then(Answers::next_end);
        let wait = next_end.map_or(PollTimeout::NONE, |it| {
            PollTimeout::try_from(it.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut events, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => sys::exit_now(1),
        }
        if events[0].any().unwrap_or(true) {
            match hear(report) {
                // The command leads a session, and what it starts a job in it; it may have ended.
                Ok(Some((Order::Signal(number), _))) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        let _ = killpg(command, signal);
                    }
                }
                // srp is gone.
                _ => sys::exit_now(1),
            }
        }
        let asked = events[2].revents().unwrap_or(PollFlags::empty());
        let begun = events[3].any().unwrap_or(true);
        if asked.contains(PollFlags::POLLIN)
            && let Some(answers) = &mut answers
        {
            answers.answer().map_err(answering)?;
        }
        if let Some(answers) = &mut answers {
            answers.end_waits().map_err(answering)?;
        }
        if begun
            && beginning.take().is_some()
            && let Some(emulated) = is_one_of(&emulators, command)
        {
            tell(report, &Report::Began { emulated }, &[])
                .map_err(|e| starting("report to srp", e))?;
        }
        let _ = ended.read_signal();
    }
}

/// Whether a process is one of these programs: devices and inodes. `None`: it has ended.
fn is_one_of(programs: &[(u64, u64)], process: Pid) -> Option<bool> {
    let found = nix::sys::stat::stat(format!("/proc/{process}/exe").as_str()).ok()?;
    Some(programs.contains(&(found.st_dev, found.st_ino)))
}

/// How many processes the sandbox has beside this one.
fn other_processes() -> u64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes()[0].is_ascii_digit();
    entries.filter(|entry| is_process(&entry.file_name())).count().saturating_sub(1) as u64
}

/// Becomes the command; returns only the report of what prevented it.
fn execute(
    plan: &SandboxPlan,
    stdio: [OwnedFd; 3],
    has_terminal: bool,
    report: &OwnedFd,
    questions: Option<&OwnedFd>,
) -> Report {
    let program = plan.command.first().map_or("", String::as_str);
    let (action, errno) =
        match become_command(plan, program, stdio, has_terminal, report, questions) {
            Ok(never) => match never {},
            Err(failed) => failed,
        };
    let why = match action.as_str() {
        EXECUTING => why_not(&candidates(plan, program), errno),
        _ => None,
    };
    let why = why.unwrap_or_else(|| NotStarted::Other { what: format!("{action}: {errno}") });
    Report::NotExecuted { program: program.to_owned(), why, errno: errno as i32 }
}

/// The last that is done.
const EXECUTING: &str = "execute it";

/// What is the matter with a program that the kernel refused to execute.
fn why_not(candidates: &[String], errno: Errno) -> Option<NotStarted> {
    let found = candidates.iter().find_map(|path| Some((path, std::fs::metadata(path).ok()?)));
    let Some((path, metadata)) = found else {
        return (errno == Errno::ENOENT).then_some(NotStarted::Absent);
    };
    match errno {
        Errno::EACCES if metadata.permissions().mode() & 0o111 == 0 => {
            Some(NotStarted::NotExecutable)
        }
        Errno::ENOEXEC => Some(NotStarted::NotAProgram),
        // The program is there: what is missing is what it needs to be run.
        Errno::ENOENT => {
            let mut start = Vec::new();
            File::open(path).ok()?.take(INTERPRETER_BYTES).read_to_end(&mut start).ok()?;
            Some(NotStarted::NoInterpreter { interpreter: interpreter(&start)? })
        }
        _ => None,
    }
}

/// Where in a file its interpreter is named.
const INTERPRETER_BYTES: u64 = 4096;

/// The interpreter that a script's first line or a program's header names.
fn interpreter(start: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).into_owned());
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        return text(line.trim_ascii().split(u8::is_ascii_whitespace).next()?);
    }
    let header = elf::FileHeader64::<Endianness>::parse(start).ok()?;
    let endian = header.endian().ok()?;
    let headers = header.program_headers(endian, start).ok()?;
    text(headers.iter().find_map(|it| it.interpreter(endian, start).ok()?)?)
}

fn become_command(
    plan: &SandboxPlan,
    program: &str,
    stdio: [OwnedFd; 3],
    has_terminal: bool,
    report: &OwnedFd,
    questions: Option<&OwnedFd>,
) -> Result<Never, (String, Errno)> {
    let during = |action: &'static str| move |errno| (action.to_owned(), errno);
    setsid().map_err(during("start a session"))?;
    if has_terminal || plan.stdio == Stdio::Terminal {
        sys::control_terminal(stdio[0].as_fd()).map_err(during("take its terminal"))?;
    }
    chdir(plan.cwd.as_str()).map_err(|errno| (format!("enter {}", plan.cwd), errno))?;
    let empty;
    let mut input = stdio[0].as_fd();
    if plan.stdio == Stdio::Log {
        empty = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(during("open /dev/null"))?;
        input = empty.as_fd();
    }
    install_stdio([input, stdio[1].as_fd(), stdio[2].as_fd()])
        .map_err(during("install standard input and output"))?;
    let root = if plan.observe { list_root().map_err(during("look around"))? } else { Vec::new() };
    if let Some(questions) = questions {
        let leaving = "leave system calls to init";
        let listener = answers::give_up(plan).map_err(during(leaving))?;
        sys::send(questions.as_fd(), &[1], &[listener.as_fd()]).map_err(during(leaving))?;
    }
    if plan.observe {
        let seen = observe(&root).map_err(during("look around"))?;
        tell(report, &Report::Observed(Box::new(seen)), &[]).map_err(during("report to srp"))?;
    }
    sys::close_on_exec_from(3).map_err(during("close other descriptors"))?;
    sys::reset_signals().map_err(during("reset signals"))?;
    let invalid = |_| ("pass its arguments".to_owned(), Errno::EINVAL);
    let arguments: Vec<CString> = plan
        .command
        .iter()
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    let environment: Vec<CString> = plan
        .env
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    let mut last = Errno::ENOENT;
    for candidate in candidates(plan, program) {
        let path = CString::new(candidate).map_err(invalid)?;
        let Err(errno) = execve(&path, &arguments, &environment);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => last = errno,
            _ => return Err((EXECUTING.to_owned(), errno)),
        }
    }
    Err((EXECUTING.to_owned(), last))
}

/// The root's entries, which are several, in the order in which they are listed.
fn list_root() -> Result<Vec<CString>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut root = Dir::open("/", flags, Mode::empty())?;
    root.iter().map(|entry| entry.map(|it| it.file_name().to_owned())).collect()
}

/// What this process sees; all of it passes on to the program that it becomes. `root`: the root as
/// it is listed without answers of init.
fn observe(root: &[CString]) -> Result<Observation, Errno> {
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let mask = umask(Mode::empty());
    umask(mask);
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let may_use = |number: &usize| allowed.is_set(*number).unwrap_or(false);
    let [input, output] = [std::io::stdin().is_terminal(), std::io::stdout().is_terminal()];
    Ok(Observation {
        hostname: text(&nix::unistd::gethostname()?),
        cwd: text(nix::unistd::getcwd()?.as_os_str()),
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        umask: mask.bits(),
        processors: (0..CpuSet::count()).filter(may_use).count(),
        processors_told: told::processors(
            &std::fs::read_to_string("/proc/stat").unwrap_or_default(),
        ),
        terminal: input && output,
        random_addresses: !personality::get()?.contains(Persona::ADDR_NO_RANDOMIZE),
        kernel_release: text(nix::sys::utsname::uname()?.release()),
        file_system: nix::sys::statfs::statfs(".")?.filesystem_type().0 as i64,
        cpu_model: told::model(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        reversed_directories: list_root()? != root,
        seconds: sys::real_time()?.0,
        emulated: None,
    })
}

/// Where a program may be: itself, or, without a slash, in the directories of the plan's PATH.
fn candidates(plan: &SandboxPlan, program: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = plan.env.get("PATH").map_or("/usr/bin:/usr/sbin", String::as_str);
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{program}")).collect()
}

/// Puts descriptors at 0, 1 and 2, whatever numbers they have: first out of the way, then down.
fn install_stdio(stdio: [BorrowedFd<'_>; 3]) -> Result<(), Errno> {
    let copy = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    };
    for (number, fd) in (0..).zip(stdio) {
        let above = copy(fd)?; // never below 3
        sys::duplicate_to(above.as_fd(), number)?;
    }
    Ok(())
}

fn may_go(go: &OwnedFd) -> bool {
    debug_assert_eq!(getpid().as_raw(), 1, "init is the first process of its namespace");
    let mut byte = [0];
    loop {
        match nix::unistd::read(go, &mut byte) {
            Err(Errno::EINTR) => {}
            result => return result == Ok(1),
        }
    }
}
