//! What the documentation promises of the source itself.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::seed::repository;

/// All files of the repository below these directories with one of these endings.
fn files(below: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let root = repository();
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = below.iter().map(|name| root.join(name)).collect();
    while let Some(directory) = directories.pop() {
        if directory.is_file() {
            add(&root, &directory, &mut found);
            continue;
        }
        for entry in fs::read_dir(&directory).unwrap_or_else(|it| panic!("{directory:?}: {it}")) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !path.is_symlink() {
                if !name.starts_with('.') && name != "target" {
                    directories.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                add(&root, &path, &mut found);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn add(root: &Path, path: &Path, found: &mut Vec<(String, String)>) {
    let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let bytes = fs::read(path).unwrap();
    found.push((name, String::from_utf8_lossy(&bytes).into_owned()));
}

const SOURCES: &[&str] = &["src", "store", "eval", "builder", "tests"];

fn rust() -> Vec<(String, String)> {
    files(SOURCES, &[".rs"])
}

/// The crates of the workspace that a manifest names as dependencies, of whatever kind.
fn arrows(manifest: &str) -> Vec<String> {
    let path = repository().join(manifest);
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut found = Vec::new();
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let table = manifest.get(kind).and_then(toml::Value::as_table);
        found.extend(table.into_iter().flat_map(toml::Table::keys).cloned());
    }
    found.retain(|name| name.starts_with("srp"));
    found.sort();
    found.dedup();
    found
}

#[test]
fn crates_know_only_whom_they_may() {
    assert_eq!(arrows("store/Cargo.toml"), Vec::<String>::new());
    assert_eq!(arrows("eval/Cargo.toml"), ["srp-store"]);
    assert_eq!(arrows("builder/Cargo.toml"), ["srp-store"]);
    assert_eq!(arrows("Cargo.toml"), ["srp-builder", "srp-eval", "srp-store"]);
}

#[test]
fn one_file_names_sled_and_bincode() {
    let mut naming = Vec::new();
    for (name, text) in files(&["src", "store/src", "eval/src", "builder/src"], &[".rs"]) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        if code.into_iter().any(|line| line.contains("sled::") || line.contains("bincode::")) {
            naming.push(name);
        }
    }
    assert_eq!(naming, ["store/src/db.rs"]);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let allowed = |text: &str| {
        let code =
            |line: &&str| !line.trim_start().starts_with("//") && !line.contains("unsafe_code");
        text.lines().filter(code).any(|line| {
            // `expect(unsafe_code)` and `allow(unsafe_code)` say where, and are looked at below.
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("]
                .iter()
                .any(|word| line.contains(word))
        })
    };
    // This file has to spell what it looks for.
    let found: Vec<_> = rust()
        .into_iter()
        .filter(|(name, text)| name != "tests/cases/tidy.rs" && allowed(text))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, ["builder/src/sandbox/sys.rs"]);
    let sys = fs::read_to_string(repository().join(&found[0])).unwrap();
    let count = |what: &str| sys.lines().filter(|line| line.contains(what)).count();
    assert!(count("SAFETY:") >= count("unsafe {"), "each block says why it is sound");
    // The module itself, and a derive macro's code, which the lint can't see the origin of.
    let excepted: Vec<_> = rust()
        .into_iter()
        .filter(|(name, text)| {
            let exception =
                text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code");
            name != "tests/cases/tidy.rs" && exception
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        excepted,
        ["builder/src/sandbox/mod.rs", "eval/src/session.rs", "eval/src/value.rs"]
    );
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = rust()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
    let silent: Vec<_> = files(&["derivations"], &[".star"])
        .into_iter()
        .filter(|(_, text)| !text.starts_with("\"\"\""))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn the_library_does_not_unwrap() {
    let mut found = Vec::new();
    for (name, text) in files(&["src", "store/src", "eval/src", "builder/src"], &[".rs"]) {
        if name.contains("/tests/") || name.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        if lines.into_iter().any(|line| line.contains(".unwrap()")) {
            found.push(name);
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Names that would tie the project to one machine, or to a mirror that isn't everybody's.
#[test]
fn nothing_names_a_machine_or_a_mirror() {
    let mut places = SOURCES.to_vec();
    places.extend(["derivations", "docs", "README.md", "Cargo.toml", "deny.toml"]);
    let endings = [".rs", ".star", ".md", ".toml", ".json", ".sh", ".snap"];
    // Put together here, so that this file doesn't name them either.
    let names = [
        ["deb.debian", ".org"],
        ["ftp.debian", ".org"],
        ["security.debian", ".org"],
        ["crates", ".io/api"],
        ["/ho", "me/user"],
        ["\"/ro", "ot/"],
        ["/wo", "rk/main"],
        ["/wo", "rk/shared"],
    ]
    .map(|parts| parts.concat());
    let mut found = Vec::new();
    for (name, text) in files(&places, &endings) {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = names.iter().find(|word| line.contains(word.as_str())) {
                found.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let mut broken = Vec::new();
    for (name, text) in files(&["docs", "README.md"], &[".md"]) {
        let folder = repository().join(&name).parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with('#') || target.is_empty() {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = folder.join(path);
            let heading = |text: &str| {
                text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| {
                    let title = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                    let slug: String = title.chars().filter(kept).collect();
                    slug.replace(' ', "-") == anchor
                })
            };
            let found = path.exists()
                && (anchor.is_empty() || fs::read_to_string(&path).is_ok_and(|it| heading(&it)));
            if !found {
                broken.push(format!("{name}: {target}"));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}
