//! Decompression on a thread of its own, so that it overlaps with writing: a reader of what comes out.
//!
//! Which compression it is, the first bytes say. xz archives that were made in blocks (as `xz -T` does)
//! are decoded by several threads: LLVM's 2 GB tarball is most of what a bootstrap unpacks.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::archive::{Budget, Signature, Watched, streams};
use crate::fetch::CancelToken;

/// How much travels between the threads at once, and how many of those may wait.
const CHUNK: usize = 1 << 18;
const AHEAD: usize = 16;

/// What decoders of one source may hold.
const MEMORY_BYTES: u64 = 640 << 20;

/// What may come out of one source, including what isn't selected.
const MAX_BYTES: u64 = 256 << 30;

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
) -> io::Result<(Signature, Decompressed, Decompressor<'scope>)> {
    // The whole head at once, whatever pieces the source comes in.
    let mut head = Vec::with_capacity(Signature::HEAD_BYTES);
    let mut source = source;
    source.by_ref().take(Signature::HEAD_BYTES as u64).read_to_end(&mut head)?;
    let signature = Signature::of(&head);
    let source = io::Cursor::new(head).chain(source);
    let (sender, chunks) = sync_channel(AHEAD);
    let output = Output { sender, cancel: cancel.clone() };
    let handle = std::thread::Builder::new()
        .name("srp-decompress".into())
        .spawn_scoped(scope, move || decompress(signature, source, size, output))?;
    let cancel = cancel.clone();
    Ok((signature, Decompressed { chunks, chunk: Vec::new(), position: 0, cancel }, handle))
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
    signature: Signature,
    source: R,
    size: u64,
    output: Output,
) -> io::Result<()> {
    let cancel = output.cancel.clone();
    let budget = Budget::new(&cancel, MEMORY_BYTES, MAX_BYTES);
    let source = BufReader::with_capacity(CHUNK, Watched { inner: source, budget: &budget });
    pump(streams::open(signature, source, size, &budget)?, &output, &budget)
}

/// Reads to the end, or until the receiver stops.
fn pump(mut reader: impl Read, output: &Output, budget: &Budget<'_>) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        let mut failed = None;
        while filled < CHUNK && failed.is_none() {
            match reader.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => failed = Some(error),
            }
        }
        let end = filled < CHUNK;
        chunk.truncate(filled);
        budget.spend(filled as u64)?;
        if filled > 0 && !output.send(chunk) {
            return Ok(());
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if end {
            return Ok(());
        }
    }
}

impl Decompressed {
    /// The first bytes, [`Signature::HEAD_BYTES`] of them if there are so many. To be asked before
    /// anything is read.
    pub(super) fn head(&mut self) -> &[u8] {
        if self.chunk.is_empty() {
            self.chunk = self.chunks.recv().unwrap_or_default();
        }
        &self.chunk[..self.chunk.len().min(Signature::HEAD_BYTES)]
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
