//! Directories that are listed in another order: builds see it, and nothing else of it.

use std::fs;

use nix::libc;
use srp_builder::sandbox::{BinfmtHandler, SandboxPlan, Status};

use super::fixture::{Fixture, foreign_busybox, qemu};
use super::harness::{Test, tests};
use super::machine_code::{Call, DATA, Entry, write_program};

pub(crate) const TESTS: &[Test] = tests![
    directories_are_listed_from_their_end,
    nothing_is_lost_while_it_is_listed,
    listings_that_are_killed_hold_nobody_up,
    programs_that_cannot_be_looked_into_list,
    errors_of_listings_are_the_kernels,
    emulated_programs_list_from_the_end,
];

fn reversed(fixture: &Fixture, script: &str) -> SandboxPlan {
    let mut plan = fixture.plan(script);
    plan.attributes.reversed_directories = true;
    plan
}

/// Runs what must succeed; its output.
fn log_of(fixture: &Fixture, plan: &SandboxPlan) -> String {
    let (outcome, log) = fixture.run(plan).unwrap();
    assert_eq!(outcome.status, Status::Exited(0), "{:?}\n{log}", plan.command);
    log
}

fn backwards(log: &str) -> Vec<&str> {
    let (top, rest) = log.split_once('\n').unwrap();
    let mut lines: Vec<&str> = rest.lines().collect();
    lines.reverse();
    lines.insert(0, top);
    lines
}

fn directories_are_listed_from_their_end() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.directory.join("build/sub")).unwrap();
    for number in 0..300 {
        fs::write(fixture.directory.join(format!("build/sub/{number}")), "").unwrap();
    }
    // Of an input alone, of what is composed of two, of the build's own.
    for path in ["/usr/share", "/usr/bin", "/usr", "/", "sub"] {
        let script = format!("find {path} -maxdepth 1");
        let usual = fixture.sh(&script);
        let varied = log_of(&fixture, &reversed(&fixture, &script));
        assert_eq!(varied.lines().collect::<Vec<_>>(), backwards(&usual), "{path}");
    }
    // What a process sees of itself stays; and the time of day can be another one at once.
    let mut plan = reversed(&fixture, "date +%s; ls /proc/self/fd; find /usr/bin -maxdepth 1");
    let usual = fixture.sh("find /usr/bin -maxdepth 1");
    let both = [Some(1_000_000_000), None].map(|ahead| {
        plan.attributes.clock_ahead_seconds = ahead;
        log_of(&fixture, &plan)
    });
    let [ahead, now] = both.each_ref().map(|log| log.split_once('\n').unwrap());
    let seconds = [ahead.0, now.0].map(|text| text.parse::<u64>().unwrap());
    assert!(seconds[0] - seconds[1] > 999_999_000, "{seconds:?}");
    let expected = format!("0\n1\n2\n3\n{}\n", backwards(&usual).join("\n"));
    assert_eq!([ahead.1, now.1], [expected.as_str(); 2]);
}

fn nothing_is_lost_while_it_is_listed() {
    let fixture = Fixture::new();
    let plan = reversed(
        &fixture,
        "mkdir -p many deep/a/b/c; cd many; seq 30000 | xargs touch; cd ..; \
         for i in $(seq 2000); do echo > deep/a/b/c/$i; echo > deep/a/$i; done; \
         for i in 1 2 3 4; do find . -type f | sort -u | wc -l > count$i & done; wait; cat count?; \
         find deep -type f -exec rm '{}' ';' ; find deep | wc -l; \
         rm -r many deep && ls -A | tr '\\n' ' '",
    );
    // The counters may or may not see each other's files.
    let log = log_of(&fixture, &plan);
    let lines: Vec<&str> = log.lines().collect();
    for count in &lines[..4] {
        assert!((34_000..=34_004).contains(&count.parse::<u32>().unwrap()), "{log}");
    }
    assert_eq!(lines[4..], ["4", "count1 count2 count3 count4 "]);
}

