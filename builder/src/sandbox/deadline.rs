//! Waiting until a time of day, where init answers what time it is.
//!
//! The kernel's clock is not the one that programs see (`clock`), so it would let them wait for as
//! long as that one is ahead. Three system calls are about a time of day to come: a sleep until
//! then, which init holds until it is over; a wait for another thread (futex), of which init knows
//! only the deadline; and a timer with a descriptor, which init sets as the kernel's clock has it.
//! The second it lets return early, again and again: every caller has to reckon with returns for no
//! reason (futex(2)), looks at what it waits for, and waits on.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::bpf::{Field, Program, Test};
use super::memory::Memory;
use super::order::descriptor_of;
use super::sys::{self, Notification};

const SLEEP: u32 = libc::SYS_clock_nanosleep as u32;
const CLOCKS: [u32; 2] = [libc::CLOCK_REALTIME as u32, libc::CLOCK_TAI as u32];
const WAIT: u32 = libc::SYS_futex as u32;
const SET_TIMER: u32 = libc::SYS_timerfd_settime as u32;
/// Of a futex call's operation: what it does, and by which clock.
const OPERATION_AND_CLOCK: u32 = 0x7f | libc::FUTEX_CLOCK_REALTIME as u32;
const WAIT_UNTIL: u32 = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME) as u32;
/// The clocks of timers that count from 1970: `CLOCK_REALTIME`, and the one that wakes the machine.
const TIMER_CLOCKS: [libc::clockid_t; 2] = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM];
/// How soon who waits for a thread looks again: late enough to cost nothing, and soon enough not to
/// be noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(4);

/// Sends the calls that wait until a time of day to init; the number is loaded, and stays so.
pub(super) fn questions(program: &mut Program) {
    let ask = |p: &mut Program| p.answer(libc::SECCOMP_RET_USER_NOTIF);
    program.when(Test::Equal(SLEEP), |p| {
        p.load(Field::Argument(1));
        p.when(Test::AnyBitOf(libc::TIMER_ABSTIME as u32), |p| {
            p.load(Field::Argument(0));
            for clock in CLOCKS {
                p.when(Test::Equal(clock), ask);
            }
        });
        p.answer(libc::SECCOMP_RET_ALLOW);
    });
    program.when(Test::Equal(SET_TIMER), |p| {
        p.load(Field::Argument(1));
        p.when(Test::AnyBitOf(libc::TFD_TIMER_ABSTIME as u32), ask);
        p.answer(libc::SECCOMP_RET_ALLOW);
    });
    program.when(Test::Equal(WAIT), |p| {
        p.load(Field::Argument(1)).and(OPERATION_AND_CLOCK);
        p.when(Test::Equal(WAIT_UNTIL), |p| {
            // A null pointer is no deadline.
            for half in [Field::Argument(3), Field::HighArgument(3)] {
                p.load(half);
                p.unless(Test::Equal(0), ask);
            }
        });
        p.answer(libc::SECCOMP_RET_ALLOW);
    });
}

/// Whether this is a call of this module's that waits.
pub(super) fn is_wait(call: u32) -> bool {
    call == SLEEP || call == WAIT
}

/// Whether this is a call of this module's that sets a timer.
pub(super) fn is_timer(call: u32) -> bool {
    call == SET_TIMER
}

/// Sets a process's timer to when it expires by the kernel's clock, which is so far behind. Returns
/// what the timer was set to, as the kernel writes it; `None`: it is the kernel's to set. That the
/// process still waits is to be looked at by `is_valid` before anything is set.
pub(super) fn set_timer(
    question: &Notification,
    memory: &Memory,
    ahead_seconds: i64,
    is_valid: impl FnOnce() -> Result<(), Errno>,
) -> Result<Option<[i64; 4]>, Errno> {
    let [number, flags, new, ..] = question.arguments;
    let Some(timer) = descriptor_of(question.pid, number as i32) else { return Ok(None) };
    is_valid()?;
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", timer.as_raw_fd()));
    let about = about.unwrap_or_default();
    let clock = about.lines().find_map(|line| line.strip_prefix("clockid:"));
    let clock = clock.and_then(|clock| clock.trim().parse().ok());
    if !clock.is_some_and(|clock: libc::clockid_t| TIMER_CLOCKS.contains(&clock)) {
        return Ok(None);
    }
    let bytes = word::<32>(memory, new)?;
    let mut setting = [0; 4];
    for (value, bytes) in setting.iter_mut().zip(bytes.chunks_exact(8)) {
        *value = i64::from_ne_bytes(bytes.try_into().map_err(|_| Errno::EFAULT)?);
    }
    // Interval, then expiry, each in seconds and nanoseconds. Never is no time of day.
    if setting[2..] == [0, 0] {
        return Ok(None);
    }
    // What is over for the process is over for the kernel.
    setting[2] = setting[2].saturating_sub(ahead_seconds).max(1);
    sys::set_timer(timer.as_fd(), flags as i32, setting).map(Some)
}

/// What becomes of a call that waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It makes no sense; the kernel has the words for that.
    Kernels,
    /// It ends with this …
    Over(Result<i64, Errno>),
    /// … or does so after a while.
    For(Duration, Result<i64, Errno>),
}

