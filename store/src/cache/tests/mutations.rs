//! Every parser of foreign bytes, fed with valid files that were changed a little.
//!
//! What [`faults`](super::faults) does to a whole cache (one byte at a time, and a client that
//! takes it from there) never gets past a digest. Here digests, compression and seals are made
//! anew after each change, so that it is the decoders that have to cope. The changes follow from a
//! fixed seed: the same on every machine. `SRP_MUTATIONS=N` makes N times as many.

use super::memory::Memory;
use super::*;
use crate::cache::{delta, limited};
use crate::encode::{Decoder, Encoder};

/// So many changed files for each parser.
const MUTATIONS: usize = 4000;

/// A generator of the same numbers everywhere (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A file made of `valid` ones by a few changes.
    fn mutation(&mut self, valid: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = valid[self.below(valid.len())].clone();
        for _ in 0..=self.below(3) {
            self.change(&mut bytes, valid);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, valid: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = (at + 1 + self.below(40)).min(bytes.len());
        match self.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, self.next() as u8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => {
                let other = &valid[self.below(valid.len())];
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            // A length, a count or an offset, where one is.
            5 => {
                let edges = [0, 1, 2, 0xff, 1 << 16, 1 << 32, 1 << 60, 1 << 63, u64::MAX];
                let edge = edges[self.below(edges.len())].to_le_bytes();
                let at = at & !7;
                let end = (at + 8).min(bytes.len());
                bytes.splice(at..end, edge);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}

/// Hands changed files to a parser; how many it took.
fn feed(valid: &[Vec<u8>], parser: &dyn Fn(&[u8]) -> bool) -> usize {
    let times = std::env::var("SRP_MUTATIONS").ok().and_then(|times| times.parse().ok());
    let mut random = Random(1);
    assert!(valid.iter().all(|it| parser(it)), "what is valid is taken");
    let count = MUTATIONS * times.unwrap_or(1);
    (0..count).filter(|_| parser(&random.mutation(valid))).count()
}

/// A published root of two generations, with a delta; and the cache's files.
fn published() -> Vec<(CachePath, Vec<u8>)> {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let libc = builder.add("libc", &[], &|tree| fs::write(tree.join("c"), "c").expect("written"));
    for edit in 1..3 {
        let tool = builder.add("tool", &[&libc], &|tree| {
            let bytes = [&vec![0; 1 << 20][..], &[edit; 30], &noise(1, 4000)].concat();
            fs::write(tree.join("lib"), bytes).expect("written");
            fs::create_dir(tree.join("bin")).expect("created");
            fs::write(tree.join("bin/run"), "#!").expect("written");
            symlink("bin/run", tree.join("link")).expect("linked");
        });
        builder.realise(3, &libc, &[]);
        let hash = builder.realise(edit, &tool, &[(3, &libc)]);
        builder.publish(&cache, &key, &hash);
    }
    memory.files()
}

fn of_kind(files: &[(CachePath, Vec<u8>)], kind: &str) -> Vec<Vec<u8>> {
    let found = files.iter().filter(|(path, _)| path.as_str().starts_with(kind));
    let found: Vec<_> = found.map(|(_, bytes)| bytes.clone()).collect();
    assert!(!found.is_empty(), "there are files below {kind}");
    found
}

/// Changes whole files, and, so that no checksum saves the decoder, payloads alone.
fn sealed<T: Sealable + std::fmt::Debug>(files: &[Vec<u8>]) {
    feed(files, &|bytes| match Sealed::<T>::from_bytes(bytes) {
        // A manifest's compression is the publisher's choice.
        Ok(sealed) => T::COMPRESSED || sealed.to_bytes() == bytes,
        Err(_) => false,
    });
    let payloads: Vec<Vec<u8>> = files
        .iter()
        .map(|file| Sealed::<T>::from_bytes(file).expect("valid").unverified().to_canonical())
        .collect();
    feed(&payloads, &|bytes| match T::from_canonical(bytes) {
        Ok(value) => {
            assert_eq!(value.to_canonical(), bytes, "one value has one encoding");
            true
        }
        Err(_) => false,
    });
}

#[test]
fn sealed_files() {
    let files = published();
    sealed::<Statement>(&of_kind(&files, "realisations/"));
    sealed::<ObjectRecord>(&of_kind(&files, "objects/"));
    sealed::<Closure>(&of_kind(&files, "closures/"));
    sealed::<Pointer>(&of_kind(&files, "roots/"));
}

#[test]
fn indexes() {
    let files = published();
    let records = of_kind(&files, "objects/");
    let record = |bytes: &Vec<u8>| {
        Sealed::<ObjectRecord>::from_bytes(bytes).expect("valid").unverified().clone()
    };
    for record in records.iter().map(record) {
        let location = record.location;
        let path = CachePath::pack(&location.pack);
        let (_, pack) = files.iter().find(|(it, _)| *it == path).expect("there");
        let packed = &pack[pack.len() - location.index_bytes as usize..];
        let plain = limited::decompress(packed, location.index_plain_bytes).expect("valid");
        feed(&[plain], &|plain| {
            let packed = zstd::bulk::compress(plain, 1).expect("compressed");
            let blocks_bytes = location.pack_bytes - location.index_bytes;
            let index_bytes = packed.len() as u64;
            let location = Location {
                pack_bytes: blocks_bytes + index_bytes,
                index_bytes,
                index_plain_bytes: plain.len() as u64,
                ..location
            };
            let Ok(index) = Index::decode(&packed, &location, &record.object.tree) else {
                return false;
            };
            // What is taken makes sense: its parts fill every block and every file.
            for block in &index.blocks {
                let filled: u64 = index.segments(block).map(|segment| segment.length).sum();
                assert_eq!(filled, block.plain_bytes);
            }
            index.files.iter().all(|file| !index.blocks_of(file).is_empty())
        });
    }
}

#[test]
fn deltas() {
    let old = [&vec![7; 3000][..], &noise(2, 3000)].concat();
    let new = [&noise(3, 500)[..], &old[..4000], b"more", &old[3500..]].concat();
    let delta = delta::make(&old, &new).expect("made");
    let apply = |delta: &[u8]| {
        let mut made = Vec::new();
        let applied = delta::apply(&old, delta, new.len() as u64, &mut made);
        assert!(made.len() <= new.len(), "more came out than may");
        applied.is_ok()
    };
    feed(&[delta], &apply);

    // The five parts of `add`, each changed before it is compressed.
    let parts = vec![
        [2000u64, 10, 5, 100, 0, u64::MAX].map(u64::to_le_bytes).concat(),
        vec![0, 0x85, 1, 3],
        vec![1, 2, 1],
        vec![9, 8, 7, 6],
        b"0123456789".to_vec(),
    ];
    for changed in 0..parts.len() {
        feed_part(&parts, changed, &old);
    }
}

fn feed_part(parts: &[Vec<u8>], changed: usize, old: &[u8]) {
    const LENGTH: u64 = 2110;
    feed(&parts[changed..=changed], &|part| {
        let mut encoder = Encoder::default();
        encoder.raw(b"srp delta 1\n");
        encoder.text("add");
        encoder.integer(LENGTH);
        for (number, whole) in parts.iter().enumerate() {
            let plain = if number == changed { part } else { whole };
            encoder.integer(plain.len() as u64);
            encoder.bytes(&zstd::bulk::compress(plain, 1).expect("compressed"));
        }
        let mut made = Vec::new();
        let applied = delta::apply(old, &encoder.finish(), LENGTH, &mut made);
        assert!(made.len() as u64 <= LENGTH, "more came out than may");
        applied.is_ok()
    });
}

#[test]
fn texts() {
    let key = secret("builder-1", 7).public();
    let (public, id) = (key.to_string(), key.id().to_string());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    feed(&[public.into_bytes()], &|bytes| {
        let key = text(bytes).parse::<PublicKey>();
        key.is_ok_and(|key| key.to_string() == text(bytes))
    });
    feed(&[id.into_bytes()], &|bytes| {
        text(bytes).parse::<KeyId>().is_ok_and(|id| id.to_string() == text(bytes))
    });
    let path = CachePath::closure(&StaticHash::from_bytes([7; 32]), None);
    feed(&[path.as_str().as_bytes().to_vec()], &|bytes| {
        let path = CachePath::parse(&text(bytes));
        let leaves = |path: &CachePath| path.as_str().split('/').any(|part| part == "..");
        assert!(!path.as_ref().is_some_and(leaves));
        path.is_some()
    });
    let memory = Arc::new(Memory::default());
    feed(&[b"srp cache\nformat 1\n".to_vec()], &|bytes| {
        memory.set(&CachePath::meta(), bytes.to_vec());
        Cache::open(memory.clone()).is_ok()
    });
}

#[test]
fn some_changes_are_taken_and_most_are_not() {
    // Were all refused, the changes would be too coarse to try a decoder; were all taken, the
    // decoder would look at nothing.
    let encoded = [1u64, 2, 3].map(u64::to_le_bytes).concat();
    let taken = feed(&[encoded], &|bytes| {
        let mut decoder = Decoder::new(bytes);
        (0..3).all(|number| decoder.integer().is_ok_and(|it| it <= number + 100))
            && decoder.rest().is_empty()
    });
    assert!((MUTATIONS / 50..MUTATIONS / 2).contains(&taken), "{taken}");
}
