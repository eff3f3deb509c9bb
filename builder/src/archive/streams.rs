//! Compressed streams: gzip, bzip2, xz, lzip, LZMA alone and zstd, as the formats' own tools read them.
//!
//! A file may hold several members one after the other, frames that are to be skipped, and zeros after
//! the last member (tapes and some servers pad). Anything else there is an error, except for lzip, whose
//! tool ignores it. A decoder takes from its budget what it holds in memory, before it holds it.

use std::io::{self, BufRead, Cursor, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::stream::{Action, Error as LzmaError, MtStreamBuilder, Status, Stream};
use thiserror::Error;

use super::Signature;
use super::budget::{Budget, Charge, DECODER_MEMORY_BYTES, Exceeded, ZSTD_WINDOW_LOG};

/// What inflating needs: a window and tables.
const DEFLATE_MEMORY_BYTES: u64 = 64 << 10;
/// What the largest bzip2 blocks need.
const BZIP2_MEMORY_BYTES: u64 = 4 << 20;
/// What a zstd decoder needs beside the window.
const ZSTD_MEMORY_BYTES: u64 = 512 << 10;
/// What an xz decoder gets first; it is doubled as long as the decoder asks for more.
const LZMA_FIRST_BYTES: u64 = 1 << 20;

/// Below this much compressed data, several threads cost more than they bring.
const WORTH_THREADS: u64 = 4 << 20;
/// What xz may use for its threads; more makes it decode with fewer of them, never fail.
const XZ_THREADING_MEMORY: u64 = 1 << 30;

/// What is wrong with compressed data, where the decoders don't say so themselves.
#[derive(Debug, Error)]
enum StreamError {
    #[error("the {format} data ends early")]
    Truncated { format: &'static str },
    #[error("something else follows the {format} data (trailing garbage that isn't zeros)")]
    Trailing { format: &'static str },
    #[error("it needs a zstd dictionary, which isn't part of it")]
    Dictionary,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// Decompresses `source` to its end. `size_bytes`, how long it is, decides on threads; only xz has them.
pub(crate) fn open<'b, R: BufRead + 'b>(
    signature: Signature,
    source: R,
    size_bytes: u64,
    budget: &'b Budget<'b>,
) -> io::Result<Box<dyn Read + 'b>> {
    let source = Peeking::new(source);
    Ok(match signature {
        Signature::Gzip | Signature::Bzip2 | Signature::Zstd => {
            Box::new(Members { current: Current::Between(source), signature, budget })
        }
        Signature::Xz | Signature::Lzip | Signature::Lzma => {
            let threads = signature == Signature::Xz && size_bytes >= WORTH_THREADS;
            Box::new(Lzma::new(source, signature, threads, budget)?)
        }
        _ => Box::new(source),
    })
}

/// Decompresses one xz stream, and leaves the source behind it.
pub(crate) fn one_xz<'b, R: BufRead + 'b>(
    source: R,
    budget: &'b Budget<'b>,
) -> io::Result<impl Read + 'b> {
    let lzma = Lzma::new(Peeking::new(source), Signature::Xz, false, budget)?;
    Ok(Lzma { single: true, ..lzma })
}

/// Decompresses LZMA data that has its properties (five bytes) elsewhere. The length is given, unless
/// the data has a mark at its end.
pub(crate) fn raw_lzma<'b, R: BufRead + 'b>(
    properties: &[u8; 5],
    length: Option<u64>,
    source: R,
    budget: &'b Budget<'b>,
) -> io::Result<impl Read + 'b> {
    let mut head = properties.to_vec();
    head.extend(length.unwrap_or(u64::MAX).to_le_bytes());
    let source = Peeking::new(Cursor::new(head).chain(source));
    let lzma = Lzma::new(source, Signature::Lzma, false, budget)?;
    Ok(Lzma { single: true, ..lzma })
}

/// Decompresses one zstd frame, and leaves the source behind it. The largest window is charged for.
pub(crate) fn one_zstd<'b, R: BufRead + 'b>(
    source: R,
    budget: &'b Budget<'b>,
) -> io::Result<impl Read + 'b> {
    let charge = budget.charge((1 << ZSTD_WINDOW_LOG) + ZSTD_MEMORY_BYTES)?;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Charged { inner: decoder, _charge: charge })
}

/// Inflates, and leaves the source behind the data.
pub(crate) fn deflate<'b, R: BufRead + 'b>(
    source: R,
    budget: &'b Budget<'b>,
) -> io::Result<impl Read + 'b> {
    let charge = budget.charge(DEFLATE_MEMORY_BYTES)?;
    Ok(Charged { inner: flate2::bufread::DeflateDecoder::new(source), _charge: charge })
}

/// Decompresses one bzip2 stream, and leaves the source behind it.
pub(crate) fn one_bzip2<'b, R: BufRead + 'b>(
    source: R,
    budget: &'b Budget<'b>,
) -> io::Result<impl Read + 'b> {
    let charge = budget.charge(BZIP2_MEMORY_BYTES)?;
    Ok(Charged { inner: BzDecoder::new(source), _charge: charge })
}