/// Looks into the memory of the process that waits. `now`: seconds and nanoseconds since 1970, as
/// that process sees them.
pub(super) fn wait(call: u32, arguments: &[u64; 6], memory: &Memory, now: (i64, i64)) -> Wait {
    let is_sleep = call == SLEEP;
    let deadline = if is_sleep { arguments[2] } else { arguments[3] };
    let [Ok(seconds), Ok(nanoseconds)] = [deadline, deadline.wrapping_add(8)]
        .map(|at| word::<8>(memory, at).map(i64::from_ne_bytes))
    else {
        return Wait::Over(Err(Errno::EFAULT));
    };
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return Wait::Kernels;
    }
    if !is_sleep {
        let [place, _, expected, _, _, bits] = *arguments;
        if place % 4 != 0 || bits as u32 == 0 {
            return Wait::Kernels;
        }
        match word::<4>(memory, place).map(u32::from_ne_bytes) {
            Ok(value) if value == expected as u32 => {}
            Ok(_) => return Wait::Over(Err(Errno::EAGAIN)),
            Err(errno) => return Wait::Over(Err(errno)),
        }
    }
    let end = if is_sleep { Ok(0) } else { Err(Errno::ETIMEDOUT) };
    let nanoseconds_left =
        i128::from(seconds - now.0) * 1_000_000_000 + i128::from(nanoseconds - now.1);
    if nanoseconds_left <= 0 {
        return Wait::Over(end);
    }
    // More than five hundred years are that many.
    let left = Duration::from_nanos(nanoseconds_left.try_into().unwrap_or(u64::MAX));
    match is_sleep || left <= LOOK_AGAIN {
        true => Wait::For(left, end),
        false => Wait::For(LOOK_AGAIN, Ok(0)),
    }
}

fn word<const LENGTH: usize>(memory: &Memory, address: u64) -> Result<[u8; LENGTH], Errno> {
    let mut bytes = [0; LENGTH];
    memory.read(address, &mut bytes)?;
    Ok(bytes)
}

/// Calls that wait, and what they end with.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<(Instant, u64, Result<i64, Errno>)>);

impl Held {
    /// Keeps the call of this notification waiting.
    pub(super) fn hold(&mut self, notification: u64, wait: Duration, end: Result<i64, Errno>) {
        // What lies beyond the clock's end is for ever.
        let Some(until) = Instant::now().checked_add(wait) else { return };
        self.0.push((until, notification, end));
    }

    /// How long the next one has still to wait.
    pub(super) fn next(&self) -> Option<Duration> {
        let first = self.0.iter().map(|(until, ..)| *until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Those that have waited long enough.
    pub(super) fn over(&mut self) -> Vec<(u64, Result<i64, Errno>)> {
        let now = Instant::now();
        let over = self.0.extract_if(.., |(until, ..)| *until <= now);
        over.map(|(_, notification, end)| (notification, end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::interpret;
    use super::*;

    #[test]
    fn only_waits_until_a_time_of_day_are_asked_for() {
        let mut program = Program::default();
        program.load(Field::Number);
        questions(&mut program);
        program.answer(libc::SECCOMP_RET_ALLOW);
        let program = program.finish();
        let asks = |call: u32, arguments: [u64; 6]| {
            interpret(&program, 0, call, arguments) == libc::SECCOMP_RET_USER_NOTIF
        };
        // Clock, flags: relative, absolute, by a clock that doesn't count from 1970.
        let sleep = |clock, flags| asks(SLEEP, [clock, flags, 8, 0, 0, 0]);
        assert_eq!(
            [sleep(0, 0), sleep(0, 1), sleep(11, 1), sleep(1, 1)],
            [false, true, true, false]
        );
        // FUTEX_WAIT (relative), FUTEX_WAKE, FUTEX_WAIT_BITSET: without and with a clock, private.
        let futex = |operation, deadline| asks(WAIT, [8, operation, 0, deadline, 0, 1]);
        assert_eq!([futex(0, 8), futex(1, 8), futex(9, 8), futex(9 + 128, 8)], [false; 4]);
        assert_eq!(
            [futex(9 + 256, 8), futex(9 + 128 + 256, 1 << 40), futex(9 + 256, 0)],
            [true, true, false]
        );
        let timer = |flags| asks(SET_TIMER, [3, flags, 8, 0, 0, 0]);
        assert_eq!([timer(0), timer(1), timer(3)], [false, true, true]);
        assert!(!asks(libc::SYS_read as u32, [0; 6]));
    }

    #[test]
    fn waits_end_by_the_clock_that_the_process_sees() {
        let memory = Memory::of(nix::unistd::getpid());
        let words = [7i64, 1000, 500, -1, 0];
        let place = words.as_ptr() as u64;
        let futex = |value, deadline, now| {
            let arguments = [place, WAIT_UNTIL.into(), value, place + deadline, 0, u64::MAX];
            wait(WAIT, &arguments, &memory, now)
        };
        let sleep = |deadline, now| wait(SLEEP, &[0, 1, place + deadline, 0, 0, 0], &memory, now);
        let timeout = Err(Errno::ETIMEDOUT);
        assert_eq!(futex(8, 8, (999, 0)), Wait::Over(Err(Errno::EAGAIN)));
        assert_eq!(futex(7, 8, (1000, 500)), Wait::Over(timeout));
        assert_eq!(futex(7, 8, (999, 999_000_500)), Wait::For(Duration::from_millis(1), timeout));
        assert_eq!(futex(7, 8, (0, 0)), Wait::For(LOOK_AGAIN, Ok(0)));
        assert_eq!(sleep(8, (998, 500)), Wait::For(Duration::from_secs(2), Ok(0)));
        assert_eq!(sleep(8, (1001, 0)), Wait::Over(Ok(0)));
        assert_eq!(sleep(24, (0, 0)), Wait::Kernels);
        let nowhere = wait(SLEEP, &[0, 1, 8, 0, 0, 0], &memory, (0, 0));
        assert_eq!(nowhere, Wait::Over(Err(Errno::EFAULT)));
    }
}
