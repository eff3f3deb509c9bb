//! Closure manifests: everything about one published root in one file.
//!
//! And what they are made of: object records (which lie in the cache by themselves, too), where a
//! tree's pack lies, deltas, and the pointer to a root's newest manifest. Pure values.

use std::collections::BTreeSet;

use crate::cache::sealed::{Sealable, Sealed};
use crate::cache::statement::Statement;
use crate::digest::{Digest, Domain, ObjectId, StaticHash};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::RootName;
use crate::object::Object;

/// No manifest holds more objects: forty times the largest distribution's.
const MAX_OBJECTS: usize = 1_000_000;

/// What was published under a root's name.
///
/// Canonical encoding: the fields in this order; statements as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// The root's name: what was realised.
    pub root: RootName,
    /// Its derivation.
    pub derivation: StaticHash,
    /// Counted up from 1 by each key that publishes this root.
    pub generation: u64,
    /// When it was published, in seconds since 1970, as the publisher's clock says.
    pub time_seconds: u64,
    /// The digest of the manifest before.
    pub previous: Option<Digest>,
    /// Every object of the closure, by id.
    pub objects: Vec<ObjectRecord>,
    /// What the closure's derivations came out as: files as they lie at `realisations/`.
    pub statements: Vec<Sealed<Statement>>,
    /// How to make new files of old ones.
    pub deltas: BTreeSet<Delta>,
}

/// An object, and where its tree's files lie.
///
/// Canonical encoding: object, size, location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRecord {
    /// The object's identity.
    pub object: Object,
    /// The sum of its files' lengths.
    pub size_bytes: u64,
    /// The pack of its tree.
    pub location: Location,
}

/// Where a pack is, and where in it its index.
///
/// The index is the last `index_bytes` of the pack. Canonical encoding: the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The digest of the pack's bytes.
    pub pack: Digest,
    /// The pack's length.
    pub pack_bytes: u64,
    /// The length of the index, as it lies in the pack.
    pub index_bytes: u64,
    /// The length of the index, decompressed.
    pub index_plain_bytes: u64,
    /// The digest of the index, as it lies in the pack.
    pub index_digest: Digest,
}

/// A file that makes a new file of an old one.
///
/// Canonical encoding: the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delta {
    /// The digest of the file that it makes.
    pub to: Digest,
    /// The length of that file.
    pub to_bytes: u64,
    /// The digest of the file that it needs.
    pub from: Digest,
    /// The length of that file.
    pub from_bytes: u64,
    /// The digest of the delta's own bytes: its name in the cache.
    pub delta: Digest,
    /// The delta's length.
    pub delta_bytes: u64,
}

/// Which manifest is a root's newest.
///
/// Canonical encoding: the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The root's name.
    pub root: RootName,
    /// The newest manifest's derivation: with the key, where it lies.
    pub derivation: StaticHash,
    /// Its generation.
    pub generation: u64,
    /// Its digest.
    pub closure: Digest,
}

impl Closure {
    /// The record of an object in it.
    pub fn object(&self, id: &ObjectId) -> Option<&ObjectRecord> {
        self.objects.iter().find(|record| record.object.id() == *id)
    }

    /// Whether it says the same as `other`, but for when, and after what, it was published.
    pub fn says_the_same(&self, other: &Closure) -> bool {
        self.root == other.root
            && self.derivation == other.derivation
            && self.objects == other.objects
            && self.statements == other.statements
    }

    /// The pointer to it.
    pub fn pointer(&self, digest: Digest) -> Pointer {
        Pointer {
            root: self.root.clone(),
            derivation: self.derivation,
            generation: self.generation,
            closure: digest,
        }
    }
}

impl Sealable for Closure {
    const KIND: &'static str = "closure";
    const DOMAIN: Domain = Domain::Closure;
    const LIMIT_BYTES: u64 = 256 << 20;
    const COMPRESSED: bool = true;
}

impl Sealable for Pointer {
    const KIND: &'static str = "root";
    const DOMAIN: Domain = Domain::Pointer;
    const LIMIT_BYTES: u64 = 4 << 10;
    const COMPRESSED: bool = false;
}

impl Sealable for ObjectRecord {
    const KIND: &'static str = "object";
    const DOMAIN: Domain = Domain::ObjectRecord;
    const LIMIT_BYTES: u64 = 16 << 20;
    const COMPRESSED: bool = false;
}

impl Canonical for Closure {
    fn encode(&self, to: &mut Encoder) {
        self.root.encode(to);
        self.derivation.encode(to);
        to.integer(self.generation);
        to.integer(self.time_seconds);
        self.previous.encode(to);
        self.objects.encode(to);
        to.integer(self.statements.len() as u64);
        self.statements.iter().for_each(|statement| to.bytes(&statement.to_bytes()));
        self.deltas.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let root = RootName::decode(from)?;
        let derivation = StaticHash::decode(from)?;
        let (generation, time_seconds) = (from.integer()?, from.integer()?);
        let previous = Option::decode(from)?;
        let objects = Vec::<ObjectRecord>::decode(from)?;
        if objects.len() > MAX_OBJECTS {
            let reason = format!("{} objects are more than any closure has", objects.len());
            return Err(DecodeError::Invalid { reason });
        }
        let ids: Vec<ObjectId> = objects.iter().map(|record| record.object.id()).collect();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(DecodeError::Unordered);
        }
        let statements = (0..from.integer()?)
            .map(|_| Sealed::from_bytes(from.bytes()?))
            .collect::<Result<_, _>>()?;
        let deltas = BTreeSet::decode(from)?;
        Ok(Closure {
            root,
            derivation,
            generation,
            time_seconds,
            previous,
            objects,
            statements,
            deltas,
        })
    }
}

