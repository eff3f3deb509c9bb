//! Trees: what a directory's digest is made of.
//!
//! A directory is the list of its entries sorted by name, written as text that a shell can write
//! too (`docs/store-layout.md` has the script). Each entry is four NUL-terminated fields:
//!
//! | kind | second | third | fourth |
//! | --- | --- | --- | --- |
//! | `f` file, `x` executable file | size in decimal | BLAKE3 of the bytes in hexadecimal | name |
//! | `d` directory | *(empty)* | digest of its encoding | name |
//! | `l` symlink | *(empty)* | the text it points to | name |
//!
//! The digest is BLAKE3 `derive_key` of that text under [`Domain::Directory`]. Digests of
//! directories are thus a Merkle root: subtrees are recognised and checked alone. Owners, times
//! and any other mode bit are no part of it. This file does no I/O.

use std::collections::BTreeMap;
use std::fmt;

use crate::digest::{Digest, Domain};

/// The modification time of everything that srp writes: the start of 1980-01-02, in seconds since
/// 1970. It is in no digest. Zip archives hold no time before 1980, and hold local times, so that it
/// must not be the first day of that year.
pub const TREE_TIME_SECONDS: i64 = 315_619_200;
/// As many directories may lie in one another, the top one counted: a path has no more names than
/// that. What walks trees may recurse so deep, and whatever lets trees in refuses deeper ones: a
/// builder or an archive could nest them more deeply than any stack holds frames.
pub const MAX_DEPTH: usize = 256;

/// One directory: names in byte order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    entries: BTreeMap<Box<[u8]>, Entry>,
}

/// What a name in a directory stands for.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// A plain file.
    File {
        /// BLAKE3 of its bytes.
        digest: Digest,
        /// Its length; implied by the digest, kept so that plans need no `stat`.
        size_bytes: u64,
        /// Whether it can be executed; no other mode bit is kept.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Its text, not empty, without NUL.
        target: Box<[u8]>,
    },
    /// A directory.
    Directory {
        /// The digest of its own encoding.
        digest: Digest,
    },
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::File { digest, size_bytes, executable } => {
                write!(f, "{} {size_bytes} {digest}", if *executable { 'x' } else { 'f' })
            }
            Entry::Symlink { target } => write!(f, "l {:?}", String::from_utf8_lossy(target)),
            Entry::Directory { digest } => write!(f, "d {digest}"),
        }
    }
}

/// Bytes that are no directory, or a name that can't be in one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name is empty, `.`, `..`, or holds `/` or NUL.
    #[error("{name:?} can't be a name in a directory")]
    Name {
        /// The name, made printable.
        name: String,
    },
    /// A symlink's text is empty or holds NUL.
    #[error("{name:?} can't be a symlink to {target:?}")]
    Target {
        /// The link's name, made printable.
        name: String,
        /// Its text, made printable.
        target: String,
    },
    /// The encoding ends early, or a field is not what the format says.
    #[error("the directory's encoding is broken at entry {entry}")]
    Malformed {
        /// Counted from 0.
        entry: usize,
    },
    /// Names are out of order or twice.
    #[error("the directory's names are out of order at {name:?}")]
    Unordered {
        /// The second of the two names, made printable.
        name: String,
    },
}

impl Directory {
    /// Puts an entry under `name`, replacing what was there.
    pub fn insert(&mut self, name: &[u8], entry: Entry) -> Result<(), TreeError> {
        if name.is_empty()
            || name == b"."
            || name == b".."
            || name.iter().any(|b| b"/\0".contains(b))
        {
            return Err(TreeError::Name { name: printable(name) });
        }
        if let Entry::Symlink { target } = &entry
            && (target.is_empty() || target.contains(&0))
        {
            return Err(TreeError::Target { name: printable(name), target: printable(target) });
        }
        self.entries.insert(name.into(), entry);
        Ok(())
    }

    /// Takes the entry under `name` out.
    pub fn remove(&mut self, name: &[u8]) -> Option<Entry> {
        self.entries.remove(name)
    }

