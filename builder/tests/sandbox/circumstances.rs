//! What an audit varies: builds see it, wherever they look.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::libc;
use srp_builder::sandbox::{Processors, Status};

use super::fixture::Fixture;
use super::harness::{Test, tests};
use super::machine_code::{Call, DATA, Entry, write_program};

pub(crate) const TESTS: &[Test] = tests![
    waits_end_when_the_sandbox_says_so,
    fewer_processors_are_told_of,
    another_kernel_is_told_of,
];

/// Native numbers of x86_64.
fn waits_end_when_the_sandbox_says_so() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    const AHEAD_SECONDS: u32 = 100_000_000;
    let fixture = Fixture::new();
    let program = fixture.directory.join("build/program");
    let (word, now, soon, late) = (DATA, DATA + 8, DATA + 24, DATA + 40);
    let over = DATA + 72;
    let ask: Call = (228, [0, now, 0, 0, 0, 0]);
    let sleep = |until| -> Call { (230, [0, 1, until, 0, 0, 0]) };
    // FUTEX_WAIT_BITSET, FUTEX_CLOCK_REALTIME, private; every bit.
    let wait = |value, until| -> Call { (202, [word, 9 | 256 | 128, value, until, 0, -1]) };
    // A timer is descriptor 3; reading it waits until it expires.
    let timer: Call = (283, [0, 0, 0, 0, 0, 0]);
    let set = |setting| -> Call { (286, [3, 1, setting, 0, 0, 0]) };
    let read: Call = (0, [3, DATA + 256, 8, 0, 0, 0]);
    let cases: &[(&str, &[Call], i32)] = &[
        ("a timer that expires soon", &[timer, set(soon - 16), read], 0),
        ("a timer that is over", &[timer, set(over), read], 0),
        ("no timer", &[set(soon - 16)], libc::EBADF),
        ("no setting", &[timer, set(now + 0x1000)], libc::EFAULT),
        ("sleeps until now", &[ask, sleep(now)], 0),
        ("sleeps until soon", &[sleep(soon)], 0),
        ("waits until now", &[ask, wait(7, now)], libc::ETIMEDOUT),
        ("waits for what is so already", &[wait(8, late)], libc::EAGAIN),
        ("returns early, to look again", &[wait(7, late)], 0),
        ("has no deadline", &[wait(7, now + 0x1000)], libc::EFAULT),
        ("a deadline that is none", &[wait(7, late + 16)], libc::EINVAL),
    ];
    for (name, calls, errno) in cases {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let soon = real + u64::from(AHEAD_SECONDS) + 1;
        let times = [7, 0, 0, soon, 0, soon + 1_000_000, 0, soon, 1 << 40, 0, 0, 9, 0];
        let data: Vec<u8> = times.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = fs::remove_file(&program);
        write_program(&program, calls, &data, Entry::Native);
        let mut plan = fixture.plan("");
        plan.attributes.clock_ahead_seconds = Some(AHEAD_SECONDS);
        plan.limits.seconds = Some(60);
        plan.command = vec!["/srp/build/program".into()];
        let status = fixture.run(&plan).unwrap().0.status;
        assert_eq!(status, Status::Exited(*errno), "{name}");
    }
}

fn fewer_processors_are_told_of() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan(
        "nproc; grep -c '^cpu[0-9]' /proc/stat; grep -c ^processor /proc/cpuinfo; \
         ! echo x > /proc/stat",
    );
    plan.attributes.processors = Some(Processors { count: 1, after: 0 });
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::Exited(0), "{log}");
    let counts: Vec<&str> = log.lines().take(3).collect();
    // Some architectures don't list them there.
    assert!(counts[..2] == ["1"; 2] && ["0", "1"].contains(&counts[2]), "{log}");
}

fn another_kernel_is_told_of() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan(
        "uname -r; cat /proc/sys/kernel/osrelease; cut -d ' ' -f 3 /proc/version; \
         cat /proc/sys/kernel/random/boot_id; ulimit -u",
    );
    plan.limits.processes = Some(1000);
    let usual = fixture.run(&plan).unwrap().1;
    plan.attributes.old_kernel = true;
    let varied = fixture.run(&plan).unwrap().1;
    let [usual, varied] = [&usual, &varied].map(|log| log.lines().collect::<Vec<_>>());
    for (log, is_old) in [(&usual, false), (&varied, true)] {
        assert_eq!(log[..3], [log[0]; 3]);
        assert_eq!(log[0].starts_with("2.6."), is_old);
    }
    assert_ne!(usual[3], varied[3]);
    assert_eq!(usual[4], varied[4], "how many processes there may be");
}
