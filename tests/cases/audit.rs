//! `srp audit` finds what isn't reproducible, says when and why, and accuses nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::host::{NOBODY, as_nobody, is_root, mark, skipped};
use crate::support::processes::{eventually, processes_with};
use crate::support::{Place, Run, place, seed};

/// Something that is irreproducible in one way.
struct Fixture {
    name: &'static str,
    /// What writes to `f`.
    script: &'static str,
    /// The dimensions that must be named; none: it differs whatever is varied.
    when: &'static [&'static str],
    /// The first cause that must be named.
    pattern: &'static str,
}

const fn fixture(
    name: &'static str,
    script: &'static str,
    when: &'static [&'static str],
    pattern: &'static str,
) -> Fixture {
    Fixture { name, script, when, pattern }
}

const MANY_FILES: &str = "for i in $(seq 40); do echo $i > file-$i; done";

const IRREPRODUCIBLE: &[Fixture] = &[
    fixture("date", "date", &[], "date"),
    fixture("epoch", "date +%s", &[], "date"),
    fixture("random", "od -An -tx1 -N16 /dev/urandom | tr -d ' '", &[], "random"),
    fixture(
        "race",
        "for i in $(seq 20); do (usleep $(od -An -tu2 -N2 /dev/urandom); echo $i) & done; wait",
        &[],
        "order",
    ),
    fixture("address", "grep stack /proc/self/maps", &[], "addresses"),
    fixture("tar-time", "echo x > a; tar -c a", &[], "member-time"),
    fixture("year", "date -u +%Y", &["clock"], "date"),
    fixture("weekday", "date -u +%A", &["clock"], "date"),
    fixture("host", "hostname", &["hostname"], "host-name"),
    fixture("path", "pwd", &["build-path"], "build-path"),
    fixture("path-length", "pwd | wc -c", &["build-path"], "build-path"),
    fixture("home", "echo ~/.config", &["build-path"], "build-path"),
    fixture("uid", "id -u", &["user"], "user"),
    fixture("user-name", "echo built by $USER", &["user"], "user"),
    fixture("passwd", "whoami", &["user"], "user"),
    fixture("umask", "umask", &["umask"], "umask"),
    fixture("umask-mode", "touch a; stat -c %a a", &["umask"], "umask"),
    fixture("locale", "echo $LC_ALL", &["locale"], "locale"),
    fixture("time-zone", "date -d @0 +%H:%M", &["time-zone"], "time-zone"),
    fixture("processors", "nproc", &["processors"], "processors"),
    fixture("jobs", "echo $SRP_CORES", &["processors"], "processors"),
    fixture("make-jobs", "echo ${MAKEFLAGS%% *}", &["processors"], "processors"),
    fixture("environment", "env | wc -l", &["environment"], "environment"),
    fixture("terminal", "test -t 3 && echo colour || echo plain", &["terminal"], "terminal"),
    fixture("kernel", "uname -r", &["kernel"], "kernel"),
    fixture(
        "cpu-model",
        "grep -E -m 1 '^(model name|CPU part)' /proc/cpuinfo",
        &["cpu-model"],
        "cpu-model",
    ),
    fixture(
        "cpu-features",
        "grep -E -m 1 '^(flags|Features)' /proc/cpuinfo",
        &["cpu-model"],
        "cpu-model",
    ),
    fixture("build-id", ELF_WITH_BUILD_ID, &["build-path"], "build-path"),
    fixture(
        "ar-owner",
        r"printf '!<arch>\n%-16s%-12s%-6s%-6s%-8s%-10s`\nx\n' a/ 0 $(id -u) $(id -g) 644 2",
        &["user"],
        "member-owner",
    ),
    fixture(
        "ar-mode",
        r"touch a; printf '!<arch>\n%-16s%-12s%-6s%-6s%-8s%-10s`\nx\n' a/ 0 0 0 $(stat -c %a a) 2",
        &["umask"],
        "member-mode",
    ),
    fixture(
        "tar-owner",
        "echo x > a; chmod 644 a; touch -d @1 a; tar -c a",
        &["user"],
        "member-owner",
    ),
    fixture(
        "python-time",
        r"echo x > a; time=$(printf %08x $(stat -c %Y a))
        set -- $(echo $time | sed 's/../& /g')
        printf '\313\015\015\012\0\0\0\0'\\x$4\\x$3\\x$2\\x$1'\002\0\0\0code'",
        &[],
        "bytecode-time",
    ),
    fixture("input-order", "find /usr/bin", &["directory-order"], "order"),
    fixture(
        "first-of-inputs",
        "find /usr/bin -name '?z*' | head -n 1",
        &["directory-order"],
        "order",
    ),
    fixture(
        "made-order",
        "MANY; find . -name 'file-*'",
        &["directory-order", "file-system"],
        "order",
    ),
    fixture(
        "ar-order",
        r"MANY
        printf '!<arch>\n'
        for i in $(find . -name 'file-1?'); do
            printf '%-16s%-12s%-6s%-6s%-8s%-10s`\nx\n' ${i#./}/ 0 0 0 644 2
        done",
        &["directory-order", "file-system"],
        "order",
    ),
    fixture("directory-size", "mkdir a; stat -c %s a", &["file-system"], "file-system"),
];

/// The least of an ELF file: a note with a build id, which linkers make of all that they read, as
/// here of the path, and the table that names its section. Numbers are octal, as `printf` takes them.
const ELF_WITH_BUILD_ID: &str = r#"
id=$(pwd | sha1sum | head -c 40 | sed 's/../\\x&/g')
word() { printf "\\$1\\0\\0\\0\\0\\0\\0\\0"; }
half() { printf "\\$1\\0\\0\\0"; }
# The file's header: 64-bit, no program headers, three section headers at 136, the last has names.
printf '\177ELF\002\001\001\0'; word 0
printf '\001\0\076\0'; half 1; word 0; word 0; word 210; half 0
printf '\100\0\0\0\0\0\100\0\003\0\002\0'
# The note, 36 bytes at 64, and the names, 36 at 100.
half 4; half 24; half 3; printf 'GNU\0'; printf "$id"
printf '\0.note.gnu.build-id\0.shstrtab\0\0\0\0\0\0\0'
# No section, the note, the names: name, type, flags, address, place, size, link, info, unit, entry.
for i in 1 2 3 4 5 6 7 10; do word 0; done
half 1; half 7; word 2; word 0; word 100; word 44; half 0; half 0; word 4; word 0
half 24; half 3; word 0; word 0; word 144; word 44; half 0; half 0; word 1; word 0
"#;

/// What in the file must be told apart, of some.
const PLACES: &[(&str, &str)] = &[
    ("build-id", "section .note.gnu.build-id (build id)"),
    ("ar-owner", "member a: owner"),
    ("ar-mode", "member a: mode"),
    ("tar-owner", "member a: owner"),
    ("tar-time", "member a: modification time"),
    ("python-time", "Python bytecode header: source's time"),
];

/// What looks as if it depended on something, and doesn't.
const REPRODUCIBLE: &[(&str, &str)] = &[
    ("source-date", "date -u -d @$SOURCE_DATE_EPOCH"),
    ("constant-date", "echo Built on Nov 22 2026 at 10:11:12 by build@srp in /usr/src"),
    ("pid", "echo $$"),
    ("sorted", "MANY; find . -name 'file-*' | LC_ALL=C sort"),
    ("unused-random", "od -N16 /dev/urandom > a; echo x"),
    ("unused-date", "date > a; echo $(wc -l < a)"),
    ("mode-of-its-own", "touch a; chmod 644 a; stat -c %a a"),
    ("own-umask", "umask 022; touch a; stat -c %a a"),
    (
        "joined",
        "for i in $(seq 20); do (usleep $(od -An -tu2 -N2 /dev/urandom); echo $i > file-$i) & done; wait; cat file-*",
    ),
    ("gzip-of-input", "date > a; echo x | gzip"),
    ("inputs", "ls -l --full-time /usr/bin/busybox | cut -c 1-10; stat -c %Y /usr/bin/busybox"),
    ("environment-of-its-own", "env -i LC_ALL=C TZ=UTC sh -c 'date -d @0; echo $PATH'"),
];

/// The components of a script for each.
fn components<'a>(scripts: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    let mut names = Vec::new();
    for (name, script) in scripts {
        let script = script.replace("MANY", MANY_FILES);
        let lines = format!("exec 3>&1\n{{ {script}\n}} > $out/usr/f");
        // Starlark's raw strings are as Rust's: nothing in the scripts ends them.
        text += &format!(
            "c_{} = sh(\"{name}\", r'''{lines}''', allow_sandbox_paths = \"a test\")\n",
            name.replace('-', "_")
        );
        names.push(format!("\"{name}\": c_{}", name.replace('-', "_")));
    }
    let root = "root = stage(name = \"root\", build = TRIPLE, host = TRIPLE, tools = [applets])\n";
    format!("{root}{text}return {{\"\": root, {}}}\n", names.join(", "))
}

