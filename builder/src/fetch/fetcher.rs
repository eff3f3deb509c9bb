//! The fetcher: a request's places in their order, until one has the file.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::Digest;

use super::download::{Download, Failed, Patience, Transferred};
use super::error::{FetchError, PlaceFailure, Reason};
use super::git::{GitFetch, GitPlace};
use super::http::{Client, Timeouts};
use super::mirrors::Mirrors;
use super::network::NetworkSettings;
use super::pace::LowSpeed;
use super::request::{FetchRequest, Fetched, Place, Progress, Sha256};
use super::sources::{Claim, Partial, Sources};
use super::url;
use crate::cancel::CancelToken;

/// How to fetch. The defaults suit people; tests are less patient.
#[derive(Debug)]
pub struct FetcherConfig {
    /// What `mirror:` URLs stand for.
    pub mirrors: Mirrors,
    /// Sources directories to look in before any URL: other stores' `sources/`, or what `srp source
    /// mirror` wrote. They are only read; what is taken from them is verified.
    pub directories: Vec<PathBuf>,
    /// Proxies and certificates.
    pub network: NetworkSettings,
    /// The program that git sources are fetched by, by its absolute path.
    pub git: PathBuf,
    /// What servers are told.
    pub user_agent: String,
    /// How long resolving and connecting may take, each.
    pub connect_timeout: Duration,
    /// How long a server may take from the request to its answer's head.
    pub answer_timeout: Duration,
    /// A transfer below this speed for `low_speed_seconds` is given up for the next place.
    pub low_speed_bytes_per_second: u64,
    /// See `low_speed_bytes_per_second`.
    pub low_speed_seconds: u64,
    /// How often a place is tried again after an error that may pass (a broken connection, a 503).
    pub retries: u32,
    /// The pause before the first retry; it doubles.
    pub retry_delay: Duration,
}

impl Default for FetcherConfig {
    fn default() -> Self {
        let low_speed = LowSpeed::default();
        Self {
            mirrors: Mirrors::default(),
            directories: Vec::new(),
            network: NetworkSettings::default(),
            git: "/usr/bin/git".into(),
            user_agent: concat!("srp/", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            low_speed_bytes_per_second: low_speed.bytes_per_second,
            low_speed_seconds: low_speed.seconds,
            retries: 3,
            retry_delay: Duration::from_millis(500),
        }
    }
}

/// Fetches sources. One fetcher serves any number of threads and keeps connections open between files.
pub struct Fetcher {
    mirrors: Mirrors,
    directories: Vec<PathBuf>,
    client: Arc<Client>,
    network: NetworkSettings,
    git: PathBuf,
    patience: Patience,
}

impl Fetcher {
    /// A fetcher with this configuration. Nothing is read or connected yet.
    pub fn new(config: FetcherConfig) -> Self {
        let timeouts = Timeouts {
            connect: config.connect_timeout,
            answer: config.answer_timeout,
            // The low-speed limit acts first; this one ends threads that were given up.
            read: Duration::from_secs(config.low_speed_seconds + 5),
        };
        Self {
            mirrors: config.mirrors,
            directories: config.directories,
            network: config.network.clone(),
            git: config.git,
            client: Arc::new(Client::new(config.network, timeouts, config.user_agent)),
            patience: Patience {
                retries: config.retries,
                retry_delay: config.retry_delay,
                low_speed: LowSpeed {
                    bytes_per_second: config.low_speed_bytes_per_second,
                    seconds: config.low_speed_seconds,
                },
            },
        }
    }

