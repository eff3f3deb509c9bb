//! Exports: through a pipe, cut, flipped, shuffled, and signed by whoever.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::cache::statement::tests::{ring, secret};
use crate::encode::Decoder;

/// A builder with a library, two programs of one tree that need it, and an empty object.
struct Builder {
    machine: Machine,
    objects: Vec<Object>,
    derivation: StaticHash,
}

impl Builder {
    fn new(bytes: usize) -> Builder {
        let machine = Machine::new();
        let libc = machine.add("libc", &[], &|tree| {
            fs::write(tree.join("c"), noise(1, bytes)).expect("written");
            fs::write(tree.join("d"), "text").expect("written");
        });
        let write = |tree: &Path| fs::write(tree.join("t"), "t").expect("written");
        let one = machine.add("one", &[&libc], &write);
        let two = machine.add("two", &[&one, &libc], &write);
        let empty = machine.add("empty", &[], &|_| {});
        machine.realise(1, &libc, &[]);
        let derivation = machine.realise(2, &two, &[(1, &libc)]);
        Builder { machine, objects: vec![libc, one, two, empty], derivation }
    }

    fn export_some(
        &self,
        asked: &[Exported],
        key: Option<&SecretKey>,
        to: &mut (dyn Write + Send),
    ) -> Contents {
        let store = &self.machine.store;
        let packs = Packs::temporary(store, 0).expect("made");
        let exporter = Exporter { store, packs: &packs, key, builder: "builder-1" };
        exporter.export(asked, to).expect("exported")
    }

    fn export_to(&self, key: Option<&SecretKey>, to: &mut (dyn Write + Send)) -> Contents {
        let (two, empty) = (self.objects[2].id(), self.objects[3].id());
        let asked = [
            Exported { name: "t.x".to_owned(), derivation: Some(self.derivation), object: two },
            Exported { name: "empty".to_owned(), derivation: None, object: empty },
        ];
        self.export_some(&asked, key, to)
    }

    fn export(&self, key: Option<&SecretKey>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let contents = self.export_to(key, &mut bytes);
        assert_eq!(contents.objects, 4);
        bytes
    }

    /// Compares all that a store has with what it should be, and says how many objects that is.
    fn assert_sound(&self, user: &Machine) -> usize {
        let mut count = 0;
        for object in &self.objects {
            let id = object.id();
            if user.store.contains(&id).expect("readable") {
                assert_intact(&user.store, object);
                assert!(user.store.contains_closure(&[id]).expect("readable"), "{}", object.name);
                count += 1;
            }
        }
        let infos = fs::read_dir(user.store.directory("info")).expect("listed").count();
        assert_eq!(infos, count, "something else was registered");
        count
    }
}

fn import_from(user: &Machine, from: File, policy: &Policy) -> Result<Report, ImportError> {
    let importer = Importer { store: &user.store, policy, trusted_outright: false };
    importer.import(from, "it", Arc::new(|_| Ok(())))
}

fn import(user: &Machine, bytes: &[u8]) -> Result<Report, ImportError> {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    import_from(user, file, &trusting(&[]))
}

fn trusting(keys: &[&SecretKey]) -> Policy {
    Policy { trusted: ring(keys), ..Policy::default() }
}

/// An export in parts: its beginning, its entries, its end.
fn parts(export: &[u8]) -> Vec<Vec<u8>> {
    let begin = b"srp export 1\n".len();
    let mut decoder = Decoder::new(&export[begin..]);
    decoder.bytes().expect("contents");
    let mut at = export.len() - decoder.rest().len();
    let mut parts = vec![export[..at].to_vec()];
    while decoder.bytes().expect("a path") != b"" {
        decoder.integer().expect("an offset");
        decoder.bytes().expect("content");
        let end = export.len() - decoder.rest().len();
        parts.push(export[at..end].to_vec());
        at = end;
    }
    assert!(decoder.rest().is_empty());
    parts.push(export[at..].to_vec());
    parts
}

#[test]
fn a_closure_goes_through_a_pipe_and_is_not_written_twice() {
    let builder = Builder::new(3 << 20);
    let user = Machine::new();
    let through_pipe = || {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                builder.export_to(None, &mut writer);
                drop(writer);
            });
            let from = File::from(OwnedFd::from(reader));
            import_from(&user, from, &trusting(&[])).expect("imported")
        })
    };
    let report = through_pipe();
    assert_eq!((report.objects, report.present, report.unsigned), (4, 0, 2), "{report:?}");
    assert_eq!(report.contents.asked[0].name, "t.x");
    assert_eq!(builder.assert_sound(&user), 4);
    let inodes = || -> Vec<u64> {
        let of = |object: &Object| fs::metadata(user.path(object)).expect("there").ino();
        builder.objects.iter().map(of).collect()
    };
    let before = inodes();
    let report = through_pipe();
    assert_eq!((report.objects, report.present), (0, 4));
    assert_eq!(inodes(), before);
    assert_eq!(builder.export(None), builder.export(None), "the same store, the same bytes");
    assert!(fs::read_dir(user.store.directory("tmp")).expect("listed").count() <= 2);
}

