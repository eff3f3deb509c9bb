//! The system calls that init answers for a build: how they come to it, and how answers get back.
//!
//! What an audit changes and the kernel can't (the time of day, the order of directory entries) is
//! changed by a second filter, which makes notifications of a few calls. A process can have only
//! one such filter, so there is one for all of them; `clock`, `deadline` and `order` say which calls
//! and what the answers are.
//!
//! Init acts with what the caller has: its open directory, its memory. Neither is touched before it
//! is sure that what was taken belongs to the process that still waits, for numbers come again. The
//! filter guards nothing, so a call that can't be answered is left to the kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::bpf::{Field, Instruction, Program, Test};
use super::clock::{self, Clock};
use super::deadline::{self, Held, Wait};
use super::memory::Memory;
use super::order::{self, Order};
use super::plan::{Attributes, SandboxPlan};
use super::seccomp::{self, Abi};
use super::sys::{self, Notification};

/// Init's part.
#[derive(Debug)]
pub(super) struct Answers {
    listener: OwnedFd,
    clock: Option<Clock>,
    held: Held,
    order: Option<Order>,
}

/// In the process that becomes the command: from here on init answers what the plan says. Returns
/// where it is asked.
pub(super) fn give_up(plan: &SandboxPlan) -> Result<OwnedFd, Errno> {
    if plan.attributes.clock_ahead_seconds.is_some() {
        ptrace::traceme()?;
    }
    // As every program is from its beginning on; else init could not write its answers.
    nix::sys::prctl::set_dumpable(true)?;
    // Init had to keep the right to look into processes; nothing else may have it.
    let owner = (plan.uid, plan.gid);
    sys::install_filter(&seccomp::filter(&plan.abis, plan.debuggers, owner))?;
    sys::install_listening_filter(&questions(&plan.attributes))
}

/// Which calls are init's to answer.
fn questions(attributes: &Attributes) -> Vec<Instruction> {
    let mut program = Program::default();
    program.load(Field::Architecture);
    program.when(Test::Equal(Abi::native().architecture()), |p| {
        p.load(Field::Number);
        if attributes.reversed_directories {
            order::questions(p);
        }
        if attributes.clock_ahead_seconds.is_some() {
            deadline::questions(p);
            clock::questions(p); // the last: it loads an argument
        }
    });
    program.answer(libc::SECCOMP_RET_ALLOW);
    program.finish()
}

impl Answers {
    pub(super) fn new(plan: &SandboxPlan, listener: OwnedFd) -> Result<Answers, Errno> {
        let clock = plan.attributes.clock_ahead_seconds.map(|ahead| Clock::new(i64::from(ahead)));
        let reversed = plan.attributes.reversed_directories;
        // Of processes and their descriptors, the order says something.
        let order = reversed.then(|| Order::new(&["/proc"], &plan.memory));
        Ok(Answers { listener, clock, held: Held::default(), order: order.transpose()? })
    }

    /// Readable when a call waits for its answer.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers one call. That its process is gone meanwhile is no error.
    pub(super) fn answer(&mut self) -> Result<(), Errno> {
        let question = match sys::next_notification(self.listener.as_fd()) {
            Err(Errno::ENOENT | Errno::EINTR) => return Ok(()),
            question => question?,
        };
        let listener = self.listener.as_fd();
        let answered = match (&self.clock, &mut self.order) {
            (_, Some(order)) if order::is_listing(question.call) => list(listener, order, question),
            (Some(clock), _) if deadline::is_wait(question.call) => {
                wait(listener, clock, &mut self.held, &question)
            }
            (Some(clock), _) if deadline::is_timer(question.call) => {
                set_timer(listener, clock, &question)
            }
            (Some(clock), _) => {
                let (writes, value) = clock.answer(question.call, &question.arguments)?;
                match write(listener, &question, &writes) {
                    // A program that lets nobody look into it.
                    Err(Errno::EACCES) => sys::pass_notification(listener, question.id),
                    Err(Errno::ENOENT) => Err(Errno::ENOENT),
                    written => {
                        let answer = written.map(|()| value).map_err(|_| Errno::EFAULT);
                        sys::answer_notification(listener, question.id, answer)
                    }
                }
            }
            _ => sys::pass_notification(listener, question.id),
        };
        unless_gone(answered)
    }

    /// How long the next call that is held has still to wait.
    pub(super) fn next_end(&self) -> Option<Duration> {
        self.held.next()
    }

    /// Ends the calls that have waited long enough.
    pub(super) fn end_waits(&mut self) -> Result<(), Errno> {
        for (id, end) in self.held.over() {
            unless_gone(sys::answer_notification(self.listener.as_fd(), id, end))?;
        }
        Ok(())
    }

    /// Deals with a process that has stopped, and lets it go on.
    pub(super) fn stopped(&mut self, pid: Pid, status: i32) -> Result<(), Errno> {
        self.clock.as_mut().map_or(Ok(()), |clock| clock.stopped(pid, status))
    }

    /// A process is gone; its number may come again.
    pub(super) fn ended(&mut self, pid: Pid) {
        if let Some(clock) = &mut self.clock {
            clock.ended(pid);
        }
    }
}

