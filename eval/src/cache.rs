//! The evaluation cache: what an attribute stood for, as long as the files are the same.
//!
//! An entry is two files in the cache's directory, both named by the entry's key, which is a hash
//! ([`Domain::Evaluation`]) over the evaluator's revision, the revisions that are part of every
//! derivation's hash, the build machine's architecture and the attribute:
//!
//! - `<key>`, small and always read: the goal, the runners, and every definition file that was
//!   read, with its digest and what `stat` said of it;
//! - `<key>.graph`: the derivations, read only where they are needed.
//!
//! Both are canonical encodings ([`Record`]); a checksum of the first opens it, a checksum of the
//! second is in the first. Whatever is wrong with either is a miss and never an error: the cache
//! can be deleted at any time.
//!
//! An entry holds as long as every file's content is what it was, wherever the directory lies now.
//! Content is compared by digest. As git does, hashing is skipped for a file whose device, inode,
//! size and times are those recorded, unless it had been changed so shortly before it was read
//! that another change could have left the same times.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use srp_store::digest::Domain;
use srp_store::encode::{DecodeError, Decoder, Encoder};
use srp_store::{Canonical, Derivation, Digest, InputKey, StaticHash, revision, staged};

use crate::definitions::{DefinitionPath, Definitions, Seen, Stat};
use crate::evaluate::{Evaluation, Runner};
use crate::session::Session;

/// Raise it when the same definitions could come to stand for other derivations, or when the
/// encoding below changes.
const REVISION: u64 = 1;

/// A directory of evaluations.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

/// What an attribute stands for, as the cache knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedGoal {
    /// The goal.
    pub key: InputKey,
    /// The emulators that the definitions provide, by architecture.
    pub runners: BTreeMap<String, Runner>,
    /// Every definition file that was read, by its path (`//main.star`).
    pub files: BTreeMap<String, Digest>,
    graph: PathBuf,
    graph_checksum: [u8; 32],
}

/// An entry that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write to the evaluation cache {}", path.display())]
pub struct CacheError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Cache {
    /// The cache in `directory`, which is created when something is stored.
    pub fn new(directory: &Path) -> Cache {
        Cache { directory: directory.to_owned() }
    }

    /// What `attr` stands for on a machine of architecture `build_arch`, if that is known and
    /// none of the files has changed.
    pub fn lookup(
        &self,
        definitions: &Definitions,
        build_arch: &str,
        attr: &str,
    ) -> Option<CachedGoal> {
        let path = self.path(build_arch, attr);
        let mut record = Record::decode_file(&srp_store::read_plain(&path).ok()?)?;
        if record.build_arch != build_arch || record.attr != attr {
            return None;
        }
        let mut learned = false;
        for (path, seen) in &mut record.files {
            let path: DefinitionPath = path.parse().ok()?;
            if seen.stat.is_some() && seen.stat == definitions.stat(&path) {
                continue;
            }
            let (_, now) = definitions.read(&path, Session::DATA_LIMIT_BYTES).ok()?;
            if now.digest != seen.digest {
                return None;
            }
            learned |= now.stat.is_some();
            *seen = now;
        }
        if learned && let Err(error) = self.write(&path, &record.encode_file()) {
            // The next look-up hashes again, no more: the store may be on a read-only disk.
            tracing::debug!(%error, "the evaluation cache was not refreshed");
        }
        Some(CachedGoal {
            key: record.goal,
            runners: record.runners,
            files: record.files.into_iter().map(|(path, seen)| (path, seen.digest)).collect(),
            graph: path.with_extension("graph"),
            graph_checksum: record.graph_checksum,
        })
    }