/// A decoder and the memory that it was given.
struct Charged<'b, D> {
    inner: D,
    _charge: Charge<'b>,
}

impl<D: Read> Read for Charged<'_, D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(into)
    }
}

/// Members one after the other, each with a decoder of its own.
struct Members<'b, R> {
    current: Current<'b, R>,
    signature: Signature,
    budget: &'b Budget<'b>,
}

enum Current<'b, R> {
    Between(Peeking<R>),
    Gzip(Charged<'b, GzDecoder<Peeking<R>>>),
    Bzip2(Charged<'b, BzDecoder<Peeking<R>>>),
    Zstd(Charged<'b, zstd::stream::read::Decoder<'static, Peeking<R>>>),
    Ended,
}

impl<'b, R: BufRead> Members<'b, R> {
    fn next(&mut self) -> io::Result<()> {
        self.budget.check()?;
        let mut first = false;
        let mut source = match std::mem::replace(&mut self.current, Current::Ended) {
            Current::Between(source) => {
                first = true;
                source
            }
            Current::Gzip(decoder) => decoder.inner.into_inner(),
            Current::Bzip2(decoder) => decoder.inner.into_inner(),
            Current::Zstd(decoder) => decoder.inner.finish(),
            Current::Ended => return Ok(()),
        };
        if !first && !source.skip_zeros()? {
            return Ok(());
        }
        let format = self.signature.compression().unwrap_or_default();
        self.current = match (self.signature, source.peek(18)?) {
            (Signature::Gzip, [0x1f, 0x8b, ..]) => {
                let charge = self.budget.charge(DEFLATE_MEMORY_BYTES)?;
                Current::Gzip(Charged { inner: GzDecoder::new(source), _charge: charge })
            }
            (Signature::Bzip2, [b'B', b'Z', b'h', ..]) => {
                let charge = self.budget.charge(BZIP2_MEMORY_BYTES)?;
                Current::Bzip2(Charged { inner: BzDecoder::new(source), _charge: charge })
            }
            (Signature::Zstd, [0x50..=0x5f, 0x2a, 0x4d, 0x18, length @ ..]) => {
                let length = length.first_chunk().ok_or(StreamError::Truncated { format })?;
                let length = 8 + u64::from(u32::from_le_bytes(*length));
                if io::copy(&mut source.by_ref().take(length), &mut io::sink())? < length {
                    return Err(StreamError::Truncated { format }.into());
                }
                match source.peek(1)? {
                    [] => Current::Ended,
                    _ => Current::Between(source),
                }
            }
            (Signature::Zstd, head @ [0x28, 0xb5, 0x2f, 0xfd, ..]) => {
                let window_bytes = zstd_window(head)?;
                if window_bytes > 1 << ZSTD_WINDOW_LOG {
                    let limit_bytes = 1 << ZSTD_WINDOW_LOG;
                    return Err(Exceeded::Window { window_bytes, limit_bytes }.into());
                }
                let charge = self.budget.charge(window_bytes + ZSTD_MEMORY_BYTES)?;
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Current::Zstd(Charged { inner: decoder, _charge: charge })
            }
            _ => return Err(StreamError::Trailing { format }.into()),
        };
        Ok(())
    }
}

impl<R: BufRead> Read for Members<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.current {
                Current::Between(_) => 0,
                Current::Gzip(decoder) => decoder.read(into)?,
                Current::Bzip2(decoder) => decoder.read(into)?,
                Current::Zstd(decoder) => decoder.read(into)?,
                Current::Ended => return Ok(0),
            };
            if read > 0 {
                return Ok(read);
            }
            self.next()?;
        }
    }
}

/// The window that a frame asks for (RFC 8878, 3.1.1.1).
fn zstd_window(head: &[u8]) -> Result<u64, StreamError> {
    let truncated = || StreamError::Truncated { format: "zstd" };
    let descriptor = *head.get(4).ok_or_else(truncated)?;
    let single_segment = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    if !single_segment {
        let byte = u64::from(*head.get(5).ok_or_else(truncated)?);
        let base = 1u64 << (10 + (byte >> 3));
        return Ok(base + (base >> 3) * (byte & 7));
    }
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = head.get(5 + dictionary..5 + dictionary + length).ok_or_else(truncated)?;
    let number = field.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if dictionary > 0 && head[5..5 + dictionary].iter().any(|byte| *byte != 0) {
        return Err(StreamError::Dictionary);
    }
    // Two bytes count from 256 on.
    Ok(if length == 2 { number + 256 } else { number })
}

/// xz, lzip and LZMA alone, by liblzma.
struct Lzma<'b, R> {
    source: Peeking<R>,
    signature: Signature,
    stream: Option<Stream>,
    /// Whether what follows the first stream is somebody else's.
    single: bool,
    threads: bool,
    budget: &'b Budget<'b>,
    charge: Charge<'b>,
}

