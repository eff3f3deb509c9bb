//! Builds that take too much.

use std::time::{Duration, Instant};

use srp_builder::CancelToken;
use srp_builder::sandbox::{Limit, LimitsBy, Processors, SandboxPlan, Status};

use super::fixture::Fixture;
use super::harness::{Test, tests};
use super::machine_code::{Call, Entry, write_program};
use super::processes::{eventually, processes_with};

pub(crate) const TESTS: &[Test] = tests![
    fork_bombs_are_stopped,
    memory_is_limited_and_reported,
    files_in_memory_count,
    shared_pages_are_not_counted_twice,
    time_is_limited,
    silence_is_limited,
    closing_the_log_is_no_way_around_silence,
    logs_are_limited,
    files_are_limited,
    disks_are_limited,
    what_is_the_machines_is_limited,
    cancelling_kills,
    cancelling_before_the_start_counts,
    peaks_are_recorded,
    processors_are_shared_out,
];

const MIB: u64 = 1 << 20;

fn status_of(fixture: &Fixture, plan: &SandboxPlan) -> Status {
    fixture.run(plan).unwrap().0.status
}

fn fork_bombs_are_stopped() {
    let fixture = Fixture::new();
    let marker = format!("bomb{}", std::process::id());
    let mut plan =
        fixture.plan(&format!("{marker}() {{ {marker} & {marker} & sleep 20; }}; {marker}"));
    plan.limits.processes = Some(50);
    plan.limits.seconds = Some(30);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Processes));
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
    // And an ordinary build within the limit isn't.
    let mut plan = fixture.plan("for i in 1 2 3 4 5; do sleep 0.3 & done; wait");
    plan.limits.processes = Some(50);
    assert_eq!(status_of(&fixture, &plan), Status::Exited(0));
}

fn memory_is_limited_and_reported() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("dd if=/dev/zero of=/dev/null bs=600M count=100000");
    plan.limits.memory_bytes = Some(64 * MIB);
    plan.limits.seconds = Some(60);
    let (outcome, _) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::LimitExceeded(Limit::Memory));
    if outcome.isolation.limits_by == LimitsBy::Watchdog {
        assert!(outcome.peak_memory_bytes > 64 * MIB, "{outcome:?}");
    }
    // Many small processes are as much as one large.
    let mut plan = fixture.plan(
        "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/dev/null bs=20M count=1000000 & done; wait",
    );
    plan.limits.memory_bytes = Some(100 * MIB);
    plan.limits.seconds = Some(60);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Memory));
}

fn files_in_memory_count() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("dd if=/dev/zero of=/dev/shm/x bs=1M count=200 && sleep 60");
    plan.limits.memory_bytes = Some(100 * MIB);
    plan.limits.seconds = Some(60);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Memory));
    let mut plan = fixture.plan("dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null");
    plan.limits.scratch_bytes = Some(8 * MIB);
    assert_eq!(status_of(&fixture, &plan), Status::Exited(1), "the file system is full");
}

fn shared_pages_are_not_counted_twice() {
    let fixture = Fixture::new();
    // A shell of 30 MB forks ten times: 300 MB by resident sizes, 30 in truth.
    let mut plan = fixture.plan(
        "x=$(dd if=/dev/zero bs=1M count=12 2>/dev/null | tr '\\0' x); \
         for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 1.5; : $i) & done; wait; echo ${#x}",
    );
    plan.limits.memory_bytes = Some(120 * MIB);
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!((outcome.status, log.as_str()), (Status::Exited(0), "12582912\n"));
}

fn time_is_limited() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("while :; do echo; sleep 0.1; done");
    plan.limits.seconds = Some(1);
    let start = Instant::now();
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Time));
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn silence_is_limited() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("echo a; sleep 60");
    plan.limits.silence_seconds = Some(1);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Silence));
    let mut plan = fixture.plan("for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done");
    plan.limits.silence_seconds = Some(1);
    assert_eq!(status_of(&fixture, &plan), Status::Exited(0));
}

fn closing_the_log_is_no_way_around_silence() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("exec >/dev/null 2>&1; sleep 60");
    plan.limits.silence_seconds = Some(1);
    plan.limits.seconds = Some(30);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Silence));
}

fn logs_are_limited() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("yes");
    plan.limits.log_bytes = Some(100_000);
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::LimitExceeded(Limit::Log));
    assert_eq!((outcome.log_bytes, log.len()), (100_000, 100_000));
    let mut plan = fixture.plan("yes | head -c 100000");
    plan.limits.log_bytes = Some(100_000);
    assert_eq!(status_of(&fixture, &plan), Status::Exited(0), "exactly the limit is fine");
}

