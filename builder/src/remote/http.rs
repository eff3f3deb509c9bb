//! A cache behind a web server: `http://` and `https://`.
//!
//! GET with ranges over connections that are kept; PUT and HEAD to publish, as nginx with DAV and
//! others take them. A server that answers a range with something else, doesn't say how long its
//! answer is, or sends its readers to another host is an error of the transport. To look after a
//! cache there, the server must list directories as JSON, the way nginx does, and take DELETE.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use srp_store::cache::{Body, CacheError, CachePath, Content, Remote, Stat};
use ureq::http::{HeaderName, Method, Response, header};
use ureq::{AsSendBody, Body as Answer};

use crate::fetch::http::{self, content_length, text};
use crate::fetch::{Client, LowSpeed, Pace, Reason, Redirects, url};

/// How often a server that says "try again" is asked again, and how long is waited for that at most:
/// whoever asks a cache could build meanwhile.
const RETRIES: u32 = 2;
const RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// An error page that is no longer is read, so that its connection can be used again.
const PAGE_BYTES: u64 = 16 << 10;
/// And for no longer than this.
const PAGE_TIME: Duration = Duration::from_secs(2);

/// No directory of a cache takes more to list: that is a million files.
const INDEX_BYTES: u64 = 256 << 20;

/// A web server's folder that a cache lies in.
pub(super) struct HttpRemote {
    client: Arc<Client>,
    /// With credentials, without slash at its end.
    base: String,
    /// For people.
    url: String,
}

impl HttpRemote {
    pub(super) fn new(client: Arc<Client>, address: &str) -> HttpRemote {
        let base = address.trim_end_matches('/').to_owned();
        let url = url::redact(&base);
        HttpRemote { client, base, url }
    }

    fn error(&self, action: &'static str, path: &CachePath, source: Error) -> CacheError {
        CacheError::Transport { action, url: self.url.clone(), path: path.to_string(), source }
    }

    /// Sends a request without a body, again where it is redirected to on the same host, and again if
    /// the server says that it may go well then.
    fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Answer>, Error> {
        let at = format!("{}/{path}", self.base);
        let mut tries = 0;
        loop {
            let answer = self.client.ask(method.clone(), &at, headers, Redirects::SameOrigin);
            let response = answer.map_err(error_of)?;
            if tries == RETRIES || !http::is_transient(response.status().as_u16()) {
                return Ok(response);
            }
            let delay = http::retry_after(response.headers());
            let length = content_length(response.headers());
            drain(response, length);
            let delay = delay.unwrap_or(RETRY_DELAY * 2u32.pow(tries));
            std::thread::sleep(delay.min(MAX_RETRY_DELAY));
            tries += 1;
        }
    }

    fn exchange(
        &self,
        method: Method,
        url: &str,
        body: impl AsSendBody,
    ) -> Result<Response<Answer>, Error> {
        self.client.exchange(method, url, &[], body).map_err(error_of)
    }