#[test]
fn what_comes_after_the_end_is_left_alone_and_what_comes_before_is_not() {
    let builder = Builder::new(100);
    let export = builder.export(None);
    import(&Machine::new(), &[&export[..], b"the rest of a disk"].concat()).expect("imported");
    for bad in [&b""[..], b"srp", b"srp export 2\n", b"hello, world, this is text"] {
        let error = import(&Machine::new(), bad).expect_err("refused");
        assert!(matches!(error, ImportError::NotAnExport { .. }), "{bad:?}: {error}");
    }
}

#[test]
fn whoever_gets_only_the_beginning_keeps_whole_closures_and_goes_on() {
    let builder = Builder::new(300 << 10);
    let export = builder.export(None);
    let ends = parts(&export).into_iter().scan(0, |end, part| {
        *end += part.len();
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    let whole = ends.len() - 1;
    let mut counts = Vec::new();
    for end in &ends[..whole] {
        for length in [*end, end + 1, end.saturating_sub(1)] {
            let user = Machine::new();
            let error = import(&user, &export[..length]).expect_err("it is cut").to_string();
            let count = builder.assert_sound(&user);
            let said = format!("it ends in the middle: {count} of its ");
            assert!(error.starts_with(&said), "{length}: {error}");
            counts.push(count);
            let report = import(&user, &export).expect("imported");
            assert_eq!(report.present, count as u64);
            assert_eq!(builder.assert_sound(&user), 4);
        }
    }
    assert!(counts.is_sorted() || counts.contains(&3), "{counts:?}");
    assert!([0, 1, 2, 3, 4].iter().all(|count| counts.contains(count)), "{counts:?}");
}

#[test]
fn no_flipped_byte_of_an_export_gets_anything_wrong_into_a_store() {
    let builder = Builder::new(60);
    let key = secret("builder-1", 7);
    let policy = trusting(&[&key]);
    let libc = Exported {
        name: "libc".to_owned(),
        derivation: Some(StaticHash::from_bytes([1; 32])),
        object: builder.objects[0].id(),
    };
    let mut export = Vec::new();
    builder.export_some(std::slice::from_ref(&libc), Some(&key), &mut export);
    assert!(export.len() < 3_000, "{} bytes are too many to flip each", export.len());
    let mut user = Machine::new();
    let mut unnoticed = Vec::new();
    for index in 0..export.len() {
        let mut flipped = export.clone();
        flipped[index] ^= 1 << (index % 8);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&flipped).expect("written");
        file.rewind().expect("rewound");
        let result = import_from(&user, file, &policy);
        if builder.assert_sound(&user) > 0 {
            let importer =
                Importer { store: &user.store, policy: &policy, trusted_outright: false };
            let verdict = importer.verdict(&libc).expect("readable");
            if let Some(Verdict::Accepted { statement, .. }) = verdict {
                let right: Vec<_> = statement.objects().into_values().collect();
                assert_eq!(right, [libc.object]);
            }
            user = Machine::new();
        }
        if result.is_ok() {
            unnoticed.push(index);
        }
    }
    assert_eq!(unnoticed, [0usize; 0]);
}

#[test]
fn what_is_shuffled_is_refused() {
    let builder = Builder::new(100);
    let parts = parts(&builder.export(Some(&secret("builder-1", 7))));
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let record = parts.iter().position(|it| text(it).contains("objects/")).expect("a record");
    let statement = parts.iter().position(|it| text(it).contains("realisations/")).expect("one");
    let entry = |path: &str, offset: u64, length: u64| {
        let mut encoder = crate::encode::Encoder::default();
        encoder.text(path);
        encoder.integer(offset);
        encoder.integer(length);
        encoder.finish()
    };
    let with = |number: usize, part: Vec<u8>| {
        let mut parts = parts.clone();
        parts[number] = part;
        parts
    };
    let without = |number: usize| with(number, Vec::new());
    let swapped = |a: usize, b: usize| {
        let mut parts = parts.clone();
        parts.swap(a, b);
        parts
    };
    let other_name =
        |from: &str, to: &str, number: usize| with(number, text_replaced(&parts[number], from, to));
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (swapped(record, record + 1), "does not follow"),
        (swapped(record + 1, record + 2), "does not follow"),
        (without(record + 1), "does not follow"),
        (without(record + 2), "does not follow"),
        (without(record), "which comes after it"),
        (other_name("objects/", "objectz/", record), "does not belong there"),
        (other_name("objects/", "objects.", record), "does not belong there"),
        (other_name("objects/", "../xxxx/", record), "a path in it is none"),
        (other_name("static/", "dynami/", statement), "is about something else"),
        (with(record, entry("objects/x", 0, u64::MAX)), "has 18446744073709551615 bytes"),
        (with(record, entry("objects/x", u64::MAX, 1)), "ends nowhere"),
        (with(record, entry("objects/x", 5, 0)), "does not begin at its beginning"),
        (with(record, u64::MAX.to_le_bytes().to_vec()), "a path in it has"),
        (with(0, [b"srp export 1\n", &u64::MAX.to_le_bytes()[..]].concat()), "its contents have"),
    ];
    for (case, expected) in cases {
        let user = Machine::new();
        let error = import(&user, &case.concat()).expect_err(expected);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        builder.assert_sound(&user);
    }
}

