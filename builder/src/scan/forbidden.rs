//! Searches an output for names that must not be in it, such as `/srp/build`.
//!
//! Every byte of every file is searched, every symlink's text, and what files hold in compressed
//! form (`containers`). A name counts wherever its bytes are, whatever follows or precedes them.
//! It isn't a search for encodings: UTF-16, base-64 and the like are not looked into, nor streams
//! inside formats of their own (PDF, PNG, squashfs).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;

use memchr::memmem::Finder;
use srp_store::{Crew, OpenTree, StoreError};

use super::{ScanError, containers, walk};
use crate::archive::{Budget, Exceeded, LargeFiles};
use crate::cancel::CancelToken;

/// The most that is unpacked from one file, over all its members.
const UNPACKED_LIMIT_BYTES: u64 = 4 << 30;

/// The most that is unpacked from all files of one output.
const OUTPUT_LIMIT_BYTES: u64 = 64 << 30;

/// The most memory that the decoders of one file hold. Above a little, files take turns.
const MEMORY_LIMIT_BYTES: u64 = 1 << 30;

/// Where a forbidden name was found: its first place in a file, or in one member of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Occurrence {
    /// The file's or symlink's path in its tree, without a leading slash.
    pub file: String,
    /// The name that was found.
    pub needle: String,
    /// How many bytes lie before it: in the file, in the symlink's text, or in the unpacked
    /// content of what `inside` names.
    pub offset: u64,
    /// The way to the content in which it was found, such as `gzip > tar member usr/bin/x`;
    /// `None` when it is in the file's own bytes.
    pub inside: Option<String>,
}

impl fmt::Display for Occurrence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Occurrence { file, needle, offset, inside } = self;
        write!(formatter, "{file} contains {needle} at byte {offset}")?;
        match inside {
            Some(inside) => write!(formatter, " of its {inside}"),
            None => Ok(()),
        }
    }
}

/// Searches every file of `tree` for every one of `needles`, but those that `allowed` says of by
/// their paths in the tree. The result is sorted.
pub fn forbidden(
    crew: &Crew,
    tree: &OpenTree,
    needles: &[&str],
    allowed: &(dyn Fn(&str) -> bool + Sync),
    cancel: &CancelToken,
) -> Result<Vec<Occurrence>, ScanError> {
    let needles: Vec<&str> = needles.iter().copied().filter(|needle| !needle.is_empty()).collect();
    if needles.is_empty() {
        return Ok(Vec::new());
    }
    let needles = Needles::new(&needles);
    let shared = LargeFiles::new(OUTPUT_LIMIT_BYTES);
    let mut occurrences = super::each(crew, tree, cancel, |entry| {
        if allowed(&entry.name) {
            return Ok(Vec::new());
        }
        let budget = Budget::one_of(&shared, cancel, MEMORY_LIMIT_BYTES, UNPACKED_LIMIT_BYTES);
        let hits = match entry.kind {
            walk::Kind::Regular => search_file(tree, entry, Search::new(&needles, budget))?,
            walk::Kind::Symlink => search_symlink(tree, entry, &needles)?,
        };
        if cancel.is_cancelled() {
            return Err(StoreError::Cancelled.into());
        }
        let occurrence = |hit: Hit| Occurrence {
            file: entry.name.clone(),
            needle: needles.texts[hit.needle].to_owned(),
            offset: hit.offset,
            inside: hit.inside,
        };
        Ok(hits.into_iter().map(occurrence).collect())
    })?;
    occurrences.sort_unstable();
    occurrences.dedup();
    Ok(occurrences)
}

/// What to search for. The sandbox's names all start alike, and one pass for that start is faster
/// than one for each of them.
pub(super) struct Needles<'a> {
    texts: &'a [&'a str],
    finders: Vec<Finder<'a>>,
    start: Option<Finder<'a>>,
}

