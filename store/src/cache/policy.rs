//! The policy: whose word is enough.
//!
//! A pure value and one decision. It is asked about one derivation at a time, with everything
//! that caches say of it, and answers in a form that explains itself in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cache::key::{KeyId, PublicKey};
use crate::cache::sealed::Sealed;
use crate::cache::standing::Standing;
use crate::cache::statement::{Provenance, Statement};
use crate::digest::{ObjectId, ResolvedHash, StaticHash};
use crate::name::OutputName;

/// Whose word is enough.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The keys that are trusted.
    pub trusted: BTreeMap<KeyId, PublicKey>,
    /// Keys that are not, whoever else says so.
    pub revoked: BTreeSet<KeyId>,
    /// How many different builders must have signed the same outputs; 0 counts as 1.
    pub threshold: usize,
    /// Whether what an emulator built is refused.
    pub refuse_emulated: bool,
}

/// What a question was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A derivation as it is known before anything is built.
    Static(StaticHash),
    /// A derivation whose inputs are known.
    Resolved(ResolvedHash),
}

/// One statement, and the cache that it came from.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The cache's address, for messages.
    pub cache: String,
    /// Whether the user trusts the cache outright: then even what nobody signed counts, alone.
    pub trusted_outright: bool,
    /// The statement.
    pub statement: Sealed<Statement>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What follows.
    pub verdict: Verdict,
    /// What else is to be said, loudly: wrong signatures, and dissent from what was accepted.
    pub complaints: Vec<Complaint>,
}

/// What follows from the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The outputs may be substituted.
    Accepted {
        /// The statement to go by.
        statement: Box<Statement>,
        /// Who vouches for it, by name.
        by: BTreeSet<String>,
    },
    /// Nobody, or too few, vouch for it.
    NotEnough {
        /// Who does.
        have: BTreeSet<String>,
        /// How many would be needed.
        need: usize,
    },
    /// Trusted builders say different things of the same resolved derivation.
    Disagreement {
        /// Who says what.
        sides: Vec<Side>,
    },
    /// There is nothing but wrong signatures.
    BadSignature,
}

/// What some builders say a derivation came out as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Who says it.
    pub by: BTreeSet<String>,
    /// What.
    pub outputs: BTreeMap<OutputName, ObjectId>,
}

/// Something about the evidence that the user must hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// A signature is wrong.
    BadSignature {
        /// The cache that served it.
        cache: String,
        /// The key's name and id.
        key: String,
    },
    /// The statement is about another derivation than was asked for.
    WrongDerivation {
        /// The cache that served it.
        cache: String,
    },
    /// A key was revoked and still signs.
    Revoked {
        /// The cache that served it.
        cache: String,
        /// The key's id.
        key: KeyId,
    },
    /// Enough builders agree, and this one doesn't.
    Dissent(Side),
}

/// Those who say one thing of one resolved derivation.
#[derive(Default)]
struct Voices<'a> {
    statement: Option<&'a Statement>,
    /// Everybody who says so.
    all: BTreeSet<String>,
    /// Those who have built it themselves.
    built: BTreeSet<String>,
    /// Whether a cache that is trusted outright says so.
    outright: bool,
}

