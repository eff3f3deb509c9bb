//! Sources: wrong, missing, or from a server that is unwell.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::host::{NOBODY, as_nobody, is_root, skipped};
use crate::support::server::Server;
use crate::support::{Place, Run};

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
    let message = format!(
        "wrong hash for source\n  expected {wanted}\n  got      {}\n  from {}",
        server.sha256(),
        server.url()
    );
    let said = run.stderr.replace("\n      ", "\n  ");
    assert!(said.contains(&message), "{run}");
    assert!(!said.contains("hint: "), "{run}");
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

#[test]
fn urls_that_cannot_be_say_what_is_wrong_with_them() {
    for (url, wrong) in [
        ("http://127.0.0.1/a b.tar.gz", "it holds a space, which a URL writes as %20"),
        ("ftp://127.0.0.1/x", "ftp: is not supported"),
        ("https:///x", "it names no host"),
    ] {
        let place = Place::new(&source(&"cd".repeat(32), url));
        place.srp(&["realise", "t.x"]).exited(1).says(&[url, wrong]);
    }
    let server = Server::of(b"hello\n".to_vec());
    let place = Place::new(&source(server.sha256(), &server.url().replace("http:", "HTTP:")));
    place.realise("t.x");
}

#[test]
fn a_dead_proxy_is_named() {
    let place = Place::new(&source(&"cd".repeat(32), "http://mirror.test/x"));
    let mut command = place.command(&["realise", "t.x"]);
    let run = Run::of(command.env("http_proxy", "http://127.0.0.1:1"));
    run.exited(3)
        .says(&["the proxy http://127.0.0.1:1 cannot be reached", "hint: the proxy is named by"]);
}

/// Two derivations of one file.
fn twice(server: &Server) -> String {
    let fetch = |name: &str| {
        let (sha256, url) = (server.sha256(), server.url());
        format!("fetch(name = \"{name}\", sha256 = \"{sha256}\", urls = [\"{url}\"])")
    };
    format!("return {{\"\": {}, \"other\": {}}}", fetch("one"), fetch("other"))
}

#[test]
fn one_file_under_two_names_is_fetched_once_by_any_user() {
    let root = is_root();
    if !root {
        skipped("one file under two names, as another user", "not root");
    }
    for round in 0..5_u8 {
        // Large enough that to sync it takes a while, which the others come into.
        let bytes =
            (0..40 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ round);
        let server = Server::of(bytes.collect());
        let place = Place::new(&twice(&server));
        let program = match root {
            true => place.give_to(NOBODY),
            false => crate::support::program(),
        };
        let start = |attrs: &[&str]| -> Child {
            let mut command = Command::new(&program);
            place.surround(&mut command).arg("realise").args(attrs);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            if root {
                as_nobody(&mut command);
            }
            command.spawn().unwrap()
        };
        let children = [start(&["t.x", "t.x.other"]), start(&["t.x.other", "t.x"])];
        for child in children {
            Run::from(child.wait_with_output().unwrap()).succeeded();
        }
        let sources = place.store().join("sources");
        let inode = |name: &str| {
            fs::metadata(sources.join(format!("{}-{name}", server.sha256()))).unwrap().ino()
        };
        assert_eq!(inode("one"), inode("other"));
        assert_eq!(fs::read_dir(&sources).unwrap().count(), 2);
    }
}

#[test]
fn a_finished_file_whose_srp_died_is_taken_over() {
    let server = Server::of(b"the file\n".to_vec());
    let place = Place::new(&twice(&server));
    place.define("return {\"\": busybox}");
    let program = match is_root() {
        true => place.give_to(NOBODY),
        false => crate::support::program(),
    };
    let srp = |attr: &str| {
        let mut command = Command::new(&program);
        place.surround(&mut command).args(["realise", attr]);
        if is_root() {
            as_nobody(&mut command);
        }
        Run::of(&mut command).succeeded()
    };
    srp("t.x");
    // Read-only, as it is just before it gets its name.
    let partial = place.store().join(format!("sources/.partial-{}", server.sha256()));
    fs::write(&partial, "the file\n").unwrap();
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o444)).unwrap();
    if is_root() {
        crate::support::host::give(&partial, NOBODY);
    }
    place.define(&twice(&server));
    srp("t.x");
    assert!(!partial.exists());
}

/// Runs git, for nobody in particular.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.env_clear().env("PATH", "/usr/bin:/bin").env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("HOME", directory);
    command.args(["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]);
    let output = command.args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_git_source_is_fetched_by_commit_and_can_be_carried() {
    if !Path::new("/usr/bin/git").exists() {
        skipped("git sources", "there is no /usr/bin/git");
        return;
    }
    let place = Place::new("return {}");
    let repository = place.path("repositories/r");
    place.write("repositories/r/dir/file", "first\n");
    place.write("repositories/r/run", "#!/bin/sh\n");
    fs::set_permissions(repository.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    git(&repository, &["init", "--quiet"]);
    git(&repository, &["add", "."]);
    git(&repository, &["commit", "--quiet", "--message", "x"]);
    let commit = git(&repository, &["rev-parse", "HEAD"]);
    place.write("repositories/r/dir/file", "second\n");
    git(&repository, &["commit", "--quiet", "--all", "--message", "y"]);
    let config = fs::read_to_string(place.path("home/.config/srp/config.toml")).unwrap();
    let mirrors = format!("[mirrors]\nlocal = 'file://{}'\n", place.path("repositories").display());
    place.write("home/.config/srp/config.toml", &format!("{config}{mirrors}"));
    let source = |sha256: &str| {
        format!(
            "return {{\"\": fetch_git(name = \"r\", url = \"mirror://local/r\", commit = \"{commit}\", \
             sha256 = \"{sha256}\")}}"
        )
    };
    // The hash that is wanted is the one that is said to be got.
    place.define(&source(&"0".repeat(64)));
    let run = place.srp(&["realise", "t.x"]).exited(3).says(&["wrong hash for r"]);
    let got = run.stderr.lines().find_map(|line| line.trim().strip_prefix("got      "));
    place.define(&source(got.unwrap()));
    let tree = place.realise("t.x");
    assert_eq!(fs::read_to_string(tree.join("dir/file")).unwrap(), "first\n");
    assert_eq!(fs::metadata(tree.join("run")).unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 2);
    place.assert_tidy();
    // Saved like any other source, it is had where there is no repository.
    let mirror = place.path("saved");
    place.srp(&["source", "mirror", mirror.to_str().unwrap(), "t.x"]).succeeded();
    let offline = Place::new(&source(got.unwrap()));
    let config = format!("sources = ['{}']\n", mirror.display());
    offline.write("home/.config/srp/config.toml", &config);
    assert_eq!(offline.realise("t.x").file_name(), tree.file_name());
}
