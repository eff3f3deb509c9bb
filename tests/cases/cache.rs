//! What one machine has built, another takes from a cache; or not, and says why.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::Place;
use crate::support::caches::{name, published_as, push, user_of};
use crate::support::nginx::Nginx;
use crate::support::place::list;
use crate::support::server::Server;

const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower")
upper = sh("upper", "cat /usr/lower > $out/usr/upper; dd if=/dev/zero of=$out/usr/big bs=1k count=600", tools = [lower], run = [lower])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [upper, applets])
return {"": root, "lower": lower, "upper": upper}
"#;

fn published(name: &str) -> (Place, String, std::path::PathBuf) {
    published_as(name, TWO)
}

fn user(caches: &[&str], keys: &[&str], trust: &str) -> Place {
    user_of(TWO, caches, keys, trust)
}

/// Adds one to the byte in the middle of each pack.
fn tamper(cache: &Path) {
    for pack in list(&cache.join("packs")) {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] = bytes[middle].wrapping_add(1);
        fs::write(&pack, bytes).unwrap();
    }
}

#[test]
fn what_was_pushed_needs_no_build_elsewhere() {
    let (builder, key, cache) = published("builder-1");
    let built = builder.srp(&["realise", "t.x"]).succeeded();
    let user = user(&[cache.to_str().unwrap()], &[&key], "");
    assert_eq!(user.planned("t.x"), ["root"], "only what is asked for, not what it is built from");
    let dry = user.srp(&["realise", "-n", "t.x"]).succeeded();
    dry.says(&["substitute  ", " from file://", "1 to substitute ("]);
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&built), "{run}");
    assert_eq!(run.built(), Vec::<&str>::new());
    run.says(&["substituted root"]);
    user.assert_tidy();
    // Nothing is asked when all is there.
    assert_eq!(user.srp(&["realise", "t.x"]).succeeded().stderr, "");
    // A component that was no root comes by its statement.
    let run = user.srp(&["realise", "--no-build", "t.x.upper"]).succeeded();
    assert!(run.stdout.contains("-upper"), "{run}");
    // Publishing again sends nothing.
    let again = push(&builder, cache.to_str().unwrap());
    assert!(again.stdout.contains("0 packs"), "{again}");
    let at = cache.to_str().unwrap();
    for command in [&["info", at][..], &["list", at], &["verify", at], &["gc", at, "-n"]] {
        builder.srp(&[&["cache"], command].concat()).succeeded();
    }
    assert!(builder.srp(&["cache", "list", at]).stdout.starts_with("t.x  1  "));
}

#[test]
fn no_build_names_what_is_missing_and_no_substitute_asks_nobody() {
    let (_builder, key, cache) = published("builder-1");
    let user = user(&[cache.to_str().unwrap()], &[&key], "");
    let run = user.srp(&["realise", "--no-build", "--no-substitute", "t.x"]).exited(3);
    run.says(&["nothing may be built", "applets"]);
    let run = user.srp(&["realise", "--no-substitute", "t.x.lower"]).succeeded();
    assert_eq!(run.built(), ["applets", "lower"]);
}

#[test]
fn tampering_is_loud_and_the_next_cache_or_a_build_helps() {
    let (builder, key, cache) = published("builder-1");
    let good = builder.path("good");
    push(&builder, good.to_str().unwrap());
    let built = builder.srp(&["realise", "t.x"]).succeeded();
    tamper(&cache);
    builder.srp(&["cache", "verify", cache.to_str().unwrap()]).exited(4);

    let alone = user(&[cache.to_str().unwrap()], &[&key], "");
    let run = alone.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&built));
    assert_eq!(run.built(), ["applets", "lower", "upper"], "{run}");
    run.says(&["error:", "is not what its digest", cache.to_str().unwrap()]);
    alone.assert_tidy();

    let both = user(&[cache.to_str().unwrap(), good.to_str().unwrap()], &[&key], "");
    let run = both.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&built));
    run.says(&["is not what its digest", cache.to_str().unwrap()]);
}

