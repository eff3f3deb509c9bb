//! Sealed files: a value, and who answers for it.
//!
//! ```text
//! srp <kind> 1\n                        a line that says what the file is
//! "ed25519", key id, signature          or "unsigned", 32 bytes of checksum
//! length                                of the payload: 8 bytes, little endian
//! payload                               the value's canonical encoding; of a manifest, as zstd
//! ```
//!
//! What is signed is the payload's digest in its kind's own [`Domain`], so that a signature of one
//! kind is nothing on another. A value comes out by [`Sealed::open`] only, which says who signed.
//! Pure: no I/O, no panic, and nothing decoded that is larger than the kind's limit.

use std::collections::BTreeMap;

use crate::cache::key::{KeyId, PublicKey, SecretKey};
use crate::cache::limited::decompress;
use crate::digest::Domain;
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};

/// The level manifests are compressed with: they are small, and written once.
const LEVEL: i32 = 9;

/// A value that is kept in a sealed file.
pub trait Sealable: Canonical {
    /// What the file's first line calls it.
    const KIND: &'static str;
    /// The domain of its digest.
    const DOMAIN: Domain;
    /// The most bytes that its encoding may have.
    const LIMIT_BYTES: u64;
    /// Whether it is compressed.
    const COMPRESSED: bool;
}

/// A value with its seal, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<T> {
    value: T,
    digest: [u8; 32],
    seal: Seal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seal {
    Unsigned,
    Signed { key: KeyId, signature: [u8; 64] },
}

/// A sealed value that is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key that signed is not among those asked for.
    #[error("it is signed by the unknown key {key}")]
    UnknownKey {
        /// The key's id.
        key: KeyId,
    },
    /// The signature doesn't fit.
    #[error("the signature by {name} ({key}) is wrong")]
    Wrong {
        /// The key's name.
        name: String,
        /// The key's id.
        key: KeyId,
    },
}

impl<T: Sealable> Sealed<T> {
    /// Seals a value: signed, or with a checksum only.
    pub fn new(value: T, key: Option<&SecretKey>) -> Sealed<T> {
        let digest = T::DOMAIN.hash(&value.to_canonical());
        let seal = match key {
            Some(key) => Seal::Signed { key: key.public().id(), signature: key.sign(&digest) },
            None => Seal::Unsigned,
        };
        Sealed { value, digest, seal }
    }

    /// The key that the file says signed it.
    pub fn signer(&self) -> Option<KeyId> {
        match self.seal {
            Seal::Signed { key, .. } => Some(key),
            Seal::Unsigned => None,
        }
    }

    /// The digest of the value's encoding, in its domain.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The value, if its signature is by one of `keys`, with that key; or with none if nobody
    /// signed it, which the caller has to judge.
    pub fn open(
        self,
        keys: &BTreeMap<KeyId, PublicKey>,
    ) -> Result<(T, Option<&PublicKey>), SealError> {
        let key = self.check(keys)?;
        Ok((self.value, key))
    }

    /// As [`Sealed::open`], without giving the value away.
    pub fn check<'k>(
        &self,
        keys: &'k BTreeMap<KeyId, PublicKey>,
    ) -> Result<Option<&'k PublicKey>, SealError> {
        let Seal::Signed { key, signature } = &self.seal else { return Ok(None) };
        let public = keys.get(key).ok_or(SealError::UnknownKey { key: *key })?;
        if public.id() == *key && public.verifies(&self.digest, signature) {
            Ok(Some(public))
        } else {
            Err(SealError::Wrong { name: public.name().to_string(), key: *key })
        }
    }

    /// What the file says, whoever wrote it: for counting, listing and naming only.
    pub fn unverified(&self) -> &T {
        &self.value
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let payload = self.value.to_canonical();
        let mut encoder = Encoder::default();
        encoder.raw(first_line::<T>().as_bytes());
        match &self.seal {
            Seal::Unsigned => {
                encoder.text("unsigned");
                encoder.raw(&self.digest);
            }
            Seal::Signed { key, signature } => {
                encoder.text("ed25519");
                key.encode(&mut encoder);
                encoder.raw(signature);
            }
        }
        encoder.integer(payload.len() as u64);
        if T::COMPRESSED {
            let packed = zstd::bulk::compress(&payload, LEVEL).expect("memory can be compressed");
            encoder.raw(&packed);
        } else {
            encoder.raw(&payload);
        }
        encoder.finish()
    }

    /// The sealed value that `bytes` are. An unsigned one's checksum is checked here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Sealed<T>, DecodeError> {
        let invalid = |reason: &str| DecodeError::Invalid { reason: reason.to_owned() };
        let rest = bytes
            .strip_prefix(first_line::<T>().as_bytes())
            .ok_or_else(|| invalid("it is no such file, or of another version"))?;
        let mut decoder = Decoder::new(rest);
        let (seal, checksum) = match decoder.text()? {
            "unsigned" => (Seal::Unsigned, Some(decoder.array()?)),
            "ed25519" => {
                let key = KeyId::decode(&mut decoder)?;
                (Seal::Signed { key, signature: decoder.array()? }, None)
            }
            tag => return Err(DecodeError::UnknownVariant { tag: tag.to_owned() }),
        };
        let length = decoder.integer()?;
        if length > T::LIMIT_BYTES {
            return Err(invalid("it is larger than any such file may be"));
        }
        let payload = decoder.rest();
        let decompressed;
        let payload = if T::COMPRESSED {
            decompressed = decompress(payload, length)
                .map_err(|error| DecodeError::Invalid { reason: error.to_string() })?;
            &decompressed
        } else if payload.len() as u64 == length {
            payload
        } else {
            return Err(invalid("its length is another than it says"));
        };
        let digest = T::DOMAIN.hash(payload);
        if checksum.is_some_and(|checksum: [u8; 32]| checksum != digest) {
            return Err(invalid("its checksum is wrong"));
        }
        Ok(Sealed { value: T::from_canonical(payload)?, digest, seal })
    }
}

pub(crate) fn first_line<T: Sealable>() -> String {
    format!("srp {} 1\n", T::KIND)
}