    fn read(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, Error> {
        let mut headers = Vec::new();
        if let Some(range) = &range {
            if range.start >= range.end {
                return Ok(Some(Body { length: 0, reader: Box::new(std::io::empty()) }));
            }
            headers.push((header::RANGE, format!("bytes={}-{}", range.start, range.end - 1)));
        }
        let response = self.ask(Method::GET, path.as_str(), &headers)?;
        let status = response.status().as_u16();
        let length = content_length(response.headers());
        let length = match (status, range) {
            (404 | 410, _) => {
                drain(response, length);
                return Ok(None);
            }
            (200, None) => {
                length.ok_or_else(|| Error::other("the server doesn't say how long it is"))?
            }
            (206, Some(range)) => {
                match http::content_range(response.headers()).map(|served| served.bytes) {
                    Some(served) if served == range => range.end - range.start,
                    Some(served) if served.start == range.start && served.end < range.end => {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    _ => return Err(Error::other("the server answers with another range")),
                }
            }
            // All of a file is as good as a range that is all of it.
            (200, Some(range)) if range.start == 0 && length == Some(range.end) => range.end,
            (200, Some(_)) => return Err(Error::other("the server ignores ranges")),
            (416, Some(_)) => return Err(ErrorKind::UnexpectedEof.into()),
            (status, _) => {
                drain(response, length);
                return Err(Error::other(Reason::Status { status }.to_string()));
            }
        };
        let from = response.into_body().into_reader();
        Ok(Some(Body { length, reader: Box::new(Exactly::new(from, length)) }))
    }

    fn write(&self, path: &CachePath, content: Content<'_>) -> Result<(), Error> {
        let at = format!("{}/{path}", self.base);
        let response = match content {
            Content::Bytes(bytes) => self.exchange(Method::PUT, &at, bytes)?,
            Content::File(from) | Content::Staged(from) => {
                self.exchange(Method::PUT, &at, &File::open(from)?)?
            }
        };
        let status = response.status().as_u16();
        let length = content_length(response.headers());
        drain(response, length);
        match status {
            200 | 201 | 204 => Ok(()),
            401 | 403 | 405 | 501 => {
                let reason = format!("the server takes no PUT here (HTTP status {status})");
                Err(Error::new(ErrorKind::PermissionDenied, reason))
            }
            status => Err(Error::other(Reason::Status { status }.to_string())),
        }
    }

    fn remove(&self, path: &CachePath) -> Result<(), Error> {
        let at = format!("{}/{path}", self.base);
        let response = self.exchange(Method::DELETE, &at, ())?;
        let status = response.status().as_u16();
        let length = content_length(response.headers());
        drain(response, length);
        match status {
            200 | 202 | 204 | 404 | 410 => Ok(()),
            401 | 403 | 405 | 501 => {
                let reason = format!("the server takes no DELETE here (HTTP status {status})");
                Err(Error::new(ErrorKind::PermissionDenied, reason))
            }
            status => Err(Error::other(Reason::Status { status }.to_string())),
        }
    }

    /// What is in a directory, whose path is empty or ends with a slash; nothing if it isn't there.
    /// [`ErrorKind::Unsupported`] if the server doesn't say.
    fn index(&self, directory: &str) -> Result<Vec<Entry>, Error> {
        let response = self.ask(Method::GET, directory, &[])?;
        let is_json = text(response.headers(), header::CONTENT_TYPE)
            .is_some_and(|it| it.starts_with("application/json"));
        match response.status().as_u16() {
            200 if is_json => {}
            404 | 410 => return Ok(Vec::new()),
            200 | 403 | 405 => return Err(ErrorKind::Unsupported.into()),
            status => return Err(Error::other(Reason::Status { status }.to_string())),
        }
        let mut json = Vec::new();
        response.into_body().into_reader().take(INDEX_BYTES).read_to_end(&mut json)?;
        serde_json::from_slice(&json).map_err(|_| ErrorKind::Unsupported.into())
    }

    fn index_all(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, Error> {
        // Where directories are but a part of names, nothing is at any of them: a server that lists
        // shows what is certainly there.
        if !self.index("")?.iter().any(|entry| entry.name == CachePath::meta().as_str()) {
            return Err(ErrorKind::Unsupported.into());
        }
        let mut found = Vec::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            for Entry { name, kind, mtime, size } in self.index(&format!("{directory}/"))? {
                let Some(path) = CachePath::parse(&format!("{directory}/{name}")) else { continue };
                let modified = httpdate::parse_http_date(&mtime).ok();
                // A server that names directories in directories without end is asked no further.
                let deep = path.as_str().split('/').count() >= MOST_PARTS;
                match (kind.as_str(), size) {
                    ("directory", _) if deep => {}
                    ("directory", _) => pending.push(path.as_str().to_owned()),
                    ("file", Some(size_bytes)) => found.push((path, Stat { size_bytes, modified })),
                    _ => {}
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn look(&self, path: &CachePath) -> Result<Option<Stat>, Error> {
        let response = self.ask(Method::HEAD, path.as_str(), &[])?;
        match response.status().as_u16() {
            200 => {
                let headers = response.headers();
                let size_bytes = content_length(headers)
                    .ok_or_else(|| Error::other("the server doesn't say how long it is"))?;
                let modified = text(headers, header::LAST_MODIFIED)
                    .and_then(|it| httpdate::parse_http_date(it).ok());
                Ok(Some(Stat { size_bytes, modified }))
            }
            404 | 410 => Ok(None),
            status => Err(Error::other(Reason::Status { status }.to_string())),
        }
    }
}

impl Remote for HttpRemote {
    fn url(&self) -> &str {
        &self.url
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        self.read(path, range).map_err(|error| self.error("read", path, error))
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        self.write(path, content).map_err(|error| self.error("write", path, error))
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        self.look(path).map_err(|error| self.error("look at", path, error))
    }

    /// HTTP has no way to renew a file's time but to send it again: it is treated as if it were
    /// not there.
    fn refresh(&self, _: &CachePath) -> Result<bool, CacheError> {
        Ok(false)
    }

    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        let (url, path) = (self.url.clone(), directory.to_owned());
        self.index_all(directory).map_err(|source| match source.kind() {
            ErrorKind::Unsupported => CacheError::Unsupported { action: "be listed", url },
            _ => CacheError::Transport { action: "list", url, path, source },
        })
    }

    fn delete(&self, path: &CachePath) -> Result<(), CacheError> {
        self.remove(path).map_err(|error| self.error("delete", path, error))
    }
}

/// No path of a cache has more parts.
const MOST_PARTS: usize = 4;

/// What a directory holds, as nginx says it with `autoindex_format json`.
#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    mtime: String,
    size: Option<u64>,
}

/// What a reason is among the errors of I/O, by which callers tell what to do.
pub(super) fn kind_of(reason: &Reason) -> ErrorKind {
    match reason {
        Reason::Refused => ErrorKind::ConnectionRefused,
        Reason::Dns { .. } | Reason::Unreachable { .. } => ErrorKind::HostUnreachable,
        Reason::ProxyUnreachable { .. } => ErrorKind::HostUnreachable,
        Reason::Timeout { .. } => ErrorKind::TimedOut,
        Reason::Protocol { .. } => ErrorKind::ConnectionAborted,
        _ => ErrorKind::Other,
    }
}

fn error_of(reason: Reason) -> Error {
    Error::new(kind_of(&reason), reason.to_string())
}

/// The bytes that were promised, unless they come too slowly. When they have come the connection is free for the next request.
pub(super) struct Exactly<R> {
    from: R,
    left: u64,
    pace: Pace,
}

impl<R> Exactly<R> {
    pub(super) fn new(from: R, length: u64) -> Exactly<R> {
        Exactly { from, left: length, pace: Pace::new(LowSpeed::default()) }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let asked = Instant::now();
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if self.pace.is_too_slow(asked.elapsed(), count as u64) {
            let LowSpeed { bytes_per_second, seconds } = LowSpeed::default();
            let reason = Reason::TooSlow { bytes_per_second, seconds };
            return Err(Error::new(ErrorKind::TimedOut, reason.to_string()));
        }
        self.left -= count as u64;
        if self.left == 0 {
            // The end has to be seen; what else would come is nobody's.
            let _ = self.from.read(&mut [0]);
        }
        Ok(count)
    }
}

/// Reads a short page to its end, if it comes quickly.
fn drain(response: Response<Answer>, length: Option<u64>) {
    if length.is_some_and(|length| length <= PAGE_BYTES) {
        page(&mut response.into_body().into_reader());
    }
}

/// A page for people, or as much of it as is short and comes quickly.
pub(super) fn page(from: &mut dyn Read) -> Vec<u8> {
    let began = Instant::now();
    let mut page = Vec::new();
    let mut buffer = [0; 4096];
    while began.elapsed() < PAGE_TIME && (page.len() as u64) <= PAGE_BYTES {
        match from.read(&mut buffer) {
            Ok(count) if count > 0 => page.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    page
}
