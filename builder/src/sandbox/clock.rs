//! Another date for a sandbox: init answers the system calls that ask for the time of day, and sees
//! to it that no program finds a way around them.
//!
//! The kernel has no namespace for the time of day. So the calls that ask for it become
//! notifications to init (`answers`), which answers with a time that is ahead; those that wait for
//! a time of day do, too (`deadline`). Most programs don't make the call: they find the time in a
//! page that the kernel shares with every process (vDSO), whose place the kernel names when a
//! program begins. Init traces every process, for this one reason: each program that begins is
//! stopped, and that name is taken out of what it is told. C libraries then make the call, static
//! ones too.
//!
//! What stays as it is: clocks that don't count from 1970, the times of files, and a process's timers
//! (`timer_settime`) and message queues that are given a time of day.

use std::collections::HashSet;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

use super::bpf::{Field, Program, Test};
use super::memory::Memory;
use super::sys;

/// The clocks that count from 1970: CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI.
const CLOCKS: [u32; 3] = [0, 5, 11];
const GET: u32 = libc::SYS_clock_gettime as u32;
const GET_MICROSECONDS: u32 = libc::SYS_gettimeofday as u32;
#[cfg(target_arch = "x86_64")]
const GET_SECONDS: Option<u32> = Some(libc::SYS_time as u32);
#[cfg(not(target_arch = "x86_64"))]
const GET_SECONDS: Option<u32> = None;

/// Entries of the vector that the kernel hands to a program: its end, one to pass over, and those
/// that name the shared page (the second on 32-bit x86 only).
const END: u64 = 0;
const IGNORE: u64 = 1;
const SHARED_PAGE: [u64; 2] = [33, 32];
/// More than the kernel lets arguments and environment take beside their strings.
const MOST_STACK_BYTES: usize = 8 << 20;

/// Init's part: by how much the time is ahead, and the processes that are traced.
#[derive(Debug)]
pub(super) struct Clock {
    ahead_seconds: i64,
    traced: HashSet<Pid>,
}

/// Sends the calls of these that ask for the time of day to init; the number is loaded.
pub(super) fn questions(program: &mut Program) {
    let ask = |p: &mut Program| p.answer(libc::SECCOMP_RET_USER_NOTIF);
    for call in [Some(GET_MICROSECONDS), GET_SECONDS].into_iter().flatten() {
        program.when(Test::Equal(call), ask);
    }
    program.when(Test::Equal(GET), |p| {
        p.load(Field::Argument(0));
        for clock in CLOCKS {
            p.when(Test::Equal(clock), ask);
        }
    });
}

/// What is to be written into a process's memory, and where.
type Writes = Vec<(u64, Vec<u8>)>;

impl Clock {
    pub(super) fn new(ahead_seconds: i64) -> Clock {
        Clock { ahead_seconds, traced: HashSet::new() }
    }

    /// How far the time is ahead.
    pub(super) fn ahead_seconds(&self) -> i64 {
        self.ahead_seconds
    }

    /// The time as the sandbox sees it: seconds and nanoseconds since 1970.
    pub(super) fn now(&self) -> Result<(i64, i64), Errno> {
        let (seconds, nanoseconds) = sys::real_time()?;
        Ok((seconds + self.ahead_seconds, nanoseconds))
    }

    /// What one of the calls writes and returns.
    pub(super) fn answer(&self, call: u32, arguments: &[u64; 6]) -> Result<(Writes, i64), Errno> {
        let (seconds, nanoseconds) = self.now()?;
        let pair = |first: i64, second: i64| [first.to_ne_bytes(), second.to_ne_bytes()].concat();
        let [first, second, ..] = *arguments;
        let (mut writes, value) = match call {
            GET => (vec![(second, pair(seconds, nanoseconds))], 0),
            GET_MICROSECONDS => {
                let now = pair(seconds, nanoseconds / 1000);
                (vec![(first, now), (second, vec![0; 8])], 0)
            }
            _ => (vec![(first, seconds.to_ne_bytes().to_vec())], seconds),
        };
        // Who wants none of it passes a null pointer.
        writes.retain(|(address, _)| *address != 0);
        Ok((writes, value))
    }

