//! Transfers that break, go on, meet each other and are cancelled.

use super::*;

#[test]
fn a_file_is_fetched_verified_and_then_there() {
    let bytes = content(300_000);
    let server = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let sources = bench.sources();
    let mut request = request(&bytes, &[server.url("a")]);
    request.size_bytes = Some(bytes.len() as u64);
    let fetcher = Fetcher::new(bench.config);
    let first = fetcher
        .fetch(&request, &sources, &(), &CancelToken::new().expect("a descriptor"))
        .expect("fetched");
    assert_eq!(first.from, Place::Url(server.url("a")));
    assert_eq!((first.bytes_transferred, first.resumed), (300_000, false));
    assert_eq!(std::fs::read(&first.path).expect("there"), bytes);
    assert_eq!(names(&sources), [request.file_name()]);
    let mode = first.path.metadata().expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o444);

    let second = fetcher
        .fetch(&request, &sources, &(), &CancelToken::new().expect("a descriptor"))
        .expect("there");
    assert_eq!((second.from, second.bytes_transferred), (Place::Present, 0));
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_present_file_of_the_wrong_size_is_fetched_again() {
    let bytes = content(1000);
    let server = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let mut request = request(&bytes, &[server.url("a")]);
    request.size_bytes = Some(1000);
    std::fs::create_dir(bench.sources()).expect("created");
    std::fs::write(bench.sources().join(request.file_name()), b"short").expect("written");
    let (result, _keep) = bench.fetch(&request);
    assert_eq!(std::fs::read(result.expect("fetched").path).expect("there"), bytes);
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke() {
    let bytes = content(400_000);
    let serving = bytes.clone();
    let server = TestServer::start(move |asked, stream| {
        if asked.number == 0 {
            start(stream, "200 OK", &[("ETag", "\"v1\"")], Some(serving.len()));
            stream.write_all(&serving[..150_000]).expect("sent");
        } else {
            serve(asked, stream, &serving);
        }
    });
    let (result, directory) = Bench::new().fetch(&request(&bytes, &[server.url("a")]));
    let fetched = result.expect("fetched");
    assert!(fetched.resumed);
    assert_eq!(fetched.bytes_transferred, 400_000, "nothing is transferred twice");
    assert_eq!(std::fs::read(&fetched.path).expect("there"), bytes);
    let asked = server.asked();
    assert_eq!(asked[1].offset(), Some(150_000));
    assert_eq!(asked[1].headers["if-range"], "\"v1\"");
    assert_eq!(names(&directory.path().join("sources")).len(), 1);
}

#[test]
fn another_process_goes_on_where_the_last_one_broke() {
    let bytes = content(200_000);
    let serving = bytes.clone();
    let broken = TestServer::start(move |_, stream| {
        start(stream, "200 OK", &[("Last-Modified", "yesterday")], Some(serving.len()));
        let _ = stream.write_all(&serving[..50_000]);
    });
    let mut bench = Bench::new();
    bench.config.retries = 0;
    let sources = bench.sources();
    let fetcher = Fetcher::new(bench.config);
    let error = fetcher
        .fetch(
            &request(&bytes, &[broken.url("a")]),
            &sources,
            &(),
            &CancelToken::new().expect("a descriptor"),
        )
        .expect_err("it breaks");
    assert!(matches!(
        only_reason(error),
        Reason::Truncated { received: 50_000, total: Some(200_000) }
    ));
    assert_eq!(names(&sources).len(), 2, "the partial and its origin");

    // The rest comes from another place: what identifies the file is its digest.
    let server = TestServer::serving(bytes.clone());
    let fetched = fetcher
        .fetch(
            &request(&bytes, &[server.url("b")]),
            &sources,
            &(),
            &CancelToken::new().expect("a descriptor"),
        )
        .expect("fetched");
    assert!(fetched.resumed);
    assert_eq!(fetched.bytes_transferred, 150_000);
    assert!(!server.asked()[0].headers.contains_key("if-range"));
    assert_eq!(names(&sources).len(), 1);
}

#[test]
fn a_server_that_ignores_ranges_is_started_over() {
    let bytes = content(100_000);
    let serving = bytes.clone();
    let server = TestServer::start(move |asked, stream| {
        let sent = if asked.number == 0 { 30_000 } else { serving.len() };
        start(stream, "200 OK", &[], Some(serving.len()));
        let _ = stream.write_all(&serving[..sent]);
    });
    let (result, _keep) = Bench::new().fetch(&request(&bytes, &[server.url("a")]));
    let fetched = result.expect("fetched");
    assert_eq!(std::fs::read(&fetched.path).expect("there"), bytes);
    assert_eq!(server.asked()[1].offset(), Some(30_000));
}

#[test]
fn a_partial_with_foreign_bytes_is_started_over_at_the_same_place() {
    let bytes = content(100_000);
    let server = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let request = request(&bytes, &[server.url("a")]);
    bench.leave_partial(&request, &[0; 10_000]);
    let (result, _keep) = bench.fetch(&request);
    assert_eq!(std::fs::read(result.expect("fetched").path).expect("there"), bytes);
    let offsets: Vec<_> = server.asked().iter().map(|asked| asked.offset()).collect();
    assert_eq!(offsets, [Some(10_000), None]);
}

#[test]
fn a_partial_longer_than_the_file_is_started_over() {
    let bytes = content(5000);
    let server = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let request = request(&bytes, &[server.url("a")]);
    bench.leave_partial(&request, &[0; 10_000]);
    let (result, _keep) = bench.fetch(&request);
    assert_eq!(std::fs::read(result.expect("fetched").path).expect("there"), bytes);
}

#[test]
fn a_partial_that_is_complete_needs_no_network() {
    let bytes = content(5000);
    let bench = Bench::new();
    let request = request(&bytes, &[dead_url()]);
    bench.leave_partial(&request, &bytes);
    let (result, _keep) = bench.fetch(&request);
    assert_eq!(result.expect("complete").from, Place::Partial);
}

#[test]
fn cancelling_returns_at_once_and_keeps_what_came() {
    let server = TestServer::start(|_, stream| {
        start(stream, "200 OK", &[], Some(1_000_000));
        let _ = stream.write_all(&[7; 5000]);
        std::thread::sleep(Duration::from_secs(20));
    });
    let mut bench = Bench::new();
    bench.config.low_speed_seconds = 60;
    let sources = bench.sources();
    let cancel = CancelToken::new().expect("a descriptor");
    let stopper = cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        stopper.cancel();
    });
    let began = Instant::now();
    let error = Fetcher::new(bench.config)
        .fetch(&request(b"x", &[server.url("a")]), &sources, &(), &cancel)
        .expect_err("cancelled");
    assert!(matches!(error, FetchError::Cancelled { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let partial = sources.join(format!(".partial-{}", digest(b"x")));
    assert_eq!(partial.metadata().expect("kept").len(), 5000);
}

#[test]
fn concurrent_fetches_of_one_file_transfer_it_once() {
    let bytes = content(200_000);
    let serving = bytes.clone();
    let server = TestServer::start(move |asked, stream| {
        std::thread::sleep(Duration::from_millis(200));
        serve(asked, stream, &serving);
    });
    let bench = Bench::new();
    let sources = bench.sources();
    let request = request(&bytes, &[server.url("a")]);
    let waited = Waits::default();
    // Two fetchers, as two processes would have: only the files join them.
    let fetchers = [Fetcher::new(bench.config), Fetcher::new(Bench::new().config)];
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (fetchers, sources, request, waited) = (&fetchers, &sources, &request, &waited);
            scope.spawn(move || {
                fetchers[number % 2]
                    .fetch(request, sources, waited, &CancelToken::new().expect("a descriptor"))
                    .expect("fetched")
            });
        }
    });
    assert_eq!(server.asked().len(), 1);
    assert_eq!(waited.0.load(Ordering::Relaxed), 7);
    assert_eq!(names(&sources), [request.file_name()]);
}

