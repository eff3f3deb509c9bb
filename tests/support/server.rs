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

    fn start(status: &'static str, bytes: Vec<u8>, sha256: String) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that went away is none of the server's business.
                let _ = stream.and_then(|stream| answer(stream, status, &bytes));
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

fn answer(mut stream: TcpStream, status: &str, bytes: &[u8]) -> std::io::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let length = bytes.len();
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(bytes)
}
