//! The one file that names bincode and sled: records, and the index.
//!
//! A record is `srp`, a kind byte, a version byte, the first 8 bytes of BLAKE3 (domain *named
//! record*) over its file's name and what follows, and that: the value as bincode 2 (fixed-width
//! little-endian integers, bounded). Decoding never panics and never allocates more than the
//! record's length implies. In the checksum the name has no other place than before the value, and
//! all names of a kind are of one length: so a record in the place of another is damaged. Records of
//! version 1 are read, too; theirs leaves the name out (domain *record*).
//!
//! The index is a sled database of what files already say, arranged for questions that would
//! otherwise read all of them. It is off the hot path, opened by whoever gets there first, and
//! every command works without it.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bincode::config;
use nix::errno::Errno;

use crate::digest::Domain;
use crate::encode::Canonical;
use crate::files;
use crate::object::Object;
use crate::realisation::{Claim, Realisation};
use crate::store::Store;

/// No record is larger: a bound for decoding, far above any real one.
const LIMIT_BYTES: usize = 64 << 20;
const HEADER: usize = 13;
const VERSION: u8 = 2;

/// A value that has a file of its own.
pub(crate) trait Record: Sized {
    /// Tells records of different kinds apart.
    const KIND: u8;
    /// What the bincode is of.
    type Stored: bincode::Encode + bincode::Decode<()>;
    fn to_stored(&self) -> Self::Stored;
    fn from_stored(stored: Self::Stored) -> Result<Self, String>;
}

/// The bytes of a record whose file has this name.
pub(crate) fn encode<R: Record>(record: &R, name: &str) -> Vec<u8> {
    let body =
        bincode::encode_to_vec(record.to_stored(), config::standard().with_fixed_int_encoding())
            .expect("encoding to memory can't fail");
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(b"srp");
    bytes.push(R::KIND);
    bytes.push(VERSION);
    bytes.extend_from_slice(&Domain::NamedRecord.hash(&[name.as_bytes(), &body].concat())[..8]);
    bytes.extend_from_slice(&body);
    bytes
}

