//! Serving: a small web server for files, read-only, for the machine next door.
//!
//! A thread for each connection, blocking, because what it serves are files: the kernel copies them to
//! the socket (`sendfile`), so memory is flat whatever their size. The libraries that are kept for
//! this (hyper and what stands on it) pass every byte through user space, and those with threads
//! know no time-outs. So the parser is hyper's (`httparse`), TLS is rustls, and the rest is here:
//! `GET` and `HEAD` of whole files and single ranges over connections that are kept (RFC 9110,
//! 9112). It isn't a server for the open internet, and knows nothing of what it serves.

mod connection;
mod request;
mod response;
mod server;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use response::{Content, Resource};
pub use server::{Server, Settings, Site, SiteError};
pub use tls::{Tls, TlsError};
pub use token::{Token, TokenError};

/// A client's bytes, for the fuzz target in `tests/fuzz`: what was parsed is no longer than they are,
/// and a range that is asked for lies in the file.
#[cfg(fuzzing)]
pub fn fuzz_request(bytes: &[u8]) {
    if let request::Parsed::Whole(request, length) = request::parse(bytes) {
        assert!(length <= bytes.len());
        for file in [0, 1, 1000, u64::MAX] {
            let range = request.range.and_then(|range| range.of(file));
            assert!(range.is_none_or(|range| range.start < range.end && range.end <= file));
        }
    }
}
