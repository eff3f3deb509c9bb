//! Servers and proxies that misbehave, and those that redirect.

use super::*;

#[test]
fn a_wrong_hash_names_both_and_keeps_nothing() {
    let server = TestServer::serving(b"not the file".to_vec());
    let request = request(b"the file", &[server.url("a")]);
    let (result, directory) = Bench::new().fetch(&request);
    let error = result.expect_err("wrong");
    let (expected, got, url) = (digest(b"the file"), digest(b"not the file"), server.url("a"));
    assert_eq!(
        error.to_string(),
        format!("wrong hash for thing.tar\n  expected {expected}\n  got      {got}\n  from {url}")
    );
    assert!(error.hints().is_empty(), "{:?}", error.hints());
    assert!(names(&directory.path().join("sources")).is_empty());
}

#[test]
fn an_error_page_is_called_one() {
    let page = b"<!DOCTYPE html><html>please log in</html>".to_vec();
    let server = TestServer::start(move |_, stream| {
        respond(stream, "200 OK", &[("Content-Type", "text/html; charset=utf-8")], &page);
    });
    let mut request = request(b"the file", &[server.url("a")]);
    let (result, _keep) = Bench::new().fetch(&request);
    assert!(matches!(
        only_reason(result.expect_err("a page")),
        Reason::WrongHash { html: true, size_bytes: 41, .. }
    ));
    request.size_bytes = Some(8);
    let (result, _keep) = Bench::new().fetch(&request);
    let reason = only_reason(result.expect_err("a page"));
    assert!(reason.to_string().contains("an HTML page of 41 bytes"), "{reason}");
}

