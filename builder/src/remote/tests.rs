//! Web servers that do what they shouldn't.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use srp_store::cache::{CachePath, Remote};

use super::Connections;
use crate::fetch::NetworkSettings;

/// A server that gives each request, in turn, the next of these answers.
fn server(answers: Vec<&'static str>) -> Arc<dyn Remote> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        loop {
            let (stream, _): (TcpStream, _) = listener.accept().expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("cloned")).lines();
            if !lines.by_ref().map_while(Result::ok).any(|line| line.is_empty()) {
                continue;
            }
            let Some(answer) = answers.next() else { return };
            (&stream).write_all(answer.as_bytes()).expect("sent");
        }
    });
    open(&format!("http://127.0.0.1:{port}/cache/"))
}

fn open(address: &str) -> Arc<dyn Remote> {
    Connections::new(NetworkSettings::default()).open(address).expect("an address")
}

/// What comes of asking for the bytes 2 to 5 of a file.
fn range(answer: &'static str) -> Result<Option<String>, String> {
    // Three times, as a 500 is asked for again.
    let remote = server(vec![answer; 3]);
    let chain = |error: &dyn std::error::Error| {
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    };
    let body = remote.get(&CachePath::meta(), Some(2..5)).map_err(|error| chain(&error))?;
    let Some(mut body) = body else { return Ok(None) };
    let mut text = String::new();
    body.reader.read_to_string(&mut text).map_err(|error| error.to_string())?;
    assert_eq!(text.len() as u64, body.length);
    Ok(Some(text))
}

#[test]
fn a_range_is_that_range_or_an_error() {
    let good = "HTTP/1.1 206 P\r\nContent-Range: bytes 2-4/9\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(range(good), Ok(Some("abc".to_owned())));
    let missing = "HTTP/1.1 404 N\r\nContent-Length: 4\r\n\r\ngone";
    assert_eq!(range(missing), Ok(None));
    for (answer, part) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxxabcxxxx", "ignores ranges"),
        (
            "HTTP/1.1 206 P\r\nContent-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\nxxa",
            "another range",
        ),
        ("HTTP/1.1 500 E\r\nContent-Length: 2\r\n\r\nno", "HTTP status 500"),
        (
            "HTTP/1.1 302 F\r\nLocation: http://other.test/x\r\nContent-Length: 0\r\n\r\n",
            "other.test",
        ),
        ("HTTP/1.1 302 F\r\nLocation: /x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", ""),
        ("nonsense\r\n\r\n", ""),
    ] {
        let error = range(answer).expect_err(answer);
        assert!(error.contains(part), "{answer}: {error}");
    }
    let short = "HTTP/1.1 206 P\r\nContent-Range: bytes 2-4/9\r\nContent-Length: 3\r\n\
                 Connection: close\r\n\r\na";
    // The server goes away then.
    assert!(range(short).is_err());
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let busy =
        "HTTP/1.1 503 B\r\nContent-Length: 4\r\nRetry-After: 0\r\nConnection: close\r\n\r\nbusy";
    let good = "HTTP/1.1 200 O\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let body = server(vec![busy, busy, good]).get(&CachePath::meta(), None).expect("an answer");
    assert_eq!(body.expect("there").length, 1);
    assert!(server(vec![busy, busy, busy, good]).get(&CachePath::meta(), None).is_err());
}

#[test]
fn a_redirect_within_the_server_keeps_the_login() {
    let moved =
        "HTTP/1.1 302 F\r\nLocation: /b c\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let good = "HTTP/1.1 200 O\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let (address, heads) = heads(vec![moved, good]);
    let remote = open(&format!("http://me:pw@{address}/cache"));
    assert!(remote.get(&CachePath::meta(), None).expect("an answer").is_some());
    for line in ["GET /cache/srp-cache HTTP/1.1", "GET /b%20c HTTP/1.1"] {
        let head = heads.recv().expect("a request");
        assert!(head.starts_with(line), "{head}");
        assert!(head.contains("Basic bWU6cHc="), "{head}");
    }
}

