//! Composed roots and outputs as the reference scanner looks into them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use srp_store::compose::Composition;
use srp_store::{Found, Listing, ObjectId, OutputName};

use crate::scan::{Entry as RootEntry, Root};

/// The part of a composition that certain objects provide.
pub(crate) struct Composed<'a> {
    composition: &'a Composition,
    /// The providers' numbers in the composition that count.
    admitted: Vec<usize>,
}

impl<'a> Composed<'a> {
    pub(crate) fn new(composition: &'a Composition, objects: &BTreeSet<ObjectId>) -> Composed<'a> {
        let admitted = composition
            .providers()
            .iter()
            .enumerate()
            .filter(|(_, provider)| objects.contains(&provider.object.id))
            .map(|(index, _)| index)
            .collect();
        Composed { composition, admitted }
    }

    /// The object of a provider.
    pub(crate) fn object(&self, provider: usize) -> ObjectId {
        self.composition.providers()[provider].object.id
    }
}

impl Root for Composed<'_> {
    fn entry(&self, path: &str) -> Option<RootEntry> {
        self.admitted.iter().find_map(|index| {
            let provider = &self.composition.providers()[*index];
            entry(provider.listing(), path, *index, || provider.path.join(path))
        })
    }

    fn name(&self, provider: usize) -> String {
        self.composition.providers()[provider].object.to_string()
    }
}

/// A build's own outputs, seen as one root.
pub(crate) struct Outputs<'a> {
    outputs: Vec<(&'a OutputName, &'a PathBuf, &'a Listing)>,
}

impl<'a> Outputs<'a> {
    pub(crate) fn new(listings: &'a BTreeMap<OutputName, (PathBuf, Arc<Listing>)>) -> Outputs<'a> {
        let outputs = listings.iter().map(|(name, (tree, listing))| (name, tree, &**listing));
        Outputs { outputs: outputs.collect() }
    }

    pub(crate) fn output(&self, provider: usize) -> &OutputName {
        self.outputs[provider].0
    }
}

impl Root for Outputs<'_> {
    fn entry(&self, path: &str) -> Option<RootEntry> {
        self.outputs
            .iter()
            .enumerate()
            .find_map(|(index, (_, tree, listing))| entry(listing, path, index, || tree.join(path)))
    }

    fn name(&self, provider: usize) -> String {
        self.outputs[provider].0.to_string()
    }
}

fn entry(
    listing: &Listing,
    path: &str,
    provider: usize,
    file: impl Fn() -> PathBuf,
) -> Option<RootEntry> {
    Some(match listing.find(path.as_bytes())? {
        Found::Directory(_) => RootEntry::Directory,
        Found::Entry(srp_store::Entry::Symlink { target }) => {
            RootEntry::Symlink { provider, target: String::from_utf8_lossy(target).into_owned() }
        }
        Found::Entry(srp_store::Entry::File { executable, .. }) => {
            RootEntry::File { provider, path: file(), executable: *executable }
        }
        Found::Entry(srp_store::Entry::Directory { .. }) => RootEntry::Directory,
    })
}
