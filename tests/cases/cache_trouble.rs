//! Caches and builders that let one down: killed, crawling, rolled back, or not of one mind.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::caches::{name, published_as, push, user_of};
use crate::support::nginx::Nginx;
use crate::support::place::list;
use crate::support::processes::eventually;
use crate::support::server::Server;
use crate::support::{Place, Run};

/// Four megabytes that don't compress: several blocks of one file. What two machines build of it is
/// not compared.
const LARGE: &str = r#"
large = sh("large", "dd if=/dev/urandom of=$out/usr/large bs=64k count=64")
return {"": large}
"#;

const SMALL: &str = r#"
small = sh("small", "echo 1 > $out/usr/small")
return {"": small}
"#;

/// Comes out differently each time it is built.
const RANDOM: &str = r#"
odd = sh("odd", "cat /proc/sys/kernel/random/uuid > $out/usr/odd")
return {"": odd}
"#;

fn warnings(run: &Run) -> usize {
    run.stderr.lines().filter(|line| line.contains("warning:")).count()
}

/// Realises from a slow server, and interferes when a part of the large file has come.
fn realise_and(user: &Place, arguments: &[&str], interfere: impl FnOnce(&Child)) -> Run {
    let mut command = user.command(&[&["realise", "t.x"], arguments].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let has_part = |directory: &Path| find(directory, "large").is_some_and(|bytes| bytes > 1 << 20);
    assert!(eventually(|| has_part(&user.store().join("tmp"))), "nothing of it ever came");
    interfere(&child);
    Run::from(child.wait_with_output().unwrap())
}

/// The length of a file of this name somewhere below a directory.
fn find(directory: &Path, name: &str) -> Option<u64> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return find(&path, name);
        }
        (path.file_name()? == name).then(|| path.metadata().ok())?.map(|it| it.len())
    })
}

#[test]
fn a_server_that_is_killed_in_mid_transfer_is_done_without() {
    let (builder, key, cache) = published_as("builder-1", LARGE);
    builder.open_to_all();
    let built = builder.srp(&["realise", "t.x"]).succeeded();
    let serve = || Nginx::slow(&cache, "a cache that dies in mid-transfer");

    let Some(nginx) = serve() else { return };
    let user = user_of(LARGE, &[&nginx.url(), cache.to_str().unwrap()], &[&key], "");
    let run = realise_and(&user, &["--no-build"], |_| nginx.kill()).succeeded();
    assert_eq!(name(&run), name(&built), "{run}");
    assert_eq!(warnings(&run), 1, "{run}");
    assert!(list(&user.store().join("partial")).is_empty(), "what had come was taken up");
    user.assert_tidy();

    let Some(nginx) = serve() else { return };
    let alone = user_of(LARGE, &[&nginx.url()], &[&key], "");
    let run = realise_and(&alone, &[], |_| nginx.kill()).succeeded();
    assert_eq!(run.built(), ["applets", "large"], "{run}");
    assert_eq!(warnings(&run), 1, "{run}");
    assert_eq!(list(&alone.store().join("partial")).len(), 1, "it is kept for the next time");
    alone.assert_tidy();
}

#[test]
fn an_interrupted_transfer_goes_on_the_next_time() {
    let (builder, key, cache) = published_as("builder-1", LARGE);
    builder.open_to_all();
    let Some(nginx) = Nginx::slow(&cache, "an interrupted transfer from a cache") else { return };
    let user = user_of(LARGE, &[&nginx.url()], &[&key], "");
    let interrupt = |child: &Child| {
        let id = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    };
    realise_and(&user, &["--no-build"], interrupt).exited(130);
    user.assert_tidy();
    assert_eq!(list(&user.store().join("partial")).len(), 1);
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    // Of four mebibytes at least the one that was waited for has not come again.
    let came = run.stderr.split("substituted large, ").nth(1).unwrap();
    let mebibytes: f64 = came.split(" MiB").next().unwrap().parse().unwrap();
    assert!(mebibytes < 3.1, "{run}");
    assert!(list(&user.store().join("partial")).is_empty());
}

