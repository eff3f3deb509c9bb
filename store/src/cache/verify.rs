//! Verifying a cache: everything in it is read, and compared with what its names and records say;
//! and a summary of what is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;

use crate::cache::closure::{Closure, Location, ObjectRecord, Pointer};
use crate::cache::key::{KeyId, PublicKey};
use crate::cache::limited::{decompress_block, read_exactly};
use crate::cache::pack::MAGIC;
use crate::cache::pack_writer::hash;
use crate::cache::path::parse_signer;
use crate::cache::sealed::{Sealable, Sealed};
use crate::cache::statement::Statement;
use crate::cache::{Cache, CacheError, CachePath, Severity};
use crate::digest::Digest;

/// Something that is wrong in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: CachePath,
    /// What.
    pub problem: String,
}

/// What came of verifying a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many files were read.
    pub files: usize,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What is in a cache.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many packs.
    pub packs: usize,
    /// Their lengths.
    pub pack_bytes: u64,
    /// How many deltas.
    pub deltas: usize,
    /// Their lengths.
    pub delta_bytes: u64,
    /// How many objects.
    pub objects: usize,
    /// The newest manifest of each root by each key. Not verified.
    pub roots: Vec<(Pointer, Option<KeyId>)>,
}

impl Cache {
    /// Counts what is there.
    pub fn summary(&self) -> Result<Summary, CacheError> {
        let sum = |directory| {
            let files = self.remote().list(directory)?;
            Ok::<_, CacheError>((files.len(), files.iter().map(|(_, it)| it.size_bytes).sum()))
        };
        let (packs, pack_bytes) = sum("packs")?;
        let (deltas, delta_bytes) = sum("deltas")?;
        let objects = self.remote().list("objects")?.len();
        let mut roots = Vec::new();
        for (path, _) in self.remote().list("roots")? {
            if let Some(sealed) = self.sealed::<Pointer>(&path)? {
                roots.push((sealed.unverified().clone(), sealed.signer()));
            }
        }
        Ok(Summary { packs, pack_bytes, deltas, delta_bytes, objects, roots })
    }

    /// Reads everything and says what is wrong. Signatures by `keys` are checked; those of others
    /// can't be. Missing files are findings, a transport that fails an error.
    pub fn verify(&self, keys: &BTreeMap<KeyId, PublicKey>) -> Result<Verified, CacheError> {
        let (findings, packs) = (Vec::new(), HashMap::new());
        let mut check = Check { cache: self, keys, findings, packs, files: 0 };
        for (path, _) in self.remote().list("objects")? {
            if let Some(sealed) = check.sealed::<ObjectRecord>(&path)? {
                check.object(&path, sealed.unverified())?;
            }
        }
        for (path, _) in self.remote().list("realisations")? {
            if let Some(sealed) = check.sealed::<Statement>(&path)? {
                let (statement, signer) = (sealed.unverified(), sealed.signer());
                let named = [
                    CachePath::by_static(&statement.derivation, signer),
                    CachePath::by_resolved(&statement.resolved, signer),
                ];
                check.expect(&path, named.contains(&path), "it is about another derivation");
            }
        }
        let mut deltas = HashSet::new();
        for (path, _) in self.remote().list("closures")? {
            if let Some(sealed) = check.sealed::<Closure>(&path)? {
                let closure = sealed.unverified();
                let named = CachePath::closure(&closure.derivation, sealed.signer());
                check.expect(&path, named == path, "it is about another derivation");
                for record in &closure.objects {
                    check.object(&path, record)?;
                }
                for delta in &closure.deltas {
                    let named = CachePath::delta(&delta.delta);
                    let length = self.remote().stat(&named)?.map(|stat| stat.size_bytes);
                    let right = length == Some(delta.delta_bytes);
                    check.expect(&path, right, &format!("it names {named}, which isn't there"));
                    deltas.insert(named);
                }
            }
        }
        for (path, _) in self.remote().list("roots")? {
            if let Some(sealed) = check.sealed::<Pointer>(&path)? {
                let pointer = sealed.unverified();
                let named = CachePath::root(&pointer.root, sealed.signer());
                check.expect(&path, named == path, "it is about another root");
                let closure = CachePath::closure(&pointer.derivation, sealed.signer());
                let there = self.remote().stat(&closure)?.is_some();
                check.expect(&path, there, &format!("it names {closure}, which isn't there"));
            }
        }
        for directory in ["packs", "deltas"] {
            for (path, _) in self.remote().list(directory)? {
                check.files += 1;
                if check.packs.contains_key(&path) {
                    continue;
                }
                let Some(mut body) = self.body(&path, None)? else { continue };
                let found = hash(&mut body.reader)
                    .map_err(|error| self.place(&path).transport("read", error))?;
                let right = path.name() == found.to_string();
                check.expect(&path, right, &format!("its content is {found}"));
            }
        }
        Ok(Verified { files: check.files, findings: check.findings })
    }
}

