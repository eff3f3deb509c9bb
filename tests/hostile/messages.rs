//! Foreign bytes that want to control the terminal, or to forge lines of srp.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use crate::harness::{Test, tests};
use crate::support::{Place, Run};

pub(crate) const TESTS: &[Test] = tests![
    a_builder_steers_no_terminal,
    a_definition_forges_no_line,
    a_file_name_forges_no_line,
    a_path_forges_no_line,
    a_log_on_a_terminal_keeps_its_colours_only,
];

/// Moves the cursor, changes the title, the colours and the character set, reverses text, goes back
/// in the line and to the next one, in every way that there is.
const HOSTILE: &str = "a\u{1b}[2J\u{1b}[31m\u{1b}]0;title\u{7}\u{1b}Pq\u{1b}\\\u{9b}2J\u{85}\
    \u{202e}gnp.exe\u{2066}\u{200b}\u{e}\u{8}\u{7f}\rerror: forged by CR\nerror: forged by LF\n\
    hint: forged\u{2028}";

/// Fails unless nothing but text is there, and none of the lines at the margin is forged.
fn assert_clean(text: &str) {
    for char in text.chars().filter(|char| !matches!(char, '\n' | '\t')) {
        let moves = matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}');
        assert!(!char.is_control() && !moves, "{char:?} in {text:?}");
    }
    for line in text.lines() {
        assert!(!line.starts_with("error: forged") && !line.starts_with("hint: forged"), "{text}");
        assert!(line.chars().count() < 4_200, "a line of {}", line.len());
    }
}

fn printed(run: Run) -> Run {
    assert_clean(&run.stderr);
    run
}

/// What a shell's printf makes [`HOSTILE`] of.
fn octal() -> String {
    HOSTILE.bytes().map(|byte| format!("\\\\{byte:03o}")).collect()
}

fn failing() -> Place {
    let script = format!("printf '{}'; printf '%05000d' 1; echo; echo end; exit 1", octal());
    Place::new(&format!("return {{\"\": sh(\"hostile\", \"{script}\")}}"))
}

fn a_builder_steers_no_terminal() {
    let place = failing();
    for arguments in [
        &["realise", "t.x"][..],
        &["realise", "-v", "t.x"],
        &["realise", "--progress", "live", "t.x"],
    ] {
        let run = place.srp(arguments).exited(3);
        // A live display moves the cursor itself, and its own sequences are known.
        let own = ["\u{1b}[1A", "\u{1b}[2K", "\u{1b}[?25l", "\u{1b}[?25h", "\r"];
        let text = match arguments.contains(&"live") {
            true => own.iter().fold(run.stderr.clone(), |text, own| text.replace(own, "")),
            false => run.stderr.clone(),
        };
        assert_clean(&text);
        assert!(text.contains("gnp.exe") && text.contains("end"), "{run}");
    }
}

fn a_definition_forges_no_line() {
    let place = Place::new("return {}");
    let text: String = HOSTILE.chars().map(|char| format!("\\U{:08x}", u32::from(char))).collect();
    place.define(&format!("fail(\"{text}\")"));
    printed(place.srp(&["realise", "t.x"]).exited(1)).says(&["gnp.exe"]);
    place.define(&format!("print(\"{text}\")\nreturn {{}}"));
    printed(place.srp(&["realise", "t.x"])).says(&["gnp.exe"]);
    place.define(&format!("return {{\"{text}\": busybox}}"));
    printed(place.srp(&["realise", "t.x.y"]).exited(1));
    printed(place.srp(&["list"]));
    place.define(&format!("return {{\"\": sh(\"a\", \"\", version = \"{text}\")}}"));
    assert_clean(&printed(place.srp(&["list"])).stdout);
    assert_clean(&printed(place.srp(&["provenance", "t.x"])).stdout);
    printed(place.srp(&["realise", "-n", "t.x"]));
    place.define(&format!("return {{\"\": sh(\"{text}\", \"\")}}"));
    printed(place.srp(&["realise", "t.x"]).exited(1));
    place.define(&format!(
        "return {{\"\": fetch(name = \"a\", sha256 = \"{}\", urls = [\"http://127.0.0.1:1/{text}\"])}}",
        "ab".repeat(32)
    ));
    printed(place.srp(&["realise", "t.x"]));
}

fn a_file_name_forges_no_line() {
    let place = Place::new("return {}");
    let directory = place.path("tree");
    fs::create_dir(&directory).unwrap();
    let name = format!("{}x", HOSTILE.replace('/', "-"));
    for name in [name.clone().into_bytes(), [name.as_bytes(), b"\xff\x9b2J"].concat()] {
        let path = directory.join(std::ffi::OsString::from_vec(name));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        printed(place.srp(&["add", "tree"]).exited(1)).says(&["gnp.exe"]);
        fs::remove_file(path).unwrap();
    }
}

fn a_path_forges_no_line() {
    let place = Place::new("return {}");
    for arguments in [
        &["add", HOSTILE][..],
        &["cache", "info", HOSTILE],
        &["import", HOSTILE],
        &["key", "trust", HOSTILE],
        &["show", HOSTILE],
        &["root", "list", "--store", HOSTILE],
        &["realise", "--definitions", HOSTILE, "t.x"],
    ] {
        let run = place.srp(arguments);
        assert_ne!(run.code, Some(0), "{run}");
        printed(run);
    }
}

fn a_log_on_a_terminal_keeps_its_colours_only() {
    let place = failing();
    place.srp(&["realise", "t.x"]).exited(3);
    // A file gets the log's own bytes.
    let raw = place.srp(&["log", "t.x"]).succeeded().stdout;
    assert!(raw.contains(HOSTILE), "{raw:?}");
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = place.command(&["log", "t.x"]);
    command.stdout(Stdio::from(terminal.slave)).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // It holds the slave, too: a terminal ends with the last of them.
    drop(command);
    let mut shown = Vec::new();
    // That the other end is closed is an error here.
    let _ = fs::File::from(terminal.master).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    let shown = String::from_utf8(shown).unwrap().replace("\r\n", "\n");
    assert!(shown.contains("\u{1b}[31m") && shown.contains("\u{1b}[0m"), "{shown:?}");
    let rest = shown.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
    assert!(rest.contains("gnp.exe"), "{rest:?}");
    for char in rest.chars().filter(|char| !matches!(char, '\n' | '\t')) {
        assert!(!char.is_control() && char != '\u{202e}', "{char:?} in {rest:?}");
    }
}
