//! Tests of the scanner on real programs: those of the machine that runs the tests, and some
//! that its C compiler makes. A machine without `cc` fails them; nothing is skipped.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn scanned(tree: &OpenTree) -> Result<Vec<Finding>, ScanError> {
    Crew::begin(&[tree], &[], |crew| scan(crew, tree, &never()))?
}

/// Objects are directories; the earlier one wins.
struct Directories(Vec<PathBuf>);

impl Root for Directories {
    fn entry(&self, path: &str) -> Option<Entry> {
        self.0.iter().enumerate().find_map(|(provider, top)| {
            let path = top.join(path);
            let metadata = path.symlink_metadata().ok()?;
            Some(if metadata.is_dir() {
                Entry::Directory
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).unwrap().to_str().unwrap().to_owned();
                Entry::Symlink { provider, target }
            } else {
                let executable = metadata.mode() & 0o111 != 0;
                Entry::File { provider, path, executable }
            })
        })
    }

    fn name(&self, provider: usize) -> String {
        self.0[provider].file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A directory with one subdirectory per object.
struct World(TempDir);

impl World {
    fn new() -> World {
        World(TempDir::new().unwrap())
    }

    fn object(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn tree(&self, name: &str) -> OpenTree {
        OpenTree::open(&self.object(name)).unwrap()
    }

    fn root(&self, names: &[&str]) -> Directories {
        Directories(names.iter().map(|name| self.object(name)).collect())
    }

    /// Writes a file (executable when its text starts with `#!`).
    fn file(&self, object: &str, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.object(object).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        if bytes.as_ref().starts_with(b"#!") {
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    fn link(&self, object: &str, path: &str, target: &str) {
        let path = self.object(object).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Compiles `source` into an object; `@name` in an argument is that object's directory.
    fn cc(&self, object: &str, path: &str, source: &str, arguments: &[&str]) {
        let out = self.object(object).join(path);
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let input = self.0.path().join("input.c");
        fs::write(&input, source).unwrap();
        let here = format!("{}/", self.0.path().display());
        let status = Command::new("cc")
            .args(["-o"])
            .args([&out, &input])
            .args(arguments.iter().map(|argument| argument.replace('@', &here)))
            .status()
            .expect("the tests need a C compiler called cc");
        assert!(status.success());
    }

    /// `libNAME.so.1` in `directory` of an object, with the link that `-lNAME` wants.
    fn library(&self, object: &str, directory: &str, name: &str) {
        let (soname, path) = (format!("lib{name}.so.1"), format!("{directory}/lib{name}.so.1"));
        let source = format!("int {name}(void) {{ return 1; }}");
        self.cc(object, &path, &source, &["-shared", "-fPIC", &format!("-Wl,-soname,{soname}")]);
        self.link(object, &format!("{directory}/lib{name}.so"), &soname);
    }

    fn resolve(
        &self,
        findings: &[Finding],
        libs: &[&str],
        tools: &[&str],
    ) -> Result<Vec<(Finding, Provider)>, Vec<String>> {
        let ignore = [("libc.so.6", "the host's"), ("*/ld-linux*", "the host's")];
        let ignore: BTreeMap<String, String> =
            ignore.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into();
        let (own, libs, tools) = (self.root(&["own"]), self.root(libs), self.root(tools));
        resolve(findings, &own, &libs, &tools, everywhere(&ignore))
            .map_err(|unresolved| unresolved.iter().map(Unresolved::to_string).collect())
    }

    fn check(&self, libs: &[&str], tools: &[&str], expected: Result<&[(&str, Provider)], &[&str]>) {
        let findings = scanned(&self.tree("own")).unwrap();
        let resolved = self.resolve(&findings, libs, tools);
        let resolved = resolved.as_ref().map_err(Vec::as_slice).map(|resolved| {
            resolved
                .iter()
                .map(|(finding, provider)| (finding.need.name(), *provider))
                .collect::<Vec<_>>()
        });
        match (resolved, expected) {
            (Ok(resolved), Ok(expected)) => assert_eq!(resolved, expected),
            (Err(errors), Err(expected)) => assert_eq!(errors, expected),
            (resolved, expected) => panic!("{resolved:?} instead of {expected:?}"),
        }
    }
}

fn never() -> CancelToken {
    CancelToken::new().expect("a descriptor")
}

static NO_FILES: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();

fn everywhere(names: &BTreeMap<String, String>) -> Ignored<'_> {
    Ignored { everywhere: names, in_files: &NO_FILES }
}

const USES_Z: &str = "int z(void); int main(void) { return z(); }";

#[test]
fn programs_of_this_machine_resolve_against_this_machine() {
    let world = World::new();
    for program in ["ls", "env", "sh"] {
        let path = Path::new("/usr/bin").join(program);
        world.file("own", &format!("usr/bin/{program}"), fs::read(path).unwrap());
    }
    let findings = scanned(&world.tree("own")).unwrap();
    let interpreters = findings.iter().filter(|f| matches!(f.need, Need::Interpreter { .. }));
    assert_eq!(interpreters.count(), 3, "{findings:#?}");

    let (own, host) = (world.root(&["own"]), Directories(vec![PathBuf::from("/")]));
    let nothing = Directories(Vec::new());
    let resolved = resolve(&findings, &own, &host, &nothing, everywhere(&BTreeMap::new())).unwrap();
    assert!(resolved.iter().all(|(_, provider)| *provider == Provider::Lib(0)));

    let errors =
        resolve(&findings, &own, &nothing, &host, everywhere(&BTreeMap::new())).unwrap_err();
    assert!(errors.iter().all(|error| matches!(error.cause, Cause::OnlyInTools { .. })));
}

#[test]
fn a_library_comes_from_libs_and_not_from_tools() {
    let world = World::new();
    world.library("zlib", "usr/lib", "z");
    world.cc("own", "usr/bin/foo", USES_Z, &["-L@zlib/usr/lib", "-lz"]);
    world.check(&["zlib"], &[], Ok(&[("libz.so.1", Provider::Lib(0))]));
    world.check(&["own", "zlib"], &[], Ok(&[("libz.so.1", Provider::Lib(1))]));
    world.check(
        &[],
        &["zlib"],
        Err(&["usr/bin/foo links the build tools' libz.so.1 (from zlib); declare it in libs"]),
    );
    world.check(
        &[],
        &[],
        Err(&["usr/bin/foo needs libz.so.1, which nothing in its closure provides"]),
    );
}

#[test]
fn run_paths_are_searched_first_and_origin_is_the_file() {
    let world = World::new();
    world.library("own", "usr/lib/private", "z");
    let origin = ["-L@own/usr/lib/private", "-lz", "-Wl,-rpath,$ORIGIN/../lib/private"];
    world.cc("own", "usr/bin/foo", USES_Z, &origin);
    world.library("zlib", "usr/lib", "z");
    world.check(&["zlib"], &[], Ok(&[("libz.so.1", Provider::Own(0))]));

    // The old tag counts just as well, and without either the private library isn't found.
    let old = [&origin[..], &["-Wl,--disable-new-dtags"]].concat();
    world.cc("own", "usr/bin/foo", USES_Z, &old);
    world.check(&["zlib"], &[], Ok(&[("libz.so.1", Provider::Own(0))]));
    world.cc("own", "usr/bin/foo", USES_Z, &origin[..2]);
    world.check(&["zlib"], &[], Ok(&[("libz.so.1", Provider::Lib(0))]));
}

#[test]
fn private_libraries_that_a_program_loads_find_each_other() {
    let world = World::new();
    world.library("own", "usr/lib/private", "z");
    let uses_z = "int z(void); int y(void) { return z(); }";
    let private = ["-L@own/usr/lib/private", "-lz"];
    let library = [&private[..], &["-shared", "-fPIC", "-Wl,-soname,liby.so.1"]].concat();
    world.cc("own", "usr/lib/private/liby.so.1", uses_z, &library);
    world.check(
        &[],
        &[],
        Err(&["usr/lib/private/liby.so.1 needs libz.so.1, which nothing in its closure provides"]),
    );
    let program = [&private[..], &["-Wl,-rpath,/usr/lib/private"]].concat();
    world.cc("own", "usr/bin/foo", USES_Z, &program);
    let once = ("libz.so.1", Provider::Own(0));
    world.check(&[], &[], Ok(&[once, once]));
}

#[test]
fn a_soname_with_a_slash_is_a_path() {
    let world = World::new();
    let named = ["-shared", "-fPIC", "-Wl,-soname,/usr/lib/private/libz.so"];
    world.cc("zlib", "usr/lib/private/libz.so", "int z(void) { return 1; }", &named);
    world.cc("own", "usr/bin/foo", USES_Z, &["-L@zlib/usr/lib/private", "-lz"]);
    world.check(&["zlib"], &[], Ok(&[("/usr/lib/private/libz.so", Provider::Lib(0))]));
}

#[test]
fn a_library_for_another_machine_is_passed_over() {
    let world = World::new();
    world.library("zlib", "usr/lib", "z");
    world.cc("own", "usr/bin/foo", USES_Z, &["-L@zlib/usr/lib", "-lz"]);
    let mut foreign = fs::read(world.object("zlib").join("usr/lib/libz.so.1")).unwrap();
    foreign[18..20].copy_from_slice(&243_u16.to_le_bytes());
    world.file("foreign", "usr/lib/libz.so.1", foreign);
    world.file("script", "usr/lib64/libz.so.1", "/* GNU ld script */");
    let here = ElfIdent::parse(&fs::read(world.object("own").join("usr/bin/foo")).unwrap());
    let text = "usr/bin/foo needs libz.so.1 for X, but usr/lib/libz.so.1 is for riscv64";
    let text = text.replace('X', &here.unwrap().to_string());
    // The same path, so that the foreign one hides the right one.
    world.check(&["script", "foreign", "zlib"], &[], Err(&[&text]));
    world.library("elsewhere", "usr/local/lib", "z");
    world.check(&["foreign", "elsewhere"], &[], Ok(&[("libz.so.1", Provider::Lib(1))]));
}

#[test]
fn musl_has_its_own_directories() {
    let world = World::new();
    let libc = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libc.so"];
    world.cc("musl", "usr/lib/libc.so", "int puts(const char *s) { return 0; }", &libc);
    world.link("musl", "usr/lib/ld-musl-x86_64.so.1", "libc.so");
    let here = ElfIdent::parse(&fs::read(world.object("musl").join("usr/lib/libc.so")).unwrap());
    let name = here.unwrap().musl_names()[0];
    world.library("zlib", "opt/z", "z");
    let interpreter = "-Wl,--dynamic-linker,/lib/ld-musl-x86_64.so.1";
    let libraries =
        ["-nostdlib", "-Wl,-e,main", "-L@musl/usr/lib", "-lc", "-L@zlib/opt/z", "-lz", interpreter];
    let source = "int z(void); int puts(const char *); int main(void) { return puts(\"\") + z(); }";
    world.cc("own", "usr/bin/foo", source, &libraries);
    world.check(
        &["musl", "zlib"],
        &[],
        Err(&["usr/bin/foo needs libz.so.1, which nothing in its closure provides"]),
    );
    world.file("zlib", &format!("etc/ld-musl-{name}.path"), "/opt/z\n/usr/lib\n");
    world.check(
        &["musl", "zlib"],
        &[],
        Ok(&[
            ("libc.so", Provider::Lib(0)),
            ("libz.so.1", Provider::Lib(1)),
            ("/lib/ld-musl-x86_64.so.1", Provider::Lib(0)),
        ]),
    );
}

#[test]
fn what_is_not_loaded_needs_nothing() {
    let world = World::new();
    world.library("zlib", "usr/lib", "z");
    world.cc("own", "usr/lib/foo.o", "int z(void); int f(void) { return z(); }", &["-c"]);
    world.cc("own", "usr/bin/static", "int main(void) { return 0; }", &["-static-pie"]);
    world.cc("temporary", "foo", USES_Z, &["-g", "-L@zlib/usr/lib", "-lz"]);
    let foo = world.object("temporary").join("foo");
    let debug = world.object("own").join("usr/lib/debug");
    fs::create_dir_all(&debug).unwrap();
    let mut split = Command::new("objcopy");
    split.arg("--only-keep-debug").arg(&foo).arg(debug.join("foo.debug"));
    assert!(split.status().expect("objcopy comes with the compiler").success());
    let mut truncated = fs::read(&foo).unwrap();
    truncated.truncate(300);
    world.file("own", "usr/share/truncated", &truncated);
    assert_eq!(scanned(&world.tree("own")).unwrap(), []);
}

#[test]
fn scripts_follow_links_and_count_each_provider() {
    let world = World::new();
    world.file("own", "usr/bin/foo", "#!/bin/awk -f\n");
    world.file("own", "usr/bin/bar", "#!/usr/bin/env -S sed -n\n");
    world.file("own", "usr/share/not-executable", "plain\n");
    world.link("links", "usr/bin/awk", "mawk");
    world.link("links", "usr/bin/env", "../lib/box");
    world.file("mawk", "usr/bin/mawk", "#!/bin/mawk");
    world.file("box", "usr/lib/box", "#!/bin/box");
    world.file("box", "usr/bin/sed", "not executable");
    world.check(
        &["links", "mawk", "box"],
        &[],
        Err(&["usr/bin/bar needs sed for an executable, but usr/bin/sed is none"]),
    );
    world.file("box", "usr/bin/sed", "#!/bin/box");
    world.check(
        &["links", "mawk", "box"],
        &[],
        Ok(&[
            ("/usr/bin/env", Provider::Lib(0)),
            ("/usr/bin/env", Provider::Lib(2)),
            ("sed", Provider::Lib(2)),
            ("/bin/awk", Provider::Lib(0)),
            ("/bin/awk", Provider::Lib(1)),
        ]),
    );
    world.check(
        &["links", "mawk"],
        &["box"],
        Err(&[
            "usr/bin/bar runs the build tools' /usr/bin/env (from box); declare it in libs",
            "usr/bin/bar runs the build tools' sed (from box); declare it in libs",
        ]),
    );
}

#[test]
fn links_that_go_round_end() {
    let world = World::new();
    world.file("own", "usr/bin/foo", "#!/usr/bin/a\n");
    world.link("loop", "usr/bin/a", "b");
    world.link("loop", "usr/bin/b", "../../usr/bin/a");
    let text = "usr/bin/foo needs /usr/bin/a, which nothing in its closure provides";
    world.check(&["loop"], &[], Err(&[text]));
    fs::remove_file(world.object("loop").join("usr/bin/a")).unwrap();
    world.link("loop", "usr/bin/a", "/../../lib/./x//y");
    world.file("loop", "usr/lib/x/y", "#!x");
    world.check(&["loop"], &[], Ok(&[("/usr/bin/a", Provider::Lib(0))]));
}

#[test]
fn pkg_config_modules_are_needed_to_build() {
    let world = World::new();
    world.file("own", "usr/lib/pkgconfig/foo.pc", "Requires: bar >= 1\nRequires.private: z\n");
    world.file("own", "usr/share/pkgconfig/bar.pc", "Name: bar\n");
    world.file("own", "usr/share/doc/foo/example.pc", "Requires: nothing\n");
    world.file("zlib", "usr/lib/aarch64-linux-gnu/pkgconfig/z.pc", "Name: z\n");
    let findings = scanned(&world.tree("own")).unwrap();
    assert!(findings.iter().all(|finding| finding.kind == Kind::Develop));
    world.check(&["zlib"], &[], Ok(&[("bar", Provider::Own(0)), ("z", Provider::Lib(0))]));
    world.check(
        &[],
        &["zlib"],
        Err(&[
            "usr/lib/pkgconfig/foo.pc requires the build tools' z (from zlib); declare it in libs",
        ]),
    );
}

#[test]
fn ignored_needs_may_use_patterns() {
    let world = World::new();
    world.file("own", "usr/bin/foo", "#!/usr/bin/python3.13\n");
    let findings = scanned(&world.tree("own")).unwrap();
    let nothing = Directories(Vec::new());
    for (pattern, ignored) in [
        ("/usr/bin/python3.13", true),
        ("/usr/bin/python*", true),
        ("*python*", true),
        ("*", true),
        ("/usr/*/python3*13", true),
        ("python*", false),
        ("*python", false),
        ("/usr/bin/python3.13*3", false),
    ] {
        let ignore = BTreeMap::from([(pattern.to_owned(), "a test".to_owned())]);
        let resolved = resolve(&findings, &nothing, &nothing, &nothing, everywhere(&ignore));
        assert_eq!(resolved.is_ok(), ignored, "{pattern}");
    }
}

/// A small program with a build id, a run path and compressed debugging sections.
fn program() -> &'static [u8] {
    static PROGRAM: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let world = World::new();
        let arguments = ["-g", "-gz", "-Wl,-rpath,$ORIGIN/../lib"];
        world.cc("own", "foo", "int main(void) { return 0; }", &arguments);
        fs::read(world.object("own").join("foo")).unwrap()
    });
    &PROGRAM
}

#[test]
fn the_program_of_the_property_tests_has_what_they_break() {
    let (sections, _) = elf::compressed_sections(io::Cursor::new(program()));
    assert!(!sections.is_empty());
    let needs = elf::read(io::Cursor::new(program())).unwrap().needs("usr/bin");
    let Some(Need::Library { search, .. }) = needs.first() else { panic!("{needs:?}") };
    assert_eq!(search, &["/usr/bin/../lib"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn broken_elf_files_never_panic(
        headers in proptest::collection::vec((0usize..1024, any::<u8>()), 0..8),
        anywhere in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..64),
        tables in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = program().to_vec();
        for (at, byte) in headers {
            bytes[at] = byte;
        }
        for (at, byte) in anywhere {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for (at, word) in tables {
            let at = at.index(bytes.len() / 8 - 1) * 8;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.splice(..bytes.len().min(4), *b"\x7fELF");
        let _ = elf::read(io::Cursor::new(&bytes)).map(|elf| elf.needs("usr/bin"));
        let _ = elf::compressed_sections(io::Cursor::new(&bytes));
    }

    #[test]
    fn foreign_text_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let line = [b"#!/usr/bin/env -S", bytes.as_slice()].concat();
        let _ = script::needs(&line);
        let _ = script::needs(&bytes);
        let _ = pkg_config::needs(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn foreign_pkg_config_never_panics(text in "([a-z]{1,2}|[=:$]|[{]|[}]|[\\\\#\n ,<>!]){0,60}") {
        let _ = pkg_config::needs(&format!("a=x\nRequires: {text}\nb={text}"));
    }
}

#[test]
fn needs_are_ignored_in_one_file_only() {
    let world = World::new();
    world.file("own", "usr/bin/foo", "#!/usr/bin/python3\n");
    world.file("own", "usr/share/test/foreign", "#!/usr/bin/python3\n");
    let findings = scanned(&world.tree("own")).unwrap();
    let nothing = Directories(Vec::new());
    let everywhere = BTreeMap::new();
    let unresolved = |file: &str, need: &str| {
        let there = BTreeMap::from([(need.to_owned(), "a test".to_owned())]);
        let in_files = BTreeMap::from([(file.to_owned(), there)]);
        let ignored = Ignored { everywhere: &everywhere, in_files: &in_files };
        let errors = resolve(&findings, &nothing, &nothing, &nothing, ignored).unwrap_err();
        errors.into_iter().map(|error| error.file).collect::<Vec<_>>()
    };
    for (file, need) in [
        ("usr/share/test/foreign", "/usr/bin/python3"),
        ("usr/share/*", "*python3"),
        ("*foreign", "*"),
    ] {
        assert_eq!(unresolved(file, need), ["usr/bin/foo"], "{file} {need}");
    }
    assert_eq!(unresolved("usr/share/test", "*").len(), 2);
    assert_eq!(unresolved("usr/share/test/foreign", "perl").len(), 2);
}

#[test]
fn scripts_that_configure_say_what_can_be_done() {
    let world = World::new();
    world.file("own", "usr/bin/curl-config", "#!/bin/sh\n");
    world.file("own", "usr/bin/run", "#!/bin/sh\n");
    let findings = scanned(&world.tree("own")).unwrap();
    let nothing = Directories(Vec::new());
    let none = BTreeMap::new();
    let errors = resolve(&findings, &nothing, &nothing, &nothing, everywhere(&none)).unwrap_err();
    let hints = hints(&errors);
    assert_eq!(hints.len(), 1, "{hints:?}");
    assert!(
        hints[0].contains(r#"{"usr/bin/curl-config": {"/bin/sh": "run in builds"}}"#),
        "{hints:?}"
    );
    assert!(super::hints(&errors[1..]).is_empty());
}
