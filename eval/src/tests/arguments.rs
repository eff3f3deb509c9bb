//! Every argument that can be wrong, with the message that says so.

use srp_store::{Action, Format, OutputName, Role};

use super::{Fixture, build_of, with_component};
use crate::EvalError;

/// What is said about a component, which must be said of `//package.star`, line 2.
fn complaint(component: &str) -> String {
    let error = with_component(component).error("s.t");
    let rendered = error.rendered();
    let EvalError::Definition { message, location, .. } = &error else { panic!("{rendered}") };
    let place = format!("{location:?}\n{rendered}");
    // Wrappers of the fixture are in the call chain, where the mistake isn't.
    assert!(place.contains("//package.star:2:"), "{place}");
    assert!(place.contains("called from //main.star:4:"), "{place}");
    assert!(place.contains("stages[\"s\"] for the target t"), "{place}");
    assert_eq!(
        error.to_string(),
        format!("{}: {message}", location.as_deref().expect("a location"))
    );
    message.clone()
}

macro_rules! refused {
    ($($test:ident: [$($component:literal => $message:literal),* $(,)?],)*) => {$(
        #[test]
        fn $test() {
            for (component, message) in [$(($component, $message)),*] {
                let complaint = complaint(component);
                assert!(complaint.contains(message), "{component}\n  {complaint}\n  {message}");
            }
        }
    )*};
}

