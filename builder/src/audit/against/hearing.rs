//! Hearing: asking caches what is said of derivations, and comparing it with what is here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use srp_store::cache::{
    Asked, Cache, CacheError, Policy, Sealed, Signer, Standing, Statement, concurrently,
};
use srp_store::{Claim, Derivation, ObjectId, StaticHash, Store, StoreError};

use super::{Comparison, Identity, OtherInput, Outcome, Says, Stated, Voice, outcome};
use crate::cancel::CancelToken;
use crate::plan::adopted;
use crate::substitute::{Site, Upstream};

/// So many derivations are asked about at once. How many requests that is, each cache limits.
const QUESTIONS: usize = 8;
/// So many signers whom nobody here knows are listened to about one derivation: anybody can make keys.
const STRANGERS: usize = 64;
/// So far the inputs of inputs are followed: no statements form a longer chain by accident.
const DEEPEST: usize = 1000;

/// Caches that are asked what they say of what a store has.
pub struct Hearing<'a> {
    pub(super) store: &'a Store,
    pub(super) sites: Vec<Site>,
    /// Of each site: whether it can't say whose statements there are.
    unlisted: Vec<AtomicBool>,
    /// Of each site: whether it was told that it has more strangers than are listened to.
    crowded: Vec<AtomicBool>,
    policy: Policy,
    cancel: CancelToken,
}

/// A statement, and the number of the site that has it.
struct Heard {
    site: usize,
    statement: Sealed<Statement>,
    standing: Standing,
}

