//! The canonical encoding: the bytes that are hashed.
//!
//! Written by hand and frozen by golden tests, so that no upgrade of a serialiser can move an
//! identity. The rules:
//!
//! - an integer is 8 bytes, little endian; a boolean is the integer 0 or 1;
//! - bytes and text are their length as an integer, then the bytes; text is UTF-8;
//! - a list is its length as an integer, then its items; a map is a list of (key, value) in key
//!   order; a set is a list in order; an option is a list of none or one;
//! - a variant is its tag as text, then its fields; a record is its fields in the order documented
//!   where it implements [`Canonical`];
//! - hashes and ids are their raw bytes, of fixed length.
//!
//! Decoding is strict (one value, one encoding), bounded by the input's length and never panics.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};

/// A value with one canonical encoding.
pub trait Canonical: Sized {
    /// Appends the value's encoding.
    fn encode(&self, to: &mut Encoder);
    /// Reads the value that `encode` wrote.
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// The encoding as bytes.
    fn to_canonical(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        self.encode(&mut encoder);
        encoder.bytes
    }

    /// The value that is encoded by exactly `bytes`.
    fn from_canonical(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        let value = Self::decode(&mut decoder)?;
        if decoder.rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing) }
    }
}

/// Collects an encoding.
#[derive(Default, Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An integer: 8 bytes, little endian.
    pub fn integer(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.integer(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Length, then UTF-8.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Bytes of a length that both sides know.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What was encoded.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bytes that are no canonical encoding of what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends in the middle of a value.
    #[error("it ends in the middle of a value")]
    Truncated,
    /// The input goes on after the value.
    #[error("it goes on after its end")]
    Trailing,
    /// Text is not UTF-8.
    #[error("text in it is not UTF-8")]
    NotUtf8,
    /// Items of a map or set are out of order or twice.
    #[error("items in it are out of order")]
    Unordered,
    /// A variant's tag is unknown.
    #[error("it has an unknown variant {tag:?}")]
    UnknownVariant {
        /// The tag found.
        tag: String,
    },
    /// A value breaks its type's rule.
    #[error("a value in it is invalid: {reason}")]
    Invalid {
        /// Which rule, as the type's own error says it.
        reason: String,
    },
}

/// Reads an encoding from its beginning.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads `bytes` from their beginning.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Bytes of a known length.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// Bytes of a length known at compile time.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// An integer.
    pub fn integer(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Length, then the bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.integer()?).map_err(|_| DecodeError::Truncated)?;
        self.raw(length)
    }

    /// Length, then UTF-8.
    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::NotUtf8)
    }
}

macro_rules! canonical_hash {
    ($($hash:ident),*) => {$(
        impl Canonical for $hash {
            fn encode(&self, to: &mut Encoder) {
                to.raw(self.as_bytes());
            }
            fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                from.array().map($hash::from_bytes)
            }
        }
    )*};
}

canonical_hash!(Digest, StaticHash, ResolvedHash, Sha256, ObjectId);

impl Canonical for u64 {
    fn encode(&self, to: &mut Encoder) {
        to.integer(*self);
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        from.integer()
    }
}

impl Canonical for bool {
    fn encode(&self, to: &mut Encoder) {
        to.integer(u64::from(*self));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match from.integer()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Invalid { reason: format!("{other} is no boolean") }),
        }
    }
}

impl Canonical for String {
    fn encode(&self, to: &mut Encoder) {
        to.text(self);
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        from.text().map(str::to_owned)
    }
}

impl<A: Canonical, B: Canonical> Canonical for (A, B) {
    fn encode(&self, to: &mut Encoder) {
        self.0.encode(to);
        self.1.encode(to);
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok((A::decode(from)?, B::decode(from)?))
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.iter().len() as u64);
        self.iter().for_each(|item| item.encode(to));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        bool::decode(from)?.then(|| T::decode(from)).transpose()
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.len() as u64);
        self.iter().for_each(|item| item.encode(to));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        // No `with_capacity`: the length is the input's word, and every item takes bytes of it.
        (0..from.integer()?).map(|_| T::decode(from)).collect()
    }
}

impl<T: Canonical + Ord> Canonical for BTreeSet<T> {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.len() as u64);
        self.iter().for_each(|item| item.encode(to));
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let items = Vec::<T>::decode(from)?;
        if items.is_sorted_by(|a, b| a < b) {
            Ok(items.into_iter().collect())
        } else {
            Err(DecodeError::Unordered)
        }
    }
}

impl<K: Canonical + Ord, V: Canonical> Canonical for BTreeMap<K, V> {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.len() as u64);
        for (key, value) in self {
            key.encode(to);
            value.encode(to);
        }
    }
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let items = Vec::<(K, V)>::decode(from)?;
        if items.is_sorted_by(|a, b| a.0 < b.0) {
            Ok(items.into_iter().collect())
        } else {
            Err(DecodeError::Unordered)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Sample = (BTreeMap<String, Vec<u64>>, (Option<BTreeSet<String>>, bool));

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(value: Sample) {
            prop_assert_eq!(Sample::from_canonical(&value.to_canonical()), Ok(value));
        }

        #[test]
        fn foreign_bytes_never_panic_and_have_one_encoding(bytes: Vec<u8>) {
            if let Ok(value) = Sample::from_canonical(&bytes) {
                prop_assert_eq!(value.to_canonical(), bytes);
            }
        }
    }

    #[test]
    fn a_huge_length_is_an_error_not_an_allocation() {
        let bytes = u64::MAX.to_le_bytes();
        assert_eq!(Vec::<String>::from_canonical(&bytes), Err(DecodeError::Truncated));
        assert_eq!(String::from_canonical(&bytes), Err(DecodeError::Truncated));
    }

    #[test]
    fn golden() {
        let value: Sample =
            ([("k".to_owned(), vec![1])].into(), (Some(["s".to_owned()].into()), true));
        let words =
            |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            words(&value.to_canonical()),
            "0100000000000000010000000000000".to_owned()
                + "06b01000000000000000100000000000000"
                + "01000000000000000100000000000000010000000000000073"
                + "0100000000000000"
        );
    }
}
