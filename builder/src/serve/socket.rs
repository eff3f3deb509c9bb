//! A client's socket, with a clock: what is read and written has to come to its end in time,
//! whatever a client does a byte at a time.

use std::cell::Cell;
use std::io::{Error, ErrorKind, IoSlice, Read, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An answer has to be taken at this rate, on average, once the first moments are over.
const BYTES_PER_SECOND: u64 = 4 << 10;

/// A socket whose reads and writes end in time.
#[derive(Debug)]
pub(super) struct Socket {
    tcp: Arc<TcpStream>,
    limit: Cell<Limit>,
    /// How many bytes were taken since it is there.
    taken: Arc<AtomicU64>,
}

/// How long it may go on.
#[derive(Clone, Copy, Debug)]
enum Limit {
    Until(Instant),
    /// An answer: so long without a byte, and the same head start for the rate.
    Paced {
        began: Instant,
        before: u64,
        stalled: Duration,
    },
}

impl Socket {
    pub(super) fn new(tcp: Arc<TcpStream>, taken: Arc<AtomicU64>) -> Socket {
        Socket { tcp, limit: Cell::new(Limit::Until(Instant::now())), taken }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// From here on everything has to be read and written in this time.
    pub(super) fn give(&self, time: Duration) {
        self.limit.set(Limit::Until(Instant::now() + time));
    }

    /// From here on an answer is written: for as long as the client takes it at some rate, and
    /// never takes nothing for as long as `stalled`.
    pub(super) fn pace(&self, stalled: Duration) {
        let (began, before) = (Instant::now(), self.taken.load(Ordering::Relaxed));
        self.limit.set(Limit::Paced { began, before, stalled });
    }

    /// Bounds the next write; an error if time is up.
    pub(super) fn before_write(&self) -> Result<()> {
        self.tcp.set_write_timeout(Some(self.left()?))
    }

    /// Counts what was written.
    pub(super) fn written(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is left of the time.
    fn left(&self) -> Result<Duration> {
        let left = match self.limit.get() {
            Limit::Until(end) => end.saturating_duration_since(Instant::now()),
            Limit::Paced { began, before, stalled } => {
                let taken = self.taken.load(Ordering::Relaxed) - before;
                let end = stalled + Duration::from_millis(taken * 1000 / BYTES_PER_SECOND);
                end.saturating_sub(began.elapsed()).min(stalled)
            }
        };
        // A time-out of nothing would be none.
        if left < Duration::from_millis(1) {
            return Err(Error::new(ErrorKind::TimedOut, "the client is too slow"));
        }
        Ok(left)
    }

    fn count(&self, written: Result<usize>) -> Result<usize> {
        if let Ok(bytes) = &written {
            self.written(*bytes as u64);
        }
        written.map_err(timed_out)
    }
}

/// The system's word for a time that is over is that it would have to wait.
fn timed_out(error: Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock => Error::new(ErrorKind::TimedOut, "the client is too slow"),
        _ => error,
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.tcp.set_read_timeout(Some(self.left()?))?;
        (&*self.tcp).read(buffer).map_err(timed_out)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.before_write()?;
        self.count((&*self.tcp).write(bytes))
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> Result<usize> {
        self.before_write()?;
        self.count((&*self.tcp).write_vectored(bytes))
    }

    fn flush(&mut self) -> Result<()> {
        (&*self.tcp).flush()
    }
}
