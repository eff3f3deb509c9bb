//! Places in their order: directories, files, mirrors, and what is said when all fail.

use super::*;

#[test]
fn every_place_is_listed_with_its_own_reason() {
    let missing = TestServer::start(|_, stream| respond(stream, "404 Not Found", &[], b"no"));
    let wrong = TestServer::serving(b"wrong".to_vec());
    let cut = TestServer::start(|_, stream| {
        start(stream, "200 OK", &[], Some(100));
        let _ = stream.write_all(b"abc");
    });
    let urls = [
        missing.url("m"),
        dead_url(),
        wrong.url("w"),
        cut.url("c"),
        "ftp://h.test/x".into(),
        "mirror://debian/pool/main/x".into(),
        "mirror://cpan/x".into(),
        "file:///nonexistent/file".into(),
        "http://no-such-host.invalid/x".into(),
    ];
    let request = request(b"the file", &urls);
    let (result, _keep) = Bench::new().fetch(&request);
    let error = result.expect_err("nothing works");
    let text = error.to_string();
    for part in [
        "404 (not found)",
        "connection refused",
        "wrong hash",
        "broke off after 3 bytes of 100",
        "ftp: URLs are not supported",
        "SRP_MIRROR_DEBIAN",
        "mirrors.cpan",
        "cannot be read",
        "cannot resolve the host name",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let hints = error.hints().join("\n");
    assert!(hints.contains("SRP_MIRROR_DEBIAN"), "{hints}");
    assert!(!hints.contains("srp source mirror"), "one of them has another file: {hints}");
    assert_eq!(cut.asked().len(), 3, "a broken connection is tried again");
    assert_eq!(missing.asked().len(), 1, "a 404 is not");
}

#[test]
fn directories_are_places_and_are_verified() {
    let bytes = content(100_000);
    let mut bench = Bench::new();
    let good = bench.directory.path().join("mirror");
    let bad = bench.directory.path().join("bad");
    for directory in [&bad, &good] {
        std::fs::create_dir(directory).expect("created");
    }
    let mut request = request(&bytes, &[dead_url()]);
    std::fs::write(bad.join(request.file_name()), content(99_999)).expect("written");
    // Another name of the same file is as good.
    std::fs::write(good.join(format!("{}-other-name", request.sha256)), &bytes).expect("written");
    bench.config.directories = vec!["/nonexistent".into(), bad, good.clone()];
    let sources = bench.sources();
    let failures = Failures::default();
    let fetched = Fetcher::new(bench.config)
        .fetch(&request, &sources, &failures, &CancelToken::new().expect("a descriptor"))
        .expect("fetched");
    assert_eq!(fetched.from, Place::Directory(good.join(format!("{}-other-name", request.sha256))));
    assert_eq!(std::fs::read(&fetched.path).expect("there"), bytes);
    assert!(failures.0.lock().expect("no panic")[0].contains("wrong hash"));

    // And under a third name, from the same sources directory.
    request.name = "third".into();
    let (result, directory) =
        Bench { directory: bench.directory, config: Bench::new().config }.fetch(&request);
    let third = result.expect("there");
    assert_eq!(third.from, Place::Present);
    let inode = |path: &Path| path.metadata().expect("there").ino();
    assert_eq!(inode(&third.path), inode(&fetched.path), "it is stored once");
    // What has the digest in its name but not in its bytes is no reason not to fetch.
    std::fs::set_permissions(&third.path, PermissionsExt::from_mode(0o644)).expect("changed");
    std::fs::write(&third.path, content(1000)).expect("damaged");
    request.name = "fourth".into();
    let good = TestServer::serving(bytes.clone());
    request.urls = vec![good.url("x")];
    let (result, _keep) = Bench { directory, config: Bench::new().config }.fetch(&request);
    assert_eq!(result.expect("fetched").from, Place::Url(good.url("x")));
}

#[test]
fn file_urls_are_places() {
    let bench = Bench::new();
    let file = bench.directory.path().join("a file");
    std::fs::write(&file, b"the file").expect("written");
    let url = format!("file://{}", file.display()).replace(' ', "%20");
    let (result, _keep) = bench.fetch(&request(b"the file", &[url]));
    assert_eq!(result.expect("fetched").from, Place::File(file));
}

#[test]
fn mirrors_are_tried_in_order_and_snapshots_last() {
    let missing = TestServer::start(|_, stream| respond(stream, "404 Not Found", &[], b""));
    let snapshot = TestServer::serving(b"the file".to_vec());
    let mut bench = Bench::new();
    bench.config.mirrors = Mirrors::new(
        [
            ("debian".to_owned(), vec![missing.url("debian/")]),
            ("debian-snapshot".to_owned(), vec![snapshot.url("2026")]),
        ]
        .into(),
    );
    let urls = ["mirror://debian/pool/main/t/thing".into(), missing.url("upstream")];
    let (result, _keep) = bench.fetch(&request(b"the file", &urls));
    assert_eq!(result.expect("fetched").from, Place::Url(snapshot.url("2026/pool/main/t/thing")));
    let targets: Vec<_> = missing.asked().into_iter().map(|asked| asked.target).collect();
    assert_eq!(targets, ["/debian/pool/main/t/thing", "/upstream"]);
}

#[test]
fn a_sources_directory_that_cannot_be_written_is_an_error_of_its_own() {
    let bench = Bench::new();
    std::fs::write(bench.sources(), b"a file").expect("written");
    let (result, _keep) = bench.fetch(&request(b"x", &["http://h.test/".into()]));
    let error = result.expect_err("it is a file");
    assert!(matches!(error, FetchError::Sources { action: "create", .. }), "{error:?}");
}

#[test]
fn without_places_it_says_so() {
    let (result, directory) = Bench::new().fetch(&request(b"x", &[]));
    assert!(matches!(result.expect_err("nowhere"), FetchError::NoPlaces { .. }));
    assert!(names(&directory.path().join("sources")).is_empty());
}