impl<'a> Hearing<'a> {
    /// Asks these caches, in their order. Nothing is connected yet.
    pub fn new(
        store: &'a Store,
        caches: Vec<Upstream>,
        policy: Policy,
        cancel: &CancelToken,
    ) -> Hearing<'a> {
        let sites: Vec<Site> =
            caches.into_iter().map(|cache| Site::new(cache, cancel.clone())).collect();
        let not_yet = || sites.iter().map(|_| AtomicBool::new(false)).collect();
        let (unlisted, crowded) = (not_yet(), not_yet());
        Hearing { store, sites, unlisted, crowded, policy, cancel: cancel.clone() }
    }

    /// Compares derivations with what is said of them. `derivations` has them, and for names those
    /// that they are made from; the answers are in the order of `wanted`, and end early if all is
    /// to end.
    ///
    /// # Errors
    /// The store's. A cache that fails has nothing to say, which is said once.
    pub fn compare(
        &self,
        derivations: &BTreeMap<StaticHash, Derivation>,
        wanted: &[StaticHash],
    ) -> Result<Vec<Comparison>, StoreError> {
        let compared = concurrently(QUESTIONS, wanted, |hash| {
            if self.cancel.is_cancelled() {
                return Ok(None);
            }
            self.one(derivations, hash).map(Some)
        })?;
        Ok(compared.into_iter().flatten().collect())
    }

    /// The caches that could not be asked.
    pub fn unreachable(&self) -> Vec<&str> {
        self.sites.iter().filter(|site| site.is_down()).map(Site::url).collect()
    }

    fn one(
        &self,
        derivations: &BTreeMap<StaticHash, Derivation>,
        hash: &StaticHash,
    ) -> Result<Comparison, StoreError> {
        let derivation = &derivations[hash];
        let mut comparison = Comparison {
            derivation: *hash,
            name: derivation.name.to_string(),
            version: derivation.version.clone(),
            outcome: Outcome::Unknown { reason: "it is not realised".to_owned() },
            resolved: None,
            outputs: BTreeMap::new(),
            voices: Vec::new(),
            differences: Vec::new(),
        };
        let Some(claim) = adopted(self.store, hash)? else { return Ok(comparison) };
        comparison.resolved = Some(claim.resolved);
        for (output, id) in &claim.outputs {
            let tree = self.store.info(id)?.object.tree;
            comparison.outputs.insert(output.clone(), Identity { object: *id, tree });
        }
        for heard in self.hear(hash, &claim)? {
            let voice = self.voice(derivations, hash, &claim, &heard)?;
            if voice.counts() && voice.says == Says::Disagree && voice.same_build {
                self.explain(heard.site, &heard.statement, &mut comparison)?;
            }
            comparison.voices.push(voice);
        }
        comparison.outcome = outcome(&comparison.voices);
        Ok(comparison)
    }

    /// All that is said of a derivation, by static hash, and of the same build by resolved hash.
    fn hear(&self, hash: &StaticHash, claim: &Claim) -> Result<Vec<Heard>, StoreError> {
        let mut found = Vec::new();
        for site in 0..self.sites.len() {
            let by_static = self.ask(site, Asked::Static(*hash))?;
            let same_build = |it: &Heard| it.statement.unverified().resolved == claim.resolved;
            // One signer's statement on this build may lie by resolved hash only: by static hash
            // they have published another one since, or built it by another definition.
            let mut by_resolved = self.ask(site, Asked::Resolved(claim.resolved))?;
            by_resolved.retain(|it| {
                let known = |other: &&Heard| other.statement.signer() == it.statement.signer();
                !by_static.iter().filter(known).any(same_build)
            });
            found.extend(by_static);
            found.extend(by_resolved);
        }
        Ok(found)
    }

    fn ask(&self, number: usize, asked: Asked) -> Result<Vec<Heard>, StoreError> {
        let site = &self.sites[number];
        let statements = site.ask(|cache| {
            let (signers, not_listed) = self.signers(number, cache, asked);
            let statements = cache.statements(asked, &signers)?;
            // Of a cache that is down altogether that is said.
            if let Some(error) = not_listed
                && !self.unlisted[number].swap(true, Ordering::Relaxed)
            {
                self.say_unlisted(number, &error);
            }
            Ok(Some(statements))
        })?;
        let mut heard = Vec::new();
        for statement in statements.unwrap_or_default() {
            let about = statement.unverified();
            let asked_for = match asked {
                Asked::Static(hash) => about.derivation == hash,
                Asked::Resolved(hash) => about.resolved == hash,
            };
            if !asked_for {
                tracing::error!(
                    "the cache {} answers about another derivation than asked",
                    site.url()
                );
                continue;
            }
            let standing = self.policy.standing(&statement, site.trusted_outright);
            if let Standing::Wrong { key, name } = &standing {
                tracing::error!(
                    "the cache {} serves a wrong signature by {name} ({key})",
                    site.url()
                );
            }
            heard.push(Heard { site: number, statement, standing });
        }
        Ok(heard)
    }

    /// Whose statements are asked for: those of all whose keys are known, what nobody signed, and,
    /// where a cache can say who there is, some strangers'. Also why it couldn't, when it was asked.
    fn signers(
        &self,
        number: usize,
        cache: &Cache,
        asked: Asked,
    ) -> (Vec<Signer>, Option<CacheError>) {
        let known = self.policy.trusted.keys().chain(&self.policy.revoked).copied();
        let known: BTreeSet<Signer> = known.map(Some).chain([None]).collect();
        if self.unlisted[number].load(Ordering::Relaxed) {
            return (known.into_iter().collect(), None);
        }
        let listed = match cache.signers(asked) {
            Ok(listed) => listed,
            Err(error) => return (known.into_iter().collect(), Some(error)),
        };
        let (mut signers, mut strangers): (Vec<Signer>, Vec<Signer>) =
            listed.into_iter().partition(|signer| known.contains(signer));
        if strangers.len() > STRANGERS && !self.crowded[number].swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the cache {} has statements of {} unknown keys on one derivation: of such only {STRANGERS} are asked for",
                self.sites[number].url(),
                strangers.len()
            );
        }
        strangers.truncate(STRANGERS);
        signers.append(&mut strangers);
        signers.sort();
        (signers, None)
    }

    /// That a server lists nothing is usual; anything else is worth a word.
    fn say_unlisted(&self, number: usize, error: &CacheError) {
        let url = self.sites[number].url();
        match error {
            CacheError::Unsupported { .. } => {
                tracing::debug!("the cache {url} lists nothing: only known keys are asked for");
            }
            _ => {
                let source = std::error::Error::source(error).map(|it| format!(": {it}"));
                let source = source.unwrap_or_default();
                tracing::warn!("{error}{source}; only the statements of known keys are asked for");
            }
        }
    }

    fn voice(
        &self,
        derivations: &BTreeMap<StaticHash, Derivation>,
        hash: &StaticHash,
        claim: &Claim,
        heard: &Heard,
    ) -> Result<Voice, StoreError> {
        let statement = heard.statement.unverified();
        let mut outputs = Vec::new();
        for (output, object) in &claim.outputs {
            let Some(stated) = statement.outputs.get(output) else { continue };
            let there = Identity { object: stated.object, tree: stated.tree };
            outputs.push(Stated {
                output: output.clone(),
                agrees: stated.object == *object,
                there,
            });
        }
        let same_build = statement.resolved == claim.resolved;
        let fits = claim.outputs.keys().eq(statement.outputs.keys());
        let sound = same_build || follows(&derivations[hash], statement);
        let says = match outputs.iter().all(|output| output.agrees) {
            _ if !fits || !sound => Says::Nonsense,
            true => Says::Agree,
            false => Says::Disagree,
        };
        let because = match says {
            // Nobody follows what doesn't count.
            Says::Disagree if !same_build && heard.standing.counts() => {
                self.because(derivations, hash, claim, heard)?
            }
            _ => Vec::new(),
        };
        Ok(Voice {
            cache: self.sites[heard.site].url().to_owned(),
            by: heard.standing.clone().into(),
            says,
            builder: statement.builder.clone(),
            provenance: statement.provenance.to_string(),
            runner: statement.runner.clone(),
            machine: statement.machine.clone(),
            resolved: statement.resolved,
            same_build,
            outputs,
            because,
        })
    }

    /// The first input that differs, then the first of that one's inputs, and so on, as far as the
    /// same signer says in the same cache: the last one is where the disagreement begins, or where
    /// nothing more is known.
    fn because(
        &self,
        derivations: &BTreeMap<StaticHash, Derivation>,
        hash: &StaticHash,
        claim: &Claim,
        heard: &Heard,
    ) -> Result<Vec<OtherInput>, StoreError> {
        let mut chain = Vec::new();
        let mut at = (*hash, claim.clone(), heard.statement.unverified().clone());
        while chain.len() < DEEPEST {
            let (hash, claim, statement) = &at;
            let Some(derivation) = derivations.get(hash) else { break };
            let differs =
                |key: &&srp_store::InputKey| claim.inputs.get(key) != statement.inputs.get(key);
            let key = derivation.inputs().iter().map(|input| &input.key).find(differs);
            let Some(key) = key else { break };
            let Some(here) = claim.inputs.get(key) else { break };
            chain.push(OtherInput {
                name: derivations.get(&key.derivation).map_or_else(
                    || key.derivation.to_string(),
                    |derivation| derivation.name.to_string(),
                ),
                derivation: key.derivation,
                output: key.output.clone(),
                here: *here,
                there: statement.inputs.get(key).copied(),
            });
            let input = key.derivation;
            let Some(ours) = adopted(self.store, &input)? else { break };
            let theirs = self.ask(heard.site, Asked::Static(input))?;
            let theirs = theirs.into_iter().find(|it| {
                it.standing == heard.standing && it.statement.unverified().resolved != ours.resolved
            });
            let Some(theirs) = theirs else { break };
            at = (input, ours, theirs.statement.unverified().clone());
        }
        Ok(chain)
    }
}

/// Whether a statement's resolved hash is that of the derivation with the inputs that it names.
fn follows(derivation: &Derivation, statement: &Statement) -> bool {
    let objects: Option<Vec<ObjectId>> =
        derivation.inputs().iter().map(|input| statement.inputs.get(&input.key).copied()).collect();
    objects.is_some_and(|objects| derivation.resolved_hash(&objects) == statement.resolved)
}

impl std::fmt::Debug for Hearing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sites.iter().map(Site::url)).finish()
    }
}