#[test]
fn one_file_under_two_names_is_transferred_once() {
    let bytes = content(200_000);
    let serving = bytes.clone();
    let server = TestServer::start(move |asked, stream| {
        std::thread::sleep(Duration::from_millis(200));
        serve(asked, stream, &serving);
    });
    let bench = Bench::new();
    let sources = bench.sources();
    let fetchers = [Fetcher::new(bench.config), Fetcher::new(Bench::new().config)];
    let fetched: Vec<Fetched> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let mut request = request(&bytes, &[server.url("a")]);
                request.name = format!("name-{}", number % 4);
                let (fetchers, sources) = (&fetchers, &sources);
                scope.spawn(move || {
                    let cancel = CancelToken::new().expect("a descriptor");
                    fetchers[number % 2].fetch(&request, sources, &(), &cancel).expect("fetched")
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(server.asked().len(), 1);
    let inodes: std::collections::BTreeSet<u64> =
        fetched.iter().map(|it| it.path.metadata().expect("there").ino()).collect();
    assert_eq!(inodes.len(), 1);
    assert_eq!(names(&sources).len(), 4, "{:?}", names(&sources));
}

#[derive(Default)]
struct Waits(AtomicUsize);

impl Progress for Waits {
    fn waiting(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_waiting_fetch_takes_over_when_the_first_one_fails() {
    let bytes = content(1000);
    let bad = TestServer::start(|_, stream| {
        std::thread::sleep(Duration::from_millis(300));
        respond(stream, "404 Not Found", &[], b"");
    });
    let good = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let sources = bench.sources();
    let fetcher = Fetcher::new(bench.config);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            fetcher.fetch(
                &request(&bytes, &[bad.url("a")]),
                &sources,
                &(),
                &CancelToken::new().expect("a descriptor"),
            )
        });
        std::thread::sleep(Duration::from_millis(100));
        let second = fetcher
            .fetch(
                &request(&bytes, &[good.url("a")]),
                &sources,
                &(),
                &CancelToken::new().expect("a descriptor"),
            )
            .expect("fetched");
        assert_eq!(second.from, Place::Url(good.url("a")));
        assert!(first.join().expect("no panic").is_err());
    });
}