impl Policy {
    /// Decides what to believe of one derivation.
    ///
    /// Builders are told apart by the name under which their key is trusted, so two keys of one
    /// builder are one. With a threshold above 1, only those count who have built it themselves.
    /// What a cache that is trusted outright says without a signature counts, alone. Statements of
    /// one static hash with different inputs don't disagree: the best supported one is taken, so a
    /// caller with choices of its own leaves those that contradict them out
    /// ([`Claim::agrees_with`](crate::Claim::agrees_with)).
    pub fn decide(&self, asked: Asked, evidence: &[Evidence]) -> Decision {
        let need = self.threshold.max(1);
        let mut complaints = Vec::new();
        let mut heard: BTreeMap<ResolvedHash, BTreeMap<_, Voices<'_>>> = BTreeMap::new();
        for item in evidence {
            let Some((statement, name)) = self.hear(asked, item, &mut complaints) else { continue };
            let voices = heard
                .entry(statement.resolved)
                .or_default()
                .entry(statement.objects())
                .or_default();
            voices.outright |= name.is_none();
            if name.is_some() && statement.provenance == Provenance::Built {
                voices.built.extend(name.clone());
            }
            voices.all.insert(name.unwrap_or_else(|| format!("{} (trusted outright)", item.cache)));
            // Of several the smallest encoding, so that the order of caches doesn't matter.
            let better = voices.statement.is_none_or(|old| rank(statement) < rank(old));
            if better {
                voices.statement = Some(statement);
            }
        }
        let enough = |voices: &Voices<'_>| {
            let count = if need == 1 { voices.all.len() } else { voices.built.len() };
            voices.outright || count >= need
        };
        let mut best: Option<(usize, &Voices<'_>, ResolvedHash)> = None;
        let mut disagreement = None;
        for (resolved, sides) in &heard {
            let mut accepted = sides.values().filter(|voices| enough(voices));
            match (accepted.next(), accepted.next()) {
                (Some(voices), None) => {
                    if best.is_none_or(|(support, ..)| voices.all.len() > support) {
                        best = Some((voices.all.len(), voices, *resolved));
                    }
                }
                (None, _) if sides.len() < 2 => {}
                // Several are enough, or none is because they differ.
                _ => disagreement = disagreement.or(Some(sides)),
            }
        }
        let side = |(outputs, voices): (&BTreeMap<_, _>, &Voices<'_>)| Side {
            by: voices.all.clone(),
            outputs: outputs.clone(),
        };
        let verdict = if let Some((_, voices, resolved)) = best {
            let statement = voices.statement.expect("whoever is heard says something");
            let others = heard[&resolved].iter().filter(|(_, other)| !std::ptr::eq(*other, voices));
            complaints.extend(others.map(side).map(Complaint::Dissent));
            Verdict::Accepted { statement: Box::new(statement.clone()), by: voices.all.clone() }
        } else if let Some(sides) = disagreement {
            Verdict::Disagreement { sides: sides.iter().map(side).collect() }
        } else if heard.is_empty()
            && complaints.iter().any(|it| matches!(it, Complaint::BadSignature { .. }))
        {
            Verdict::BadSignature
        } else {
            let counted = |voices: &Voices<'_>| {
                if need == 1 { voices.all.clone() } else { voices.built.clone() }
            };
            let have = heard.values().flat_map(BTreeMap::values).map(counted);
            Verdict::NotEnough { have: have.max_by_key(BTreeSet::len).unwrap_or_default(), need }
        };
        Decision { verdict, complaints }
    }

    /// The statement in `item` and the name of its signer (none if its cache is trusted
    /// outright), if it counts at all.
    fn hear<'a>(
        &self,
        asked: Asked,
        item: &'a Evidence,
        complaints: &mut Vec<Complaint>,
    ) -> Option<(&'a Statement, Option<String>)> {
        let cache = item.cache.clone();
        let name = match self.standing(&item.statement, item.trusted_outright) {
            Standing::Trusted { name, .. } => Some(name),
            Standing::Outright => None,
            Standing::Unsigned | Standing::Untrusted { .. } => return None,
            Standing::Revoked { key } => {
                complaints.push(Complaint::Revoked { cache, key });
                return None;
            }
            Standing::Wrong { name, key } => {
                complaints.push(Complaint::BadSignature { cache, key: format!("{name} ({key})") });
                return None;
            }
        };
        let statement = item.statement.unverified();
        let asked_for = match asked {
            Asked::Static(hash) => statement.derivation == hash,
            Asked::Resolved(hash) => statement.resolved == hash,
        };
        if !asked_for {
            complaints.push(Complaint::WrongDerivation { cache });
            return None;
        }
        if self.refuse_emulated && statement.is_emulated() {
            return None;
        }
        Some((statement, name))
    }
}

/// What was built comes before what was passed on; else by encoding.
fn rank(statement: &Statement) -> (Provenance, Vec<u8>) {
    (statement.provenance, crate::encode::Canonical::to_canonical(statement))
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accepted { by, .. } => write!(f, "vouched for by {}", names(by)),
            Verdict::NotEnough { have, need } if have.is_empty() => {
                write!(f, "no trusted builder vouches for it, and the threshold is {need}")
            }
            Verdict::NotEnough { have, need } => write!(
                f,
                "only {} of the {need} different builders needed: {}",
                have.len(),
                names(have)
            ),
            Verdict::Disagreement { sides } => {
                f.write_str("trusted builders disagree")?;
                sides.iter().enumerate().try_for_each(|(index, side)| {
                    write!(f, "{} {side}", if index == 0 { ":" } else { ";" })
                })
            }
            Verdict::BadSignature => f.write_str("its signatures are wrong"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} says", names(&self.by))?;
        self.outputs.iter().try_for_each(|(name, object)| write!(f, " {name} is {object}"))
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::BadSignature { cache, key } => {
                write!(f, "the cache {cache} serves a wrong signature by {key}")
            }
            Complaint::WrongDerivation { cache } => {
                write!(f, "the cache {cache} answers about another derivation than asked")
            }
            Complaint::Revoked { cache, key } => {
                write!(f, "the cache {cache} serves a signature by the revoked key {key}")
            }
            Complaint::Dissent(side) => write!(f, "{side}, against the others"),
        }
    }
}

