//! The program that a sandbox begins as, before its command: what builds can reach of it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::libc;
use srp_builder::CancelToken;
use srp_builder::sandbox::{Launcher, SandboxError, Status};

use super::fixture::Fixture;
use super::harness::{Test, tests};
use super::machine_code::{DATA, Entry, write_program};
use super::processes::{eventually, processes_with};

pub(crate) const TESTS: &[Test] = tests![
    the_launcher_runs_from_sealed_memory,
    a_script_cannot_be_run_by_the_launcher,
    init_shows_nothing_of_its_program,
    a_command_has_nothing_of_the_launcher,
];

fn the_launcher_runs_from_sealed_memory() {
    let fixture = Fixture::new();
    fixture.sh("true");
    let own = format!("PPid:\t{}\n", std::process::id());
    let launchers: Vec<u32> = processes_with("__sandbox")
        .into_iter()
        .filter(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.is_ok_and(|text| text.contains(&own))
        })
        .collect();
    assert!(!launchers.is_empty());
    for pid in launchers {
        let exe = format!("/proc/{pid}/exe");
        // One that just began has not forbidden it yet.
        let forbidden = || fs::metadata(&exe).is_ok_and(|it| it.permissions().mode() & 0o7777 == 0);
        assert!(eventually(forbidden), "{exe} can be executed");
        let name = fs::read_link(&exe).unwrap();
        assert_eq!(name.to_str(), Some("/memfd:srp (deleted)"));
        // By its mode, because it runs, or by its seal.
        let written =
            OpenOptions::new().write(true).open(&exe).and_then(|mut it| it.write_all(b"x"));
        let refused = written.unwrap_err().raw_os_error().unwrap();
        assert!([libc::EACCES, libc::ETXTBSY, libc::EPERM].contains(&refused), "{refused}");
    }
}

/// CVE-2019-5736: the interpreter of the command's script is the program that is about to execute
/// it, and that one's loader is the attacker's.
fn a_script_cannot_be_run_by_the_launcher() {
    let fixture = Fixture::new();
    let program = fixture.directory.join("srp");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = Launcher::new(&program);
    let script = fixture.directory.join("build/script");
    for interpreter in ["/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe"] {
        let _ = fs::remove_file(&script);
        fs::write(&script, format!("#!{interpreter}\n")).unwrap();
        super::make_executable(&script);
        let mut plan = fixture.plan("");
        plan.command = vec!["/srp/build/script".into()];
        if cfg!(target_arch = "x86_64") {
            // chmod of the program that the loader was loaded for.
            let place = fixture.directory.join("loader/lib64");
            fs::create_dir_all(&place).unwrap();
            let loader = place.join("ld-linux-x86-64.so.2");
            let _ = fs::remove_file(&loader);
            let call = (90, [DATA, 0o777, 0, 0, 0, 0]);
            write_program(&loader, &[call], b"/proc/self/exe\0", Entry::Native);
            plan.layers.push(fixture.directory.join("loader"));
        } else {
            super::skipped("a loader of the attacker's", "the code is x86_64's");
        }
        let result = launcher.run(&plan, &mut std::io::sink(), &CancelToken::new().unwrap());
        match result {
            Err(SandboxError::Command { errno: Errno::EACCES, .. }) => {}
            other => panic!("{interpreter}: {other:?}"),
        }
        let mode = fs::metadata(&program).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o755, "{interpreter}: the host's program was changed");
    }
}

fn init_shows_nothing_of_its_program() {
    let fixture = Fixture::new();
    for attempt in [
        "readlink /proc/1/exe",
        "cat /proc/1/exe",
        "ls /proc/1/map_files | grep .",
        "cat /proc/1/maps | grep .",
        "cat /proc/1/auxv | grep .",
        "cp /proc/1/exe /srp/build/copy",
        "chmod 777 /proc/1/exe",
        "/proc/1/exe __sandbox",
    ] {
        let (outcome, log) = fixture.run(&fixture.plan(attempt)).unwrap();
        assert_ne!(outcome.status, Status::Exited(0), "{attempt}: {log}");
    }
}

fn a_command_has_nothing_of_the_launcher() {
    let fixture = Fixture::new();
    assert_eq!(fixture.sh("readlink /proc/self/exe"), "/usr/bin/busybox\n");
    let log = fixture.sh("cat /proc/self/maps; ls -l /proc/self/fd /proc/self/map_files 2>&1");
    assert!(!log.contains("memfd") && !log.contains("srp (deleted)"), "{log}");
    // Only its streams, and the one by which the directory is listed.
    assert_eq!(fixture.sh("ls /proc/self/fd | wc -l"), "4\n");
}
