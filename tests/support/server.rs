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

    fn start(status: &'static str, bytes: Vec<u8>, sha256: String) -> Server {
        Server::answered_by(sha256, move |stream| answer(stream, status, &bytes))
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

fn read_request(stream: &TcpStream) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        if line?.is_empty() {
            break;
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream, status: &str, bytes: &[u8]) -> std::io::Result<()> {
    read_request(&stream)?;
    let length = bytes.len();
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(bytes)
}
