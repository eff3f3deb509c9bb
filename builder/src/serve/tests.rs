//! Clients, good and bad, on real sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::cancel::CancelToken;

/// A file of a few megabytes, a page, and something that fails.
struct Files(tempfile::NamedTempFile);

pub(super) const FILE_BYTES: usize = 3 << 20;

impl Files {
    fn new() -> Files {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&content()).expect("written");
        Files(file)
    }
}

fn content() -> Vec<u8> {
    (0..FILE_BYTES).map(|at| (at * 31 / 7) as u8).collect()
}

impl Site for Files {
    fn get(&self, path: &str, _: Option<&str>) -> Result<Option<Resource>, SiteError> {
        let content = match path {
            "/" => Content::Bytes(b"a page".to_vec()),
            "/file" => Content::File(File::open(self.0.path())?, FILE_BYTES as u64),
            "/short" => Content::File(File::open(self.0.path())?, FILE_BYTES as u64 + 5),
            "/broken" => return Err("it is broken".into()),
            _ => return Ok(None),
        };
        Ok(Some(Resource { content, media_type: "text/plain", immutable: path == "/file" }))
    }
}

/// A server that runs until the value goes.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    cancel: CancelToken,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Running {
    pub(super) fn with(settings: Settings) -> Running {
        let server = Server::bind("127.0.0.1:0", settings).expect("a free port");
        let address = server.address().expect("bound");
        let cancel = CancelToken::new().expect("a token");
        let token = cancel.clone();
        let thread = std::thread::spawn(move || server.run(Arc::new(Files::new()), &token));
        Running { address, cancel, thread: Some(thread) }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream
    }

    /// What a request over a connection of its own brings.
    pub(super) fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        rest(&mut stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
        let thread = self.thread.take().expect("it was started");
        thread.join().expect("it doesn't panic").expect("it ends well");
    }
}

pub(super) fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the server ends it");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one response, whose body is as long as it says.
pub(super) fn response(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, body)
}