    /// The entry under `name`.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All entries in byte order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(name, entry)| (&**name, entry))
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The text that is hashed.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.entries.len() * 96);
        for (name, entry) in &self.entries {
            let (kind, size, value) = match entry {
                Entry::File { digest, size_bytes, executable } => (
                    if *executable { "x" } else { "f" },
                    size_bytes.to_string(),
                    digest.to_string().into_bytes(),
                ),
                Entry::Directory { digest } => {
                    ("d", String::new(), digest.to_string().into_bytes())
                }
                Entry::Symlink { target } => ("l", String::new(), target.to_vec()),
            };
            for field in [kind.as_bytes(), size.as_bytes(), &value, name] {
                text.extend_from_slice(field);
                text.push(0);
            }
        }
        text
    }

    /// The directory that is encoded by exactly `text`.
    pub fn decode(text: &[u8]) -> Result<Directory, TreeError> {
        let mut directory = Directory::default();
        let Some(fields) = text.strip_suffix(b"\0") else {
            return if text.is_empty() {
                Ok(directory)
            } else {
                Err(TreeError::Malformed { entry: 0 })
            };
        };
        let fields: Vec<&[u8]> = fields.split(|byte| *byte == 0).collect();
        for (index, fields) in fields.chunks(4).enumerate() {
            let malformed = || TreeError::Malformed { entry: index };
            let [kind, size, value, name] = fields else { return Err(malformed()) };
            let utf8 = |bytes| std::str::from_utf8(bytes).ok();
            let digest = || utf8(value).and_then(|hex| hex.parse().ok()).ok_or_else(malformed);
            let size_bytes = || {
                let size_bytes: u64 = utf8(size).and_then(|text| text.parse().ok())?;
                (size_bytes.to_string().as_bytes() == *size).then_some(size_bytes)
            };
            let entry = match (*kind, size.is_empty()) {
                (b"f" | b"x", false) => Entry::File {
                    digest: digest()?,
                    size_bytes: size_bytes().ok_or_else(malformed)?,
                    executable: *kind == b"x",
                },
                (b"d", true) => Entry::Directory { digest: digest()? },
                (b"l", true) => Entry::Symlink { target: (*value).into() },
                _ => return Err(malformed()),
            };
            if directory.entries.last_key_value().is_some_and(|(last, _)| **last >= **name) {
                return Err(TreeError::Unordered { name: printable(name) });
            }
            directory.insert(name, entry)?;
        }
        Ok(directory)
    }

    /// The digest of the whole tree below.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(Domain::Directory.hash(&self.encode()))
    }
}

/// Bytes of a path as they can be shown in a message.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Directory {
        let mut directory = Directory::default();
        let digest = Digest::of_file(b"hello\n");
        for (name, entry) in [
            ("hello", Entry::File { digest, size_bytes: 6, executable: false }),
            ("run", Entry::File { digest, size_bytes: 6, executable: true }),
            ("to", Entry::Symlink { target: (*b"../hello").into() }),
            ("empty", Entry::Directory { digest: Directory::default().digest() }),
        ] {
            directory.insert(name.as_bytes(), entry).expect("a valid entry");
        }
        directory
    }

    #[test]
    fn golden() {
        assert_eq!(
            Directory::default().digest().to_string(),
            blake3::Hash::from(blake3::derive_key("srp directory v1", b"")).to_hex().to_string()
        );
        assert_eq!(
            String::from_utf8(sample().encode()).expect("text").replace('\0', "|"),
            "d||42c4ee9d13c8d6427fb3d2f29c5d1bfe9dba6bc6a9b54c8a7f06b9ab92f0b2c0|empty|".replace(
                "42c4ee9d13c8d6427fb3d2f29c5d1bfe9dba6bc6a9b54c8a7f06b9ab92f0b2c0",
                &Directory::default().digest().to_string()
            ) + "f|6|38d9c7d7c5ab4e0ee52ed0e3fcd32c9dd1ccd7d5d4dbb1ff7a7f4e5cb2a3b9a1|hello|"
                .replace(
                    "38d9c7d7c5ab4e0ee52ed0e3fcd32c9dd1ccd7d5d4dbb1ff7a7f4e5cb2a3b9a1",
                    &Digest::of_file(b"hello\n").to_string()
                )
                .as_str()
                + &format!("x|6|{}|run|l||../hello|to|", Digest::of_file(b"hello\n"))
        );
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        assert_eq!(Directory::decode(&sample().encode()), Ok(sample()));
        assert_eq!(Directory::decode(b""), Ok(Directory::default()));
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            let entry = Entry::Symlink { target: (*b"x").into() };
            assert!(Directory::default().insert(name, entry).is_err());
        }
        assert!(matches!(Directory::decode(b"l\0\0x\0..\0"), Err(TreeError::Name { .. })));
        assert!(matches!(
            Directory::decode(b"l\0\0x\0b\0l\0\0x\0a\0"),
            Err(TreeError::Unordered { .. })
        ));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_have_one_encoding(
            fields in prop::collection::vec("[fxdl]|[0-9]{0,3}|[a-z./]{0,4}|[0-9a-f]{64}", 0..12)
        ) {
            let text = fields.iter().flat_map(|f| [f.as_bytes(), b"\0"]).collect::<Vec<_>>().concat();
            if let Ok(directory) = Directory::decode(&text) {
                prop_assert_eq!(directory.encode(), text);
            }
        }
    }
}
