//! Serving: a small web server for files, read-only, for the machine next door.
//!
//! A thread for each connection, blocking, because what it serves are files: the kernel copies them to
//! the socket (`sendfile`), so memory is flat whatever their size. The libraries that are kept for
//! this (hyper and what stands on it) pass every byte through user space, and those with threads
//! know no time-outs. So the parser is hyper's (`httparse`), TLS is rustls, and the rest is here:
//! `GET` and `HEAD` of whole files and single ranges over connections that are kept (RFC 9110,
//! 9112). It isn't a server for the open internet, and knows nothing of what it serves.

#[cfg(test)]
mod attacks;
mod connection;
mod crowd;
mod request;
mod response;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use response::{Content, Resource};
pub use server::{Server, Settings, Site, SiteError};
pub use tls::{Tls, TlsError};
pub use token::{Token, TokenError};

/// A client's bytes, for the fuzz target in `tests/fuzz`: what was parsed is no longer than they are,
/// a range that is asked for lies in the file, and a head ends where every other program says it does.
#[cfg(fuzzing)]
pub fn fuzz_request(bytes: &[u8]) {
    if let request::Parsed::Whole(request, length) = request::parse(bytes) {
        assert!(length <= bytes.len());
        let head = &bytes[..length];
        assert!(head.ends_with(b"\r\n\r\n"));
        assert!(!head.trim_ascii_start().windows(4).rev().skip(1).any(|it| it == b"\r\n\r\n"));
        // However it goes on, it is the same request.
        let more = [head, b"GET /x HTTP/1.1\r\nHost: y\r\n\r\n"].concat();
        assert_eq!(request::parse(&more), request::Parsed::Whole(request.clone(), length));
        for file in [0, 1, 1000, u64::MAX] {
            let range = request.range.and_then(|range| range.of(file));
            assert!(range.is_none_or(|range| range.start < range.end && range.end <= file));
        }
    }
}
