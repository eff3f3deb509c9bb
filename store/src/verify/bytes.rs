//! The bytes of a store: those of trees, composed roots and sources, several at a time.
//!
//! A tree is verified, and stamped, as a whole (`verification`); so is a composed root, for which a
//! listing is made beside it. When a source was verified is kept in a file of the store, `verified`:
//! the times of its inode say how young it is, and nothing else. Whoever interrupts this keeps the
//! stamps of what is through.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Error, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::Digest as _;

use crate::digest::{Digest, Sha256};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::store::Store;
use crate::verification::{Damage, DamageKind, Lost, Place, Stamp, TreeReport};
use crate::verify::names::{Looked, read};
use crate::verify::{Finding, LookedAt, PARTS, Part, Report, Subject, Unread, Verification, Watch};

/// Something whose bytes can be verified alone.
#[derive(Clone, Debug)]
enum Item {
    Tree(Digest),
    Composed(Digest),
    Source(Sha256, PathBuf),
}

/// What hashing an item came to.
enum Hashed {
    Tree(Subject, PathBuf, TreeReport),
    Source(Sha256, PathBuf, Looked<u64>),
}

impl Store {
    pub(super) fn verify_bytes(
        &self,
        how: &Verification<'_>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let mut items = self.items(report)?;
        let stamps = SourceStamps::read(self);
        report.looked_at.of_bytes = items.iter().map(|it| it.1).sum();
        if *how.part == Part::Oldest {
            self.keep_oldest(&mut items, report.looked_at.of_bytes, &stamps)?;
        }
        // The last that are begun should be small ones.
        items.sort_by_key(|(_, size_bytes)| Reverse(*size_bytes));
        let total = items.iter().map(|it| it.1).sum();
        how.watch.total_bytes.store(total, std::sync::atomic::Ordering::Relaxed);
        let (next, done) = (Mutex::new(items.into_iter()), Mutex::new(Vec::new()));
        let work = || -> Result<(), StoreError> {
            while let Some((item, _)) = { next.lock().expect("no holder panics").next() } {
                how.watch.check()?;
                let hashed = self.hash_item(item, how.watch)?;
                done.lock().expect("no holder panics").extend(hashed);
            }
            Ok(())
        };
        // Not rayon's threads: large files are hashed by those, for whoever waits.
        let outcome = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..rayon::current_num_threads()).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        });
        let done = done.into_inner().expect("no holder panics");
        stamps.write(self, &done)?;
        outcome?;
        for hashed in done {
            report.take_hashed(hashed, self.is_writable());
        }
        Ok(())
    }

    /// All that has bytes, and how many.
    fn items(&self, report: &Report) -> Result<Vec<(Item, u64)>, StoreError> {
        let structure = &report.structure;
        let mut items: Vec<(Item, u64)> = structure
            .trees
            .iter()
            .map(|(tree, size_bytes)| (Item::Tree(*tree), size_bytes.unwrap_or(0)))
            .collect();
        for composed in &structure.composed {
            let place = self.composed_place(composed);
            let size_bytes = match look_at_listing(&place) {
                Looked::Sound(listing) => listing.extent().size_bytes,
                _ => length_of(&place.directory),
            };
            items.push((Item::Composed(*composed), size_bytes));
        }
        for (sha256, path, size_bytes) in &structure.sources {
            items.push((Item::Source(*sha256, path.clone()), *size_bytes));
        }
        Ok(items)
    }

    /// Keeps what was not verified for the longest time, a part of all bytes. What has no listing, or
    /// a damaged one, is always looked at: nothing can be said of it otherwise.
    fn keep_oldest(
        &self,
        items: &mut Vec<(Item, u64)>,
        of_bytes: u64,
        stamps: &SourceStamps,
    ) -> Result<(), StoreError> {
        let mut aged = Vec::with_capacity(items.len());
        for (item, size_bytes) in items.drain(..) {
            let mut stamp = self.stamp_of(&item, stamps)?;
            if !self.is_writable() && matches!(stamp, Stamp::At(_) | Stamp::Never) {
                // Whoever can't stamp would look at the same ones again and again.
                let mut random = [0; 8];
                getrandom::fill(&mut random)
                    .map_err(Error::other)
                    .at("read", Path::new("random"))?;
                let seconds = u64::from_le_bytes(random) >> 32;
                stamp = Stamp::At(UNIX_EPOCH + Duration::from_secs(seconds));
            }
            let order = match stamp {
                Stamp::Damaged => None,
                Stamp::Never => Some(UNIX_EPOCH),
                Stamp::At(time) => Some(time),
            };
            aged.push((order, item, size_bytes));
        }
        aged.sort_by_key(|it| it.0);
        let (part, mut sum) = (of_bytes.div_ceil(PARTS), 0);
        for (order, item, size_bytes) in aged {
            let unlisted = size_bytes == 0 && order == Some(UNIX_EPOCH);
            if sum < part || order.is_none() || unlisted {
                sum += size_bytes;
                items.push((item, size_bytes));
            }
        }
        Ok(())
    }

    fn stamp_of(&self, item: &Item, stamps: &SourceStamps) -> Result<Stamp, StoreError> {
        match item {
            Item::Tree(tree) => self.stamp(&self.place(tree)),
            Item::Composed(digest) => self.stamp(&self.composed_place(digest)),
            Item::Source(sha256, _) => Ok(match stamps.0.get(sha256) {
                Some(time) => Stamp::At(UNIX_EPOCH + Duration::from_nanos(*time)),
                None => Stamp::Never,
            }),
        }
    }

    fn hash_item(&self, item: Item, watch: &Watch<'_>) -> Result<Option<Hashed>, StoreError> {
        let (subject, place) = match item {
            Item::Tree(tree) => (Subject::Tree(tree), self.place(&tree)),
            Item::Composed(digest) => (Subject::Composed(digest), self.composed_place(&digest)),
            Item::Source(sha256, path) => {
                let looked = self.hash_source(&sha256, &path, watch);
                watch.check()?;
                return Ok(Some(Hashed::Source(sha256, path, looked)));
            }
        };
        let verify =
            || self.verify(&place, || None, Lost::Leave, watch.cancel, &|bytes| watch.read(bytes));
        let mut found = verify()?;
        if !found.is_sound() {
            // Somebody may have replaced or removed it meanwhile.
            found = verify()?;
            if fs::symlink_metadata(&place.directory).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(Hashed::Tree(subject, place.directory, found)))
    }

    fn hash_source(&self, sha256: &Sha256, path: &Path, watch: &Watch<'_>) -> Looked<u64> {
        let hash = || -> std::io::Result<(Sha256, u64)> {
            let mut file = files::open_plain(path)?;
            let mut hasher = sha2::Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    let found = Sha256::from_bytes(hasher.finalize().into());
                    return Ok((found, total));
                }
                watch.check().map_err(Error::other)?;
                hasher.update(&buffer[..count]);
                watch.read(count as u64);
                total += count as u64;
            }
        };
        match hash() {
            Ok((found, total)) if found == *sha256 => Looked::Sound(total),
            Ok((found, ..)) => Looked::Wrong(format!("its SHA-256 is {found}")),
            Err(error) => Looked::failed(error),
        }
    }
}