struct Check<'a> {
    cache: &'a Cache,
    keys: &'a BTreeMap<KeyId, PublicKey>,
    findings: Vec<Finding>,
    files: usize,
    /// Packs that were read, and what they were read as.
    packs: HashMap<CachePath, (Location, Digest)>,
}

impl Check<'_> {
    fn expect(&mut self, path: &CachePath, right: bool, problem: &str) {
        if !right {
            self.findings.push(Finding { path: path.clone(), problem: problem.to_owned() });
        }
    }

    /// A transport that fails ends it, whatever else is wrong is a finding.
    fn found<T>(
        &mut self,
        path: &CachePath,
        result: Result<T, CacheError>,
    ) -> Result<Option<T>, CacheError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ (CacheError::Damaged { .. } | CacheError::Missing { .. })) => {
                self.expect(path, false, &error.to_string());
                Ok(None)
            }
            Err(error) if error.severity() == Severity::Integrity => {
                self.expect(path, false, &error.to_string());
                Ok(None)
            }
            Err(CacheError::Transport { source, path: at, .. })
                if source.kind() == std::io::ErrorKind::UnexpectedEof =>
            {
                self.expect(path, false, &format!("{at} is shorter than it should be"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn sealed<T: Sealable>(&mut self, path: &CachePath) -> Result<Option<Sealed<T>>, CacheError> {
        let sealed = self.cache.sealed::<T>(path);
        self.files += 1;
        let Some(sealed) = self.found(path, sealed)?.flatten() else { return Ok(None) };
        if let Some(Err(error)) = sealed
            .signer()
            .filter(|key| self.keys.contains_key(key))
            .map(|_| sealed.check(self.keys))
        {
            self.expect(path, false, &error.to_string());
        }
        // An object's record is nobody's statement, and named by the object.
        let signer = parse_signer(path.name());
        let named = path.as_str().starts_with("objects/") || signer == Some(sealed.signer());
        self.expect(path, named, "it is signed by another key than its name says");
        Ok(Some(sealed))
    }

    fn object(&mut self, path: &CachePath, record: &ObjectRecord) -> Result<(), CacheError> {
        let id = record.object.id();
        let named = !path.as_str().starts_with("objects/") || *path == CachePath::object(&id);
        self.expect(path, named, &format!("it describes the object {id}"));
        let pack = CachePath::pack(&record.location.pack);
        let read_as = (record.location, record.object.tree);
        if self.packs.get(&pack) == Some(&read_as) {
            return Ok(());
        }
        let result = self.pack(&pack, record);
        self.found(path, result)?;
        self.packs.insert(pack, read_as);
        Ok(())
    }

    /// Reads a pack: its digest, its index, its blocks and the files in them.
    fn pack(&self, path: &CachePath, record: &ObjectRecord) -> Result<(), CacheError> {
        let cache = self.cache;
        let place = cache.place(path);
        let (index, _) = cache.index(record)?;
        if index.listing.extent().size_bytes != record.size_bytes {
            return Err(place.damaged("its record gives the tree another size"));
        }
        let mut body = cache.body(path, None)?.ok_or_else(|| place.missing())?;
        let mut read = |length| {
            read_exactly(&mut body.reader, length).map_err(|error| place.transport("read", error))
        };
        let mut pack = blake3::Hasher::new();
        let magic = read(MAGIC.len() as u64)?;
        pack.update(&magic);
        let mut file = blake3::Hasher::new();
        for (number, block) in index.blocks.iter().enumerate() {
            let packed = read(block.packed_bytes)?;
            pack.update(&packed);
            let plain = decompress_block(&packed, block.plain_bytes)
                .map_err(|error| place.damaged(format!("block {number}: {error}")))?;
            let mut rest = &plain[..];
            for segment in index.segments(block) {
                let (part, tail) = rest.split_at(segment.length as usize);
                rest = tail;
                file.update(part);
                let of = &index.files[segment.file];
                if segment.offset + segment.length == of.size_bytes {
                    let found = Digest::from_bytes(*file.finalize().as_bytes());
                    place.expect(format!("file {}", segment.file), of.digest, found)?;
                    file.reset();
                }
            }
        }
        pack.update(&read(record.location.index_bytes)?);
        let found = Digest::from_bytes(*pack.finalize().as_bytes());
        place.expect("the content", record.location.pack, found)?;
        if magic != MAGIC || body.reader.read(&mut [0]).is_ok_and(|count| count > 0) {
            return Err(place.damaged("it is no pack, or goes on after its end"));
        }
        Ok(())
    }
}
