//! Collecting a cache's garbage.
//!
//! Kept is what a kept manifest names, and whatever is young: a publisher that is at work has no
//! manifest yet, and makes what it relies on look young. Age is by the cache's own clock, asked
//! for first, so that this machine's may be wrong. Names go before content, so that a reader who
//! comes in the middle finds less, but never a name that leads nowhere for longer than a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::cache::closure::{Closure, ObjectRecord, Pointer};
use crate::cache::sending::REFRESH_AFTER;
use crate::cache::{Cache, CacheError, CachePath, Content, Stat};
use crate::name::RootName;

/// What a garbage collection keeps.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Roots whose newest manifest, by each key, is kept however old it is.
    pub keep: BTreeSet<RootName>,
    /// Manifests that are younger are kept, too.
    pub older_than: Duration,
    /// Content that is younger is kept even if nothing names it: longer than any publication
    /// takes. Less than two hours count as two.
    pub grace: Duration,
}

/// What a garbage collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was deleted, names first.
    pub deleted: Vec<CachePath>,
    /// How many bytes that was.
    pub deleted_bytes: u64,
    /// How many files stay.
    pub kept: usize,
    /// How many bytes stay.
    pub kept_bytes: u64,
}

impl Default for Retention {
    /// Nothing by name, everything for 30 days, and a day's grace.
    fn default() -> Retention {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Retention { keep: BTreeSet::new(), older_than: 30 * DAY, grace: DAY }
    }
}

/// Where files are that may be garbage, in the order in which they are deleted.
const DIRECTORIES: &[&str] = &["roots", "closures", "realisations", "objects", "deltas", "packs"];

impl Cache {
    /// Deletes what `retention` doesn't keep; with `dry_run`, says only what that is.
    ///
    /// # Errors
    /// A manifest that can't be read is an error, and nothing is deleted: what it needs is unknown.
    pub fn collect(&self, retention: &Retention, dry_run: bool) -> Result<Collected, CacheError> {
        let grace = retention.grace.max(2 * REFRESH_AFTER);
        self.collect_after(retention, grace, dry_run)
    }

    pub(crate) fn collect_after(
        &self,
        retention: &Retention,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Collected, CacheError> {
        let now = self.now()?;
        let young = |stat: &Stat, limit: Duration| {
            // What has no age, or comes from the future, is not known to be old.
            let age = stat.modified.and_then(|time| now.duration_since(time).ok());
            age.is_none_or(|age| age < limit)
        };
        // Content is listed before manifests are read: what comes later isn't looked at.
        let mut listed = Vec::new();
        for directory in DIRECTORIES.iter().rev() {
            listed.push(self.remote().list(directory)?);
        }
        listed.reverse();
        let young_manifest = |stat: &Stat| young(stat, retention.older_than.max(grace));
        let mut needed = self.needed(retention, &young_manifest)?;
        // Records that are young lead to packs, too.
        for (path, stat) in listed.iter().flatten() {
            if path.as_str().starts_with("objects/")
                && young(stat, grace)
                && let Ok(Some(sealed)) = self.sealed::<ObjectRecord>(path)
            {
                needed.insert(CachePath::pack(&sealed.unverified().location.pack));
            }
        }
        let mut collected = Collected::default();
        for (directory, files) in DIRECTORIES.iter().zip(listed) {
            for (path, stat) in files {
                let limit = if matches!(*directory, "roots" | "closures") {
                    retention.older_than
                } else {
                    grace
                };
                let keep = |stat: &Stat| needed.contains(&path) || young(stat, limit.max(grace));
                // Somebody may rely on it since it was listed, and have made it young.
                let dead = !keep(&stat)
                    && (dry_run || self.remote().stat(&path)?.is_some_and(|stat| !keep(&stat)));
                if !dead {
                    collected.kept += 1;
                    collected.kept_bytes += stat.size_bytes;
                    continue;
                }
                if !dry_run {
                    self.remote().delete(&path)?;
                }
                collected.deleted_bytes += stat.size_bytes;
                collected.deleted.push(path);
            }
        }
        Ok(collected)
    }

    /// What time it is where the cache lies.
    fn now(&self) -> Result<SystemTime, CacheError> {
        let path = CachePath::clock();
        self.remote().put(&path, Content::Bytes(b"srp cache clock\n"))?;
        let stat = self.remote().stat(&path)?.ok_or_else(|| self.place(&path).missing())?;
        Ok(stat.modified.unwrap_or_else(SystemTime::now))
    }

    /// Every path that a kept manifest needs, its own among them.
    fn needed(
        &self,
        retention: &Retention,
        young: &dyn Fn(&Stat) -> bool,
    ) -> Result<BTreeSet<CachePath>, CacheError> {
        let mut needed = BTreeSet::new();
        let mut newest: BTreeMap<CachePath, CachePath> = BTreeMap::new();
        // Again, and not what was listed: a root may have got a newer manifest since.
        for (path, _) in self.remote().list("roots")? {
            let Some(sealed) = self.sealed::<Pointer>(&path)? else { continue };
            let pointer = sealed.unverified();
            let closure = CachePath::closure(&pointer.derivation, sealed.signer());
            if retention.keep.contains(&pointer.root) {
                newest.insert(closure, path);
            }
        }
        for (path, stat) in self.remote().list("closures")? {
            let pointer = newest.get(&path);
            if pointer.is_none() && !young(&stat) {
                continue;
            }
            needed.extend(pointer.cloned());
            let Some(sealed) = self.sealed::<Closure>(&path)? else { continue };
            let closure = sealed.unverified();
            needed.insert(CachePath::root(&closure.root, sealed.signer()));
            needed.extend(closure.objects.iter().flat_map(|record| {
                [CachePath::object(&record.object.id()), CachePath::pack(&record.location.pack)]
            }));
            needed.extend(closure.deltas.iter().map(|delta| CachePath::delta(&delta.delta)));
            needed.extend(closure.statements.iter().flat_map(|sealed| {
                let (statement, signer) = (sealed.unverified(), sealed.signer());
                [
                    CachePath::by_static(&statement.derivation, signer),
                    CachePath::by_resolved(&statement.resolved, signer),
                ]
            }));
            needed.insert(path);
        }
        Ok(needed)
    }
}
