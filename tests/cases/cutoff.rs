//! Early cutoff: what comes out the same doesn't cause anything above it to be built again.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::Place;

fn components(comment: &str, text: &str) -> String {
    format!(
        r##"
low = sh("low", "{comment}\necho {text} > $out/usr/low")
middle = sh("middle", "cp /usr/low $out/usr/middle", tools = [low])
high = sh("high", "cp /usr/middle $out/usr/high", tools = [middle])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [high])
return {{"": root, "low": low, "middle": middle, "high": high}}
"##
    )
}

#[test]
fn a_comment_rebuilds_one_thing_and_nothing_above_it() {
    let place = Place::new(&components("# first", "same"));
    let before = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(before.built(), ["applets", "high", "low", "middle"]);
    let log = |attr| place.srp(&["log", "--path", attr]).succeeded().stdout;
    let high_log = fs::metadata(log("t.x.high").trim_end()).unwrap().ino();

    place.define(&components("# second", "same"));
    let after = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(after.built(), ["low"], "{after}");
    assert_eq!(after.stdout, before.stdout);
    assert_eq!(fs::metadata(log("t.x.high").trim_end()).unwrap().ino(), high_log);
    // And now it is known that nothing is to be done.
    assert_eq!(place.srp(&["realise", "t.x"]).succeeded().stderr, "");
}

#[test]
fn another_result_rebuilds_all_above_it() {
    let place = Place::new(&components("", "one"));
    let one = place.srp(&["realise", "t.x"]).succeeded();
    place.define(&components("", "two"));
    let two = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(two.built(), ["high", "low", "middle"], "{two}");
    assert_ne!(one.stdout, two.stdout);
    // The way back is known.
    place.define(&components("", "one"));
    let back = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(back.built(), Vec::<&str>::new(), "{back}");
    assert_eq!(back.stdout, one.stdout);
}

#[test]
fn what_is_no_part_of_a_derivation_changes_nothing() {
    let with = |more: &str| format!("return {{\"\": sh(\"a\", \"echo > $out/usr/a\"{more})}}");
    let place = Place::new(&with(""));
    let path = place.realise("t.x");
    place.define(&with(
        ", description = \"new\", memory_mib = 500, timeout_seconds = 50, cores = 1",
    ));
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
    assert_eq!(place.realise("t.x"), path);
}
