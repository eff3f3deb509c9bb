//! What is asked for is built, printed, kept, and found again by every command.

use std::fs;

use serde_json::Value;

use crate::support::{Place, place};

/// Two things, one of which needs the other.
const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower; echo lower was built")
upper = sh("upper", "cat /usr/lower > $out/usr/upper; echo upper was built", tools = [lower], run = [lower])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [upper, applets])
return {"": root, "lower": lower, "upper": upper, "seed": busybox}
"#;

#[test]
fn only_store_paths_go_to_standard_output() {
    let place = Place::new(TWO);
    let run = place.srp(&["realise", "t.x.upper", "t.x.lower"]).succeeded();
    let paths: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(paths.len(), 2, "{run}");
    for (path, name) in paths.iter().zip(["upper", "lower"]) {
        assert!(path.starts_with(place.store().join("objects").to_str().unwrap()), "{path}");
        let text = fs::read_to_string(format!("{path}/usr/{name}")).unwrap();
        assert_eq!(text, "deep\n");
    }
    assert_eq!(run.built(), ["applets", "lower", "upper"]);
    place.assert_tidy();
}

#[test]
fn a_second_time_nothing_is_done() {
    let place = Place::new(TWO);
    let first = place.srp(&["realise", "t.x"]).succeeded();
    let second = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(second.stderr, "");
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
}

#[test]
fn what_has_gone_missing_is_built_again() {
    let place = Place::new(TWO);
    let path = place.realise("t.x.upper");
    let lower = place.realise("t.x.lower");
    // An object is a link to its tree; without its record it is not in the store.
    let id = &lower.file_name().unwrap().to_str().unwrap()[..32];
    for entry in place::list(&place.store().join("info")) {
        if entry.file_name().unwrap().to_str().unwrap().starts_with(id) {
            fs::remove_file(entry).unwrap();
        }
    }
    let run = place.srp(&["realise", "t.x.upper"]).succeeded();
    assert_eq!(run.built(), ["lower"], "{run}");
    assert_eq!(run.stdout.trim_end(), path.to_str().unwrap());
}

#[test]
fn json_says_what_came_of_each() {
    let place = Place::new(TWO);
    let run = place.srp(&["realise", "--json", "t.x.upper"]).succeeded();
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    let one = &value["realised"][0];
    assert_eq!((&one["asked"], &one["output"]), (&"t.x.upper".into(), &"out".into()));
    assert_eq!(one["path"].as_str().unwrap(), place.realise("t.x.upper").to_str().unwrap());
    assert_eq!(one["derivation"], place.show("t.x.upper")["derivation"]);
}

#[test]
fn a_dry_run_says_what_is_to_do_and_does_nothing() {
    let place = Place::new(TWO);
    assert_eq!(place.planned("t.x.upper"), ["applets", "busybox-static", "lower", "upper"]);
    let run = place.srp(&["realise", "-n", "t.x.upper"]).succeeded();
    assert_eq!(run.stdout, "");
    let run = run.says(&["fetch ", "busybox-static 1:", "build ", "  upper 1"]);
    assert!(run.stderr.ends_with("to build or compose\n"), "{run}");
    assert!(place::list(&place.store().join("objects")).is_empty());
    place.realise("t.x.lower");
    assert_eq!(place.planned("t.x.upper"), ["upper"]);
}