    /// Deals with a process that has stopped, and lets it go on.
    pub(super) fn stopped(&mut self, pid: Pid, status: i32) -> Result<(), Errno> {
        let (signal, event) = ((status >> 8) & 0xff, status >> 16);
        let is_new = self.traced.insert(pid);
        let mut dealt_with = Ok(());
        let passed_on = if event == libc::PTRACE_EVENT_EXEC {
            dealt_with = hide_shared_page(pid);
            0
        } else if event != 0 {
            0
        } else if is_new && signal == libc::SIGTRAP {
            // The command has begun.
            let options = Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_EXITKILL;
            dealt_with = ptrace::setoptions(pid, options).and_then(|()| hide_shared_page(pid));
            0
        } else if is_new {
            0 // how a process that was just forked begins to be traced
        } else {
            signal
        };
        match sys::resume(pid, passed_on) {
            // Killed meanwhile, and what was looked at was then a ruin.
            Err(Errno::ESRCH) => Ok(()),
            // A program that lets nobody look into it sees the usual time.
            Ok(()) if dealt_with == Err(Errno::EACCES) => Ok(()),
            Ok(()) => dealt_with,
            result => result,
        }
    }

    /// A process is gone; its number may come again.
    pub(super) fn ended(&mut self, pid: Pid) {
        self.traced.remove(&pid);
    }
}

/// Takes the place of the shared page out of what a program that is about to begin is told.
fn hide_shared_page(pid: Pid) -> Result<(), Errno> {
    let memory = Memory::of(pid);
    memory.check_access()?;
    let start = stack_start(pid)?;
    let mut words = Words { memory, start, bytes: Vec::new() };
    // Behind the number of arguments: arguments, a zero, environment, a zero, then the vector.
    let mut at = 1 + words.word(0)? as usize + 1;
    while words.word(at)? != 0 {
        at += 1;
    }
    at += 1;
    loop {
        match words.word(at)? {
            END => return Ok(()),
            kind if SHARED_PAGE.contains(&kind) => {
                let address = start + 8 * at as u64;
                memory.write(address, &IGNORE.to_ne_bytes())?;
            }
            _ => {}
        }
        at += 2;
    }
}

/// Words of a process's memory, read as far as they are asked for.
struct Words {
    memory: Memory,
    start: u64,
    bytes: Vec<u8>,
}

impl Words {
    fn word(&mut self, number: usize) -> Result<u64, Errno> {
        const CHUNK: usize = 4096;
        let end = 8 * number + 8;
        while self.bytes.len() < end {
            let length = self.bytes.len();
            if length > MOST_STACK_BYTES {
                return Err(Errno::E2BIG);
            }
            let mut chunk = [0; CHUNK];
            match self.memory.read_some(self.start + length as u64, &mut chunk)? {
                0 => return Err(Errno::EFAULT),
                count => self.bytes.extend_from_slice(&chunk[..count]),
            }
        }
        let bytes = self.bytes[end - 8..end].try_into().map_err(|_| Errno::EFAULT)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Where the stack of a program that is about to begin starts: field 28 of `/proc/PID/stat`.
fn stack_start(pid: Pid) -> Result<u64, Errno> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| Errno::ESRCH)?;
    // The second field is a name in parentheses, which may hold anything.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let start = rest.split_whitespace().nth(25).and_then(|field| field.parse().ok());
    start.filter(|start| *start != 0).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::super::bpf::interpret;
    use super::*;

    #[test]
    fn only_clocks_that_count_from_1970_are_asked_for() {
        let mut program = Program::default();
        program.load(Field::Number);
        questions(&mut program);
        program.answer(libc::SECCOMP_RET_ALLOW);
        let program = program.finish();
        let ask = |call: u32, clock: u64| interpret(&program, 0, call, [clock, 0, 0, 0, 0, 0]);
        for (clock, asked) in [(0, true), (1, false), (4, false), (5, true), (7, false), (11, true)]
        {
            let expected = match asked {
                true => libc::SECCOMP_RET_USER_NOTIF,
                false => libc::SECCOMP_RET_ALLOW,
            };
            assert_eq!(ask(GET, clock), expected, "clock {clock}");
        }
        assert_eq!(ask(GET_MICROSECONDS, 1), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(ask(libc::SYS_read as u32, 0), libc::SECCOMP_RET_ALLOW);
    }
}
