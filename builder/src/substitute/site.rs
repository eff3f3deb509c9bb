//! One cache of those configured: checked when first asked, given up when it fails.

use std::error::Error as _;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use srp_store::StoreError;
use srp_store::cache::{
    Body, Cache, CacheError, CachePath, Content, Patience, Remote, Severity, Stat,
};

use crate::cancel::CancelToken;
use crate::substitute::substituters::Upstream;

/// So many requests may be under way to one cache.
const CONNECTIONS: usize = 8;
/// So many failures in a row, and the cache is not asked any more.
const FAILURES: usize = 4;
/// Slower than this, and a cache is as good as none.
const PATIENCE: Patience = Patience { grace: Duration::from_secs(20), bytes_per_second: 4 << 10 };

/// Transfers of less say nothing of a line's speed.
const TELLING_BYTES: u64 = 64 << 10;

/// A cache, and how it does.
pub(crate) struct Site {
    pub(crate) trusted_outright: bool,
    pub(crate) priority: u32,
    cache: Cache,
    /// Unless nobody has asked it anything yet.
    is_cache: OnceLock<bool>,
    health: Mutex<Health>,
    /// Bytes a second of its last transfers, once there was one.
    speed: Mutex<Option<f64>>,
    free: Mutex<usize>,
    freed: Condvar,
}

/// The circuit breaker.
#[derive(Default)]
struct Health {
    in_a_row: usize,
    warned: bool,
    down: bool,
}

impl Site {
    pub(crate) fn new(upstream: Upstream, cancel: CancelToken) -> Site {
        let Upstream { remote, priority, trusted_outright } = upstream;
        Site {
            trusted_outright,
            priority,
            cache: Cache::assume(Arc::new(Cancellable { remote, cancel }), PATIENCE),
            is_cache: OnceLock::new(),
            health: Mutex::default(),
            speed: Mutex::default(),
            free: Mutex::new(CONNECTIONS),
            freed: Condvar::new(),
        }
    }

    pub(crate) fn url(&self) -> &str {
        self.cache.url()
    }

    /// Asks the cache something. What fails there is nothing found; what fails on this machine is
    /// an error.
    pub(crate) fn ask<T>(
        &self,
        question: impl Fn(&Cache) -> Result<Option<T>, CacheError>,
    ) -> Result<Option<T>, StoreError> {
        let _permit = self.permit();
        if self.is_down() {
            return Ok(None);
        }
        let ask = || twice(|| question(&self.cache));
        let (is_cache, answer) = match self.is_cache.get() {
            Some(true) => (true, ask()),
            Some(false) => return Ok(None),
            // Both at once: it is one round trip less until something is known.
            None => std::thread::scope(|scope| {
                let check = scope.spawn(|| *self.is_cache.get_or_init(|| self.check()));
                let answer = ask();
                (check.join().expect("the check doesn't panic"), answer)
            }),
        };
        match answer {
            Err(CacheError::Store(error)) => Err(error),
            // Why was said.
            _ if !is_cache => Ok(None),
            Ok(answer) => {
                self.health().in_a_row = 0;
                Ok(answer)
            }
            Err(error) => {
                self.note(&error);
                Ok(None)
            }
        }
    }

    fn check(&self) -> bool {
        let checked = twice(|| self.cache.check());
        if let Err(error) = &checked {
            self.note(error);
            self.health().down = true;
        }
        checked.is_ok()
    }

    /// Says what is to be said of a failure, and counts it.
    fn note(&self, error: &CacheError) {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        if error.severity() == Severity::Integrity {
            tracing::error!("{error}{cause}; it is not used");
            return;
        }
        let mut health = self.health();
        health.in_a_row += 1;
        // What trickles has taken its time already.
        health.down |= health.in_a_row >= FAILURES || error.is_too_slow();
        if std::mem::replace(&mut health.warned, true) {
            tracing::debug!("{error}{cause}");
        } else {
            tracing::warn!("{error}{cause}; going on without it");
        }
    }

    /// Whether it was asked something, and answered.
    pub(crate) fn is_open(&self) -> bool {
        self.is_cache.get() == Some(&true)
    }

    /// Whether it is not asked any more.
    pub(crate) fn is_down(&self) -> bool {
        self.health().down
    }

    /// Bytes a second, as far as that was measured.
    pub(crate) fn speed(&self) -> Option<f64> {
        *self.speed.lock().expect("no holder panics")
    }

    /// A transfer has brought so many bytes.
    pub(crate) fn measured(&self, bytes: u64, took: Duration) {
        if bytes < TELLING_BYTES {
            return;
        }
        let now = bytes as f64 / took.as_secs_f64().max(1e-6);
        let mut speed = self.speed.lock().expect("no holder panics");
        *speed = Some(speed.map_or(now, |before| (before + now) / 2.0));
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().expect("no holder panics")
    }

    fn permit(&self) -> Permit<'_> {
        let free = self.free.lock().expect("no holder panics");
        let mut free = self.freed.wait_while(free, |free| *free == 0).expect("no holder panics");
        *free -= 1;
        Permit { site: self }
    }
}

/// Asks again if the connection broke: that happens now and then, and to build instead may take
/// hours. A cache that is down says so, and isn't asked again.
fn twice<T>(ask: impl Fn() -> Result<T, CacheError>) -> Result<T, CacheError> {
    match ask() {
        Err(error) if error.is_interruption() => {
            tracing::debug!(%error, "it is asked again");
            ask()
        }
        answer => answer,
    }
}

/// The right to one connection.
struct Permit<'a> {
    site: &'a Site,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.site.free.lock().expect("no holder panics") += 1;
        self.site.freed.notify_one();
    }
}

/// A remote whose transfers end when everything is to end.
struct Cancellable {
    remote: Arc<dyn Remote>,
    cancel: CancelToken,
}

struct CancellableBody {
    from: Box<dyn std::io::Read + Send>,
    cancel: CancelToken,
}

fn cancelled() -> std::io::Error {
    std::io::Error::other("it was cancelled")
}

impl std::io::Read for CancellableBody {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() { Err(cancelled()) } else { self.from.read(buffer) }
    }
}

impl Cancellable {
    fn unless_cancelled(&self, action: &'static str, path: &str) -> Result<(), CacheError> {
        if !self.cancel.is_cancelled() {
            return Ok(());
        }
        let (url, path) = (self.remote.url().to_owned(), path.to_owned());
        Err(CacheError::Transport { action, url, path, source: cancelled() })
    }
}

impl Remote for Cancellable {
    fn url(&self) -> &str {
        self.remote.url()
    }

    fn get(
        &self,
        path: &CachePath,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Option<Body>, CacheError> {
        self.unless_cancelled("read", path.as_str())?;
        let cancel = self.cancel.clone();
        let body = self.remote.get(path, range)?;
        Ok(body.map(|Body { length, reader: from }| Body {
            length,
            reader: Box::new(CancellableBody { from, cancel }),
        }))
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        self.remote.put(path, content)
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        self.remote.stat(path)
    }

    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError> {
        self.remote.refresh(path)
    }

    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        self.unless_cancelled("list", directory)?;
        self.remote.list(directory)
    }

    fn request_cost_bytes(&self) -> u64 {
        self.remote.request_cost_bytes()
    }
}
