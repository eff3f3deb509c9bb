//! A small HTTP server on this machine, for sources that only a test has.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use sha2::Digest;

/// A server that answers every request alike, until the tests end.
pub(crate) struct Server {
    port: u16,
    sha256: String,
}

impl Server {
    /// Serves these bytes.
    pub(crate) fn of(bytes: Vec<u8>) -> Server {
        let sha256: String =
            sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Server::start("200 OK", bytes, sha256)
    }

    /// Answers with this status line and page.
    pub(crate) fn answering(status: &'static str, page: &str) -> Server {
        Server::start(status, page.as_bytes().to_vec(), "0".repeat(64))
    }

    /// Promises a megabyte, and sends ten bytes a second.
    pub(crate) fn crawling() -> Server {
        Server::answered_by("0".repeat(64), |mut stream| {
            read_request(&stream)?;
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        })
    }

    /// Serves a directory, but of what is below `packs` ten bytes a second.
    pub(crate) fn crawling_packs(root: std::path::PathBuf) -> Server {
        Server::answered_by("0".repeat(64), move |mut stream| {
            let request = read_request(&stream)?;
            let path = request.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
            let path = root.join(path.trim_start_matches("/file/"));
            let Ok(bytes) = std::fs::read(&path) else {
                return answer(stream, "404 Not Found", b"");
            };
            if !path.starts_with(root.join("packs")) {
                return answer(stream, "200 OK", &bytes);
            }
            let range = request.iter().find_map(|line| line.split_once("bytes="));
            let (first, last) = range.and_then(|(_, range)| range.split_once('-')).unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}\r\n\
                 Content-Length: {}\r\n\r\n",
                bytes.len(),
                last + 1 - first
            )?;
            bytes[first..=last].iter().try_for_each(|byte| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                stream.write_all(&[*byte])
            })
        })
    }

    fn start(status: &'static str, bytes: Vec<u8>, sha256: String) -> Server {
        Server::answered_by(sha256, move |stream| {
            read_request(&stream)?;
            answer(stream, status, &bytes)
        })
    }

    fn answered_by(
        sha256: String,
        answer: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = std::sync::Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = std::sync::Arc::clone(&answer);
                // A client that went away is none of the server's business.
                std::thread::spawn(move || stream.and_then(|stream| answer(stream)));
            }
        });
        Server { port, sha256 }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/file", self.port)
    }

    /// The digest of what is served.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// The lines of a request's head.
fn read_request(stream: &TcpStream) -> std::io::Result<Vec<String>> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    lines.take_while(|line| !line.as_ref().is_ok_and(String::is_empty)).collect()
}

fn answer(mut stream: TcpStream, status: &str, bytes: &[u8]) -> std::io::Result<()> {
    let length = bytes.len();
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(bytes)
}