fn names(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::SecretKey;
    use crate::cache::statement::tests::{ring, sample, secret};

    fn says(key: Option<&SecretKey>, statement: Statement) -> Evidence {
        let statement = Sealed::new(statement, key);
        Evidence { cache: "file:///c".to_owned(), trusted_outright: false, statement }
    }

    fn asked() -> Asked {
        Asked::Static(StaticHash::from_bytes([1; 32]))
    }

    #[test]
    fn a_threshold_counts_builders_who_built() {
        let (a, a2, b) = (secret("a", 1), secret("a", 2), secret("b", 3));
        let policy = Policy { trusted: ring(&[&a, &a2, &b]), threshold: 2, ..Policy::default() };
        let decide = |evidence: &[Evidence]| policy.decide(asked(), evidence).verdict.to_string();
        let one = says(Some(&a), sample(5));
        assert_eq!(decide(&[]), "no trusted builder vouches for it, and the threshold is 2");
        let short = "only 1 of the 2 different builders needed: a";
        assert_eq!(decide(std::slice::from_ref(&one)), short);
        assert_eq!(decide(&[one.clone(), one.clone()]), short);
        assert_eq!(decide(&[one.clone(), says(Some(&a2), sample(5))]), short, "one builder");
        let passed_on = Statement { provenance: Provenance::Substituted, ..sample(5) };
        assert_eq!(decide(&[one.clone(), says(Some(&b), passed_on)]), short);
        let both = [one.clone(), says(Some(&b), sample(5))];
        assert_eq!(decide(&both), "vouched for by a, b");
        let text = decide(&[one, says(Some(&b), sample(6))]);
        assert!(text.starts_with("trusted builders disagree: a says out is 0"), "{text}");
        assert!(text.contains("; b says out is "), "{text}");
    }

    #[test]
    fn disagreement_is_never_settled_silently() {
        let (a, b, c) = (secret("a", 1), secret("b", 2), secret("c", 3));
        let trusted = ring(&[&a, &b, &c]);
        let all = [says(Some(&a), sample(5)), says(Some(&b), sample(5)), says(Some(&c), sample(6))];
        let one = Policy { trusted: trusted.clone(), threshold: 1, ..Policy::default() };
        assert!(matches!(one.decide(asked(), &all).verdict, Verdict::Disagreement { .. }));
        let two = Policy { trusted, threshold: 2, ..Policy::default() };
        let decision = two.decide(asked(), &all);
        assert!(matches!(decision.verdict, Verdict::Accepted { .. }));
        assert!(
            matches!(&decision.complaints[..], [Complaint::Dissent(side)] if side.by.contains("c"))
        );
    }

    #[test]
    fn strangers_the_revoked_and_the_wrong_don_t_count() {
        let (a, stranger) = (secret("a", 1), secret("s", 2));
        let policy = Policy { trusted: ring(&[&a]), ..Policy::default() };
        let verdict = |policy: &Policy, item: Evidence| policy.decide(asked(), &[item]);
        let accepted = |decision: Decision| matches!(decision.verdict, Verdict::Accepted { .. });
        assert!(accepted(verdict(&policy, says(Some(&a), sample(5)))));
        assert!(!accepted(verdict(&policy, says(Some(&stranger), sample(5)))));
        assert!(!accepted(verdict(&policy, says(None, sample(5)))));
        let outright = Evidence { trusted_outright: true, ..says(None, sample(5)) };
        assert!(accepted(verdict(&policy, outright)));

        let revoked = Policy { revoked: [a.public().id()].into(), ..policy.clone() };
        let decision = verdict(&revoked, says(Some(&a), sample(5)));
        assert!(matches!(decision.complaints[..], [Complaint::Revoked { .. }]));
        assert!(!accepted(decision));

        let other = Statement { derivation: StaticHash::from_bytes([9; 32]), ..sample(5) };
        let decision = verdict(&policy, says(Some(&a), other));
        assert!(matches!(decision.complaints[..], [Complaint::WrongDerivation { .. }]));

        let mut bytes = Sealed::new(sample(5), Some(&a)).to_bytes();
        let last = bytes.len() - 50;
        bytes[last] ^= 1;
        if let Ok(statement) = Sealed::from_bytes(&bytes) {
            let item = Evidence { statement, ..says(None, sample(5)) };
            assert_eq!(verdict(&policy, item).verdict, Verdict::BadSignature);
        }

        let emulated = Statement { runner: "qemu".to_owned(), ..sample(5) };
        let strict = Policy { refuse_emulated: true, ..policy.clone() };
        assert!(accepted(verdict(&policy, says(Some(&a), emulated.clone()))));
        assert!(!accepted(verdict(&strict, says(Some(&a), emulated))));
    }
}