#[test]
fn what_was_realised_can_be_looked_at() {
    let place = Place::new(TWO);
    let upper = place.realise("t.x.upper");
    let lower = place.realise("t.x.lower");
    let (upper, lower) = (upper.to_str().unwrap(), lower.to_str().unwrap());

    let listed = place.srp(&["list"]).succeeded().stdout;
    let attrs: Vec<_> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(attrs, ["t.x", "t.x.lower", "t.x.seed", "t.x.upper"]);

    assert_eq!(place.show(upper)["path"], upper);
    let shown = place.show("t.x.upper");
    assert_eq!((&shown["name"], &shown["action"]), (&"upper".into(), &"build".into()));
    assert_eq!(shown["derivation"], place.show(upper)["derivation"]);

    for target in ["t.x.upper", upper, &shown["derivation"].as_str().unwrap()[..12]] {
        let log = place.srp(&["log", target]).succeeded().stdout;
        assert_eq!(log, "upper was built\n", "{target}");
    }
    let closure = place.srp(&["closure", "t.x.upper"]).succeeded().stdout;
    assert_eq!(closure, format!("{upper}\n{lower}\n"));
    let chain = place.srp(&["why-depends", "t.x.upper", "lower"]).succeeded().stdout;
    assert_eq!(chain, format!("{upper}\n  {lower}\n"));
    let run = place.srp(&["why-depends", "t.x.lower", "t.x.upper"]).succeeded();
    assert_eq!(run.stdout, "");
    run.says(&["doesn't need t.x.upper"]);
    let instantiated = place.srp(&["instantiate", "t.x.upper"]).succeeded().stdout;
    assert!(instantiated.contains(shown["derivation"].as_str().unwrap()), "{instantiated}");
    place.srp(&["log", "t.x"]).exited(1).says(&["is a stage"]);
    place.srp(&["log", "t.x.seed"]).exited(1).says(&["is fetched and not built"]);
}

#[test]
fn roots_name_what_is_kept() {
    let place = Place::new(TWO);
    let path = place.realise("t.x.upper");
    let path = path.to_str().unwrap();
    let listed = || place.srp(&["root", "list"]).succeeded().stdout;
    assert!(listed().contains("t.x.upper"), "{}", listed());
    assert!(listed().contains(path), "{}", listed());
    place.srp(&["root", "add", "mine", path]).succeeded();
    assert!(listed().contains("mine"), "{}", listed());
    place.srp(&["root", "remove", "mine", "t.x.upper"]).succeeded();
    assert_eq!(listed(), "");
    place.srp(&["root", "remove", "mine"]).exited(1).says(&["there is no root mine"]);
    place.srp(&["realise", "--no-root", "t.x.upper"]).succeeded();
    assert_eq!(listed(), "");
    place.srp(&["root", "add", "../evil", path]).exited(1).says(&["can't be the name of a root"]);
}

#[test]
fn a_shell_leaves_nothing_behind() {
    let place = Place::new(TWO);
    place.realise("t.x");
    let shell = |script: &str| place.srp(&["shell", "t.x", "--", "sh", "-c", script]);
    let run = shell("cat /usr/upper; id -u; echo new > /usr/new && rm /usr/upper && ls /usr");
    assert_eq!(run.code, Some(0), "{run}");
    assert_eq!(run.stdout, "deep\n1000\nbin\nlower\nnew\n");
    let again = shell("ls /usr");
    assert_eq!(again.stdout, "bin\nlower\nupper\n");
    assert_eq!(shell("exit 42").code, Some(42));
    assert_eq!(shell("kill -TERM $$").code, Some(143));
    assert_eq!(shell("cat /proc/net/dev | grep -c eth").stdout, "0\n");
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    let bind = shared.to_str().unwrap();
    place
        .srp(&["shell", "--bind", bind, "t.x", "--", "sh", "-c", "echo hi > /work/file"])
        .succeeded();
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "hi\n");
    place.assert_tidy();
}

#[test]
fn doctor_knows_this_machine() {
    let place = Place::new(TWO);
    let run = place.srp(&["doctor"]).succeeded();
    for part in ["the store", "definitions", "user and PID namespaces"] {
        assert!(run.stdout.contains(part), "{run}");
    }
    let checks = place.srp(&["doctor", "--json"]).succeeded().stdout;
    let checks: Value = serde_json::from_str(&checks).unwrap();
    assert!(checks.as_array().unwrap().iter().all(|it| it["name"].is_string()), "{checks}");
}

#[test]
fn outputs_are_objects_of_their_own() {
    let place = Place::new(
        r#"
two = sh("two", "mkdir -p $dev/usr/include; echo 1 > $dev/usr/include/h; echo 2 > $out/usr/f",
         outputs = ["out", "dev"])
user = sh("user", "! test -e /usr/f; cp /usr/include/h $out/usr/h", tools = [two.output("dev")])
return {"": two, "user": user}
"#,
    );
    assert_eq!(fs::read_to_string(place.realise("t.x.user").join("usr/h")).unwrap(), "1\n");
    assert!(!place.realise("t.x").join("usr/include").exists());
}