refused! {
    what_the_kernel_passes_on_to_no_program: [
        "build(args = [\"a\", \"x\" * 131072])" => "`args`: item 1: 131072 bytes, and the kernel passes at most 131071 on to a program: put the text into a file",
        "build(env = {\"BIG\": \"é\" * 65534})" => "`env`: \"BIG\" with its value: 131072 bytes, and",
        "build(env = {\"V%d\" % i: \"x\" * 30000 for i in range(80)})" => "`args` and `env` together: 24",
    ],
    keywords_and_types: [
        "build(bogus = 1)" => "build has no argument `bogus`",
        "build(version = 1)" => "Type of parameter `version` doesn't match, expected `str`, actual `int (repr: 1)`",
        "derivation(\"zlib\")" => "Missing named-only parameter `name`",
        "build(cores = \"2\")" => "Type of parameter `cores` doesn't match",
        "build(cores = -1)" => "Error unpacking value for parameter `cores` of type `None | int: Integer value is too big",
        "build(args = \"-c\")" => "`args` is not a list but a string: \"-c\"",
        "build(args = [1])" => "`args`: item 0 is not a string but an int: 1",
        "build(args = [\"a\", None])" => "`args`: item 1 is not a string but None",
        "build(env = [])" => "`env` is not a dict but a list: []",
        "build(env = {1: \"a\"})" => "`env`: a key is not a string but an int: 1",
        "build(env = {\"A\": 1})" => "`env`: the value of \"A\" is not a string but an int: 1",
        "build(tools = [\"bash\"])" => "`tools`: item 0 is not a derivation but a string: \"bash\"",
        "build(tools = tool)" => "`tools` is not a list but a derivation: <derivation tool-1.3>",
    ],
    names: [
        "build(name = \"a b\")" => "`name`: \"a b\" is not a valid name: 1 to 180 of the characters",
        "build(name = \".a\")" => "`name`: \".a\" is not a valid name",
        "build(build = \"x86_64\")" => "`build`: \"x86_64\" is not a valid triple: <arch>-<vendor>",
        "build(host = \"X-linux-gnu\")" => "`host`: \"X-linux-gnu\" is not a valid triple",
        "build(target = \"\")" => "`target`: \"\" is not a valid triple",
        "build(version = \"1\\n2\")" => "`version`: \"1\\n2\" holds a control character",
        "build(builder = \"bash\")" => "`builder`: \"bash\" is not an absolute path",
        "build(builder = \"/usr/../bash\")" => "`builder`: \"/usr/../bash\" is not an absolute path",
        "stage(name = \"\", build = \"x\", host = \"y\")" => "`build`: \"x\" is not a valid triple",
    ],
    sources: [
        "source(sha256 = \"00\")" => "`sha256`: \"00\" is not a SHA-256 (64 hexadecimal digits in lower case)",
        "source(sha256 = 64 * \"A\")" => "is not a SHA-256",
        "source(urls = [])" => "`urls` is empty",
        "source(urls = \"https://a/b\")" => "`urls` is not a list but a string",
        "source(urls = [\"ftp://a/b\"])" => "`urls`: \"ftp://a/b\" can't be a place: ftp: is not supported: https://, http:// or mirror:// is expected",
        "source(urls = [\"FILE:///b\"])" => "can't be a place: file: is not supported",
        "source(urls = [\"https:///b\"])" => "`urls`: \"https:///b\" can't be a place: it names no host",
        "source(urls = [\"mirror:///b\"])" => "can't be a place: it names no mirror",
        "source(urls = [\"https:a/b\"])" => "can't be a place: there is no // after https:",
        "source(urls = [\"a/b\"])" => "can't be a place: it has no scheme: https://",
        "source(urls = [\"http://a/a b.tar.gz\"])" => "can't be a place: it holds a space, which a URL writes as %20",
        "source(urls = [\"http://a/b\\n\"])" => "can't be a place: it holds a control character",
        "fetch_git(name = \"a\", url = \"ssh://a/b\", commit = 40 * \"0\", sha256 = 64 * \"0\")" => "`url`: \"ssh://a/b\" can't be a place: ssh: is not supported",
        "fetch_git(name = \"a\", url = \"https://a/b#c\", commit = 40 * \"0\", sha256 = 64 * \"0\")" => "a repository's URL has no ? or #",
        "fetch_git(name = \"a\", url = \"https://a/b\", commit = \"main\", sha256 = 64 * \"0\")" => "`commit`: \"main\" is not a commit: 40 or 64",
        "fetch_git(name = \"a\", url = \"https://a/b\", commit = 40 * \"0\")" => "Missing named-only parameter `sha256`",
        "source(urls = [\"https://a/b\", \"https://a/b\"])" => "`urls`: \"https://a/b\" is there twice",
        "source(size = 0)" => "`size` is 0",
        "source(unpack = \"rar\")" => "`unpack`: \"rar\" is not an archive format: None, \"tar\", \"zip\" or \"deb\" is expected",
        "source(strip = 1)" => "`strip` is about unpacking, but `unpack` is None",
        "source(rename = {\"a\": \"b\"})" => "`rename` is about unpacking, but `unpack` is None",
        "source(unpack = \"tar\", only = [\"/usr\"])" => "`only`: \"/usr\" is not a relative path without",
        "source(unpack = \"tar\", exclude = [\"a/../b\"])" => "`exclude`: \"a/../b\" is not a relative path",
        "source(unpack = \"tar\", exclude = [\"a/**/b\"])" => "`exclude`: \"a/**/b\": \"*\" stands for any text within one component",
        "source(unpack = \"tar\", only = [\"a\", \"a\"])" => "`only`: \"a\" is there twice",
        "source(unpack = \"tar\", rename = {\"a\": \"/b\"})" => "`rename`: \"/b\" is not a relative path",
        "source(unpack = \"tar\", rename = {\"a\": \"c\", \"b\": \"c\"})" => "`rename`: \"c\" is there twice",
    ],
    inputs: [
        "build(tools = [tool, tool])" => "`tools`: tool-1.3 is there twice",
        "build(libs = [tool.output(\"dev\"), tool.output(\"dev\")])" => "`libs`: tool-1.3 (dev) is there twice",
        "build(run = [tool])" => "`run`: tool-1.3 is not an input: add it to `tools` or `libs`",
        "build(libs = [tool], develop = [tool.output(\"dev\")])" => "`develop`: tool-1.3 (dev) is not an input",
        "build(libs = [tool], run = [tool, tool])" => "`run`: tool-1.3 is there twice",
        "tool.output(\"lib\")" => "tool has no output \"lib\", only \"dev\", \"out\"",
        "build(sources = [source(), source(sha256 = 64 * \"1\")])" => "`sources`: two sources are called \"zlib.tar.gz\", and would both be at /srp/source/zlib.tar.gz",
        "build(sources = [stage(name = \"s\", build = \"a-b-c\", host = \"a-b-c\")])" => "`sources`: s is a stage: its components belong in `tools` or `libs`",
        "build(outputs = [])" => "`outputs`: \"out\" is missing",
        "build(outputs = [\"dev\"])" => "`outputs`: \"out\" is missing",
        "build(outputs = [\"out\", \"out\"])" => "`outputs`: \"out\" is there twice",
        "build(outputs = [\"out\", \"Dev\"])" => "`outputs`: \"Dev\" is not a valid output name",
    ],
    the_rest: [
        "build(env = {\"A B\": \"\"})" => "`env`: \"A B\" is not a variable's name",
        "build(env = {\"1\": \"\"})" => "`env`: \"1\" is not a variable's name",
        "build(env = {\"out\": \"/\"})" => "`env`: \"out\" is set by the sandbox",
        "build(env = {\"SRP_CORES\": \"9\"})" => "`env`: \"SRP_CORES\" is set by the sandbox",
        "build(args = [\"a\\0b\"])" => "holds a control character",
        "build(ignore_references = {\"libfoo.so.1\": \"\"})" => "`ignore_references`: the reason for \"libfoo.so.1\" is empty",
        "build(ignore_references = {\"libfoo.so.1\": \" \"})" => "`ignore_references`: the reason for \"libfoo.so.1\" is empty",
        "build(ignore_references = {\"a/b\": {\"libfoo.so.1\": \" \"}})" => "`ignore_references`: the reason for \"libfoo.so.1\" is empty",
        "build(ignore_references = {\"a/b\": {}})" => "`ignore_references`: the reason for \"a/b\" is empty",
        "build(ignore_references = {\"a/../b\": {\"c\": \"d\"}})" => "`ignore_references`: \"a/../b\" is not a relative path",
        "build(allow_sandbox_paths = {\"a\": \"\"})" => "`allow_sandbox_paths`: the reason for \"a\" is empty",
        "build(allow_sandbox_paths = 1)" => "`allow_sandbox_paths`",
        "build(ignore_references = {\"\": \"why\"})" => "`ignore_references` is empty",
        "build(allow_sandbox_paths = \"\")" => "`allow_sandbox_paths` is empty",
        "build(permissions = {\"/usr/bin/su\": \"rwx\"})" => "`permissions`: \"/usr/bin/su\": \"rwx\" is not a permission",
        "build(permissions = {\"usr/bin/su\": \"4755 root:root\"})" => "`permissions`: \"usr/bin/su\" is not an absolute path",
        "build(memory_mib = 0)" => "`memory_mib` is 0",
        "build(timeout_seconds = 0)" => "`timeout_seconds` is 0",
        "build(description = \"a\\nb\")" => "`description`: \"a\\nb\" holds a control character",
        "fail(\"not for\", \"this target\")" => "not for this target",
        "read_json(\"//missing.json\")" => "there is no //missing.json in the definitions",
        "read_json(\"//main.star\")" => "//main.star is not JSON: expected value at line 2",
        "read_text(\"/etc/passwd\")" => "\"/etc/passwd\" is not a definition's path",
        "json.decode(\"[1e999]\")" => "the text holds the number 1e+999, which is too large",
        "str(struct(name = \"x\").nme)" => "Object of type `struct` has no attribute `nme`, did you mean `name`?",
        "str(tool.hash)" => "Object of type `derivation` has no attribute `hash`",
    ],
}

