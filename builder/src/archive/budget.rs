//! What reading one foreign file may cost: memory of decoders, bytes that come out, and time.
//!
//! A file of a few kilobytes can ask for gigabytes of each. The limits are far above what the formats'
//! own tools make by default, and going over one is an error that names it, never a cut.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::cancel::CancelToken;

/// The most that one decoder may hold: lzip's largest dictionary (512 MiB) and what goes with it. It is
/// also what `xz` needs for dictionaries that only `--lzma2=dict=` makes.
pub(crate) const DECODER_MEMORY_BYTES: u64 = 640 << 20;

/// The largest window of a zstd frame, as a power of two: what `zstd -d` takes without `--long` (128 MiB).
pub(crate) const ZSTD_WINDOW_LOG: u32 = 27;

/// How long one source, or all files of one output, may be decoded.
const TIME: Duration = Duration::from_secs(3600);

/// What a file of an output may hold in memory without waiting for its turn.
const SMALL_BYTES: u64 = 16 << 20;

/// Which limit a file went over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Exceeded {
    /// The decoders' memory.
    #[error("decompressing it needs more than {} MiB of memory", limit_bytes >> 20)]
    Memory {
        /// The most that decoders may hold.
        limit_bytes: u64,
    },
    /// A zstd window.
    #[error(
        "a zstd frame needs a window of {} MiB, above the limit of {} MiB (it was made with --long)",
        window_bytes >> 20, limit_bytes >> 20
    )]
    Window {
        /// What the frame asks for.
        window_bytes: u64,
        /// The most that is given.
        limit_bytes: u64,
    },
    /// What comes out.
    #[error("it unpacks to more than {limit_bytes} bytes")]
    Bytes {
        /// The most that is unpacked.
        limit_bytes: u64,
    },
    /// Time.
    #[error("decompressing takes longer than {seconds} seconds")]
    Time {
        /// The limit.
        seconds: u64,
    },
}

impl Exceeded {
    /// The limit that made a reader fail, if one did.
    pub(crate) fn of(error: &io::Error) -> Option<&Exceeded> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Exceeded> for io::Error {
    fn from(exceeded: Exceeded) -> Self {
        io::Error::other(exceeded)
    }
}

/// What files that are read at the same time share: the turn of those that need much memory, the bytes
/// that may come out of all of them, and the end of their time.
#[derive(Debug)]
pub(crate) struct LargeFiles {
    taken: Mutex<bool>,
    free: Condvar,
    bytes_left: AtomicU64,
    limit_bytes: u64,
    began: Instant,
}

impl LargeFiles {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        let bytes_left = AtomicU64::new(limit_bytes);
        let (taken, free) = (Mutex::new(false), Condvar::new());
        LargeFiles { taken, free, bytes_left, limit_bytes, began: Instant::now() }
    }

    fn take_turn(&self, budget: &Budget<'_>) -> io::Result<()> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            budget.check()?;
            let waited = self.free.wait_timeout(taken, Duration::from_millis(200));
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = true;
        Ok(())
    }

    fn give_turn(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.free.notify_one();
    }
}

/// What the reading of one file may cost. It stays on one thread.
pub(crate) struct Budget<'a> {
    cancel: &'a CancelToken,
    began: Instant,
    memory_limit_bytes: u64,
    memory_used: Cell<u64>,
    limit_bytes: u64,
    bytes_left: Cell<u64>,
    shared: Option<&'a LargeFiles>,
    has_turn: Cell<bool>,
}

impl<'a> Budget<'a> {
    /// For a file that is read by itself.
    pub(crate) fn new(cancel: &'a CancelToken, memory_bytes: u64, bytes: u64) -> Self {
        Budget {
            cancel,
            began: Instant::now(),
            memory_limit_bytes: memory_bytes,
            memory_used: Cell::new(0),
            limit_bytes: bytes,
            bytes_left: Cell::new(bytes),
            shared: None,
            has_turn: Cell::new(false),
        }
    }

    /// For one of several files. Of those that need much memory one is read at a time.
    pub(crate) fn one_of(
        shared: &'a LargeFiles,
        cancel: &'a CancelToken,
        memory_bytes: u64,
        bytes: u64,
    ) -> Self {
        let mut budget = Budget::new(cancel, memory_bytes, bytes);
        budget.began = shared.began;
        budget.shared = Some(shared);
        budget
    }

    /// Whether the caller has cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Fails once it was cancelled, or takes too long. To be asked wherever input decides how often.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_cancelled() {
            return Err(cancelled());
        }
        if self.began.elapsed() > TIME {
            return Err(Exceeded::Time { seconds: TIME.as_secs() }.into());
        }
        Ok(())
    }

    /// The most that [`Budget::charge`] still gives.
    pub(crate) fn memory_left(&self) -> u64 {
        self.memory_limit_bytes - self.memory_used.get()
    }

    /// Takes memory, until the charge is dropped.
    pub(crate) fn charge(&self, bytes: u64) -> io::Result<Charge<'_>> {
        let mut charge = Charge { used: &self.memory_used, bytes: 0 };
        self.grow(&mut charge, bytes)?;
        Ok(charge)
    }

    /// Takes as much more as is missing to `bytes`.
    pub(crate) fn grow(&self, charge: &mut Charge<'_>, bytes: u64) -> io::Result<()> {
        let more = bytes.saturating_sub(charge.bytes);
        let used = self.memory_used.get().saturating_add(more);
        if used > self.memory_limit_bytes {
            return Err(Exceeded::Memory { limit_bytes: self.memory_limit_bytes }.into());
        }
        if let Some(shared) = self.shared.filter(|_| used > SMALL_BYTES && !self.has_turn.get()) {
            // Kept to the file's end, and nothing else is waited for meanwhile.
            shared.take_turn(self)?;
            self.has_turn.set(true);
        }
        self.memory_used.set(used);
        charge.bytes += more;
        Ok(())
    }

    /// Counts bytes that came out.
    pub(crate) fn spend(&self, bytes: u64) -> io::Result<()> {
        let left = self.bytes_left.get().checked_sub(bytes);
        let left = left.ok_or(Exceeded::Bytes { limit_bytes: self.limit_bytes })?;
        self.bytes_left.set(left);
        if let Some(shared) = self.shared {
            let less = |left: u64| left.checked_sub(bytes);
            let spent = shared.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            spent.map_err(|_| Exceeded::Bytes { limit_bytes: shared.limit_bytes })?;
        }
        self.check()
    }
}

impl Drop for Budget<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.filter(|_| self.has_turn.get()) {
            shared.give_turn();
        }
    }
}

/// Memory that is taken from a [`Budget`].
pub(crate) struct Charge<'b> {
    used: &'b Cell<u64>,
    bytes: u64,
}

impl Charge<'_> {
    /// How much it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.used.set(self.used.get() - self.bytes);
    }
}

/// The error of a reader that was asked to stop. Whoever sees it looks at the token.
pub(crate) fn cancelled() -> io::Error {
    io::Error::other("cancelled")
}

/// A reader that fails once its budget's time is over: beneath every decoder, since some input decodes
/// to nothing at all.
pub(crate) struct Watched<'b, R> {
    pub(crate) inner: R,
    pub(crate) budget: &'b Budget<'b>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.budget.check()?;
        self.inner.read(into)
    }
}
