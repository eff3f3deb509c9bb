//! `srp provenance` leads from an attribute to what was fetched.

use serde_json::Value;

use crate::support::{Place, seed};

const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower")
upper = sh("upper", "cat /usr/lower > $out/usr/upper", tools = [lower])
return {"": upper, "lower": lower}
"#;

#[test]
fn every_hash_down_to_the_seed_is_shown() {
    let place = Place::new(TWO);
    let package = seed::package(std::env::consts::ARCH, "busybox-static");
    let unbuilt = place.srp(&["provenance", "t.x"]).succeeded().stdout;
    let lines: Vec<&str> = unbuilt.lines().collect();
    assert!(lines[0].starts_with("upper 1  ") && lines[0].split("  ").count() == 2, "{unbuilt}");
    let seed = format!("package of the seed, SHA-256 {}", package.sha256);
    assert_eq!(lines.iter().filter(|line| line.ends_with(&seed)).count(), 1, "{unbuilt}");
    assert!(lines.iter().any(|line| line.trim() == "applets 1 (above)"), "{unbuilt}");
    let size = format!("({} bytes)", package.size_bytes);
    let trusted = lines[lines.len() - 2];
    assert!(trusted.starts_with("binary seed, to be trusted: 1 package, "), "{unbuilt}");
    assert!(trusted.ends_with(&size), "{unbuilt}");

    let path = place.realise("t.x");
    let object = path.file_name().unwrap().to_str().unwrap();
    let built = place.srp(&["provenance", "t.x"]).succeeded().stdout;
    assert!(built.lines().next().unwrap().ends_with(object), "{built}");
    let json = place.srp(&["provenance", "--json", "t.x"]).succeeded().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["seed"]["packages"], 1);
    assert_eq!(json["seed"]["size_bytes"], package.size_bytes);
    let names = json["derivations"].as_array().unwrap().iter().map(|it| it["kind"].clone());
    assert_eq!(names.filter(|kind| kind == "seed").count(), 1);
}