#[test]
fn an_unknown_key_is_nobody_and_a_wrong_signature_is_named() {
    let (builder, key, cache) = published("builder-1");
    let other = Place::new(TWO);
    let stranger = other.srp(&["key", "generate", "stranger"]).succeeded().stdout;
    let at = cache.to_str().unwrap();
    let run = user(&[at], &[stranger.trim_end()], "").srp(&["realise", "t.x.lower"]).succeeded();
    assert_eq!(run.built(), ["applets", "lower"], "{run}");
    let run = user(&[at], &[], "").srp(&["realise", "t.x.lower"]).succeeded();
    run.says(&["no key is trusted"]);
    // The last byte of a signed file's payload is covered by the signature.
    for statements in ["static", "resolved"] {
        for hash in list(&cache.join("realisations").join(statements)) {
            for file in list(&hash) {
                let mut bytes = fs::read(&file).unwrap();
                // Within the signature: 14 bytes of first line, 15 of its kind, 20 of the key.
                bytes[60] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
        }
    }
    let user = user(&[at], &[&key], "");
    let run = user.srp(&["realise", "t.x.lower"]).succeeded();
    assert_eq!(run.built(), ["applets", "lower"], "{run}");
    run.says(&["error:", "builder-1", at]);
    drop(builder);
}

#[test]
fn two_builders_are_needed_where_the_threshold_says_so() {
    let (_one, first, one) = published("builder-1");
    let (_two, second, two) = published("builder-2");
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    let place = user(&[one], &[&first, &second], "threshold = 2");
    let run = place.srp(&["realise", "--no-build", "t.x"]).exited(3);
    run.says(&["only 1 of the 2 different builders needed: builder-1"]);
    let place = user(&[one, two], &[&first, &second], "threshold = 2");
    place.srp(&["realise", "--no-build", "t.x"]).succeeded();
}

#[test]
fn a_cache_that_is_down_or_talks_nonsense_is_one_that_has_nothing() {
    let (_builder, key, cache) = published("builder-1");
    let page = Server::answering("200 OK", "<html>please log in</html>");
    let error = Server::answering("503 Service Unavailable", "later");
    for url in ["http://127.0.0.1:1/", &page.url(), &error.url(), "/nowhere/at/all"] {
        let place = user(&[url], &[&key], "");
        let run = place.srp(&["realise", "t.x.upper"]).succeeded();
        assert_eq!(run.built(), ["applets", "lower", "upper"], "{url}: {run}");
        let warnings = run.stderr.lines().filter(|line| line.contains("warning:")).count();
        assert_eq!(warnings, 1, "{url}: {run}");
        let place = user(&[url, cache.to_str().unwrap()], &[&key], "");
        place.srp(&["realise", "--no-build", "t.x"]).succeeded();
    }
    let place = user(&["gs://bucket/cache"], &[], "");
    place
        .srp(&["realise", "t.x"])
        .exited(1)
        .says(&["config.toml: a cache can't be at \"gs://bucket/cache\""]);
}

#[test]
fn a_half_written_cache_is_built_around() {
    let (_builder, key, cache) = published("builder-1");
    for missing in ["packs", "objects", "closures"] {
        let copy = cache.parent().unwrap().join(format!("without-{missing}"));
        let status = std::process::Command::new("cp").arg("-r").args([&cache, &copy]).status();
        assert!(status.unwrap().success());
        fs::remove_dir_all(copy.join(missing)).unwrap();
        let place = user(&[copy.to_str().unwrap()], &[&key], "");
        let run = place.srp(&["realise", "t.x"]).succeeded();
        assert_eq!(run.built().is_empty(), missing != "packs", "{missing}: {run}");
        place.assert_tidy();
    }
}

#[test]
fn a_web_server_takes_and_gives() {
    let (builder, key, _) = published("builder-1");
    let root = builder.path("www");
    fs::create_dir(&root).unwrap();
    builder.open_to_all();
    let Some(nginx) = Nginx::serving(&root, "a cache behind nginx") else { return };
    let url = nginx.url();
    let run = push(&builder, &url);
    assert!(!run.stdout.contains(" 0 packs"), "{run}");
    assert!(push(&builder, &url).stdout.contains(" 0 packs"));
    for command in ["info", "list", "gc", "verify"] {
        let run = builder.srp(&["cache", command, &url]).exited(1);
        run.says(&["can't be listed", "hint: do that where the cache's files lie"]);
    }
    let listing = Nginx::listing(&root, "a cache behind nginx that lists it");
    let listing = listing.expect("nginx is there");
    let listing_url = listing.url();
    for command in ["list", "verify"] {
        let over_http = builder.srp(&["cache", command, &listing_url]).succeeded();
        let here = builder.srp(&["cache", command, root.to_str().unwrap()]).succeeded();
        assert_eq!(over_http.stdout, here.stdout, "{command}");
    }
    let info = builder.srp(&["cache", "info", &listing_url]).succeeded().stdout;
    assert!(info.contains("roots    1"), "{info}");
    let abandoned = root.join("packs/abandoned");
    fs::write(&abandoned, "x").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(40 * 24 * 60 * 60);
    fs::File::open(&abandoned).unwrap().set_modified(long_ago).unwrap();
    let deleted = builder.srp(&["cache", "gc", &listing_url]).succeeded().stdout;
    assert!(deleted.contains("deleted 1 file ("), "{deleted}");
    assert!(!abandoned.exists());
    builder.srp(&["cache", "verify", root.to_str().unwrap()]).succeeded();
    let built = builder.srp(&["realise", "t.x"]).succeeded();
    let place = user(&[&url], &[&key], "");
    let run = place.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&built));
}

#[test]
fn keys_are_private_and_can_be_revoked() {
    use std::os::unix::fs::PermissionsExt;
    let (builder, key, cache) = published("builder-1");
    let secret = builder.path("home/.config/srp/keys/secret/builder-1");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    builder.srp(&["key", "generate", "builder-1"]).exited(1);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let at = cache.to_str().unwrap();
    builder.srp(&["cache", "push", "t.x", "--to", at]).exited(1).says(&["make it 0600"]);
    let place = user(&[at], &[&key], "");
    place.srp(&["key", "revoke", "builder-1"]).succeeded();
    assert!(place.srp(&["key", "list"]).succeeded().stdout.starts_with("revoked"));
    place.srp(&["realise", "--no-build", "t.x"]).exited(3);
}