#[test]
fn whole_files_and_ranges_come_over_one_connection() {
    let server = Running::with(Settings::default());
    let mut stream = server.connect();
    // Two at once, which is allowed.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /file HTTP/1.1\r\nHost: h\r\n\r\n")
        .expect("sent");
    let (head, body) = response(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("no-cache"), "{head}");
    assert_eq!(body, b"a page");
    let (head, body) = response(&mut stream);
    assert!(head.contains("immutable") && head.contains("Accept-Ranges: bytes"), "{head}");
    assert!(body == content());
    for (asked, range) in [
        ("bytes=0-0", 0..1),
        ("bytes=1000000-2000000", 1_000_000..2_000_001),
        ("bytes=3145000-9999999", 3_145_000..FILE_BYTES),
        ("bytes=-7", FILE_BYTES - 7..FILE_BYTES),
    ] {
        write!(stream, "GET /file HTTP/1.1\r\nHost: h\r\nRange: {asked}\r\n\r\n").expect("sent");
        let (head, body) = response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        let place =
            format!("Content-Range: bytes {}-{}/{FILE_BYTES}\r\n", range.start, range.end - 1);
        assert!(head.contains(&place), "{head}");
        assert!(body == content()[range]);
    }
    write!(stream, "GET /file HTTP/1.1\r\nHost: h\r\nRange: bytes=99999999-\r\n\r\n")
        .expect("sent");
    let (head, _) = response(&mut stream);
    assert!(head.starts_with("HTTP/1.1 416 ") && head.contains("bytes */3145728"), "{head}");
    stream.write_all(b"HEAD /file HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").expect("sent");
    let head = rest(&mut stream);
    assert!(head.contains("Content-Length: 3145728\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn what_is_no_question_is_answered_so() {
    let server = Running::with(Settings::default());
    for (request, status) in [
        ("GET /other HTTP/1.0\r\n\r\n", "404"),
        ("GET /broken HTTP/1.0\r\n\r\n", "500"),
        ("PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("DELETE /file HTTP/1.0\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        ("GET / HTTP/7\r\n\r\n", "505"),
    ] {
        let answer = server.ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert!(server.ask(&long).starts_with("HTTP/1.1 431 "));
    // A file that is shorter than was promised ends the connection, so that nobody takes it for whole.
    let answer = server.ask("GET /short HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.contains("Content-Length: 3145733"), "{}", &answer[..200]);
}

#[test]
fn nobody_without_the_token_learns_anything() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("token");
    std::fs::write(&path, "s3cret\n").expect("written");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).expect("changed");
    let token = Some(Token::read(&path).expect("a token"));
    let server = Running::with(Settings { token, ..Settings::default() });
    for path in ["/", "/file", "/other"] {
        let answer = server.ask(&format!("GET {path} HTTP/1.0\r\nAuthorization: Bearer x\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.contains("WWW-Authenticate: Basic"), "{answer}");
    }
    let answer = server.ask("GET / HTTP/1.0\r\nAuthorization: Bearer s3cret\r\n\r\n");
    assert!(answer.ends_with("a page"), "{answer}");
}

#[test]
fn the_slow_are_given_up_and_the_idle_make_room() {
    let settings = Settings {
        connections: 1,
        open: 2,
        head: Duration::from_millis(600),
        stalled: Duration::from_millis(600),
        ..Settings::default()
    };
    let server = Running::with(settings);
    // Half a head, a byte at a time, however long that goes on.
    let mut slow = server.connect();
    let began = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nHost: h\r\n".iter().cycle() {
        if slow.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(10) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "a slow head goes on for ever");
    // One who asks for much and takes nothing: the server's send buffer fills, then time is up.
    let mut lazy = server.connect();
    lazy.write_all("GET /file HTTP/1.1\r\nHost: h\r\n\r\n".repeat(20).as_bytes()).expect("sent");
    // One who was served and is idle holds the only connection, until somebody else comes.
    let mut idle = server.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
    assert_eq!(response(&mut idle).1, b"a page");
    assert!(server.ask("GET / HTTP/1.0\r\n\r\n").ends_with("a page"));
    assert_eq!(rest(&mut idle), "");
    drop(lazy);
}

#[test]
fn many_at_once_are_all_served() {
    let server = Running::with(Settings { connections: 4, ..Settings::default() });
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut stream = server.connect();
                for _ in 0..4 {
                    stream.write_all(b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n").expect("sent");
                    assert!(response(&mut stream).1 == content());
                }
            });
        }
    });
}

#[test]
fn tls_by_certificate_files() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fetch/testdata");
    let tls = Tls::read(&data.join("server.pem"), &data.join("server.key")).expect("a certificate");
    let server = Running::with(Settings { tls: Some(tls), ..Settings::default() });
    let authority = data.join("ca.pem").to_str().expect("UTF-8").to_owned();
    let network = crate::fetch::NetworkSettings::from_variables(|name| {
        (name == "SSL_CERT_FILE").then(|| authority.clone())
    });
    let url = format!("https://{}/", server.address);
    let remote = crate::remote::Connections::new(network).open(&url).expect("an address");
    let path = srp_store::cache::CachePath::parse("file").expect("a path");
    for range in [None, Some(1_000_000..3_000_000)] {
        let mut body = remote.get(&path, range.clone()).expect("served").expect("there");
        let mut bytes = Vec::new();
        body.reader.read_to_end(&mut bytes).expect("read");
        let range = range.map_or(0..FILE_BYTES, |it| it.start as usize..it.end as usize);
        assert!(bytes == content()[range]);
    }
    // Who speaks no TLS gets no HTTP.
    assert!(!server.ask("GET / HTTP/1.0\r\n\r\n").contains("a page"));
    let none = data.join("ca.pem");
    assert!(matches!(Tls::read(&none, &none), Err(TlsError::Pem { .. })));
    let other = Tls::read(&none, &data.join("server.key"));
    assert!(matches!(other, Err(TlsError::Unusable { .. })), "the key of another certificate");
}
