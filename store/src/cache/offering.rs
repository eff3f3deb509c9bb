//! A store as a cache: each of the files that a publisher would put there, made when it is asked for.
//!
//! Nothing is published beforehand and nothing can go stale: what the store says now is what is
//! answered. Packs are written to files once ([`Packs`]), manifests are kept in memory. There are no
//! deltas: the generation before need not be here any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::assurance::Assurance;
use crate::cache::assured::Assured;
use crate::cache::closure::{Closure, ObjectRecord, Pointer};
use crate::cache::export::Exported;
use crate::cache::key::SecretKey;
use crate::cache::packs::Packs;
use crate::cache::path::{Signer, parse_signer};
use crate::cache::sealed::Sealed;
use crate::cache::statement::Statement;
use crate::cache::{CacheError, CachePath, meta};
use crate::db::Info;
use crate::digest::{Digest, ObjectId, ResolvedHash, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::name::RootName;
use crate::object::{ObjectName, ReferenceKind};
use crate::realisation::Claim;
use crate::store::Store;

/// A store that is offered as a cache. It is shared by threads.
pub struct Offering {
    store: Store,
    packs: Packs,
    key: Option<SecretKey>,
    builder: String,
    /// What is offered, if it isn't everything.
    scope: Option<Scope>,
    claims: Mutex<Arc<Claims>>,
    manifests: Mutex<HashMap<StaticHash, Arc<Manifest>>>,
    /// Packs of objects whose records were given out.
    given: Mutex<HashSet<Digest>>,
}

/// A file of the cache.
#[derive(Debug)]
pub enum Served {
    /// A small one.
    Bytes(Vec<u8>),
    /// A pack: immutable, and too large for memory. Nobody else has its position.
    Pack {
        /// The file.
        file: File,
        /// Its length.
        size_bytes: u64,
    },
}

/// A root that is offered.
#[derive(Clone, Debug)]
pub struct OfferedRoot {
    /// What it is called.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// What it is.
    pub object: ObjectName,
    /// What it came out of, if the store knows that.
    pub derivation: Option<StaticHash>,
}

/// Derivations and objects that are offered, and nothing else.
#[derive(Debug, Default)]
struct Scope {
    asked: Vec<Exported>,
    derivations: BTreeSet<StaticHash>,
    objects: BTreeSet<ObjectId>,
}

/// What the store has chosen, by what it is asked for.
#[derive(Debug, Default)]
struct Claims {
    /// When the store last chose something.
    modified: Option<SystemTime>,
    by_resolved: HashMap<ResolvedHash, StaticHash>,
    /// Of several derivations that came out as one object, the one with the smallest hash.
    by_object: HashMap<ObjectId, StaticHash>,
}

/// A manifest, and what it was made from.
struct Manifest {
    claim: Claim,
    pointer: Pointer,
    bytes: Vec<u8>,
}

impl Offering {
    /// Offers everything in a store, signed with `key` if there is one; `builder` is who builds here.
    pub fn new(store: Store, packs: Packs, key: Option<SecretKey>, builder: &str) -> Offering {
        Offering {
            store,
            packs,
            key,
            builder: builder.to_owned(),
            scope: None,
            claims: Mutex::default(),
            manifests: Mutex::default(),
            given: Mutex::default(),
        }
    }

    /// Offers these, with all that they refer to, and nothing else.
    pub fn only(mut self, asked: &[Exported]) -> Result<Offering, CacheError> {
        let mut scope = Scope { asked: asked.to_vec(), ..Scope::default() };
        let mut roots: Vec<ObjectId> = asked.iter().map(|it| it.object).collect();
        let mut claims = BTreeMap::new();
        for hash in asked.iter().filter_map(|it| it.derivation) {
            let all = self.store.claims(&hash)?;
            roots.extend(all[&hash].outputs.values());
            claims.extend(all);
        }
        let closure = self.store.closure(&roots, ReferenceKind::ALL)?;
        scope.objects = closure.into_iter().map(|(id, _)| id).collect();
        let inside = |claim: &Claim| claim.outputs.values().all(|id| scope.objects.contains(id));
        scope.derivations =
            claims.iter().filter(|(_, claim)| inside(claim)).map(|(hash, _)| *hash).collect();
        self.scope = Some(scope);
        Ok(self)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Who signs.
    pub fn key(&self) -> Option<&SecretKey> {
        self.key.as_ref()
    }

    /// Packs what roots need, so that nobody has to wait for it; `progress` is told how many
    /// objects are done, of how many, and can end it.
    pub fn prepare(&self, progress: &dyn Fn(usize, usize) -> bool) -> Result<(), CacheError> {
        let mut objects = BTreeMap::new();
        for root in self.roots()? {
            objects.extend(self.closure(&root)?.into_iter().flatten());
        }
        for (number, info) in objects.values().enumerate() {
            if !progress(number, objects.len()) {
                break;
            }
            self.record(info)?;
        }
        Ok(())
    }

    /// The newest generation of each root; of an offering of a few things, these.
    pub fn roots(&self) -> Result<Vec<OfferedRoot>, CacheError> {
        let newest: BTreeMap<String, _> =
            self.store.roots()?.into_iter().map(|root| (root.name.clone(), root)).collect();
        if let Some(scope) = &self.scope {
            let offered = scope.asked.iter().map(|asked| {
                Ok(OfferedRoot {
                    name: asked.name.clone(),
                    // As without a scope: clients remember a root's generation, and miss none that
                    // was newer.
                    generation: newest.get(&asked.name).map_or(1, |root| root.generation),
                    object: self.store.info(&asked.object)?.object.path_name(),
                    derivation: asked.derivation,
                })
            });
            return offered.collect();
        }
        let claims = self.claims()?;
        let offered = newest.into_values().map(|root| OfferedRoot {
            name: root.name,
            generation: root.generation,
            derivation: claims.by_object.get(&root.object.id).copied(),
            object: root.object,
        });
        Ok(offered.collect())
    }

    /// What a root consists of; none if not all of it is here any more.
    pub fn closure(&self, root: &OfferedRoot) -> Result<Option<Vec<(ObjectId, Info)>>, CacheError> {
        if !self.store.contains_closure(&[root.object.id])? {
            return Ok(None);
        }
        Ok(Some(self.store.closure(&[root.object.id], ReferenceKind::ALL)?))
    }

    /// A file of the cache; none if it has none of that name.
    pub fn get(&self, path: &CachePath) -> Result<Option<Served>, CacheError> {
        let parts: Vec<&str> = path.as_str().split('/').collect();
        let bytes = match parts.as_slice() {
            ["srp-cache"] => Some(meta()),
            ["packs", digest] => match digest.parse() {
                Ok(digest) => return self.pack(&digest),
                Err(_) => None,
            },
            ["objects", id] => match id.parse() {
                Ok(id) => self.object(&id)?.map(|record| Sealed::new(record, None).to_bytes()),
                Err(_) => None,
            },
            ["realisations", "static", hash, signer] => {
                match (hash.parse(), parse_signer(signer)) {
                    (Ok(hash), Some(signer)) => self.statement(&hash, signer)?,
                    _ => None,
                }
            }
            ["realisations", "resolved", hash, signer] => {
                match (hash.parse(), parse_signer(signer)) {
                    (Ok(hash), Some(signer)) => self.statement_on_resolved(&hash, signer)?,
                    _ => None,
                }
            }
            ["closures", hash, signer] if parse_signer(signer) == Some(self.signer()) => {
                match hash.parse() {
                    Ok(hash) => self.manifest(&hash)?.map(|manifest| manifest.bytes.clone()),
                    Err(_) => None,
                }
            }
            ["roots", name, signer] if parse_signer(signer) == Some(self.signer()) => {
                self.pointer(name)?
            }
            _ => None,
        };
        Ok(bytes.map(Served::Bytes))
    }

    fn signer(&self) -> Signer {
        self.key.as_ref().map(|key| key.public().id())
    }

    fn pack(&self, digest: &Digest) -> Result<Option<Served>, CacheError> {
        // What was packed for others before isn't offered because of that.
        let given = || self.given.lock().expect("no holder panics").contains(digest);
        if self.scope.is_some() && !given() {
            return Ok(None);
        }
        let Some(file) = self.packs.file(&self.store, digest)? else { return Ok(None) };
        let metadata = file.metadata();
        let size_bytes = metadata.at("look at", &self.store.directory("served"))?.len();
        Ok(Some(Served::Pack { file, size_bytes }))
    }

    fn object(&self, id: &ObjectId) -> Result<Option<ObjectRecord>, CacheError> {
        let outside = self.scope.as_ref().is_some_and(|scope| !scope.objects.contains(id));
        if outside || !self.store.contains(id)? {
            return Ok(None);
        }
        self.record(&self.store.info(id)?).map(Some)
    }

    fn record(&self, info: &Info) -> Result<ObjectRecord, CacheError> {
        let record = self.packs.record(&self.store, info)?;
        self.given.lock().expect("no holder panics").insert(record.location.pack);
        Ok(record)
    }

    /// What was chosen for a derivation, if that is offered and all of it is here.
    fn claim(&self, hash: &StaticHash) -> Result<Option<Claim>, CacheError> {
        if self.scope.as_ref().is_some_and(|scope| !scope.derivations.contains(hash)) {
            return Ok(None);
        }
        let Some(claim) = self.store.claim(hash)? else { return Ok(None) };
        let outputs: Vec<ObjectId> = claim.outputs.values().copied().collect();
        Ok(self.store.contains_closure(&outputs)?.then_some(claim))
    }

    fn statement(&self, hash: &StaticHash, by: Signer) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(claim) = self.claim(hash)? else { return Ok(None) };
        let statements = self.stated(hash, &claim, &self.assured([&claim])?)?;
        Ok(statements.iter().find(|it| it.signer() == by).map(Sealed::to_bytes))
    }

    fn statement_on_resolved(
        &self,
        hash: &ResolvedHash,
        by: Signer,
    ) -> Result<Option<Vec<u8>>, CacheError> {
        match self.claims()?.by_resolved.get(hash) {
            Some(derivation) => self.statement(derivation, by),
            None => Ok(None),
        }
    }

    fn stated(
        &self,
        hash: &StaticHash,
        claim: &Claim,
        assured: &Assured,
    ) -> Result<Vec<Sealed<Statement>>, StoreError> {
        self.store.statements(hash, claim, &self.builder, self.key.as_ref(), assured)
    }

    fn assured<'a>(
        &self,
        claims: impl IntoIterator<Item = &'a Claim>,
    ) -> Result<Assured, StoreError> {
        let assurance = Assurance::within(self.store.validity().signing);
        self.store.assure_to_sign(self.key.as_ref(), claims, [], &assurance)
    }

    /// The closure manifest of a derivation, as if it had been published just now.
    fn manifest(&self, hash: &StaticHash) -> Result<Option<Arc<Manifest>>, CacheError> {
        let Some(claim) = self.claim(hash)? else { return Ok(None) };
        let (root, generation, time_seconds) = self.root_of(hash, &claim)?;
        let made = self.manifests.lock().expect("no holder panics").get(hash).cloned();
        if let Some(made) = made
            && made.claim == claim
            && (&made.pointer.root, made.pointer.generation) == (&root, generation)
        {
            return Ok(Some(made));
        }
        let outputs: Vec<ObjectId> = claim.outputs.values().copied().collect();
        let infos: BTreeMap<ObjectId, Info> =
            self.store.closure(&outputs, ReferenceKind::ALL)?.into_iter().collect();
        let objects =
            infos.values().map(|info| self.record(info)).collect::<Result<Vec<_>, _>>()?;
        let claims = self.store.claims(hash)?;
        let assured = self.assured(claims.values())?;
        let mut statements = Vec::new();
        for (derivation, claim) in &claims {
            if claim.outputs.values().all(|id| infos.contains_key(id)) {
                statements.extend(self.stated(derivation, claim, &assured)?);
            }
        }
        let closure = Closure {
            root,
            derivation: *hash,
            generation,
            time_seconds,
            previous: None,
            objects,
            statements,
            deltas: BTreeSet::new(),
        };
        let sealed = Sealed::new(closure, self.key.as_ref());
        let pointer = sealed.unverified().pointer(Digest::from_bytes(sealed.digest()));
        let made = Arc::new(Manifest { claim, pointer, bytes: sealed.to_bytes() });
        self.manifests.lock().expect("no holder panics").insert(*hash, Arc::clone(&made));
        Ok(Some(made))
    }

    /// The root that a derivation's output is the newest generation of, with that and its time in
    /// seconds since 1970; a name of its own if it is none. The same at each start, so that a
    /// reader who remembers sees nothing change.
    fn root_of(
        &self,
        hash: &StaticHash,
        claim: &Claim,
    ) -> Result<(RootName, u64, u64), CacheError> {
        for root in self.roots()? {
            let of_it = match root.derivation {
                Some(derivation) => derivation == *hash,
                None => claim.outputs.values().any(|id| *id == root.object.id),
            };
            if let (true, Ok(name)) = (of_it, root.name.parse()) {
                let link = self.store.directory("roots").join(&root.name);
                let made = fs::symlink_metadata(link.join(root.generation.to_string()));
                let made = made.and_then(|metadata| metadata.modified()).ok();
                let since = made.and_then(|it| it.duration_since(SystemTime::UNIX_EPOCH).ok());
                return Ok((name, root.generation, since.map_or(0, |since| since.as_secs())));
            }
        }
        let name = hash.to_string().parse().expect("hexadecimal digits are a name");
        Ok((name, 1, 0))
    }

    fn pointer(&self, name: &str) -> Result<Option<Vec<u8>>, CacheError> {
        let root = self.roots()?.into_iter().find(|root| root.name == name);
        let Some(hash) = root.and_then(|root| root.derivation) else { return Ok(None) };
        let Some(manifest) = self.manifest(&hash)? else { return Ok(None) };
        if manifest.pointer.root.as_str() != name {
            // Two names of one derivation: its manifest is by the other one's.
            return Ok(None);
        }
        let sealed = Sealed::new(manifest.pointer.clone(), self.key.as_ref());
        Ok(Some(sealed.to_bytes()))
    }

    /// What the store has chosen, read again if it has chosen something since.
    fn claims(&self) -> Result<Arc<Claims>, StoreError> {
        let directory = self.store.directory("realisations/static");
        let modified = fs::metadata(&directory).and_then(|it| it.modified()).ok();
        let known = Arc::clone(&self.claims.lock().expect("no holder panics"));
        // Two changes in one tick of the file system's clock look like one.
        let settled = modified.is_some_and(|it| it.elapsed().is_ok_and(|age| age.as_secs() >= 2));
        if known.modified == modified && settled {
            return Ok(known);
        }
        let mut claims = Claims { modified: modified.filter(|_| settled), ..Claims::default() };
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let name = entry.at("list", &directory)?.file_name();
            let hash = name.to_str().and_then(|name| name.parse::<StaticHash>().ok());
            let Some(hash) = hash else { continue };
            let Some(claim) = self.store.claim(&hash)? else { continue };
            claims.by_resolved.insert(claim.resolved, hash);
            for id in claim.outputs.into_values() {
                let smallest = claims.by_object.entry(id).or_insert(hash);
                *smallest = hash.min(*smallest);
            }
        }
        let claims = Arc::new(claims);
        *self.claims.lock().expect("no holder panics") = Arc::clone(&claims);
        Ok(claims)
    }
}

impl std::fmt::Debug for Offering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offering({})", self.store.root().display())
    }
}