#[test]
fn what_is_written_arrives() {
    let fixture = with_component(
        r#"build(
    description = "A library", target = "aarch64-linux-musl", args = ("-c", "true"), env = {"A": "b"},
    tools = [tool], libs = [tool.output("dev")], sources = [source(
        name = "src", unpack = "tar", strip = 1, only = ["a/*"], exclude = ["a/b"], rename = {"a/c": "d"},
        size = 7, version = "2",
    )],
    outputs = ["out", "debug"], run = [tool], develop = [tool.output("dev")],
    ignore_references = {"lib*.so": "loaded by nobody", "/usr/share/x": {"libc.so.6": "test data"}}, permissions = {"/usr/bin/su": "4755 root:root"},
    allow_sandbox_paths = "its tests check them", memory_mib = 1, cores = 2, timeout_seconds = 3, silence_seconds = 4,
)"#,
    );
    let evaluation = fixture.evaluate(&["s.t"]);
    let derivation = &evaluation.derivations[&evaluation.goals[0].1.derivation];
    assert_eq!(derivation.name.as_str(), "zlib");
    assert_eq!(derivation.advice.description, "A library");
    let advice = &derivation.advice;
    assert_eq!(
        (advice.memory_mib, advice.cores, advice.timeout_seconds, advice.silence_seconds),
        (Some(1), Some(2), Some(3), Some(4))
    );
    let build = build_of(derivation);
    assert_eq!(build.host.as_str(), "x86_64-unknown-linux-gnu");
    assert_eq!(build.target.as_ref().map(|it| it.arch()), Some("aarch64"));
    assert_eq!(build.arguments, ["-c", "true"]);
    assert_eq!(build.environment["A"], "b");
    assert_eq!(
        build.inputs.iter().map(|it| it.role).collect::<Vec<_>>(),
        [Role::Tools, Role::Libs, Role::Sources]
    );
    assert_eq!(build.inputs[1].key.output.as_str(), "dev");
    assert!(build.run.contains(&build.inputs[0].key) && build.run.len() == 1);
    assert!(build.develop.contains(&build.inputs[1].key) && build.develop.len() == 1);
    assert!(build.outputs.contains(&OutputName::out()) && build.outputs.len() == 2);
    assert_eq!(build.ignore_references["lib*.so"], "loaded by nobody");
    assert_eq!(build.ignore_references.len(), 1);
    assert_eq!(build.for_files.ignore_references["usr/share/x"]["libc.so.6"], "test data");
    assert_eq!(build.permissions["/usr/bin/su"].mode, 0o4755);
    assert_eq!(build.allow_sandbox_paths.as_deref(), Some("its tests check them"));

    let source = &evaluation.derivations[&build.inputs[2].key.derivation];
    let Action::Fetch(fetch) = &source.action else { panic!("{source:?}") };
    assert_eq!((fetch.format, fetch.strip), (Format::Tar, 1));
    assert_eq!((&*fetch.only[0], &*fetch.exclude[0], &*fetch.rename["a/c"]), ("a/*", "a/b", "d"));
    assert_eq!((source.advice.size_bytes, source.version.as_str()), (Some(7), "2"));
    assert_eq!(evaluation.derivations.len(), 3);
}