fn text_replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|it| it == from.as_bytes()).expect("there");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn statements_are_believed_by_the_policy_of_then() {
    let builder = Builder::new(100);
    let (key, other) = (secret("builder-1", 7), secret("builder-2", 8));
    let [signed, by_other] = [&key, &other].map(|key| builder.export(Some(key)));
    let user = Machine::new();
    let decide = |policy: &Policy, report: &Report| {
        let importer = Importer { store: &user.store, policy, trusted_outright: false };
        let verdict = importer.verdict(&report.contents.asked[0]).expect("readable");
        verdict.expect("it is a derivation").to_string()
    };
    // Nobody is trusted when it is imported; later somebody is.
    let report = import(&user, &signed).expect("imported");
    assert_eq!((report.statements, report.unsigned), (2, 0));
    assert!(decide(&trusting(&[]), &report).starts_with("no trusted builder"));
    assert_eq!(decide(&trusting(&[&key]), &report), "vouched for by builder-1");
    let two = Policy { threshold: 2, ..trusting(&[&key, &other]) };
    assert!(decide(&two, &report).starts_with("only 1 of the 2"));
    import(&user, &by_other).expect("imported");
    assert_eq!(decide(&two, &report), "vouched for by builder-1, builder-2");

    // Unsigned ones count only if whoever imports says so.
    let (user, unsigned) = (Machine::new(), builder.export(None));
    let policy = trusting(&[&key]);
    for trusted_outright in [false, true] {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&unsigned).expect("written");
        file.rewind().expect("rewound");
        let importer = Importer { store: &user.store, policy: &policy, trusted_outright };
        let report = importer.import(file, "it", Arc::new(|_| Ok(()))).expect("imported");
        let verdict = importer.verdict(&report.contents.asked[0]).expect("readable");
        let accepted = matches!(verdict, Some(Verdict::Accepted { .. }));
        assert_eq!((accepted, report.unsigned == 0), (trusted_outright, trusted_outright));
    }

    // A wrong signature is named, a revoked key's is left out.
    let mut parts = parts(&signed);
    let statement = parts.len() - 2;
    let begin = parts[statement].windows(7).position(|it| it == b"ed25519").expect("signed");
    parts[statement][begin + 40] ^= 1;
    let import_with = |bytes: &[u8], policy: &Policy| {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file.rewind().expect("rewound");
        import_from(&Machine::new(), file, policy)
    };
    let error = import_with(&parts.concat(), &policy).expect_err("refused").to_string();
    assert!(error.contains("the signature by builder-1"), "{error}");
    let revoking = Policy { revoked: [key.public().id()].into(), ..policy };
    let report = import_with(&signed, &revoking).expect("imported");
    assert_eq!((report.statements, report.revoked), (0, 2));
}

#[test]
fn packs_are_kept_within_their_limit_and_written_again() {
    let builder = Builder::new(50_000);
    let store = &builder.machine.store;
    let directory = builder.machine.directory.path().join("packs");
    let infos: Vec<_> =
        builder.objects.iter().map(|it| store.info(&it.id()).expect("there")).collect();
    let packs = Packs::open(&directory, 10_000).expect("opened");
    let records: Vec<_> =
        infos.iter().map(|info| packs.record(store, info).expect("packed")).collect();
    assert_eq!(records[1].location, records[2].location, "one tree, one pack");
    let there = || list_names(&directory.join("packs"));
    assert!(!there().contains(&records[0].location.pack.to_string()), "the large one is gone");
    // What is known of it survives the process, and it is written again.
    let packs = Packs::open(&directory, 10_000).expect("opened");
    assert_eq!(packs.record(store, &infos[0]).expect("known"), records[0]);
    assert!(!there().contains(&records[0].location.pack.to_string()), "nothing was packed");
    let pack = records[0].location.pack;
    let mut file = packs.file(store, &pack).expect("packed").expect("there");
    assert_eq!(crate::cache::pack_writer::hash(&mut file).expect("readable"), pack);
    assert_eq!(there(), [pack.to_string()], "the newest stays whatever its size");
    assert!(packs.file(store, &Digest::of_file(b"x")).expect("no error").is_none());
}

fn list_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("listed");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