impl<'b, R: BufRead> Lzma<'b, R> {
    fn new(
        source: Peeking<R>,
        signature: Signature,
        threads: bool,
        budget: &'b Budget<'b>,
    ) -> io::Result<Self> {
        let threads = threads && std::thread::available_parallelism().is_ok_and(|it| it.get() > 1);
        let charge = budget.charge(LZMA_FIRST_BYTES)?;
        let stream = Some(decoder(signature, threads, LZMA_FIRST_BYTES)?);
        Ok(Lzma { source, signature, stream, single: false, threads, budget, charge })
    }

    /// Gives the decoder twice the memory that it has, as often as it takes, if there is so much.
    fn more_memory(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let most = DECODER_MEMORY_BYTES.min(self.budget.memory_left() + self.charge.bytes());
        let mut limit = stream.memlimit();
        while limit < most {
            limit = limit.saturating_mul(2).min(most);
            self.budget.grow(&mut self.charge, limit)?;
            match stream.set_memlimit(limit) {
                // It knows what it needs, and doesn't say.
                Err(LzmaError::MemLimit) => {}
                result => return Ok(result?),
            }
        }
        Err(Exceeded::Memory { limit_bytes: most }.into())
    }

    /// Behind a stream: whether there is another.
    fn next(&mut self) -> io::Result<()> {
        self.budget.check()?;
        self.stream = None;
        if self.single || !self.source.skip_zeros()? {
            return Ok(());
        }
        let format = self.signature.compression().unwrap_or_default();
        match (self.signature, self.source.peek(6)?) {
            (Signature::Xz, b"\xfd7zXZ\0") | (Signature::Lzip, [b'L', b'Z', b'I', b'P', ..]) => {
                self.stream = Some(decoder(self.signature, self.threads, self.charge.bytes())?);
                Ok(())
            }
            (Signature::Lzip, _) => Ok(()),
            _ => Err(StreamError::Trailing { format }.into()),
        }
    }
}

fn decoder(signature: Signature, threads: bool, memory_bytes: u64) -> io::Result<Stream> {
    if threads {
        let count = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        let mut builder = MtStreamBuilder::new();
        builder
            .threads(count as u32)
            .timeout_ms(300)
            .memlimit_threading(XZ_THREADING_MEMORY)
            .memlimit_stop(DECODER_MEMORY_BYTES);
        return Ok(builder.decoder()?);
    }
    Ok(match signature {
        Signature::Lzip => Stream::new_lzip_decoder(memory_bytes, 0)?,
        Signature::Lzma => Stream::new_lzma_decoder(memory_bytes)?,
        _ => Stream::new_stream_decoder(memory_bytes, 0)?,
    })
}

impl<R: BufRead> Read for Lzma<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut stuck = 0;
        loop {
            let Some(stream) = &mut self.stream else { return Ok(0) };
            let input = self.source.fill_buf()?;
            let end = input.is_empty();
            let (before_in, before_out) = (stream.total_in(), stream.total_out());
            let action = if end { Action::Finish } else { Action::Run };
            let status = stream.process(input, into, action);
            let consumed = (stream.total_in() - before_in) as usize;
            let produced = (stream.total_out() - before_out) as usize;
            self.source.consume(consumed);
            match status {
                Err(LzmaError::MemLimit) => self.more_memory()?,
                Err(error) => return Err(error.into()),
                Ok(Status::StreamEnd) => self.next()?,
                // liblzma says so when it can do nothing with what it has, twice in a row. (No output
                // alone means nothing: its threads may be busy.)
                Ok(Status::MemNeeded) if produced == 0 && consumed == 0 => {
                    stuck += 1;
                    if end || stuck > 2 {
                        let format = self.signature.compression().unwrap_or_default();
                        return Err(StreamError::Truncated { format }.into());
                    }
                }
                Ok(_) => self.budget.check()?,
            }
            if produced > 0 {
                return Ok(produced);
            }
        }
    }
}

/// A source whose next bytes can be looked at, however they come.
struct Peeking<R> {
    inner: R,
    peeked: Vec<u8>,
    position: usize,
}

impl<R: BufRead> Peeking<R> {
    fn new(inner: R) -> Self {
        Peeking { inner, peeked: Vec::new(), position: 0 }
    }

    /// The next bytes, `count` of them unless the source ends before.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        self.peeked.drain(..self.position);
        self.position = 0;
        let missing = count.saturating_sub(self.peeked.len()) as u64;
        (&mut self.inner).take(missing).read_to_end(&mut self.peeked)?;
        Ok(&self.peeked)
    }

    /// Passes over zeros; false if nothing else follows.
    fn skip_zeros(&mut self) -> io::Result<bool> {
        loop {
            let input = self.fill_buf()?;
            if input.is_empty() {
                return Ok(false);
            }
            let zeros = input.iter().take_while(|byte| **byte == 0).count();
            if zeros == 0 {
                return Ok(true);
            }
            self.consume(zeros);
        }
    }
}

impl<R: BufRead> BufRead for Peeking<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position < self.peeked.len() {
            return Ok(&self.peeked[self.position..]);
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if self.position < self.peeked.len() {
            self.position += amount;
        } else {
            self.inner.consume(amount);
        }
    }
}

impl<R: BufRead> Read for Peeking<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let read = available.read(into)?;
        self.consume(read);
        Ok(read)
    }
}
