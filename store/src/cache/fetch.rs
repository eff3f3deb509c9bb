//! Fetching: from an object's record to the object in the store.
//!
//! The index comes first and says which files there are. Those that the store has are copied;
//! those that a delta makes of a file that the store has are made; for the others the blocks that
//! hold them are read, neighbours in one request. A transfer that breaks is taken up again where
//! it broke, if not from this cache then from another one or by another process
//! ([`Workplace`]). Everything is written to a scratch directory; the object appears when each of
//! its files has been compared with its digest, or never.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::prelude::*;

use crate::cache::closure::{Delta, ObjectRecord};
use crate::cache::delta;
use crate::cache::limited::{decompress_block, read_exactly};
use crate::cache::pack::{Index, MAGIC};
use crate::cache::partial::Workplace;
use crate::cache::unpack::{UnpackError, Unpacking};
use crate::cache::{Cache, CacheError, CachePath, Holdings};
use crate::commit::Registration;
use crate::digest::Digest;
use crate::error::StoreError;
use crate::files;
use crate::listing::Listing;
use crate::store::Store;

/// So many transfers in a row may break without bringing anything.
const ATTEMPTS: usize = 3;
/// So many blocks are on their way between the transfer and the threads that unpack them.
const BLOCKS_AHEAD: usize = 16;

/// What it takes to fetch objects from one cache. It is shared by threads.
#[derive(Clone)]
pub struct Fetcher<'a> {
    /// Where objects are registered.
    pub store: &'a Store,
    /// Where they come from.
    pub cache: &'a Cache,
    /// What needn't be fetched.
    pub holdings: Arc<Holdings>,
    /// How to make files of others, by the digest of the file made. From a manifest whose
    /// signature was checked.
    deltas: Arc<HashMap<Digest, Vec<Delta>>>,
    /// Told of bytes as they come.
    progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

/// What a fetch took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes that came.
    pub fetched_bytes: u64,
    /// Requests that were made.
    pub requests: u64,
    /// Content that was copied from the store instead.
    pub copied_bytes: u64,
    /// Content that deltas made.
    pub delta_bytes: u64,
}

impl<'a> Fetcher<'a> {
    /// Fetches from `cache` into `store` what `holdings` don't have.
    pub fn new(store: &'a Store, cache: &'a Cache, holdings: Arc<Holdings>) -> Fetcher<'a> {
        Fetcher { store, cache, holdings, deltas: Arc::default(), progress: None }
    }

    /// With these deltas.
    #[must_use]
    pub fn with_deltas(mut self, deltas: &BTreeSet<Delta>) -> Fetcher<'a> {
        let mut by_target: HashMap<Digest, Vec<Delta>> = HashMap::new();
        for delta in deltas {
            by_target.entry(delta.to).or_default().push(*delta);
        }
        self.deltas = Arc::new(by_target);
        self
    }

    /// With `progress` being told of bytes as they come, from any thread.
    #[must_use]
    pub fn with_progress(mut self, progress: &'a (dyn Fn(u64) + Sync)) -> Fetcher<'a> {
        self.progress = Some(progress);
        self
    }

    /// Fetches an object and registers it. What it refers to is not fetched with it, and must be
    /// here.
    ///
    /// Nothing is transferred if the store has the object or its tree. Threads that finish
    /// together share one commit.
    pub fn fetch(&self, record: &ObjectRecord) -> Result<Transfer, CacheError> {
        if self.store.contains(&record.object.id())? {
            return Ok(Transfer::default());
        }
        let mut registration = Registration::default();
        if let Some(listing) = self.store.tree(&record.object.tree)? {
            registration.existing_tree(self.store, &record.object, &listing);
            self.store.commit(registration)?;
            return Ok(Transfer::default());
        }
        self.transfer(record, |listing, tree| {
            registration.object(self.store, &record.object, listing, tree);
            self.store.commit(registration)
        })
    }

    /// Fetches an object's tree alone: [`Store::register_trees`] makes the object of it when what it
    /// refers to is here, too.
    pub fn fetch_tree(&self, record: &ObjectRecord) -> Result<Transfer, CacheError> {
        if self.store.tree(&record.object.tree)?.is_some() {
            return Ok(Transfer::default());
        }
        self.transfer(record, |listing, tree| {
            let mut registration = Registration::default();
            registration.tree(self.store, listing, tree);
            self.store.commit(registration)
        })
    }

    /// Brings an object's tree to a scratch directory, and has it registered.
    fn transfer(
        &self,
        record: &ObjectRecord,
        register: impl FnOnce(Arc<Listing>, PathBuf) -> Result<(), StoreError>,
    ) -> Result<Transfer, CacheError> {
        let fetch = Fetch::new(self, record);
        let (index, whole) = fetch.index()?;
        let scratch = self.store.scratch()?;
        let place = Workplace::new(scratch.path())?;
        let tree = place.tree();
        let unpacking = Unpacking::begin(&tree, &index)?;
        let pack = &record.location.pack;
        let left = place.resume(self.store, pack, &unpacking)?;
        let resumed = left.is_some();
        let mut done = left.unwrap_or_default();
        let (copied_bytes, delta_bytes) = match fetch.fill(&index, &unpacking, whole, &mut done) {
            Ok(bytes) => bytes,
            // What was left lay on this machine's disk, and is gone now: nobody else is to blame yet.
            Err(CacheError::Digest(error)) if resumed => {
                tracing::debug!(%error, "a broken transfer begins anew");
                return self.transfer(record, register);
            }
            Err(error) => {
                if matches!(error, CacheError::Transport { .. }) && !done.is_empty() {
                    place.leave(self.store, pack, &done);
                }
                return Err(error);
            }
        };
        unpacking.end()?;
        register(Arc::clone(&index.listing), tree)?;
        Ok(Transfer {
            fetched_bytes: fetch.fetched_bytes.into_inner(),
            requests: fetch.requests.into_inner(),
            copied_bytes,
            delta_bytes,
        })
    }
}