#[test]
fn a_wrong_local_file_does_not_cost_the_partial() {
    let bytes = content(100_000);
    let mut bench = Bench::new();
    let bad = bench.directory.path().join("bad");
    std::fs::create_dir(&bad).expect("created");
    let server = TestServer::serving(bytes.clone());
    let request = request(&bytes, &[server.url("a")]);
    std::fs::write(bad.join(request.file_name()), b"wrong").expect("written");
    bench.leave_partial(&request, &bytes[..60_000]);
    bench.config.directories = vec![bad];
    let (result, _keep) = bench.fetch(&request);
    assert_eq!(result.expect("fetched").bytes_transferred, 40_000);
}

#[test]
fn progress_adds_up() {
    #[derive(Default)]
    struct Sum(AtomicU64, Mutex<Vec<(u64, Option<u64>)>>);
    impl Progress for Sum {
        fn began(&self, _: &Place, resumed_at: u64, total: Option<u64>) {
            self.1.lock().expect("no panic").push((resumed_at, total));
        }
        fn received(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    let bytes = content(123_456);
    let server = TestServer::serving(bytes.clone());
    let bench = Bench::new();
    let sum = Sum::default();
    let sources = bench.sources();
    Fetcher::new(bench.config)
        .fetch(
            &request(&bytes, &[server.url("a")]),
            &sources,
            &sum,
            &CancelToken::new().expect("a descriptor"),
        )
        .expect("fetched");
    assert_eq!(sum.0.into_inner(), 123_456);
    assert_eq!(sum.1.into_inner().expect("no panic"), [(0, Some(123_456))]);
}
