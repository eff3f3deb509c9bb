//! Runs a program until it has made so many calls that sync, rename or remove, and kills it before
//! the next.
//!
//! The kernel stops the program at each system call (`ptrace`), so nothing in it needs to know. Its
//! threads are counted together; what it starts (sandboxes, launchers) is left alone, and ends when
//! it does. One thread does all the tracing of one program, as the kernel demands.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The calls that make something durable, give it a name or take that away.
const CALLS: &[libc::c_long] = &[
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
];

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, after so many of the calls.
    Exited { code: i32, calls: usize },
    /// It was killed.
    Killed,
}

/// Runs `command`, killed before call number `at` (from 0); never, if there aren't so many.
#[expect(clippy::zombie_processes, reason = "waitpid waits for it")]
pub(crate) fn run(command: &Command, at: usize) -> Ended {
    let mut child = stopped(command);
    let leader = Pid::from_raw(child.id().try_into().unwrap());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).unwrap();
    kill(leader, Signal::SIGCONT).unwrap();
    // For each thread: whether it is in a call.
    let mut inside: HashMap<Pid, bool> = HashMap::new();
    let mut calls = 0;
    loop {
        let any = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = match waitpid(None, Some(any)) {
            Err(Errno::EINTR) => continue,
            status => status.unwrap(),
        };
        let (thread, signal) = match status {
            WaitStatus::Exited(thread, code) if thread == leader => {
                return Ended::Exited { code, calls };
            }
            WaitStatus::Signaled(thread, signal, _) if thread == leader => {
                assert_eq!(signal, Signal::SIGKILL, "only we kill it");
                return Ended::Killed;
            }
            WaitStatus::PtraceSyscall(thread) => {
                let inside = inside.entry(thread).or_insert(false);
                *inside = !*inside;
                if *inside && number(thread).is_some_and(|number| CALLS.contains(&number)) {
                    if calls == at {
                        child.kill().unwrap();
                        continue;
                    }
                    calls += 1;
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            // A thread, or a program that was started.
            _ => continue,
        };
        match ptrace::syscall(thread, signal) {
            // It was killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("{thread}: {error}"),
        }
    }
}

/// Starts a shell that stops itself and then becomes the command: it is traced from its first call.
fn stopped(command: &Command) -> Child {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let child = shell.spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    child
}

/// The number of the call that a thread is about to make.
fn number(thread: Pid) -> Option<libc::c_long> {
    let registers = ptrace::getregs(thread).ok()?;
    #[cfg(target_arch = "x86_64")]
    let number = registers.orig_rax;
    #[cfg(target_arch = "aarch64")]
    let number = registers.regs[8];
    number.try_into().ok()
}
