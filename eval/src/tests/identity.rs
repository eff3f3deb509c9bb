//! Hashes: what changes them, and what must not.

use super::{Fixture, LIB, with_component};

const GRAPH: &str = r#"build(
    libs = [build(name = "musl", host = "aarch64-linux-musl", tools = [tool])],
    sources = [source(unpack = "tar", strip = 1)],
    args = ["-c", "make install"],
    description = "a small graph",
)"#;

fn hash(fixture: &Fixture) -> String {
    fixture.evaluate(&["s.t"]).goals[0].1.derivation.to_string()
}

/// Should this fail, then every store's realisations are lost with the change: raise the revision
/// that says why, or mend the evaluator.
#[test]
fn golden() {
    assert_eq!(
        hash(&with_component(GRAPH)),
        "18d61584e629fa2f6755294333e1d607555615615805f70760419df772721e62"
    );
}

#[test]
fn the_same_definitions_give_the_same_evaluation_anywhere() {
    let (one, other) = (with_component(GRAPH), with_component(GRAPH));
    let evaluation = one.evaluate(&["s.t"]);
    let twin = other.evaluate(&["s.t"]);
    assert_eq!(evaluation.derivations, twin.derivations);
    assert_eq!(evaluation.goals, twin.goals);
    assert_eq!(evaluation.files, twin.files);
}

#[test]
fn what_a_definition_looks_like_is_in_no_hash() {
    let fixture = with_component(GRAPH);
    let before = hash(&fixture);
    let mut lines: Vec<&str> = LIB.lines().collect();
    // Comments, the order of statements that don't depend on each other, another file.
    lines.insert(0, "# Other words.");
    let tool = lines.pop().expect("the last line");
    fixture.write("parts/lib.star", lines.join("\n"));
    fixture.write(
        "lib.star",
        format!("load(\"//parts/lib.star\", _b = \"build\", _s = \"source\")\nsource = _s\nbuild = _b\n{tool}\n"),
    );
    assert_eq!(hash(&fixture), before);
}

#[test]
fn what_only_advises_is_in_no_hash_and_everything_else_is() {
    let plain = hash(&with_component("build()"));
    for same in [
        "build(description = \"other\", cores = 1, memory_mib = 1, timeout_seconds = 1, silence_seconds = 1)",
        "build(build = \"x86_64-unknown-linux-gnu\")",
        "build(outputs = [\"out\"], tools = [], args = (), env = {})",
    ] {
        assert_eq!(hash(&with_component(same)), plain, "{same}");
    }
    for other in [
        "build(version = \"1.4\")",
        "build(args = [\"\"])",
        "build(env = {\"A\": \"b\"})",
        "build(tools = [tool])",
        "build(tools = [tool.output(\"dev\")])",
        "build(libs = [tool])",
        "build(libs = [tool], run = [tool])",
        "build(libs = [tool], develop = [tool])",
        "build(outputs = [\"out\", \"dev\"])",
        "build(ignore_references = {\"a\": \"b\"})",
        "build(permissions = {\"/a\": \"4755 root:root\"})",
        "build(allow_sandbox_paths = \"so\")",
        "build(allow_sandbox_paths = {\"a\": \"so\"})",
        "build(ignore_references = {\"a\": {\"b\": \"c\"}})",
        "build(target = \"x86_64-linux-gnu\")",
        "build(host = \"x86_64-linux-musl\")",
    ] {
        assert_ne!(hash(&with_component(other)), plain, "{other}");
    }
    let source = hash(&with_component("source()"));
    assert_eq!(
        hash(&with_component("source(urls = [\"mirror://debian/a\"], size = 3, version = \"1\")")),
        source
    );
    assert_ne!(hash(&with_component("source(unpack = \"tar\")")), source);
    assert_ne!(hash(&with_component("source(unpack = \"zip\")")), source);
    assert_ne!(hash(&with_component("source(sha256 = 64 * \"1\")")), source);
}

#[test]
fn a_source_named_twice_has_the_places_of_both() {
    let fixture = with_component(
        "build(sources = [source()], tools = [build(name = \"b\", sources = [source(urls = [\"mirror://debian/a\"])])])",
    );
    let evaluation = fixture.evaluate(&["s.t"]);
    let source = evaluation.derivations.values().find(|it| it.name.as_str() == "zlib.tar.gz");
    assert_eq!(
        source.expect("a source").advice.urls,
        ["https://a.example/zlib.tar.gz", "mirror://debian/a"]
    );
}

#[test]
fn a_chain_as_long_as_a_loop_can_make_it_is_no_recursion() {
    let fixture = with_component("_chain()");
    let lib = "\ndef _chain():\n    x = tool\n    for i in range(20000):\n        x = build(name = str(i), tools = [x])\n    return x\n";
    let package = std::fs::read_to_string(fixture.root().join("package.star")).expect("a file");
    fixture.write("package.star", package + lib);
    assert_eq!(fixture.evaluate(&["s.t"]).derivations.len(), 20_001);
}
