//! What differs between registered and rebuilt trees: by path, and within files by what they are.
//!
//! Paths come from the listings, so subtrees that are equal cost nothing more than their digests.
//! Only files that differ are read. They are looked into by their format; what can't be parsed is
//! told by its bytes. Every list and every line has a bound: this explains, it is no full diff.

mod archive;
mod binary;
mod compressed;
mod elf;
mod part;
mod python;
mod signs;
mod text;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use srp_store::{Digest, Entry, Found, Listing, OutputName};

use crate::build::Trees;
use part::Looking;
pub use part::{Part, Sign};

/// So many paths are looked into; of the others only the paths are told.
const LOOKED_INTO: usize = 40;
/// Larger files aren't read.
const LARGEST_BYTES: u64 = 256 << 20;

/// Where a rebuild is not as registered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    /// It failed.
    Failure,
    /// At this path of this output, `/` between names.
    Path(OutputName, Vec<u8>),
}

/// A path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The output.
    pub output: OutputName,
    /// The path in it, absolute.
    pub path: String,
    /// How it differs.
    #[serde(flatten)]
    pub kind: Kind,
    /// What in the file differs.
    pub parts: Vec<Part>,
    /// What was recognised in the parts, also in those that there was no room for.
    pub signs: BTreeSet<Sign>,
}

/// How a path differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Kind {
    /// Only the rebuild has it.
    Added,
    /// Only the registered output has it.
    Removed,
    /// It is another kind of thing.
    Type {
        /// `file`, `directory` or `symlink`.
        registered: Cow<'static, str>,
        /// The same of the rebuild.
        rebuilt: Cow<'static, str>,
    },
    /// A file with the same bytes is executable in one of them only.
    Mode {
        /// Whether the registered one is.
        registered_executable: bool,
    },
    /// A symlink points elsewhere.
    Target {
        /// Where the registered one points.
        registered: String,
        /// Where the rebuilt one points.
        rebuilt: String,
    },
    /// A file has other bytes.
    Content {
        /// The registered file's length.
        registered_bytes: u64,
        /// The rebuilt file's length.
        rebuilt_bytes: u64,
    },
}

/// Where the trees differ.
pub(super) fn points(registered: &Trees, rebuilt: &Trees) -> BTreeSet<Point> {
    let mut points = BTreeSet::new();
    for (output, (_, before)) in registered {
        let Some((_, after)) = rebuilt.get(output) else { continue };
        // An explicit stack: depth comes from what a build wrote.
        let mut stack = vec![(Vec::new(), before.digest(), after.digest())];
        while let Some((path, ours, theirs)) = stack.pop() {
            if ours == theirs {
                continue;
            }
            let (Some(ours), Some(theirs)) = (before.directory(&ours), after.directory(&theirs))
            else {
                continue;
            };
            let names: BTreeSet<&[u8]> =
                ours.iter().chain(theirs.iter()).map(|(name, _)| name).collect();
            for name in names {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                match (ours.get(name), theirs.get(name)) {
                    (Some(one), Some(other)) if one == other => {}
                    (
                        Some(Entry::Directory { digest: one }),
                        Some(Entry::Directory { digest: other }),
                    ) => stack.push((path, *one, *other)),
                    _ => drop(points.insert(Point::Path(output.clone(), path))),
                }
            }
        }
    }
    points
}

/// The changes at those points where the trees differ. `traces` are texts that are in the rebuilt
/// files only if what is varied got there, with what they are signs of.
pub(super) fn changes(
    registered: &Trees,
    rebuilt: &Trees,
    points: &BTreeSet<Point>,
    traces: &[(&str, Sign)],
) -> Vec<Change> {
    let mut changes = Vec::new();
    for point in points {
        let Point::Path(output, path) = point else { continue };
        let (Some((before, one)), Some((after, other))) =
            (registered.get(output), rebuilt.get(output))
        else {
            continue;
        };
        let Some(kind) = kind_at(one, other, path) else { continue };
        let mut looking = Looking::new(traces);
        if matches!(kind, Kind::Content { .. }) && changes.len() < LOOKED_INTO {
            look_into(&mut looking, &at(before, path), &at(after, path));
        }
        if matches!(kind, Kind::Added | Kind::Removed) {
            looking.recognise("", &String::from_utf8_lossy(path));
        }
        if let Kind::Target { registered, rebuilt } = &kind {
            looking.recognise(registered, rebuilt);
        }
        let (parts, mut signs) = looking.found();
        if matches!(kind, Kind::Mode { .. }) {
            signs.insert(Sign::Mode);
        }
        let path = format!("/{}", String::from_utf8_lossy(path));
        changes.push(Change { output: output.clone(), path, kind, parts, signs });
    }
    changes
}

