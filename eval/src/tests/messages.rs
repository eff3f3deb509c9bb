//! Mistakes are reported where they were made, with what may have been meant.

use super::{Fixture, with_component};
use crate::EvalError;

/// The message of a component that is wrong, and all that is shown of it.
fn message(component: &str) -> (String, String) {
    let error = with_component(component).error("s.t");
    (error.to_string(), error.rendered())
}

#[test]
fn a_name_that_a_file_does_not_export_is_reported_at_the_load() {
    let fixture = Fixture::new(&[
        ("main.star", "load(\"//lib/shell.star\", \"shel_package\")\nx = shell_package()\n"),
        ("lib/shell.star", "def shell_package(): pass\n"),
    ]);
    assert_eq!(
        fixture.error("s.t").to_string(),
        "//main.star:1:6: //lib/shell.star exports no `shel_package`; did you mean `shell_package`?"
    );
    fixture.write("main.star", "load(\"//lib/shell.star\", mine = \"nothing_like_it\")\n");
    assert_eq!(
        fixture.error("s.t").to_string(),
        "//main.star:1:6: //lib/shell.star exports no `nothing_like_it`"
    );
}

#[test]
fn an_argument_that_no_function_has_is_reported_where_it_was_written() {
    let style = "
def inner(on, script, **arguments):
    t = \"x86_64-linux-gnu\"
    return derivation(name = \"x\", version = \"1\", build = t, host = t, builder = \"/a\", **arguments)
def style(on, configure = [], in_tree = (1, 2), *, before: str = \"\", **arguments):
    return inner(on, \"\", **arguments)
";
    let error = |call: &str| {
        let main = format!("load(\"//style.star\", \"style\")\ndef f():\n    {call}\nf()\n");
        Fixture::new(&[("main.star", &main), ("style.star", style)]).error("s.t")
    };
    let misspelt = error("style(1, in_treee = True)");
    assert_eq!(
        misspelt.to_string(),
        "//main.star:3:14: style has no argument `in_treee`; did you mean `in_tree`?"
    );
    let rendered = misspelt.rendered();
    assert!(rendered.contains("3 |     style(1, in_treee = True)"), "{rendered}");
    assert!(
        rendered.ends_with("called from //main.star:4:1, in f\n")
            || rendered.ends_with("called from //main.star:4:1\n"),
        "{rendered}"
    );
    let dict = error("style(1, **{\"bfore\": \"\"})").to_string();
    assert_eq!(dict, "//main.star:3:18: style has no argument `bfore`; did you mean `before`?");
    let passed_on = error("style(1, descriptoin = \"\")").to_string();
    assert_eq!(
        passed_on,
        "//main.star:3:14: style has no argument `descriptoin`; did you mean `description`?"
    );
    let builtin = error("fetch(name = \"n\", sha256 = \"\", urls = [], strips = 1)").to_string();
    assert!(builtin.contains("did you mean `strip`?"), "{builtin}");
    let nothing_near = error("style(1, wholly_other = 1)").to_string();
    assert_eq!(nothing_near, "//main.star:3:14: style has no argument `wholly_other`");
}

#[test]
fn a_long_message_is_cut() {
    let (error, rendered) = message("fail(100000 * \"ä\")");
    assert!(error.ends_with("… (200000 bytes in all)"), "{:.300}", error);
    assert!(rendered.len() < 10_000, "{}", rendered.len());
}

#[test]
fn values_are_shown_shortly_however_deep_and_long_they_are() {
    let deep = "x = []\nfor i in range(100000):\n    x = [x]\n";
    let main = format!("{deep}fetch(name = \"n\", sha256 = \"\", urls = {{1: x}})\n");
    // The hash is looked at first.
    let main = main.replace("sha256 = \"\"", "sha256 = 64 * \"0\"");
    let error = Fixture::new(&[("main.star", &main)]).error("s.t").to_string();
    assert_eq!(error, "//main.star:4:1: `urls` is not a list but a dict");
}

#[test]
fn json_is_written_within_bounds() {
    let encode = |depth: usize| {
        let main = format!(
            "x = \"[{{\\\\\\\"\"\nfor i in range({depth}):\n    x = [x]\ny = json.encode(x)\n"
        );
        Fixture::new(&[("main.star", &main)]).error("s.t").to_string()
    };
    assert_eq!(encode(1000), "//main.star: `stages` is missing");
    assert_eq!(encode(1001), "//main.star:4:5: the value is nested more than 1000 deep");
    assert_eq!(encode(200_000), "//main.star:4:5: the value is nested more than 1000 deep");
    let long = "y = json.encode([\"a\" * 1000000] * 68)\n";
    let error = Fixture::new(&[("main.star", long)]).error("s.t").to_string();
    assert_eq!(error, "//main.star:1:5: the value is more than 64 MiB as JSON");
    let text = "y = {\"\": json.encode({\"a\": [1, \"\\\"\\\\[\"]})}\nfail(y[\"\"])\n";
    let error = Fixture::new(&[("main.star", text)]).error("s.t").to_string();
    assert_eq!(error, "//main.star:2:1: {\"a\":[1,\"\\\"\\\\[\"]}");
}

/// What was attacked by hand, with numbers that a fuzzer makes large itself.
#[test]
fn seeds_of_the_fuzz_target_end_with_messages_of_bounded_length() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/seeds/evaluate");
    let mut count = 0;
    for entry in std::fs::read_dir(seeds).expect("a directory") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let mut parts = text.splitn(3, "\n----\n");
        let fixture = Fixture::new(&[]);
        for name in ["main.star", "other.star", "data.json"] {
            fixture.write(name, parts.next().unwrap_or_default());
        }
        match crate::list(&fixture.definitions(), "x86_64", None) {
            Err(error) => {
                assert!(!matches!(error, EvalError::Crashed { .. }), "{path:?}: {error}");
                assert!(error.rendered().len() < 64 << 10, "{path:?}");
            }
            Ok(listed) if !listed.is_empty() => {
                let attrs: Vec<&str> = listed.iter().map(|it| it.attr.as_str()).collect();
                fixture.evaluate(&attrs);
            }
            Ok(_) => {}
        }
        count += 1;
    }
    assert!(count > 30, "{count} seeds");
}
