//! Caches that are damaged, lie, or don't answer as they should.

use proptest::prelude::*;

use super::memory::{Memory, Misbehaviour};
use super::*;
use crate::encode::Encoder;
use crate::listing::Listing;
use crate::tree::{Directory, Entry};

/// Does all that a client does, however it goes; the errors.
fn use_cache(
    memory: &Arc<Memory>,
    user: &Machine,
    key: &SecretKey,
    hashes: &[StaticHash],
) -> Vec<CacheError> {
    let mut errors = Vec::new();
    let mut attempt = |result: Result<(), CacheError>| errors.extend(result.err());
    let cache = match Cache::open(memory.clone()) {
        Ok(cache) => cache,
        Err(error) => return vec![error],
    };
    let public = key.public();
    let holdings = Arc::new(Holdings::of_store(&user.store).expect("readable"));
    let fetcher = Fetcher::new(&user.store, &cache, holdings);
    attempt(cache.pointer(&root(), Some(&public)).map(drop));
    for hash in hashes {
        let policy = Policy { trusted: ring(&[key]), ..Policy::default() };
        for asked in
            [Asked::Static(*hash), Asked::Resolved(ResolvedHash::from_bytes(*hash.as_bytes()))]
        {
            let statements = cache.statements(asked, &[Some(public.id())]);
            let evidence = statements.unwrap_or_default().into_iter().map(|statement| Evidence {
                cache: String::new(),
                trusted_outright: false,
                statement,
            });
            let decision = policy.decide(asked, &evidence.collect::<Vec<_>>());
            let Verdict::Accepted { statement, .. } = decision.verdict else { continue };
            for id in statement.objects().values() {
                let fetch = || match cache.object(id)? {
                    Some(record) => fetcher.fetch(&record).map(drop),
                    None => Ok(()),
                };
                attempt(fetch());
            }
        }
        let closure = || {
            let Some(found) = cache.closure(hash, Some(&public))? else { return Ok(()) };
            let fetcher = fetcher.clone().with_deltas(&found.closure.deltas);
            found.closure.objects.iter().try_for_each(|record| fetcher.fetch(record).map(drop))
        };
        attempt(closure());
    }
    errors
}

/// Two generations of a library; long enough for a delta between them, or small.
fn small_cache(delta: bool) -> (Arc<Memory>, SecretKey, Vec<StaticHash>, Object, Object) {
    let builder = Machine::new();
    let memory = Arc::new(Memory::default());
    let cache = Cache::create(memory.clone()).expect("created");
    let key = secret("builder-1", 7);
    let (zeros, rest) = if delta { (1 << 20, 4000) } else { (0, 30) };
    let library = |edit: u8| {
        move |tree: &Path| {
            let bytes = [&vec![0; zeros][..], &[edit; 30], &noise(1, rest)].concat();
            fs::write(tree.join("lib"), bytes).expect("written");
            fs::write(tree.join("run"), "#!").expect("written");
            symlink("lib", tree.join("link")).expect("linked");
        }
    };
    let old = builder.add("lib", &[], &library(1));
    let new = builder.add("lib", &[], &library(2));
    let hashes = vec![builder.realise(1, &old, &[]), builder.realise(2, &new, &[])];
    for hash in &hashes {
        builder.publish(&cache, &key, hash);
    }
    (memory, key, hashes, old, new)
}

#[test]
fn no_flipped_byte_ever_gets_into_a_store() {
    let (memory, key, hashes, old, new) = small_cache(false);
    let files = memory.files();
    let kinds =
        ["srp-cache", "packs/", "objects/", "realisations/static/", "realisations/resolved/"];
    for kind in kinds.into_iter().chain(["closures/", "roots/"]) {
        assert!(files.iter().any(|(path, _)| path.as_str().starts_with(kind)), "{kind}");
    }
    flip_every_byte(&memory, files, &key, &hashes, [&old, &new]);
}

#[test]
fn no_flipped_byte_of_a_delta_ever_gets_into_a_store() {
    let (memory, key, hashes, old, new) = small_cache(true);
    let mut files = memory.files();
    files.retain(|(path, _)| path.as_str().starts_with("deltas/"));
    assert_eq!(files.len(), 1);
    flip_every_byte(&memory, files, &key, &hashes, [&old, &new]);
}

fn flip_every_byte(
    memory: &Arc<Memory>,
    files: Vec<(CachePath, Vec<u8>)>,
    key: &SecretKey,
    hashes: &[StaticHash],
    objects: [&Object; 2],
) {
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(total < 20_000, "{total} bytes are too many to flip each");
    let mut user = Machine::new();
    for (path, bytes) in files {
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 1 << (index % 8);
            memory.set(&path, flipped);
            use_cache(memory, &user, key, hashes);
            let mut registered = false;
            for object in objects {
                if user.store.contains(&object.id()).expect("readable") {
                    assert_intact(&user.store, object);
                    registered = true;
                }
            }
            let count = fs::read_dir(user.store.directory("info")).expect("listed").count();
            assert!(count <= 2, "{path}: something else was registered");
            if registered {
                user = Machine::new();
            }
        }
        memory.set(&path, bytes);
    }
    assert!(use_cache(memory, &user, key, hashes).is_empty());
    assert!(user.store.contains(&objects[1].id()).expect("readable"));
}

