//! An export as it is read: forward only, entry by entry, within limits.
//!
//! To the [`Fetcher`](super::Fetcher) it is a [`Remote`] that has one pack at a time, whose index it
//! remembers and whose blocks it passes on as they come. What was passed can't be had again: a
//! transfer that breaks stays broken, with the same error.

use std::fs::File;
use std::io::{BufReader, Cursor, Error, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cache::error::{CacheError, Place};
use crate::cache::export::MAGIC;
use crate::cache::limited::read_exactly;
use crate::cache::pack;
use crate::cache::path::CachePath;
use crate::cache::remote::{Body, Content, Remote, Stat};

/// What is read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// No path in a cache is longer.
const MAX_PATH_BYTES: u64 = 1000;

/// Told of bytes as they come, and of none before each read, when it may wait until there is something;
/// its error ends the reading.
pub(crate) type Progress = Arc<dyn Fn(u64) -> std::io::Result<()> + Send + Sync>;

/// Where in a cache an entry's bytes belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) path: CachePath,
    pub(crate) bytes: Range<u64>,
}

/// An export that is being read. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Stream {
    name: String,
    state: Arc<Mutex<State>>,
}

struct State {
    from: BufReader<Waiting>,
    seekable: bool,
    progress: Progress,
    /// What is left of the entry whose header was read.
    left: u64,
    pack: Option<Pack>,
    /// What ended the reading.
    broken: Option<(ErrorKind, String)>,
}

/// The pack that can be asked for now: its index is here, its blocks are what comes next.
/// `blocks_end` is where the index begins in the pack.
struct Pack {
    path: CachePath,
    index: Vec<u8>,
    blocks_end: u64,
}

/// A file or pipe; before it is read, whoever watches is asked.
struct Waiting {
    from: File,
    progress: Progress,
}

impl Read for Waiting {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        (self.progress)(0)?;
        self.from.read(into)
    }
}

impl Seek for Waiting {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.from.seek(to)
    }
}

impl Stream {
    /// Reads from a file or a pipe; `name` is what messages call it.
    pub(crate) fn new(from: File, name: &str, progress: Progress) -> Stream {
        // What can be sought in needn't be read where it isn't needed.
        let seekable = from.metadata().is_ok_and(|metadata| metadata.is_file());
        let from = Waiting { from, progress: Arc::clone(&progress) };
        let from = BufReader::with_capacity(CHUNK_BYTES, from);
        let (left, pack, broken) = (0, None, None);
        let state = State { from, seekable, progress, left, pack, broken };
        Stream { name: name.to_owned(), state: Arc::new(Mutex::new(state)) }
    }

    /// Reads the beginning; the bytes of the contents' sealed file, of at most `limit`. None if it
    /// isn't the beginning of an export.
    pub(crate) fn begin(&self, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        let mut state = self.state();
        let mut magic = [0; MAGIC.len()];
        match state.all().read_exact(&mut magic) {
            // What is shorter is no export either.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        if magic != MAGIC {
            return Ok(None);
        }
        let length = state.integer()?;
        if length > limit {
            return Err(invalid(format!("its contents have {length} bytes")));
        }
        read_exactly(&mut state.all(), length).map(Some)
    }

    /// The next entry's header; none at the end. What wasn't read of the entry before is passed.
    pub(crate) fn next(&self) -> std::io::Result<Option<Header>> {
        let mut state = self.state();
        state.pack = None;
        state.pass()?;
        let length = state.integer()?;
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_PATH_BYTES {
            return Err(invalid(format!("a path in it has {length} bytes")));
        }
        let path = read_exactly(&mut state.all(), length)?;
        let path = std::str::from_utf8(&path).ok().and_then(CachePath::parse);
        let path = path.ok_or_else(|| invalid("a path in it is none".to_owned()))?;
        let (offset, length) = (state.integer()?, state.integer()?);
        let end = offset.checked_add(length);
        let end = end.ok_or_else(|| invalid(format!("{path} ends nowhere")))?;
        state.left = length;
        Ok(Some(Header { path, bytes: offset..end }))
    }

    /// The content of the entry whose header was read last, of at most `limit` bytes.
    pub(crate) fn content(&self, limit: u64) -> std::io::Result<Vec<u8>> {
        let mut state = self.state();
        let length = state.left;
        if length > limit {
            return Err(invalid(format!("an entry has {length} bytes, of at most {limit}")));
        }
        read_exactly(&mut *state, length)
    }

    /// The entry whose header was read last is the beginning of a pack, whose index came before:
    /// it can be asked for until the next header is read.
    pub(crate) fn offer(&self, path: &CachePath, index: Vec<u8>) -> std::io::Result<()> {
        let mut state = self.state();
        let blocks_end = state.left;
        // Blocks and index have their digests; this is what is left to check.
        if read_exactly(&mut *state, blocks_end.min(pack::MAGIC.len() as u64))? != pack::MAGIC {
            return Err(invalid(format!("{path} does not begin as packs do")));
        }
        state.pack = Some(Pack { path: path.clone(), index, blocks_end });
        Ok(())
    }

