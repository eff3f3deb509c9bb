//! `srp audit --attest` writes what anybody can verify who knows in-toto, DSSE and ed25519; and
//! `srp key verify` does.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::Value;

use crate::support::host::skipped;
use crate::support::place::list;
use crate::support::{Place, seed};

const COMPONENTS: &str = r#"
same = sh("same", "echo 1 > $out/usr/f; mkdir $out/usr/f.d; echo 2 > $out/usr/f.d/g; ln -s f $out/usr/link")
host = sh("host", "hostname > $out/usr/f")
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [same])
return {"": root, "same": same, "host": host}
"#;

/// What DSSE says is signed; written down from its specification, not by srp's code.
fn pae(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"DSSEv1 ".to_vec();
    bytes.extend(payload_type.len().to_string().bytes());
    bytes.push(b' ');
    bytes.extend(payload_type.bytes());
    bytes.push(b' ');
    bytes.extend(body.len().to_string().bytes());
    bytes.push(b' ');
    bytes.extend(body);
    bytes
}

/// A place with a key, where these were realised; the public key.
fn machine(attrs: &[&str]) -> (Place, String) {
    let place = Place::new(COMPONENTS);
    let key = place.srp(&["key", "generate", "builder-1"]).succeeded().stdout;
    for attr in attrs {
        place.realise(attr);
    }
    (place, key.trim_end().to_owned())
}

/// The statements in a file, each verified with the key by what is not srp.
fn verified(path: &Path, key: &str) -> Vec<Value> {
    let raw = STANDARD.decode(key.split_once(':').unwrap().1).unwrap();
    let public = VerifyingKey::from_bytes(raw.as_slice().try_into().unwrap()).unwrap();
    let text = fs::read_to_string(path).unwrap();
    let verify = |line: &str| {
        let envelope: Value = serde_json::from_str(line).unwrap();
        assert_eq!(envelope["payloadType"], "application/vnd.in-toto+json");
        let body = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
        let signature = envelope["signatures"][0]["sig"].as_str().unwrap();
        let signature = STANDARD.decode(signature).unwrap();
        let signed = pae("application/vnd.in-toto+json", &body);
        let by_crate = Signature::from_slice(&signature).unwrap();
        public.verify_strict(&signed, &by_crate).unwrap();
        verify_with_openssl(path.parent().unwrap(), &raw, &signed, &signature);
        let statement: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        statement
    };
    text.lines().map(verify).collect()
}

fn verify_with_openssl(at: &Path, key: &[u8], signed: &[u8], signature: &[u8]) {
    // A public key as RFC 8410 has it: what comes before the 32 bytes is always the same.
    let begin = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let files = [("key.der", [&begin, key].concat()), ("signed", signed.to_vec())];
    let scratch = tempfile::tempdir_in(at).unwrap();
    let write = |(name, bytes): (&str, Vec<u8>)| fs::write(scratch.path().join(name), bytes);
    files.into_iter().chain([("signature", signature.to_vec())]).try_for_each(write).unwrap();
    let verify = |input: &str| {
        let mut command = Command::new("openssl");
        command.args(["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der"]);
        command.args(["-rawin", "-in", input, "-sigfile", "signature"]);
        command.current_dir(scratch.path()).output()
    };
    let Ok(output) = verify("signed") else {
        return skipped("verifying an attestation with openssl", "there is no openssl");
    };
    assert!(output.status.success(), "{output:?}");
    // It would notice.
    assert!(!verify("key.der").unwrap().status.success());
}

