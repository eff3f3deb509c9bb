//! The one file that names bincode and sled: records, and the index.
//!
//! A record is `srp`, a kind byte, a version byte, the first 8 bytes of BLAKE3 (domain *record*)
//! over what follows, and that: the value as bincode 2 (fixed-width little-endian integers,
//! bounded). Decoding never panics and never allocates more than the record's length implies.
//!
//! The index is a sled database of what files already say, arranged for questions that would
//! otherwise read all of them. It is off the hot path, opened by whoever gets there first, and
//! every command works without it.

use std::path::{Path, PathBuf};

use bincode::config;

use crate::digest::Domain;
use crate::encode::Canonical;
use crate::object::Object;
use crate::realisation::{Claim, Realisation};

/// No record is larger: a bound for decoding, far above any real one.
const LIMIT_BYTES: usize = 64 << 20;
const HEADER: usize = 13;
const VERSION: u8 = 1;

/// A value that has a file of its own.
pub(crate) trait Record: Sized {
    /// Tells records of different kinds apart.
    const KIND: u8;
    /// What the bincode is of.
    type Stored: bincode::Encode + bincode::Decode<()>;
    fn to_stored(&self) -> Self::Stored;
    fn from_stored(stored: Self::Stored) -> Result<Self, String>;
}

/// The record's bytes.
pub(crate) fn encode<R: Record>(record: &R) -> Vec<u8> {
    let body =
        bincode::encode_to_vec(record.to_stored(), config::standard().with_fixed_int_encoding())
            .expect("encoding to memory can't fail");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(b"srp");
    bytes.push(R::KIND);
    bytes.push(VERSION);
    bytes.extend_from_slice(&Domain::Record.hash(&body)[..8]);
    bytes.extend_from_slice(&body);
    bytes
}

/// The record that `bytes` are, or what is wrong with them.
pub(crate) fn decode<R: Record>(bytes: &[u8]) -> Result<R, String> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err("it is truncated".to_owned());
    };
    match header {
        [b's', b'r', b'p', kind, VERSION, ..] if *kind == R::KIND => {}
        [b's', b'r', b'p', kind, version, ..] if *kind == R::KIND => {
            return Err(format!("it has version {version}, and this srp knows {VERSION}"));
        }
        _ => return Err("it is no such record".to_owned()),
    }
    if header[5..] != Domain::Record.hash(body)[..8] {
        return Err("its checksum is wrong".to_owned());
    }
    let config = config::standard().with_fixed_int_encoding().with_limit::<LIMIT_BYTES>();
    let (stored, used) =
        bincode::decode_from_slice(body, config).map_err(|error| error.to_string())?;
    if used != body.len() {
        return Err("it goes on after its end".to_owned());
    }
    R::from_stored(stored)
}

/// An object's info record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The object's identity.
    pub object: Object,
    /// The sum of its files' lengths.
    pub size_bytes: u64,
}

impl Record for Info {
    const KIND: u8 = b'i';
    type Stored = (Vec<u8>, u64);

    fn to_stored(&self) -> Self::Stored {
        (self.object.to_canonical(), self.size_bytes)
    }

    fn from_stored((object, size_bytes): Self::Stored) -> Result<Self, String> {
        let object = Object::from_canonical(&object).map_err(|error| error.to_string())?;
        Ok(Info { object, size_bytes })
    }
}

impl Record for Realisation {
    const KIND: u8 = b'r';
    type Stored = Vec<u8>;

    fn to_stored(&self) -> Self::Stored {
        self.to_canonical()
    }

    fn from_stored(stored: Self::Stored) -> Result<Self, String> {
        Realisation::from_canonical(&stored).map_err(|error| error.to_string())
    }
}

impl Record for Claim {
    const KIND: u8 = b's';
    type Stored = Vec<u8>;

    fn to_stored(&self) -> Self::Stored {
        self.to_canonical()
    }

    fn from_stored(stored: Self::Stored) -> Result<Self, String> {
        Claim::from_canonical(&stored).map_err(|error| error.to_string())
    }
}

/// What an earlier build of the same name took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct History {
    /// Wall time of the last build.
    pub milliseconds: u64,
    /// The most memory it held at once.
    pub peak_memory_bytes: u64,
}

/// The index: build history.
///
/// Nobody waits for it: if another process has it open, or it is damaged, there is none.
#[derive(Debug)]
pub struct Index {
    history: sled::Tree,
}

impl Index {
    /// Opens the index in `directory`, or says why there is none for now.
    pub fn open(directory: &Path) -> Result<Index, IndexError> {
        let unavailable = |source| IndexError { path: directory.to_owned(), source };
        let database = sled::Config::new()
            .path(directory)
            .cache_capacity(4 << 20)
            .flush_every_ms(None)
            .open()
            .map_err(unavailable)?;
        Ok(Index { history: database.open_tree("history").map_err(unavailable)? })
    }

    /// What the last build called `key` took. Damage reads as nothing known.
    pub fn history(&self, key: &str) -> Option<History> {
        let bytes = self.history.get(key).ok()??;
        Some(bincode::decode_from_slice(&bytes, config::standard()).ok()?.0)
    }

    /// Remembers what a build called `key` took.
    pub fn remember(&self, key: &str, history: History) {
        let bytes = bincode::encode_to_vec(history, config::standard())
            .expect("encoding to memory can't fail");
        if let Err(error) = self.history.insert(key, bytes) {
            tracing::debug!(%error, "the index doesn't remember a build");
        }
    }

    /// Writes what was remembered. A failure loses only the index's newest entries.
    pub fn flush(&self) {
        if let Err(error) = self.history.flush() {
            tracing::debug!(%error, "the index can't be written");
        }
    }
}

/// Why there is no index for now.
#[derive(Debug, thiserror::Error)]
#[error("the index {} can't be opened", path.display())]
pub struct IndexError {
    path: PathBuf,
    source: sled::Error,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Digest;

    fn info() -> Info {
        let object = Object {
            name: "musl".parse().expect("a name"),
            tree: Digest::of_file(b"tree"),
            references: [].into(),
            permissions: [].into(),
        };
        Info { object, size_bytes: 7 }
    }

    #[test]
    fn a_record_is_read_back_and_every_flipped_bit_is_noticed() {
        let bytes = encode(&info());
        assert_eq!(decode(&bytes), Ok(info()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Info>(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode::<Info>(&bytes[..length]).is_err(), "length {length}");
        }
        assert!(decode::<Claim>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(body: Vec<u8>) {
            let mut bytes = b"srpi\x01".to_vec();
            bytes.extend_from_slice(&Domain::Record.hash(&body)[..8]);
            bytes.extend_from_slice(&body);
            let _ = decode::<Info>(&bytes);
        }
    }

    #[test]
    fn the_index_answers_and_a_second_one_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let index = Index::open(directory.path()).expect("a fresh index");
        index.remember("musl", History { milliseconds: 9, peak_memory_bytes: 1 });
        assert_eq!(index.history("musl").map(|history| history.milliseconds), Some(9));
        assert_eq!(index.history("gcc"), None);
        assert!(Index::open(directory.path()).is_err());
    }
}
