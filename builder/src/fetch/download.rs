//! One file from one HTTP URL into a partial: resuming, retrying, watching the speed, checking sizes
//! and the digest.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::error::{FetchError, PlaceFailure, Reason};
use super::http::{self, Client, ContentRange, Event, Failure, Head};
use super::pace::{LowSpeed, Pace};
use super::request::{FetchRequest, Place, Progress};
use super::sources::{Origin, Partial};
use crate::cancel::CancelToken;

/// A source whose size nobody stated may not fill the disk without end.
const MAX_UNSTATED_SIZE: u64 = 32 << 30;

/// How often a waiting download looks whether it was cancelled.
const TICK: Duration = Duration::from_millis(100);

/// A try that moved this much was worth while: the count of retries starts again.
const WORTHWHILE: u64 = 1 << 20;

/// When a place is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) retries: u32,
    pub(super) retry_delay: Duration,
    pub(super) low_speed: LowSpeed,
}

/// A download's circumstances.
pub(super) struct Download<'a> {
    pub(super) client: &'a Arc<Client>,
    pub(super) patience: Patience,
    pub(super) request: &'a FetchRequest,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a CancelToken,
}

/// Why a place didn't do.
pub(super) enum Failed {
    /// The place's own reason: the next one may do.
    Place(Reason),
    /// A reason that concerns every place.
    Everything(FetchError),
}

impl From<FetchError> for Failed {
    fn from(error: FetchError) -> Self {
        Self::Everything(error)
    }
}

/// What a successful download did.
#[derive(Default)]
pub(super) struct Transferred {
    pub(super) bytes: u64,
    pub(super) resumed: bool,
}

/// How one request ended, if not well.
enum Broken {
    Give(Failed),
    Retry {
        reason: Reason,
        after: Option<Duration>,
    },
    /// The server doesn't go on where we are: ask for the whole.
    Restart,
}

impl From<FetchError> for Broken {
    fn from(error: FetchError) -> Self {
        Self::Give(Failed::Everything(error))
    }
}