/// A server that gives these answers in turn, and the head of each request.
fn heads(answers: Vec<&'static str>) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (sender, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
            let (mut head, mut length) = (String::new(), 0);
            while reader.read_line(&mut head).expect("a line") > 2 {
                let last = head.lines().last().unwrap_or_default().to_ascii_lowercase();
                if let Some(value) = last.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("a body");
            head += &String::from_utf8_lossy(&body);
            stream.write_all(answer.as_bytes()).expect("sent");
            sender.send(head).expect("awaited");
        }
    });
    (address, heads)
}

#[test]
fn every_method_goes_through_the_proxy() {
    use srp_store::cache::Content;
    let answer = "HTTP/1.1 200 O\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (proxy, heads) = heads(vec![answer; 4]);
    let network = NetworkSettings::from_variables(|name| {
        (name == "http_proxy").then(|| format!("http://me:pw@{proxy}"))
    });
    let remote = Connections::new(network).open("http://cache.test/c").expect("an address");
    let path = CachePath::meta();
    // A body that looks like a request is none.
    remote.put(&path, Content::Bytes(b"PUT /x HTTP/1.1\r\n")).expect("put");
    remote.stat(&path).expect("looked at");
    remote.delete(&path).expect("deleted");
    remote.get(&path, None).expect("read");
    for method in ["PUT", "HEAD", "DELETE", "GET"] {
        let head = heads.recv().expect("a request");
        let line = format!("{method} http://cache.test/c/{path} HTTP/1.1\r\n");
        assert!(head.starts_with(&line), "{head}");
        assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic "), "{head}");
        if method == "PUT" {
            assert!(head.ends_with("\r\n\r\nPUT /x HTTP/1.1\r\n"), "{head}");
        }
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let network = NetworkSettings::from_variables(|name| {
        (name == "http_proxy").then(|| "http://127.0.0.1:1".to_owned())
    });
    let remote = Connections::new(network).open("http://cache.test/c").expect("an address");
    let error = remote.get(&CachePath::meta(), None).expect_err("unreachable");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("the proxy http://127.0.0.1:1 cannot be reached"), "{cause}");
}

#[test]
fn addresses() {
    let connections = Connections::new(NetworkSettings::default());
    let url = |address: &str| connections.open(address).map(|remote| remote.url().to_owned());
    assert_eq!(url("/srv/cache"), Ok("file:///srv/cache".to_owned()));
    assert_eq!(url("file:///srv/a%20b"), Ok("file:///srv/a b".to_owned()));
    assert_eq!(url("https://me:secret@h.test/c/"), Ok("https://h.test/c".to_owned()));
    let bad = ["", "ftp://h.test/", "http://", "file://host/x", "http://h/?q", "s3://", "s3:///x"];
    for bad in bad {
        assert!(url(bad).is_err(), "{bad}");
    }
    let refused = url("ftp://h.test/").expect_err("refused").to_string();
    assert!(refused.contains("ftp:// is not supported; file://"), "{refused}");
}

#[cfg(feature = "s3")]
#[test]
fn addresses_of_buckets() {
    let connections = Connections::new(NetworkSettings::default());
    let url = |address: &str| connections.open(address).map(|remote| remote.url().to_owned());
    assert_eq!(url("s3://a.bucket/some/prefix/"), Ok("s3://a.bucket/some/prefix".to_owned()));
    assert_eq!(url("s3://bucket/"), Ok("s3://bucket".to_owned()));
    for bad in ["s3://a b", "s3://key:secret@bucket", "s3://b/a//b", "s3://b/..", "s3://b/?x"] {
        let refused = url(bad).expect_err("refused").to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }
}

#[cfg(not(feature = "s3"))]
#[test]
fn buckets_were_left_out() {
    let connections = Connections::new(NetworkSettings::default());
    let refused = connections.open("s3://b/x").map(drop).expect_err("refused").to_string();
    assert!(refused.contains("s3:// was left out when this srp was compiled"), "{refused}");
}

#[test]
fn nobody_listens() {
    let error = open("http://127.0.0.1:1/").get(&CachePath::meta(), None).expect_err("refused");
    assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
}
