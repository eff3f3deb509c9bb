//! srp is killed or interrupted in the middle of a build.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::host::mark;
use crate::support::place::list;
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run};

/// Starts srp on a build that sleeps, and waits until it does.
fn start(place: &Place, mark: &str) -> Child {
    let mut command = place.command(&["realise", "t.x"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()), "it never began");
    child
}

fn slow(mark: &str) -> String {
    format!(
        r#"
done = sh("done", "echo done > $out/usr/done")
slow = sh("slow", "echo half > $out/usr/half; (sleep {mark} &); sleep {mark}; cp /usr/done $out/usr", tools = [done])
return {{"": slow, "done": done}}
"#
    )
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_killed_srp_leaves_no_process_and_a_sound_store() {
    let mark = mark();
    let place = Place::new(&slow(&mark));
    let mut child = start(&place, &mark);
    send(&child, Signal::SIGKILL);
    child.wait().unwrap();
    assert!(eventually(|| processes_with(&mark).is_empty()), "{:?}", processes_with(&mark));
    // What was finished before is there; what wasn't isn't.
    assert_eq!(place.planned("t.x.done"), Vec::<String>::new());
    assert_eq!(place.planned("t.x"), ["slow"]);
    // The next one cleans up and finishes.
    place.define(&slow("0.1"));
    let run = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(run.built(), ["slow"], "{run}");
    place.assert_tidy();
}

#[test]
fn an_interrupted_srp_cleans_up_and_says_so() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mark = mark();
        let place = Place::new(&slow(&mark));
        let child = start(&place, &mark);
        send(&child, signal);
        let run = Run::from(child.wait_with_output().unwrap()).exited(130);
        let run = run.says(&["interrupted; what was finished is kept"]);
        assert_eq!(run.stdout, "");
        assert_eq!(processes_with(&mark), Vec::<u32>::new());
        place.assert_tidy();
        assert_eq!(place.planned("t.x"), ["slow"]);
    }
}

/// A server that takes connections and answers nothing.
fn silent_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn every_command_that_takes_time_is_interrupted_with_the_same_exit_code() {
    let (_listener, url) = silent_server();
    let place = Place::new(r#"return {"": sh("x", "echo x > $out/usr/x")}"#);
    place.realise("t.x");
    let large = std::fs::File::create(place.path("large")).unwrap();
    large.set_len(4 << 40).unwrap();
    place.write(
        "endless/main.star",
        "y = [1] * 10000000\nfor i in range(1000000):\n    z = 5 in y\n",
    );
    let commands: [&[&str]; 9] = [
        &["add", "large"],
        &["cache", "list", &url],
        &["cache", "info", &url],
        &["cache", "verify", &url],
        &["cache", "push", "t.x", "--to", &url, "--unsigned"],
        &["list", "--definitions", "endless"],
        &["instantiate", "t.x", "--definitions", "endless"],
        &["shell", "t.x", "--definitions", "endless"],
        &["closure", "t.x", "--definitions", "endless"],
    ];
    for (number, arguments) in commands.iter().enumerate() {
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let signal = signals[number % signals.len()];
        let mut command = place.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Long enough to be at it; none of them would end within minutes.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(
            child.try_wait().unwrap(),
            None,
            "{arguments:?} has ended: {:?}",
            child.wait_with_output()
        );
        let start = Instant::now();
        send(&child, signal);
        let run = Run::from(child.wait_with_output().unwrap());
        assert_eq!(run.code, Some(130), "{arguments:?}, {signal}: {run}");
        assert!(run.stderr.contains("interrupted"), "{arguments:?}, {signal}: {run}");
        assert!(start.elapsed() < Duration::from_secs(5), "{arguments:?}: {:?}", start.elapsed());
    }
    place.assert_tidy();
}

#[test]
fn whoever_waits_for_a_pipe_ends_by_the_first_signal() {
    let place =
        Place::new(r#"return {"": sh("x", "dd if=/dev/urandom of=$out/usr/x bs=512k count=2")}"#);
    place.realise("t.x");
    nix::unistd::mkfifo(&place.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let waiting: [&[&str]; 3] = [
        // Nothing comes; nobody takes what goes; nobody says the token.
        &["import"],
        &["export", "t.x", "--unsigned"],
        &["serve", "--token-file", "pipe", "--listen", "127.0.0.1:0"],
    ];
    for (number, arguments) in waiting.iter().enumerate() {
        let signal = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP][number];
        let mut command = place.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(child.try_wait().unwrap(), None, "{arguments:?} has ended");
        let start = Instant::now();
        send(&child, signal);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{arguments:?}, {signal}: {status}");
        assert!(start.elapsed() < Duration::from_secs(5), "{arguments:?}: {:?}", start.elapsed());
    }
}

#[test]
fn a_rootfs_that_a_killed_srp_had_begun_is_removed_by_the_next() {
    let place = Place::new(
        r#"return {"": sh("big", "for i in $(seq 200); do dd if=/dev/urandom of=$out/usr/$i bs=512k count=1; done")}"#,
    );
    place.realise("t.x");
    // The second signal ends srp at once, as if it were killed.
    for (place_of_root, signals) in
        [("killed", &[Signal::SIGKILL][..]), ("interrupted", &[Signal::SIGINT, Signal::SIGTERM])]
    {
        // Left alone: it only looks like one.
        let alike = place.path(place_of_root).join(".root.srp");
        place.write(&format!("{place_of_root}/.root.srp"), "precious");
        let root = place.path(place_of_root).join("root");
        let begun = || list(&place.path(place_of_root)).len() > 1;
        let arguments = ["realise", "t.x", "--rootfs", root.to_str().unwrap()];
        let mut command = place.command(&arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(eventually(begun), "it never began");
        for signal in signals {
            send(&child, *signal);
        }
        child.wait().unwrap();
        assert!(!root.exists(), "it was done before it was killed");
        assert!(begun(), "nothing was left: the test tests nothing");
        place.srp(&arguments).succeeded();
        assert_eq!(list(&place.path(place_of_root)), [alike, root]);
    }
}

#[test]
fn a_build_that_dies_with_its_log_unread_is_reported() {
    let place = Place::new(r#"return {"": sh("dies", "echo last words; kill -9 $$")}"#);
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["dies: its builder was killed by signal 9", "| last words"]);
    place.assert_tidy();
}
