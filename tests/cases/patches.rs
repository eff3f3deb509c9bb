//! Patches, by every build style of the project's own definitions, in the seed's shell.

use std::fs;

use crate::support::{Run, project};

/// Definitions with the project's build styles, over the seed's shell, and programs that play CMake and Ninja.
const MAIN: &str = r##"
load("//lib/autotools.star", "autotools_package", "gnu_package")
load("//lib/cmake.star", "cmake_package")
load("//lib/make.star", "make_package")
load("//lib/platform.star", "Platform")
load("//lib/shell.star", "shell")
load("//stages/seed.star", "seed_sets")
load("//targets.star", "machines", all_targets = "targets")

targets = {"x": "x"}

def _written(machine, base, name, script):
    return derivation(
        name = name, version = "1", build = machine.triple, host = machine.triple, tools = base,
        ignore_references = {"*": "a test has no libraries"}, **shell(script)
    )

def _components(target, build):
    machine = machines[build]
    base = [seed_sets(build).base]
    players = _written(machine, base, "players", """
        mkdir -p $out/usr/bin
        cat > $out/usr/bin/cmake <<'END'
#!/bin/sh
while [ "$1" != -S ]; do shift; done
cp $2/greeting .
END
        cat > $out/usr/bin/ninja <<'END'
#!/bin/sh
case "$*" in *install*) mkdir -p $DESTDIR/usr/share; cp greeting $DESTDIR/usr/share/;; esac
END
        chmod +x $out/usr/bin/*
    """)
    on = Platform(
        build = machine.triple,
        target = all_targets["x86_64-musl"],
        shell = base,
        tools = base,
        cmake = [players],
        autotools = [],
        native = [],
        native_cc = "cc",
    )
    source = _written(machine, base, "source", """
        cd $out
        printf '%s\\n' hello world > greeting
        printf '%s\\n' '#!/bin/sh' 'dir=$(dirname $0)' 'cp $dir/Makefile.in Makefile' 'cp $dir/greeting . || true' > configure
        chmod +x configure
        printf '%s\\n' 'all:' 'install:' '@mkdir -p $(DESTDIR)/usr/share' '@cp greeting $(DESTDIR)/usr/share/' |
            tr @ '\\t' > Makefile.in
        cp Makefile.in Makefile
    """)
    fetched = fetch(name = "@NAME@", sha256 = "@SHA256@", urls = ["@URL@"])
    patches = ["//patches/first.patch", fetched]
    # Nothing is newer than it was in the source.
    before = 'test -z "$(find . -name greeting -newer /srp/source/source)"'
    plain = {"name": "p", "version": "1", "source": source, "before": before}
    return {
        "make": make_package(on, patches = patches, **plain),
        "autotools": autotools_package(on, patches = patches, **plain),
        "in-tree": autotools_package(on, patches = patches, in_tree = True, **plain),
        "gnu": gnu_package(on, source, patches = patches, before = before),
        "cmake": cmake_package(on, patches = patches, **plain),
        "wrong-order": make_package(on, patches = [fetched] + patches[:1], **plain),
        "reversed": make_package(on, patches = patches + ["//patches/first-again.patch"], **plain),
    }

stages = {"t": _components}
"##;

const FIRST: &str =
    "--- a/greeting\n+++ b/greeting\n@@ -1,2 +1,2 @@\n-hello\n+good morning\n world\n";
const SECOND: &str =
    "--- a/greeting\n+++ b/greeting\n@@ -1,2 +1,3 @@\n good morning\n-world\n+everybody\n+\n";

#[test]
fn every_build_style_applies_patches_in_order() {
    let server = crate::support::server::Server::of(SECOND.as_bytes().to_vec());
    let main = MAIN
        .replace("@NAME@", "second.patch")
        .replace("@SHA256@", server.sha256())
        .replace("@URL@", &server.url());
    let place = project::place(&main, &["base"]);
    place.write("derivations/patches/first.patch", FIRST);
    place.write("derivations/patches/first-again.patch", FIRST);
    for style in ["make", "autotools", "in-tree", "gnu", "cmake"] {
        let tree = place.realise(&format!("t.x.{style}"));
        let greeting = fs::read_to_string(tree.join("usr/share/greeting")).unwrap();
        assert_eq!(greeting, "good morning\neverybody\n\n", "{style}");
    }
    // Not in that order: the one that doesn't apply is named. Nor is one undone that was applied before.
    for (attr, name) in [("wrong-order", "second.patch"), ("reversed", "first-again.patch")] {
        let run: Run = place.srp(&["realise", &format!("t.x.{attr}")]).exited(3);
        run.says(&[&format!("the patch {name} does not apply to source")]);
    }
}
