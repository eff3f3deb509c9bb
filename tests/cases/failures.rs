//! Builds that fail: which one, why, the end of its log, and where the rest is.

use std::fs;

use crate::support::server::Server;
use crate::support::{Place, Run};

/// Realises one script that must fail, for one of its build's own reasons.
fn fails(script: &str, more: &str) -> Run {
    let place = Place::new(&format!("return {{\"\": sh(\"bad\", r\"\"\"{script}\"\"\"{more})}}"));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    assert_eq!(run.stdout, "");
    place.assert_tidy();
    // Nothing of it was kept.
    assert_eq!(place.planned("t.x"), ["bad"]);
    run.says(&["failed: bad: ", "error: 1 derivation failed; what was finished is kept"])
}

#[test]
fn a_builder_that_fails_is_told_with_its_log() {
    let place = Place::new(
        r#"
bad = sh("bad", "for i in $(seq 100); do echo line $i; done; exit 7")
return {"": sh("above", "true", tools = [bad]), "bad": bad}
"#,
    );
    let run = place.srp(&["realise", "t.x"]).exited(3).says(&[
        "failed: bad: its builder exited with status 7",
        "| line 100\n",
        "the whole log: srp log ",
        "1 derivation failed; 1 more were not tried because of that",
    ]);
    assert!(!run.stderr.contains("| line 1\n"), "{run}");
    // The command that is offered works.
    let (_, command) = run.stderr.split_once("the whole log: srp log ").unwrap();
    let words: Vec<_> = command.lines().next().unwrap().split(' ').collect();
    let log = place.srp(&[&["log"], words.as_slice()].concat()).succeeded().stdout;
    assert!(log.starts_with("line 1\nline 2\n") && log.ends_with("line 100\n"), "{log}");
    assert_eq!(place.srp(&["log", "t.x.bad"]).succeeded().stdout, log);
}

#[test]
fn outputs_must_be_what_outputs_can_be() {
    fails("rm -r $out/usr", "").says(&["it wrote nothing to its output out ($out)"]);
    fails("mkfifo $out/usr/pipe", "").says(&["usr/pipe", "which no store object can hold"]);
    fails("mkdir -p $out/srp/x; echo > $out/srp/x/y", "").says(&["holds /srp, which is reserved"]);
    fails("echo > $out/usr/x", ", permissions = {\"/usr/y\": \"4755 root:root\"}").says(&[
        "names",
        "usr/y",
        "which the output does not have",
    ]);
}

#[test]
fn devices_and_special_modes_cannot_even_be_made() {
    fails("mknod $out/usr/null c 1 3", "").says(&["its builder exited with status 1"]);
    fails("echo > $out/usr/x; chmod 4755 $out/usr/x", "")
        .says(&["its builder exited with status 1"]);
}

#[test]
fn paths_of_the_sandbox_must_not_stay() {
    let run = fails("echo built in /srp/build/x > $out/usr/note", "");
    run.says(&["name paths that exist only in the sandbox", "usr/note", "/srp/build"]);
    let run = fails("echo built in /srp/build/x | gzip > $out/usr/note.gz", "");
    run.says(&["name paths that exist only in the sandbox", "usr/note.gz", "/srp/build"]);
}

#[test]
fn a_library_that_nothing_provides_fails_the_build_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo 'int f(void) { return 1; }' > f.c && echo 'int f(void); int g(void) { return f(); }' > g.c \
                  && cc -shared -fPIC -nostdlib -Wl,-soname,libfoo.so.1 f.c -o libfoo.so.1 \
                  && cc -shared -fPIC -nostdlib g.c ./libfoo.so.1 -o libbar.so";
    let mut compile = std::process::Command::new("sh");
    Run::of(compile.args(["-c", script]).current_dir(directory.path())).succeeded();
    let library = Server::of(std::fs::read(directory.path().join("libbar.so")).unwrap());
    let foo = Server::of(std::fs::read(directory.path().join("libfoo.so.1")).unwrap());
    let definitions = |more: &str| {
        format!(
            r#"
bar = fetch(name = "libbar.so", sha256 = "{}", urls = ["{}"])
foo_so = fetch(name = "libfoo.so.1", sha256 = "{}", urls = ["{}"])
foo = sh("foo", "mkdir $out/usr/lib; cp /srp/source/libfoo.so.1/libfoo.so.1 $out/usr/lib", sources = [foo_so])
return {{"": sh("linked", "mkdir $out/usr/lib; cp /srp/source/libbar.so/libbar.so $out/usr/lib", sources = [bar]{more})}}
"#,
            library.sha256(),
            library.url(),
            foo.sha256(),
            foo.url()
        )
    };
    let place = Place::new(&definitions(""));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["linked", "libbar.so needs libfoo.so.1, which nothing in its closure provides"]);
    place.define(&definitions(", tools = [foo]"));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["links the build tools' libfoo.so.1", "foo); declare it in libs"]);
    place.define(&definitions(", ignore_references = {\"libfoo.so.*\": \"a test\"}"));
    place.realise("t.x");
    place.define(&definitions(", libs = [foo]"));
    place.realise("t.x");
    let closure = place.srp(&["closure", "t.x"]).succeeded().stdout;
    assert!(closure.lines().any(|line| line.ends_with("-foo")), "{closure}");
}

