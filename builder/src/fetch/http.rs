//! The HTTP client, of fetches and of binary caches: redirects followed, proxies and certificates as
//! configured, and how answers are read. What an answer means for a fetch is `download`'s matter, what it
//! means for a cache `crate::remote`'s.
//!
//! A fetch's request has a thread of its own, because resolving, connecting and reading block, and whoever
//! waits must be able to give up (cancelled, too slow) at once. A request that was given up ends by itself
//! at its next time-out; nobody waits for it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ::url::Url;
use ureq::http::{HeaderMap, HeaderName, Method, Request, Response, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body, Proxy};

use super::error::Reason;
use super::forward;
use super::network::{CaCertificates, NetworkSettings};
use super::url;

/// As many as curl's users ever needed; a loop ends here.
const MAX_REDIRECTS: u32 = 10;

/// So many connections to one server are kept for later requests: as many as are used at once.
const IDLE_CONNECTIONS: usize = 16;

/// What is read from the network at once.
const CHUNK: usize = 1 << 16;

/// How long the steps before the first byte may take. Afterwards the reader of the answer watches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) answer: Duration,
    /// How long one read may block: the longest that an abandoned thread stays.
    pub(crate) read: Duration,
}

/// An HTTP client that several threads may use at once.
pub(crate) struct Client {
    network: NetworkSettings,
    timeouts: Timeouts,
    user_agent: String,
    // Each has a pool of connections and its certificates, read when it is first needed.
    agents: Mutex<HashMap<Route, Agent>>,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Route {
    Direct,
    /// The proxy is asked for the URL.
    Forward(String),
    /// The proxy is asked for a connection (CONNECT, SOCKS).
    Tunnel(String),
}

/// Where a request may be redirected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirects {
    /// To any web server, though not from one with TLS to one without: what comes is verified.
    Anywhere,
    /// Within scheme, host and port.
    SameOrigin,
}

/// The part of an answer's head that a fetch needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<ContentRange>,
    pub(super) html: bool,
    /// How the server has encoded the file, although asked not to.
    pub(super) encoding: Option<String>,
    /// What `If-Range` accepts: a strong `ETag`, else `Last-Modified`.
    pub(super) validator: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

/// What the thread of a request reports.
pub(super) enum Event {
    Head(Head),
    Data(Vec<u8>),
    End,
    /// The request failed; whether trying again may help.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// Whether trying again may help.
    pub(super) transient: bool,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { reason, transient: false }
    }
}

impl Client {
    pub(crate) fn new(network: NetworkSettings, timeouts: Timeouts, user_agent: String) -> Self {
        Self { network, timeouts, user_agent, agents: Mutex::default() }
    }

    /// Starts a request. `range` asks for the bytes from that offset on, if the file still has that
    /// validator.
    pub(super) fn start(
        self: &Arc<Self>,
        url: &str,
        range: Option<(u64, Option<String>)>,
    ) -> io::Result<Receiver<Event>> {
        // A few chunks ahead, so that hashing and writing overlap with the network.
        let (sender, receiver) = sync_channel(16);
        let client = Arc::clone(self);
        let url = url.to_owned();
        std::thread::Builder::new().name("srp-http".into()).spawn(move || {
            if let Err(failure) = client.run(&url, range, &sender) {
                // Whoever has gone doesn't need to know.
                let _ = sender.send(Event::Failed(failure));
            }
        })?;
        Ok(receiver)
    }

    fn run(
        &self,
        url: &str,
        range: Option<(u64, Option<String>)>,
        sender: &SyncSender<Event>,
    ) -> Result<(), Failure> {
        let mut headers = Vec::new();
        if let Some((offset, validator)) = range {
            headers.push((header::RANGE, format!("bytes={offset}-")));
            headers.extend(validator.map(|validator| (header::IF_RANGE, validator)));
        }
        let response = self.follow(Method::GET, url, &headers, Redirects::Anywhere)?;
        let head = head(response.status().as_u16(), response.headers());
        if sender.send(Event::Head(head)).is_err() {
            return Ok(());
        }
        let mut body = response.into_body().into_reader();
        loop {
            let mut chunk = vec![0; CHUNK];
            match body.read(&mut chunk) {
                Ok(0) => {
                    let _ = sender.send(Event::End);
                    return Ok(());
                }
                Ok(read) => {
                    chunk.truncate(read);
                    if sender.send(Event::Data(chunk)).is_err() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.classify(error.into())),
            }
        }
    }

