//! Decompression on a thread of its own, so that it overlaps with writing: a reader of what comes out.
//!
//! Which compression it is, the first bytes say. xz archives that were made in blocks (as `xz -T` does)
//! are decoded by several threads: LLVM's 2 GB tarball is most of what a bootstrap unpacks.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use liblzma::stream::{Action, MtStreamBuilder, Status, Stream};

use crate::fetch::CancelToken;

/// How much travels between the threads at once, and how many of those may wait.
const CHUNK: usize = 1 << 18;
const AHEAD: usize = 16;

/// Below this much compressed data, several threads cost more than they bring.
const WORTH_THREADS: u64 = 4 << 20;

/// What xz may use for its dictionaries; more makes it decode with fewer threads, never fail.
const XZ_THREADING_MEMORY: u64 = 1 << 30;
/// What no sound archive needs: `xz -9` takes 65 MiB to decode.
const XZ_MEMORY_LIMIT: u64 = 2 << 30;

/// How a tar archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Compression {
    /// Recognises a compression by the first bytes of what it made.
    pub(super) fn of(start: &[u8]) -> Self {
        const MAGIC: [(&[u8], Compression); 4] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        let found = MAGIC.iter().find(|(magic, _)| start.starts_with(magic));
        found.map_or(Self::None, |(_, compression)| *compression)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// The decompressed bytes, made by another thread.
pub(super) struct Decompressed {
    chunks: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
    cancel: CancelToken,
}

/// The thread that decompresses. Joining it says whether the data was sound.
pub(super) type Decompressor<'scope> = ScopedJoinHandle<'scope, io::Result<()>>;

/// Starts to decompress `source`, whose compressed size is `size`. The thread ends when it is done, when
/// the reader is dropped, or when cancelled.
pub(super) fn start<'scope, 'env, R: Read + Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    source: R,
    size: u64,
    cancel: &CancelToken,
) -> io::Result<(Compression, Decompressed, Decompressor<'scope>)> {
    let mut source = BufReader::with_capacity(CHUNK, source);
    let compression = Compression::of(source.fill_buf()?);
    let (sender, chunks) = sync_channel(AHEAD);
    let output = Output { sender, cancel: cancel.clone() };
    let handle = std::thread::Builder::new()
        .name("srp-decompress".into())
        .spawn_scoped(scope, move || decompress(compression, source, size, output))?;
    let cancel = cancel.clone();
    Ok((compression, Decompressed { chunks, chunk: Vec::new(), position: 0, cancel }, handle))
}

struct Output {
    sender: SyncSender<Vec<u8>>,
    cancel: CancelToken,
}

impl Output {
    /// Passes bytes on; false if nobody wants more.
    fn send(&self, chunk: Vec<u8>) -> bool {
        !self.cancel.is_cancelled() && self.sender.send(chunk).is_ok()
    }
}

fn decompress<R: Read>(
    compression: Compression,
    mut source: BufReader<R>,
    size: u64,
    output: Output,
) -> io::Result<()> {
    match compression {
        Compression::None => pump(source, &output).map(drop),
        Compression::Gzip => {
            // Zero bytes after the last member are padding (tapes, some servers), not another member.
            pump(flate2::bufread::MultiGzDecoder::new(source), &output).map(drop)
        }
        Compression::Bzip2 => pump(bzip2::bufread::MultiBzDecoder::new(source), &output).map(drop),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            // `zstd --ultra --long=31` at most; the default would refuse what dpkg may have made.
            decoder.window_log_max(31)?;
            pump(decoder, &output).map(drop)
        }
        Compression::Xz => loop {
            if !unxz(&mut source, size, &output)? || !skip_padding(&mut source)? {
                return Ok(());
            }
        },
    }
}

/// Reads to the end; false if the receiver stopped.
fn pump(mut reader: impl Read, output: &Output) -> io::Result<bool> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match reader.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let end = filled < CHUNK;
        chunk.truncate(filled);
        if filled > 0 && !output.send(chunk) {
            return Ok(false);
        }
        if end {
            return Ok(true);
        }
    }
}

/// Decodes one xz stream; false if the receiver stopped.
fn unxz<R: Read>(source: &mut BufReader<R>, size: u64, output: &Output) -> io::Result<bool> {
    let mut stream = xz_decoder(size)?;
    let mut chunk = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let input = source.fill_buf()?;
        let end = input.is_empty();
        let (before_in, before_out) = (stream.total_in(), stream.total_out());
        let action = if end { Action::Finish } else { Action::Run };
        let status = stream.process(input, &mut chunk[filled..], action)?;
        source.consume((stream.total_in() - before_in) as usize);
        let produced = (stream.total_out() - before_out) as usize;
        filled += produced;
        let done = matches!(status, Status::StreamEnd);
        if filled == CHUNK || (done && filled > 0) {
            chunk.truncate(filled);
            if !output.send(std::mem::replace(&mut chunk, vec![0; CHUNK])) {
                return Ok(false);
            }
            filled = 0;
        }
        if done {
            return Ok(true);
        }
        // liblzma says so when it can do nothing with what it has, twice in a row. (No output alone
        // means nothing: its threads may be busy.)
        if matches!(status, Status::MemNeeded) {
            let detail = if end { "the xz stream ends early" } else { "the xz stream is stuck" };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, detail));
        }
    }
}

fn xz_decoder(size: u64) -> io::Result<Stream> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
    if size < WORTH_THREADS || threads == 1 {
        return Ok(Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)?);
    }
    let mut builder = MtStreamBuilder::new();
    builder
        .threads(threads as u32)
        .timeout_ms(300)
        .memlimit_threading(XZ_THREADING_MEMORY)
        .memlimit_stop(XZ_MEMORY_LIMIT);
    Ok(builder.decoder()?)
}

/// Between concatenated xz streams there may be zeros. Whether another stream follows.
fn skip_padding<R: Read>(source: &mut BufReader<R>) -> io::Result<bool> {
    loop {
        let input = source.fill_buf()?;
        if input.is_empty() {
            return Ok(false);
        }
        let zeros = input.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            return Ok(true);
        }
        source.consume(zeros);
    }
}

impl Read for Decompressed {
    /// The end may also be that of a thread that failed: whoever reads to the end must join it.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            match self.chunks.recv() {
                Ok(chunk) => {
                    self.chunk = chunk;
                    self.position = 0;
                }
                Err(_) => return Ok(0),
            }
        }
        let count = into.len().min(self.chunk.len() - self.position);
        into[..count].copy_from_slice(&self.chunk[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
