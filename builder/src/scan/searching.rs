//! A reader that searches everything that passes through it.
//!
//! It is the plain half of the search for forbidden names: one level of bytes, in bounded memory,
//! with needles found across the borders of its buffer. What the bytes mean is for `containers`,
//! which reads through it.

use std::io::{self, BufRead, ErrorKind, Read};

use super::forbidden::{Hit, Search};

/// The most that is held and searched at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads `inner`, searching. What is read is exactly what `inner` yields.
pub(super) struct Searching<'s, R> {
    search: &'s Search<'s>,
    inner: R,
    /// What was unpacked counts against the budget; a file's own bytes don't.
    unpacked: bool,
    /// The end of what was already searched, then what was read last.
    buffer: Vec<u8>,
    unread: std::ops::Range<usize>,
    /// How many bytes `inner` has yielded.
    position: u64,
    found: Vec<Option<u64>>,
    ended: bool,
    error: Option<io::Error>,
}

impl<'s, R: Read> Searching<'s, R> {
    /// For a file of about `size_bytes`.
    pub(super) fn file(search: &'s Search<'s>, inner: R, size_bytes: u64) -> Searching<'s, R> {
        // One more byte than the file has, so that one pass also sees its end.
        let chunk = usize::try_from(size_bytes.saturating_add(1)).unwrap_or(CHUNK_BYTES);
        Searching::new(search, inner, chunk.clamp(512, CHUNK_BYTES), false)
    }

    /// For content that `inner` unpacks.
    pub(super) fn unpacked(search: &'s Search<'s>, inner: R) -> Searching<'s, R> {
        Searching::new(search, inner, CHUNK_BYTES / 4, true)
    }

    fn new(search: &'s Search<'s>, inner: R, chunk: usize, unpacked: bool) -> Searching<'s, R> {
        let overlap = overlap(search);
        Searching {
            search,
            inner,
            unpacked,
            buffer: vec![0; overlap + chunk],
            unread: 0..0,
            position: 0,
            found: vec![None; search.needles.len()],
            ended: false,
            error: None,
        }
    }

    /// Searches what is left, and reports what was found in all. The error is the one of `inner`
    /// that ended the reading early.
    pub(super) fn finish(mut self, inside: &[String]) -> Result<R, io::Error> {
        while let Ok(bytes) = self.fill_buf() {
            let length = bytes.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        let inside = (!inside.is_empty()).then(|| inside.join(" > "));
        let hits = self.found.iter().enumerate().filter_map(|(needle, offset)| {
            Some(Hit { needle, offset: (*offset)?, inside: inside.clone() })
        });
        self.search.hits.borrow_mut().extend(hits);
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.inner),
        }
    }

    fn refill(&mut self) {
        let kept = overlap(self.search).min(self.unread.end);
        self.buffer.copy_within(self.unread.end - kept..self.unread.end, 0);
        let mut end = kept;
        if self.search.budget.is_cancelled() {
            self.error = Some(ErrorKind::Other.into());
            self.ended = true;
        }
        // Filled as far as it goes: decoders yield a few bytes at a time, and searching few bytes
        // at a time is slow.
        while end < self.buffer.len() && !self.ended {
            match self.inner.read(&mut self.buffer[end..]) {
                Ok(0) => self.ended = true,
                Ok(length) => end += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.error = Some(error);
                    self.ended = true;
                }
            }
        }
        let length = if self.unpacked { (end - kept) as u64 } else { 0 };
        if let Err(error) = self.search.budget.spend(length) {
            self.error = Some(error);
            self.ended = true;
        }
        let start = self.position - kept as u64;
        self.search.needles.find(&self.buffer[..end], start, &mut self.found);
        self.position += (end - kept) as u64;
        self.unread = kept..end;
    }
}

/// How much of what was searched may be the start of a needle.
fn overlap(search: &Search<'_>) -> usize {
    search.needles.longest() - 1
}

impl<R: Read> BufRead for Searching<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() && !self.ended {
            self.refill();
        }
        Ok(&self.buffer[self.unread.clone()])
    }

    fn consume(&mut self, amount: usize) {
        self.unread.start = (self.unread.start + amount).min(self.unread.end);
    }
}

impl<R: Read> Read for Searching<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let length = bytes.read(out)?;
        self.consume(length);
        Ok(length)
    }
}
