//! Attribute paths: what is found, and what is said when nothing is.

use super::Fixture;

fn fixture() -> Fixture {
    Fixture::new(&[(
        "main.star",
        r#"
def _source(name, description = ""):
    return fetch(name = name, sha256 = 64 * "0", urls = ["https://a.example/" + name], description = description)
def _stage(stage, components):
    def function(target, build):
        print("called", stage, target.name, build)
        return {"": _source(stage + "-" + target.name, "the stage")} | {
            name: _source(name + "-of-" + stage + "-" + target.name)
            for name in components
        }
    return function
stages = {
    "seed": _stage("seed", ["libc6.deb", "g++.deb"]),
    "stage2": _stage("stage2", ["musl", "compiler-rt"]),
    "stage2.5": _stage("stage2.5", ["perl"]),
}
targets = {"aarch64-musl": struct(name = "aarch64-musl"), "x86_64-musl": struct(name = "x86_64-musl")}
aliases = {"aarch64": "aarch64-musl", "x86_64": "x86_64-musl"}
machines = {"x86_64": struct(name = "machine-x86_64"), "aarch64": struct(name = "machine-aarch64")}
def runners(build):
    return {"aarch64": struct(derivation = _source("qemu-on-" + build), program = "/usr/bin/qemu-aarch64", cpu = "max", uname = "6.12.0")}
"#,
    )])
}

#[test]
fn stages_targets_aliases_and_components_are_found() {
    let fixture = fixture();
    for (attr, name) in [
        ("stage2.aarch64-musl", "stage2-aarch64-musl"),
        ("stage2.aarch64", "stage2-aarch64-musl"),
        ("stage2.5.x86_64", "stage2.5-x86_64-musl"),
        ("stage2.5.x86_64-musl.perl", "perl-of-stage2.5-x86_64-musl"),
        ("stage2.x86_64.compiler-rt", "compiler-rt-of-stage2-x86_64-musl"),
        // The seed's targets are machines, and what is an alias elsewhere is none there.
        ("seed.x86_64", "seed-machine-x86_64"),
        ("seed.aarch64.libc6.deb", "libc6.deb-of-seed-machine-aarch64"),
        ("seed.aarch64.g++.deb", "g++.deb-of-seed-machine-aarch64"),
    ] {
        assert_eq!(fixture.derivation(attr).name.as_str(), name, "{attr}");
    }
}

#[test]
fn only_what_is_wanted_is_called_and_that_once() {
    let fixture = fixture();
    let attrs =
        ["stage2.aarch64.musl", "stage2.aarch64-musl", "stage2.5.aarch64", "stage2.aarch64"];
    let evaluation = fixture.evaluate(&attrs);
    assert_eq!(
        fixture.printed(),
        ["called stage2 aarch64-musl x86_64", "called stage2.5 aarch64-musl x86_64"]
    );
    assert_eq!(evaluation.goals.iter().map(|(attr, _)| attr.as_str()).collect::<Vec<_>>(), attrs);
    assert_eq!(evaluation.goals[1].1, evaluation.goals[3].1);
    let runner = &evaluation.runners["aarch64"];
    assert_eq!(
        (&*runner.program, &*runner.cpu, &*runner.uname),
        ("/usr/bin/qemu-aarch64", "max", "6.12.0")
    );
    // The goals, less the one that is there twice, and the runner.
    assert_eq!(evaluation.derivations.len(), 4);
    assert_eq!(evaluation.derivations[&runner.key.derivation].name.as_str(), "qemu-on-x86_64");
    assert_eq!(evaluation.graph_of(&evaluation.goals[0].1).len(), 2);
}

#[test]
fn what_is_unknown_is_named_with_what_was_likely_meant() {
    let fixture = fixture();
    for (attr, message) in [
        (
            "stge2.aarch64",
            "there is no stage for \"stge2.aarch64\": did you mean \"stage2\"? (stages: seed, stage2, stage2.5)",
        ),
        ("", "there is no stage for \"\" (stages: seed, stage2, stage2.5)"),
        ("libreoffice", "there is no stage for \"libreoffice\" (stages: seed, stage2, stage2.5)"),
        (
            "stage2",
            "\"stage2\" names no target: stage2.<target> is expected (targets: aarch64-musl, x86_64-musl)",
        ),
        (
            "stage2.",
            "there is no target \"\" of the stage stage2 (targets: aarch64-musl, x86_64-musl, aarch64, x86_64)",
        ),
        (
            "stage2.arch64",
            "there is no target \"arch64\" of the stage stage2: did you mean \"aarch64\"? (targets: aarch64-musl, x86_64-musl, aarch64, x86_64)",
        ),
        (
            "seed.aarch64-musl",
            "there is no target \"aarch64-musl\" of the stage seed (targets: aarch64, x86_64)",
        ),
        (
            "stage2.aarch64.must",
            "stage2.aarch64-musl has no component \"must\": did you mean \"musl\"? (components: compiler-rt, musl)",
        ),
        (
            "stage2.aarch64.comp",
            "stage2.aarch64-musl has no component \"comp\": did you mean \"compiler-rt\"? (components: compiler-rt, musl)",
        ),
        (
            "stage2.aarch64.",
            "stage2.aarch64-musl has no component \"\" (components: compiler-rt, musl)",
        ),
    ] {
        assert_eq!(fixture.error(attr).to_string(), message, "{attr}");
    }
    let error = crate::evaluate(&fixture.definitions(), "riscv64", &[]).expect_err("no machine");
    assert_eq!(
        error.to_string(),
        "there are no definitions for building on \"riscv64\" (build machines: aarch64, x86_64)"
    );
}

