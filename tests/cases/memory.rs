//! Builds that the kernel takes memory from: told as such, and tried again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::host::{is_root, skipped};
use crate::support::{Place, Run};

/// A control group whose processes together get no more than so much memory.
struct Group(PathBuf);

impl Group {
    fn with_megabytes(megabytes: u64) -> std::io::Result<Group> {
        let name = format!("srp-test-{}", std::process::id());
        let (root, limit) = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => ("/sys/fs/cgroup", "memory.max"),
            false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let group = Path::new(root).join(name);
        fs::create_dir(&group)?;
        let group = Group(group);
        fs::write(group.0.join(limit), (megabytes << 20).to_string())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_build_that_takes_more_memory_than_builds_may_is_stopped_and_not_held_against_it() {
    let place = Place::new(
        r#"return {"": sh("big", "dd if=/dev/zero of=/dev/null bs=500M count=4; echo > $out/usr/x")}"#,
    );
    let config = fs::read_to_string(place.path("home/.config/srp/config.toml")).unwrap();
    let limited = format!("memory_mib = 200\n{config}");
    place.write("home/.config/srp/config.toml", &limited);
    let run = place
        .srp(&["realise", "t.x"])
        .exited(3)
        .says(&["failed: big: took more memory than the 200 MiB that a build may (memory_mib "]);
    let (_, peak) = run.stderr.split_once("its processes held ").unwrap();
    let (peak, _) = peak.split_once(" MiB at most").unwrap();
    assert!((200..600).contains(&peak.parse::<u64>().unwrap()), "{run}");
    place.assert_tidy();

    place.write("home/.config/srp/config.toml", &config);
    place.realise("t.x");
}

#[test]
fn a_build_whose_processes_the_kernel_kills_says_so_and_is_tried_again() {
    let what = "what is said when the kernel kills a build's processes for lack of memory";
    if !is_root() {
        return skipped(what, "only root may make a control group");
    }
    let group = match Group::with_megabytes(200) {
        Ok(group) => group,
        Err(error) => return skipped(what, &format!("no control group: {error}")),
    };
    // As under make: what is killed is a child, and the builder only sees that it failed.
    let place = Place::new(
        r#"return {"": sh("big", "dd if=/dev/zero of=/dev/null bs=500M count=1 || exit 5; echo > $out/usr/x")}"#,
    );
    let mut confined = Command::new("/bin/sh");
    let joins = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
    place.surround(&mut confined).args(["-c", joins.as_str(), "sh"]);
    confined.arg(env!("CARGO_BIN_EXE_srp")).args(["realise", "t.x"]);
    Run::of(&mut confined).exited(3).says(&[
        "failed: big: its builder exited with status 5 while the kernel killed \
         processes for lack of memory (",
        "); its own held ",
        "hint: ",
    ]);
    place.assert_tidy();

    // Nothing is held against it where there is memory.
    place.realise("t.x");
}
