//! Many at once on one store, in containers of their own: what each command says is there is there,
//! whatever the others collect.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::support::{self, Run};
use super::{Ground, rounds, seed};

/// Commands, each of which succeeds whatever the others do.
const COMMANDS: &[&[&str]] = &[
    &["realise", "t.x"],
    &["realise", "t.x", "--no-root"],
    &["realise", "t.x.dep", "--no-root"],
    &["realise", "t.x.seed"],
    &["add", "tree"],
    &["import", "export.srp", "--trusted-unsigned"],
    &["export", "t.x.busybox", "--output", "/dev/null"],
    &["cache", "push", "t.x.busybox", "--to", "cache", "--unsigned"],
    &["shell", "t.x.seed", "--", "/usr/bin/busybox", "true"],
    &["root", "list"],
    &["store", "stat"],
    &["store", "gc", "--older-than", "0s"],
    &["store", "gc", "--older-than", "0s", "--dry-run"],
    &["store", "gc", "--older-than", "0s", "--max-freed", "1M"],
];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
fn nothing_that_a_command_relies_on_is_collected_beside_it() {
    let ground = Ground::new();
    let place = &ground.place;
    place.write("tree/file", "content");
    place.realise("t.x");
    place.realise("t.x.busybox");
    let export = place.path("export.srp");
    place.srp(&["export", "t.x", "--output", export.to_str().unwrap()]).succeeded();
    place.srp(&["root", "remove", "t.x"]).succeeded();
    let mut random = Random(seed());
    let isolated = Run::of(Command::new("unshare").args(NAMESPACE).arg("true")).code == Some(0);
    if !isolated {
        support::host::skipped("containers of their own", "unshare fails");
    }
    for round in 0..rounds() {
        let mut running: Vec<(&[&str], Child)> = Vec::new();
        for number in 0..6 {
            // One collection at least.
            let arguments = match number {
                0 => COMMANDS[11],
                _ => COMMANDS[random.below(COMMANDS.len())],
            };
            let mut command = if isolated {
                let mut command = Command::new("unshare");
                command.args(NAMESPACE).arg(support::program());
                command
            } else {
                Command::new(support::program())
            };
            place.surround(command.args(arguments));
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            running.push((arguments, child));
            // Now and then one is killed, as whatever may be.
            if random.below(12) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(random.below(60) as u64));
                let (arguments, mut child) = running.pop().unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                println!("round {round}: {arguments:?} was killed");
            }
        }
        for (arguments, child) in running {
            let run = Run::from(child.wait_with_output().unwrap());
            let is_refused = run.stderr.contains("another collection is at work");
            let is_gone = arguments[0] != "realise" && run.stderr.contains("is not realised");
            assert!(
                run.code == Some(0) || is_refused || is_gone,
                "round {round}: {arguments:?}: {run}"
            );
            let rooted = arguments[0] == "realise" && !arguments.contains(&"--no-root");
            if rooted {
                assert!(Path::new(run.stdout.trim_end()).exists(), "round {round}: {run}");
            }
        }
        ground.assert_sound(&format!("round {round}"));
        if random.below(3) == 0 {
            let _ = place.srp(&["root", "remove", "t.x"]);
        }
    }
    place.srp(&["realise", "t.x"]).succeeded();
    place.srp(&["store", "gc", "--older-than", "0s"]).succeeded();
    ground.assert_sound("at last");
    place.assert_tidy();
}

const NAMESPACE: &[&str] = &["--pid", "--fork", "--mount-proc", "--kill-child"];
