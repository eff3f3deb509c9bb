//! Publishing: content first, names last.
//!
//! Packs and deltas go first, then object records, then statements, then the closure manifest and
//! the pointer to it. So whatever a reader finds leads to what is there, two publishers do each
//! other no harm, and one that is killed leaves nothing but unused files. What is there already is
//! not sent again, but made to look new, so that no garbage collection takes it; and when all is
//! published, it is asked for once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::assurance::Assurance;
use crate::cache::assured::Assured;
use crate::cache::closure::{Closure, Pointer};
use crate::cache::key::{PublicKey, SecretKey};
use crate::cache::sealed::Sealed;
use crate::cache::sending::{Sending, readable};
use crate::cache::statement::{Provenance, Statement};
use crate::cache::{Cache, CacheError, SignedClosure};
use crate::db::Info;
use crate::digest::{ObjectId, StaticHash};
use crate::name::RootName;
use crate::object::ReferenceKind;
use crate::realisation::Claim;
use crate::store::Store;

/// What it takes to publish to a cache.
#[derive(Debug)]
pub struct Publisher<'a> {
    /// Where objects are from.
    pub store: &'a Store,
    /// Where they are published.
    pub cache: &'a Cache,
    /// Who signs; nobody for an unsigned cache.
    pub key: Option<&'a SecretKey>,
    /// Who builds here, for statements.
    pub builder: String,
    /// The time, in seconds since 1970, for manifests.
    pub time_seconds: u64,
    /// Whether to make deltas against the root's generation before.
    pub deltas: bool,
    /// How many objects to work on at a time.
    pub connections: usize,
    /// How lately what is published, and what it was made from, must have been verified.
    pub assurance: Assurance<'a>,
}

/// How much is published with a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the root's outputs need.
    Closure,
    /// That, and everything that they were built from: to change something and build again.
    Inputs,
}

/// What publishing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Objects that belong to what was published.
    pub objects: usize,
    /// Packs that were sent.
    pub packs: usize,
    /// Their lengths.
    pub pack_bytes: u64,
    /// Deltas that were sent.
    pub deltas: usize,
    /// Their lengths.
    pub delta_bytes: u64,
    /// Other files that were sent: records, statements, manifests.
    pub files: usize,
    /// How many of its derivations were not built here, and are stated as such.
    pub substituted: usize,
    /// The root's generation, if a root was published.
    pub generation: Option<u64>,
}

impl<'a> Publisher<'a> {
    /// Publishes with the usual settings; `time_seconds` is the time since 1970.
    pub fn new(
        store: &'a Store,
        cache: &'a Cache,
        key: Option<&'a SecretKey>,
        builder: &str,
    ) -> Publisher<'a> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (builder, time_seconds) = (builder.to_owned(), time.as_secs());
        let (deltas, connections) = (true, 4);
        let assurance = Assurance::within(store.validity().signing);
        Publisher { store, cache, key, builder, time_seconds, deltas, connections, assurance }
    }

    /// Publishes what a derivation came out as here, under a root's name.
    ///
    /// # Errors
    /// [`CacheError::NotRealised`], and whatever store and cache say.
    pub fn publish(
        &self,
        root: &RootName,
        derivation: &StaticHash,
        scope: Scope,
    ) -> Result<Published, CacheError> {
        let claims = self.store.claims(derivation)?;
        let named: Vec<ObjectId> = match scope {
            Scope::Closure => claims[derivation].outputs.values().copied().collect(),
            Scope::Inputs => claims.values().flat_map(|it| it.outputs.values().copied()).collect(),
        };
        let infos: BTreeMap<ObjectId, Info> =
            self.store.closure(&named, ReferenceKind::ALL)?.into_iter().collect();
        let assured = self.store.assure_to_sign(
            self.key,
            claims.values(),
            infos.keys().copied(),
            &self.assurance,
        )?;
        let statements = self.statements(&claims, &infos, &assured)?;
        let public = self.key.map(SecretKey::public);
        let signer = public.as_ref().map(PublicKey::id);
        let ours = statements.iter().filter(|it| it.signer() == signer);
        let ours = ours.map(|it| it.unverified().provenance);
        let substituted = ours.filter(|it| *it == Provenance::Substituted).count();
        let (pointer, previous) = self.previous(root, public.as_ref())?;

        let sending = Sending::new(self, previous.as_ref());
        let objects = sending.objects(&infos)?;
        let deltas = match &previous {
            Some(previous) if self.deltas => {
                self.publish_deltas(&previous.closure, &objects, &sending)?
            }
            _ => BTreeSet::new(),
        };
        sending.records(&objects)?;
        sending.statements(&statements)?;
        let mut closure = Closure {
            root: root.clone(),
            derivation: *derivation,
            generation: 1,
            time_seconds: self.time_seconds,
            previous: None,
            objects,
            statements,
            deltas,
        };
        match &previous {
            Some(previous) if previous.closure.says_the_same(&closure) => {
                sending.keep_manifest(previous, public.as_ref())?;
                closure = previous.closure.clone();
            }
            _ => {
                if let Some(pointer) = pointer {
                    closure.generation = pointer.generation.saturating_add(1);
                    closure.previous = Some(pointer.closure);
                }
                sending.manifest(&closure)?;
            }
        }
        sending.check_again(&infos, &mut closure)?;
        let mut published = sending.published.into_inner().expect("no holder panics");
        published.generation = Some(closure.generation);
        published.substituted = substituted;
        published.objects = closure.objects.len();
        Ok(published)
    }

    /// Publishes objects and all that they refer to, under no name and without saying what they
    /// were made of: a garbage collection keeps them for as long as they are young.
    pub fn publish_objects(&self, ids: &[ObjectId]) -> Result<Published, CacheError> {
        let infos: BTreeMap<ObjectId, Info> =
            self.store.closure(ids, ReferenceKind::ALL)?.into_iter().collect();
        let sending = Sending::new(self, None);
        let objects = sending.objects(&infos)?;
        sending.records(&objects)?;
        let mut published = sending.published.into_inner().expect("no holder panics");
        published.objects = objects.len();
        Ok(published)
    }

    /// The statements on those derivations whose outputs are all published.
    fn statements(
        &self,
        claims: &BTreeMap<StaticHash, Claim>,
        infos: &BTreeMap<ObjectId, Info>,
        assured: &Assured,
    ) -> Result<Vec<Sealed<Statement>>, CacheError> {
        let mut statements = Vec::new();
        for (derivation, claim) in claims {
            if claim.outputs.values().all(|id| infos.contains_key(id)) {
                let (store, builder) = (self.store, &self.builder);
                let stated = store.statements(derivation, claim, builder, self.key, assured)?;
                statements.extend(stated);
            }
        }
        Ok(statements)
    }

    /// The root's newest manifest by our own key, and the pointer to it, as far as they are right.
    /// The manifest may be another one by now, if the derivation is published as two roots.
    fn previous(
        &self,
        root: &RootName,
        key: Option<&PublicKey>,
    ) -> Result<(Option<Pointer>, Option<SignedClosure>), CacheError> {
        let Some(pointer) = readable(self.cache.pointer(root, key))? else {
            return Ok((None, None));
        };
        let closure = readable(self.cache.closure(&pointer.derivation, key))?;
        let closure = closure.filter(|it| it.digest == pointer.closure);
        Ok((Some(pointer), closure))
    }
}
