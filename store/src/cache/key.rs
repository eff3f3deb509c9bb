//! Keys: ed25519 pairs, how they are written, and how a secret one is read from its file.
//!
//! A public key is `NAME:BASE64`, a secret one `srp-secret-key:NAME:BASE64` (of its 32-byte seed),
//! so that neither can be pasted for the other. The name says whose key it is; the id is a hash.
//! A secret key is wiped from memory when it is dropped, and never printed by `Debug`.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::base32;
use crate::digest::{Domain, ObjectId};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::Name;
use crate::staged::Staged;

const SECRET_PREFIX: &str = "srp-secret-key:";
/// No key file is longer: a name, 44 characters of base 64 and what stands between.
const MAX_FILE_BYTES: u64 = 512;

/// The public half of a key: what others trust.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey {
    name: Name,
    key: VerifyingKey,
}

/// The secret half of a key: what signs.
pub struct SecretKey {
    name: Name,
    key: SigningKey,
}

/// A public key's id: 160 bits of a hash over it, written as 32 base-32 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct KeyId([u8; ObjectId::LENGTH]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no key of this kind. It is not repeated: it may be secret.
    #[error("this is not a {kind} key: it is not of the form {form}")]
    Text {
        /// `public` or `secret`.
        kind: &'static str,
        /// What it should look like.
        form: &'static str,
    },
    /// The text is no key's id.
    #[error("{text:?} is not a key's id (32 characters)")]
    Id {
        /// The text.
        text: String,
    },
    /// A secret key's file can be read by others.
    #[error("the secret key {} has mode {mode:04o}: others could read it; make it 0600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret key's file belongs to somebody else.
    #[error("the secret key {} belongs to user {owner}, and you are user {user}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The caller's uid.
        user: u32,
    },
    /// A new key would replace another.
    #[error("there is a key {name} already: {}", path.display())]
    Exists {
        /// Its name.
        name: Name,
        /// The file.
        path: PathBuf,
    },
    /// A key's file holds no key: one that was torn by a crash, for instance.
    #[error("{} holds no {kind} key", path.display())]
    Malformed {
        /// `public` or `secret`.
        kind: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("can't {action} the key {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers to make a key of")]
    Random {
        /// What it said.
        source: getrandom::Error,
    },
}

impl PublicKey {
    /// Whose key it is.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The key's id. The name is no part of it.
    pub fn id(&self) -> KeyId {
        let hash = Domain::PublicKey.hash(self.key.as_bytes());
        let mut id = [0; ObjectId::LENGTH];
        id.copy_from_slice(&hash[..ObjectId::LENGTH]);
        KeyId(id)
    }

    /// Whether `signature` is this key's on `digest`. Weak keys verify nothing.
    pub(crate) fn verifies(&self, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        self.verifies_bytes(digest, signature)
    }

    /// The same, of bytes that say themselves what they are.
    pub(crate) fn verifies_bytes(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
    }
}