#[test]
fn swapped_files_are_noticed() {
    let (memory, key, hashes, ..) = small_cache(false);
    let files = memory.files();
    for (path, bytes) in &files {
        for (other, _) in files.iter().filter(|(other, _)| other != path) {
            let kept = memory.files().into_iter().find(|(it, _)| it == other).expect("there").1;
            memory.set(other, bytes.clone());
            let user = Machine::new();
            use_cache(&memory, &user, &key, &hashes);
            for name in fs::read_dir(user.store.directory("info")).expect("listed") {
                let id =
                    name.expect("listed").file_name().to_string_lossy().parse().expect("an id");
                assert_intact(&user.store, &user.store.info(&id).expect("readable").object);
            }
            memory.set(other, kept);
        }
    }
}

#[test]
fn bodies_that_end_break_or_never_end_register_nothing() {
    let (memory, key, hashes, _, new) = small_cache(false);
    let user = Machine::new();
    for misbehaviour in [
        Misbehaviour::EndsAfter(0),
        Misbehaviour::EndsAfter(100),
        Misbehaviour::BreaksAfter(0),
        Misbehaviour::BreaksAfter(150),
        Misbehaviour::Endless,
    ] {
        memory.misbehave(misbehaviour);
        use_cache(&memory, &user, &key, &hashes);
        assert!(!user.store.contains(&new.id()).expect("readable"));
        // But for what says which objects were asked about.
        let sessions = crate::files::entries(&user.store.directory("tmp")).expect("listed");
        for session in sessions.iter().filter(|path| path.is_dir()) {
            let left = crate::files::entries(session).expect("listed");
            assert!(left.iter().all(|path| path.ends_with("relied")), "{left:?}");
        }
    }
    memory.misbehave(Misbehaviour::Trickles);
    assert!(use_cache(&memory, &user, &key, &hashes).is_empty());
    assert_intact(&user.store, &new);
}

#[test]
fn a_listing_that_stands_for_endlessly_many_files_is_refused() {
    let mut directory = Directory::default();
    let file = Entry::File { digest: Digest::of_file(b"x"), size_bytes: 1, executable: false };
    directory.insert(b"x", file).expect("valid");
    let mut directories = std::collections::HashMap::new();
    for _ in 0..60 {
        let digest = directory.digest();
        directories.insert(digest, std::mem::take(&mut directory));
        for name in [&b"a"[..], b"b"] {
            directory.insert(name, Entry::Directory { digest }).expect("valid");
        }
    }
    let tree = directory.digest();
    directories.insert(tree, directory);
    let listing = Listing::new(tree, directories);
    let (packed, index_plain_bytes) = Index::encode(&listing, &[0], &[]).expect("encoded");
    let location = Location {
        pack: tree,
        pack_bytes: 11 + packed.len() as u64,
        index_bytes: packed.len() as u64,
        index_plain_bytes,
        index_digest: tree,
    };
    let error = Index::decode(&packed, &location, &tree).expect_err("a bomb");
    assert!(error.contains("larger than any"), "{error}");
}

#[test]
fn an_index_that_lies_is_refused() {
    let mut directory = Directory::default();
    for (name, text) in [(&b"a"[..], &b"aa"[..]), (b"b", b"bbb")] {
        let (digest, size_bytes) = (Digest::of_file(text), text.len() as u64);
        directory
            .insert(name, Entry::File { digest, size_bytes, executable: false })
            .expect("valid");
    }
    let tree = directory.digest();
    let listing = Listing::new(tree, [(tree, directory)].into());
    let block = |packed_bytes, plain_bytes| Block {
        offset: 0,
        packed_bytes,
        start: 0,
        plain_bytes,
        digest: tree,
    };
    let decode = |order: &[u32], blocks: &[Block], pack_bytes: u64| {
        let (packed, index_plain_bytes) = Index::encode(&listing, order, blocks).expect("encoded");
        let index_bytes = packed.len() as u64;
        let pack_bytes = pack_bytes + index_bytes;
        let location =
            Location { pack: tree, pack_bytes, index_bytes, index_plain_bytes, index_digest: tree };
        Index::decode(&packed, &location, &tree).map(drop)
    };
    assert_eq!(decode(&[1, 0], &[block(10, 5)], 21), Ok(()));
    assert_eq!(decode(&[1, 0], &[block(10, 2), block(10, 3)], 31), Ok(()));
    for (order, blocks, pack_bytes) in [
        (&[0][..], &[block(10, 5)][..], 21),
        (&[0, 0], &[block(10, 5)], 21),
        (&[0, 2], &[block(10, 5)], 21),
        (&[0, 1, 2], &[block(10, 5)], 21),
        (&[0, 1], &[block(10, 6)], 21),
        (&[0, 1], &[block(10, 4)], 21),
        (&[0, 1], &[], 11),
        (&[0, 1], &[block(10, 5)], 22),
        (&[0, 1], &[block(10, 5), block(10, 0)], 31),
        (&[0, 1], &[block(u64::MAX, 5)], 10),
        (&[0, 1], &[block(10, u64::MAX)], 21),
    ] {
        assert!(decode(order, blocks, pack_bytes).is_err(), "{order:?} {blocks:?} {pack_bytes}");
    }
}

proptest! {
    #[test]
    fn foreign_indexes_never_panic(listing: Vec<u8>, order: Vec<u8>, rest: Vec<u8>, pack_bytes: u64) {
        let mut encoder = Encoder::default();
        encoder.bytes(&listing);
        encoder.bytes(&order);
        encoder.raw(&rest);
        let plain = encoder.finish();
        let packed = zstd::bulk::compress(&plain, 1).expect("compressed");
        let location = Location {
            pack: Digest::of_file(b""),
            pack_bytes,
            index_bytes: packed.len() as u64,
            index_plain_bytes: plain.len() as u64,
            index_digest: Digest::of_file(b""),
        };
        let tree = Directory::default().digest();
        let _ = Index::decode(&packed, &location, &tree);
    }
}