impl Fetcher<'_> {
    /// Fetches single files of an object, by their digests, into the new directory `to`: a tree
    /// that has all of the object's directories, and of its files only these. `index` and `whole`
    /// are what [`Cache::index`] gave. Nothing is registered, and what comes of it is no object.
    pub fn fetch_files(
        &self,
        record: &ObjectRecord,
        (index, whole): (&Index, Option<Vec<u8>>),
        wanted: &BTreeSet<Digest>,
        to: &Path,
    ) -> Result<(), CacheError> {
        let fetch = Fetch::new(self, record);
        let unpacking = Unpacking::begin(to, index)?;
        for (number, file) in index.files.iter().enumerate() {
            if !wanted.contains(&file.digest) {
                unpacking.skip(number);
            }
        }
        fetch.fill(index, &unpacking, whole, &mut BTreeSet::new()).map(drop)
    }
}

/// The fetch of one object.
struct Fetch<'a> {
    fetcher: &'a Fetcher<'a>,
    record: &'a ObjectRecord,
    path: CachePath,
    fetched_bytes: AtomicU64,
    requests: AtomicU64,
}

impl<'a> Fetch<'a> {
    fn new(fetcher: &'a Fetcher<'a>, record: &'a ObjectRecord) -> Fetch<'a> {
        Fetch {
            fetcher,
            record,
            path: CachePath::pack(&record.location.pack),
            fetched_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// The pack's index, and the whole pack if it is small.
    fn index(&self) -> Result<(Index, Option<Vec<u8>>), CacheError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (index, whole) = self.fetcher.cache.index(self.record)?;
        let location = &self.record.location;
        self.came(if whole.is_some() { location.pack_bytes } else { location.index_bytes });
        Ok((index, whole))
    }

    fn came(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = self.fetcher.progress {
            progress(bytes);
        }
    }

    /// Brings every file that isn't there; how many bytes were copied, and how many deltas made.
    /// The blocks in `done` needn't be read, and those that are read are added to them.
    fn fill(
        &self,
        index: &Index,
        unpacking: &Unpacking<'_>,
        whole: Option<Vec<u8>>,
        done: &mut BTreeSet<usize>,
    ) -> Result<(u64, u64), CacheError> {
        let copied_bytes = self.copy(index, unpacking)?;
        let delta_bytes = self.apply_deltas(index, unpacking)?;
        match whole {
            Some(pack) => {
                let mut from = pack.get(MAGIC.len()..).unwrap_or_default();
                let all = 0..index.blocks.len();
                self.pass_on(index, unpacking, &mut from, all, &BTreeSet::new()).1?;
            }
            None => self.blocks(index, unpacking, done)?,
        }
        match unpacking.missing().first() {
            None => Ok((copied_bytes, delta_bytes)),
            Some(number) => {
                let digest = index.files[*number].digest;
                let place = self.fetcher.cache.place(&self.path);
                Err(place.damaged(format!("it lacks {digest}")))
            }
        }
    }

    /// Copies what the store has; how much that was.
    fn copy(&self, index: &Index, unpacking: &Unpacking<'_>) -> Result<u64, CacheError> {
        let copied = unpacking.untouched().into_par_iter().map(|number| {
            let file = &index.files[number];
            let Some(from) = self.fetcher.holdings.find(&file.digest) else { return Ok(0) };
            let copied = unpacking.copy(number, &from)?;
            if !copied {
                tracing::warn!(path = %from.display(), "a file of the store is damaged or gone");
            }
            Ok(if copied { file.size_bytes } else { 0 })
        });
        copied.try_reduce(|| 0, |a, b| Ok(a + b))
    }

    /// Makes what can be made of files that the store has; how much that was.
    fn apply_deltas(&self, index: &Index, unpacking: &Unpacking<'_>) -> Result<u64, CacheError> {
        let mut made_bytes = 0;
        if self.fetcher.deltas.is_empty() {
            return Ok(0);
        }
        for number in unpacking.untouched() {
            let file = &index.files[number];
            let share = index.share_bytes(file);
            let best = self.fetcher.deltas.get(&file.digest).into_iter().flatten();
            let best = best.filter(|it| it.delta_bytes < share && it.to_bytes == file.size_bytes);
            let best = best.filter_map(|it| Some((it, self.fetcher.holdings.find(&it.from)?)));
            let Some((found, from)) = best.min_by_key(|(it, _)| it.delta_bytes) else { continue };
            if found.from_bytes > delta::MAX_FILE_BYTES {
                continue;
            }
            let path = CachePath::delta(&found.delta);
            let place = self.fetcher.cache.place(&path);
            self.requests.fetch_add(1, Ordering::Relaxed);
            let bytes = match self.fetcher.cache.read_range(&path, 0..found.delta_bytes) {
                Ok(bytes) => bytes,
                // The file itself is there, too.
                Err(error) => {
                    tracing::warn!(%error, "a delta is left out");
                    continue;
                }
            };
            self.came(bytes.len() as u64);
            place.expect("the content", found.delta, Digest::of_file(&bytes))?;
            let made = unpacking.make(number, &mut |to| {
                let make = || {
                    let old = files::read(&from)?;
                    let mut to = BufWriter::new(to);
                    delta::apply(&old, &bytes, file.size_bytes, &mut to)?;
                    to.flush()
                };
                make().inspect_err(|error| tracing::warn!(%error, %path, "a delta fails"))
            })?;
            made_bytes += if made { file.size_bytes } else { 0 };
        }
        Ok(made_bytes)
    }

    /// Fetches the blocks of what is missing, and again what a broken transfer didn't bring.
    fn blocks(
        &self,
        index: &Index,
        unpacking: &Unpacking<'_>,
        done: &mut BTreeSet<usize>,
    ) -> Result<(), CacheError> {
        let mut attempts = 0;
        loop {
            let needed: BTreeSet<usize> = unpacking
                .missing()
                .into_iter()
                .flat_map(|number| index.blocks_of(&index.files[number]))
                .filter(|block| !done.contains(block))
                .collect();
            if needed.is_empty() {
                return Ok(());
            }
            let before = done.len();
            let result = coalesce(index, &needed, self.fetcher.cache.remote().request_cost_bytes())
                .into_iter()
                .try_for_each(|blocks| self.range(index, unpacking, blocks, done));
            attempts = if done.len() > before { 0 } else { attempts + 1 };
            match result {
                Err(error @ CacheError::Transport { .. })
                    if attempts < ATTEMPTS && !error.is_too_slow() => {}
                result => result?,
            }
        }
    }

    /// Fetches blocks that lie side by side, in one request.
    fn range(
        &self,
        index: &Index,
        unpacking: &Unpacking<'_>,
        blocks: Range<usize>,
        done: &mut BTreeSet<usize>,
    ) -> Result<(), CacheError> {
        let (first, last) = (&index.blocks[blocks.start], &index.blocks[blocks.end - 1]);
        let bytes = first.offset..last.offset + last.packed_bytes;
        let cache = self.fetcher.cache;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let body = cache.body(&self.path, Some(bytes))?;
        let body = body.ok_or_else(|| cache.place(&self.path).missing())?;
        let mut reader = Counted { fetch: self, from: body.reader };
        let (came, result) = self.pass_on(index, unpacking, &mut reader, blocks, done);
        done.extend(came);
        result
    }

    /// Reads blocks one after the other, while other threads unpack those that have come; which
    /// ones were unpacked, and how it ended.
    fn pass_on(
        &self,
        index: &Index,
        unpacking: &Unpacking<'_>,
        from: &mut (dyn Read + Send),
        blocks: Range<usize>,
        done: &BTreeSet<usize>,
    ) -> (Vec<usize>, Result<(), CacheError>) {
        let (sender, receiver) = sync_channel(BLOCKS_AHEAD);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || self.read(index, from, blocks, &sender));
            let mut came = Vec::new();
            let unpacked = self.unpack(index, unpacking, receiver, done, &mut came);
            let read = reading.join().expect("the reading thread doesn't panic");
            (came, unpacked.and(read))
        })
    }

    fn read(
        &self,
        index: &Index,
        from: &mut dyn Read,
        blocks: Range<usize>,
        to: &SyncSender<(usize, Vec<u8>)>,
    ) -> Result<(), CacheError> {
        for number in blocks {
            let length = index.blocks[number].packed_bytes;
            let packed = read_exactly(from, length)
                .map_err(|error| self.fetcher.cache.place(&self.path).transport("read", error))?;
            if to.send((number, packed)).is_err() {
                // Unpacking failed, and says why.
                break;
            }
        }
        Ok(())
    }

    fn unpack(
        &self,
        index: &Index,
        unpacking: &Unpacking<'_>,
        from: Receiver<(usize, Vec<u8>)>,
        done: &BTreeSet<usize>,
        came: &mut Vec<usize>,
    ) -> Result<(), CacheError> {
        let place = self.fetcher.cache.place(&self.path);
        // Whatever has come meanwhile is unpacked together.
        while let Ok(first) = from.recv() {
            let mut group = vec![first];
            group.extend(from.try_iter().take(BLOCKS_AHEAD));
            group.retain(|(number, _)| !done.contains(number));
            group.par_iter().try_for_each(|(number, packed)| {
                let block = &index.blocks[*number];
                place.expect(format!("block {number}"), block.digest, Digest::of_file(packed))?;
                let plain = decompress_block(packed, block.plain_bytes)
                    .map_err(|error| place.damaged(format!("block {number}: {error}")))?;
                unpacking.block(block, &plain).map_err(|error| match error {
                    UnpackError::Store(error) => CacheError::Store(error),
                    UnpackError::File { path, expected, found } => {
                        let what = format!("the file {}", path.display());
                        place.expect(what, expected, found).expect_err("they differ")
                    }
                })
            })?;
            came.extend(group.iter().map(|(number, _)| *number));
        }
        Ok(())
    }
}

/// Tells of bytes as they come.
struct Counted<'a, R> {
    fetch: &'a Fetch<'a>,
    from: R,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.fetch.came(count as u64);
        Ok(count)
    }
}

/// Ranges of blocks that cover those needed, such that reading what lies between two ranges would
/// take longer than a request of its own.
fn coalesce(index: &Index, needed: &BTreeSet<usize>, request_cost_bytes: u64) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for number in needed {
        if let Some(last) = ranges.last_mut() {
            let end = &index.blocks[last.end - 1];
            let gap = index.blocks[*number].offset - (end.offset + end.packed_bytes);
            if gap <= request_cost_bytes {
                last.end = number + 1;
                continue;
            }
        }
        ranges.push(*number..number + 1);
    }
    ranges
}
