//! Definitions that want more memory, depth or time than they may have, or files that aren't theirs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::harness::{Test, tests};
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    memory_ends_at_a_bound,
    depth_ends_at_a_bound,
    time_ends_at_a_bound,
    what_ends_by_itself_says_where,
    only_files_of_the_directory_are_read,
    a_signal_ends_it_at_once,
    an_evaluation_ends_with_its_srp,
    no_byte_steers_the_terminal,
];

/// What definitions end with that get as far as that.
const EXPORTS: &str = "targets = {\"x\": \"x\"}\nstages = {\"t\": lambda target, build: {}}\n";
/// What srp and the process that evaluates may take together: the bound of the second, which its
/// reserved stack is part of, and what srp itself takes.
const MEMORY_MIB: u64 = 1024 + 128;
/// How long anything may take here: 10 s of processor time on a machine that does other things.
const TIME: Duration = Duration::from_secs(120);

/// A list that is nested 400,000 times.
const DEEP: &str = "x = []\nfor i in range(400000):\n    x = [x]\n";

fn place(text: &str) -> Place {
    let place = Place::new("return {}");
    place.write("derivations/main.star", &format!("{text}{EXPORTS}"));
    place
}

/// What came of `srp list`, and how much memory its processes had at most.
fn list(place: &Place) -> (Run, u64) {
    let mut command = place.command(&["list"]);
    let errors = place.path("errors");
    let output = place.path("output");
    command.stdout(fs::File::create(&output).unwrap()).stderr(fs::File::create(&errors).unwrap());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut most_kib = BTreeMap::new();
    let status = loop {
        measure(&child, &mut most_kib);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > TIME {
            child.kill().unwrap();
            panic!("it is still running: {}", fs::read_to_string(&errors).unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let run = Run { code: status.code(), stdout: text(output), stderr: text(errors) };
    // Processes that evaluate come one after the other.
    let own = most_kib.remove(&child.id()).unwrap_or_default();
    let others = most_kib.into_values().max().unwrap_or_default();
    (run, (own + others) / 1024)
}

/// Notes the peaks of a process and its children.
fn measure(child: &Child, most_kib: &mut BTreeMap<u32, u64>) {
    let srp = child.id();
    for pid in children(srp).into_iter().chain([srp]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: Option<u64> = peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok());
        let most = most_kib.entry(pid).or_default();
        *most = kib.unwrap_or_default().max(*most);
    }
}

fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Each text ends with exit code 1 within bounds, and with these words.
fn refused(attacks: &[(&str, &[&str])]) {
    for (text, words) in attacks {
        let (run, memory_mib) = list(&place(text));
        assert_eq!(run.code, Some(1), "{text}\n{run}");
        assert!(memory_mib <= MEMORY_MIB, "{text}\n{memory_mib} MiB\n{run}");
        assert!(run.stderr.len() < 16 << 10, "{text}\n{} bytes are said", run.stderr.len());
        for word in *words {
            assert!(run.stderr.contains(word), "{text}\n{word:?} is not in what was said:\n{run}");
        }
    }
}

fn memory_ends_at_a_bound() {
    const BOUND: &str = "the evaluation takes more than 1024 MiB of memory";
    const SETTING: &str = "hint: if the definitions need that much: memory_mib of [evaluation]";
    refused(&[
        ("x = 'a'\nfor i in range(60):\n    x = x + x\n", &["//main.star:3:5: ", BOUND, SETTING]),
        ("x = [1]\nfor i in range(60):\n    x = x + x\n", &["//main.star:3:5: ", BOUND]),
        ("x = 'ab' * 1000000\ny = x * 1000000\n", &["//main.star:2:1: ", BOUND]),
        ("y = 'ab' * 4611686018427387904\n", &["//main.star"]),
        ("y = [1] * 4000000000\n", &["//main.star"]),
        ("y = list(range(2000000000))\n", &["//main.star", BOUND]),
        ("y = sorted(range(2000000000))\n", &["//main.star:1:1: ", BOUND]),
        ("y = ('x' * 1000000).join(['y'] * 1000000)\n", &["//main.star:1:1: ", BOUND]),
        ("y = '%s' * 100000 % tuple(['x' * 100000] * 100000)\n", &["//main.star:1:1: ", BOUND]),
        ("y = ('{0}' * 100000).format('x' * 1000000)\n", &["//main.star:1:1: ", BOUND]),
        ("y = ('a' * 1000000).replace('a', 'b' * 1000000)\n", &["//main.star:1:1: ", BOUND]),
        ("fail('x' * 2000000000)\n", &["//main.star", BOUND]),
        (
            "y = json.encode(['x' * 1000000] * 1000000)\n",
            &["the value is more than 64 MiB as JSON"],
        ),
        (
            "x = {}\nfor i in range(3000000):\n    x[i] = 'a' * 1000 + str(i)\n",
            &["the evaluation takes more than 256 MiB of memory", "//main.star:2:1"],
        ),
    ]);
}

fn depth_ends_at_a_bound() {
    const BOUND: &str = "nested too deeply: the evaluation's stack overflowed";
    let deep = |rest: &str| format!("{DEEP}{rest}\n");
    // Deep enough for a stack of 256 MiB.
    let tuples = |rest: &str| format!("x = ()\nfor i in range(4000000):\n    x = (x,)\n{rest}\n");
    refused(&[
        (&deep("json.encode(x)"), &["the value is nested more than 1000 deep", "//main.star:4:1"]),
        (
            &deep("x == json.decode('[]')\ny = []\nfor i in range(400000):\n    y = [y]\nx == y"),
            &["Too many recursion levels", "//main.star:8:1"],
        ),
        (
            &deep("fetch(name = 'x', urls = {1: x}, sha256 = 64 * '0')"),
            &["`urls` is not a list but a dict"],
        ),
        (&deep("fail(x)"), &["//main.star:4:1", "… (800002 bytes in all)"]),
        ("f = lambda g: g(g)\nf(f)\n", &["calls are nested more than 200 deep"]),
        (
            &tuples("print(len(repr(x)))"),
            &["//main.star:4:1: ", BOUND, "hint: make the value flatter"],
        ),
        (&tuples("y = {x: 1}"), &["//main.star:4:1: ", BOUND]),
        (
            &format!("if False:\n  pass\n{}", "elif 0:\n  1\n".repeat(70_000)),
            &["//main.star", BOUND],
        ),
        (&format!("x = {}1\n", "-".repeat(500_000)), &["nested more than 2000 deep"]),
    ]);
}

fn time_ends_at_a_bound() {
    // Of processor time, or by the clock on a machine that has little of it left.
    const BOUND: &str = "the evaluation takes more than ";
    const SETTING: &str = "hint: if the definitions need that long: seconds of [evaluation]";
    const STEPS: &str = "the evaluation takes more than 20000000 calls and rounds of loops";
    refused(&[
        ("y = [1] * 10000000\nfor i in range(1000000):\n    z = 5 in y\n", &[BOUND, SETTING]),
        (
            "def f():\n    for i in range(1000000):\n        for j in range(1000000):\n            pass\nf()\n",
            &[STEPS, "//main.star:3:9"],
        ),
    ]);
    // The same with a bound of the user's own.
    let place = place("y = [1] * 10000000\nfor i in range(1000000):\n    z = 5 in y\n");
    place.write("home/.config/srp/config.toml", "[evaluation]\nseconds = 1\n");
    let start = Instant::now();
    let (run, _) = list(&place);
    run.exited(1).says(&[BOUND, SETTING]);
    assert!(start.elapsed() < TIME / 4, "{:?}", start.elapsed());
}

fn what_ends_by_itself_says_where() {
    // What is evaluated is named even where no statement is.
    let place = Place::new("return {}");
    place
        .write("derivations/lib.star", "def f():\n    x = 'a' * 1000000\n    return x * 1000000\n");
    let main = "load(\"//lib.star\", \"f\")\ndef s(target, build):\n    return f()\n\
                targets = {\"x\": \"x\"}\nstages = {\"t\": s}\n";
    place.write("derivations/main.star", main);
    let run = place.srp(&["realise", "t.x"]).exited(1);
    run.says(&["//lib.star:3:5: ", "while evaluating stages[\"t\"] for the target x"]);
}

fn only_files_of_the_directory_are_read() {
    let attack = |path: &str, words: &[&str]| {
        let place = place(&format!("read_text(\"//{path}\")\n"));
        let at = |name: &str| place.path("derivations").join(name);
        fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        mkfifo(&at("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("/etc/passwd", at("passwd")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("/proc/self/environ", at("environ")).unwrap();
        symlink("../home/.config/srp/config.toml", at("config")).unwrap();
        symlink("loop", at("loop")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        let (run, memory_mib) = list(&place);
        assert!(memory_mib < 256, "{memory_mib} MiB");
        run.exited(1).says(words).says(&["//main.star:1:1"]);
    };
    attack("sparse", &["//sparse is larger than 67108864 bytes"]);
    attack("fifo", &["//fifo is not a plain file"]);
    attack("socket", &["//socket is not a plain file"]);
    attack("directory", &["//directory is not a plain file"]);
    for link in ["passwd", "zero", "environ", "config"] {
        attack(link, &["leads out of the definitions directory by a symbolic link"]);
    }
    attack("loop", &["can't read //loop"]);
    // The first file is read the same way.
    let place = place("");
    fs::remove_file(place.path("derivations/main.star")).unwrap();
    mkfifo(&place.path("derivations/main.star"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    list(&place).0.exited(1).says(&["//main.star is not a plain file"]);
}

/// Starts what takes 10 s, and returns when it is evaluated.
fn endless(place: &Place, arguments: &[&str]) -> (Child, u32) {
    let mut command: Command = place.command(arguments);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    loop {
        if let [evaluating] = children(child.id())[..] {
            std::thread::sleep(Duration::from_millis(200));
            return (child, evaluating);
        }
        assert!(start.elapsed() < TIME, "nothing is evaluated");
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const ENDLESS: &str = "y = [1] * 10000000\nfor i in range(1000000):\n    z = 5 in y\n";

fn is_gone(pid: u32) -> bool {
    for _ in 0..500 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie that nobody waits for is as good as gone.
        if stat.is_empty() || stat.contains(") Z ") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn a_signal_ends_it_at_once() {
    for (arguments, signal) in [
        (["list"].as_slice(), Signal::SIGINT),
        (&["realise", "t.x"], Signal::SIGINT),
        (&["instantiate", "t.x"], Signal::SIGTERM),
    ] {
        let (mut child, evaluating) = endless(&place(ENDLESS), arguments);
        let start = Instant::now();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(130), "{arguments:?}: {status}: {said}");
        assert!(is_gone(evaluating), "{arguments:?}");
    }
}

fn an_evaluation_ends_with_its_srp() {
    let (mut child, evaluating) = endless(&place(ENDLESS), &["list"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_gone(evaluating));
}

fn no_byte_steers_the_terminal() {
    let text = "\\x1b[2Ja\\rb\\x07\\x9b1m\\u202e\\n";
    for (statement, code) in [
        (format!("fail(\"{text}\")"), 1),
        (format!("print(\"{text}\")"), 0),
        (format!("fetch(name = \"{text}\", urls = [\"{text}\"], sha256 = \"\")"), 1),
        (format!("fetch({{\"{text}\": 1}})"), 1),
        (format!("{{\"{text}\": 1}}[\"{text}x\"]"), 1),
        (format!("load(\"//{text}\", \"a\")"), 1),
        // Characters as they are in a file.
        ("x = \u{1b}[2J\n".to_owned(), 1),
        ("fail('\u{1b}[2J\u{9b}')\n".to_owned(), 1),
    ] {
        let (run, _) = list(&place(&format!("{statement}\n")));
        assert_eq!(run.code, Some(code), "{statement}: {run}");
        let steering = |char: &char| char.is_control() && *char != '\n' || *char == '\u{202e}';
        assert_eq!(run.stderr.chars().find(steering), None, "{statement}: {:?}", run.stderr);
        assert!(!run.stderr.is_empty(), "{statement}");
    }
}