impl<'a> Needles<'a> {
    /// `texts` has at least one, and none is empty.
    pub(super) fn new(texts: &'a [&'a str]) -> Needles<'a> {
        let first = texts[0].as_bytes();
        let alike =
            |text: &&str| first.iter().zip(text.bytes()).take_while(|(a, b)| **a == *b).count();
        let start = &first[..texts.iter().map(alike).min().unwrap_or(0)];
        // A start of a byte or two is everywhere.
        let start = (texts.len() > 1 && start.len() > 2).then(|| Finder::new(start));
        Needles { texts, finders: texts.iter().map(Finder::new).collect(), start }
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn longest(&self) -> usize {
        self.texts.iter().map(|text| text.len()).max().unwrap_or(1)
    }

    /// Sets `found`, which has a place for every needle, where it is unset and `bytes` has the
    /// needle, to its first place plus `base`.
    pub(super) fn find(&self, bytes: &[u8], base: u64, found: &mut [Option<u64>]) {
        let Some(start) = &self.start else {
            for (finder, found) in self.finders.iter().zip(found) {
                *found = found.or_else(|| Some(base + finder.find(bytes)? as u64));
            }
            return;
        };
        for at in start.find_iter(bytes) {
            for (text, found) in self.texts.iter().zip(found.iter_mut()) {
                if found.is_none() && bytes[at..].starts_with(text.as_bytes()) {
                    *found = Some(base + at as u64);
                }
            }
        }
    }
}

/// A needle found, while the file is known from the context.
pub(super) struct Hit {
    pub(super) needle: usize,
    pub(super) offset: u64,
    pub(super) inside: Option<String>,
}

/// What the search of one file shares between its levels.
pub(super) struct Search<'a> {
    /// What to search for.
    pub(super) needles: &'a Needles<'a>,
    /// What unpacking may still cost.
    pub(super) budget: Budget<'a>,
    /// What it would have cost too much of.
    pub(super) exceeded: RefCell<Option<Exceeded>>,
    /// Whether archives were nested too deep to enter.
    pub(super) too_deep: Cell<bool>,
    /// What was found.
    pub(super) hits: RefCell<Vec<Hit>>,
}

impl<'a> Search<'a> {
    pub(super) fn new(needles: &'a Needles<'a>, budget: Budget<'a>) -> Search<'a> {
        Search {
            needles,
            budget,
            exceeded: RefCell::new(None),
            too_deep: Cell::new(false),
            hits: RefCell::new(Vec::new()),
        }
    }

    /// Remembers what ended the search of a level, if it was a limit.
    pub(super) fn failed(&self, error: &io::Error) {
        if let Some(exceeded) = Exceeded::of(error) {
            self.exceeded.borrow_mut().get_or_insert_with(|| exceeded.clone());
        }
    }
}

fn search_file(
    tree: &OpenTree,
    entry: &walk::Found,
    search: Search<'_>,
) -> Result<Vec<Hit>, ScanError> {
    let unreadable = |error| walk::unreadable(tree, &entry.path, error);
    let (file, stat) = tree.file(&entry.path).map_err(|e| unreadable(io::Error::from(e)))?;
    let searched = containers::search_file(&search, file, stat.st_size as u64);
    if let Err(error) = &searched {
        search.failed(error);
    }
    if let Some(source) = search.exceeded.borrow_mut().take() {
        return Err(ScanError::Limit { file: entry.name.clone(), source });
    }
    if search.budget.is_cancelled() {
        return Err(StoreError::Cancelled.into());
    }
    searched.map_err(unreadable)?;
    if search.too_deep.get() {
        let limit = containers::DEPTH_LIMIT;
        return Err(ScanError::NestedTooDeep { file: entry.name.clone(), limit });
    }
    Ok(search.hits.take())
}

fn search_symlink(
    tree: &OpenTree,
    entry: &walk::Found,
    needles: &Needles<'_>,
) -> Result<Vec<Hit>, ScanError> {
    let target =
        tree.link(&entry.path).map_err(|error| walk::unreadable(tree, &entry.path, error))?;
    let mut found = vec![None; needles.len()];
    // Links were made relative, so one at the top that led to `/srp/build` says `srp/build`.
    let root: &[u8] = if entry.path.contains(&b'/') { b"" } else { b"/" };
    needles.find(&[root, &target].concat(), 0, &mut found);
    let before = root.len() as u64;
    let found = found.into_iter().map(|at| at.map(|at| at.saturating_sub(before)));
    let hit = |(needle, offset): (usize, Option<u64>)| {
        Some(Hit { needle, offset: offset?, inside: None })
    };
    Ok(found.enumerate().filter_map(hit).collect())
}

#[cfg(test)]
#[path = "forbidden_tests.rs"]
mod tests;
