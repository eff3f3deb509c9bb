//! Statements: what a derivation came out as, as one machine tells others.
//!
//! A statement says everything that a reader may want to judge: which objects, from which inputs,
//! who built them, on what, how isolated, and whether the one who states it has built them itself
//! or only got them elsewhere. It is a value: who signed it is [`Sealed`](super::Sealed)'s business,
//! whether that is enough the [policy](super::Policy)'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cache::sealed::Sealable;
use crate::derivation::InputKey;
use crate::digest::{Digest, Domain, ObjectId, ResolvedHash, StaticHash};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::OutputName;
use crate::object::{Object, Reference};
use crate::realisation::{Claim, Realisation, Route};

/// What a derivation came out as.
///
/// Canonical encoding: the fields in this order; the provenance as `built` or `substituted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The derivation.
    pub derivation: StaticHash,
    /// The derivation with its inputs as objects.
    pub resolved: ResolvedHash,
    /// What it came out as.
    pub outputs: BTreeMap<OutputName, StatedOutput>,
    /// The object that every input was.
    pub inputs: BTreeMap<InputKey, ObjectId>,
    /// Who built it, in their own words: a machine's or a key's name.
    pub builder: String,
    /// What executed the builder: `native`, an emulator's object name, or empty.
    pub runner: String,
    /// The machine's architecture.
    pub machine: String,
    /// How limits were enforced: `cgroup`, `watchdog`, or empty.
    pub limits_by: String,
    /// The revision of the sandbox that isolated it ([`crate::revision::SANDBOX`]).
    pub sandbox: u64,
    /// Whether whoever states this built it.
    pub provenance: Provenance,
}

/// One output.
///
/// Canonical encoding: object id, tree digest, references. The id covers the other two, which are
/// repeated for people and tools that have nothing but the statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatedOutput {
    /// The object.
    pub object: ObjectId,
    /// The digest of its tree.
    pub tree: Digest,
    /// What it refers to.
    pub references: BTreeSet<Reference>,
}

/// Where whoever states something has it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provenance {
    /// Built by the one who states it.
    Built,
    /// Got from somebody else and passed on: no second witness of the build.
    Substituted,
}

impl Statement {
    /// The claim to register where the statement is accepted.
    pub fn claim(&self) -> Claim {
        Claim { resolved: self.resolved, outputs: self.objects(), inputs: self.inputs.clone() }
    }

    /// The realisation to register where the statement is accepted.
    pub fn realisation(&self) -> Realisation {
        let route = Route {
            runner: self.runner.clone(),
            machine: self.machine.clone(),
            limits_by: self.limits_by.clone(),
            ..Route::default()
        };
        Realisation { outputs: self.objects(), route }
    }

    /// The object of each output.
    pub fn objects(&self) -> BTreeMap<OutputName, ObjectId> {
        self.outputs.iter().map(|(name, output)| (name.clone(), output.object)).collect()
    }

    /// Whether another machine's processor was emulated for it.
    pub fn is_emulated(&self) -> bool {
        !matches!(self.runner.as_str(), "" | "native")
    }
}

impl StatedOutput {
    /// What is stated of an object.
    pub fn of(object: &Object) -> StatedOutput {
        let (tree, references) = (object.tree, object.references.clone());
        StatedOutput { object: object.id(), tree, references }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provenance::Built => "built",
            Provenance::Substituted => "substituted",
        })
    }
}

impl Sealable for Statement {
    const KIND: &'static str = "statement";
    const DOMAIN: Domain = Domain::Statement;
    const LIMIT_BYTES: u64 = 1 << 20;
    const COMPRESSED: bool = false;
}

