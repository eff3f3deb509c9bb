//! Collecting a cache's garbage.
//!
//! Kept is what a kept manifest names, and whatever is young: a publisher that is at work has no
//! manifest yet, and makes what it relies on look young. Age is by the cache's own clock, asked
//! for first, so that this machine's may be wrong. Names go before content, so that a reader who
//! comes in the middle finds less, but never a name that leads nowhere for longer than a moment.
//!
//! What is believed here decides what is deleted. So nothing is, unless every name that was read is
//! beyond doubt: it lies where it belongs, its checksum or its signature by a known key is right, or,
//! if the key isn't known, its digest is named by what is newer. A pointer leads to a manifest, and
//! a record to a pack. The first thing that is otherwise ends it before anything is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::cache::closure::{Closure, ObjectRecord, Pointer};
use crate::cache::key::{KeyId, PublicKey};
use crate::cache::sealed::{SealError, Sealable, Sealed};
use crate::cache::sending::REFRESH_AFTER;
use crate::cache::{Cache, CacheError, CachePath, Content, Stat};
use crate::digest::Digest;
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
    /// Keys whose signatures are checked; whether they are trusted otherwise doesn't matter.
    pub keys: BTreeMap<KeyId, PublicKey>,
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
        let (keep, keys) = (BTreeSet::new(), BTreeMap::new());
        Retention { keep, older_than: 30 * DAY, grace: DAY, keys }
    }
}

/// Where files are that may be garbage, in the order in which they are deleted.
const DIRECTORIES: &[&str] = &["roots", "closures", "realisations", "objects", "deltas", "packs"];

impl Cache {
    /// Deletes what `retention` doesn't keep; with `dry_run`, says only what that is.
    ///
    /// # Errors
    /// A name that can't be read, or is in doubt, is an error, and so is a root to be kept that isn't
    /// there. Then nothing is deleted.
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
        let young_content = |stat: &Stat| young(stat, grace);
        let mut needed = self.needed(retention, &young_manifest, &young_content)?;
        // Records that are young lead to packs, too.
        for (path, stat) in listed.iter().flatten() {
            if !path.as_str().starts_with("objects/") || !young(stat, grace) {
                continue;
            }
            let Some(sealed) = self.sealed::<ObjectRecord>(path)? else { continue };
            let record = sealed.unverified();
            self.expect(path, &CachePath::object(&record.object.id()))?;
            let pack = CachePath::pack(&record.location.pack);
            if self.remote().stat(&pack)?.is_none() {
                return Err(self.place(&pack).missing());
            }
            needed.insert(pack);
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
        in_grace: &dyn Fn(&Stat) -> bool,
    ) -> Result<BTreeSet<CachePath>, CacheError> {
        let mut roots = BTreeSet::new();
        let mut newest: BTreeMap<CachePath, CachePath> = BTreeMap::new();
        // What pointers and manifests say of the digests of others.
        let mut named: BTreeSet<Digest> = BTreeSet::new();
        let mut pointed: BTreeSet<CachePath> = BTreeSet::new();
        // Again, and not what was listed: a root may have got a newer manifest since.
        for (path, _) in self.remote().list("roots")? {
            let Some(sealed) = self.sealed::<Pointer>(&path)? else { continue };
            let (pointer, signer) = (sealed.unverified(), sealed.signer());
            self.expect(&path, &CachePath::root(&pointer.root, signer))?;
            // By an unknown key it is as good as the manifest that it leads to.
            self.is_right(&path, &sealed, &retention.keys)?;
            let closure = CachePath::closure(&pointer.derivation, signer);
            roots.insert(pointer.root.clone());
            named.insert(pointer.closure);
            if retention.keep.contains(&pointer.root) {
                newest.insert(closure.clone(), path);
            }
            pointed.insert(closure);
        }
        let unknown: Vec<_> = retention.keep.difference(&roots).map(ToString::to_string).collect();
        if !unknown.is_empty() {
            let known = roots.iter().map(ToString::to_string).collect();
            return Err(CacheError::UnknownRoots { url: self.url().to_owned(), unknown, known });
        }
        let mut kept = Vec::new();
        for (path, stat) in self.remote().list("closures")? {
            pointed.remove(&path);
            if !newest.contains_key(&path) && !young(&stat) {
                continue;
            }
            let Some(sealed) = self.sealed::<Closure>(&path)? else { continue };
            let closure = sealed.unverified();
            self.expect(&path, &CachePath::closure(&closure.derivation, sealed.signer()))?;
            named.extend(closure.previous);
            kept.push((path, stat, sealed));
        }
        if let Some(path) = pointed.first() {
            return Err(self.place(path).missing());
        }
        let mut needed = BTreeSet::new();
        for (path, stat, sealed) in kept {
            let is_named = named.contains(&Digest::from_bytes(sealed.digest()));
            // What a publisher is about to name is as young as all that it names.
            if !self.is_right(&path, &sealed, &retention.keys)? && !is_named && !in_grace(&stat) {
                let reason = "it is signed by an unknown key, and nothing else names its digest";
                return Err(self.place(&path).damaged(reason));
            }
            needed.extend(newest.get(&path).cloned());
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

    /// Whether a name is what its publisher wrote: by its checksum if nobody signed it, and if it is
    /// signed by a key that is known. A wrong signature is an error.
    fn is_right<T: Sealable>(
        &self,
        path: &CachePath,
        sealed: &Sealed<T>,
        keys: &BTreeMap<KeyId, PublicKey>,
    ) -> Result<bool, CacheError> {
        match sealed.check(keys) {
            Ok(_) => Ok(true),
            Err(SealError::UnknownKey { .. }) => Ok(false),
            Err(SealError::Wrong { name, key }) => Err(CacheError::Signature {
                url: self.url().to_owned(),
                path: path.to_string(),
                key: format!("{name} ({key})"),
            }),
        }
    }

    /// A name lies where it belongs.
    fn expect(&self, path: &CachePath, belongs: &CachePath) -> Result<(), CacheError> {
        match path == belongs {
            true => Ok(()),
            false => Err(self.place(path).damaged(format!("it belongs at {belongs}"))),
        }
    }
}
