//! Programs in `srp shell` that want more of the caller's streams than what they carry.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Test, tests};
use crate::support::host::mark;
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    files_cannot_be_opened_again,
    directories_are_refused,
    streams_are_copied_whole,
    whoever_reads_no_more_is_noticed,
    a_failing_output_is_an_error,
    interrupts_are_the_programs_to_answer,
    a_terminal_is_the_sandboxs_own,
    the_callers_terminal_is_given_back,
];

fn place() -> Place {
    let place = Place::new(
        r#"return {"": stage(name = "all", build = TRIPLE, host = TRIPLE, tools = [applets, busybox])}"#,
    );
    place.realise("t.x");
    place
}

fn shell(place: &Place, script: &str) -> Command {
    place.command(&["shell", "t.x", "--", "sh", "-c", script])
}

fn files_cannot_be_opened_again() {
    let place = place();
    for (name, stream) in [("in", 0), ("out", 1), ("err", 2)] {
        place.write(name, "kept\n");
        let file = || File::options().read(true).append(true).open(place.path(name)).unwrap();
        // A writer that waits for a reader of a pipe must not.
        let script = format!(
            "(echo lost 1<> /proc/self/fd/{stream}; chmod 777 /proc/self/fd/{stream}; \
              truncate -s 0 /proc/self/fd/{stream}) 2>/dev/null; test -p /proc/self/fd/{stream}"
        );
        let mut command = shell(&place, &script);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        match stream {
            0 => command.stdin(file()),
            1 => command.stdout(file()),
            _ => command.stderr(file()),
        };
        assert!(command.status().unwrap().success(), "{name} is a pipe");
        let text = fs::read_to_string(place.path(name)).unwrap();
        assert!(text.starts_with("kept\n"), "{name}: {text:?}");
        assert!(stream != 0 || text == "kept\n", "{name}: {text:?}");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(place.path(name)).unwrap());
        assert_eq!(mode & 0o111, 0, "{name}");
    }
}

fn directories_are_refused() {
    let place = place();
    let mut command = shell(&place, "cat /proc/self/fd/0/etc/passwd");
    command.stdin(File::open("/").unwrap());
    Run::of(&mut command).exited(1).says(&["standard input is a directory", "--bind DIR"]);
    let mut command = shell(&place, "ls /proc/self/fd/2/etc >&1");
    command.stderr(File::open("/").unwrap());
    assert_eq!(Run::of(&mut command).exited(1).stdout, "");
}

fn streams_are_copied_whole() {
    let place = place();
    // Every byte, more than any pipe holds, read late.
    let bytes: Vec<u8> =
        (0..5_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut command = shell(&place, "sleep 0.3; cat; echo end >&2");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut srp = command.spawn().unwrap();
    let mut input = srp.stdin.take().unwrap();
    let copied = std::thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&bytes).unwrap();
            drop(input);
        });
        std::thread::sleep(Duration::from_millis(700));
        let mut copied = Vec::new();
        srp.stdout.take().unwrap().read_to_end(&mut copied).unwrap();
        copied
    });
    assert!(copied == bytes, "{} of {} bytes", copied.len(), bytes.len());
    let output = srp.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"end\n".as_slice()));
    // Lines of one file in the order in which they were written.
    let log = File::create(place.path("log")).unwrap();
    let mut command = shell(&place, "for i in 1 2 3; do echo out $i; echo err $i >&2; done");
    command.stdout(log.try_clone().unwrap()).stderr(log);
    assert!(command.status().unwrap().success());
    let text = fs::read_to_string(place.path("log")).unwrap();
    assert_eq!(text, "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n");
    // A program that needs no input doesn't wait for its end.
    let mut command = shell(&place, "echo done");
    let mut srp = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = srp.stdin.take();
    assert_eq!(srp.wait_with_output().unwrap().stdout, b"done\n");
    drop(input);
}

fn whoever_reads_no_more_is_noticed() {
    let place = place();
    let mut command = shell(&place, "yes; echo $? >&2");
    let mut srp = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 4];
    srp.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    drop(srp.stdout.take());
    let output = srp.wait_with_output().unwrap();
    assert_eq!(output.stderr, b"141\n", "SIGPIPE");
}