#[test]
fn a_derivation_can_be_looked_at_and_compared() {
    let fixture = with_component(
        r#"build(env = {
    "TOOL": tool.name + tool.version + tool.build + tool.host + str(tool.target) + str(tool.outputs),
    "SOURCE": source().name + str(source().build),
    "SAME": str([tool == tool, tool == build(), tool == tool.output("dev"), tool in {tool: 1}, tool.output("dev").output("out") == tool]),
    "SHOWN": f"{tool}",
})"#,
    );
    let derivation = fixture.derivation("s.t");
    let environment = &build_of(&derivation).environment;
    assert_eq!(
        environment["TOOL"],
        "tool1.3x86_64-unknown-linux-gnux86_64-unknown-linux-gnuNone[\"dev\", \"out\"]"
    );
    assert_eq!(environment["SOURCE"], "zlib.tar.gzNone");
    assert_eq!(environment["SAME"], "[True, False, False, True, True]");
    assert_eq!(environment["SHOWN"], "<derivation tool-1.3>");
}

#[test]
fn files_of_data_are_read_and_counted() {
    let fixture = with_component(
        "build(version = read_json(\"//data/lock.json\")[\"v\"] + read_text(\"//data/text\"))",
    );
    fixture.write("data/lock.json", "{\"v\": \"1.\"}");
    fixture.write("data/text", "5");
    let evaluation = fixture.evaluate(&["s.t"]);
    assert_eq!(evaluation.derivations[&evaluation.goals[0].1.derivation].version, "1.5");
    assert_eq!(
        evaluation.files.keys().collect::<Vec<_>>(),
        ["//data/lock.json", "//data/text", "//lib.star", "//main.star", "//package.star"]
    );
}

#[test]
fn derivations_have_a_type_and_printing_goes_to_the_caller() {
    let fixture = Fixture::new(&[(
        "main.star",
        r#"
Set = record(tools = list[derivation])
def _f(x: derivation) -> str:
    return x.name
_a = fetch(name = "a", sha256 = 64 * "0", urls = ["mirror://debian/pool/a"])
print("made", _f(_a), Set(tools = [_a]).tools)
def _s(target, build):
    return {"": _f(target)}
stages = {"s": _s}
targets = {"t": "no derivation"}
"#,
    )]);
    let error = fixture.error("s.t");
    let message = "//main.star:8:17: Value `no derivation` of type `string` does not match the type annotation `derivation`";
    assert!(error.to_string().starts_with(message), "{error}");
    assert_eq!(fixture.printed(), ["made a [<derivation a>]"]);
}

#[test]
fn a_scheme_is_as_good_in_capitals() {
    let component = "source(urls = [\"HTTP://a/b\", \"Mirror://debian/a\", \"https://a/\u{e9}\"])";
    assert_eq!(with_component(component).evaluate(&["s.t"]).derivations.len(), 1);
}

#[test]
fn a_git_source_is_an_archive_from_another_place() {
    let git = |more: &str| {
        let fixture = with_component(&format!(
            "fetch_git(name = \"a\", url = \"https://h/r\", commit = 40 * \"1\", sha256 = 64 * \"0\"{more})"
        ));
        let evaluation = fixture.evaluate(&["s.t"]);
        let key = &evaluation.goals[0].1.derivation;
        (*key, evaluation.derivations[key].clone())
    };
    let (hash, derivation) = git("");
    let place = format!("git+https://h/r@{}", "1".repeat(40));
    assert_eq!(derivation.advice.urls, std::slice::from_ref(&place));
    let (with, derivation) = git(", submodules = True");
    assert_eq!(derivation.advice.urls, [place + "#submodules"]);
    let archive = with_component(
        "source(name = \"a\", sha256 = 64 * \"0\", unpack = \"tar\", urls = [\"https://a/b\"])",
    );
    let archive = archive.evaluate(&["s.t"]).goals[0].1.derivation;
    assert_eq!((hash, with), (archive, archive));
}

#[test]
fn what_the_kernel_just_passes_on_is_taken() {
    let fixture = with_component("build(args = [\"x\" * 131071], env = {\"BIG\": \"x\" * 131067})");
    let derivation = fixture.derivation("s.t");
    assert_eq!(build_of(&derivation).arguments[0].len(), 131_071);
}