    /// Remembers what each of an evaluation's attributes stands for.
    pub fn store(&self, build_arch: &str, evaluation: &Evaluation) -> Result<(), CacheError> {
        fs::create_dir_all(&self.directory)
            .map_err(|source| CacheError { path: self.directory.clone(), source })?;
        let files: BTreeMap<String, Seen> =
            evaluation.seen.iter().map(|(path, seen)| (path.to_string(), seen.clone())).collect();
        for (attr, goal) in &evaluation.goals {
            let graph = evaluation.graph_of(goal).to_canonical();
            let record = Record {
                build_arch: build_arch.to_owned(),
                attr: attr.clone(),
                goal: goal.clone(),
                runners: evaluation.runners.clone(),
                files: files.clone(),
                graph_checksum: Domain::Record.hash(&graph),
            };
            let path = self.path(build_arch, attr);
            self.write(&path.with_extension("graph"), &graph)?;
            self.write(&path, &record.encode_file())?;
        }
        Ok(())
    }

    /// Every derivation that some entry has, whether or not the entry still holds.
    pub fn derivations(&self) -> BTreeMap<StaticHash, Derivation> {
        let mut found = BTreeMap::new();
        for (path, bytes) in self.files() {
            if path.extension().is_some_and(|it| it == "graph")
                && let Ok(bytes) = bytes
                && let Ok(graph) = BTreeMap::<StaticHash, Derivation>::from_canonical(&bytes)
            {
                found.extend(graph.into_iter().filter(|(hash, it)| it.static_hash() == *hash));
            }
        }
        found
    }

    /// The files that are damaged, each with the reason: what reads them takes them for a miss.
    pub fn damaged(&self) -> Vec<(PathBuf, String)> {
        let mut damaged = Vec::new();
        let mut checksums = BTreeMap::new();
        let mut graphs = Vec::new();
        for (path, bytes) in self.files() {
            let is_graph = path.extension().is_some_and(|it| it == "graph");
            match bytes {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => damaged.push((path, format!("it can't be read: {error}"))),
                Ok(bytes) if is_graph => graphs.push((path, Domain::Record.hash(&bytes))),
                Ok(bytes) => match Record::decode_file(&bytes) {
                    Some(record) => {
                        checksums.insert(path.with_extension("graph"), record.graph_checksum);
                    }
                    None => damaged.push((path, "its checksum is wrong".to_owned())),
                },
            }
        }
        for (path, checksum) in graphs {
            // One whose entry is lost says nothing of itself.
            if checksums.get(&path).is_some_and(|it| *it != checksum) {
                damaged.push((path, "its checksum is wrong".to_owned()));
            }
        }
        damaged.sort();
        damaged
    }

    /// All files of entries, and what is in them.
    fn files(&self) -> Vec<(PathBuf, io::Result<Vec<u8>>)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let paths = entries.filter(|entry| !staged::is_staged(&entry.file_name()));
        paths
            .map(|entry| entry.path())
            .map(|path| (path.clone(), srp_store::read_plain(&path)))
            .collect()
    }

    /// Where an entry is; its graph is beside it.
    pub(crate) fn path(&self, build_arch: &str, attr: &str) -> PathBuf {
        let mut key = Encoder::default();
        for revision in [
            REVISION,
            revision::SANDBOX,
            revision::NORMALISER,
            revision::SCANNER,
            revision::UNPACKER,
        ] {
            key.integer(revision);
        }
        key.text(build_arch);
        key.text(attr);
        let key = Digest::from_bytes(Domain::Evaluation.hash(&key.finish()));
        self.directory.join(key.to_string())
    }

    /// Puts a file there in one step. It isn't synced: after a crash the checksum tells.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
        let failed = |source| CacheError { path: path.to_owned(), source };
        staged::write(path, bytes).map_err(failed)
    }
}

impl CachedGoal {
    /// The goal's and the runners' whole graph, unless it has been replaced or damaged since.
    pub fn graph(&self) -> Option<BTreeMap<StaticHash, Derivation>> {
        let bytes = srp_store::read_plain(&self.graph).ok()?;
        if Domain::Record.hash(&bytes) != self.graph_checksum {
            return None;
        }
        BTreeMap::from_canonical(&bytes).ok()
    }
}

