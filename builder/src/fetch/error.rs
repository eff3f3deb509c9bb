//! Everything that can go wrong while fetching, each place with its own reason.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::request::{Place, Sha256};

/// Why a fetch failed.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The request's name cannot be a file name.
    #[error(
        "{name:?} cannot be the name of a source: one file name of at most 190 bytes is needed"
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// Neither URLs nor directories were given.
    #[error("no place is known for {name} (sha256 {sha256})")]
    NoPlaces {
        /// The request's name.
        name: String,
        /// The request's digest.
        sha256: Sha256,
    },
    /// Every place failed.
    #[error("{}", all_failed(name, sha256, failures))]
    AllPlacesFailed {
        /// The request's name.
        name: String,
        /// The request's digest.
        sha256: Sha256,
        /// Each place in the order tried, with its reason.
        failures: Vec<PlaceFailure>,
    },
    /// The sources directory could not be used. No other place would mend that.
    #[error("cannot {action} {path}", path = path.display())]
    Sources {
        /// What was tried, such as `create` or `write`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("fetching {name} was cancelled")]
    Cancelled {
        /// The request's name.
        name: String,
    },
}

impl FetchError {
    /// What a user can do about it, one suggestion each; printed after the error.
    pub fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        match self {
            Self::AllPlacesFailed { failures, .. } => {
                let any = |test: fn(&Reason) -> bool| failures.iter().any(|f| test(&f.reason));
                if any(|r| matches!(r, Reason::Mirror(MirrorError::NoDebian { .. }))) {
                    hints.push(
                        "name a Debian mirror: set SRP_MIRROR_DEBIAN=URL, or mirrors.debian in the \
                         configuration (the URL under which pool/ lies)"
                            .into(),
                    );
                }
                if any(|r| matches!(r, Reason::Tls { .. })) {
                    hints.push(
                        "if a proxy or company certificate is in use, name its CA bundle by \
                         SSL_CERT_FILE"
                            .into(),
                    );
                }
                if failures.iter().any(|f| {
                    matches!(&f.place, Place::Url(url) if url.contains("/pool/"))
                        && matches!(f.reason, Reason::Status { status: 404, .. })
                }) {
                    hints.push(
                        "Debian removes superseded versions from its pool: set \
                         mirrors.debian-snapshot to a snapshot archive's URL"
                            .into(),
                    );
                }
                // Somebody has it, or something else by its name: carrying it here wouldn't help.
                if any(|r| matches!(r, Reason::WrongHash { .. })) {
                    return hints;
                }
                if any(|r| matches!(r, Reason::ProxyUnreachable { .. })) {
                    hints.push(
                        "the proxy is named by http_proxy, https_proxy or all_proxy; hosts that \
                         need none by no_proxy"
                            .into(),
                    );
                }
                hints.push(
                    "where the file is at hand, or another machine can reach it: `srp source mirror \
                     DIR` there makes a directory that is a place here"
                        .into(),
                );
            }
            Self::NoPlaces { .. } => hints.push(
                "give the source a URL, or name a directory that `srp source mirror` wrote".into(),
            ),
            Self::InvalidName { .. } | Self::Sources { .. } | Self::Cancelled { .. } => {}
        }
        hints
    }
}

/// One place and why it could not provide the file.
#[derive(Debug)]
pub struct PlaceFailure {
    /// The place.
    pub place: Place,
    /// The reason.
    pub reason: Reason,
}

impl fmt::Display for PlaceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// The places with their reasons; if all had one file and it is the wrong one, that instead.
fn all_failed(name: &str, sha256: &Sha256, failures: &[PlaceFailure]) -> String {
    let wrong = |failure: &PlaceFailure| match &failure.reason {
        Reason::WrongHash { actual, html: false, .. } => Some(*actual),
        _ => None,
    };
    let mut text = match failures.first().and_then(wrong) {
        Some(actual) if failures.iter().all(|failure| wrong(failure) == Some(actual)) => {
            let mut text =
                format!("wrong hash for {name}\n  expected {sha256}\n  got      {actual}");
            for PlaceFailure { place, reason } in failures {
                text += &format!("\n  from {place}");
                if let Reason::WrongHash { encoding, .. } = reason {
                    text += &encoded(encoding);
                }
            }
            return text;
        }
        _ => format!("no place had {name} (sha256 {sha256})"),
    };
    for failure in failures {
        text += &format!("\n  {failure}");
    }
    text
}

