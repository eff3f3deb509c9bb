//! Looking up: what caches say of a derivation, whether it is to be believed, and whether all of
//! it is there.
//!
//! For a goal a closure manifest is asked for first: one request, and everything is known. For
//! what a goal is made from, and where nobody published a manifest, there are statements by static
//! hash; and by resolved hash where the inputs are known. An offer is made only if a cache has the
//! record of every object that is missing here.

use std::collections::{BTreeMap, BTreeSet};

use srp_store::cache::{Asked, Evidence, ObjectRecord, Sealed, Statement, Verdict, concurrently};
use srp_store::{
    Claim, Derivation, InputKey, ObjectId, OutputName, ReferenceKind, ResolvedHash, StaticHash,
    Store, StoreError,
};

use crate::plan::adopted;
use crate::substitute::offer::{Offer, Part};
use crate::substitute::substituters::Substituters;

/// So many derivations, or objects, are asked about at once. How many requests that is, each
/// cache limits.
pub(crate) const QUESTIONS: usize = 8;

impl Substituters {
    /// What caches offer of several derivations that this store hasn't realised; `goals` are those
    /// that were asked for by name.
    pub(crate) fn offers(
        &self,
        store: &Store,
        derivations: &[(StaticHash, &Derivation)],
        goals: &BTreeSet<StaticHash>,
    ) -> Result<BTreeMap<StaticHash, Offer>, StoreError> {
        if self.sites.is_empty() {
            return Ok(BTreeMap::new());
        }
        let offers = concurrently(QUESTIONS, derivations, |(hash, derivation)| {
            if self.cancel.is_cancelled() {
                return Ok(None);
            }
            self.offer(store, *hash, derivation, goals.contains(hash))
        })?;
        Ok(offers.into_iter().flatten().map(|offer| (offer.derivation, offer)).collect())
    }

    fn offer(
        &self,
        store: &Store,
        hash: StaticHash,
        derivation: &Derivation,
        goal: bool,
    ) -> Result<Option<Offer>, StoreError> {
        if self.refused.lock().expect("no holder panics").contains(&hash) {
            return Ok(None);
        }
        let chosen = |hash: &StaticHash, output: &OutputName| {
            store.claim(hash).ok().flatten().and_then(|claim| claim.outputs.get(output).copied())
        };
        let sound = |statement: &Statement| {
            let objects: Option<Vec<ObjectId>> = derivation
                .inputs()
                .iter()
                .map(|input| statement.inputs.get(&input.key).copied())
                .collect();
            let resolved = objects.map(|objects| derivation.resolved_hash(&objects));
            resolved == Some(statement.resolved)
                && fits(derivation, statement)
                && statement.claim().agrees_with(chosen)
        };
        let asked = Asked::Static(hash);
        if let Some((statement, evidence, by)) = self.decide(derivation, asked, goal, &sound)? {
            let claim = statement.claim();
            if let Some(parts) = self.parts(store, claim.outputs.values().copied().collect())? {
                let derivation = hash;
                return Ok(Some(Offer { derivation, claim, by, parts, statement, evidence }));
            }
        }
        let mut inputs = BTreeMap::new();
        for input in derivation.inputs() {
            let claim = adopted(store, &input.key.derivation)?;
            match claim.and_then(|claim| claim.outputs.get(&input.key.output).copied()) {
                Some(object) => drop(inputs.insert(input.key.clone(), object)),
                None => return Ok(None),
            }
        }
        let objects: Vec<ObjectId> =
            derivation.inputs().iter().map(|input| inputs[&input.key]).collect();
        let resolved = derivation.resolved_hash(&objects);
        if derivation.inputs().is_empty() || store.realisation(&resolved)?.is_some() {
            return Ok(None);
        }
        self.by_resolved(store, hash, derivation, resolved, &inputs)
    }

    /// What caches offer of a derivation whose inputs are all known.
    pub(crate) fn by_resolved(
        &self,
        store: &Store,
        hash: StaticHash,
        derivation: &Derivation,
        resolved: ResolvedHash,
        inputs: &BTreeMap<InputKey, ObjectId>,
    ) -> Result<Option<Offer>, StoreError> {
        let unknown = self.unknown.lock().expect("no holder panics").contains(&resolved);
        if unknown || self.refused.lock().expect("no holder panics").contains(&hash) {
            return Ok(None);
        }
        let sound = |statement: &Statement| fits(derivation, statement);
        let found = self.decide(derivation, Asked::Resolved(resolved), false, &sound)?;
        if let Some((statement, evidence, by)) = found {
            let outputs = statement.objects();
            if let Some(parts) = self.parts(store, outputs.values().copied().collect())? {
                let claim = Claim { resolved, outputs, inputs: inputs.clone() };
                let derivation = hash;
                return Ok(Some(Offer { derivation, claim, by, parts, statement, evidence }));
            }
        }
        self.unknown.lock().expect("no holder panics").insert(resolved);
        Ok(None)
    }