    /// Sends a request without a body, and again wherever it is redirected to. Any other status is an
    /// answer.
    pub(crate) fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(HeaderName, String)],
        redirects: Redirects,
    ) -> Result<Response<Body>, Reason> {
        self.follow(method, url, headers, redirects).map_err(|failure| failure.reason)
    }

    /// Sends one request. Redirects are not followed, and any status is an answer.
    pub(crate) fn exchange(
        &self,
        method: Method,
        url: &str,
        headers: &[(HeaderName, String)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Reason> {
        let url = url::parse(url)?;
        self.request(method, &url, headers, body).map_err(|failure| failure.reason)
    }

    fn follow(
        &self,
        method: Method,
        url: &str,
        headers: &[(HeaderName, String)],
        redirects: Redirects,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url::parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(method.clone(), &url, headers, ())?;
            let location = response.headers().get(header::LOCATION);
            let Some(location) = location.filter(|_| is_redirect(response.status().as_u16()))
            else {
                return Ok(response);
            };
            let next = url::redirected(&url, location.as_bytes())?;
            let to = || url::redact(next.as_str());
            if redirects == Redirects::SameOrigin && next.origin() != url.origin() {
                return Err(Reason::ForeignRedirect { location: to() }.into());
            }
            if (url.scheme(), next.scheme()) == ("https", "http") {
                return Err(Reason::InsecureRedirect { location: to() }.into());
            }
            url = next;
        }
        Err(Reason::TooManyRedirects { limit: MAX_REDIRECTS }.into())
    }

    fn request(
        &self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, String)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let host = url.host_str().unwrap_or_default();
        let proxy = self.network.proxy_for(url.scheme(), host, url.port_or_known_default());
        let mut bare = url.clone();
        // These fail only for URLs without a host.
        let _ = bare.set_username("").and_then(|()| bare.set_password(None));
        let mut request = Request::builder().method(method).uri(bare.as_str());
        if !url.username().is_empty() || url.password().is_some() {
            let login = format!("{}:{}", url.username(), url.password().unwrap_or_default());
            request = request.header(header::AUTHORIZATION, basic(&login));
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let route = match proxy {
            None => Route::Direct,
            Some(proxy) if url.scheme() == "http" && is_plain_http(proxy) => {
                if let Some(login) = login(proxy) {
                    request = request.header(header::PROXY_AUTHORIZATION, login);
                }
                Route::Forward(proxy.to_owned())
            }
            Some(proxy) => Route::Tunnel(proxy.to_owned()),
        };
        let agent = self.agent(route)?;
        let request = request.body(body);
        let request = request.map_err(|error| Reason::InvalidUrl { detail: error.to_string() })?;
        agent.run(request).map_err(|error| {
            let failure = self.classify(error);
            let reason = match (proxy, failure.reason) {
                // It was the proxy that was connected to, or that should have been.
                (Some(proxy), reason) if reason.is_unreachable() => Reason::ProxyUnreachable {
                    proxy: url::redact(proxy),
                    detail: reason.to_string(),
                },
                (Some(proxy), Reason::Proxy { detail, .. }) => {
                    Reason::Proxy { proxy: url::redact(proxy), detail }
                }
                (_, reason) => reason,
            };
            Failure { reason, ..failure }
        })
    }

    fn agent(&self, route: Route) -> Result<Agent, Failure> {
        let mut agents = self.agents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(agent) = agents.get(&route) {
            return Ok(agent.clone());
        }
        let malformed = |proxy: &str| Reason::Proxy {
            proxy: url::redact(proxy),
            detail: "its address is malformed".into(),
        };
        let tunnel = match &route {
            Route::Tunnel(proxy) => Some(Proxy::new(proxy).map_err(|_| malformed(proxy))?),
            Route::Direct | Route::Forward(_) => None,
        };
        let config = Agent::config_builder()
            .proxy(tunnel)
            .tls_config(
                TlsConfig::builder().root_certs(roots(&self.network.ca_certificates)).build(),
            )
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(self.user_agent.as_str())
            .accept("*/*")
            // The digest is of the file as it is: nothing may be compressed for the way.
            .accept_encoding("identity")
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_recv_response(Some(self.timeouts.answer))
            .timeout_per_read(Some(self.timeouts.read))
            .timeout_per_write(Some(self.timeouts.read))
            .build();
        let agent = match &route {
            Route::Forward(proxy) => {
                let uri = with_scheme(proxy).parse().map_err(|_| malformed(proxy))?;
                forward::agent(config, uri)
            }
            Route::Direct | Route::Tunnel(_) => config.new_agent(),
        };
        agents.insert(route, agent.clone());
        Ok(agent)
    }

    /// Says what an error means to a user, and whether it is worth another try.
    fn classify(&self, error: ureq::Error) -> Failure {
        let detail = error.to_string();
        let (reason, transient) = match error {
            ureq::Error::HostNotFound => (Reason::Dns { detail }, false),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                let seconds = self.timeouts.connect.as_secs();
                (Reason::Unreachable { detail: format!("no answer within {seconds} s") }, false)
            }
            ureq::Error::Timeout(_) => {
                (Reason::Timeout { seconds: self.timeouts.answer.as_secs() }, true)
            }
            ureq::Error::Io(error) => return classify_io(&error),
            ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::Rustls(_) => {
                (Reason::Tls { detail }, false)
            }
            ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => {
                (Reason::Proxy { proxy: String::new(), detail }, false)
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => (Reason::InvalidUrl { detail }, false),
            _ => (Reason::Protocol { detail }, false),
        };
        Failure { reason, transient }
    }
}

