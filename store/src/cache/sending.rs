//! Sending: what is there is relied on, what isn't is put there, several files at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use crate::cache::closure::{Closure, Location, ObjectRecord};
use crate::cache::key::PublicKey;
use crate::cache::pack_writer::write_pack;
use crate::cache::packs::Workspace;
use crate::cache::publish::{Published, Publisher};
use crate::cache::sealed::Sealed;
use crate::cache::statement::Statement;
use crate::cache::{CacheError, CachePath, Content, SignedClosure, concurrently};
use crate::db::Info;
use crate::digest::{Digest, ObjectId};
use crate::error::IoContext;
use crate::staged::Staged;

/// What is older than this is made to look new when a publisher relies on it. A garbage
/// collection's grace must be longer.
pub(crate) const REFRESH_AFTER: Duration = Duration::from_secs(60 * 60);

/// One publication on its way.
pub(crate) struct Sending<'a> {
    publisher: &'a Publisher<'a>,
    /// Where trees lie that were published before under this root.
    known: BTreeMap<ObjectId, ObjectRecord>,
    known_statements: BTreeSet<[u8; 32]>,
    /// Where trees lie that were sent now.
    sent: Mutex<BTreeMap<Digest, Location>>,
    /// What was there already, and is relied on.
    relied_on: Mutex<BTreeSet<CachePath>>,
    pub(crate) published: Mutex<Published>,
}