/// When sources were last verified, in nanoseconds since 1970: lines of digest and time, which anybody
/// may delete. What can't be read of it says nothing.
struct SourceStamps(BTreeMap<Sha256, u64>);

impl SourceStamps {
    fn path(store: &Store) -> PathBuf {
        store.directory("verified")
    }

    fn read(store: &Store) -> SourceStamps {
        let text = files::read_text(&SourceStamps::path(store)).unwrap_or_default();
        let now = now();
        let stamps = text.lines().filter_map(|line| {
            let (sha256, time) = line.split_once(' ')?;
            let time = time.parse().ok().filter(|time| *time <= now)?;
            Some((sha256.parse().ok()?, time))
        });
        SourceStamps(stamps.collect())
    }

    /// Adds what was verified now, of sources that are still there.
    fn write(mut self, store: &Store, done: &[Hashed]) -> Result<(), StoreError> {
        let (mut changed, now) = (false, now());
        for hashed in done {
            let Hashed::Source(sha256, _, looked) = hashed else { continue };
            match looked {
                Looked::Sound(_) => drop(self.0.insert(*sha256, now)),
                _ => drop(self.0.remove(sha256)),
            }
            changed = true;
        }
        if !changed || !store.is_writable() {
            return Ok(());
        }
        let text: String =
            self.0.iter().map(|(sha256, time)| format!("{sha256} {time}\n")).collect();
        store.write(&SourceStamps::path(store), text.as_bytes(), 0o644)
    }
}

pub(super) fn look_at_listing(place: &Place) -> Looked<Listing> {
    read(&place.listing).and_then(|bytes| {
        Listing::decode(&bytes, place.digest, &place.listing).map_err(|error| error.to_string())
    })
}

/// The lengths of all files in a directory, as far as they can be read.
fn length_of(directory: &Path) -> u64 {
    let (mut sum, mut pending) = (0, vec![directory.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => pending.push(entry.path()),
                Ok(found) if found.is_file() => sum += found.len(),
                _ => {}
            }
        }
    }
    sum
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Report {
    fn take_hashed(&mut self, hashed: Hashed, is_ours: bool) {
        let LookedAt { trees, files, size_bytes, .. } = &mut self.looked_at;
        *trees += 1;
        match hashed {
            Hashed::Tree(subject, path, found) => {
                *files += found.files;
                *size_bytes += found.size_bytes;
                let (unread, damages): (Vec<Damage>, _) = found.damages.into_iter().partition(|it| {
                    // Its owner may read what is as it should be.
                    let denied = Error::from(nix::errno::Errno::EACCES).to_string();
                    let of_access = matches!(&it.kind, DamageKind::Unreadable { reason } if *reason == denied);
                    of_access && !is_ours
                });
                for damage in unread {
                    let below = String::from_utf8_lossy(&damage.path).into_owned();
                    let reason = "permission denied".to_owned();
                    self.unread.push(Unread { path: path.join(below), reason });
                }
                if !damages.is_empty() {
                    let problem = "it is not what its digest says".to_owned();
                    let outcome = None;
                    self.findings.push(Finding { subject, path, problem, damages, outcome });
                }
            }
            Hashed::Source(sha256, path, looked) => {
                *files += 1;
                if let Some(total) = self.take(Subject::Source(sha256), &path, looked) {
                    self.looked_at.size_bytes += total;
                }
            }
        }
    }
}