impl Download<'_> {
    /// Fetches `url`. On success the partial holds the whole file with the right digest.
    pub(super) fn run(
        &self,
        url: &str,
        partial: &mut Partial,
        transferred: &mut Transferred,
    ) -> Result<(), Failed> {
        let mut retries = 0;
        loop {
            let before = transferred.bytes;
            let started_at = partial.length();
            match self.once(url, partial, transferred) {
                Ok(_) if partial.digest() == self.request.sha256 => {
                    transferred.resumed |= started_at > 0;
                    return Ok(());
                }
                Ok(_) if started_at > 0 && partial.length() > 0 => {
                    // Perhaps it was the earlier part that was wrong: a place is judged only by what
                    // all came from it.
                    partial.reset()?;
                }
                Ok(encoding) => return Err(Failed::Place(self.wrong_hash(partial, encoding)?)),
                Err(Broken::Restart) => partial.reset()?,
                Err(Broken::Give(failed)) => return Err(failed),
                Err(Broken::Retry { reason, after }) => {
                    if transferred.bytes - before >= WORTHWHILE {
                        retries = 0;
                    }
                    if retries >= self.patience.retries {
                        return Err(Failed::Place(reason));
                    }
                    let place = Place::Url(url.to_owned());
                    self.progress.retrying(&PlaceFailure { place, reason });
                    let delay = self.patience.retry_delay * 2u32.saturating_pow(retries);
                    self.pause(after.unwrap_or(delay).min(Duration::from_secs(30)))?;
                    retries += 1;
                }
            }
        }
    }

    /// One request, from its start to its end; how the server had encoded the file, if it did.
    fn once(
        &self,
        url: &str,
        partial: &mut Partial,
        transferred: &mut Transferred,
    ) -> Result<Option<String>, Broken> {
        self.check_cancelled()?;
        let range = (partial.length() > 0).then(|| {
            let origin = partial.origin().filter(|origin| origin.url == url);
            (partial.length(), origin.map(|origin| origin.validator.clone()))
        });
        let events = self.client.start(url, range).map_err(|source| FetchError::Sources {
            action: "start a thread to fetch",
            path: self.request.name.clone().into(),
            source,
        })?;
        let mut pace = Pace::new(self.patience.low_speed);
        let mut head: Option<Head> = None;
        let mut total = None;
        loop {
            self.check_cancelled()?;
            let asked = Instant::now();
            let received = events.recv_timeout(TICK);
            // A longer wait was no wait for the server: this process stood still (stopped by the shell).
            let waited = asked.elapsed().min(TICK);
            let event = match received {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    // Before the head, the time-outs for connecting and answering watch.
                    if head.is_some() && pace.is_too_slow(waited, 0) {
                        return Err(self.too_slow());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let detail = "the request's thread ended".to_owned();
                    return Err(Broken::Give(Failed::Place(Reason::Protocol { detail })));
                }
            };
            match event {
                Event::Head(answer) => {
                    total = self.accept(url, &answer, partial)?;
                    let place = Place::Url(url.to_owned());
                    self.progress.began(&place, partial.length(), total);
                    head = Some(answer);
                }
                Event::Data(bytes) => {
                    let limit = self.request.size_bytes.unwrap_or(MAX_UNSTATED_SIZE);
                    let length = partial.length() + bytes.len() as u64;
                    if length > limit {
                        let head = head.unwrap_or_default();
                        partial.reset()?;
                        return Err(place(Reason::WrongSize {
                            expected: limit,
                            actual: length,
                            html: head.html,
                            encoding: head.encoding,
                        }));
                    }
                    partial.append(&bytes)?;
                    transferred.bytes += bytes.len() as u64;
                    self.progress.received(bytes.len() as u64);
                    if pace.is_too_slow(waited, bytes.len() as u64) {
                        return Err(self.too_slow());
                    }
                }
                Event::End => {
                    let total = self.request.size_bytes.or(total);
                    let received = partial.length();
                    if total.is_some_and(|total| received < total) {
                        let reason = Reason::Truncated { received, total };
                        return Err(Broken::Retry { reason, after: None });
                    }
                    return Ok(head.and_then(|head| head.encoding));
                }
                Event::Failed(Failure { reason, transient: true }) => {
                    let reason = match reason {
                        // A connection that breaks in the middle of a file is best told by how far.
                        Reason::Protocol { .. } if head.is_some() => {
                            Reason::Truncated { received: partial.length(), total }
                        }
                        reason => reason,
                    };
                    return Err(Broken::Retry { reason, after: None });
                }
                Event::Failed(Failure { reason, transient: false }) => return Err(place(reason)),
            }
        }
    }

    /// Judges an answer's head and brings the partial to where the answer's body begins. Returns the
    /// file's size if the answer tells.
    fn accept(&self, url: &str, head: &Head, partial: &mut Partial) -> Result<Option<u64>, Broken> {
        let total = match head.status {
            200 => head.content_length,
            206 => match &head.content_range {
                Some(ContentRange { bytes, total })
                    if bytes.start == partial.length() && bytes.start > 0 =>
                {
                    total.or(head.content_length.map(|length| bytes.start + length))
                }
                _ if partial.length() > 0 => return Err(Broken::Restart),
                _ => {
                    let detail = "a part of the file although the whole was asked for".into();
                    return Err(place(Reason::Protocol { detail }));
                }
            },
            416 if partial.length() > 0 => return Err(Broken::Restart),
            status if http::is_transient(status) => {
                let reason = Reason::Status { status };
                return Err(Broken::Retry { reason, after: head.retry_after });
            }
            status => return Err(place(Reason::Status { status })),
        };
        if let (Some(expected), Some(actual)) = (self.request.size_bytes, total)
            && expected != actual
        {
            // Don't throw away a good part because this server has another file.
            let (html, encoding) = (head.html, head.encoding.clone());
            return Err(place(Reason::WrongSize { expected, actual, html, encoding }));
        }
        if head.status == 200 && partial.length() > 0 {
            // It ignores ranges, or its file has changed since.
            partial.reset()?;
        }
        let validator = head.validator.clone().filter(|validator| !validator.contains('\n'));
        partial.set_origin(validator.map(|validator| Origin { url: url.to_owned(), validator }))?;
        Ok(total)
    }

    fn wrong_hash(
        &self,
        partial: &mut Partial,
        encoding: Option<String>,
    ) -> Result<Reason, FetchError> {
        let reason = Reason::WrongHash {
            expected: self.request.sha256,
            actual: partial.digest(),
            size_bytes: partial.length(),
            html: partial.looks_like_html(),
            encoding,
        };
        partial.reset()?;
        Ok(reason)
    }

    fn too_slow(&self) -> Broken {
        place(Reason::TooSlow {
            bytes_per_second: self.patience.low_speed.bytes_per_second,
            seconds: self.patience.low_speed.seconds,
        })
    }

    fn check_cancelled(&self) -> Result<(), FetchError> {
        if self.cancel.is_cancelled() {
            return Err(FetchError::Cancelled { name: self.request.name.clone() });
        }
        Ok(())
    }

    fn pause(&self, duration: Duration) -> Result<(), FetchError> {
        let end = Instant::now() + duration;
        loop {
            self.check_cancelled()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

fn place(reason: Reason) -> Broken {
    Broken::Give(Failed::Place(reason))
}
