//! The project's own recipes: that all evaluate, and what its build styles do for sources without `configure`.

use serde_json::Value;

use crate::support::{Place, project, seed};

/// What stage `extra` has for every target that there is a seed for; all but Tcl's tests are run.
const EXTRA: [&str; 13] = [
    "curl",
    "dbus",
    "expat",
    "expect",
    "jq",
    "libarchive",
    "libffi",
    "oniguruma",
    "openssl",
    "pcre2",
    "sqlite",
    "tcl",
    "util-linux",
];

fn definitions(place: &Place, arguments: &[&str]) -> String {
    let mut command = place.command(arguments);
    command.env("SRP_DEFINITIONS", seed::repository().join("derivations"));
    crate::support::Run::of(&mut command).succeeded().stdout
}

#[test]
fn every_package_evaluates_for_every_target_and_has_tests() {
    let place = Place::new("return {}");
    for target in ["x86_64-musl", "aarch64-musl", "riscv64-musl"] {
        let listed = definitions(&place, &["list", &format!("extra.{target}")]);
        let names: Vec<_> =
            listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        for package in EXTRA {
            assert!(names.contains(&&*format!("extra.{target}.{package}")), "{package}: {listed}");
            // The tests run in a seed of the target's architecture, of which there are two.
            let tests = names.contains(&&*format!("extra.{target}.{package}.tests"));
            assert_eq!(tests, package != "tcl" && target != "riscv64-musl", "{target} {package}");
        }
    }
}

#[test]
fn what_regenerates_has_the_autotools_and_looks_into_the_sysroot() {
    let place = Place::new("return {}");
    let shown = |attr: &str| -> Value {
        serde_json::from_str(&definitions(&place, &["show", attr])).unwrap()
    };
    let tools = |shown: &Value| -> Vec<String> {
        let inputs = shown["inputs"].as_array().unwrap().iter();
        let tools = inputs.filter(|input| input["role"] == "tools");
        tools.map(|input| input["name"].as_str().unwrap().to_owned()).collect()
    };
    let jq = shown("extra.aarch64-musl.jq");
    assert!(tools(&jq).contains(&"seed-autotools".to_owned()), "{jq}");
    assert_eq!(jq["environment"]["PKG_CONFIG_SYSROOT_DIR"], "/srp/sysroot");
    assert_eq!(jq["environment"]["ACLOCAL_PATH"], "/srp/sysroot/usr/share/aclocal");
    let script = jq["arguments"][3].as_str().unwrap();
    let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("no {text} in {script}"));
    assert!(at("autoreconf -fi") < at("./configure --build"), "{script}");

    // A release that ships its configure script needs none of it.
    let pcre2 = shown("extra.aarch64-musl.pcre2");
    assert!(!tools(&pcre2).contains(&"seed-autotools".to_owned()), "{pcre2}");
    assert!(pcre2["environment"].get("ACLOCAL_PATH").is_none(), "{pcre2}");

    // Its tests run where the target's programs do: in the seed of the target's own architecture.
    let tests = shown("extra.aarch64-musl.jq.tests");
    assert_eq!(tests["build"], "aarch64-unknown-linux-gnu");
    assert_eq!(tests["host"], "aarch64-unknown-linux-musl");
}

/// A package of one data file, without a configure script: with `autogen.sh` or without.
const WITHOUT_CONFIGURE: &str = r##"
load("//lib/autotools.star", "autotools_package")
load("//lib/platform.star", "Platform")
load("//lib/shell.star", "shell")
load("//stages/seed.star", "seed_sets")
load("//targets.star", "machines", all_targets = "targets")

targets = {"x": "x"}

def _components(target, build):
    machine = machines[build]
    seed = seed_sets(build)
    source = derivation(
        name = "greeting", version = "1", build = machine.triple, host = machine.triple, tools = [seed.base],
        **shell("""
            cd $out
            printf '%s\\n' 'AC_INIT([greeting], [1.5])' 'AM_INIT_AUTOMAKE([foreign])' 'GREETING' \\
                'AC_CONFIG_FILES([Makefile greeting])' 'AC_OUTPUT' > configure.ac
            printf '%s\\n' 'ACLOCAL_AMFLAGS = -I m4' 'nodist_pkgdata_DATA = greeting' > Makefile.am
            printf '%s\\n' 'hello @WORLD@ @PACKAGE_VERSION@' > greeting.in
            mkdir m4
            printf '%s\\n' 'AC_DEFUN([GREETING], [AC_SUBST([WORLD], [world])])' > m4/greeting.m4
        """)
    )
    on = Platform(
        build = machine.triple,
        target = all_targets["x86_64-musl"],
        shell = [seed.base],
        tools = [seed.base],
        cmake = [],
        autotools = [seed.autotools],
        native = [],
        native_cc = "cc",
    )
    plain = {"name": "p", "version": "1", "source": source}
    return {
        "regenerated": autotools_package(on, regenerate = True, **plain),
        "in-tree": autotools_package(on, regenerate = True, in_tree = True, **plain),
        "own": autotools_package(
            on,
            before = "echo 'exec autoreconf --install' > greeting-source/autogen.sh",
            regenerate = "sh ./autogen.sh",
            **plain
        ),
        "plain": autotools_package(on, **plain),
    }

stages = {"t": _components}
"##;

#[test]
fn a_source_without_configure_is_regenerated() {
    let place = project::place(WITHOUT_CONFIGURE, &["base", "autotools"]);
    for way in ["regenerated", "in-tree", "own"] {
        let tree = place.realise(&format!("t.x.{way}"));
        let greeting = std::fs::read_to_string(tree.join("usr/share/greeting/greeting")).unwrap();
        assert_eq!(greeting, "hello world 1.5\n", "{way}");
    }
    place.srp(&["realise", "t.x.plain"]).exited(3).says(&["/srp/source/greeting/configure"]);
}
