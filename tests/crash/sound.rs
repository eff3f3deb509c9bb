//! Says what is wrong with a store, from docs/store-layout.md alone: no code of srp's is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// All that is wrong with the store; empty: it is sound.
pub(crate) fn problems(store: &Path) -> Vec<String> {
    let mut looking = Looking { store, problems: Vec::new() };
    looking.all();
    looking.problems
}

struct Looking<'a> {
    store: &'a Path,
    problems: Vec<String>,
}

type Id = [u8; 20];
type Outputs = BTreeMap<String, Id>;

struct Object {
    name: String,
    tree: [u8; 32],
    references: Vec<Id>,
}

impl Looking<'_> {
    fn all(&mut self) {
        let meta = fs::read_to_string(self.store.join("meta")).unwrap_or_default();
        self.check(meta == "srp store\nformat 2\n", "meta", "is not as it should be");
        let trees = self.trees();
        let mut objects = BTreeMap::new();
        for (name, bytes) in self.records("info", b'i') {
            match object(&bytes) {
                None => self.wrong(&format!("info/{name}"), "can't be decoded"),
                Some((object, id)) => {
                    self.check(base32(&id) == name, &format!("info/{name}"), "has another id");
                    objects.insert(id, object);
                }
            }
        }
        for (id, object) in &objects {
            let path = format!("info/{}", base32(id));
            let tree = hexadecimal(&object.tree);
            self.check(trees.contains(&tree), &path, "names a tree that is not there");
            let link = format!("objects/{}-{}", base32(id), object.name);
            let target = fs::read_link(self.store.join(&link)).unwrap_or_default();
            let right = target == Path::new("../trees").join(tree);
            self.check(right, &link, "doesn't lead to the tree");
            for reference in &object.references {
                let there = objects.contains_key(reference);
                self.check(
                    there,
                    &path,
                    &format!("refers to {}, which has no record", base32(reference)),
                );
            }
        }
        for (name, kind) in [("static", b's'), ("resolved", b'r')] {
            let directory = format!("realisations/{name}");
            for (name, bytes) in self.records(&directory, kind) {
                let path = format!("{directory}/{name}");
                match outputs(&bytes, kind) {
                    None => self.wrong(&path, "can't be decoded"),
                    Some(outputs) => {
                        for (output, id) in outputs {
                            let there = objects.contains_key(&id);
                            self.check(
                                there,
                                &path,
                                &format!("names {output}, which is not there"),
                            );
                        }
                    }
                }
            }
        }
        for root in self.names("roots") {
            for generation in self.names(&format!("roots/{root}")) {
                let path = format!("roots/{root}/{generation}");
                let leads = fs::metadata(self.store.join(&path)).is_ok();
                self.check(leads && generation.parse::<u64>().is_ok(), &path, "leads nowhere");
            }
        }
        for name in self.names("objects") {
            let leads = fs::metadata(self.store.join("objects").join(&name)).is_ok();
            self.check(leads, &format!("objects/{name}"), "leads nowhere");
        }
    }

    /// The digests of the trees, each of which is what its name says and has its listing.
    fn trees(&mut self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let names = self.names("trees");
        for name in &names {
            let path = self.store.join("trees").join(name);
            match name.strip_suffix(".listing") {
                Some(digest) => {
                    let bytes = fs::read(&path).unwrap_or_default();
                    let right = listing_root(&bytes).as_deref() == Some(digest);
                    self.check(right, &format!("trees/{name}"), "is not its tree's");
                }
                None => {
                    let hashed = self.hash(&path).map(|digest| hexadecimal(&digest));
                    let right = hashed.as_deref() == Some(name);
                    self.check(right, &format!("trees/{name}"), "is not what its name says");
                    let listing = format!("{name}.listing");
                    let listed = names.contains(&listing);
                    self.check(listed, &format!("trees/{name}"), "has no listing");
                    found.insert(name.clone());
                }
            }
        }
        found
    }

    /// A directory's digest; none if something of it is as nothing in a store may be.
    fn hash(&mut self, directory: &Path) -> Option<[u8; 32]> {
        let mut entries: Vec<_> =
            fs::read_dir(directory).ok()?.map(|it| it.unwrap().path()).collect();
        entries.sort_by(|a, b| {
            a.file_name().unwrap().as_bytes().cmp(b.file_name().unwrap().as_bytes())
        });
        let mut encoding = Vec::new();
        for path in entries {
            let metadata = fs::symlink_metadata(&path).ok()?;
            let mode = metadata.permissions().mode() & 0o7777;
            let fields: [Vec<u8>; 3] = if metadata.is_dir() {
                self.check(mode == 0o555, &path.display().to_string(), "can be written to");
                [b"d".to_vec(), Vec::new(), hexadecimal(&self.hash(&path)?).into_bytes()]
            } else if metadata.is_symlink() {
                [b"l".to_vec(), Vec::new(), fs::read_link(&path).ok()?.into_os_string().into_vec()]
            } else {
                let kind = match mode {
                    0o444 => b"f",
                    0o555 => b"x",
                    _ => return None,
                };
                let bytes = fs::read(&path).ok()?;
                let digest = blake3::hash(&bytes).to_hex().to_string();
                [kind.to_vec(), bytes.len().to_string().into_bytes(), digest.into_bytes()]
            };
            let name = path.file_name().unwrap().as_bytes().to_vec();
            for field in fields.into_iter().chain([name]) {
                encoding.extend(field);
                encoding.push(0);
            }
        }
        Some(blake3::derive_key("srp directory v1", &encoding))
    }

    /// The records of a directory: their names, and what is in them.
    fn records(&mut self, directory: &str, kind: u8) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        for name in self.names(directory) {
            let path = format!("{directory}/{name}");
            let bytes = fs::read(self.store.join(&path)).unwrap_or_default();
            let sound = bytes.len() >= 13
                && bytes[..5] == [b's', b'r', b'p', kind, 2]
                && bytes[5..13]
                    == blake3::derive_key(
                        "srp record v2",
                        &[name.as_bytes(), &bytes[13..]].concat(),
                    )[..8];
            self.check(sound, &path, "is damaged");
            if sound {
                records.push((name, bytes[13..].to_vec()));
            }
        }
        records
    }

    /// What a directory holds; nothing may be half-written there.
    fn names(&mut self, directory: &str) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.store.join(directory)).into_iter().flatten() {
            let Ok(entry) = entry else {
                self.wrong(directory, "can't be read");
                break;
            };
            let name = entry.file_name().into_string().unwrap();
            let plain = !name.starts_with('.');
            self.check(plain, &format!("{directory}/{name}"), "is half-written");
            if plain {
                names.push(name);
            }
        }
        names.sort();
        names
    }

    fn check(&mut self, right: bool, path: &str, wrong: &str) {
        if !right {
            self.wrong(path, wrong);
        }
    }

    fn wrong(&mut self, path: &str, wrong: &str) {
        self.problems.push(format!("{path} {wrong}"));
    }
}

