//! Writing packs: files are read, checked and compressed by several threads, and written in order.
//!
//! Memory is flat: no thread works further ahead of what is written than a few blocks. The same tree always
//! gives the same bytes. What is read is hashed, so that a damaged store publishes nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex};

use rustix::io::Errno;

use crate::cache::closure::Location;
use crate::cache::pack::{Block, Index, MAGIC, Segment, cut, distinct_files, order};
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::verification::DamageKind;

/// zstd's level: at 3, reading files and writing the pack cost about as much as compressing.
const LEVEL: i32 = 3;
/// So many blocks for each thread may be compressed before the ones before them are written.
const BLOCKS_PER_THREAD: usize = 8;
/// Data are sent to the disk each time so many bytes were written: the last sync then is short.
const SYNC_BYTES: u64 = 16 << 20;

/// A file of the stream, as the writer needs it.
struct Source {
    tree: Digest,
    path: PathBuf,
    digest: Digest,
    size_bytes: u64,
}

/// Writes the pack of the tree at `tree` to the file `to`, synced, and says where it lies.
pub(crate) fn write_pack(
    tree: &Path,
    listing: &Listing,
    to: &Path,
) -> Result<Location, StoreError> {
    let damaged = |reason| StoreError::Damaged { path: tree.to_owned(), reason };
    let distinct = distinct_files(listing).map_err(damaged)?;
    let order = order(&distinct);
    let sources: Vec<Source> = order
        .iter()
        .map(|number| {
            let (digest, size_bytes, path) = &distinct[*number as usize];
            let path = tree.join(OsStr::from_bytes(path));
            let (tree, digest, size_bytes) = (listing.digest(), *digest, *size_bytes);
            Source { tree, path, digest, size_bytes }
        })
        .collect();
    drop(distinct);
    let blocks = segments(&sources);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)
        .at("create", to)?;
    let threads = rayon::current_num_threads();
    let turns = Turns::new(BLOCKS_PER_THREAD * threads);
    let (sender, receiver) = sync_channel(threads);
    let (written_some, syncs) = sync_channel(1);
    let synced = &file;
    let mut written = std::thread::scope(|scope| {
        // Whether a sync succeeds is asked of the last one.
        scope.spawn(move || syncs.iter().for_each(|()| drop(synced.sync_data())));
        for _ in 0..threads {
            let (sender, turns, sources, blocks) = (sender.clone(), &turns, &sources, &blocks);
            scope.spawn(move || {
                while let Some(number) = turns.take(blocks.len()) {
                    // Whoever writes has failed if it doesn't listen, and says why.
                    if sender.send((number, compress(sources, &blocks[number]))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let written = write(synced, to, receiver, &turns, &written_some);
        drop(written_some);
        turns.end();
        written
    })?;
    let (index, index_plain_bytes) =
        Index::encode(listing, &order, &written.blocks).at("compress the index of", to)?;
    written.hasher.update(&index);
    file.write_all(&index).and_then(|()| file.sync_data()).at("write", to)?;
    Ok(Location {
        pack: Digest::from_bytes(*written.hasher.finalize().as_bytes()),
        pack_bytes: written.offset + index.len() as u64,
        index_bytes: index.len() as u64,
        index_plain_bytes,
        index_digest: Digest::of_file(&index),
    })
}

/// What each block is made of.
fn segments(sources: &[Source]) -> Vec<Vec<Segment>> {
    let (mut file, mut offset) = (0, 0);
    cut(sources.iter().map(|source| source.size_bytes))
        .into_iter()
        .map(|mut left| {
            let mut segments = Vec::new();
            while left > 0 {
                let length = left.min(sources[file].size_bytes - offset);
                segments.push(Segment { file, offset, length });
                left -= length;
                offset += length;
                if offset == sources[file].size_bytes {
                    (file, offset) = (file + 1, 0);
                }
            }
            segments
        })
        .collect()
}

impl Source {
    fn unsound(&self, kind: DamageKind) -> StoreError {
        let (tree, path) = (Some(self.tree), self.path.clone());
        StoreError::Unsound { tree, path, kind: Box::new(kind) }
    }

    /// What it means that the file can't be read.
    fn failed(&self, error: std::io::Error) -> StoreError {
        if error.kind() == ErrorKind::UnexpectedEof {
            let found = std::fs::metadata(&self.path).map_or(0, |it| it.len());
            return self.unsound(DamageKind::Size { expected: self.size_bytes, found });
        }
        match Errno::from_io_error(&error).and_then(DamageKind::of) {
            Some(kind) => self.unsound(kind),
            None => StoreError::Io { action: "read", path: self.path.clone(), source: error },
        }
    }
}

struct Packed {
    bytes: Vec<u8>,
    plain_bytes: u64,
    digest: Digest,
}

/// Reads what one block is made of and compresses it.
fn compress(sources: &[Source], segments: &[Segment]) -> Result<Packed, StoreError> {
    let length = segments.iter().map(|segment| segment.length).sum::<u64>();
    let mut plain = Vec::with_capacity(length as usize);
    for segment in segments {
        let source = &sources[segment.file];
        let mut file = files::open_plain(&source.path).map_err(|error| source.failed(error))?;
        let begin = plain.len();
        plain.resize(begin + segment.length as usize, 0);
        file.read_exact_at(&mut plain[begin..], segment.offset)
            .map_err(|error| source.failed(error))?;
        // Who has a file's beginning answers for all of it.
        let found = if segment.length == source.size_bytes {
            Digest::of_file(&plain[begin..])
        } else if segment.offset == 0 {
            hash(&mut file).map_err(|error| source.failed(error))?
        } else {
            continue;
        };
        if found != source.digest {
            return Err(source.unsound(DamageKind::Bytes { expected: source.digest, found }));
        }
    }
    let path = &sources[segments.first().map_or(0, |segment| segment.file)].path;
    let bytes = zstd::bulk::compress(&plain, LEVEL).at("compress", path)?;
    let digest = Digest::of_file(&bytes);
    Ok(Packed { bytes, plain_bytes: length, digest })
}

/// A file's digest, by one thread and little memory.
pub(crate) fn hash(from: &mut impl Read) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(*hasher.finalize().as_bytes())),
            count => hasher.update(&buffer[..count]),
        };
    }
}

