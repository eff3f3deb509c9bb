//! Stage manifests by forgery.

use std::fs;
use std::process::Command;

use crate::harness::{Test, tests};
use crate::support::Place;
use crate::support::server::Server;

pub(crate) const TESTS: &[Test] =
    tests![an_archive_forges_no_stage, a_directory_forges_no_stage, a_build_forges_no_stage];

/// A manifest that would compose the store's busybox.
fn manifest(place: &Place, name: &str) -> String {
    let busybox = place.realise("t.x.busybox");
    format!(
        "srp stage 1\nname {name}\nbuild x86_64-linux-gnu\nhost x86_64-linux-gnu\nroot {}\n\
         tools {}\n",
        "00".repeat(32),
        busybox.file_name().unwrap().to_str().unwrap()
    )
}

/// A place with a tree that holds the manifest of a stage called `forged`.
fn forged() -> Place {
    let place = Place::new("return {\"busybox\": busybox}");
    place.write("forged/srp/stage/forged", &manifest(&place, "forged"));
    place
}

fn an_archive_forges_no_stage() {
    let place = forged();
    let archive = place.path("forged.tar");
    let tar = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(place.path("forged"))
        .arg("srp")
        .status()
        .unwrap();
    assert!(tar.success());
    let server = Server::of(fs::read(&archive).unwrap());
    place.define(&format!(
        "return {{\"\": fetch(name = \"forged\", sha256 = \"{}\", unpack = \"tar\", strip = 0, \
         urls = [\"{}\"])}}",
        server.sha256(),
        server.url()
    ));
    place.srp(&["realise", "t.x"]).exited(3).says(&["is no stage", "does not refer to"]);
    place.srp(&["realise", "t.x", "--rootfs", "rootfs"]).exited(3);
    assert!(!place.path("rootfs").exists());
    place.assert_tidy();
}

fn a_directory_forges_no_stage() {
    let place = forged();
    place.srp(&["add", "forged"]).exited(1).says(&["is no stage", "does not refer to"]);
    place.write("other/srp/anything", "x");
    place.srp(&["add", "other"]).exited(1).says(&["holds something at /srp"]);
}

fn a_build_forges_no_stage() {
    let place = forged();
    let text = fs::read_to_string(place.path("forged/srp/stage/forged")).unwrap();
    let text = text.replace('\n', "\\\\n");
    let script = format!("mkdir -p $out/srp/stage; printf '{text}' > $out/srp/stage/forged");
    place.define(&format!(
        "return {{\"busybox\": busybox, \"\": sh(\"forged\", \"{script}\", run = [busybox])}}"
    ));
    place.srp(&["realise", "t.x"]).exited(3).says(&["/srp"]);
}
