//! Sources: wrong, missing, or from a server that is unwell.

use std::fs;

use crate::support::Place;
use crate::support::server::Server;

fn source(sha256: &str, url: &str) -> String {
    format!("return {{\"\": fetch(name = \"source\", sha256 = \"{sha256}\", urls = [\"{url}\"])}}")
}

#[test]
fn what_is_fetched_becomes_an_object() {
    let server = Server::of(b"hello\n".to_vec());
    let place = Place::new(&source(server.sha256(), &server.url()));
    let run = place.srp(&["realise", "t.x"]).succeeded().says(&["fetched source"]);
    let path = std::path::PathBuf::from(run.stdout.trim_end()).join("source");
    assert_eq!(fs::read_to_string(path).unwrap(), "hello\n");
    // Places are in no hash.
    place.define(&source(server.sha256(), "http://127.0.0.1:1/elsewhere"));
    assert_eq!(place.srp(&["realise", "t.x"]).succeeded().stdout, run.stdout);
}

#[test]
fn a_wrong_hash_names_both_and_keeps_nothing() {
    let server = Server::of(b"not what was meant\n".to_vec());
    let wanted = "ab".repeat(32);
    let place = Place::new(&source(&wanted, &server.url()));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["failed: source: ", &wanted, server.sha256(), "wrong hash"]);
    let sources = place.store().join("sources");
    let left: Vec<_> = fs::read_dir(sources).unwrap().map(|it| it.unwrap().path()).collect();
    assert!(left.iter().all(|path| !path.is_file()), "{left:?}");
    place.assert_tidy();
}

#[test]
fn a_server_that_has_nothing_is_told() {
    let missing = Server::answering("404 Not Found", "<html>no such page</html>");
    let place = Place::new(&source(&"cd".repeat(32), &missing.url()));
    place.srp(&["realise", "t.x"]).exited(3).says(&["HTTP status 404", &missing.url()]);
}

#[test]
fn an_error_page_is_recognised() {
    let page = Server::answering("200 OK", "<!DOCTYPE html><html>Please log in</html>");
    let place = Place::new(&source(&"cd".repeat(32), &page.url()));
    place.srp(&["realise", "t.x"]).exited(3).says(&["HTML", &page.url()]);
}

#[test]
fn a_server_that_is_down_is_told() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::new(&source(&"cd".repeat(32), &format!("http://127.0.0.1:{port}/x")));
    place.srp(&["realise", "t.x"]).exited(3).says(&["connection refused"]);
}

#[test]
fn the_next_place_is_tried() {
    let missing = Server::answering("404 Not Found", "");
    let good = Server::of(b"found\n".to_vec());
    let urls = format!("{}\", \"{}", missing.url(), good.url());
    let place = Place::new(&source(good.sha256(), &urls));
    place.realise("t.x");
}

#[test]
fn a_mirror_that_stalls_gives_way_to_the_next() {
    let slow = Server::crawling();
    let good = Server::of(b"found\n".to_vec());
    let urls = |urls: &[String]| source(good.sha256(), &urls.join("\", \""));
    let place = Place::new(&urls(&[slow.url(), good.url()]));
    let run = place.srp(&["realise", "t.x"]).succeeded();
    run.says(&[
        "source came from elsewhere, because ",
        &slow.url(),
        "too slow: fewer than 1024 bytes",
    ]);
    // Where there is no other, that is the error.
    let place = Place::new(&urls(&[slow.url()]));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["failed: source: ", &slow.url(), "too slow: fewer than 1024 bytes a second"]);
    place.assert_tidy();
}

#[test]
fn unknown_mirrors_are_named() {
    let place = Place::new(&source(&"cd".repeat(32), "mirror://nowhere/x"));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["no mirror named \"nowhere\" is configured"]);
}

#[test]
fn sources_can_be_carried_to_a_machine_without_a_network() {
    let server = Server::of(b"carried\n".to_vec());
    let online = Place::new(&source(server.sha256(), &server.url()));
    let mirror = online.path("mirror");
    let run = online.srp(&["source", "mirror", mirror.to_str().unwrap(), "t.x"]).succeeded();
    assert_eq!(run.stdout, format!("{}\n", mirror.display()));
    // The same definitions, and no server that has it.
    let offline = Place::new(&source(server.sha256(), "http://127.0.0.1:1/gone"));
    let config = format!("sources = ['{}']\n", mirror.display());
    offline.write("home/.config/srp/config.toml", &config);
    let path = offline.realise("t.x").join("source");
    assert_eq!(fs::read_to_string(path).unwrap(), "carried\n");
}

#[test]
fn a_build_has_no_network() {
    let server = Server::of(b"secret\n".to_vec());
    let url = server.url();
    let place = Place::new(&format!(
        "return {{\"\": sh(\"curious\", \"! wget -T 3 -O - {url} && ! ping -c 1 -W 1 127.0.0.1 && echo > $out/usr/x\")}}"
    ));
    place.realise("t.x");
    let log = place.srp(&["log", "t.x"]).succeeded().stdout;
    assert!(!log.contains("secret"), "{log}");
}