    /// Asks one cache after the other until there is enough to believe.
    #[allow(clippy::type_complexity)] // the parts of an offer
    fn decide(
        &self,
        derivation: &Derivation,
        asked: Asked,
        goal: bool,
        sound: &dyn Fn(&Statement) -> bool,
    ) -> Result<Option<(Statement, Vec<Sealed<Statement>>, BTreeSet<String>)>, StoreError> {
        let mut evidence: Vec<Evidence> = Vec::new();
        let mut decision = None;
        for (number, site) in self.sites.iter().enumerate() {
            let mut statements = Vec::new();
            if let (true, Asked::Static(hash)) = (goal, asked) {
                statements = self.manifest(number, &hash)?;
            }
            if statements.is_empty() {
                let signers = self.signers(site);
                let found = concurrently(signers.len(), &signers, |signer| {
                    site.ask(|cache| cache.statements(asked, &[*signer]).map(Some))
                })?;
                statements = found.into_iter().flatten().flatten().collect();
            }
            let before = evidence.len();
            evidence.extend(statements.into_iter().filter(|it| sound(it.unverified())).map(
                |statement| Evidence {
                    cache: site.url().to_owned(),
                    trusted_outright: site.trusted_outright,
                    statement,
                },
            ));
            if evidence.len() > before {
                let now = self.policy.decide(asked, &evidence);
                let done = matches!(now.verdict, Verdict::Accepted { .. });
                decision = Some(now);
                if done {
                    break;
                }
            }
        }
        let Some(decision) = decision else { return Ok(None) };
        for complaint in &decision.complaints {
            tracing::error!("{}: {complaint}", derivation.name);
        }
        match decision.verdict {
            Verdict::Accepted { statement, by } => {
                let agreeing = |sealed: &Sealed<Statement>| {
                    let other = sealed.unverified();
                    sealed.check(&self.policy.trusted).is_ok()
                        && other.resolved == statement.resolved
                        && other.objects() == statement.objects()
                };
                let all = evidence.into_iter().map(|it| it.statement).filter(agreeing).collect();
                Ok(Some((*statement, all, by)))
            }
            verdict @ (Verdict::Disagreement { .. } | Verdict::BadSignature) => {
                tracing::error!("{} is not substituted: {verdict}", derivation.name);
                Ok(None)
            }
            Verdict::NotEnough { have, need } => {
                if !have.is_empty() {
                    let verdict = Verdict::NotEnough { have, need };
                    tracing::warn!("{} is not substituted: {verdict}", derivation.name);
                }
                Ok(None)
            }
        }
    }

    /// What a cache's closure manifests say of their root; where the objects lie is remembered.
    fn manifest(
        &self,
        number: usize,
        hash: &StaticHash,
    ) -> Result<Vec<Sealed<Statement>>, StoreError> {
        let site = &self.sites[number];
        let signers = self.signers(site);
        let found = concurrently(signers.len(), &signers, |signer| {
            let key = signer.map(|id| &self.policy.trusted[&id]);
            site.ask(|cache| cache.closure(hash, key))
        })?;
        let mut statements = Vec::new();
        for (signer, found) in signers.iter().zip(found) {
            let Some(found) = found else { continue };
            let closure = found.closure;
            let pointer = closure.pointer(found.digest);
            self.manifests.lock().expect("no holder panics").push((number, *signer, pointer));
            {
                let mut records = self.records.lock().expect("no holder panics");
                for record in closure.objects {
                    let entry = records.entry(record.object.id()).or_insert(None);
                    if entry.is_none() {
                        *entry = Some((number, record));
                    }
                }
            }
            let mut deltas = self.deltas.lock().expect("no holder panics");
            deltas.entry(number).or_default().extend(closure.deltas);
            let about = |it: &Sealed<Statement>| it.unverified().derivation == *hash;
            statements.extend(closure.statements.into_iter().filter(about));
        }
        Ok(statements)
    }

    /// Where all that is missing of these objects' closures lies; none if some of it lies nowhere.
    fn parts(&self, store: &Store, ids: Vec<ObjectId>) -> Result<Option<Vec<Part>>, StoreError> {
        let mut parts = Vec::new();
        let mut seen = BTreeSet::new();
        let mut pending: BTreeSet<ObjectId> = ids.into_iter().collect();
        // All that is known to be referred to is asked for together.
        while !pending.is_empty() {
            let mut missing = Vec::new();
            let mut next = BTreeSet::new();
            for id in pending {
                if !seen.insert(id) {
                    continue;
                }
                if store.contains(&id)? {
                    next.extend(store.info(&id)?.object.references(ReferenceKind::ALL));
                } else {
                    missing.push(id);
                }
            }
            let records = concurrently(QUESTIONS, &missing, |id| self.record(id))?;
            for (id, found) in missing.iter().zip(records) {
                let Some((site, record)) = found else {
                    tracing::debug!(%id, "no cache has this object");
                    return Ok(None);
                };
                next.extend(record.object.references(ReferenceKind::ALL));
                let cache = self.sites[site].url().to_owned();
                parts.push(Part { record, cache, site });
            }
            pending = next;
        }
        Ok(Some(parts))
    }

    /// An object's record, and the number of the cache that has it.
    pub(crate) fn record(
        &self,
        id: &ObjectId,
    ) -> Result<Option<(usize, ObjectRecord)>, StoreError> {
        if let Some(known) = self.records.lock().expect("no holder panics").get(id) {
            return Ok(known.clone());
        }
        let mut found = None;
        for (number, site) in self.sites.iter().enumerate() {
            if let Some(record) = site.ask(|cache| cache.object(id))? {
                found = Some((number, record));
                break;
            }
        }
        self.records.lock().expect("no holder panics").insert(*id, found.clone());
        Ok(found)
    }
}

/// Whether a statement has the outputs that the derivation has.
fn fits(derivation: &Derivation, statement: &Statement) -> bool {
    derivation.outputs().iter().eq(statement.outputs.keys())
}