#[test]
fn passing_errors_are_tried_again() {
    let server = TestServer::start(|asked, stream| match asked.number {
        0 => respond(stream, "500 Internal Server Error", &[], b"oops"),
        1 => respond(stream, "503 Service Unavailable", &[("Retry-After", "0")], b"busy"),
        _ => respond(stream, "200 OK", &[], b"the file"),
    });
    let (result, _keep) = Bench::new().fetch(&request(b"the file", &[server.url("a")]));
    assert_eq!(std::fs::read(result.expect("fetched").path).expect("there"), b"the file");
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn redirects_are_followed_also_with_ranges() {
    let bytes = content(1000);
    let serving = bytes.clone();
    let server = TestServer::start(move |asked, stream| match asked.target.as_str() {
        "/dir/a" => respond(stream, "302 Found", &[("Location", "../b")], b"moved"),
        "/b" => respond(stream, "301 Moved Permanently", &[("Location", "/c?d")], b""),
        "/c?d" => serve(asked, stream, &serving),
        other => panic!("{other} was asked for"),
    });
    let bench = Bench::new();
    let request = request(&bytes, &[server.url("dir/a")]);
    bench.leave_partial(&request, &bytes[..400]);
    let (result, _keep) = bench.fetch(&request);
    assert!(result.expect("fetched").resumed);
    assert_eq!(server.asked()[2].offset(), Some(400));
}

#[test]
fn redirects_end_somewhere() {
    let looping =
        TestServer::start(|_, stream| respond(stream, "302 Found", &[("Location", "/")], b""));
    let (result, _keep) = Bench::new().fetch(&request(b"x", &[looping.url("")]));
    assert!(matches!(
        only_reason(result.expect_err("a loop")),
        Reason::TooManyRedirects { limit: 10 }
    ));
    let leaving = TestServer::start(|_, stream| {
        respond(stream, "302 Found", &[("Location", "file:///etc/passwd")], b"");
    });
    let (result, _keep) = Bench::new().fetch(&request(b"x", &[leaving.url("")]));
    let reason = only_reason(result.expect_err("a file"));
    assert!(
        matches!(&reason, Reason::UnsupportedScheme { scheme } if scheme == "file"),
        "{reason}"
    );
}

#[test]
fn redirects_may_hold_what_urls_cannot() {
    for (location, expected) in [
        (&b"/a b.tar.gz"[..], "/a%20b.tar.gz"),
        ("/caf\u{e9}.tar.gz".as_bytes(), "/caf%C3%A9.tar.gz"),
        (b"/caf\xe9.tar.gz", "/caf%E9.tar.gz"),
        (b"c#fragment", "/dir/c"),
        (b"?a=<b>", "/dir/a?a=%3Cb%3E"),
    ] {
        let server = TestServer::start(move |asked, stream| match asked.number {
            0 => {
                let head = [b"HTTP/1.1 302 Found\r\nLocation: ", location, b"\r\n"].concat();
                let _ = stream.write_all(&[&head[..], b"Content-Length: 0\r\n\r\n"].concat());
            }
            _ => respond(stream, "200 OK", &[], b"the file"),
        });
        // The scheme is as good in any case.
        let url = server.url("dir/a").replace("http:", "HTTP:");
        let (result, _keep) = Bench::new().fetch(&request(b"the file", &[url]));
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(server.asked()[1].target, expected);
    }
}

#[test]
fn a_login_is_sent_to_its_own_server_only() {
    let other = TestServer::serving(b"the file".to_vec());
    let elsewhere = other.url("x").replace("http:", "");
    let server = TestServer::start(move |asked, stream| match asked.number {
        0 => respond(stream, "302 Found", &[("Location", "/b")], b""),
        _ => respond(stream, "302 Found", &[("Location", &elsewhere)], b""),
    });
    let url = server.url("a").replace("http://", "http://me:p%40ss@");
    let (result, _keep) = Bench::new().fetch(&request(b"the file", &[url]));
    result.expect("fetched");
    let login = Some("Basic bWU6cEBzcw==".to_owned());
    let sent: Vec<_> =
        server.asked().iter().map(|it| it.headers.get("authorization").cloned()).collect();
    assert_eq!(sent, [login.clone(), login]);
    assert_eq!(other.asked()[0].headers.get("authorization"), None);
}

#[test]
fn every_status_that_may_pass_is_tried_again() {
    let statuses = ["408 A", "425 B", "429 C", "500 D", "502 E", "503 F", "504 G"];
    for status in statuses {
        let date = httpdate::fmt_http_date(std::time::SystemTime::UNIX_EPOCH);
        let server = TestServer::start(move |asked, stream| match asked.number {
            0 => respond(stream, status, &[("Retry-After", &date)], b"oops"),
            _ => respond(stream, "200 OK", &[], b"the file"),
        });
        let mut bench = Bench::new();
        // The date counts, and not this.
        bench.config.retry_delay = Duration::from_secs(20);
        let began = Instant::now();
        let (result, _keep) = bench.fetch(&request(b"the file", &[server.url("a")]));
        assert!(result.is_ok(), "{status}: {result:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{status}");
    }
    for status in ["400 A", "403 B", "404 C", "410 D", "501 E", "505 F"] {
        let server = TestServer::start(move |_, stream| respond(stream, status, &[], b"no"));
        let (result, _keep) = Bench::new().fetch(&request(b"the file", &[server.url("a")]));
        assert!(result.is_err());
        assert_eq!(server.asked().len(), 1, "{status}");
    }
}

#[test]
fn a_slow_place_gives_way_to_the_next() {
    let slow = TestServer::start(|_, stream| {
        start(stream, "200 OK", &[], Some(1_000_000));
        for _ in 0..800 {
            std::thread::sleep(Duration::from_millis(50));
            if stream.write_all(b"x").is_err() {
                return;
            }
        }
    });
    let stalled = TestServer::start(|_, stream| {
        start(stream, "200 OK", &[], Some(1_000_000));
        std::thread::sleep(Duration::from_secs(40));
    });
    let good = TestServer::serving(b"the file".to_vec());
    let failures = Failures::default();
    let bench = Bench::new();
    let sources = bench.sources();
    let urls = [slow.url("a"), stalled.url("b"), good.url("c")];
    let began = Instant::now();
    let fetched = Fetcher::new(bench.config)
        .fetch(
            &request(b"the file", &urls),
            &sources,
            &failures,
            &CancelToken::new().expect("a descriptor"),
        )
        .expect("fetched");
    assert_eq!(fetched.from, Place::Url(good.url("c")));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let failures = failures.0.into_inner().expect("no panic");
    assert!(failures.iter().all(|failure| failure.contains("too slow")), "{failures:?}");
    assert_eq!(failures.len(), 2);
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let silent = TestServer::start(|_, _| std::thread::sleep(Duration::from_secs(20)));
    let mut bench = Bench::new();
    bench.config.answer_timeout = Duration::from_secs(1);
    bench.config.retries = 0;
    let (result, _keep) = bench.fetch(&request(b"x", &[silent.url("a")]));
    assert!(matches!(only_reason(result.expect_err("silent")), Reason::Timeout { .. }));
}

#[test]
fn a_longer_file_than_stated_is_cut_short() {
    let endless = TestServer::start(|_, stream| {
        start(stream, "200 OK", &[], None);
        while stream.write_all(&[0; 10_000]).is_ok() {}
    });
    let mut request = request(b"x", &[endless.url("a")]);
    request.size_bytes = Some(50_000);
    let (result, directory) = Bench::new().fetch(&request);
    assert!(matches!(
        only_reason(result.expect_err("endless")),
        Reason::WrongSize { expected: 50_000, .. }
    ));
    assert!(names(&directory.path().join("sources")).is_empty());
}

#[test]
fn a_compressed_transfer_encoding_label_changes_nothing() {
    // Servers label .tar.gz files so; a client that unpacks them gets another file.
    let bytes = content(500);
    let serving = bytes.clone();
    let server = TestServer::start(move |_, stream| {
        respond(stream, "200 OK", &[("Content-Encoding", "gzip")], &serving);
    });
    let (result, _keep) = Bench::new().fetch(&request(&bytes, &[server.url("a.tar.gz")]));
    assert_eq!(std::fs::read(result.expect("fetched").path).expect("there"), bytes);
    assert_eq!(server.asked()[0].headers["accept-encoding"], "identity");
}

#[test]
fn a_server_that_compresses_although_told_not_to_is_named_with_the_encoding() {
    let server = TestServer::start(move |_, stream| {
        respond(stream, "200 OK", &[("Content-Encoding", "br")], b"compressed");
    });
    let mut request = request(b"the file", &[server.url("a")]);
    for size_bytes in [None, Some(8)] {
        request.size_bytes = size_bytes;
        let (result, _keep) = Bench::new().fetch(&request);
        let text = result.expect_err("another file").to_string();
        assert!(text.contains("Content-Encoding: br"), "{text}");
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let dead = dead_url().replace("http://", "http://me:pw@");
    let address = dead.trim_start_matches("http://me:pw@").trim_end_matches("/x").to_owned();
    for (variable, url) in
        [("http_proxy", "http://mirror.test/x"), ("https_proxy", "https://mirror.test/x")]
    {
        let mut bench = Bench::new();
        let dead = dead.clone();
        bench.config.network =
            NetworkSettings::from_variables(|name| (name == variable).then(|| dead.clone()));
        let (result, _keep) = bench.fetch(&request(b"x", &[url.into()]));
        let error = result.expect_err("unreachable");
        let (text, hints) = (error.to_string(), error.hints().join("\n"));
        assert!(text.contains(&format!("the proxy http://{address}")), "{text}");
        assert!(text.contains("connection refused") && !text.contains("pw"), "{text}");
        assert!(hints.contains("no_proxy"), "{hints}");
    }
}

#[test]
fn a_proxy_is_asked_for_the_whole_url_and_not_to_tunnel() {
    let proxy = TestServer::start(|asked, stream| {
        assert_eq!(asked.target, "http://mirror.test/pool/x");
        assert_eq!(asked.headers["host"], "mirror.test");
        assert_eq!(asked.headers["proxy-authorization"], "Basic bWU6cHc=");
        respond(stream, "200 OK", &[], b"the file");
    });
    let mut bench = Bench::new();
    let address = format!("http://me:pw@{}", proxy.address());
    bench.config.network =
        NetworkSettings::from_variables(|name| (name == "http_proxy").then(|| address.clone()));
    let (result, _keep) = bench.fetch(&request(b"the file", &["http://mirror.test/pool/x".into()]));
    result.expect("fetched through the proxy");
}

#[test]
fn https_through_a_proxy_asks_for_a_tunnel() {
    let proxy = TestServer::start(|_, stream| {
        respond(stream, "403 Forbidden", &[], b"not today");
    });
    let mut bench = Bench::new();
    let address = proxy.address().to_owned();
    bench.config.network =
        NetworkSettings::from_variables(|name| (name == "https_proxy").then(|| address.clone()));
    let (result, _keep) = bench.fetch(&request(b"x", &["https://mirror.test/x".into()]));
    assert!(matches!(only_reason(result.expect_err("refused")), Reason::Proxy { .. }));
    assert_eq!(proxy.asked()[0].target, "mirror.test:443");
}

#[test]
fn a_server_without_tls_is_no_https_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}/x", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.expect("a connection").write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let (result, _keep) = Bench::new().fetch(&request(b"x", &[url]));
    let reason = only_reason(result.expect_err("no TLS"));
    assert!(matches!(reason, Reason::Tls { .. }), "{reason:?}");
}
