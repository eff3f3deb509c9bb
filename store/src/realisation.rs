//! Realisations: which objects a derivation came out as, and the rule by which one is adopted.
//!
//! This file does no I/O; [`crate::Store`] keeps the records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::derivation::InputKey;
use crate::digest::{ObjectId, ResolvedHash, StaticHash};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::OutputName;

/// What a resolved derivation came out as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Realisation {
    /// The object of each output.
    pub outputs: BTreeMap<OutputName, ObjectId>,
    /// How it was made.
    pub route: Route,
}

/// How a realisation was made: recorded, and in no hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What executed the builder: `native`, or the emulator's object name; empty if nothing ran.
    pub runner: String,
    /// The machine's architecture.
    pub machine: String,
    /// How limits were enforced: `cgroup`, `watchdog`; empty if nothing ran.
    pub limits_by: String,
    /// Wall time.
    pub milliseconds: u64,
    /// The most memory that the build's processes held at once.
    pub peak_memory_bytes: u64,
}

/// What a derivation came out as, said of its static hash.
///
/// That holds only where the same objects were chosen for the inputs, so the claim says which
/// they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The derivation's hash with these inputs.
    pub resolved: ResolvedHash,
    /// The object of each output.
    pub outputs: BTreeMap<OutputName, ObjectId>,
    /// The object chosen for every input.
    pub inputs: BTreeMap<InputKey, ObjectId>,
}

impl Claim {
    /// Whether the claim may be adopted by a store that has chosen, for each derivation's output,
    /// what `chosen` says: it agrees, or the store has made no choice yet.
    ///
    /// Where it may not be adopted, the derivation is looked up by its resolved hash, or built.
    pub fn agrees_with(
        &self,
        chosen: impl Fn(&StaticHash, &OutputName) -> Option<ObjectId>,
    ) -> bool {
        self.inputs.iter().all(|(key, object)| {
            chosen(&key.derivation, &key.output).is_none_or(|chosen| chosen == *object)
        })
    }
}

impl Canonical for Realisation {
    fn encode(&self, to: &mut Encoder) {
        self.outputs.encode(to);
        to.text(&self.route.runner);
        to.text(&self.route.machine);
        to.text(&self.route.limits_by);
        to.integer(self.route.milliseconds);
        to.integer(self.route.peak_memory_bytes);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Realisation {
            outputs: BTreeMap::decode(from)?,
            route: Route {
                runner: String::decode(from)?,
                machine: String::decode(from)?,
                limits_by: String::decode(from)?,
                milliseconds: u64::decode(from)?,
                peak_memory_bytes: u64::decode(from)?,
            },
        })
    }
}

impl Canonical for Claim {
    fn encode(&self, to: &mut Encoder) {
        self.resolved.encode(to);
        self.outputs.encode(to);
        self.inputs.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Claim {
            resolved: ResolvedHash::decode(from)?,
            outputs: BTreeMap::decode(from)?,
            inputs: BTreeMap::decode(from)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_claim_is_adopted_only_where_no_other_choice_was_made() {
        let object = |text: &str| ObjectId::truncate(*Digest::of_file(text.as_bytes()).as_bytes());
        let input = StaticHash::from_bytes([7; 32]);
        let claim = Claim {
            resolved: ResolvedHash::from_bytes([1; 32]),
            outputs: [(OutputName::out(), object("built"))].into(),
            inputs: [(InputKey { derivation: input, output: OutputName::out() }, object("a"))]
                .into(),
        };
        assert!(claim.agrees_with(|_, _| None));
        assert!(claim.agrees_with(|_, _| Some(object("a"))));
        assert!(!claim.agrees_with(|hash, _| (*hash == input).then(|| object("b"))));
        assert_eq!(Claim::from_canonical(&claim.to_canonical()), Ok(claim));
    }
}
