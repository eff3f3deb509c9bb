//! Binary caches: what a store publishes for others, and how others read it.
//!
//! A cache is static files below an address ([`Remote`]), readable behind any web server; nothing
//! runs beside it, and nothing in it is ever listed or changed to be read or published.
//! `docs/binary-caches.md` has every byte. This module knows formats, keys and policy, publishes
//! ([`Publisher`]) and fetches ([`Fetcher`]); it does not know networks, configuration or when
//! something should be fetched.

mod adopt;
mod assured;
mod closure;
mod concurrent;
mod delta;
mod deltas;
mod directory;
mod envelope;
mod error;
mod export;
mod fetch;
mod gc;
mod holdings;
mod import;
mod imported;
mod key;
mod limited;
mod offering;
mod pack;
mod pack_writer;
mod packs;
mod partial;
mod path;
mod policy;
mod publish;
mod rebuilt;
mod remote;
mod sealed;
mod sending;
mod sighting;
mod standing;
mod statement;
mod stating;
mod stream;
mod unpack;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use closure::{Closure, Delta, Location, ObjectRecord, Pointer};
pub use concurrent::concurrently;
#[cfg(fuzzing)]
pub(crate) use delta::{MAGIC as DELTA_MAGIC, apply as apply_delta};
pub use directory::DirectoryRemote;
pub use envelope::{Envelope, EnvelopeError, IN_TOTO, pre_authentication_encoding};
pub use error::{CacheError, Severity, WrongDigest};
pub use export::{Contents, ExportError, Exported, Exporter};
pub use fetch::{Fetcher, Transfer};
pub use gc::{Collected, Retention};
pub use holdings::Holdings;
pub use import::{ImportError, Importer, Report};
pub use imported::imported;
pub use key::{KeyError, KeyId, PublicKey, SecretKey};
pub use limited::Patience;
pub use offering::{OfferedRoot, Offering, Served};
pub use pack::{Block, Index, PackedFile};
pub use packs::Packs;
pub use path::{CachePath, Signer};
pub(crate) use path::{parse_signer, signer_name};
pub use policy::{Asked, Complaint, Decision, Evidence, Policy, Side, Verdict};
pub use publish::{Published, Publisher, Scope};
pub use remote::{Body, Content, Remote, Stat};
#[cfg(fuzzing)]
pub(crate) use sealed::first_line;
pub use sealed::{SealError, Sealable, Sealed};
pub use sighting::{Freshness, Sighting};
pub use standing::Standing;
pub use statement::{Provenance, StatedOutput, Statement};
pub use verify::{Finding, Summary, Verified};

use crate::digest::{Digest, ObjectId, StaticHash};
use crate::name::RootName;
use error::Place;
use limited::{Patient, read_exactly};

/// The cache format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// `srp-cache` is no longer than this, whatever features there will be.
const META_LIMIT_BYTES: u64 = 4 << 10;
/// A pack that is no longer is read whole at once, its index with it.
const WHOLE_PACK_BYTES: u64 = 256 << 10;
/// The longest index, as it lies in a pack.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// A cache that was opened: its files as what they are.
///
/// Whatever comes out is decoded within bounds, and checked as far as it can be by itself. Whether
/// it is to be believed is the [`Policy`]'s and the signatures' business.
#[derive(Clone)]
pub struct Cache {
    remote: Arc<dyn Remote>,
    patience: Patience,
}

/// A manifest whose signature is right.
#[derive(Clone, Debug)]
pub struct SignedClosure {
    /// What it says.
    pub closure: Closure,
    /// Its digest, as the next one's `previous` and a [`Pointer`] name it.
    pub digest: Digest,
    /// Who signed it; none if nobody did.
    pub signer: Option<PublicKey>,
}

impl Cache {
    /// Opens the cache at a remote.
    ///
    /// # Errors
    /// [`CacheError::NotACache`], [`CacheError::Format`], or what the transport says.
    pub fn open(remote: Arc<dyn Remote>) -> Result<Cache, CacheError> {
        Cache::open_with(remote, Patience::default())
    }

    /// As [`Cache::open`], for those in more of a hurry.
    pub fn open_with(remote: Arc<dyn Remote>, patience: Patience) -> Result<Cache, CacheError> {
        let cache = Cache::assume(remote, patience);
        cache.check()?;
        Ok(cache)
    }

    /// A cache of which nobody knows yet whether it is one: for who asks it something and
    /// [checks](Cache::check) it at the same time, which saves a round trip.
    pub fn assume(remote: Arc<dyn Remote>, patience: Patience) -> Cache {
        Cache { remote, patience }
    }

