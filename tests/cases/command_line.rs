//! The words of the command line, as snapshots: a change of them is to be seen and meant.

use crate::support::{Place, Run};

/// What was said, without what differs from run to run.
fn words(place: &Place, run: &Run) -> String {
    let text =
        run.stderr.replace(place.path("").to_str().unwrap().trim_end_matches('/'), "<place>");
    let mut redacted = String::new();
    for line in text.lines() {
        let words = line.split(' ').map(|word| {
            let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if word.len() >= 12 && word.bytes().all(hexadecimal) { "<hash>" } else { word }
        });
        redacted += &words.collect::<Vec<_>>().join(" ");
        redacted.push('\n');
    }
    redacted
}

#[test]
fn help() {
    let place = Place::new("return {}");
    insta::assert_snapshot!("help", place.srp(&["--help"]).succeeded().stdout);
    insta::assert_snapshot!("help-realise", place.srp(&["realise", "--help"]).succeeded().stdout);
}

#[test]
fn every_subcommand_has_help_and_examples_do_parse() {
    let place = Place::new("return {}");
    let help = place.srp(&["--help"]).succeeded().stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let names: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|it| !it.is_empty()))
        .collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let run = place.srp(&[name, "--help"]).succeeded();
        assert!(run.stdout.contains("Usage: srp"), "{run}");
    }
}

#[test]
fn an_unknown_attribute() {
    let place = Place::new("return {\"\": busybox, \"library\": busybox}");
    let run = place.srp(&["realise", "t.x.libary"]).exited(1);
    insta::assert_snapshot!("unknown-attribute", words(&place, &run));
}

#[test]
fn a_failed_build() {
    let place = Place::new(
        "return {\"\": sh(\"bad\", \"echo one; echo two >&2; exit 3\"), \"seed\": applets}",
    );
    place.realise("t.x.seed");
    let run = place.srp(&["realise", "t.x"]).exited(3);
    insta::assert_snapshot!("failed-build", words(&place, &run));
}

#[test]
fn no_definitions() {
    let place = Place::new("return {}");
    let mut command = place.command(&["list"]);
    let run = Run::of(command.env_remove("SRP_DEFINITIONS").current_dir("/")).exited(1);
    insta::assert_snapshot!("no-definitions", words(&place, &run));
}

#[test]
fn an_empty_variable_is_none_and_usage_lines_do_not_depend_on_variables() {
    let place = Place::new("return {\"\": busybox}");
    let mut command = place.command(&["list"]);
    command.env("SRP_ROOT", "").env("SRP_DEFINITIONS", "");
    let run = Run::of(&mut command).succeeded();
    assert!(run.stdout.starts_with("t.x "), "{run}");
    let run = place.srp(&["realise"]).exited(2);
    assert!(!run.stderr.contains("--store"), "{run}");
}

#[test]
fn what_is_wrong_with_the_configuration_is_said_in_its_own_terms() {
    let place = Place::new("return {}");
    for (text, said) in [
        (
            "jobs = \"4\"",
            "config.toml:1: invalid type: string \"4\", expected a whole number from 1",
        ),
        ("\njobs = ", "config.toml:2: the value of `jobs` is missing"),
        ("sources = \"/srv\"", "expected a list, in square brackets"),
        ("[[caches]]\nurl = \"foo://bar\"", "a cache can't be at \"foo://bar\""),
    ] {
        place.write("home/.config/srp/config.toml", &format!("{text}\n"));
        place.srp(&["list"]).exited(1).says(&[said]);
    }
}