    /// Makes the requested file lie in the directory `sources`, which is created where needed.
    ///
    /// Places are tried in this order: `sources` itself (hashed again: what was verified once may be
    /// damaged since), other sources directories, the URLs as given (`mirror:` URLs resolved), and last the mirrors' snapshot
    /// archives. Everything that is copied or transferred is hashed before it gets its name; what
    /// has the wrong hash is dropped. Blocks; a cancelled fetch returns within about a second and
    /// leaves what came for the next one.
    pub fn fetch(
        &self,
        request: &FetchRequest,
        sources: &Path,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Fetched, FetchError> {
        request.check()?;
        let directory = Sources::open(sources)?;
        let mut partial = loop {
            match directory.claim(request, progress, cancel)? {
                Claim::Complete(path) if is_whole(&path, request, cancel)? => {
                    return Ok(fetched(path, Place::Present));
                }
                Claim::Complete(path) => {
                    tracing::warn!(path = %path.display(), "a source is damaged, and is fetched again");
                    // Or somebody else has done so.
                    if let Err(source) = std::fs::remove_file(&path)
                        && source.kind() != io::ErrorKind::NotFound
                    {
                        return Err(FetchError::Sources { action: "remove", path, source });
                    }
                }
                Claim::Partial(partial) => break partial,
            }
        };
        // A crash between the last byte and the rename.
        if partial.length() > 0 && partial.digest() == request.sha256 {
            let mut fetched = fetched(partial.commit()?, Place::Partial);
            fetched.resumed = true;
            return Ok(fetched);
        }
        let mut transferred = Transferred::default();
        let mut failures = Vec::new();
        for place in self.places(request, sources) {
            let outcome = match place {
                Ok(place) => self
                    .try_place(&place, request, &mut partial, &mut transferred, progress, cancel)
                    .map(|()| place.clone())
                    .map_err(|failed| (place, failed)),
                Err(failure) => {
                    let PlaceFailure { place, reason } = *failure;
                    Err((place, Failed::Place(reason)))
                }
            };
            match outcome {
                Ok(from) => {
                    let Transferred { bytes: bytes_transferred, resumed } = transferred;
                    let path = partial.commit()?;
                    return Ok(Fetched { path, from, bytes_transferred, resumed });
                }
                Err((_, Failed::Everything(error))) => return Err(error),
                Err((place, Failed::Place(reason))) => {
                    let failure = PlaceFailure { place, reason };
                    progress.failed(&failure);
                    failures.push(failure);
                }
            }
        }
        let (name, sha256) = (request.name.clone(), request.sha256);
        Err(if failures.is_empty() {
            FetchError::NoPlaces { name, sha256 }
        } else {
            FetchError::AllPlacesFailed { name, sha256, failures }
        })
    }

    /// Every place to try, in order; those that can't be resolved with the reason.
    fn places(
        &self,
        request: &FetchRequest,
        sources: &Path,
    ) -> Vec<Result<Place, Box<PlaceFailure>>> {
        let mut places = Vec::new();
        let directories = self.directories.iter().map(PathBuf::as_path);
        for directory in std::iter::once(sources).chain(directories) {
            let found = Sources::by_digest(directory, request.sha256);
            places.extend(found.into_iter().map(|path| Ok(Place::Directory(path))));
        }
        let mut fallbacks = Vec::new();
        for text in &request.urls {
            let failed =
                |reason| Box::new(PlaceFailure { place: Place::Unresolved(text.clone()), reason });
            match url::scheme(text).as_deref() {
                Some("http" | "https") => places.push(Ok(Place::Url(text.clone()))),
                Some("file") => places.push(match url::file_path(text) {
                    Some(path) => Ok(Place::File(path)),
                    None => {
                        let detail = "a file: URL names an absolute local path".to_owned();
                        Err(failed(Reason::InvalidUrl { detail }))
                    }
                }),
                Some("mirror") => {
                    match self.mirrors.resolve(text) {
                        Ok(urls) => places.extend(urls.into_iter().map(from_base)),
                        Err(error) => places.push(Err(failed(error.into()))),
                    }
                    fallbacks.extend(self.mirrors.fallbacks(text).into_iter().map(from_base));
                }
                Some("git+https" | "git+http" | "git+file" | "git+mirror") => {
                    let repository = &text["git+".len()..];
                    if url::scheme(repository).as_deref() != Some("mirror") {
                        places.push(git_place(repository));
                        continue;
                    }
                    match self.mirrors.resolve(repository) {
                        Ok(urls) => places.extend(urls.iter().map(|url| git_place(url))),
                        Err(error) => places.push(Err(failed(error.into()))),
                    }
                }
                Some(scheme) => {
                    let scheme = scheme.to_owned();
                    places.push(Err(failed(Reason::UnsupportedScheme { scheme })));
                }
                None => {
                    let detail = "it has no scheme".to_owned();
                    places.push(Err(failed(Reason::InvalidUrl { detail })));
                }
            }
        }
        places.extend(fallbacks);
        places
    }

    fn try_place(
        &self,
        place: &Place,
        request: &FetchRequest,
        partial: &mut Partial,
        transferred: &mut Transferred,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<(), Failed> {
        match place {
            Place::Url(url) => {
                let download = Download {
                    client: &self.client,
                    patience: self.patience,
                    request,
                    progress,
                    cancel,
                };
                download.run(url, partial, transferred)
            }
            Place::Git(text) => {
                let invalid = |detail| Failed::Place(Reason::InvalidUrl { detail });
                let parsed = GitPlace::parse(&text["git+".len()..]).map_err(invalid)?;
                let low_speed = self.patience.low_speed;
                let (program, network) = (self.git.as_path(), &self.network);
                let fetch = GitFetch { program, network, low_speed, request, cancel };
                progress.began(place, 0, request.size_bytes);
                let received = |bytes| progress.received(bytes);
                transferred.bytes += fetch.run(&parsed, partial, &received)?;
                let actual = partial.digest();
                if actual == request.sha256 {
                    return Ok(());
                }
                let (size_bytes, html) = (partial.length(), false);
                partial.reset()?;
                let expected = request.sha256;
                let encoding = None;
                let reason = Reason::WrongHash { expected, actual, size_bytes, html, encoding };
                Err(Failed::Place(reason))
            }
            Place::Directory(path) | Place::File(path) => {
                let bytes = copy(path, place, request, partial, progress, cancel)?;
                transferred.bytes += bytes;
                Ok(())
            }
            Place::Present | Place::Partial | Place::Unresolved(_) => {
                unreachable!("only files and URLs are tried")
            }
        }
    }
}

/// Copies a local file, hashing it. A file with the wrong hash doesn't cost the partial transfer that
/// may be there: it is hashed first.
fn copy(
    path: &Path,
    place: &Place,
    request: &FetchRequest,
    partial: &mut Partial,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<u64, Failed> {
    let unreadable =
        |error: io::Error| Failed::Place(Reason::Unreadable { detail: error.to_string() });
    let mut file = srp_store::open_followed(path).map_err(unreadable)?;
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    if let Some(expected) = request.size_bytes.filter(|expected| *expected != size_bytes) {
        let (html, encoding) = (false, None);
        let reason = Reason::WrongSize { expected, actual: size_bytes, html, encoding };
        return Err(Failed::Place(reason));
    }
    progress.began(place, 0, Some(size_bytes));
    let mut started = partial.length() == 0;
    loop {
        let mut hasher = sha2::Sha256::new();
        let mut copied = 0;
        let mut buffer = vec![0; 1 << 18];
        loop {
            if cancel.is_cancelled() {
                return Err(FetchError::Cancelled { name: request.name.clone() }.into());
            }
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            hasher.update(&buffer[..read]);
            copied += read as u64;
            if started {
                partial.append(&buffer[..read])?;
                progress.received(read as u64);
            }
        }
        let actual = Sha256::from_bytes(hasher.finalize().into());
        if actual != request.sha256 {
            let html = started && partial.looks_like_html();
            if started {
                partial.reset()?;
            }
            let expected = request.sha256;
            let (size_bytes, encoding) = (copied, None);
            let reason = Reason::WrongHash { expected, actual, size_bytes, html, encoding };
            return Err(Failed::Place(reason));
        }
        if started {
            return Ok(copied);
        }
        partial.reset()?;
        started = true;
        file = srp_store::open_followed(path).map_err(unreadable)?;
    }
}

/// A commit of a repository, if what follows `git+` names one.
fn git_place(repository: &str) -> Result<Place, Box<PlaceFailure>> {
    let place = format!("git+{repository}");
    let refused =
        |reason| Box::new(PlaceFailure { place: Place::Unresolved(place.clone()), reason });
    let parsed = GitPlace::parse(repository);
    let GitPlace { url, .. } = parsed.map_err(|detail| refused(Reason::InvalidUrl { detail }))?;
    match url::scheme(&url).as_deref() {
        Some("file") if url::file_path(&url).is_some() => {}
        _ => drop(url::parse(&url).map_err(refused)?),
    }
    Ok(Place::Git(place))
}

fn from_base(url: String) -> Result<Place, Box<PlaceFailure>> {
    match url::scheme(&url).as_deref() {
        Some("http" | "https") => Ok(Place::Url(url)),
        Some("file") if url::file_path(&url).is_some() => {
            Ok(Place::File(url::file_path(&url).expect("just looked")))
        }
        scheme => {
            let scheme = scheme.unwrap_or("relative").to_owned();
            let reason = Reason::UnsupportedScheme { scheme };
            Err(Box::new(PlaceFailure { place: Place::Unresolved(url), reason }))
        }
    }
}

/// Whether a file that was verified once still has the digest that it is asked for by.
fn is_whole(path: &Path, request: &FetchRequest, cancel: &CancelToken) -> Result<bool, FetchError> {
    let failed = |source| FetchError::Sources { action: "read", path: path.to_owned(), source };
    let mut file = match srp_store::open_plain(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
        file => file.map_err(failed)?,
    };
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        if cancel.is_cancelled() {
            return Err(FetchError::Cancelled { name: request.name.clone() });
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Sha256::from_bytes(hasher.finalize().into()) == request.sha256),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn fetched(path: PathBuf, from: Place) -> Fetched {
    Fetched { path, from, bytes_transferred: 0, resumed: false }
}