/// The small file of an entry: 32 bytes of checksum ([`Domain::Record`]) over the rest, which is
/// the canonical encoding of the fields in order. A file's `stat` is an option of device, inode,
/// size, and the times of modification and change as 16 bytes each, little endian, nanoseconds
/// since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    build_arch: String,
    attr: String,
    goal: InputKey,
    runners: BTreeMap<String, Runner>,
    files: BTreeMap<String, Seen>,
    graph_checksum: [u8; 32],
}

impl Record {
    fn encode_file(&self) -> Vec<u8> {
        let payload = self.to_canonical();
        let mut bytes = Domain::Record.hash(&payload).to_vec();
        bytes.extend(payload);
        bytes
    }

    fn decode_file(bytes: &[u8]) -> Option<Record> {
        let (checksum, payload) = bytes.split_first_chunk::<32>()?;
        (Domain::Record.hash(payload) == *checksum)
            .then(|| Record::from_canonical(payload).ok())
            .flatten()
    }
}

impl Canonical for Record {
    fn encode(&self, to: &mut Encoder) {
        to.text(&self.build_arch);
        to.text(&self.attr);
        self.goal.encode(to);
        self.runners.encode(to);
        self.files.encode(to);
        to.raw(&self.graph_checksum);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Record {
            build_arch: String::decode(from)?,
            attr: String::decode(from)?,
            goal: InputKey::decode(from)?,
            runners: BTreeMap::decode(from)?,
            files: BTreeMap::decode(from)?,
            graph_checksum: from.array()?,
        })
    }
}

impl Canonical for Runner {
    fn encode(&self, to: &mut Encoder) {
        self.key.encode(to);
        to.text(&self.program);
        to.text(&self.cpu);
        to.text(&self.uname);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Runner {
            key: InputKey::decode(from)?,
            program: String::decode(from)?,
            cpu: String::decode(from)?,
            uname: String::decode(from)?,
        })
    }
}

impl Canonical for Seen {
    fn encode(&self, to: &mut Encoder) {
        self.digest.encode(to);
        self.stat.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Seen { digest: Digest::decode(from)?, stat: Option::decode(from)? })
    }
}

impl Canonical for Stat {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.device);
        to.integer(self.inode);
        to.integer(self.size_bytes);
        to.raw(&self.modified_ns.to_le_bytes());
        to.raw(&self.changed_ns.to_le_bytes());
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Stat {
            device: from.integer()?,
            inode: from.integer()?,
            size_bytes: from.integer()?,
            modified_ns: i128::from_le_bytes(from.array()?),
            changed_ns: i128::from_le_bytes(from.array()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use srp_store::OutputName;

    use super::*;

    /// Should this fail, raise [`REVISION`]: entries of the other kind are in stores.
    #[test]
    fn golden() {
        let key =
            InputKey { derivation: StaticHash::from_bytes([1; 32]), output: OutputName::out() };
        let runner = Runner {
            key: key.clone(),
            program: "/usr/bin/qemu-aarch64".to_owned(),
            cpu: "max".to_owned(),
            uname: "6.12.0".to_owned(),
        };
        let stat = Stat { device: 1, inode: 2, size_bytes: 3, modified_ns: -4, changed_ns: 5 };
        let record = Record {
            build_arch: "x86_64".to_owned(),
            attr: "stage1.aarch64-musl".to_owned(),
            goal: key,
            runners: [("aarch64".to_owned(), runner)].into(),
            files: [
                ("//a".to_owned(), Seen { digest: Digest::of_file(b"a"), stat: Some(stat) }),
                ("//b".to_owned(), Seen { digest: Digest::of_file(b"b"), stat: None }),
            ]
            .into(),
            graph_checksum: [2; 32],
        };
        let bytes = record.encode_file();
        assert_eq!(Record::decode_file(&bytes), Some(record));
        assert_eq!(
            (bytes.len(), Digest::of_file(&bytes).to_string().as_str()),
            (434, "a718f981970d50a3d8bcdcba22a5fce96bb41ab0353e5e2e0431dffa363f7d6b")
        );
    }
}