fn classify_io(error: &io::Error) -> Failure {
    let detail = error.to_string();
    let (reason, transient) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (Reason::Refused, false),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            (Reason::Unreachable { detail }, false)
        }
        // rustls wraps its errors so while it shakes hands.
        io::ErrorKind::InvalidData => (Reason::Tls { detail }, false),
        // The standard library gives the resolver's failures no kind of their own.
        _ if detail.contains("failed to lookup address") => {
            let transient = detail.contains("Temporary failure");
            (Reason::Dns { detail }, transient)
        }
        _ => (Reason::Protocol { detail }, true),
    };
    Failure { reason, transient }
}

fn head(status: u16, headers: &HeaderMap) -> Head {
    let etag = text(headers, header::ETAG).filter(|etag| etag.starts_with('"'));
    Head {
        status,
        content_length: content_length(headers),
        content_range: content_range(headers),
        html: text(headers, header::CONTENT_TYPE)
            .is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("text/html")),
        encoding: text(headers, header::CONTENT_ENCODING)
            .map(str::trim)
            .filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity"))
            .map(str::to_owned),
        validator: etag.or(text(headers, header::LAST_MODIFIED)).map(str::to_owned),
        retry_after: retry_after(headers),
    }
}

/// A header's value, if it is text.
pub(crate) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What an answer says of its body's length.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.trim().parse().ok()
}

/// Which part of a file an answer holds, and how long the whole is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// The last byte's offset is not in it.
    pub(crate) bytes: Range<u64>,
    pub(crate) total: Option<u64>,
}

/// An answer's `Content-Range`: `bytes 5-9/10` or `bytes 5-9/*`.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    parse_content_range(text(headers, header::CONTENT_RANGE)?)
}

fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let bytes = first..last.checked_add(1)?;
    (!bytes.is_empty()).then(|| ContentRange { bytes, total: total.trim().parse().ok() })
}

/// When a server wants to be asked again: in so many seconds, or at a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, header::RETRY_AFTER)?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// Whether an answer of this status may be another one when the server is asked again.
pub(crate) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// The system's certificates, or those that were named instead.
///
/// Files that can't be read leave fewer roots; a server whose root is missing then fails by name.
fn roots(named: &CaCertificates) -> RootCerts {
    let loaded = if named.file.is_none() && named.directories.is_empty() {
        rustls_native_certs::load_native_certs()
    } else {
        let mut loaded = rustls_native_certs::load_certs_from_paths(named.file.as_deref(), None);
        for directory in &named.directories {
            let more = rustls_native_certs::load_certs_from_paths(None, Some(directory));
            loaded.certs.extend(more.certs);
            loaded.errors.extend(more.errors);
        }
        loaded
    };
    for error in &loaded.errors {
        tracing::warn!("a CA certificate was left out: {error}");
    }
    let certificates = loaded.certs.iter().map(|der| Certificate::from_der(der).to_owned());
    RootCerts::from(certificates)
}

fn with_scheme(proxy: &str) -> String {
    if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") }
}

fn is_plain_http(proxy: &str) -> bool {
    url::scheme(&with_scheme(proxy)).as_deref() == Some("http")
}

/// The value of `Proxy-Authorization` for a proxy whose URL holds a login.
fn login(proxy: &str) -> Option<String> {
    let uri: Uri = with_scheme(proxy).parse().ok()?;
    let (userinfo, _) = uri.authority()?.as_str().rsplit_once('@')?;
    Some(basic(userinfo))
}

/// The value of an `Authorization` header for `user:password`, whose escapes are decoded.
fn basic(userinfo: &str) -> String {
    let decoded = url::percent_decode(userinfo).unwrap_or_else(|| userinfo.as_bytes().to_vec());
    format!("Basic {}", base64(&decoded))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for position in 0..4 {
            let index = (bits >> (18 - 6 * position)) as usize & 63;
            text.push(if position <= group.len() { ALPHABET[index] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(basic("me:p%40ss"), "Basic bWU6cEBzcw==");
    }

    #[test]
    fn content_ranges() {
        let range = |bytes, total| Some(ContentRange { bytes, total });
        assert_eq!(parse_content_range("bytes 5-9/10"), range(5..10, Some(10)));
        assert_eq!(parse_content_range("bytes 5-9/*"), range(5..10, None));
        for bad in ["bytes */10", "lines 1-2/3", "bytes 9-5/10", "bytes 0-18446744073709551615/*"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn servers_say_when_to_come_back_in_seconds_or_by_date() {
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let soon = after(&soon).expect("a date");
        assert!(soon > Duration::from_secs(50) && soon <= Duration::from_secs(60), "{soon:?}");
        assert_eq!(after("tomorrow"), None);
    }

    #[test]
    fn proxies_may_lack_a_scheme_and_have_a_login() {
        assert!(is_plain_http("proxy.test:3128") && is_plain_http("HTTP://proxy.test"));
        assert!(!is_plain_http("socks5://proxy.test") && !is_plain_http("https://proxy.test"));
        assert_eq!(login("me:pw@proxy.test:3128").as_deref(), Some("Basic bWU6cHc="));
        assert_eq!(login("proxy.test:3128"), None);
    }
}
