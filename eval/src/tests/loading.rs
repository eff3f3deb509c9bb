//! Files that load each other, and evaluations that would never end.

use super::{Fixture, with_component};
use crate::{Definitions, EvalError};

/// The error of a directory whose `main.star` never gets as far as its exports.
fn failure(files: &[(&str, &str)]) -> EvalError {
    Fixture::new(files).error("s.t")
}

#[test]
fn files_in_a_circle_are_named() {
    let error = failure(&[
        ("main.star", "load(\"//a.star\", \"a\")"),
        ("a.star", "\n\nload(\"//b.star\", \"a\")"),
        ("b.star", "\nload(\"//lib/c.star\", \"a\")"),
        ("lib/c.star", "x = 1\nload(\"//a.star\", \"a\")"),
    ]);
    assert_eq!(
        error.to_string(),
        "//lib/c.star:2:6: files load each other in a circle: //a.star → //b.star → //lib/c.star → //a.star"
    );
    let loads = "loaded by //b.star:2\nloaded by //a.star:3\nloaded by //main.star:1\n";
    assert!(error.rendered().contains("2 | load(\"//a.star\", \"a\")"), "{}", error.rendered());
    assert!(error.rendered().ends_with(loads), "{}", error.rendered());

    let error = failure(&[("main.star", "load(\"//main.star\", \"a\")")]);
    assert!(error.to_string().ends_with("circle: //main.star → //main.star"), "{error}");
}

#[test]
fn a_mistake_in_a_loaded_file_is_named_there_with_the_way_to_it() {
    let error = failure(&[
        ("main.star", "load(\"//a.star\", \"a\")"),
        ("a.star", "def f():\n    return 1 // 0\na = f()"),
    ]);
    assert!(error.to_string().starts_with("//a.star:2:12: "), "{error}");
    let rendered = error.rendered();
    assert!(rendered.contains("2 |     return 1 // 0"), "{rendered}");
    assert!(
        rendered.ends_with("called from //a.star:3:5\nloaded by //main.star:1\n"),
        "{rendered}"
    );

    let error = failure(&[("main.star", "load(\"//a.star\", \"a\")"), ("a.star", "def f(:\n")]);
    assert!(error.to_string().starts_with("//a.star:1:7: Parse error"), "{error}");
    let error = failure(&[("main.star", "load(\"//a.star\", \"b\")"), ("a.star", "a = 1")]);
    assert!(error.to_string().starts_with("//main.star:1:"), "{error}");
    assert!(error.to_string().contains("`b`"), "{error}");
}

#[test]
fn paths_stay_in_the_directory() {
    for (path, message) in [
        ("a.star", "\"a.star\" is not a definition's path"),
        ("/a.star", "is not a definition's path"),
        ("//../a.star", "is not a definition's path"),
        ("//a/../b.star", "is not a definition's path"),
        ("//a//b.star", "is not a definition's path"),
        ("//./a.star", "is not a definition's path"),
        ("//", "is not a definition's path"),
        ("//missing.star", "there is no //missing.star in the definitions"),
        ("//main.star/a.star", "there is no //main.star/a.star in the definitions"),
        ("//out.star", "//out.star leads out of the definitions directory by a symbolic link"),
        (
            "//up/hostname",
            "//up/hostname leads out of the definitions directory by a symbolic link",
        ),
        ("//lib", "//lib is not a plain file"),
    ] {
        let fixture = Fixture::new(&[("lib/b.star", "")]);
        fixture.write("main.star", format!("\nload({path:?}, \"a\")"));
        fixture.link("out.star", "/etc/hostname");
        fixture.link("up", "../../../../../../../etc");
        let error = fixture.error("s.t").to_string();
        assert!(error.starts_with("//main.star:2:6: "), "{error}");
        assert!(error.contains(message), "{path}: {error}");
    }
}

#[test]
fn links_within_the_directory_are_followed() {
    let fixture = with_component("build()");
    fixture.write("old/lib.star", super::LIB);
    std::fs::remove_file(fixture.root().join("lib.star")).expect("it is there");
    fixture.link("lib.star", "old/lib.star");
    assert_eq!(fixture.derivation("s.t").name.as_str(), "zlib");
}

#[test]
fn files_that_are_no_text_or_too_long_are_refused() {
    let fixture = Fixture::new(&[]);
    fixture.write("main.star", b"x = \"\xff\"");
    assert_eq!(fixture.error("s.t").to_string(), "//main.star is not UTF-8");
    fixture.write("main.star", " ".repeat((1 << 20) + 1));
    assert_eq!(fixture.error("s.t").to_string(), "//main.star is larger than 1048576 bytes");
    fixture.write("main.star", format!("\nx = {}1", "-".repeat(500_000)));
    let error = fixture.error("s.t");
    assert_eq!(error.to_string(), "//main.star:2:2003: expressions are nested more than 2000 deep");
    assert!(error.rendered().len() < 1000, "{}", error.rendered());
}

#[test]
fn a_directory_that_is_none_is_refused() {
    let fixture = Fixture::new(&[("file", "")]);
    assert_eq!(fixture.error("s.t").to_string(), "there is no //main.star in the definitions");
    for path in ["missing", "file"] {
        let path = fixture.root().join(path);
        let error = Definitions::open(&path).expect_err("no directory").to_string();
        assert_eq!(error, format!("can't open the definitions directory {}", path.display()));
    }
}

