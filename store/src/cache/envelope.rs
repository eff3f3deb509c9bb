//! Envelopes: signed documents in a form that other tools read.
//!
//! DSSE, the Dead Simple Signing Envelope (<https://github.com/secure-systems-lab/dsse>, version
//! 1.0.0): JSON with a payload in base 64, its type, and signatures. What is signed is the payload
//! with its type ([`pre_authentication_encoding`]), as bytes; nothing is canonicalised. It is for
//! documents that leave srp. What caches serve is signed as [`Sealed`](super::Sealed).
//!
//! The same keys sign both. Neither can pass for the other: of a sealed file 32 bytes of a hash
//! are signed, here a text that begins with `DSSEv1` and is longer.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use crate::cache::key::{KeyId, PublicKey, SecretKey};

/// The type of in-toto statements.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// A payload with its type, and signatures that are not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    #[serde(with = "text")]
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

/// A signature. The key's id is a hint, and authenticated by nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    #[serde(with = "text")]
    sig: Vec<u8>,
}

/// An envelope that is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// No signature is by a key that was asked for.
    #[error("nobody who is trusted signed it")]
    Untrusted,
    /// One says that it is, and isn't.
    #[error("the signature by {name} ({key}) is wrong")]
    Wrong {
        /// The key's name.
        name: String,
        /// The key's id.
        key: KeyId,
    },
    /// It holds something else than was asked for.
    #[error("it holds {found:?}, and {expected:?} is expected")]
    Type {
        /// What it says it holds.
        found: String,
        /// What was asked for.
        expected: String,
    },
}

const MOST_SIGNATURES: usize = 64;

impl Envelope {
    /// Seals a payload with one signature.
    pub fn new(payload_type: &str, payload: Vec<u8>, key: &SecretKey) -> Envelope {
        let sig = key.sign_bytes(&pre_authentication_encoding(payload_type, &payload)).to_vec();
        let signatures = vec![Signature { keyid: key.public().id().to_string(), sig }];
        Envelope { payload_type: payload_type.to_owned(), payload, signatures }
    }

    /// The payload, if it is of this type and signed by at least one of `keys`, with those that
    /// signed it. Signatures by others are passed over, and so are those after the first 64: each
    /// costs a hash of the payload for every key.
    pub fn open<'k>(
        &self,
        payload_type: &str,
        keys: &'k BTreeMap<KeyId, PublicKey>,
    ) -> Result<(&[u8], Vec<&'k PublicKey>), EnvelopeError> {
        let signed = pre_authentication_encoding(&self.payload_type, &self.payload);
        let signs = |key: &&PublicKey| {
            self.signatures.iter().take(MOST_SIGNATURES).any(|it| {
                <&[u8; 64]>::try_from(it.sig.as_slice())
                    .is_ok_and(|signature| key.verifies_bytes(&signed, signature))
            })
        };
        let by: Vec<&PublicKey> = keys.values().filter(signs).collect();
        if by.is_empty() {
            let claimed = self.signatures.iter().find_map(|it| keys.get(&it.keyid.parse().ok()?));
            return Err(match claimed {
                Some(key) => EnvelopeError::Wrong { name: key.name().to_string(), key: key.id() },
                None => EnvelopeError::Untrusted,
            });
        }
        if self.payload_type != payload_type {
            let (found, expected) = (self.payload_type.clone(), payload_type.to_owned());
            return Err(EnvelopeError::Type { found, expected });
        }
        Ok((&self.payload, by))
    }
}

/// What is signed of a payload of a type: DSSE's PAE.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let begin = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [begin.as_bytes(), payload].concat()
}

/// Bytes as base 64. Either alphabet is read, as DSSE demands, with padding or without.
mod text {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    use super::*;

    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&GeneralPurpose::new(&STANDARD, CONFIG).encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
        GeneralPurpose::new(alphabet, CONFIG).decode(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::statement::tests::{ring, secret};

    #[test]
    fn what_is_signed_is_what_the_specification_says() {
        // The example of DSSE's protocol.md.
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        // Lengths are of bytes.
        assert_eq!(pre_authentication_encoding("ä", b""), "DSSEv1 2 ä 0 ".as_bytes());
    }

    #[test]
    fn an_envelope_opens_for_whom_it_is_signed_by_and_no_changed_byte_passes() {
        let (key, other) = (secret("builder-1", 7), secret("builder-2", 8));
        let envelope = Envelope::new(IN_TOTO, b"{\"a\":1}".to_vec(), &key);
        let keys = ring(&[&key, &other]);
        let (payload, by) = envelope.open(IN_TOTO, &keys).expect("opened");
        assert_eq!((payload, by.len()), (&b"{\"a\":1}"[..], 1));
        assert_eq!(by[0].name().as_str(), "builder-1");
        assert_eq!(envelope.open(IN_TOTO, &ring(&[&other])), Err(EnvelopeError::Untrusted));
        let error = envelope.open("text/plain", &keys);
        assert!(matches!(error, Err(EnvelopeError::Type { .. })), "{error:?}");

        let json = serde_json::to_string(&envelope).expect("JSON");
        assert_eq!(serde_json::from_str::<Envelope>(&json).expect("read back"), envelope);
        let changed = |from: &str, to: &str| {
            assert!(json.contains(from), "{json}");
            let changed: Envelope = serde_json::from_str(&json.replace(from, to)).expect("JSON");
            changed.open(IN_TOTO, &keys).map(drop)
        };
        // `{"a":1}` and `{"a":2}`.
        let wrong = changed("eyJhIjoxfQ==", "eyJhIjoyfQ==");
        assert!(matches!(wrong, Err(EnvelopeError::Wrong { .. })), "{wrong:?}");
        let wrong = changed("in-toto+json", "in-toto+JSON");
        assert!(matches!(wrong, Err(EnvelopeError::Wrong { .. })), "{wrong:?}");
        // The id is a hint: another one changes nothing.
        let id = key.public().id().to_string();
        assert_eq!(changed(&id, &other.public().id().to_string()), Ok(()));
        assert_eq!(changed(&id, "nobody"), Ok(()));
        assert_eq!(changed("eyJhIjoxfQ==", "eyJhIjoxfQ"), Ok(()), "without padding");
        let mut short = envelope.clone();
        short.signatures[0].sig.pop();
        assert!(short.open(IN_TOTO, &keys).is_err());
    }

    #[test]
    fn both_alphabets_of_base_64_are_read() {
        for payload in ["+/8=", "-_8="] {
            let json = format!(r#"{{"payload":"{payload}","payloadType":"x","signatures":[]}}"#);
            let envelope: Envelope = serde_json::from_str(&json).expect("an envelope");
            assert_eq!(envelope.payload, [0xfb, 0xff]);
        }
    }
}
