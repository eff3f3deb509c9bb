//! A small HTTP server for the tests, on real sockets, whose every misbehaviour is written by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a client asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The request's target as it stood in the first line.
    pub(super) target: String,
    /// Headers by lower-case name.
    pub(super) headers: BTreeMap<String, String>,
    /// Which request to this server it was, from 0.
    pub(super) number: usize,
}

impl Asked {
    /// The offset that a `Range` header asks for.
    pub(super) fn offset(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// A server that runs until the test ends.
pub(super) struct TestServer {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl TestServer {
    /// Starts a server that answers every request by `answer` and then closes the connection.
    pub(super) fn start(answer: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let mut stream = stream.expect("a connection");
                    let Some(mut asked) = read_head(&stream) else { return };
                    {
                        let mut log = log.lock().expect("no panic holds it");
                        asked.number = log.len();
                        log.push(asked.clone());
                    }
                    answer(&asked, &mut stream);
                });
            }
        });
        Self { address, asked }
    }

    /// A server that serves these bytes as it should, with ranges and an entity tag.
    pub(super) fn serving(bytes: Vec<u8>) -> Self {
        Self::start(move |asked, stream| serve(asked, stream, &bytes))
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic holds it").clone()
    }
}

/// Answers as a good server does.
pub(super) fn serve(asked: &Asked, stream: &mut TcpStream, bytes: &[u8]) {
    let tag = "\"v1\"";
    let same = asked.headers.get("if-range").is_none_or(|wanted| wanted == tag);
    match asked.offset().filter(|_| same) {
        Some(offset) if offset >= bytes.len() => {
            respond(stream, "416 Range Not Satisfiable", &[], b"");
        }
        Some(offset) => {
            let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
            let headers = [("Content-Range", range.as_str()), ("ETag", tag)];
            respond(stream, "206 Partial Content", &headers, &bytes[offset..]);
        }
        None => respond(stream, "200 OK", &[("ETag", tag)], bytes),
    }
}

/// Writes a whole answer. The client may have gone: that is its right.
pub(super) fn respond(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) {
    start(stream, status, headers, Some(body.len()));
    let _ = stream.write_all(body);
}

/// Writes an answer's head only.
pub(super) fn start(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    length: Option<usize>,
) {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if let Some(length) = length {
        head += &format!("Content-Length: {length}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
}

fn read_head(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Asked { target, headers, number: 0 })
}