impl Canonical for Statement {
    fn encode(&self, to: &mut Encoder) {
        self.derivation.encode(to);
        self.resolved.encode(to);
        self.outputs.encode(to);
        self.inputs.encode(to);
        to.text(&self.builder);
        to.text(&self.runner);
        to.text(&self.machine);
        to.text(&self.limits_by);
        to.integer(self.sandbox);
        to.text(&self.provenance.to_string());
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Statement {
            derivation: StaticHash::decode(from)?,
            resolved: ResolvedHash::decode(from)?,
            outputs: BTreeMap::decode(from)?,
            inputs: BTreeMap::decode(from)?,
            builder: String::decode(from)?,
            runner: String::decode(from)?,
            machine: String::decode(from)?,
            limits_by: String::decode(from)?,
            sandbox: from.integer()?,
            provenance: match from.text()? {
                "built" => Provenance::Built,
                "substituted" => Provenance::Substituted,
                tag => return Err(DecodeError::UnknownVariant { tag: tag.to_owned() }),
            },
        })
    }
}

impl Canonical for StatedOutput {
    fn encode(&self, to: &mut Encoder) {
        self.object.encode(to);
        self.tree.encode(to);
        self.references.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(StatedOutput {
            object: ObjectId::decode(from)?,
            tree: Digest::decode(from)?,
            references: BTreeSet::decode(from)?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cache::{PublicKey, Sealed, SecretKey};

    pub(crate) fn secret(name: &str, byte: u8) -> SecretKey {
        use base64::Engine as _;
        let seed = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        format!("srp-secret-key:{name}:{seed}").parse().expect("a key")
    }

    pub(crate) fn ring(keys: &[&SecretKey]) -> BTreeMap<crate::cache::KeyId, PublicKey> {
        keys.iter().map(|key| (key.public().id(), key.public())).collect()
    }

    pub(crate) fn sample(output: u8) -> Statement {
        let output = StatedOutput {
            object: ObjectId::from_bytes([output; 20]),
            tree: Digest::from_bytes([output; 32]),
            references: BTreeSet::new(),
        };
        let input =
            InputKey { derivation: StaticHash::from_bytes([3; 32]), output: OutputName::out() };
        Statement {
            derivation: StaticHash::from_bytes([1; 32]),
            resolved: ResolvedHash::from_bytes([2; 32]),
            outputs: [(OutputName::out(), output)].into(),
            inputs: [(input, ObjectId::from_bytes([4; 20]))].into(),
            builder: "builder-1".to_owned(),
            runner: "native".to_owned(),
            machine: "x86_64".to_owned(),
            limits_by: "cgroup".to_owned(),
            sandbox: 1,
            provenance: Provenance::Built,
        }
    }

    #[test]
    fn golden() {
        let sealed = Sealed::new(sample(5), Some(&secret("builder-1", 7)));
        // ed25519 is deterministic: the same statement by the same key is the same file.
        let file = sealed.to_bytes();
        assert!(file.starts_with(b"srp statement 1\n\x07\0\0\0\0\0\0\0ed25519"));
        let digests = [Digest::from_bytes(sealed.digest()), Digest::of_file(&file)];
        assert_eq!(
            digests.map(|digest| digest.to_string()),
            [
                "a62689978549626493974a7e47324406e944b1c71f15e0ea5cc6c7de82cfcd5b",
                "21aa6949e9ba2f9e6558b8fc3e60140edf4372aa3d3d86c953bffb746462d509",
            ]
        );
    }

    #[test]
    fn a_sealed_statement_opens_for_its_key_only_and_no_flipped_bit_passes() {
        let (key, other) = (secret("builder-1", 7), secret("builder-2", 8));
        for signer in [Some(&key), None] {
            let sealed = Sealed::new(sample(5), signer);
            let bytes = sealed.to_bytes();
            let read = Sealed::<Statement>::from_bytes(&bytes).expect("read back");
            assert_eq!(read, sealed);
            let keys = ring(&[&key]);
            let (value, by) = read.open(&keys).expect("opened");
            assert_eq!((value, by.is_some()), (sample(5), signer.is_some()));
            assert_eq!(sealed.check(&ring(&[&other])).is_err(), signer.is_some());
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let opened = Sealed::<Statement>::from_bytes(&flipped).map(|it| it.open(&keys));
                assert!(!matches!(opened, Ok(Ok(_))), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(Sealed::<Statement>::from_bytes(&bytes[..length]).is_err());
            }
        }
    }
}