fn listings_that_are_killed_hold_nobody_up() {
    let fixture = Fixture::new();
    let plan = reversed(
        &fixture,
        "for i in $(seq 200); do find / >/dev/null 2>&1 & kill -KILL $!; done; wait; \
         for i in $(seq 50); do find / >/dev/null 2>&1 & usleep 1000; kill -KILL $!; done; wait; \
         find /usr -maxdepth 1",
    );
    assert_eq!(log_of(&fixture, &plan).lines().count(), 3);
}

fn programs_that_cannot_be_looked_into_list() {
    let fixture = Fixture::new();
    let plan = reversed(
        &fixture,
        "mkdir files; touch files/one files/two files/three; cp /usr/bin/busybox busybox; \
         chmod 111 busybox; ./busybox find files | sort | tr '\\n' ' '",
    );
    assert_eq!(log_of(&fixture, &plan), "files files/one files/three files/two ");
}

/// Native numbers of x86_64; descriptor 3 is the first that a program opens.
fn errors_of_listings_are_the_kernels() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    let fixture = Fixture::new();
    const OPEN_DIRECTORY: Call = (257, [-100, DATA, 0, 0, 0, 0]);
    const OPEN_FILE: Call = (257, [-100, DATA + 2, 0, 0, 0, 0]);
    let list = |call: i32, number, place, room| -> Call { (call, [number, place, room, 0, 0, 0]) };
    let place = DATA + 64;
    for call in [217, 78] {
        let (enough, nowhere) = (list(call, 3, place, 1024), list(call, 3, 0x10_0000, 1024));
        let cases: &[(&str, &[Call], i32)] = &[
            ("a directory", &[OPEN_DIRECTORY, enough], 0),
            ("its end", &[OPEN_DIRECTORY, enough, enough], 0),
            ("too little room", &[OPEN_DIRECTORY, list(call, 3, place, 20)], libc::EINVAL),
            ("and then enough", &[OPEN_DIRECTORY, list(call, 3, place, 20), enough], 0),
            ("bad memory", &[OPEN_DIRECTORY, nowhere], libc::EFAULT),
            ("a null pointer", &[OPEN_DIRECTORY, list(call, 3, 0, 1024)], libc::EFAULT),
            ("and then good memory", &[OPEN_DIRECTORY, nowhere, enough], 0),
            ("a file", &[OPEN_FILE, enough], libc::ENOTDIR),
            ("no descriptor", &[list(call, 99, place, 1024)], libc::EBADF),
            ("a negative one", &[list(call, -1, place, 1024)], libc::EBADF),
            ("the working directory's number", &[list(call, -100, place, 1024)], libc::EBADF),
        ];
        for (name, calls, errno) in cases {
            let program = fixture.directory.join("build/program");
            let _ = fs::remove_file(&program);
            write_program(&program, calls, b".\0/srp/build/program\0", Entry::Native);
            for varied in [true, false] {
                let mut plan = fixture.plan("");
                plan.attributes.reversed_directories = varied;
                plan.command = vec!["/srp/build/program".into()];
                let status = fixture.run(&plan).unwrap().0.status;
                assert_eq!(status, Status::Exited(*errno), "{name}, varied: {varied}");
            }
        }
    }
}

fn emulated_programs_list_from_the_end() {
    if std::env::consts::ARCH == "aarch64" {
        super::skipped("an emulator of aarch64", "this is one");
        return;
    }
    let fixture = Fixture::new();
    for (name, file) in [("build/busybox-arm", foreign_busybox()), ("qemu", qemu())] {
        let path = fixture.directory.join(name);
        fs::copy(file, &path).unwrap();
        super::make_executable(&path);
    }
    let script = "./busybox-arm find /usr/bin -maxdepth 1";
    let logs = [false, true].map(|varied| {
        let mut plan = fixture.plan(script);
        plan.attributes.reversed_directories = varied;
        plan.binfmt.extend(BinfmtHandler::for_arch("aarch64", fixture.directory.join("qemu")));
        log_of(&fixture, &plan)
    });
    assert_eq!(logs[1].lines().collect::<Vec<_>>(), backwards(&logs[0]));
}