impl Canonical for ObjectRecord {
    fn encode(&self, to: &mut Encoder) {
        self.object.encode(to);
        to.integer(self.size_bytes);
        self.location.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(ObjectRecord {
            object: Object::decode(from)?,
            size_bytes: from.integer()?,
            location: Location::decode(from)?,
        })
    }
}

impl Canonical for Location {
    fn encode(&self, to: &mut Encoder) {
        self.pack.encode(to);
        to.integer(self.pack_bytes);
        to.integer(self.index_bytes);
        to.integer(self.index_plain_bytes);
        self.index_digest.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Location {
            pack: Digest::decode(from)?,
            pack_bytes: from.integer()?,
            index_bytes: from.integer()?,
            index_plain_bytes: from.integer()?,
            index_digest: Digest::decode(from)?,
        })
    }
}

impl Canonical for Delta {
    fn encode(&self, to: &mut Encoder) {
        self.to.encode(to);
        to.integer(self.to_bytes);
        self.from.encode(to);
        to.integer(self.from_bytes);
        self.delta.encode(to);
        to.integer(self.delta_bytes);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Delta {
            to: Digest::decode(from)?,
            to_bytes: from.integer()?,
            from: Digest::decode(from)?,
            from_bytes: from.integer()?,
            delta: Digest::decode(from)?,
            delta_bytes: from.integer()?,
        })
    }
}

impl Canonical for Pointer {
    fn encode(&self, to: &mut Encoder) {
        self.root.encode(to);
        self.derivation.encode(to);
        to.integer(self.generation);
        self.closure.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Pointer {
            root: RootName::decode(from)?,
            derivation: StaticHash::decode(from)?,
            generation: from.integer()?,
            closure: Digest::decode(from)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::statement::tests::{sample, secret};

    fn closure() -> Closure {
        let object = Object {
            name: "musl".parse().expect("a name"),
            tree: Digest::from_bytes([5; 32]),
            references: [].into(),
            permissions: [].into(),
        };
        let location = Location {
            pack: Digest::from_bytes([6; 32]),
            pack_bytes: 1000,
            index_bytes: 100,
            index_plain_bytes: 300,
            index_digest: Digest::from_bytes([7; 32]),
        };
        let delta = Delta {
            to: Digest::from_bytes([8; 32]),
            to_bytes: 10,
            from: Digest::from_bytes([9; 32]),
            from_bytes: 11,
            delta: Digest::from_bytes([10; 32]),
            delta_bytes: 5,
        };
        Closure {
            root: "stage1.x86_64".parse().expect("a name"),
            derivation: StaticHash::from_bytes([1; 32]),
            generation: 2,
            time_seconds: 1_700_000_000,
            previous: Some(Digest::from_bytes([4; 32])),
            objects: vec![ObjectRecord { object, size_bytes: 900, location }],
            statements: vec![Sealed::new(sample(5), Some(&secret("builder-1", 7)))],
            deltas: [delta].into(),
        }
    }

    #[test]
    fn golden() {
        let closure = closure();
        let sealed = Sealed::new(closure.clone(), None);
        assert_eq!(Sealed::from_bytes(&sealed.to_bytes()), Ok(sealed.clone()));
        let record = Sealed::new(closure.objects[0].clone(), None);
        let pointer = Sealed::new(closure.pointer(Digest::from_bytes([1; 32])), None);
        assert_eq!(
            [sealed.digest(), record.digest(), pointer.digest()]
                .map(|digest| Digest::from_bytes(digest).to_string()),
            [
                "3157a92dd6294145d8ba31495b14ed8b55f770cf386483d333182a3032f20071",
                "cb92ba47ee422b6379e43be388b260a618395a7151e7d7e83bd5cac8ebc86bd8",
                "989523fa6fe00ebd709b1ec269a7ffcdaec342624f9f508c006e130f919822c0",
            ]
        );
    }

    #[test]
    fn a_manifest_that_says_a_billion_objects_is_refused_at_once() {
        let mut encoder = Encoder::default();
        closure().root.encode(&mut encoder);
        encoder.raw(&[1; 32]);
        (0..3).for_each(|_| encoder.integer(0));
        encoder.integer(1 << 60);
        assert_eq!(Closure::from_canonical(&encoder.finish()), Err(DecodeError::Truncated));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Sealed::<Closure>::from_bytes(&[b"srp closure 1\n", &bytes[..]].concat());
            let _ = Closure::from_canonical(&bytes);
            let _ = ObjectRecord::from_canonical(&bytes);
        }
    }
}