#[test]
fn a_cache_that_crawls_is_given_up_once() {
    let (_builder, key, cache) = published_as("builder-1", SMALL);
    let crawling = Server::crawling_packs(cache.clone());
    let user = user_of(SMALL, &[&crawling.url(), cache.to_str().unwrap()], &[&key], "");
    let start = Instant::now();
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(warnings(&run), 1, "{run}");
    run.says(&["bytes came in", "going on without it"]);
    assert!(start.elapsed() < Duration::from_secs(50), "every object was waited for");
}

#[test]
fn old_news_are_told_and_nothing_fails() {
    let (builder, key, cache) = published_as("builder-1", SMALL);
    let at = cache.to_str().unwrap().to_owned();
    let copy = |from: &Path, to: &Path| {
        let status = std::process::Command::new("cp").arg("-r").args([from, to]).status();
        assert!(status.unwrap().success());
    };
    let old = builder.path("old");
    copy(&cache, &old);
    let newer = SMALL.replace("echo 1", "echo 2");
    builder.define(&newer);
    builder.realise("t.x");
    assert!(push(&builder, &at).stdout.contains("generation 2"));

    let user = user_of(&newer, &[&at], &[&key], "");
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert!(!run.stderr.contains("error:"), "{run}");
    fs::remove_dir_all(&cache).unwrap();
    copy(&old, &cache);
    user.define(SMALL);
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    run.says(&[
        "error:",
        "serves generation 1 of t.x by builder-1",
        "served generation 2 before",
        &at,
    ]);
}

#[test]
fn builders_who_disagree_are_both_named() {
    let (_one, first, one) = published_as("builder-1", RANDOM);
    let (two, second, at_two) = published_as("builder-2", RANDOM);
    let said = |cache: &Path| -> Vec<String> {
        let objects = list(&cache.join("objects"));
        objects.iter().map(|it| it.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let mine: Vec<String> =
        said(&one).into_iter().filter(|it| !said(&at_two).contains(it)).collect();
    let theirs: Vec<String> =
        said(&at_two).into_iter().filter(|it| !said(&one).contains(it)).collect();
    assert_eq!((mine.len(), theirs.len()), (1, 1));
    let sides = [
        format!("builder-1 says out is {}", mine[0]),
        format!("builder-2 says out is {}", theirs[0]),
    ];
    let told = |run: &Run| {
        assert!(run.stderr.contains("odd is not substituted: trusted builders disagree"), "{run}");
        assert!(sides.iter().all(|side| run.stderr.contains(side)), "{sides:?}: {run}");
    };
    let (one, at_two) = (one.to_str().unwrap(), at_two.to_str().unwrap());
    let place = user_of(RANDOM, &[one, at_two], &[&first, &second], "threshold = 2");
    told(&place.srp(&["realise", "--no-build", "t.x"]).exited(3));
    // One is enough, but one cache has both.
    push(&two, one);
    let place = user_of(RANDOM, &[one], &[&first, &second], "");
    let run = place.srp(&["realise", "t.x"]).succeeded();
    assert_eq!(run.built(), ["applets", "odd"]);
    told(&run);
}

#[test]
fn what_is_passed_on_is_no_second_witness() {
    let (_builder, key, cache) = published_as("builder-1", SMALL);
    let middle = user_of(SMALL, &[cache.to_str().unwrap()], &[&key], "");
    let run = middle.srp(&["realise", "--no-build", "t.x"]).succeeded();
    let mirror = middle.srp(&["key", "generate", "mirror"]).succeeded().stdout;
    let at = middle.path("cache");
    let pushed = push(&middle, at.to_str().unwrap());
    assert!(pushed.stdout.contains("1 stated as not built here"), "{pushed}");

    let at = at.to_str().unwrap();
    let trusting = |keys: &[&str], trust| user_of(SMALL, &[at], keys, trust);
    let both = [key.as_str(), mirror.trim_end()];
    let place = trusting(&both, "threshold = 2");
    let refused = place.srp(&["realise", "--no-build", "t.x"]).exited(3);
    refused.says(&["only 1 of the 2 different builders needed: builder-1"]);
    // Each of the two may be enough by itself: whose word one takes is one's own choice.
    for only in both {
        let taken = trusting(&[only], "").srp(&["realise", "--no-build", "t.x"]).succeeded();
        assert_eq!(name(&taken), name(&run));
    }
}