/// The record that the file of this name holds as `bytes`, or what is wrong with them.
pub(crate) fn decode<R: Record>(bytes: &[u8], name: &str) -> Result<R, String> {
    let Some((header, body)) = bytes.split_at_checked(HEADER) else {
        return Err("it is truncated".to_owned());
    };
    let checksum = match header {
        [b's', b'r', b'p', kind, VERSION, ..] if *kind == R::KIND => {
            Domain::NamedRecord.hash(&[name.as_bytes(), body].concat())
        }
        [b's', b'r', b'p', kind, 1, ..] if *kind == R::KIND => Domain::Record.hash(body),
        [b's', b'r', b'p', kind, version, ..] if *kind == R::KIND => {
            return Err(format!("it has version {version}, and this srp knows {VERSION}"));
        }
        _ => return Err("it is no such record".to_owned()),
    };
    if header[5..] != checksum[..8] {
        return Err("its checksum is wrong, or it is another's".to_owned());
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
/// Nobody waits for it: if another process has it open, there is none. If it is damaged it is made
/// anew. sled panics where a disk is full or a page is damaged; no panic leaves this type.
#[derive(Debug)]
pub struct Index {
    /// There until this is dropped. It is never closed once sled has failed: that may panic again,
    /// or wait for threads that are gone.
    open: Option<Open>,
    broken: AtomicBool,
    directory: PathBuf,
    /// Held until the database is closed.
    _lock: File,
}

#[derive(Debug)]
struct Open {
    history: sled::Tree,
    _database: sled::Db,
}

impl Open {
    fn new(directory: &Path) -> io::Result<Open> {
        let open = || {
            let config = sled::Config::new().path(directory).cache_capacity(4 << 20);
            let database = config.flush_every_ms(None).open()?;
            Ok(Open { history: database.open_tree("history")?, _database: database })
        };
        match contained(open) {
            Some(opened) => opened.map_err(|error: sled::Error| match error {
                sled::Error::Io(error) => error,
                other => io::Error::new(ErrorKind::InvalidData, other.to_string()),
            }),
            None => Err(io::Error::new(ErrorKind::InvalidData, "it makes sled panic")),
        }
    }
}

/// Whether opening fails because of what is in the files, and not because of this machine.
fn is_damage(error: &io::Error) -> bool {
    // What the system says has a number; the others are sled's own.
    error.raw_os_error().is_none_or(|number| {
        [Errno::EISDIR, Errno::ENOTDIR, Errno::EEXIST, Errno::ENOENT, Errno::EINVAL]
            .contains(&Errno::from_raw(number))
    })
}

thread_local! {
    static IN_SLED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of the current thread is the index's, and so nobody's concern.
pub fn is_index_panic() -> bool {
    let of_sled = |name: &str| name.starts_with("sled-") || name.contains("log flusher");
    IN_SLED.get() || std::thread::current().name().is_some_and(of_sled)
}

/// Does something with sled; none if that panics.
fn contained<T>(action: impl FnOnce() -> T) -> Option<T> {
    IN_SLED.set(true);
    let done = std::panic::catch_unwind(AssertUnwindSafe(action)).ok();
    IN_SLED.set(false);
    done
}

impl Index {
    /// Opens the store's index, or says why there is none for now.
    pub fn open(store: &Store) -> Result<Index, IndexError> {
        let (directory, lock) = (store.directory("index"), store.directory("locks").join("index"));
        let unavailable = |source| IndexError { path: directory.clone(), source };
        // Beside the database, so that whoever finds a damaged one may remove it.
        let options = File::options().create(true).truncate(false).write(true).open(&lock);
        let lock = options.map_err(unavailable)?;
        lock.try_lock().map_err(|error| unavailable(error.into()))?;
        let mut open = Open::new(&directory);
        if let Err(error) = &open
            && is_damage(error)
        {
            tracing::warn!(%error, path = %directory.display(), "the index is made anew");
            files::remove_tree(&directory).map_err(|error| unavailable(io::Error::other(error)))?;
            open = Open::new(&directory);
        }
        let open = open.map_err(unavailable)?;
        Ok(Index { open: Some(open), broken: AtomicBool::new(false), directory, _lock: lock })
    }

    /// What the last build called `key` took. Damage reads as nothing known.
    pub fn history(&self, key: &str) -> Option<History> {
        let bytes = self.with(|open| open.history.get(key))??;
        Some(bincode::decode_from_slice(&bytes, config::standard()).ok()?.0)
    }

    /// Remembers what a build called `key` took.
    pub fn remember(&self, key: &str, history: History) {
        let bytes = bincode::encode_to_vec(history, config::standard())
            .expect("encoding to memory can't fail");
        self.with(|open| open.history.insert(key, bytes));
    }

    /// Writes what was remembered. A failure loses only the index's newest entries.
    pub fn flush(&self) {
        self.with(|open| open.history.flush());
    }

    /// Asks the database, unless it has failed before.
    fn with<T>(&self, action: impl FnOnce(&Open) -> sled::Result<T>) -> Option<T> {
        if self.broken.load(Ordering::Acquire) {
            return None;
        }
        let open = self.open.as_ref()?;
        match contained(|| action(open)) {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) => tracing::debug!(%error, "the index is given up"),
            None => tracing::debug!("the index is given up"),
        }
        self.broken.store(true, Ordering::Release);
        None
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let open = self.open.take();
        if self.broken.load(Ordering::Acquire) {
            std::mem::forget(open);
        } else if contained(|| drop(open)).is_some() {
            return;
        }
        // What has failed once would fail every process after this one.
        if let Err(error) = files::remove_tree(&self.directory) {
            tracing::debug!(%error, "a broken index stays");
        }
    }
}

/// Why there is no index for now.
#[derive(Debug, thiserror::Error)]
#[error("the index {} can't be opened", path.display())]
pub struct IndexError {
    path: PathBuf,
    source: io::Error,
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
        let bytes = encode(&info(), "name");
        assert_eq!(decode(&bytes, "name"), Ok(info()));
        assert!(decode::<Info>(&bytes, "other").is_err(), "another's place");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Info>(&flipped, "name").is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode::<Info>(&bytes[..length], "name").is_err(), "length {length}");
        }
        assert!(decode::<Claim>(&bytes, "name").is_err());
    }

    #[test]
    fn records_of_the_first_version_are_read() {
        let mut bytes = encode(&info(), "name");
        let checksum = Domain::Record.hash(&bytes[HEADER..]);
        bytes[4] = 1;
        bytes[5..HEADER].copy_from_slice(&checksum[..8]);
        assert_eq!(decode(&bytes, "any name"), Ok(info()));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(body: Vec<u8>) {
            for (version, domain) in [(1, Domain::Record), (2, Domain::NamedRecord)] {
                let mut bytes = b"srpi".to_vec();
                bytes.push(version);
                bytes.extend_from_slice(&domain.hash(&body)[..8]);
                bytes.extend_from_slice(&body);
                let _ = decode::<Info>(&bytes, "");
            }
        }
    }

    #[test]
    fn the_index_answers_and_a_second_one_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store(&directory);
        let index = Index::open(&store).expect("a fresh index");
        index.remember("musl", History { milliseconds: 9, peak_memory_bytes: 1 });
        assert_eq!(index.history("musl").map(|history| history.milliseconds), Some(9));
        assert_eq!(index.history("gcc"), None);
        assert!(Index::open(&store).is_err());
    }

    /// Each file of the index, and the index itself, damaged in each way.
    #[test]
    fn a_damaged_index_is_made_anew_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store(&directory);
        let known = || Index::open(&store).expect("an index").history("musl");
        let history = History { milliseconds: 9, peak_memory_bytes: 1 };
        let keep = || {
            let index = Index::open(&store).expect("an index");
            index.remember("musl", history);
            index.flush();
        };
        keep();
        assert_eq!(known(), Some(history), "the test tests nothing");
        let index = store.directory("index");
        let files = files::entries(&index).expect("listed");
        for file in files.iter().filter(|it| it.is_file()) {
            for damage in 0..4 {
                let bytes = std::fs::read(file).unwrap_or_default();
                let damaged = match damage {
                    0 => Vec::new(),
                    1 => bytes[..bytes.len() / 2].to_vec(),
                    2 => bytes.iter().map(|byte| byte ^ 0x55).collect(),
                    _ => vec![b'x'; bytes.len().max(64)],
                };
                std::fs::write(file, damaged).expect("written");
                // It may be found out only when something is asked, and is new for the next one.
                let _ = known();
                keep();
                assert_eq!(known(), Some(history), "{}", file.display());
            }
        }
        files::remove_tree(&index).expect("removed");
        std::fs::write(&index, "no directory").expect("written");
        keep();
        assert_eq!(known(), Some(history));
    }

    fn store(directory: &tempfile::TempDir) -> Store {
        Store::open(&directory.path().join("store"), crate::Access::Write).expect("opened")
    }
}