    /// Looks whether this is a cache that can be read.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn check(&self) -> Result<(), CacheError> {
        let meta = self.read(&CachePath::meta(), META_LIMIT_BYTES)?;
        let meta = meta.ok_or_else(|| CacheError::NotACache { url: self.url().to_owned() })?;
        self.check_format(&String::from_utf8_lossy(&meta))
    }

    /// Makes an empty cache at a remote, or opens the one that is there.
    pub fn create(remote: Arc<dyn Remote>) -> Result<Cache, CacheError> {
        match Cache::open(Arc::clone(&remote)) {
            Err(CacheError::NotACache { .. }) => {
                remote.put(&CachePath::meta(), Content::Bytes(&meta()))?;
                Cache::open(remote)
            }
            opened => opened,
        }
    }

    /// As the store's `meta`: a first line, `format <number>`, then a line `feature <name>` for
    /// each feature without which the cache can't be read.
    fn check_format(&self, text: &str) -> Result<(), CacheError> {
        let unknown =
            |found: String| CacheError::Format { url: self.url().to_owned(), found, known: FORMAT };
        let mut lines = text.lines();
        if lines.next() != Some("srp cache") {
            return Err(CacheError::NotACache { url: self.url().to_owned() });
        }
        let format = lines.next().and_then(|line| line.strip_prefix("format ")).unwrap_or("?");
        if format != FORMAT.to_string() {
            return Err(unknown(format!("format {format}")));
        }
        lines.next().map_or(Ok(()), |line| Err(unknown(format!("the unknown {line}"))))
    }

    /// The cache's address.
    pub fn url(&self) -> &str {
        self.remote.url()
    }

    /// Where the cache lies.
    pub fn remote(&self) -> &dyn Remote {
        &*self.remote
    }

    /// An object's record.
    pub fn object(&self, id: &ObjectId) -> Result<Option<ObjectRecord>, CacheError> {
        let path = CachePath::object(id);
        let Some(sealed) = self.sealed::<ObjectRecord>(&path)? else { return Ok(None) };
        let record = sealed.unverified();
        let found = record.object.id();
        if found != *id {
            return Err(self.place(&path).damaged(format!("it describes the object {found}")));
        }
        Ok(Some(record.clone()))
    }

    /// What the cache has on a derivation, signed by one of `signers`; [`None`] among them asks
    /// for what nobody signed. Nothing of it is verified: it is evidence for a [`Policy`].
    ///
    /// What can't be read is left out with a warning, so that one damaged file hides no other.
    pub fn statements(
        &self,
        asked: Asked,
        signers: &[Signer],
    ) -> Result<Vec<Sealed<Statement>>, CacheError> {
        let mut found = Vec::new();
        for signer in signers {
            let path = match asked {
                Asked::Static(hash) => CachePath::by_static(&hash, *signer),
                Asked::Resolved(hash) => CachePath::by_resolved(&hash, *signer),
            };
            match self.sealed::<Statement>(&path) {
                Ok(Some(statement)) if statement.signer() == *signer => found.push(statement),
                Ok(Some(_)) => {
                    let error = self.place(&path).damaged("it is signed by another key");
                    tracing::warn!(%error, "a statement is left out");
                }
                Ok(None) => {}
                Err(error @ CacheError::Damaged { .. }) => {
                    tracing::warn!(%error, "a statement is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The closure manifest of a derivation, by `signer`, its signature checked. With no signer it is
    /// what nobody signed: for caches that the user trusts outright.
    pub fn closure(
        &self,
        derivation: &StaticHash,
        signer: Option<&PublicKey>,
    ) -> Result<Option<SignedClosure>, CacheError> {
        let path = CachePath::closure(derivation, signer.map(PublicKey::id));
        let Some((closure, digest)) = self.signed::<Closure>(&path, signer)? else {
            return Ok(None);
        };
        if closure.derivation != *derivation {
            return Err(self.place(&path).damaged("it is about another derivation"));
        }
        Ok(Some(SignedClosure { closure, digest, signer: signer.cloned() }))
    }

    /// Which manifest of a root is `signer`'s newest, its signature checked.
    pub fn pointer(
        &self,
        root: &RootName,
        signer: Option<&PublicKey>,
    ) -> Result<Option<Pointer>, CacheError> {
        let path = CachePath::root(root, signer.map(PublicKey::id));
        let Some((pointer, _)) = self.signed::<Pointer>(&path, signer)? else { return Ok(None) };
        if pointer.root != *root {
            return Err(self.place(&path).damaged("it is about another root"));
        }
        Ok(Some(pointer))
    }

    /// The index of an object's pack, checked; and the whole pack if it is so small that a request
    /// for a part of it would take as long.
    pub fn index(&self, record: &ObjectRecord) -> Result<(Index, Option<Vec<u8>>), CacheError> {
        let location = &record.location;
        let path = CachePath::pack(&location.pack);
        let place = self.place(&path);
        let begin = location
            .pack_bytes
            .checked_sub(location.index_bytes)
            .filter(|_| location.index_bytes <= MAX_INDEX_BYTES)
            .ok_or_else(|| place.damaged("its record gives the index an impossible length"))?;
        let whole = location.pack_bytes <= WHOLE_PACK_BYTES;
        let from = if whole { 0 } else { begin };
        let bytes = self.read_range(&path, from..location.pack_bytes)?;
        let packed = &bytes[(begin - from) as usize..];
        place.expect("the index", location.index_digest, Digest::of_file(packed))?;
        let index = Index::decode(packed, location, &record.object.tree)
            .map_err(|reason| place.damaged(reason))?;
        Ok((index, whole.then_some(bytes)))
    }

    fn signed<T: Sealable>(
        &self,
        path: &CachePath,
        signer: Option<&PublicKey>,
    ) -> Result<Option<(T, Digest)>, CacheError> {
        let Some(sealed) = self.sealed::<T>(path)? else { return Ok(None) };
        if sealed.signer() != signer.map(PublicKey::id) {
            return Err(self.place(path).damaged("it is signed by another key"));
        }
        let digest = Digest::from_bytes(sealed.digest());
        let keys: BTreeMap<_, _> = signer.map(|key| (key.id(), key.clone())).into_iter().collect();
        let (value, _) = sealed.open(&keys).map_err(|_| CacheError::Signature {
            url: self.url().to_owned(),
            path: path.to_string(),
            key: signer.map_or_else(String::new, |key| format!("{} ({})", key.name(), key.id())),
        })?;
        Ok(Some((value, digest)))
    }

    /// The sealed file at `path`, as far as it can be checked by itself.
    pub(crate) fn sealed<T: Sealable>(
        &self,
        path: &CachePath,
    ) -> Result<Option<Sealed<T>>, CacheError> {
        // What is around the payload is small.
        let Some(bytes) = self.read(path, T::LIMIT_BYTES + 1024)? else { return Ok(None) };
        let sealed = Sealed::from_bytes(&bytes);
        sealed.map(Some).map_err(|error| self.place(path).damaged(error.to_string()))
    }

    /// A whole file of at most `limit` bytes.
    pub(crate) fn read(&self, path: &CachePath, limit: u64) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(mut body) = self.body(path, None)? else { return Ok(None) };
        if body.length > limit {
            let reason = format!("{} bytes are more than the {limit} it may have", body.length);
            return Err(self.place(path).damaged(reason));
        }
        let length = body.length;
        read_exactly(&mut body.reader, length)
            .map(Some)
            .map_err(|error| self.place(path).transport("read", error))
    }

    /// Exactly these bytes of a file.
    pub(crate) fn read_range(
        &self,
        path: &CachePath,
        range: Range<u64>,
    ) -> Result<Vec<u8>, CacheError> {
        let length = range.end - range.start;
        let mut body = self.body(path, Some(range))?.ok_or_else(|| self.place(path).missing())?;
        read_exactly(&mut body.reader, length)
            .map_err(|error| self.place(path).transport("read", error))
    }

    /// A file or a part of it on its way here; it fails if it trickles.
    pub(crate) fn body(
        &self,
        path: &CachePath,
        range: Option<Range<u64>>,
    ) -> Result<Option<Body>, CacheError> {
        let body = self.remote.get(path, range)?;
        Ok(body.map(|Body { length, reader }| Body {
            length,
            reader: Box::new(Patient::new(reader, self.patience)),
        }))
    }

    pub(crate) fn place<'a>(&'a self, path: &'a CachePath) -> Place<'a> {
        Place { url: self.remote.url(), path }
    }
}

/// What the file `srp-cache` of a cache of this format holds.
pub(crate) fn meta() -> Vec<u8> {
    format!("srp cache\nformat {FORMAT}\n").into_bytes()
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({})", self.url())
    }
}