/// Why one place could not provide a file.
///
/// These are the ends of the error chain: causes are part of their text, because many of them are
/// printed side by side.
#[derive(Debug, Error)]
pub enum Reason {
    /// The host's name has no address.
    #[error("cannot resolve the host name ({detail})")]
    Dns {
        /// What the resolver said.
        detail: String,
    },
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// No route, or no answer to the attempt to connect.
    #[error("cannot connect ({detail})")]
    Unreachable {
        /// What the system said.
        detail: String,
    },
    /// A certificate that isn't trusted, or another failure of TLS.
    #[error("TLS failed ({detail})")]
    Tls {
        /// What the TLS library said.
        detail: String,
    },
    /// The proxy refused or its address is malformed.
    #[error("the proxy {proxy} failed ({detail})")]
    Proxy {
        /// Its address as configured, without a login.
        proxy: String,
        /// What went wrong.
        detail: String,
    },
    /// Nobody answers where the proxy should be.
    #[error("the proxy {proxy} cannot be reached ({detail})")]
    ProxyUnreachable {
        /// Its address as configured, without a login.
        proxy: String,
        /// Why not.
        detail: String,
    },
    /// The server's answer was an error.
    #[error("HTTP status {status}{}", known_status(*status))]
    Status {
        /// The status code.
        status: u16,
    },
    /// The server answers what HTTP doesn't allow.
    #[error("HTTP went wrong ({detail})")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
    /// More redirects than anyone needs.
    #[error("more than {limit} redirects")]
    TooManyRedirects {
        /// How many were followed.
        limit: u32,
    },
    /// An HTTPS server sent us to a place without TLS.
    #[error("refused to follow a redirect from HTTPS to {location}")]
    InsecureRedirect {
        /// Where to.
        location: String,
    },
    /// The server of a binary cache sent us to another one.
    #[error("refused to follow a redirect to another place, {location}")]
    ForeignRedirect {
        /// Where to.
        location: String,
    },
    /// The server sent us to what can't be a place.
    #[error("redirects to {location:?}, which is not a URL ({detail})")]
    InvalidRedirect {
        /// What it sent.
        location: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The connection was there, but nothing came over it.
    #[error("no answer within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// Bytes came, but too few.
    #[error("too slow: fewer than {bytes_per_second} bytes a second for {seconds} s")]
    TooSlow {
        /// The limit it fell below.
        bytes_per_second: u64,
        /// For how long.
        seconds: u64,
    },
    /// The transfer broke off.
    #[error("broke off after {received} bytes{}", of_total(*total))]
    Truncated {
        /// How many bytes are here.
        received: u64,
        /// How many there should be, where that is known.
        total: Option<u64>,
    },
    /// The file there has another size.
    #[error(
        "{} of {actual} bytes instead of the {expected} expected{}",
        thing(*html),
        encoded(encoding)
    )]
    WrongSize {
        /// The request's size.
        expected: u64,
        /// The size there (at least).
        actual: u64,
        /// Whether it looks like an HTML page, as captive portals and error pages do.
        html: bool,
        /// How the server had encoded it, although asked not to.
        encoding: Option<String>,
    },
    /// The file there has another digest.
    #[error(
        "wrong hash\n    expected {expected}\n    got      {actual} ({} of {size_bytes} bytes{})",
        thing(*html),
        encoded(encoding)
    )]
    WrongHash {
        /// The request's digest.
        expected: Sha256,
        /// The digest of what came.
        actual: Sha256,
        /// How many bytes came.
        size_bytes: u64,
        /// Whether it looks like an HTML page.
        html: bool,
        /// How the server had encoded it, although asked not to.
        encoding: Option<String>,
    },
    /// There is no git to fetch with.
    #[error("git is not installed, and git sources are fetched by it")]
    GitMissing,
    /// The repository can't be had, or is none that can be a source.
    #[error("git failed ({detail})")]
    Git {
        /// What git said, or what is wrong with the repository.
        detail: String,
    },
    /// A local file that isn't there or can't be read.
    #[error("cannot be read ({detail})")]
    Unreadable {
        /// What the system said.
        detail: String,
    },
    /// A URL of a kind that srp doesn't fetch, such as `ftp:`.
    #[error("{scheme}: URLs are not supported (https, http, file and mirror are)")]
    UnsupportedScheme {
        /// The URL's scheme.
        scheme: String,
    },
    /// No URL at all.
    #[error("not a URL ({detail})")]
    InvalidUrl {
        /// What is wrong with it.
        detail: String,
    },
    /// A `mirror:` URL that could not be resolved.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

impl Reason {
    /// Whether nobody was there to answer, which is nothing unusual behind a firewall.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Dns { .. } | Self::Refused | Self::Unreachable { .. })
    }
}

/// Why a `mirror://NAME/PATH` URL names no place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MirrorError {
    /// Not of the form `mirror://NAME/PATH`.
    #[error("malformed: a mirror URL is mirror://NAME/PATH, without `..`")]
    Malformed,
    /// The configuration knows no mirror of that name.
    #[error("no mirror named {name:?} is configured (mirrors.{name})")]
    Unknown {
        /// The mirror's name.
        name: String,
    },
    /// No Debian mirror is configured, and apt's configuration has none.
    #[error(
        "no Debian mirror is known: neither SRP_MIRROR_DEBIAN nor mirrors.debian is set{}",
        apt_had_none(apt_directory)
    )]
    NoDebian {
        /// The apt configuration that was read.
        apt_directory: Option<PathBuf>,
    },
}

fn apt_had_none(directory: &Option<PathBuf>) -> String {
    match directory {
        Some(path) => format!(", and {} names none that can be used", path.display()),
        None => String::new(),
    }
}

fn known_status(status: u16) -> &'static str {
    match status {
        300..=399 => " (a redirect that leads nowhere)",
        401 => " (needs a login)",
        403 => " (forbidden)",
        404 => " (not found)",
        407 => " (the proxy needs a login)",
        410 => " (gone)",
        429 => " (too many requests)",
        500..=599 => " (the server failed)",
        _ => "",
    }
}

fn of_total(total: Option<u64>) -> String {
    total.map(|total| format!(" of {total}")).unwrap_or_default()
}

fn encoded(encoding: &Option<String>) -> String {
    match encoding {
        Some(encoding) => format!(", which the server had encoded (Content-Encoding: {encoding})"),
        None => String::new(),
    }
}

fn thing(html: bool) -> &'static str {
    if html { "an HTML page" } else { "a file" }
}
