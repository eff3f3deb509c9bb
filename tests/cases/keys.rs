//! Keys: what revoked ones may no more, and files that a crash tore.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::caches::{published_as, push};
use crate::support::host::{give, is_root, skipped};

const COMPONENTS: &str = "return {\"\": sh(\"x\", \"echo x > $out/usr/x\")}";

#[test]
fn a_revoked_key_signs_nothing() {
    let (place, key, cache) = published_as("nova-1", COMPONENTS);
    let cache = cache.to_str().unwrap();
    place.srp(&["key", "revoke", &key]).succeeded();
    for arguments in [
        &["cache", "push", "t.x", "--to", cache][..],
        &["cache", "push", "t.x", "--to", cache, "--key", "nova-1"],
        &["export", "t.x", "-o", "x.srp"],
        &["serve", "--listen", "127.0.0.1:0"],
        &["audit", "t.x", "--sign"],
    ] {
        place.srp(arguments).exited(1).says(&["the key nova-1 (", "is revoked"]);
    }
    assert!(!place.path("x.srp").exists());
    place.srp(&["cache", "push", "t.x", "--to", cache, "--unsigned"]).succeeded();
    let listed = place.srp(&["key", "list"]).succeeded().stdout;
    assert!(listed.contains("it signs nothing"), "{listed}");

    place.srp(&["key", "trust", &key]).exited(1).says(&["is revoked", "--force"]);
    place.srp(&["cache", "push", "t.x", "--to", cache]).exited(1);
    place.srp(&["key", "trust", "--force", &key]).succeeded();
    push(&place, cache);
    place.srp(&["key", "generate", "nova-1"]).exited(1).says(&["there is a key nova-1 already"]);
}

#[test]
fn torn_key_files_hide_no_others() {
    let (place, key, _) = published_as("nova-1", COMPONENTS);
    place.srp(&["key", "trust", &key]).succeeded();
    let keys = place.path("home/.config/srp/keys");
    for (file, text) in [("secret/torn", "srp-secret-key:torn:AA"), ("trusted/torn", "")] {
        fs::write(keys.join(file), text).unwrap();
        fs::set_permissions(keys.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let run = place.srp(&["key", "list"]).succeeded();
    run.says(&["secret/torn holds no secret key", "trusted/torn holds no public key"]);
    // Signing has to be told which: the torn one may be the one that was meant.
    place.srp(&["export", "t.x", "-o", "x.srp", "--key", "nova-1"]).succeeded();
    place.srp(&["export", "t.x", "-o", "y.srp", "--key", "torn"]).exited(1);
    assert_eq!(fs::read_dir(keys.join("trusted")).unwrap().count(), 2, "nothing is left beside");
}

#[test]
fn nothing_is_collected_for_a_name_that_is_not_there() {
    let (place, _, cache) = published_as("nova-1", COMPONENTS);
    let cache = cache.to_str().unwrap();
    let run = place.srp(&["cache", "gc", cache, "--keep", "t.y", "--older-than", "0s"]).exited(1);
    run.says(&["has no root t.y; it has t.x"]);
    place.srp(&["cache", "verify", cache]).succeeded().says(&["files, all as recorded"]);
}

#[test]
fn a_store_that_can_only_be_read_is_published() {
    if !is_root() {
        return skipped("publishing another user's store", "only root can give a store away");
    }
    let (place, _, _) = published_as("nova-1", COMPONENTS);
    give(&place.store(), 65_534);
    push(&place, place.path("another").to_str().unwrap());
}