fn a_failing_output_is_an_error() {
    let place = place();
    let mut command = shell(&place, "yes");
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    Run::of(&mut command).exited(1).says(&["cannot write to standard output", "ENOSPC"]);
}

fn interrupts_are_the_programs_to_answer() {
    let place = place();
    let mark = mark();
    let script = format!("trap 'echo caught; exit 9' INT; sleep {mark} & wait; wait");
    let mut command = shell(&place, &script);
    let srp = command.stdout(Stdio::piped()).spawn().unwrap();
    assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()));
    signal(&srp, Signal::SIGINT);
    let output = srp.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(9), b"caught\n".as_slice()));
    let mut command = shell(&place, &format!("trap '' TERM INT; sleep {mark}"));
    let mut srp = command.spawn().unwrap();
    assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()));
    signal(&srp, Signal::SIGTERM);
    assert_eq!(srp.wait().unwrap().code(), Some(130));
    assert!(processes_with(&format!("sleep\0{mark}")).is_empty());
}

fn a_terminal_is_the_sandboxs_own() {
    let place = place();
    let script = "tty; ls -l /proc/self/fd/0 | grep -o '/dev/.*'; stty size; echo > /dev/tty; \
                  trap 'stty size; exit 5' WINCH; while true; do sleep 0.1; done";
    let shell = format!(
        "{} shell t.x -- sh -c '{}'",
        crate::support::program().display(),
        script.replace('\'', "'\\''")
    );
    let session = format!(
        "stty rows 33 cols 77; (sleep 1.5; stty rows 44 cols 99 < /dev/tty) & {shell}; echo code $?"
    );
    let text = in_terminal(&place, &session, &[]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, ["/dev/pts/0", "/dev/pts/0", "33 77", "44 99", "code 5"], "{text:?}");
    // Keys are the sandbox's: Ctrl-C ends its job, not srp.
    let session = format!(
        "{} shell t.x -- sh -c 'trap \"echo interrupted\" INT; sleep 77; echo after'; echo code $?",
        crate::support::program().display()
    );
    let text = in_terminal(&place, &session, &[(1500, b"\x03")]);
    assert!(text.contains("interrupted") && text.contains("after"), "{text:?}");
    assert!(text.contains("code 0"), "{text:?}");
}

fn the_callers_terminal_is_given_back() {
    let place = place();
    let mark = mark();
    let program = crate::support::program();
    let program = program.display();
    for (end, code) in [("exit 3", 3), ("kill -9 $$", 137), ("sleep MARK", 130)] {
        let end = end.replace("MARK", &mark);
        let session = format!(
            "stty -a > before; {program} shell t.x -- sh -c '{end}'; echo $? > code; stty -a > after"
        );
        let mut terminal = start_terminal(&place, &session);
        if code == 130 {
            let of_shell = format!("shell\0t.x\0--\0sh\0-c\0sleep {mark}");
            assert!(eventually(|| processes_with(&format!("sleep\0{mark}")).len() == 1));
            // The shell that the terminal runs has that in its command line, too.
            for pid in processes_with(&of_shell) {
                kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
            }
        }
        terminal.wait().unwrap();
        let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
        assert_eq!(read("code").trim(), code.to_string(), "{end}");
        assert!(read("before").contains(" icanon") && read("before") == read("after"), "{end}");
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Runs a shell's script in a terminal, and types keys some milliseconds after it began; what is
/// shown.
fn in_terminal(place: &Place, script: &str, keys: &[(u64, &[u8])]) -> String {
    let mut terminal = start_terminal(place, script);
    let mut input = terminal.stdin.take().unwrap();
    for (milliseconds, keys) in keys {
        std::thread::sleep(Duration::from_millis(*milliseconds));
        input.write_all(keys).unwrap();
    }
    let mut shown = String::new();
    terminal.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    terminal.wait().unwrap();
    drop(input);
    shown
}

/// `script` (util-linux) is a terminal whose keys are standard input.
fn start_terminal(place: &Place, script: &str) -> Child {
    let mut command = Command::new("script");
    place.surround(&mut command).args(["-qec", script, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}
