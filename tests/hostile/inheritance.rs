//! What srp inherits from whoever starts it: signals, descriptors, limits, masks, priorities.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::{Test, tests};
use crate::support::host::mark;
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    nothing_inherited_hangs_srp_or_changes_a_build,
    hard_limits_below_every_builds_are_refused,
    what_the_caller_ignores_stays_ignored,
    a_terminal_that_hangs_up_does_not_end_srp,
    threads_that_cannot_be_started_are_an_error,
];

/// What a process finds itself with.
const WORLD: &str = "(umask; ulimit -a | grep -v processes; \
                     grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; cat /proc/self/personality; \
                     ls /proc/self/fd | wc -l; uname -m; env | cut -d= -f1 | sort) > $out/usr/world";

/// What is done before srp is executed, by a shell.
const SURROUNDINGS: &[&str] = &[
    "trap '' CHLD",
    "trap '' CHLD PIPE INT HUP QUIT TERM USR1 USR2 ALRM XFSZ XCPU TSTP TTIN TTOU WINCH CONT",
    "set -- env --block-signal \"$@\"",
    "exec 3</ 4</etc/passwd 5>&1 9<&0",
    "exec <&-",
    "exec 2>&-",
    "ulimit -S -n 40",
    "ulimit -S -s 300",
    "ulimit -S -f 1",
    "ulimit -c 0",
    "umask 0777",
    "umask 0",
    "mkdir gone && cd gone && rmdir ../gone",
    "set -- setarch -R \"$@\"",
    "set -- setarch --uname-2.6 \"$@\"",
    "set -- nice -n 7 \"$@\"",
    "set -- ionice -c 3 \"$@\"",
    "set -- chrt --batch 0 \"$@\"",
    "set -- taskset -c 0 \"$@\"",
    "export LD_BIND_NOW=1 GLIBC_TUNABLES=glibc.malloc.check=3 MALLOC_PERTURB_=9 IFS=x",
    "echo 900 > /proc/self/oom_score_adj",
];

fn nothing_inherited_hangs_srp_or_changes_a_build() {
    // The same output by another derivation each time, so that each is built.
    let components: String = (0..=SURROUNDINGS.len())
        .map(|number| {
            format!("\"w{number}\": sh(\"world\", r\"\"\"{WORLD}\"\"\", version = \"{number}\"), ")
        })
        .collect();
    let place = Place::new(&format!("return {{{components}}}"));
    let ordinary = place.realise("t.x.w0");
    for (number, preparation) in (1..).zip(SURROUNDINGS) {
        let attr = format!("t.x.w{number}");
        let run = within(start(&place, preparation, &["realise", &attr]), preparation);
        assert_eq!(run.code, Some(0), "{preparation}: {run}");
        assert_eq!(run.stdout.trim_end(), ordinary.to_str().unwrap(), "{preparation}: {run}");
    }
    place.assert_tidy();
}

fn hard_limits_below_every_builds_are_refused() {
    let place = Place::new(&format!(r#"return {{"": sh("world", r"""{WORLD}""")}}"#));
    // CAP_SYS_RESOURCE: root has it, but not everywhere.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let may_raise = u64::from_str_radix(effective, 16).unwrap() & (1 << 24) != 0;
    for (limit, name) in
        [("-t 5000", "RLIMIT_CPU"), ("-f 2000000", "RLIMIT_FSIZE"), ("-n 1000", "RLIMIT_NOFILE")]
    {
        let run = within(start(&place, &format!("ulimit {limit}"), &["realise", "t.x"]), limit);
        if may_raise {
            assert_eq!(run.code, Some(0), "{run}");
            continue;
        }
        run.exited(3).says(&["raise the hard limit", name, "ulimit -H"]);
    }
    for limit in ["-s 64", "-n 20", "-f 1", "-v 100000", "-d 100000"] {
        let run = within(start(&place, &format!("ulimit {limit}"), &["realise", "t.x"]), limit);
        if may_raise {
            assert_eq!(run.code, Some(0), "{limit}: {run}");
            continue;
        }
        let name = format!("(ulimit {})", &limit[..2]);
        run.exited(1).says(&["error: the hard limit", &name, "srp needs"]);
    }
}

fn what_the_caller_ignores_stays_ignored() {
    for (preparation, code) in [("trap '' HUP", 0), ("true", 130)] {
        let mark = mark();
        let place = Place::new(&format!(
            r#"return {{"": sh("slow", "sleep {mark} & sleep 1.5; echo > $out/usr/x")}}"#
        ));
        let srp = start(&place, preparation, &["realise", "t.x"]);
        assert!(eventually(|| !processes_with(&mark).is_empty()));
        kill(Pid::from_raw(srp.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
        within(srp, preparation).exited(code);
    }
}

fn a_terminal_that_hangs_up_does_not_end_srp() {
    let mark = mark();
    let place = Place::new(&format!(
        r#"return {{"": sh("slow", "sleep {mark} & sleep 2; echo > $out/usr/x")}}"#
    ));
    // Who looks at the terminal is killed, and srp was told to survive that.
    let code = place.path("code");
    let script = format!(
        "trap '' HUP; {} --progress live realise t.x > path; echo $? > {}",
        crate::support::program().display(),
        code.display()
    );
    let mut command = Command::new("script");
    place.surround(&mut command).args(["-qec", &script, "/dev/null"]);
    let mut terminal = command.stdout(Stdio::null()).spawn().unwrap();
    assert!(eventually(|| !processes_with(&mark).is_empty()));
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    assert!(eventually(|| std::fs::read_to_string(&code).is_ok_and(|text| text == "0\n")));
    place.assert_tidy();
}

fn threads_that_cannot_be_started_are_an_error() {
    if geteuid().is_root() {
        crate::support::host::skipped("a limit of processes", "root has none");
        return;
    }
    // As dash calls it, and as others do.
    let limit = "ulimit -p 1 2>/dev/null || ulimit -u 1";
    let place = Place::new(r#"return {"": sh("plain", "echo > $out/usr/x")}"#);
    let run = within(start(&place, limit, &["realise", "t.x"]), limit);
    assert!([Some(1), Some(3)].contains(&run.code), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
}

/// Executes srp by a shell that prepares something first.
fn start(place: &Place, preparation: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new("sh");
    place.surround(&mut command);
    command.args(["-c", &format!("{preparation}\nexec \"$@\""), "sh"]);
    command.arg(crate::support::program()).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end, which must come.
fn within(mut child: Child, what: &str) -> Run {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{what}: it hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None, "{what}: {output:?}");
    Run::from(output)
}