#[test]
fn everything_can_be_listed_or_a_part() {
    let fixture = fixture();
    let attrs =
        |within| fixture.list(within).into_iter().map(|it| it.attr).collect::<Vec<_>>().join(" ");
    assert_eq!(fixture.list(None).len(), 16);
    assert_eq!(
        attrs(Some("stage2.5")),
        "stage2.5.aarch64-musl stage2.5.aarch64-musl.perl stage2.5.x86_64-musl stage2.5.x86_64-musl.perl"
    );
    assert_eq!(
        attrs(Some("stage2.aarch64")),
        "stage2.aarch64-musl stage2.aarch64-musl.compiler-rt stage2.aarch64-musl.musl"
    );
    assert_eq!(attrs(Some("stage2.aarch64.musl")), "stage2.aarch64-musl.musl");
    let stage = &fixture.list(Some("stage2.aarch64"))[0];
    assert_eq!((&*stage.name, &*stage.description), ("stage2-aarch64-musl", "the stage"));
}

#[test]
fn a_main_file_that_is_not_one_is_refused() {
    let function = "def _s(target, build): return {}\n";
    let good = "stages = {'s': _s}\ntargets = {'t': 1}\n";
    for (text, message) in [
        ("stages = {}", "//main.star: `targets` is missing"),
        ("targets = {}", "//main.star: `stages` is missing"),
        ("stages = []\ntargets = {}", "//main.star: `stages` is not a dict but a list: []"),
        (
            "stages = {1: 2}\ntargets = {}",
            "//main.star: `stages` has a key that is not a string but an int: 1",
        ),
        (
            "stages = {'a b': 2}\ntargets = {}",
            "//main.star: `stages` has the key \"a b\", which can't be part of an attribute",
        ),
        (
            "stages = {'a.': 2}\ntargets = {}",
            "//main.star: `stages` has the key \"a.\", which can't be part of an attribute",
        ),
        (
            "stages = {}\ntargets = {}\naliases = {'a': 'b'}",
            "//main.star: `aliases`: \"a\" stands for \"b\", which is no target",
        ),
        (
            "stages = {}\ntargets = {}\naliases = {'a': 1}",
            "//main.star: `aliases`: \"a\" is not a string but an int: 1",
        ),
        ("stages = {'s': 1}\ntargets = {'t': 1}", "Operation `call()` not supported on type `int`"),
        (good, "stages[\"s\"] returned for \"t\" is wrong: not a dict of components but an int: 7"),
        (
            &good.replace("_s", "lambda t, b: {'a': 'b'}"),
            "stages[\"s\"] returned for \"t\" is wrong: \"a\" is not a derivation but a string: \"b\"",
        ),
        (
            &good.replace("_s", "lambda t, b: {'a/b': 'b'}"),
            "is wrong: \"a/b\" can't be a component's name",
        ),
        (
            &good.replace("_s", "lambda t, b: {1: 'b'}"),
            "is wrong: a component's name is not a string but an int: 1",
        ),
        (&good.replace("_s", "lambda t: {}"), "Found 1 extra positional argument(s)"),
    ] {
        let fixture = Fixture::new(&[("main.star", &(function.replace("{}", "7") + text))]);
        let error = fixture.error("s.t").to_string();
        assert!(error.contains(message), "{text}\n  {error}\n  {message}");
    }
}

#[test]
fn runners_that_are_none_are_refused() {
    for (runners, message) in [
        ("1", "Operation `call()` not supported on type `int`"),
        (
            "lambda build: 1",
            "what runners returned for \"x86_64\" is wrong: not a dict of runners but an int: 1",
        ),
        ("lambda build: {1: 2}", "an architecture is not a string but an int: 1"),
        ("lambda build: {'a': 2}", "\"a\" has no `derivation`"),
        (
            "lambda build: {'a': struct(derivation = 1)}",
            "`derivation` of \"a\" is not a derivation but an int: 1",
        ),
        ("lambda build: {'a': struct(derivation = _f)}", "\"a\" has no `program`"),
        (
            "lambda build: {'a': struct(derivation = _f, program = 'qemu')}",
            "`program`: \"qemu\" is not an absolute path",
        ),
        (
            "lambda build: {'a': struct(derivation = _f, program = '/q', cpu = '')}",
            "`cpu` of \"a\" is not a name but a string: \"\"",
        ),
    ] {
        let text = format!(
            "_f = fetch(name = 'f', sha256 = 64 * '0', urls = ['https://a/f'])\n\
             stages = {{'s': lambda t, b: {{'': _f}}}}\ntargets = {{'t': 1}}\nrunners = {runners}\n"
        );
        let error = Fixture::new(&[("main.star", &text)]).error("s.t").to_string();
        assert!(error.contains(message), "{runners}\n  {error}\n  {message}");
    }
}
