//! Responses: what is served, and how it is written to a connection.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::ops::Range;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64 as sendfile;

use crate::serve::connection::Stream;
use crate::serve::request::AskedRange;

/// What is sent between two looks at the clock.
const CHUNK_BYTES: u64 = 128 << 10;

/// Something that is served.
#[derive(Debug)]
pub struct Resource {
    /// What it is.
    pub content: Content,
    /// Its media type.
    pub media_type: &'static str,
    /// Whether it never changes.
    pub immutable: bool,
}

/// The bytes.
#[derive(Debug)]
pub enum Content {
    /// A few.
    Bytes(Vec<u8>),
    /// A file, and its length. Its position is moved.
    File(File, u64),
}

impl Content {
    fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, length) => *length,
        }
    }
}

/// How a client wants to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    /// Whether it may ask again over this connection.
    pub(super) keep_alive: bool,
    /// Whether it wants more than the head.
    pub(super) body: bool,
}

/// Answers with a resource, or the part of it that was asked for.
pub(super) fn resource(
    to: &mut Stream,
    reply: Reply,
    asked: Option<AskedRange>,
    resource: Resource,
) -> Result<()> {
    let length = resource.content.length();
    let range = asked.map(|asked| asked.of(length));
    let (status, range, place) = match range {
        None => (200, 0..length, String::new()),
        Some(Some(range)) => {
            let (first, last) = (range.start, range.end - 1);
            (206, range, format!("Content-Range: bytes {first}-{last}/{length}\r\n"))
        }
        Some(None) => {
            let fields = format!("Content-Range: bytes */{length}\r\n");
            return message(to, reply, 416, &fields);
        }
    };
    let caching =
        if resource.immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let fields = format!(
        "{place}Accept-Ranges: bytes\r\nCache-Control: {caching}\r\n\
         Content-Type: {}\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n",
        resource.media_type
    );
    let head = head(status, reply, &fields, range.end - range.start);
    if !reply.body {
        return to.write_all(&head);
    }
    match resource.content {
        Content::Bytes(bytes) => {
            // In one piece: a second one might wait until the first is acknowledged.
            let part = &bytes[range.start as usize..range.end as usize];
            to.write_all(&[&head, part].concat())
        }
        Content::File(file, _) => {
            to.write_all(&head)?;
            send(to, file, range)
        }
    }
}

/// Answers with a status and a line that says what it means.
pub(super) fn message(to: &mut Stream, reply: Reply, status: u16, fields: &str) -> Result<()> {
    let text = format!("{status} {}\n", reason(status));
    let fields = format!("{fields}Content-Type: text/plain; charset=utf-8\r\n");
    let mut bytes = head(status, reply, &fields, text.len() as u64);
    if reply.body {
        bytes.extend_from_slice(text.as_bytes());
    }
    to.write_all(&bytes)
}

fn head(status: u16, reply: Reply, fields: &str, length: u64) -> Vec<u8> {
    let connection = if reply.keep_alive { "" } else { "Connection: close\r\n" };
    let reason = reason(status);
    format!("HTTP/1.1 {status} {reason}\r\n{fields}Content-Length: {length}\r\n{connection}\r\n")
        .into_bytes()
}

/// Sends a part of a file. Over plain TCP the kernel does it (`sendfile`): what is served as a file
/// never changes, so nobody can see pages that changed on the way. `std::io::copy` doesn't know that,
/// and copies.
fn send(to: &mut Stream, mut file: File, range: Range<u64>) -> Result<()> {
    file.seek(SeekFrom::Start(range.start))?;
    let mut buffer = Vec::new();
    let mut left = range.end - range.start;
    while left > 0 {
        let chunk = left.min(CHUNK_BYTES);
        let sent = match to {
            Stream::Plain(to) => {
                to.before_write()?;
                match sendfile(to.tcp(), &file, None, chunk as usize) {
                    Err(Errno::EINTR) => continue,
                    // Not a byte was taken for as long as a write may last.
                    Err(Errno::EAGAIN) => return Err(ErrorKind::TimedOut.into()),
                    sent => {
                        let sent = sent? as u64;
                        to.written(sent);
                        sent
                    }
                }
            }
            Stream::Tls(to) => {
                // `copy` would do it in pieces that are half a record of TLS.
                buffer.clear();
                (&file).take(chunk).read_to_end(&mut buffer)?;
                to.write_all(&buffer)?;
                buffer.len() as u64
            }
        };
        if sent == 0 {
            // Nothing can be said any more but that it isn't complete.
            return Err(Error::new(ErrorKind::UnexpectedEof, "a file became shorter"));
        }
        left -= sent;
    }
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}