impl SecretKey {
    /// A new key.
    pub fn generate(name: Name) -> Result<SecretKey, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|source| KeyError::Random { source })?;
        Ok(SecretKey { name, key: SigningKey::from_bytes(&seed) })
    }

    /// Reads a secret key's file, which must be the caller's own and mode 0600 or 0400.
    pub fn read(path: &Path) -> Result<SecretKey, KeyError> {
        let failed = |source| KeyError::Io { action: "read", path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.mode() & 0o077 != 0 {
            return Err(KeyError::Mode { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
        }
        let (owner, user) = (metadata.uid(), nix::unistd::geteuid().as_raw());
        if owner != user {
            return Err(KeyError::Owner { path: path.to_owned(), owner, user });
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize));
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
        let malformed = |_| KeyError::Malformed { kind: "secret", path: path.to_owned() };
        text.trim_end().parse().map_err(malformed)
    }

    /// Writes the key to a new file of mode 0600, whole or not at all. A file that is there is not
    /// replaced.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let seed = Zeroizing::new(self.key.to_bytes());
        let base64 = Zeroizing::new(STANDARD.encode(*seed));
        let text = Zeroizing::new(format!("{SECRET_PREFIX}{}:{}\n", self.name, *base64));
        let path = path.to_owned();
        let written = Staged::beside(&path, 0o600).and_then(|mut staged| {
            staged.write_all(text.as_bytes())?;
            staged.place_new_synced(&path)
        });
        match written {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(KeyError::Exists { name: self.name.clone(), path })
            }
            Err(source) => Err(KeyError::Io { action: "write", path, source }),
            Ok(()) => Ok(()),
        }
    }

    /// Whose key it is.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What others are given to trust it.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    pub(crate) fn sign(&self, digest: &[u8; 32]) -> [u8; 64] {
        self.sign_bytes(digest)
    }

    /// Signs bytes that can't be taken for anything else that this key signs: whoever calls this
    /// says why.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let form = "srp-secret-key:NAME:BASE64";
        let parse = || {
            let (name, base64) = text.strip_prefix(SECRET_PREFIX)?.split_once(':')?;
            Some((name.parse().ok()?, decode(base64)?))
        };
        let (name, seed) = parse().ok_or(KeyError::Text { kind: "secret", form })?;
        Ok(SecretKey { name, key: SigningKey::from_bytes(&seed) })
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let parse = || {
            let (name, base64) = text.split_once(':')?;
            let key = VerifyingKey::from_bytes(&*decode(base64)?).ok()?;
            Some(PublicKey { name: name.parse().ok()?, key })
        };
        parse().ok_or(KeyError::Text { kind: "public", form: "NAME:BASE64" })
    }
}

fn decode(base64: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(base64).ok()?);
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() != key.len() {
        return None;
    }
    key.copy_from_slice(&bytes);
    Some(key)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl KeyId {
    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; ObjectId::LENGTH] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        base32::decode(text).map(KeyId).ok_or_else(|| KeyError::Id { text: text.to_owned() })
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl Canonical for KeyId {
    fn encode(&self, to: &mut Encoder) {
        to.raw(&self.0);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        from.array().map(KeyId)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sample() -> SecretKey {
        let seed = STANDARD.encode([7; 32]);
        format!("srp-secret-key:builder-1:{seed}").parse().expect("a key")
    }

    #[test]
    fn golden() {
        let public = sample().public();
        assert_eq!(public.to_string(), "builder-1:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=");
        assert_eq!(public.id().to_string(), "6hxf0k06pef80tymq4bpaz01k996x7kv");
        assert_eq!(public.to_string().parse::<PublicKey>().expect("a key"), public);
        assert_eq!(public.id().to_string().parse::<KeyId>().expect("an id"), public.id());
    }

    #[test]
    fn a_secret_key_is_read_only_from_a_file_of_ones_own_and_never_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        let key = SecretKey::generate("me".parse().expect("a name")).expect("a key");
        key.write(&path).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(SecretKey::read(&path).expect("read").public(), key.public());
        assert!(matches!(key.write(&path), Err(KeyError::Exists { .. })), "never replaced");
        assert_eq!(format!("{key:?}"), "SecretKey(me)");
        let torn = directory.path().join("torn");
        fs::write(&torn, "srp-secret-key:me:AAAA").expect("written");
        fs::set_permissions(&torn, fs::Permissions::from_mode(0o600)).expect("changed");
        let error = SecretKey::read(&torn).expect_err("torn").to_string();
        assert!(error.contains("torn holds no secret key") && !error.contains("AAAA"), "{error}");
        for mode in [0o644, 0o640, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            let error = SecretKey::read(&path).expect_err("refused").to_string();
            assert!(error.contains("make it 0600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_repeating_it() {
        let secret = format!("srp-secret-key:me:{}", STANDARD.encode([1; 32]));
        let error = secret.parse::<PublicKey>().expect_err("it is secret").to_string();
        assert!(!error.contains("me"), "{error}");
        for bad in ["", "me", "me:", "me:AAAA", ":AAAA", "m e:", "me:!!", "me:AAAA:AAAA"] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad:?}");
            assert!(format!("srp-secret-key:{bad}").parse::<SecretKey>().is_err(), "{bad:?}");
        }
    }
}