impl<'a> Sending<'a> {
    pub(crate) fn new(
        publisher: &'a Publisher<'a>,
        previous: Option<&SignedClosure>,
    ) -> Sending<'a> {
        let previous = previous.map(|it| &it.closure);
        let objects = previous.into_iter().flat_map(|it| &it.objects);
        Sending {
            publisher,
            known: objects.map(|it| (it.object.id(), it.clone())).collect(),
            known_statements: previous
                .into_iter()
                .flat_map(|it| &it.statements)
                .map(|it| Digest::of_file(&it.to_bytes()))
                .map(|digest| *digest.as_bytes())
                .collect(),
            sent: Mutex::default(),
            relied_on: Mutex::default(),
            published: Mutex::default(),
        }
    }

    /// Sees to it that the packs of all objects are there, and says where they lie.
    pub(crate) fn objects(
        &self,
        infos: &BTreeMap<ObjectId, Info>,
    ) -> Result<Vec<ObjectRecord>, CacheError> {
        // Large ones first: a large one that comes last would be waited for alone.
        let mut order: Vec<(&ObjectId, &Info)> = infos.iter().collect();
        order.sort_by_key(|(_, info)| std::cmp::Reverse(info.size_bytes));
        let mut records = self.each(&order, |(id, info)| Ok((**id, self.object(id, info)?)))?;
        records.sort_by_key(|(id, _)| *id);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    fn object(&self, id: &ObjectId, info: &Info) -> Result<ObjectRecord, CacheError> {
        let cache = self.publisher.cache;
        let known = match self.known.get(id) {
            Some(record) => Some(record.clone()),
            None => readable(cache.object(id))?,
        };
        if let Some(record) = known {
            let length = Some(record.location.pack_bytes);
            if self.rely_on(&CachePath::pack(&record.location.pack), length)? {
                return Ok(record);
            }
        }
        let tree = info.object.tree;
        let location = self.sent.lock().expect("no holder panics").get(&tree).copied();
        let location = match location {
            Some(location) => location,
            None => self.pack(&tree)?,
        };
        Ok(ObjectRecord { object: info.object.clone(), size_bytes: info.size_bytes, location })
    }

    /// Packs a tree and sends it.
    fn pack(&self, tree: &Digest) -> Result<Location, CacheError> {
        let (store, cache) = (self.publisher.store, self.publisher.cache);
        let listing = store.listing(tree)?;
        let staging = cache.remote().staging();
        let scratch = match staging {
            Some(_) => None,
            None => Some(Workspace::of(store)?),
        };
        let directory = staging.or(scratch.as_ref().map(|it| it.path())).expect("one of the two");
        let file = Staged::new_in(directory, 0o644).at("create a file in", directory)?;
        let location = write_pack(&store.tree_path(tree), &listing, file.path())
            .inspect_err(|error| store.distrust_by(error))?;
        let path = CachePath::pack(&location.pack);
        if !self.rely_on(&path, Some(location.pack_bytes))? {
            let content = match staging {
                Some(_) => Content::Staged(file.path()),
                None => Content::File(file.path()),
            };
            cache.remote().put(&path, content)?;
            let mut published = self.published.lock().expect("no holder panics");
            published.packs += 1;
            published.pack_bytes += location.pack_bytes;
        }
        self.sent.lock().expect("no holder panics").insert(*tree, location);
        Ok(location)
    }

    /// Whether a file is there (with this length); then it is made to look new if it doesn't.
    pub(crate) fn rely_on(
        &self,
        path: &CachePath,
        length: Option<u64>,
    ) -> Result<bool, CacheError> {
        let remote = self.publisher.cache.remote();
        let Some(stat) = remote.stat(path)? else { return Ok(false) };
        if length.is_some_and(|length| length != stat.size_bytes) {
            return Ok(false);
        }
        // What comes from the future is as good as old: one of the two clocks is wrong.
        let age = stat.modified.and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age > REFRESH_AFTER) && !remote.refresh(path)? {
            return Ok(false);
        }
        self.relied_on.lock().expect("no holder panics").insert(path.clone());
        Ok(true)
    }

    /// Sends a small file unless the same is there.
    fn put(&self, path: &CachePath, bytes: &[u8], known: bool) -> Result<(), CacheError> {
        let cache = self.publisher.cache;
        let same = if known {
            true
        } else {
            cache.read(path, bytes.len() as u64).is_ok_and(|it| it.as_deref() == Some(bytes))
        };
        if same && self.rely_on(path, Some(bytes.len() as u64))? {
            return Ok(());
        }
        cache.remote().put(path, Content::Bytes(bytes))?;
        self.published.lock().expect("no holder panics").files += 1;
        Ok(())
    }

    /// Sends a delta, by the digest of its bytes.
    pub(crate) fn delta(&self, bytes: &[u8]) -> Result<Digest, CacheError> {
        let digest = Digest::of_file(bytes);
        let path = CachePath::delta(&digest);
        if !self.rely_on(&path, Some(bytes.len() as u64))? {
            self.publisher.cache.remote().put(&path, Content::Bytes(bytes))?;
            let mut published = self.published.lock().expect("no holder panics");
            published.deltas += 1;
            published.delta_bytes += bytes.len() as u64;
        }
        Ok(digest)
    }

    pub(crate) fn records(&self, objects: &[ObjectRecord]) -> Result<(), CacheError> {
        self.each(objects, |record| {
            let id = record.object.id();
            let known = self.known.get(&id) == Some(record);
            let bytes = Sealed::new(record.clone(), None).to_bytes();
            self.put(&CachePath::object(&id), &bytes, known)
        })?;
        Ok(())
    }

    pub(crate) fn statements(&self, statements: &[Sealed<Statement>]) -> Result<(), CacheError> {
        self.each(statements, |sealed| {
            let (bytes, signer) = (sealed.to_bytes(), sealed.signer());
            let statement = sealed.unverified();
            let known = self.known_statements.contains(Digest::of_file(&bytes).as_bytes());
            self.put(&CachePath::by_resolved(&statement.resolved, signer), &bytes, known)?;
            self.put(&CachePath::by_static(&statement.derivation, signer), &bytes, known)
        })?;
        Ok(())
    }

    pub(crate) fn manifest(&self, closure: &Closure) -> Result<(), CacheError> {
        let sealed = Sealed::new(closure.clone(), self.publisher.key);
        let digest = Digest::from_bytes(sealed.digest());
        let path = CachePath::closure(&closure.derivation, sealed.signer());
        self.put(&path, &sealed.to_bytes(), false)?;
        let pointer = Sealed::new(closure.pointer(digest), self.publisher.key);
        self.put(&CachePath::root(&closure.root, sealed.signer()), &pointer.to_bytes(), false)
    }

    /// Nothing is new: the manifest stays, and is to be kept.
    pub(crate) fn keep_manifest(
        &self,
        previous: &SignedClosure,
        key: Option<&PublicKey>,
    ) -> Result<(), CacheError> {
        let signer = key.map(PublicKey::id);
        self.rely_on(&CachePath::closure(&previous.closure.derivation, signer), None)?;
        self.rely_on(&CachePath::root(&previous.closure.root, signer), None)?;
        Ok(())
    }

    /// A garbage collection may have taken something between our looking at it and our manifest:
    /// what is gone is sent again.
    pub(crate) fn check_again(
        &self,
        infos: &BTreeMap<ObjectId, Info>,
        closure: &mut Closure,
    ) -> Result<(), CacheError> {
        let relied_on: Vec<CachePath> =
            std::mem::take(&mut *self.relied_on.lock().expect("no holder panics"))
                .into_iter()
                .collect();
        let remote = self.publisher.cache.remote();
        let there = self.each(&relied_on, |path| Ok(remote.stat(path)?.is_some()))?;
        if there.iter().all(|there| *there) {
            return Ok(());
        }
        tracing::warn!("files disappeared from the cache meanwhile, and are published again");
        let again = Sending::new(self.publisher, None);
        closure.objects = again.objects(infos)?;
        again.records(&closure.objects)?;
        again.statements(&closure.statements)?;
        // The deltas, too, may be gone; the manifest is to name nothing that isn't there.
        closure.deltas.clear();
        closure.generation = closure.generation.saturating_add(1);
        again.manifest(closure)?;
        let again = again.published.into_inner().expect("no holder panics");
        let mut published = self.published.lock().expect("no holder panics");
        published.packs += again.packs;
        published.pack_bytes += again.pack_bytes;
        published.files += again.files;
        Ok(())
    }

    /// Does something for each item, several at a time.
    fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        action: impl Fn(&T) -> Result<R, CacheError> + Sync,
    ) -> Result<Vec<R>, CacheError> {
        concurrently(self.publisher.connections, items, action)
    }
}

/// None for what is damaged: it will be replaced.
pub(crate) fn readable<T>(result: Result<Option<T>, CacheError>) -> Result<Option<T>, CacheError> {
    match result {
        Err(error @ (CacheError::Damaged { .. } | CacheError::Signature { .. })) => {
            tracing::warn!(%error, "what was published before is left out");
            Ok(None)
        }
        result => result,
    }
}