#[test]
fn limits_are_named() {
    let run = fails("sleep 60", ", timeout_seconds = 1");
    run.says(&["failed: bad: timed out after 1 s (timeout_seconds = 1)\n"]);
    let run = fails("echo hello; sleep 60", ", silence_seconds = 1");
    run.says(&["failed: bad: printed nothing for 1 s (silence_seconds = 1)\n", "| hello"]);
}

#[test]
fn a_builder_that_cannot_be_started_is_told_by_name() {
    let place = Place::new(
        r##"
def built_by(name, builder, tools = []):
    return derivation(name = name, version = "1", build = TRIPLE, host = TRIPLE, builder = builder, tools = [applets, busybox] + tools)
def program(text, mode):
    return [sh("program", "mkdir $out/usr/libexec; printf '%s' '" + text + "' > $out/usr/libexec/p; chmod " + mode + " $out/usr/libexec/p", ignore_references = {"/usr/bin/perl": "a test"})]
return {
    "absent": built_by("absent", "/usr/bin/gcc"),
    "plain": built_by("plain", "/usr/libexec/p", program("#!/usr/bin/sh", "644")),
    "script": built_by("script", "/usr/libexec/p", program("#! /usr/bin/perl -w", "755")),
    "text": built_by("text", "/usr/libexec/p", program("hello", "755")),
}
"##,
    );
    for (component, text) in [
        ("absent", "failed: absent: no input in tools has its builder /usr/bin/gcc\n"),
        ("plain", "cannot start /usr/libexec/p in the sandbox: it is not executable\n"),
        (
            "script",
            "cannot start /usr/libexec/p in the sandbox: its interpreter /usr/bin/perl is not there\n",
        ),
        ("text", "it is neither a program for this machine nor a script that begins with #!"),
    ] {
        let run = place.srp(&["realise", &format!("t.x.{component}")]).exited(3).says(&[text]);
        assert!(!run.stderr.contains("srp doctor"), "the machine has nothing to do with it\n{run}");
    }
}

#[test]
fn sources_among_the_definitions_may_be_of_any_size() {
    let place = Place::new(
        r#"
on = struct(build = TRIPLE, shell = [applets, busybox])
return {"": written_here(on, "written", "1", "//files", ["empty", "small", "large"])}
"#,
    );
    let main = fs::read_to_string(place.path("derivations/main.star")).unwrap();
    let load = "load(\"//lib/sources.star\", \"written_here\")\n";
    place.write("derivations/main.star", &format!("{load}{main}"));
    place.write("derivations/lib/sources.star", include_str!("../../derivations/lib/sources.star"));
    place.write("derivations/lib/platform.star", "Platform = typing.Any\n");
    place.write(
        "derivations/lib/shell.star",
        r#"def shell(script):
    return {"builder": "/usr/bin/sh", "args": ["-euc", script]}
"#,
    );
    // More than one program can be given: by bytes, and with characters of several.
    let large: String = (0..250_000).map(|number| format!("{number} é\n")).collect();
    let files = [("empty", ""), ("small", "no end"), ("large", large.as_str())];
    for (name, text) in files {
        place.write(&format!("derivations/files/{name}"), text);
    }
    let path = place.realise("t.x");
    for (name, text) in files {
        assert!(fs::read_to_string(path.join(name)).unwrap() == text, "{name}");
    }
}

#[test]
fn keep_going_builds_the_rest() {
    let place = Place::new(
        r#"
bad = sh("bad", "exit 1")
worse = sh("worse", "exit 2")
good = sh("good", "sleep 0.3; echo > $out/usr/good")
above = sh("above", "true", tools = [bad])
return {"": stage(name = "all", build = TRIPLE, host = TRIPLE, tools = [above, worse, good]), "good": good}
"#,
    );
    let run = place.srp(&["realise", "--keep-going", "t.x"]).exited(3);
    assert_eq!(run.built(), ["applets", "good"], "{run}");
    run.says(&["failed: bad", "failed: worse", "2 derivations failed; 2 more were not tried"]);
    assert_eq!(place.planned("t.x.good"), Vec::<String>::new());
}

#[test]
fn a_failure_is_tried_again_and_finished_work_is_not() {
    let place = Place::new(
        r#"
good = sh("good", "echo > $out/usr/good")
return {"": sh("bad", "exit 1", tools = [good])}
"#,
    );
    place.srp(&["realise", "t.x"]).exited(3);
    let run = place.srp(&["realise", "t.x"]).exited(3);
    assert_eq!(run.built(), Vec::<&str>::new(), "{run}");
    run.says(&["its builder exited with status 1"]);
}

#[test]
fn two_things_at_one_path_are_both_named() {
    let place = Place::new(
        r#"
a = sh("a", "echo a > $out/usr/same")
b = sh("b", "echo b > $out/usr/same")
c = sh("c", "true", tools = [a, b])
return {"": stage(name = "both", build = TRIPLE, host = TRIPLE, tools = [a, b]), "c": c, "a": a, "b": b}
"#,
    );
    for attr in ["t.x", "t.x.c"] {
        let run = place.srp(&["realise", attr]).exited(3);
        run.says(&["/usr/same is", "-a and", "-b", "one root can't have both"]);
    }
}