fn attributes<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.map(|name| format!("t.x.{name}")).collect()
}

fn with<'a>(command: &[&'a str], attributes: &'a [String]) -> Vec<&'a str> {
    command.iter().copied().chain(attributes.iter().map(String::as_str)).collect()
}

/// The audits of a run by name.
fn audits(run: &Run) -> BTreeMap<String, Value> {
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run}"));
    assert_eq!(answer["format"], 1);
    let audits = answer["audits"].as_array().unwrap().iter();
    audits.map(|it| (it["name"].as_str().unwrap().to_owned(), it.clone())).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

/// Whether the store's own file system is in memory: then nothing else is to be had.
fn in_memory(place: &Place) -> bool {
    let kind = nix::sys::statfs::statfs(&place.store()).unwrap().filesystem_type();
    kind == nix::sys::statfs::TMPFS_MAGIC
}

#[test]
fn each_way_of_being_irreproducible_is_found_and_named() {
    let place = Place::new(&components(IRREPRODUCIBLE.iter().map(|it| (it.name, it.script))));
    let attrs = attributes(IRREPRODUCIBLE.iter().map(|it| it.name));
    place.srp(&with(&["realise"], &attrs)).succeeded();
    // What differs by the second must do so for the last that was built, too.
    std::thread::sleep(Duration::from_millis(1100));
    let run = place.srp(&with(&["audit", "--json"], &attrs)).exited(5);
    let audits = audits(&run);
    let mut wrong = Vec::new();
    for fixture in IRREPRODUCIBLE {
        let audit = &audits[fixture.name];
        let not_applicable = |name: &&&str| {
            let tried = audit["dimensions"].as_array().unwrap();
            tried.iter().any(|it| it["dimension"] == **name && it["variation"].is_null())
        };
        let mut expected = fixture.when.to_vec();
        if let Some(name) = fixture.when.iter().find(not_applicable) {
            assert!(*name != "file-system" || in_memory(&place), "{audit:#}");
            skipped(fixture.name, &format!("{name} can't be varied here"));
            expected.retain(|it| it != name);
            if expected.is_empty() {
                continue;
            }
        }
        let differences = audit["differences"].as_array().unwrap();
        let when: Vec<_> = differences.iter().flat_map(|it| texts(&it["when"])).collect();
        let pattern = differences.first().map(|it| it["causes"][0]["pattern"].clone());
        if audit["status"] != "differs"
            || differences.len() != expected.len().max(1)
            || when != expected
            || pattern != Some(fixture.pattern.into())
        {
            wrong.push(format!("{}: {when:?}, {pattern:?}: {audit:#}", fixture.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, place) in PLACES {
        let parts = audits[*name]["differences"][0]["changes"][0]["parts"].as_array().unwrap();
        let places: Vec<_> = parts.iter().map(|part| part["place"].as_str().unwrap()).collect();
        assert_eq!(places, [*place], "{name}");
    }
}

#[test]
fn costs_are_told_of_each_dimension() {
    let place = Place::new(
        r#"return {"": sh("slow", "i=$(hostname); [ $i = srp ] || sleep 2; sleep 1; echo > $out/usr/f"),
    "host": sh("host", "hostname > $out/usr/f")}"#,
    );
    place.realise("t.x");
    let vary = ["--costs", "--vary", "hostname,user", "--json"];
    let run = place.srp(&[&["audit", "t.x"], &vary[..]].concat()).succeeded();
    let audit = &audits(&run)["slow"];
    let rounds = audit["rounds"].as_array().unwrap();
    let varied: Vec<_> = rounds.iter().map(|round| texts(&round["varied"])).collect();
    let expected: [&[&str]; 5] = [&["hostname", "user"], &[], &["hostname"], &["user"], &[]];
    assert_eq!(varied, expected);
    let costs = &audit["costs"];
    let usual = costs["nothing_varied_milliseconds"].as_u64().unwrap();
    assert!(usual >= 1000, "{audit:#}");
    let [hostname, user] = [0, 1].map(|number| &costs["dimensions"][number]);
    assert_eq!([&hostname["dimension"], &user["dimension"]], ["hostname", "user"]);
    let took = hostname["milliseconds"].as_u64().unwrap();
    assert!(took >= 3000, "{audit:#}");
    assert_eq!(hostname["percent"].as_u64().unwrap(), took * 100 / usual);
    assert!(user["milliseconds"].as_u64().unwrap() < took, "{audit:#}");
    let run = place.srp(&["audit", "t.x", "--costs", "--vary", "user", "--again"]).succeeded();
    for part in ["% of it comparing)", "s when nothing is varied", "    user "] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    assert!(!run.stdout.contains("hostname"), "{run}");
    // That it differs is found all the same, and once.
    place.realise("t.x.host");
    let run = place.srp(&[&["audit", "t.x.host"], &vary[..]].concat()).exited(5);
    let audit = &audits(&run)["host"];
    let differences = audit["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1);
    assert_eq!(texts(&differences[0]["when"]), ["hostname"]);
    assert_eq!(audit["costs"]["dimensions"].as_array().unwrap().len(), 2);
}

/// Definitions of three components and, if `named`, of an emulator of this machine's own architecture.
fn define_runner(place: &Place, named: bool) {
    let arch = std::env::consts::ARCH;
    let package = seed::package(arch, "qemu-user");
    seed::sources(&package);
    let runners = match named {
        true => format!(
            r#"{{"{arch}": struct(derivation = emulator, program = "/usr/bin/qemu-{arch}", cpu = "max", uname = "5.4.0-else")}}"#
        ),
        false => "{}".to_owned(),
    };
    let text = format!(
        r#"load("//seed.star", "sh")
emulator = fetch(
    name = "qemu",
    version = "{version}",
    sha256 = "{sha256}",
    size = {size},
    urls = ["{url}"],
    unpack = "deb",
    only = ["usr/bin/qemu-{arch}"],
)
targets = {{"x": "x"}}
def _components(target, build):
    return {{
        "": sh("same", "echo $(pwd) > a; wc -l < a > $out/usr/f"),
        "kernel": sh("kernel", "uname -r > $out/usr/f"),
        "emulator": emulator,
    }}
def runners(build):
    return {runners}
stages = {{"t": _components}}
"#,
        version = package.version,
        sha256 = package.sha256,
        size = package.size_bytes,
        url = package.url,
    );
    place.write("derivations/main.star", &text);
}

#[test]
fn the_runner_is_varied_by_an_emulator_of_the_same_architecture() {
    let place = Place::new("return {}");
    define_runner(&place, true);
    place.srp(&["realise", "t.x", "t.x.kernel"]).succeeded();
    // It is not fetched for an audit: that would be another download in the middle of it.
    let run = place.srp(&["audit", "t.x", "--vary", "runner"]).exited(1);
    assert!(run.stdout.contains("unknown: same") && run.stdout.contains("qemu"), "{run}");
    place.realise("t.x.emulator");

    let run = place.srp(&["audit", "t.x", "--vary", "runner", "--json"]).succeeded();
    let audit = &audits(&run)["same"];
    assert_eq!(audit["status"], "identical", "{audit:#}");
    let tried = &audit["dimensions"][0];
    let Some(variation) = tried["variation"].as_object() else {
        let reason = tried["not_applicable"].as_str().unwrap();
        assert!(reason.contains("binfmt_misc"), "only the kernel may refuse it: {reason}");
        return skipped("the runner", reason);
    };
    assert_eq!(variation["usual"], "native");
    assert!(variation["varied"].as_str().unwrap().ends_with("-qemu"), "{audit:#}");
    assert_eq!(audit["rounds"].as_array().unwrap().len(), 1);
    assert_eq!(texts(&audit["rounds"][0]["varied"]), ["runner"]);

    let run = place.srp(&["audit", "t.x.kernel", "--vary", "runner,hostname", "--json"]).exited(5);
    let audit = &audits(&run)["kernel"];
    let differences = audit["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{audit:#}");
    assert_eq!(texts(&differences[0]["when"]), ["runner"]);
    assert_eq!(differences[0]["causes"][0]["pattern"], "runner");
    let kept = Path::new(differences[0]["kept"].as_str().unwrap());
    assert_eq!(fs::read_to_string(kept.join("out/usr/f")).unwrap(), "5.4.0-else\n");
    // It alone, and the other one alone.
    let rounds = audit["rounds"].as_array().unwrap();
    let varied: Vec<_> = rounds.iter().map(|round| texts(&round["varied"])).collect();
    assert_eq!(varied[..2], [vec!["hostname"], vec!["runner"]]);

    // What isn't asked for isn't varied; and both audits are remembered, one beside the other.
    let found = |vary: &[&str]| {
        let run = place.srp(&[&["audit", "t.x", "--json"], vary].concat()).succeeded();
        let audit = audits(&run).remove("same").unwrap();
        let dimensions = audit["dimensions"].as_array().unwrap();
        let has_runner = dimensions.iter().any(|it| it["dimension"] == "runner");
        (audit["remembered"].as_bool().unwrap(), has_runner)
    };
    assert_eq!(found(&[]), (false, false));
    assert_eq!(found(&["--vary", "runner"]), (true, true));
    assert_eq!(found(&["--vary", "umask"]), (true, false));
    assert_eq!(found(&["--vary", "umask,runner"]), (false, true));
    assert_eq!(found(&["--vary", "runner"]), (true, true));
    // Another emulator, or the same one told something else, has run nothing yet.
    let definitions = place.path("derivations/main.star");
    let text = fs::read_to_string(&definitions).unwrap();
    fs::write(&definitions, text.replace("5.4.0-else", "5.5.0-else")).unwrap();
    assert_eq!(found(&["--vary", "runner"]), (false, true));
    assert_eq!(found(&[]), (true, false));
    // An emulated rebuild is nobody's witness.
    place.srp(&["key", "generate", "builder-1"]).succeeded();
    place.srp(&["audit", "t.x", "--vary", "runner", "--sign"]).succeeded();
    assert!(!place.store().join("rebuilt").exists());
    place.srp(&["audit", "t.x", "--sign"]).succeeded();
    assert_eq!(place::list(&place.store().join("rebuilt")).len(), 1);
}

#[test]
fn without_an_emulator_the_runner_is_not_applicable() {
    let place = Place::new("return {}");
    define_runner(&place, false);
    place.realise("t.x");
    let reason = format!("the definitions have no runner for {}", std::env::consts::ARCH);
    let run = place.srp(&["audit", "t.x", "--vary", "runner"]).exited(1);
    let said = format!("unknown: same 1\n  its runner can't be varied: {reason}");
    assert!(run.stdout.contains(&said), "{run}");
    let run = place.srp(&["audit", "t.x", "--vary", "runner,umask"]).succeeded();
    assert!(run.stdout.contains("identical: same 1 (1 round, 1 dimension,"), "{run}");
    assert!(run.stdout.contains(&format!("not applicable: runner, because {reason}")), "{run}");
    // Once they have one, that is no longer what is found.
    define_runner(&place, true);
    place.realise("t.x.emulator");
    let run = place.srp(&["audit", "t.x", "--vary", "runner,umask"]).succeeded();
    assert!(!run.stdout.contains("no runner"), "{run}");
}

#[test]
fn what_only_looks_suspicious_is_not_accused() {
    let place = Place::new(&components(REPRODUCIBLE.iter().copied()));
    let attrs = attributes(REPRODUCIBLE.iter().map(|(name, _)| *name));
    place.srp(&with(&["realise"], &attrs)).succeeded();
    let run = place.srp(&with(&["audit", "--json", "--rounds", "3"], &attrs)).succeeded();
    for (name, audit) in audits(&run) {
        assert_eq!(audit["status"], "identical", "{name}: {audit:#}");
        assert_eq!(audit["rounds"].as_array().unwrap().len(), 3);
        for tried in audit["dimensions"].as_array().unwrap() {
            let excused = tried["dimension"] == "file-system" && in_memory(&place);
            assert!(tried["variation"].is_object() || excused, "{name}: {tried:#}");
        }
    }
    for path in place::list(&place.store().join("audits")) {
        assert_eq!(path.extension(), Some("json".as_ref()), "nothing else was to be kept");
    }
}

/// Every file of the store but the index, with its content.
fn content(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![store.to_owned()];
    while let Some(directory) = directories.pop() {
        for path in place::list(&directory) {
            let name = path.strip_prefix(store).unwrap().to_str().unwrap().to_owned();
            if ["index", "audits", "eval", "composed"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                directories.push(path.clone());
                found.insert(name, Vec::new());
            } else if !path.is_symlink() {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

const TWO_OUTPUTS: &str = r#"
two = sh("two", "mkdir -p $dev/usr/include; hostname > $dev/usr/include/h; id -u > $out/usr/f; mkdir $out/usr/same; echo same > $out/usr/same/s", outputs = ["out", "dev"])
steady = sh("steady", "echo steady > $out/usr/steady", tools = [two])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [steady])
return {"": root, "two": two, "steady": steady}
"#;

#[test]
fn the_store_is_as_it_was_and_what_differs_is_kept_aside() {
    let place = Place::new(TWO_OUTPUTS);
    place.realise("t.x");
    place.realise("t.x.two");
    // The first audit makes what can be made again: the cached evaluation.
    let run = place.srp(&["audit", "t.x.steady"]).succeeded();
    assert!(run.stdout.starts_with("identical: steady 1 (1 round, "), "{run}");
    let before = content(&place.store());
    let run = place.srp(&["audit", "t.x.two"]).exited(5);
    assert_eq!(content(&place.store()), before);
    place.assert_tidy();
    for part in [
        "differs: two 1 (",
        "differs when: hostname (srp → audit-host)",
        "differs when: user (1000:1000 → 2718:3141 (auditor))",
        "dev:/usr/include/h: 4 bytes, rebuilt 11",
        "-srp",
        "+audit-host",
        "likely cause: the host's name is in the output [host-name]",
        "0 identical, 1 differing",
    ] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    assert!(!run.stdout.contains("/usr/same"), "{run}");
    let kept = run.stdout.lines().find_map(|line| line.trim().strip_prefix("kept: ")).unwrap();
    let kept = Path::new(kept);
    assert!(kept.starts_with(place.store().join("audits")), "{kept:?}");
    assert_eq!(fs::read_to_string(kept.join("dev/usr/include/h")).unwrap(), "audit-host\n");
    // Elsewhere, and of one dimension only.
    let keep = place.path("kept");
    let arguments = ["audit", "t.x.two", "--vary", "user", "--keep", keep.to_str().unwrap()];
    let run = place.srp(&arguments).exited(5);
    assert!(!run.stdout.contains("hostname"), "{run}");
    let kept = place::list(&keep).remove(0).join("user/out/usr/f");
    assert_eq!(fs::read_to_string(kept).unwrap(), "2718\n");
}

#[test]
fn diffoscope_reports_on_what_differs_where_it_is_installed() {
    let place = Place::new(TWO_OUTPUTS);
    place.realise("t.x.two");
    let arguments = ["audit", "t.x.two", "--vary", "hostname,user", "--diffoscope"];
    let run = Run::of(place.command(&arguments).env("PATH", place.path("nowhere"))).exited(1);
    run.says(&["diffoscope is not installed", "diffoscope-minimal"]);
    // One that fails costs nobody the report.
    place.write("bin/diffoscope", "#!/bin/sh\n[ $1 = --version ] || { echo broken >&2; exit 2; }");
    let program = place.path("bin/diffoscope");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = Run::of(place.command(&arguments).env("PATH", place.path("bin"))).exited(5);
    let run = run.says(&["diffoscope failed", "broken", "1 derivation is not reproducible"]);
    assert!(run.stdout.contains("differs: two 1"), "{run}");
    if Command::new("diffoscope").arg("--version").output().is_err() {
        skipped("reports by diffoscope", "it is not installed (Debian: diffoscope-minimal)");
        return;
    }
    let run = place.srp(&arguments).exited(5).says(&["diffoscope compares"]);
    let reports: Vec<&str> =
        run.stdout.lines().filter_map(|line| line.trim().strip_prefix("diffoscope: ")).collect();
    assert_eq!(reports.len(), 4, "{run}");
    assert!(reports[0].ends_with("hostname/dev.diffoscope.txt"), "{run}");
    let text = fs::read_to_string(reports[0]).unwrap();
    assert!(text.contains("usr/include/h") && text.contains("+audit-host"), "{text}");
    assert!(fs::read_to_string(reports[1]).unwrap().contains("usr/include/h"));
    // What it has reported on it doesn't report on again.
    let again = place.srp(&arguments).exited(5);
    assert!(!again.stderr.contains("diffoscope compares"), "{again}");
    assert!(again.stdout.contains(reports[3]), "{again}");
}

#[test]
fn a_full_disk_leaves_the_store_clean_and_says_nothing_of_the_derivation() {
    let place =
        Place::new("return {\"\": sh(\"big\", \"dd if=/dev/zero of=$out/usr/big bs=1M count=8\")}");
    fs::create_dir(place.store()).unwrap();
    let script = "mount -t tmpfs -o size=24m,mode=755 none \"$SRP_ROOT\" || exit 77
        \"$0\" realise t.x || exit 78
        \"$0\" audit t.x || exit 79
        dd if=/dev/zero of=\"$SRP_ROOT/other\" bs=64k 2>/dev/null
        truncate -s -4M \"$SRP_ROOT/other\"
        \"$0\" audit t.x --again; echo full: $?
        ls -A \"$SRP_ROOT/tmp\"
        rm \"$SRP_ROOT/other\"
        \"$0\" audit t.x || exit 80
        ls -A \"$SRP_ROOT/tmp\"";
    let mut command = Command::new("unshare");
    let mounting = if is_root() { "-m" } else { "-Urm" };
    let arguments = [mounting, "sh", "-c", script, env!("CARGO_BIN_EXE_srp")];
    let run = Run::of(place.surround(command.args(arguments)));
    if run.code == Some(77) || run.stderr.contains("unshare failed") {
        return skipped("an audit on a full disk", "no file system can be mounted here");
    }
    let run = run.succeeded();
    assert!(run.stdout.contains("unknown: big 1\n  can't write "), "{run}");
    assert!(run.stdout.contains("No space left on device"), "{run}");
    assert!(run.stdout.contains("\nfull: 1\nidentical: big 1 ("), "{run}");
    assert!(run.stdout.ends_with("\n1 identical, 0 differing\n"), "an empty tmp/: {run}");
}

#[test]
fn what_was_found_is_not_found_out_twice() {
    let place = Place::new(TWO_OUTPUTS);
    for attr in ["t.x", "t.x.two"] {
        place.realise(attr);
    }
    let audit = |arguments: &[&str], name: &str, status: i32| {
        let run = place.srp(&[&["audit", "--json"], arguments].concat()).exited(status);
        audits(&run)[name].clone()
    };
    let is_remembered = |audit: &Value| audit["remembered"].as_bool().unwrap();
    let some = ["t.x.steady", "--vary", "hostname,user"];
    let first = audit(&some, "steady", 0);
    assert!(!is_remembered(&first), "{first:#}");
    let second = audit(&some, "steady", 0);
    assert!(is_remembered(&second), "{second:#}");
    assert_eq!(
        (&first["rounds"], &first["audited_at"]),
        (&second["rounds"], &second["audited_at"])
    );
    let run = place.srp(&[&["audit"], &some[..]].concat()).succeeded();
    assert!(run.stdout.contains(" comparing; found ") && run.stdout.contains(" ago)"), "{run}");
    // Fewer dimensions were varied, too; more were not, and more rounds there were not.
    assert!(is_remembered(&audit(&["t.x.steady", "--vary", "user"], "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--vary", "user,umask"], "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--rounds", "2"], "steady", 0)));
    assert!(is_remembered(&audit(&some, "steady", 0)));
    assert!(!is_remembered(&audit(&["t.x.steady", "--again"], "steady", 0)));
    // What differs is, too, as long as there is something to look at.
    let differing = audit(&["t.x.two"], "two", 5);
    assert!(!is_remembered(&differing));
    let again = audit(&["t.x.two"], "two", 5);
    assert!(is_remembered(&again));
    assert_eq!(differing["differences"], again["differences"]);
    let kept = Path::new(again["differences"][0]["kept"].as_str().unwrap()).to_owned();
    fs::rename(&kept, kept.with_extension("elsewhere")).unwrap();
    assert!(!is_remembered(&audit(&["t.x.two"], "two", 5)));
    assert!(kept.exists());
    // It may do so because of what isn't to be varied now.
    assert!(!is_remembered(&audit(&["t.x.two", "--vary", "umask"], "two", 0)));
    // What was rebuilt then can be signed now.
    place.srp(&["key", "generate", "builder-1"]).succeeded();
    assert!(!place.store().join("rebuilt").exists());
    assert!(is_remembered(&audit(&["t.x.steady", "--sign"], "steady", 0)));
    assert!(!place::list(&place.store().join("rebuilt")).is_empty());
    // A file that holds nothing of use is no obstacle.
    for path in place::list(&place.store().join("audits")) {
        if path.extension() == Some("json".as_ref()) {
            fs::write(path, "{\"format\": 1").unwrap();
        }
    }
    assert!(!is_remembered(&audit(&some, "steady", 0)));
    assert!(is_remembered(&audit(&some, "steady", 0)));
}

#[test]
fn what_is_not_built_is_said_so() {
    let place = Place::new(TWO_OUTPUTS);
    place.srp(&["audit", "t.x"]).exited(1).says(&["there is no store"]);
    place.realise("t.x.two");
    let run = place.srp(&["audit", "t.x.steady"]).exited(1).says(&["could not be audited"]);
    assert!(run.stdout.contains("unknown: steady 1\n  it is not realised"), "{run}");
    place.realise("t.x");
    let run = place.srp(&["audit", "t.x"]).succeeded().says(&["--closure"]);
    assert!(run.stdout.contains("1 not audited"), "{run}");
    let run = place.srp(&["audit", "--closure", "t.x", "--json"]).exited(5);
    let audits = audits(&run);
    let status = |name: &str| audits[name]["status"].as_str().unwrap();
    assert_eq!(["root", "busybox-static"].map(status), ["not-audited"; 2]);
    assert_eq!(["applets", "steady"].map(status), ["identical"; 2]);
    assert_eq!(status("two"), "differs");
    place.srp(&["audit", "t.x", "--vary", "moon"]).exited(2).says(&["moon", "build-path"]);
}

#[test]
fn a_rebuild_that_fails_is_a_difference_with_a_dimension() {
    let place = Place::new(
        r#"return {"": sh("here", "echo looking around; [ $(pwd | wc -c) = 11 ] || exit 3; echo > $out/usr/f"),
    "both": sh("both", "if [ $(hostname) != srp ] && [ $(id -u) != 1000 ]; then echo both; else echo no; fi > $out/usr/f")}"#,
    );
    place.realise("t.x");
    let run = place.srp(&["audit", "t.x"]).exited(5);
    for part in ["fails when: build-path", "exited with status 3", "| looking around"] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    place.realise("t.x.both");
    let run = place.srp(&["audit", "t.x.both", "--vary", "hostname,umask,user"]).exited(5);
    assert!(run.stdout.contains("differs when: only together: hostname, user, umask"), "{run}");
}

#[test]
fn a_killed_audit_is_swept_by_the_next() {
    let mark = mark();
    let script = format!("if [ $(hostname) != srp ]; then sleep {mark}; fi; echo > $out/usr/f");
    let place =
        Place::new(&format!("return {{\"\": sh(\"slow\", \"{script}\"), \"seed\": applets}}"));
    place.realise("t.x");
    let start = || {
        let mut command = place.command(&["audit", "t.x"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(eventually(|| !processes_with(&format!("sleep\0{mark}")).is_empty()));
        child
    };
    let send = |child: &std::process::Child, signal| {
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    };
    let mut killed = start();
    send(&killed, Signal::SIGKILL);
    killed.wait().unwrap();
    assert!(eventually(|| processes_with(&mark).is_empty()));
    assert!(!place::list(&place.store().join("tmp")).is_empty(), "the test tests nothing");
    place.srp(&["audit", "t.x.seed"]).succeeded();
    place.assert_tidy();

    let interrupted = start();
    send(&interrupted, Signal::SIGINT);
    let run = Run::from(interrupted.wait_with_output().unwrap()).exited(130);
    run.says(&["interrupted; the store is as it was"]);
    place.assert_tidy();
    assert_eq!(place.planned("t.x"), Vec::<String>::new());
}

#[test]
fn a_user_without_privileges_finds_the_same() {
    if !is_root() {
        skipped("an audit as another user", "only root can become one");
        return;
    }
    let names = [
        "year",
        "host",
        "path",
        "uid",
        "umask",
        "terminal",
        "kernel",
        "address",
        "processors",
        "input-order",
    ];
    let fixtures = || IRREPRODUCIBLE.iter().filter(|it| names.contains(&it.name));
    let place = Place::new(&components(fixtures().map(|it| (it.name, it.script))));
    let program = place.give_to(NOBODY);
    let srp = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        place.surround(&mut command).args(arguments);
        Run::of(as_nobody(&mut command))
    };
    let attrs = attributes(fixtures().map(|it| it.name));
    srp(&with(&["realise"], &attrs)).succeeded();
    let audits = audits(&srp(&with(&["audit", "--json"], &attrs)).exited(5));
    for fixture in fixtures() {
        let difference = &audits[fixture.name]["differences"][0];
        let pattern = difference["causes"][0]["pattern"].as_str();
        assert_eq!(texts(&difference["when"]), fixture.when, "{}", fixture.name);
        assert_eq!(pattern, Some(fixture.pattern), "{}", fixture.name);
    }
}
