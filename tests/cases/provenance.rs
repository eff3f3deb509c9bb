//! What something was made from: as a tree, as JSON, and as bills of materials.

use std::fs;
use std::process::Command;

use serde_json::Value;
use sha2::Digest as _;

use crate::support::Place;
use crate::support::python;

/// A tool that is built, a source that is fetched, and what is made of them with the seed.
const MADE: &str = r#"
source = fetch(name = "text", version = "1+2", sha256 = "@SHA256@", urls = ["mirror://texts/text"])
tool = sh("tool", "echo t > $out/usr/tool")
made = sh("made", "cat /srp/source/text/text /usr/tool > $out/usr/made", tools = [tool], sources = [source])
return {"": stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [made]), "made": made, "source": source}
"#;

fn place() -> Place {
    let place = Place::new("return {}");
    let text = "source text\n";
    place.write("texts/text", text);
    let config = "home/.config/srp/config.toml";
    let mirror = format!("[mirrors]\ntexts = 'file://{}'\n", place.path("texts").display());
    place.write(config, &(fs::read_to_string(place.path(config)).unwrap() + &mirror));
    let digest = sha2::Sha256::digest(text);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    place.define(&MADE.replace("@SHA256@", &digest));
    place
}

fn json(place: &Place, arguments: &[&str]) -> Value {
    serde_json::from_str(&place.srp(arguments).succeeded().stdout).unwrap()
}

#[test]
fn provenance_leads_from_the_result_to_the_seed() {
    let place = place();
    let text = place.srp(&["provenance", "t.x"]).succeeded().stdout;
    let tree: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert!(tree[0].starts_with("stage root"), "{text}");
    assert!(tree[1].starts_with("  build made 1"), "{text}");
    let seed = tree.iter().filter(|line| line.trim().starts_with("seed busybox-static")).count();
    assert!(seed >= 2, "it is named wherever it is an input: {text}");
    let sources = tree.iter().filter(|line| line.trim().starts_with("source text 1+2")).count();
    assert_eq!(sources, 1, "{text}");
    let again = tree.iter().filter(|line| line.ends_with("(see above)")).count();
    assert!(again >= 1, "{text}");
    assert!(text.contains("t.x is made by 3 builds"), "{text}");
    assert!(text.contains("from 1 source; as fetched: unknown"), "{text}");
    assert!(text.contains("trusting 1 package of the seed"), "{text}");

    place.srp(&["realise", "t.x"]).succeeded();
    let text = place.srp(&["provenance", "t.x", "--summary"]).succeeded().stdout;
    assert!(text.contains("from 1 source; as fetched: 12 B; unpacked: 12 B"), "{text}");
    let all = json(&place, &["provenance", "t.x", "--json"]);
    assert_eq!(all["seed"]["packages"], 1);
    assert_eq!(all["sources"]["unpacked_bytes"], 12);
    let derivations = all["derivations"].as_array().unwrap();
    let made = derivations.iter().find(|it| it["name"] == "made").unwrap();
    assert_eq!(made["derivation"], place.show("t.x.made")["derivation"]);
    assert_eq!(made["inputs"].as_array().unwrap().len(), 4);
    let object = place.realise("t.x.made");
    assert_eq!(made["objects"]["out"], object.file_name().unwrap().to_str().unwrap());
    // What is itself asked for is no binary.
    let source = json(&place, &["provenance", "t.x.source", "--json"]);
    assert_eq!(
        (&source["seed"]["packages"], &source["sources"]["packages"]),
        (&0.into(), &1.into())
    );
}

#[test]
fn bills_of_materials_are_what_their_formats_demand() {
    let place = place();
    let spdx = json(&place, &["sbom", "t.x"]);
    let names = |list: &Value| -> Vec<String> {
        let names = list.as_array().unwrap().iter();
        names.map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    let expected = ["root", "applets", "made", "tool", "text", "busybox-static"];
    assert_eq!(names(&spdx["packages"]), expected);
    let relations: Vec<&str> = spdx["relationships"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["relationshipType"].as_str().unwrap())
        .collect();
    for wanted in ["DESCRIBES", "CONTAINS", "GENERATED_FROM", "BUILD_TOOL_OF"] {
        assert!(relations.contains(&wanted), "{relations:?}");
    }
    let cyclonedx = json(&place, &["sbom", "t.x", "--format", "cyclonedx"]);
    assert_eq!(names(&cyclonedx["components"]), expected[1..]);
    let text = cyclonedx["components"].as_array().unwrap().iter().find(|it| it["name"] == "text");
    let url = text.unwrap()["purl"].as_str().unwrap();
    assert!(url.starts_with("pkg:generic/text@1%2B2?checksum=sha256:"), "{url}");
    // The same, whether or not it is realised.
    place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(json(&place, &["sbom", "t.x"]), spdx);

    let what = "bills of materials by their formats' own validators";
    let Some(validators) = python::programs(what) else { return };
    let written = |name: &str, value: &Value| {
        place.write(name, &value.to_string());
        place.path(name)
    };
    let spdx = written("root.spdx.json", &spdx);
    let run = Command::new(validators.join("pyspdxtools")).arg("-i").arg(spdx).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let cyclonedx = written("root.cdx.json", &cyclonedx);
    let script = "import sys; from cyclonedx.schema import SchemaVersion; \
                  from cyclonedx.validation.json import JsonStrictValidator as V; \
                  sys.exit(repr(V(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()) or ''))";
    let mut python = Command::new(validators.join("python3"));
    let run = python.args(["-c", script]).arg(cyclonedx).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(said.trim(), "''", "what the validator says");
}