    /// Whether it ended before its end.
    pub(crate) fn is_truncated(&self) -> bool {
        matches!(self.state().broken, Some((ErrorKind::UnexpectedEof, _)))
    }

    /// What ended the reading, if something did.
    pub(crate) fn broken(&self) -> Option<Error> {
        self.state().broken.as_ref().map(|(kind, text)| Error::new(*kind, text.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    /// Everything that comes, whatever entry it belongs to.
    fn all(&mut self) -> All<'_> {
        All(self)
    }

    fn integer(&mut self) -> std::io::Result<u64> {
        let mut bytes = [0; 8];
        self.all().read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Passes what is left of an entry.
    fn pass(&mut self) -> std::io::Result<()> {
        if self.seekable && self.left > CHUNK_BYTES as u64 {
            // The last byte is read: a file can be sought beyond its end.
            let most =
                i64::try_from(self.left - 1).map_err(|_| Error::from(ErrorKind::UnexpectedEof));
            most.and_then(|most| self.from.seek(SeekFrom::Current(most)))
                .map_err(|e| self.note(e))?;
            self.left = 1;
        }
        let left = self.left;
        match std::io::copy(&mut (&mut *self).take(left), &mut std::io::sink())? {
            count if count == left => Ok(()),
            _ => Err(self.note(ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Reads from the file; at its end that is an error, as everywhere within an export.
    fn read_some(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some((kind, text)) = &self.broken {
            return Err(Error::new(*kind, text.clone()));
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = match self.from.read(buffer) {
            Ok(0) => Err(Error::new(ErrorKind::UnexpectedEof, "it ends before its end")),
            Ok(count) => (self.progress)(count as u64).map(|()| count),
            Err(error) => Err(error),
        };
        read.map_err(|error| self.note(error))
    }

    /// Remembers what ended the reading. An interrupted call is no end.
    fn note(&mut self, error: Error) -> Error {
        if error.kind() != ErrorKind::Interrupted {
            self.broken = Some((error.kind(), error.to_string()));
        }
        error
    }
}

/// What is left of the entry.
impl Read for State {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.read_some(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

struct All<'a>(&'a mut State);

impl Read for All<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_some(buffer)
    }
}

/// The blocks of a pack, from where the stream is.
struct Blocks(Arc<Mutex<State>>);

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder panics").read(buffer)
    }
}

impl Remote for Stream {
    fn url(&self) -> &str {
        &self.name
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        if *path == CachePath::meta() {
            // An export has no file of its own for what its first line says.
            let meta = super::meta();
            let length = meta.len() as u64;
            return Ok(Some(Body { length, reader: Box::new(Cursor::new(meta)) }));
        }
        let mut state = self.state();
        let place = Place { url: &self.name, path };
        let Some(offered) = state.pack.as_ref().filter(|pack| pack.path == *path) else {
            return Ok(None);
        };
        let blocks_end = offered.blocks_end;
        let whole = blocks_end + offered.index.len() as u64;
        let range = range.unwrap_or(0..whole);
        if range.start > range.end || range.end > whole {
            return Err(place.transport("read", ErrorKind::UnexpectedEof.into()));
        }
        let of_index = |at: u64| (at.max(blocks_end) - blocks_end) as usize;
        let index = offered.index[of_index(range.start)..of_index(range.end)].to_vec();
        let from_index = Cursor::new(index);
        // What a pack begins with was read already.
        let of_magic = |at: u64| at.min(pack::MAGIC.len() as u64) as usize;
        let magic = &pack::MAGIC[of_magic(range.start)..of_magic(range.end)];
        let (begin, end) = (range.start + magic.len() as u64, range.end.min(blocks_end));
        let reader: Box<dyn Read + Send> = if begin < end {
            let at = blocks_end - state.left;
            if begin < at {
                // Only after a failure is something asked for again.
                let again = Error::other("an export can't be read again from before");
                let error = state
                    .broken
                    .as_ref()
                    .map_or(again, |(kind, text)| Error::new(*kind, text.clone()));
                return Err(place.transport("read", error));
            }
            let gap = begin - at;
            let passed = std::io::copy(&mut (&mut *state).take(gap), &mut std::io::sink());
            passed.map_err(|error| place.transport("read", error))?;
            let blocks = Blocks(Arc::clone(&self.state));
            Box::new(magic.chain(blocks.take(end - begin)).chain(from_index))
        } else {
            Box::new(magic.chain(from_index))
        };
        Ok(Some(Body { length: range.end - range.start, reader }))
    }

    fn put(&self, _: &CachePath, _: Content<'_>) -> Result<(), CacheError> {
        Err(CacheError::Unsupported { action: "be published to", url: self.name.clone() })
    }

    fn stat(&self, _: &CachePath) -> Result<Option<Stat>, CacheError> {
        Err(CacheError::Unsupported { action: "be looked into", url: self.name.clone() })
    }

    fn refresh(&self, _: &CachePath) -> Result<bool, CacheError> {
        Ok(false)
    }

    /// Whatever lies between two blocks comes anyway.
    fn request_cost_bytes(&self) -> u64 {
        u64::MAX
    }
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}