fn cancelling_kills() {
    let fixture = Fixture::new();
    let marker = format!("89{}", std::process::id());
    let plan = fixture.plan(&format!("sleep {marker}"));
    let cancel = CancelToken::new().unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| fixture.launcher.run(&plan, &mut std::io::sink(), &cancel));
        assert!(eventually(|| !processes_with(&marker).is_empty()));
        cancel.cancel();
        assert_eq!(run.join().unwrap().unwrap().status, Status::Cancelled);
    });
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
}

fn cancelling_before_the_start_counts() {
    let fixture = Fixture::new();
    let cancel = CancelToken::new().unwrap();
    cancel.cancel();
    let plan = fixture.plan("sleep 60");
    for _ in 0..10 {
        let outcome = fixture.launcher.run(&plan, &mut std::io::sink(), &cancel).unwrap();
        assert_eq!(outcome.status, Status::Cancelled);
    }
}

fn peaks_are_recorded() {
    let fixture = Fixture::new();
    let plan = fixture.plan("dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null");
    let (outcome, _) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::Exited(0));
    assert!(outcome.peak_memory_bytes > 190 * MIB, "{outcome:?}");
    assert!(outcome.cpu > Duration::ZERO && outcome.wall > outcome.cpu / 8);
}

fn processors_are_shared_out() {
    let fixture = Fixture::new();
    let allowed = |count, after| {
        let mut plan = fixture.plan("grep Cpus_allowed_list /proc/self/status; nproc");
        plan.attributes.processors = Some(Processors { count, after });
        let (outcome, log) = fixture.run(&plan).unwrap();
        assert_eq!(outcome.status, Status::Exited(0), "{log}");
        let (list, number) = log.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(number, count.to_string());
        list.to_owned()
    };
    let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let all = (0..nix::sched::CpuSet::count()).filter(|it| mine.is_set(*it).unwrap()).count();
    let lists: Vec<String> = (0..all).map(|after| allowed(1, after)).collect();
    for (number, list) in lists.iter().enumerate() {
        assert!(!lists[..number].contains(list), "{lists:?}");
    }
    assert_eq!(allowed(1, all), lists[0], "after the last comes the first");
    allowed(all, all - 1);
}

fn files_are_limited() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("trap '' XFSZ; truncate -s 2M /srp/build/long");
    plan.limits.file_bytes = Some(MIB);
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::Exited(1));
    assert!(log.contains("File too large"), "{log}");
    plan.command[2] = "ulimit -f unlimited; truncate -s 2M /srp/build/long".into();
    assert_ne!(status_of(&fixture, &plan), Status::Exited(0), "it can't be raised");
    plan.command[2] = "truncate -s 512k /srp/build/long".into();
    assert_eq!(status_of(&fixture, &plan), Status::Exited(0));
}

fn disks_are_limited() {
    const WRITE: &str = "dd if=/dev/zero of=/srp/build/d/large bs=1M count=256";
    let fixture = Fixture::new();
    let mut plan = fixture.plan(&format!("mkdir /srp/build/d; {WRITE}; sleep 60"));
    plan.limits.disk_bytes = Some(32 * MIB);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Disk));
    // What can't be looked into is not let off.
    let fixture = Fixture::new();
    let mut plan =
        fixture.plan(&format!("mkdir /srp/build/d; {WRITE}; chmod 0 /srp/build/d; sleep 60"));
    plan.limits.disk_bytes = Some(32 * MIB);
    assert_eq!(status_of(&fixture, &plan), Status::LimitExceeded(Limit::Disk));
    let fixture = Fixture::new();
    let mut plan = fixture.plan("truncate -s 256M /srp/build/sparse; sleep 2");
    plan.limits.disk_bytes = Some(32 * MIB);
    assert_eq!(status_of(&fixture, &plan), Status::Exited(0), "holes take no disk");
}

/// What the kernel counts for the machine or its user, and a sandbox could use up.
fn what_is_the_machines_is_limited() {
    let fixture = Fixture::new();
    let all = "i=0; while [ $i -lt 70 ]; do \
                 (exec 5<>/dev/ptmx && touch /tmp/$i; sleep 60) & i=$((i+1)); \
               done 2>/dev/null; \
               while [ $(ls /tmp | wc -l) -lt 64 ]; do sleep 0.1; done; sleep 0.5; ls /tmp | wc -l";
    assert_eq!(fixture.sh(all), "64\n", "terminals");
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    let watch: Call = (294, [0; 6]);
    for (count, errno) in [(16, 0), (17, nix::libc::EMFILE)] {
        let fixture = Fixture::new();
        let program = fixture.directory.join("build/program");
        write_program(&program, &vec![watch; count], b"", Entry::Native);
        let mut plan = fixture.plan("");
        plan.command = vec!["/srp/build/program".into()];
        assert_eq!(status_of(&fixture, &plan), Status::Exited(errno), "{count}");
    }
}
