//! Digests: BLAKE3 in one newtype per thing it identifies.
//!
//! File contents are hashed with plain BLAKE3, so that `b3sum` prints the same digits. Everything
//! else is hashed by [`Domain`]-separated `derive_key`, so that no encoding of one kind can ever
//! be taken for another. This file does no I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base32;

/// What a derived hash is about. Each is a BLAKE3 `derive_key` context: a constant that is never
/// reused for another meaning. Changing the bytes that go in means a new context here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A directory's sorted entries ([`crate::tree::Directory`]).
    Directory,
    /// A store object ([`crate::object::Object`]).
    Object,
    /// A derivation with its inputs as derivation hashes.
    Static,
    /// A derivation with its inputs as object ids.
    Resolved,
    /// A record on disk with the name of its file (a checksum, not an identity).
    NamedRecord,
    /// A record that is bound to no name (a checksum, not an identity).
    Record,
    /// An evaluation's key.
    Evaluation,
    /// The id of a public key.
    PublicKey,
    /// What a derivation came out as, as a builder states it to others.
    Statement,
    /// A closure manifest of a binary cache.
    Closure,
    /// The newest closure manifest of a root in a binary cache.
    Pointer,
    /// An object's record in a binary cache (a checksum, not an identity).
    ObjectRecord,
    /// The name under which a machine remembers a binary cache.
    CacheAddress,
    /// What an export says of itself (a checksum, not an identity).
    ExportContents,
}

impl Domain {
    /// The context string, as `b3sum --derive-key` takes it.
    pub const fn context(self) -> &'static str {
        match self {
            Domain::Directory => "srp directory v1",
            Domain::Object => "srp object v1",
            Domain::Static => "srp static derivation v1",
            Domain::Resolved => "srp resolved derivation v1",
            Domain::NamedRecord => "srp record v2",
            Domain::Record => "srp record v1",
            Domain::Evaluation => "srp evaluation v1",
            Domain::PublicKey => "srp public key v1",
            Domain::Statement => "srp statement v1",
            Domain::Closure => "srp closure manifest v1",
            Domain::Pointer => "srp root pointer v1",
            Domain::ObjectRecord => "srp cached object v1",
            Domain::CacheAddress => "srp cache address v1",
            Domain::ExportContents => "srp export contents v1",
        }
    }

    /// Hashes `bytes` in this domain.
    pub fn hash(self, bytes: &[u8]) -> [u8; 32] {
        blake3::derive_key(self.context(), bytes)
    }
}

/// Text that is not the hash it was said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct ParseHashError {
    text: String,
    what: &'static str,
}

macro_rules! hex_hash {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// The 32 bytes, most significant first.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// A hash that was computed or decoded elsewhere.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text)
                    .map(Self)
                    .ok_or_else(|| ParseHashError { text: text.to_owned(), what: $what })
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> String {
                hash.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseHashError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}

hex_hash!(
    /// The BLAKE3 digest of a file's bytes, or the Merkle digest of a directory.
    Digest,
    "64 hexadecimal digits"
);
hex_hash!(
    /// A derivation's hash with its inputs named by *their* static hashes: known before anything
    /// is built.
    StaticHash,
    "a static derivation hash (64 hexadecimal digits)"
);
hex_hash!(
    /// A derivation's hash with its inputs named by the objects chosen for them.
    ResolvedHash,
    "a resolved derivation hash (64 hexadecimal digits)"
);
hex_hash!(
    /// The SHA-256 of a fetched file, as its publisher states it.
    Sha256,
    "a SHA-256 (64 hexadecimal digits)"
);

impl Digest {
    /// The plain BLAKE3 of a file's bytes.
    pub fn of_file(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

/// A store object's id: 160 bits, written as 32 base-32 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectId([u8; ObjectId::LENGTH]);

impl ObjectId {
    /// Length in bytes.
    pub const LENGTH: usize = 20;
    /// Length in characters.
    pub const TEXT_LENGTH: usize = 32;

    /// The first 160 bits of a 256-bit hash.
    pub fn truncate(hash: [u8; 32]) -> ObjectId {
        let mut id = [0; Self::LENGTH];
        id.copy_from_slice(&hash[..Self::LENGTH]);
        ObjectId(id)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// An id that was decoded elsewhere.
    pub const fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

impl FromStr for ObjectId {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        base32::decode(text)
            .map(ObjectId)
            .ok_or_else(|| ParseHashError { text: text.to_owned(), what: "an object id" })
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for ObjectId {
    type Error = ParseHashError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Only lower-case digits: one hash has one spelling.
fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_digest_is_what_b3sum_prints() {
        assert_eq!(
            Digest::of_file(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn text_forms_round_trip_and_have_one_spelling() {
        let digest = Digest::of_file(b"srp");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
        assert!("00".parse::<Digest>().is_err());

        let id = ObjectId::truncate(*digest.as_bytes());
        assert_eq!(id.to_string().len(), ObjectId::TEXT_LENGTH);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<ObjectId>().is_err());
    }

    #[test]
    fn domains_separate() {
        assert_ne!(Domain::Static.hash(b"x"), Domain::Resolved.hash(b"x"));
    }
}
