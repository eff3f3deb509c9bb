//! Clients that mean harm, on real sockets: heads that never come, answers that nobody takes,
//! requests that end in two places.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use super::tests::{FILE_BYTES, Running, response, rest};
use super::*;

const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// A connection from an address of one's choice, with a small buffer for what it doesn't read.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let of = |address: SocketAddrV4| SockaddrIn::from(address);
    let kind = (AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let socket = socket(kind.0, kind.1, kind.2, None).expect("a socket");
    setsockopt(&socket, sockopt::RcvBuf, &4096).expect("set");
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
    bind(descriptor, &of(SocketAddrV4::new(from, 0))).expect("an address of this machine");
    connect(descriptor, &of(to)).expect("it listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream
}

/// Heads that have begun and don't end.
fn unfinished(from: Ipv4Addr, server: &Running, count: usize) -> Vec<TcpStream> {
    let mut streams: Vec<_> = (0..count).map(|_| connect_from(from, server.address)).collect();
    for stream in &mut streams {
        // Who is too many is turned away.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX: ");
    }
    streams
}

/// Those who ask for more than any buffer holds, and read nothing of it.
fn takes_nothing(
    from: impl Fn(usize) -> Ipv4Addr,
    server: &Running,
    count: usize,
) -> Vec<TcpStream> {
    let asked = "GET /file HTTP/1.1\r\nHost: h\r\n\r\n".repeat(20);
    let mut streams: Vec<_> = (0..count).map(|n| connect_from(from(n), server.address)).collect();
    for stream in &mut streams {
        let _ = stream.write_all(asked.as_bytes());
    }
    streams
}

/// How long an honest client takes for a small answer and a large one.
fn served(from: Ipv4Addr, server: &Running) -> Duration {
    let began = Instant::now();
    let mut stream = connect_from(from, server.address);
    setsockopt(&stream, sockopt::RcvBuf, &(1 << 20)).expect("set");
    for (path, bytes) in [("/", 6), ("/file", FILE_BYTES)] {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
        assert_eq!(response(&mut stream).1.len(), bytes);
    }
    began.elapsed()
}

#[test]
fn one_address_keeps_nobody_waiting() {
    let server = Running::with(Settings::default());
    let heads = unfinished(HOSTILE, &server, 60);
    let readers = takes_nothing(|_| HOSTILE, &server, 40);
    std::thread::sleep(Duration::from_millis(500));
    for from in [HONEST, HOSTILE, HONEST, HOSTILE, HONEST] {
        let took = served(from, &server);
        assert!(took < Duration::from_secs(1), "{from} was served after {took:?}");
    }
    drop((heads, readers));
}

#[test]
fn one_address_does_not_take_all_connections() {
    let settings = Settings { open: 32, connections: 8, ..Settings::default() };
    let server = Running::with(settings);
    let mut mine = connect_from(HONEST, server.address);
    mine.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
    assert_eq!(response(&mut mine).1, b"a page");
    // Far more than there is place for, heads and answers, for as long as others are served.
    let _heads = unfinished(HOSTILE, &server, 100);
    let _readers = takes_nothing(|_| HOSTILE, &server, 20);
    for _ in 0..3 {
        let took = served(HONEST, &server);
        assert!(took < Duration::from_secs(1), "served after {took:?}");
    }
    // Who was idle before it all began hasn't lost its connection by it.
    mine.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
    assert_eq!(response(&mut mine).1, b"a page");
}

#[test]
fn many_addresses_delay_others_for_a_bounded_time() {
    let server = Running::with(Settings { connections: 8, ..Settings::default() });
    let from = |n: usize| Ipv4Addr::new(127, 0, 1, n as u8);
    let readers = takes_nothing(from, &server, 24);
    std::thread::sleep(Duration::from_millis(300));
    let took = served(HONEST, &server);
    // Three lots of eight hold all slots for three seconds each.
    assert!(took < Duration::from_secs(15), "served after {took:?}");
    drop(readers);
}

#[test]
fn what_is_not_taken_ends() {
    let stalled = Duration::from_millis(600);
    let server = Running::with(Settings { stalled, ..Settings::default() });
    let mut reader = takes_nothing(|_| HOSTILE, &server, 1).remove(0);
    std::thread::sleep(Duration::from_secs(3));
    let mut bytes = Vec::new();
    // It ends, by a reset as a rule, long before all that was asked for.
    let _ = reader.read_to_end(&mut bytes);
    assert!(bytes.len() < 19 * FILE_BYTES, "{}", bytes.len());
}

#[test]
fn a_handshake_has_to_come_to_its_end() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fetch/testdata");
    let tls = Tls::read(&data.join("server.pem"), &data.join("server.key")).expect("a certificate");
    let head = Duration::from_millis(800);
    let server = Running::with(Settings { tls: Some(tls), head, ..Settings::default() });
    // A record of a handshake that goes on, a byte at a time.
    let mut slow = connect_from(HOSTILE, server.address);
    let began = Instant::now();
    let record = [&[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb][..], &[0; 4000]].concat();
    let ended = record.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        slow.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(10)
    });
    let took = began.elapsed();
    assert!(ended && took < Duration::from_secs(5), "a slow handshake went on for {took:?}");
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let server = Running::with(Settings::default());
    let smuggled = "GET /file HTTP/1.1\r\nHost: h\r\n\r\n";
    for fields in [
        format!("Content-Length: {}\r\nContent-Length: 0", smuggled.len()),
        format!("Content-Length: 0\r\nContent-Length: {}", smuggled.len()),
        format!("Content-Length: {}", smuggled.len()),
        format!("Content-Length : {}", smuggled.len()),
        format!("X: y\nContent-Length: {}", smuggled.len()),
        format!("Content-Length: 0\r\n {}", smuggled.len()),
        format!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\nX: {}", smuggled.len()),
        "Transfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: identity".to_owned(),
        "Content-Length: \u{663}\u{665}".to_owned(),
    ] {
        for method in ["GET", "HEAD", "POST"] {
            let request =
                format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{smuggled}{smuggled}");
            let answer = server.ask(&request);
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request}: {answer}");
            let refused =
                ["HTTP/1.1 400 ", "HTTP/1.1 405 "].iter().any(|it| answer.starts_with(it));
            assert!(refused && answer.contains("Connection: close\r\n"), "{request}: {answer}");
        }
    }
    let invalid =
        [b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \xff\r\n\r\n", smuggled.as_bytes()];
    let mut stream = server.connect();
    stream.write_all(&invalid.concat()).expect("sent");
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1 ").count() == 1);
}
