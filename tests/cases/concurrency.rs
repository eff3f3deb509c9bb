//! Several srp at once, on one store.

use std::process::Stdio;

use crate::support::{Place, Run};

#[test]
fn two_build_nothing_twice() {
    let place = Place::new(
        r#"
slow = [sh(f"slow{i}", f"sleep 0.3; echo {i} > $out/usr/slow{i}") for i in range(4)]
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = slow)
return {"": root, "some": slow[2]}
"#,
    );
    let start = |attrs: &[&str]| {
        let mut command = place.command(&["realise"]);
        command.args(attrs).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let started = [start(&["t.x"]), start(&["t.x"]), start(&["t.x.some", "t.x"])];
    let runs = started.map(|child| Run::from(child.wait_with_output().unwrap()).succeeded());
    // Who waited for another reports what that one did, as having been waited for.
    let begun = |run: &Run| {
        let lines = run.stderr.lines().filter_map(|line| line.strip_prefix("building "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = runs.iter().flat_map(begun).collect();
    all.sort();
    assert_eq!(all, ["applets", "slow0", "slow1", "slow2", "slow3"], "{runs:#?}");
    assert_eq!(runs[0].stdout, runs[1].stdout);
    assert!(runs[2].stdout.ends_with(&runs[0].stdout));
    place.assert_tidy();
}

#[test]
fn one_srp_builds_in_parallel() {
    let place = Place::new(
        r#"
parts = [sh(f"part{i}", f"sleep 1; echo {i} > $out/usr/part{i}") for i in range(8)]
return {"": stage(name = "root", build = TRIPLE, host = TRIPLE, tools = parts), "seed": applets}
"#,
    );
    place.realise("t.x.seed");
    let run = place.srp(&["realise", "--jobs", "8", "t.x"]).succeeded();
    let (mut building, mut most) = (0_usize, 0);
    for line in run.stderr.lines() {
        if line.starts_with("building part") {
            building += 1;
        } else if line.starts_with("built part") {
            building -= 1;
        }
        most = building.max(most);
    }
    // As many as the machine begins in the second that the first one takes.
    assert!(most >= 3, "{run}");
}
