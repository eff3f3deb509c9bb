//! Stating: what a store says to others of the derivations that it has realised.
//!
//! What a store has built it states itself; what it took from others it passes on in their words,
//! with a statement of its own that says "substituted", unless it has rebuilt it since
//! ([`super::rebuilt`]). What it composed of others' components is as much theirs. Publishing,
//! exporting and serving say the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::cache::CacheError;
use crate::cache::assured::Assured;
use crate::cache::key::SecretKey;
use crate::cache::sealed::Sealed;
use crate::cache::statement::{Provenance, StatedOutput, Statement};
use crate::derivation::Action;
use crate::digest::StaticHash;
use crate::error::StoreError;
use crate::realisation::Claim;
use crate::revision;
use crate::store::Store;

impl Store {
    /// What was chosen here for a derivation and for all that it was built from.
    ///
    /// # Errors
    /// [`CacheError::NotRealised`], and whatever the store says.
    pub(crate) fn claims(
        &self,
        root: &StaticHash,
    ) -> Result<BTreeMap<StaticHash, Claim>, CacheError> {
        let mut claims = BTreeMap::new();
        let mut pending = vec![*root];
        while let Some(hash) = pending.pop() {
            if claims.contains_key(&hash) {
                continue;
            }
            match self.claim(&hash)? {
                Some(claim) => {
                    pending.extend(claim.inputs.keys().map(|key| key.derivation));
                    claims.insert(hash, claim);
                }
                None if hash == *root => {
                    return Err(CacheError::NotRealised { hash: hash.to_string() });
                }
                // Taken from elsewhere, without what it was built from.
                None => {}
            }
        }
        Ok(claims)
    }

    /// The statements on a derivation: those by which this store took what it didn't build, then
    /// its own, by `builder` and signed with `key`. None if an output isn't here.
    pub(crate) fn statements(
        &self,
        derivation: &StaticHash,
        claim: &Claim,
        builder: &str,
        key: Option<&SecretKey>,
        _: &Assured,
    ) -> Result<Vec<Sealed<Statement>>, StoreError> {
        let mut outputs = BTreeMap::new();
        for (name, id) in &claim.outputs {
            let Some(info) = self.find_info(id)? else { return Ok(Vec::new()) };
            outputs.insert(name.clone(), StatedOutput::of(&info.object));
        }
        let route = self.realisation(&claim.resolved)?.map(|it| it.route).unwrap_or_default();
        let evidence = self.evidence(&claim.resolved)?;
        // Who took it, and has built it since, has built it.
        let rebuilt = match key {
            Some(key) if self.is_taken(&claim.resolved)? => {
                self.rebuilt(derivation, claim, &key.public())?
            }
            _ => None,
        };
        let provenance = match rebuilt.is_none() && self.is_others(derivation, claim, key)? {
            true => Provenance::Substituted,
            false => Provenance::Built,
        };
        let ours = Statement {
            derivation: *derivation,
            resolved: claim.resolved,
            outputs,
            inputs: claim.inputs.clone(),
            builder: builder.to_owned(),
            runner: route.runner,
            machine: route.machine,
            limits_by: route.limits_by,
            sandbox: revision::SANDBOX,
            provenance,
        };
        let ours = rebuilt.unwrap_or_else(|| Sealed::new(ours, key));
        let others = evidence.into_iter().filter(|it| {
            let same = it.unverified();
            same.derivation == *derivation
                && same.objects() == claim.outputs
                && it.signer() != ours.signer()
        });
        let mut statements: Vec<Sealed<Statement>> = others.collect();
        statements.push(ours);
        Ok(statements)
    }

    /// Whether something was taken from others, or composed of what was, and has not been rebuilt
    /// since by the owner of this key. What is composed brings its components along: to call it
    /// built here would count their builder twice.
    fn is_others(
        &self,
        derivation: &StaticHash,
        claim: &Claim,
        key: Option<&SecretKey>,
    ) -> Result<bool, StoreError> {
        let mut seen = BTreeSet::new();
        let mut pending = vec![(*derivation, claim.clone())];
        while let Some((hash, claim)) = pending.pop() {
            if self.is_taken(&claim.resolved)? {
                let rebuilt = match key {
                    Some(key) => self.rebuilt(&hash, &claim, &key.public())?,
                    None => None,
                };
                if rebuilt.is_none() {
                    return Ok(true);
                }
                continue;
            }
            let composed = self.derivation(&hash)?;
            if !composed.is_some_and(|it| matches!(it.action, Action::Stage(_))) {
                continue;
            }
            for input in claim.inputs.keys().map(|key| key.derivation) {
                if seen.insert(input) {
                    // One that nothing is known of came from somewhere.
                    let Some(claim) = self.claim(&input)? else { return Ok(true) };
                    pending.push((input, claim));
                }
            }
        }
        Ok(false)
    }
}