/// What in-toto's documentation says to run in a directory.
fn directory_hash(at: &Path) -> String {
    let script = "find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(at).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_is_attested_can_be_verified_without_srp() {
    let (place, key) = machine(&["t.x", "t.x.host"]);
    let to = place.path("attestations");
    let audit = |attr: &str, code: i32| {
        let to = to.to_str().unwrap();
        let arguments = ["audit", attr, "--vary", "hostname,user", "--attest", to, "--closure"];
        place.srp(&arguments).exited(code)
    };
    audit("t.x", 0);
    // The stage is not audited, and neither is what was fetched.
    let files = list(&to);
    let names: Vec<&str> =
        files.iter().map(|it| it.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("applets-") && names[1].starts_with("same-"), "{names:?}");
    assert!(names.iter().all(|name| name.ends_with(".intoto.jsonl")), "{names:?}");

    let statements = verified(&files[1], &key);
    let kinds: Vec<&str> =
        statements.iter().map(|it| it["predicateType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["https://slsa.dev/provenance/v1", "urn:srp:audit:v1"]);
    let shown = place.show("t.x.same");
    let object = place.realise("t.x.same");
    for statement in &statements {
        let subject = &statement["subject"][0];
        assert_eq!(subject["name"], object.file_name().unwrap().to_str().unwrap());
        assert_eq!(subject["annotations"]["output"], "out");
        let tree = place.show(object.to_str().unwrap())["tree"].clone();
        assert_eq!(subject["digest"]["srpTree1"], tree);
        assert_eq!(subject["digest"]["dirHash"], directory_hash(&object));
        assert_eq!(statement["subject"].as_array().unwrap().len(), 1);
    }
    let build = &statements[0]["predicate"]["buildDefinition"];
    assert_eq!(build["buildType"], "urn:srp:build:v1");
    assert_eq!(build["externalParameters"]["derivation"], shown["derivation"]);
    assert_eq!(build["internalParameters"]["runner"], "native");
    assert_eq!(build["internalParameters"]["machine"], std::env::consts::ARCH);
    let dependencies = build["resolvedDependencies"].as_array().unwrap();
    assert_eq!(dependencies.len(), 2);
    assert!(dependencies[0]["name"].as_str().unwrap().ends_with("-applets"));
    let package = seed::package(std::env::consts::ARCH, "busybox-static");
    assert_eq!(dependencies[1]["annotations"]["fetchedSha256"], package.sha256.as_str());
    let builder = statements[0]["predicate"]["runDetails"]["builder"]["id"].as_str().unwrap();
    let listed = place.srp(&["key", "list"]).succeeded().stdout;
    assert!(listed.contains(builder.strip_prefix("urn:srp:key:").unwrap()), "{listed}");
    let audited = &statements[1]["predicate"];
    assert_eq!(audited["verdict"], "identical");
    assert_eq!(audited["rounds"].as_array().unwrap().len(), 1);
    assert_eq!(audited["dimensions"].as_array().unwrap().len(), 2);

    // The same again is attested by the same bytes; what differs is attested as that.
    let before = fs::read(&files[1]).unwrap();
    audit("t.x.same", 0);
    assert_eq!(fs::read(&files[1]).unwrap(), before);
    audit("t.x.host", 5);
    let host = list(&to).into_iter().find(|it| it.to_str().unwrap().contains("/host-")).unwrap();
    let statements = verified(&host, &key);
    assert_eq!(statements.len(), 1, "who doesn't get the same hasn't built it");
    let audited = &statements[0]["predicate"];
    assert_eq!(audited["verdict"], "differs");
    assert_eq!(audited["differences"][0]["when"][0], "hostname");
    assert_eq!(audited["differences"][0]["paths"][0]["path"], "/usr/f");
    assert_eq!(audited["differences"][0]["causes"][0], "host-name");
}

#[test]
fn an_attestation_is_believed_if_a_trusted_key_signed_exactly_that() {
    let (place, key) = machine(&["t.x.same"]);
    let to = place.path("attestations");
    let arguments = ["audit", "t.x.same", "--vary", "user", "--attest", to.to_str().unwrap()];
    place.srp(&arguments).succeeded();
    let file = list(&to).remove(0);
    let path = file.to_str().unwrap();

    let reader = Place::new(COMPONENTS);
    let verify = |more: &[&str]| reader.srp(&[&["key", "verify", path], more].concat());
    verify(&[]).exited(1).says(&["nobody who is trusted signed it", "srp key trust"]);
    verify(&["--key", &key]).succeeded();
    reader.srp(&["key", "trust", &key]).succeeded();
    let run = verify(&[]).succeeded();
    for part in [
        ": signed by builder-1: https://slsa.dev/provenance/v1\n  ",
        ": signed by builder-1: urn:srp:audit:v1: identical\n  ",
        "-same  tree ",
    ] {
        assert!(run.stdout.contains(part), "{part:?} is missing:\n{run}");
    }
    let answer: Value = serde_json::from_str(&verify(&["--json"]).succeeded().stdout).unwrap();
    assert_eq!(answer[0]["by"][0], key.as_str());
    assert_eq!(answer[1]["statement"]["predicate"]["verdict"], "identical");

    // A verdict that was turned round, signed by what was signed before.
    let text = fs::read_to_string(&file).unwrap();
    let envelope: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    let payload = envelope["payload"].as_str().unwrap();
    let body = String::from_utf8(STANDARD.decode(payload).unwrap()).unwrap();
    assert!(body.contains("\"identical\""), "{body}");
    let turned = STANDARD.encode(body.replace("\"identical\"", "\"IDENTICAL\""));
    let tampered = text.replace(payload, &turned);
    assert_ne!(tampered, text);
    fs::write(&file, &tampered).unwrap();
    verify(&[]).exited(4).says(&["attestation 2", "the signature by builder-1 ("]);
    // Lines that are something else are passed over, but not all of them.
    fs::write(&file, format!("{{\"other\": 1}}\n{text}")).unwrap();
    verify(&[]).succeeded().says(&["1 line of ", " is something else"]);
    // One that is an attestation and broken is not something else.
    fs::write(&file, text.replacen("\"payload\":\"", "\"payload\":\"!", 1)).unwrap();
    verify(&[]).exited(4).says(&["line 1 is a broken attestation"]);
    fs::write(&file, "{\"other\": 1}\n").unwrap();
    verify(&[]).exited(1).says(&["has no attestation in it"]);
    fs::write(&file, &text).unwrap();
    reader.srp(&["key", "revoke", "builder-1"]).succeeded();
    verify(&[]).exited(1);
    verify(&["--key", &key]).exited(1);
}
