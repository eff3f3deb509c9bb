//! `srp audit --vary runner`: the same build by an emulator of the same architecture.

use std::fs;
use std::path::Path;

use super::audit::{audits, texts};
use crate::support::host::skipped;
use crate::support::{Place, place, seed};

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
    let said = "unknown: same 1\n  nothing of what was to be varied can be\n";
    assert!(
        run.stdout.contains(&format!("{said}  not applicable: runner, because {reason}")),
        "{run}"
    );
    let run = place.srp(&["audit", "t.x", "--vary", "runner,umask"]).succeeded();
    assert!(run.stdout.contains("identical: same 1 (1 round, 1 dimension,"), "{run}");
    assert!(run.stdout.contains(&format!("not applicable: runner, because {reason}")), "{run}");
    // Once they have one, that is no longer what is found.
    define_runner(&place, true);
    place.realise("t.x.emulator");
    let run = place.srp(&["audit", "t.x", "--vary", "runner,umask"]).succeeded();
    assert!(!run.stdout.contains("no runner"), "{run}");
}