/// Reads canonical encodings.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn integer(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.integer()?.try_into().ok()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn outputs(&mut self) -> Option<Outputs> {
        (0..self.integer()?)
            .map(|_| Some((self.text()?, self.take(20)?.try_into().ok()?)))
            .collect()
    }
}

/// The object of an info record, and its id.
fn object(record: &[u8]) -> Option<(Object, Id)> {
    let mut outer = Reader(record);
    let bytes = outer.bytes()?;
    let _size_bytes = outer.integer()?;
    let mut reader = Reader(bytes);
    let (name, tree) = (reader.text()?, reader.take(32)?.try_into().ok()?);
    let references = (0..reader.integer()?)
        .map(|_| {
            reader.integer().filter(|kind| *kind <= 1)?;
            reader.take(20)?.try_into().ok()
        })
        .collect::<Option<Vec<Id>>>()?;
    for _ in 0..reader.integer()? {
        reader.text()?;
        reader.text()?;
    }
    let id = blake3::derive_key("srp object v1", bytes)[..20].try_into().ok()?;
    let whole = outer.0.is_empty() && reader.0.is_empty();
    whole.then_some((Object { name, tree, references }, id))
}

/// The outputs that a realisation or claim names.
fn outputs(record: &[u8], kind: u8) -> Option<Outputs> {
    let mut outer = Reader(record);
    let mut reader = Reader(outer.bytes()?);
    if kind == b's' {
        reader.take(32)?;
    }
    let outputs = reader.outputs()?;
    match kind {
        b's' => {
            for _ in 0..reader.integer()? {
                reader.take(32)?;
                reader.text()?;
                reader.take(20)?;
            }
        }
        _ => {
            reader.text()?;
            reader.text()?;
            reader.text()?;
            reader.integer()?;
            reader.integer()?;
        }
    }
    (outer.0.is_empty() && reader.0.is_empty()).then_some(outputs)
}

/// The digest of a listing's first directory, if every directory that is named is in it.
fn listing_root(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader(bytes);
    let (mut order, mut named) = (Vec::new(), BTreeSet::new());
    while !reader.0.is_empty() {
        let directory = reader.bytes()?;
        order.push(hexadecimal(&blake3::derive_key("srp directory v1", directory)));
        let fields: Vec<&[u8]> = directory.split(|byte| *byte == 0).collect();
        for entry in fields.chunks_exact(4).filter(|entry| entry[0] == b"d") {
            named.insert(String::from_utf8(entry[2].to_vec()).ok()?);
        }
    }
    let root = order.first()?.clone();
    named.iter().all(|digest| order.contains(digest)).then_some(root)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base32(id: &Id) -> String {
    let digit = |number: usize| {
        let bit = |at: usize| usize::from(id[at / 8] >> (7 - at % 8) & 1);
        (0..5).fold(0, |value, at| value * 2 + bit(number * 5 + at))
    };
    (0..32).map(|number| char::from(b"0123456789abcdefghjkmnpqrstvwxyz"[digit(number)])).collect()
}
