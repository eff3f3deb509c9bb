//! Clients that want to smuggle requests past `srp serve`, or to starve others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{Test, tests};
use crate::support::Place;
use crate::support::place::list;
use crate::support::serving::Serving;

pub(crate) const TESTS: &[Test] = tests![
    what_ends_in_two_places_is_refused,
    unfinished_heads_and_slow_readers_starve_nobody,
    a_head_ends_in_time,
];

/// A store with an object that no socket's buffers hold, served; the path of its pack.
fn serving() -> (Place, Serving, String) {
    let big = "dd if=/dev/urandom of=$out/usr/big bs=1M count=12 2>/dev/null";
    let place = Place::new(&format!("return {{\"\": sh(\"big\", \"{big}\")}}"));
    place.realise("t.x");
    let server = Serving::of(&place, &[]);
    let packs = list(&place.store().join("served/packs"));
    let largest = packs.into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let name = format!("/packs/{}", largest.file_name().unwrap().to_str().unwrap());
    (place, server, name)
}

fn connect(server: &Serving) -> TcpStream {
    let stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn ask(server: &Serving, request: &[u8]) -> String {
    let mut stream = connect(server);
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn what_ends_in_two_places_is_refused() {
    let (_place, server, _) = serving();
    let smuggled = "GET /srp-cache HTTP/1.1\r\nHost: h\r\n\r\n";
    let length = smuggled.len();
    for fields in [
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: 0, {length}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length : {length}"),
        format!("Content-Length: {length}"),
        format!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\nX: {length}"),
        format!("X: y\nContent-Length: {length}"),
        format!("Content-Length: 0\r\n {length}"),
        "Transfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: x, identity".to_owned(),
        "Host: other".to_owned(),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{smuggled}");
        let answer = ask(&server, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{fields}: {answer}");
    }
    let head = b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \xff\r\n\r\n";
    let answer = ask(&server, &[head, smuggled.as_bytes()].concat());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

fn unfinished_heads_and_slow_readers_starve_nobody() {
    let (_place, server, pack) = serving();
    let mut held = Vec::new();
    for _ in 0..60 {
        let mut stream = connect(&server);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX: ").unwrap();
        held.push(stream);
    }
    for _ in 0..40 {
        let mut stream = connect(&server);
        let request = format!("GET {pack} HTTP/1.1\r\nHost: h\r\n\r\n").repeat(4);
        stream.write_all(request.as_bytes()).unwrap();
        held.push(stream);
    }
    std::thread::sleep(Duration::from_millis(500));
    let times: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let (head, body) = server.get("/srp-cache");
            assert!(head.starts_with("HTTP/1.1 200 ") && !body.is_empty(), "{head}");
            began.elapsed()
        })
        .collect();
    // The machine that runs the tests may be busy now and then; the server must not be.
    assert!(times.iter().min() < Some(&Duration::from_secs(1)), "{times:?}");
    assert!(times.iter().max() < Some(&Duration::from_secs(5)), "{times:?}");
}

fn a_head_ends_in_time() {
    let (_place, server, _) = serving();
    let mut stream = connect(&server);
    let began = Instant::now();
    let mut head = b"GET / HTTP/1.1\r\nHost: h\r\n".iter().chain(b"X: y\r\n".iter().cycle());
    while began.elapsed() < Duration::from_secs(40) {
        if stream.write_all(&[*head.next().unwrap()]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "a byte at a time, a head went on for {took:?}");
}