#[test]
fn what_was_loaded_is_not_exported() {
    let error = failure(&[
        ("main.star", "load(\"//a.star\", \"x\")"),
        ("a.star", "load(\"//b.star\", \"x\")"),
        ("b.star", "x = 1"),
    ]);
    assert!(error.to_string().starts_with("//main.star:1:"), "{error}");
    let error = failure(&[("main.star", "load(\"//b.star\", \"_x\")"), ("b.star", "_x = 1")]);
    assert!(error.to_string().contains("private"), "{error}");
}

#[test]
fn a_function_that_calls_itself_ends_with_an_error() {
    let main = "def s(target, build):\n    return s(target, build)\nstages = {'s': s}\ntargets = {'t': 1}\n";
    let error = failure(&[("main.star", main)]);
    assert_eq!(
        error.to_string(),
        "//main.star:2:12: calls are nested more than 200 deep: a function calls itself, directly or through others"
    );
    assert!(error.rendered().contains("called from //main.star:2:12, in s (197 times)\n"));

    let mutual = main.replace(
        "s(target, build)\nstages",
        "r(target, build)\ndef r(t, b):\n    return s(t, b)\nstages",
    );
    let error = failure(&[("main.star", &mutual)]);
    assert!(error.to_string().contains("calls are nested more than 200 deep"), "{error}");
    assert!(error.rendered().contains(" more calls)\n"), "{}", error.rendered());
    assert!(error.rendered().lines().count() < 25, "{}", error.rendered());
}

#[test]
fn a_loop_without_end_ends_with_an_error() {
    let main = "def f():\n    for i in range(1000000):\n        for j in range(1000000):\n            pass\nf()\n";
    let error = failure(&[("main.star", main)]);
    assert_eq!(
        error.to_string(),
        "//main.star:3:9: the evaluation takes more than 20000000 calls and rounds of loops"
    );
    assert!(error.rendered().contains("called from //main.star:5:1\n"), "{}", error.rendered());
}

#[test]
fn memory_without_end_ends_with_an_error() {
    let main = "def s(target, build):\n    all = []\n    for i in range(1000000):\n        all.append(9999 * str(i))\nstages = {'s': s}\ntargets = {'t': 1}\n";
    let error = failure(&[("main.star", main)]);
    assert_eq!(
        error.to_string(),
        "//main.star:3:5: the evaluation takes more than 256 MiB of memory"
    );
}

#[test]
fn memory_of_all_files_together_ends_with_an_error() {
    let fixture = Fixture::new(&[("main.star", "load(\"//0.star\", \"x\")\n")]);
    for number in 0..4 {
        let next = number + 1;
        let text = format!(
            "load(\"//{next}.star\", z = \"x\")\nx = z\ny = [str(i) * 10 for i in range(700000)]\n[i for i in range(2000)]\n"
        );
        fixture.write(&format!("{number}.star"), text);
    }
    fixture.write("4.star", "x = 1\n");
    let error = fixture.error("s.t").to_string();
    assert!(error.ends_with("the evaluation takes more than 256 MiB of memory"), "{error}");
}

#[test]
fn a_file_is_refused_by_its_size_before_room_is_made_for_it() {
    let fixture = Fixture::new(&[("main.star", "read_text(\"//sparse\")\n")]);
    let sparse = std::fs::File::create(fixture.root().join("sparse")).expect("created");
    sparse.set_len(1 << 50).or_else(|_| sparse.set_len(1 << 40)).expect("a hole");
    let error = fixture.error("s.t").to_string();
    assert_eq!(error, "//main.star:1:1: //sparse is larger than 67108864 bytes");
}

#[test]
fn files_are_read_up_to_a_total() {
    let main = "x = [len(read_text(\"//half\")) for i in range(5)]\n";
    let fixture = Fixture::new(&[("main.star", main)]);
    fixture.write("half", "a".repeat(32 << 20));
    let error = fixture.error("s.t").to_string();
    assert_eq!(error, "//main.star:1:10: the evaluation reads more than 128 MiB of files");
}

#[test]
fn printing_ends_at_a_total() {
    let main = "[print(\"x\" * 1000) for i in range(2000)]\n";
    let fixture = Fixture::new(&[("main.star", main)]);
    let error = fixture.error("s.t").to_string();
    assert_eq!(error, "//main.star:1:2: the evaluation prints more than 1048576 bytes");
    assert_eq!(fixture.printed().len(), 1048);
}

#[test]
fn pipes_and_sockets_are_no_definitions() {
    let fixture = Fixture::new(&[]);
    let at = |name: &str| fixture.root().join(name);
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    nix::unistd::mkfifo(&at("fifo"), mode).expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("bound");
    for name in ["fifo", "socket"] {
        fixture.write("main.star", format!("load(\"//{name}\", \"x\")\n"));
        let error = fixture.error("s.t").to_string();
        assert_eq!(error, format!("//main.star:1:6: //{name} is not a plain file"));
    }
}