/// That a process is gone, or was interrupted, meanwhile is no error.
fn unless_gone(answered: Result<(), Errno>) -> Result<(), Errno> {
    match answered {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Lets a process wait until the time of day that it sees.
fn wait(
    listener: BorrowedFd<'_>,
    clock: &Clock,
    held: &mut Held,
    question: &Notification,
) -> Result<(), Errno> {
    let now = clock.now()?;
    let wait = match memory(listener, question) {
        Ok(memory) => deadline::wait(question.call, &question.arguments, &memory, now),
        // A program that lets nobody look into it sees the usual time.
        Err(Errno::EACCES) => Wait::Kernels,
        Err(errno) => return Err(errno),
    };
    match wait {
        Wait::Kernels => sys::pass_notification(listener, question.id),
        Wait::Over(end) => sys::answer_notification(listener, question.id, end),
        Wait::For(time, end) => {
            held.hold(question.id, time, end);
            Ok(())
        }
    }
}

/// Sets a process's timer to a time of day.
fn set_timer(
    listener: BorrowedFd<'_>,
    clock: &Clock,
    question: &Notification,
) -> Result<(), Errno> {
    let memory = match memory(listener, question) {
        // A program that lets nobody look into it sees the usual time.
        Err(Errno::EACCES) => return sys::pass_notification(listener, question.id),
        memory => memory?,
    };
    let is_valid = || sys::notification_is_valid(listener, question.id);
    let answer = match deadline::set_timer(question, &memory, clock.ahead_seconds(), is_valid) {
        Ok(None) => return sys::pass_notification(listener, question.id),
        Ok(Some(before)) => match question.arguments[3] {
            0 => Ok(0),
            place => {
                let before = before.map(i64::to_ne_bytes).concat();
                write(listener, question, &[(place, before)]).map(|()| 0)
            }
        },
        Err(errno) => Err(errno),
    };
    match answer {
        Err(Errno::ENOENT) => Err(Errno::ENOENT),
        answer => sys::answer_notification(listener, question.id, answer),
    }
}

/// Lists a directory for a process.
fn list(listener: BorrowedFd<'_>, order: &mut Order, question: Notification) -> Result<(), Errno> {
    let [number, address, room, ..] = question.arguments;
    let pass = || sys::pass_notification(listener, question.id);
    // The kernel, too, takes the low half of these two; what is negative by then, it refuses.
    if (room as u32) > i32::MAX as u32 {
        return pass();
    }
    let Some(directory) = order::descriptor_of(question.pid, number as i32) else { return pass() };
    sys::notification_is_valid(listener, question.id)?;
    let turn = match order.turn(directory.as_fd(), question.call, room as u32 as usize) {
        Ok(Some(turn)) => turn,
        Ok(None) => return pass(),
        Err(errno) => return sys::answer_notification(listener, question.id, Err(errno)),
    };
    let length = turn.bytes.len() as i64;
    let answered = match write(listener, &question, &[(address, &turn.bytes)]) {
        Ok(()) => sys::answer_notification(listener, question.id, Ok(length)),
        Err(errno) => {
            turn.undo(directory.as_fd())?;
            match errno {
                // A program that lets nobody look into it.
                Errno::EACCES if turn.is_first() => pass(),
                Errno::ENOENT => Err(errno),
                _ => sys::answer_notification(listener, question.id, Err(Errno::EFAULT)),
            }
        }
    };
    if answered == Err(Errno::ENOENT) {
        // It was interrupted, and if it isn't dead, it asks again.
        turn.undo(directory.as_fd())?;
    }
    answered
}

/// The memory of a process that waits. EACCES: init may not look into it; ENOENT: it doesn't wait any
/// more.
fn memory(listener: BorrowedFd<'_>, question: &Notification) -> Result<Memory, Errno> {
    let memory = Memory::of(question.pid);
    let accessible = memory.check_access();
    // Whose number it was when that was seen.
    sys::notification_is_valid(listener, question.id)?;
    accessible.map(|()| memory)
}

/// Writes into the memory of a process that waits. EFAULT: there is no such memory, or the process
/// may not write to it; else as [`memory`].
fn write(
    listener: BorrowedFd<'_>,
    question: &Notification,
    writes: &[(u64, impl AsRef<[u8]>)],
) -> Result<(), Errno> {
    let memory = memory(listener, question)?;
    for (address, bytes) in writes {
        memory.write(*address, bytes.as_ref()).map_err(|_| Errno::EFAULT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::bpf::interpret;
    use super::*;

    #[test]
    fn only_what_is_varied_is_asked_for() {
        let list = libc::SYS_getdents64 as u32;
        let time = libc::SYS_clock_gettime as u32;
        for (clock, order) in [(false, true), (true, false), (true, true)] {
            let attributes = Attributes {
                clock_ahead_seconds: clock.then_some(1),
                reversed_directories: order,
                ..Attributes::default()
            };
            let ask = |architecture, call| {
                interpret(&questions(&attributes), architecture, call, [0; 6])
                    == libc::SECCOMP_RET_USER_NOTIF
            };
            let native = Abi::native().architecture();
            assert_eq!((ask(native, time), ask(native, list)), (clock, order));
            assert!(!ask(native, libc::SYS_read as u32));
            assert!(!ask(Abi::I386.architecture(), list));
        }
    }
}