/// Whose turn it is: blocks are taken in order, and none too far ahead of what is written.
struct Turns {
    state: Mutex<(usize, usize)>,
    changed: Condvar,
    ahead: usize,
}

impl Turns {
    fn new(ahead: usize) -> Turns {
        Turns { state: Mutex::new((0, 0)), changed: Condvar::new(), ahead }
    }

    /// The number of the next block to work on, when it may be; none after `count`.
    fn take(&self, count: usize) -> Option<usize> {
        let mut state = self.state.lock().expect("no holder panics");
        let number = state.0;
        if number >= count {
            return None;
        }
        state.0 += 1;
        while number >= state.1.saturating_add(self.ahead) {
            state = self.changed.wait(state).expect("no holder panics");
        }
        Some(number)
    }

    /// All blocks before this one are written.
    fn written(&self, number: usize) {
        self.state.lock().expect("no holder panics").1 = number;
        self.changed.notify_all();
    }

    /// Nothing more is written, and nobody is to wait.
    fn end(&self) {
        *self.state.lock().expect("no holder panics") = (usize::MAX, usize::MAX);
        self.changed.notify_all();
    }
}

struct Written {
    blocks: Vec<Block>,
    hasher: blake3::Hasher,
    offset: u64,
}

/// Writes blocks in order, as they come; ends when the senders do, or with the first error.
fn write(
    mut file: &File,
    to: &Path,
    from: Receiver<(usize, Result<Packed, StoreError>)>,
    turns: &Turns,
    written_some: &SyncSender<()>,
) -> Result<Written, StoreError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(MAGIC);
    file.write_all(MAGIC).at("write", to)?;
    let mut written = Written { blocks: Vec::new(), hasher, offset: MAGIC.len() as u64 };
    let mut waiting = BTreeMap::new();
    let (mut start, mut unsynced) = (0, 0);
    for (number, packed) in from {
        waiting.insert(number, packed?);
        while let Some(packed) = waiting.remove(&written.blocks.len()) {
            file.write_all(&packed.bytes).at("write", to)?;
            written.hasher.update(&packed.bytes);
            let (offset, packed_bytes) = (written.offset, packed.bytes.len() as u64);
            let Packed { plain_bytes, digest, .. } = packed;
            written.blocks.push(Block { offset, packed_bytes, start, plain_bytes, digest });
            written.offset += packed_bytes;
            start += plain_bytes;
            unsynced += packed_bytes;
        }
        turns.written(written.blocks.len());
        if unsynced >= SYNC_BYTES {
            // If it is still at the last one, it will come to these.
            let _ = written_some.try_send(());
            unsynced = 0;
        }
    }
    Ok(written)
}
