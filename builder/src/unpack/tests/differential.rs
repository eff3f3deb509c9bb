//! What GNU tar, bsdtar and Python's tarfile make and unpack without a complaint, srp unpacks to the same
//! tree. The archives and the trees are made by archives.py; here they are compared with srp's.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use sha2::Digest;

use super::*;

/// Trees in which a tool stands against the others, and why srp doesn't follow it.
const APART: &[(&str, &str, &str)] = &[
    ("tar.gnu.label", "python", "it makes a file of a volume's label"),
    ("tar.oldgnu.label", "python", "it makes a file of a volume's label"),
    ("tar.posix.sparse-0.1", "python", "it leaves a long name's GNUSparseFile.<pid> in it"),
];

#[test]
fn trees_are_those_of_the_usual_tools() {
    let top = tempfile::tempdir().expect("a directory");
    let script = top.path().join("archives.py");
    std::fs::write(&script, include_str!("archives.py")).expect("written");
    let made = top.path().join("made");
    let mut python = Command::new("python3");
    let output = match python.arg(&script).arg(&made).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: trees_are_those_of_the_usual_tools needs python3: {error}");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for tool in ["tar", "bsdtar"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("SKIPPED in part: {tool} is not installed, so nothing is compared with it");
        }
    }
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut differences = Vec::new();
    for archive in std::fs::read_dir(made.join("archives")).expect("made") {
        let archive = archive.expect("listed");
        let name = archive.file_name().into_string().expect("UTF-8");
        let dialect: Vec<&str> = name.splitn(3, '.').collect();
        let count = counts.entry(dialect[..2].join(" ")).or_default();
        count.0 += 1;
        let format = if name.contains(".zip.") { Format::Zip } else { Format::Tar };
        let into = tempfile::tempdir().expect("a directory");
        let cancel = CancelToken::new().expect("a descriptor");
        let spec = UnpackSpec::default();
        let result = unpack(&archive.path(), format, &spec, into.path(), &cancel);
        let own = match result {
            Ok(_) => tree_of(into.path()),
            Err(error) => format!("refused: {}", chain(&error)),
        };
        for tool in ["tar", "bsdtar", "python", "unzip"] {
            let tree = made.join("trees").join(format!("{name}.{tool}"));
            // Where there is none the tool had a complaint, or isn't there.
            let Ok(expected) = std::fs::read_to_string(tree) else { continue };
            count.1 += 1;
            let apart = APART.iter().any(|(it, by, _)| *it == name && *by == tool);
            if own != expected && !apart {
                differences.push(format!("{name}, by {tool}:\n{}", difference(&expected, &own)));
            }
        }
    }
    let mut archives = 0;
    for (dialect, (made, compared)) in &counts {
        println!("{dialect}: {made} archives, {compared} trees compared");
        archives += made;
    }
    println!("{archives} archives, {} differences", differences.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(counts.values().all(|(_, compared)| *compared > 0), "{counts:?}");
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The lines that only one of two has.
fn difference(expected: &str, own: &str) -> String {
    if own.starts_with("refused") {
        return format!("  {own}");
    }
    let only = |one: &str, other: &str, sign: &str| {
        let lines = one.lines().filter(|line| !other.lines().any(|it| it == *line));
        lines.map(|line| format!("  {sign}{line}\n")).collect::<String>()
    };
    only(expected, own, "-") + &only(own, expected, "+")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line for each thing below, as archives.py writes them.
fn tree_of(top: &Path) -> String {
    let mut lines = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            let shown = hex(path.strip_prefix(top).expect("below").as_os_str().as_bytes());
            let metadata = path.symlink_metadata().expect("there");
            lines.push(if metadata.is_symlink() {
                let target = std::fs::read_link(&path).expect("a link");
                format!("{shown} link {}\n", hex(target.as_os_str().as_bytes()))
            } else if metadata.is_dir() {
                pending.push(path);
                format!("{shown} directory\n")
            } else {
                let program = metadata.permissions().mode() & 0o111 != 0;
                let kind = if program { "program" } else { "file" };
                let digest = sha2::Sha256::digest(std::fs::read(&path).expect("readable"));
                format!("{shown} {kind} {}\n", hex(&digest))
            });
        }
    }
    lines.sort();
    lines.concat()
}
