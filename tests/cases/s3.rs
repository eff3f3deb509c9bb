//! Caches in buckets.

use std::time::Duration;

use serde_json::Value;

use crate::support::caches::{name, user_of};
use crate::support::moto::Moto;
use crate::support::{Place, Run};

/// A root of several objects; one is of 20 MB that don't compress: more than goes in one request.
const LARGE: &str = r#"
small = sh("small", "echo small > $out/usr/small")
other = sh("other", "echo other > $out/usr/other", tools = [small], run = [small])
large = sh("large", "dd if=/dev/urandom of=$out/usr/large bs=1M count=20", tools = [other], run = [other])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [large, applets])
return {"": root, "small": small}
"#;

const URL: &str = "s3://srp-test/some/prefix";
/// What is in it is old.
const OLD: &str = "s3://srp-test/old";

/// Runs srp with these variables, and makes sure that nothing tells a secret.
fn srp(place: &Place, moto: &Moto, variables: &[(&str, &str)], arguments: &[&str]) -> Run {
    let mut command = place.command(arguments);
    let run = Run::of(command.env("AWS_EC2_METADATA_DISABLED", "true").envs(variables.to_vec()));
    assert!(!format!("{run}").contains(&moto.secret_key), "{run}");
    run
}

/// A place that signs and has the root, and its public key.
fn builder() -> (Place, String) {
    let place = Place::new(LARGE);
    let key = place.srp(&["key", "generate", "builder-1"]).succeeded().stdout;
    place.realise("t.x");
    (place, key.trim_end().to_owned())
}

#[test]
fn a_bucket_takes_and_gives() {
    let Some(moto) = Moto::with_bucket("srp-test", "a cache in a bucket") else { return };
    let environment = moto.environment();
    let environment: Vec<_> = environment.iter().map(|(name, it)| (*name, it.as_str())).collect();
    let (builder, key) = builder();
    let ours = |arguments: &[&str]| srp(&builder, &moto, &environment, arguments);
    let json = |arguments: &[&str]| -> Value {
        let run = ours(&[&["cache"], arguments, &["--json"]].concat()).succeeded();
        serde_json::from_str(&run.stdout).unwrap()
    };
    ours(&["cache", "info", URL]).exited(1).says(&["is not a cache", "srp cache create"]);
    ours(&["cache", "create", URL]).succeeded();
    let push = ["push", "t.x", "--to", URL];
    let pushed = json(&push)["published"][0].clone();
    let objects = pushed["objects"].as_u64().unwrap();
    assert!(objects > 3 && pushed["pack_bytes"].as_u64().unwrap() > 20_000_000, "{pushed}");
    let again = json(&push)["published"][0].clone();
    assert_eq!((again["packs"].as_u64(), again["files"].as_u64()), (Some(0), Some(0)), "{again}");

    let info = json(&["info", URL]);
    assert_eq!(info["objects"].as_u64(), Some(objects), "{info}");
    assert_eq!(info["pack_bytes"], pushed["pack_bytes"], "{info}");
    assert!(ours(&["cache", "list", URL]).succeeded().stdout.starts_with("t.x  1  "));
    ours(&["cache", "verify", URL]).succeeded();
    let collected = json(&["gc", URL]);
    assert_eq!(collected["deleted"].as_array().map(Vec::len), Some(0), "all is young: {collected}");
    assert!(collected["kept"].as_u64().unwrap() > 2 * objects, "{collected}");

    // The other machine has them from the files of a profile.
    let user = user_of(LARGE, &[URL], &[&key], "");
    let (access, secret) = (&moto.access_key, &moto.secret_key);
    user.write(
        "home/.aws/credentials",
        &format!("[caches]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"),
    );
    let config = format!("[profile caches]\nregion = us-east-1\nendpoint_url = {}\n", moto.url());
    user.write("home/.aws/config", &config);
    let theirs = |arguments: &[&str]| srp(&user, &moto, &[("AWS_PROFILE", "caches")], arguments);
    let run = theirs(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&ours(&["realise", "t.x"]).succeeded()));
    run.says(&["substituted root"]);
    user.assert_tidy();

    // What nobody keeps goes from there, and what somebody does stays.
    moto.age(Duration::from_secs(60 * 24 * 60 * 60));
    ours(&["cache", "create", OLD]).succeeded();
    for attr in ["t.x", "t.x.small"] {
        json(&["push", attr, "--to", OLD]);
    }
    moto.age(Duration::ZERO);
    let dry = json(&["gc", OLD, "--keep", "t.x.small", "--dry-run"]);
    let collected = json(&["gc", OLD, "--keep", "t.x.small"]);
    assert_eq!(dry["deleted"], collected["deleted"]);
    assert!(collected["deleted_bytes"].as_u64().unwrap() > 20_000_000, "{collected}");
    let left = json(&["info", OLD]);
    assert_eq!((left["objects"].as_u64(), left["roots"].as_u64()), (Some(1), Some(1)), "{left}");
    ours(&["cache", "verify", OLD]).succeeded();
    let user = user_of(LARGE, &[OLD], &[&key], "");
    srp(&user, &moto, &environment, &["realise", "--no-build", "t.x.small"]).succeeded();
    srp(&user, &moto, &environment, &["realise", "--no-build", "t.x"]).exited(3);

    // What is damaged there is found, and named.
    moto.damage("srp-test", "some/prefix/packs/");
    let run = ours(&["cache", "verify", URL]).exited(4);
    assert!(run.stdout.contains("packs/"), "{run}");
}

#[test]
fn what_is_wrong_with_a_bucket_is_said() {
    let Some(moto) = Moto::with_bucket("srp-test", "errors of buckets") else { return };
    let url = moto.url();
    let (builder, key) = builder();
    let access = ("AWS_ACCESS_KEY_ID", moto.access_key.as_str());
    let secret = ("AWS_SECRET_ACCESS_KEY", moto.secret_key.as_str());
    let wrong = ("AWS_SECRET_ACCESS_KEY", "wr0ngsecret");
    let endpoint = ("AWS_ENDPOINT_URL", url.as_str());
    let nobody = ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1");
    let absent = "s3://srp-nowhere/cache";
    for (at, variables, said) in [
        (URL, &[endpoint, access, wrong][..], &["403 SignatureDoesNotMatch", "s3:GetObject"][..]),
        (URL, &[endpoint, ("AWS_ACCESS_KEY_ID", "AKNOBODY"), secret], &["403 Invalid", &url]),
        (URL, &[endpoint], &["there are no credentials", "AWS_PROFILE"]),
        (URL, &[endpoint, access], &["AWS_SECRET_ACCESS_KEY isn't"]),
        (absent, &[endpoint, access, secret], &["404 NoSuchBucket", "srp makes no buckets"]),
        (URL, &[endpoint, nobody, access, secret], &["http://127.0.0.1:1: connection refused"]),
    ] {
        for command in [&["cache", "push", "t.x", "--to", at][..], &["cache", "list", at]] {
            let run = srp(&builder, &moto, variables, command).exited(1).says(said);
            assert!(!run.stderr.contains("wr0ngsecret"), "{run}");
            run.says(&[at]);
        }
        // To who builds it is a cache that has nothing, with one warning.
        let user = user_of(LARGE, &[at], &[&key], "");
        let run = srp(&user, &moto, variables, &["realise", "t.x.small"]).succeeded();
        assert_eq!(run.built(), ["applets", "small"], "{run}");
        assert_eq!(run.stderr.matches("warning:").count(), 1, "{run}");
        run.says(&[at, said[0]]);
    }
}