/// The contents, by digest, of those rebuilt files that [`changes`] looks into.
pub(super) fn looked_into(
    registered: &Trees,
    rebuilt: &Trees,
    points: &BTreeSet<Point>,
) -> BTreeSet<Digest> {
    let mut wanted = BTreeSet::new();
    let mut changes = 0;
    for point in points {
        let Point::Path(output, path) = point else { continue };
        let (Some((_, one)), Some((_, other))) = (registered.get(output), rebuilt.get(output))
        else {
            continue;
        };
        let Some(kind) = kind_at(one, other, path) else { continue };
        if let Kind::Content { rebuilt_bytes: ..=LARGEST_BYTES, .. } = kind
            && let Some(Found::Entry(Entry::File { digest, .. })) = other.find(path)
            && changes < LOOKED_INTO
        {
            wanted.insert(*digest);
        }
        changes += 1;
    }
    wanted
}

fn at(tree: &Path, path: &[u8]) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    tree.join(std::ffi::OsStr::from_bytes(path))
}

fn kind_at(registered: &Listing, rebuilt: &Listing, path: &[u8]) -> Option<Kind> {
    let (one, other) = match (registered.find(path), rebuilt.find(path)) {
        (None, None) => return None,
        (None, Some(_)) => return Some(Kind::Added),
        (Some(_), None) => return Some(Kind::Removed),
        (Some(one), Some(other)) => (one, other),
    };
    let text = |target: &[u8]| String::from_utf8_lossy(target).into_owned();
    Some(match (one, other) {
        (
            Found::Entry(Entry::File { digest: one, executable, size_bytes }),
            Found::Entry(Entry::File { digest: other, size_bytes: rebuilt_bytes, .. }),
        ) => match one == other {
            true => Kind::Mode { registered_executable: *executable },
            false => Kind::Content { registered_bytes: *size_bytes, rebuilt_bytes: *rebuilt_bytes },
        },
        (
            Found::Entry(Entry::Symlink { target: one }),
            Found::Entry(Entry::Symlink { target: other }),
        ) => Kind::Target { registered: text(one), rebuilt: text(other) },
        (Found::Directory(_), Found::Directory(_)) => return None,
        (one, other) => {
            Kind::Type { registered: type_of(one).into(), rebuilt: type_of(other).into() }
        }
    })
}

fn type_of(found: Found<'_>) -> &'static str {
    match found {
        Found::Directory(_) | Found::Entry(Entry::Directory { .. }) => "directory",
        Found::Entry(Entry::Symlink { .. }) => "symlink",
        Found::Entry(Entry::File { .. }) => "file",
    }
}

/// Reads both files and looks into them. What can't be read has no parts: that it differs is known
/// anyway.
fn look_into(looking: &mut Looking<'_>, before: &Path, after: &Path) {
    let read = |path: &Path| {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > LARGEST_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(LARGEST_BYTES).read_to_end(&mut bytes)?;
        std::io::Result::Ok(Some(bytes))
    };
    match (read(before), read(after)) {
        (Ok(Some(before)), Ok(Some(after))) => contents(looking, &before, &after, 0),
        (Ok(_), Ok(_)) => looking.note("the file", "it is too large to be looked into"),
        (Err(error), _) | (_, Err(error)) => {
            looking.note("the file", &format!("it can't be read: {error}"));
        }
    }
}

/// Containers within containers are opened so deep.
const DEEPEST: u32 = 4;

/// Looks into two byte strings that differ, by what they are.
fn contents(looking: &mut Looking<'_>, before: &[u8], after: &[u8], depth: u32) {
    if depth > DEEPEST {
        return binary::compare(looking, "", before, after);
    }
    let done = elf::compare(looking, before, after)
        || archive::compare_ar(looking, before, after, depth)
        || archive::compare_tar(looking, before, after, depth)
        || archive::compare_zip(looking, before, after, depth)
        || compressed::compare(looking, before, after, depth)
        || python::compare(looking, before, after)
        || text::compare(looking, before, after);
    if !done {
        binary::compare(looking, "", before, after);
    }
}
