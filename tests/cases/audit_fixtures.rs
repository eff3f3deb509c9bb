//! `srp audit` finds each way of being irreproducible, says when and why, and accuses nothing else.

use std::process::Command;
use std::time::Duration;

use super::audit::{audits, texts};
use crate::support::host::{NOBODY, as_nobody, is_root, skipped};
use crate::support::{Place, Run, place};

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

impl Fixture {
    fn when_by_second(&self) -> bool {
        ["date", "member-time", "bytecode-time"].contains(&self.pattern)
    }
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
    fixture("statistics", "grep -c '^cpu[0-9]' /proc/stat", &["processors"], "processors"),
    fixture("jobs", "echo $SRP_CORES", &["processors"], "processors"),
    fixture("make-jobs", "echo ${GNUMAKEFLAGS%% *}", &["processors"], "processors"),
    fixture("environment", "env | wc -l", &["environment"], "environment"),
    fixture("terminal", "test -t 3 && echo colour || echo plain", &["terminal"], "terminal"),
    fixture("kernel", "uname -r", &["kernel"], "kernel"),
    fixture("kernel-version", "cat /proc/version", &["kernel"], "kernel"),
    fixture("boot", "cat /proc/sys/kernel/random/boot_id", &["kernel"], "kernel"),
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
    ("limits", "ulimit -a"),
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
        let mut when: Vec<_> = differences.iter().flat_map(|it| texts(&it["when"])).collect();
        // What differs by the second is the clock's doing if all rebuilds fall into one.
        if fixture.when.is_empty() && fixture.when_by_second() {
            when.retain(|it| *it != "clock");
        }
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

/// What comes out in one of two ways by chance differs under some dimensions, and not under others.
#[test]
fn chance_accuses_no_dimension() {
    const COIN: &str = "echo $(($(od -An -tu1 -N1 /dev/urandom) % 2))";
    let names: Vec<String> = (0..6).map(|number| format!("coin{number}")).collect();
    let place = Place::new(&components(names.iter().map(|name| (name.as_str(), COIN))));
    let attrs = attributes(names.iter().map(String::as_str));
    place.srp(&with(&["realise"], &attrs)).succeeded();
    // All six come out the same in eight rounds each about once in 2 to the power of 48.
    let run = place.srp(&with(&["audit", "--json", "--rounds", "8"], &attrs)).exited(5);
    for (name, audit) in audits(&run) {
        for difference in audit["differences"].as_array().unwrap() {
            assert_eq!(texts(&difference["when"]), [""; 0], "{name}: {audit:#}");
            assert_eq!(difference["causes"][0]["pattern"], "random", "{name}: {audit:#}");
        }
    }
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
