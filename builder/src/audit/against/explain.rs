//! How another object differs from the one that is here: by its listing, and by its files' content
//! as far as a cache has that.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use srp_store::cache::{Fetcher, Holdings, Index, ObjectRecord, Sealed, Statement};
use srp_store::{Object, ObjectId, OutputName, Reference, StoreError};

use super::{Comparison, Difference, Hearing, Identity};
use crate::audit::cause::{self, Cause, Seen};
use crate::audit::compare::{self, Change, Kind};
use crate::build::Trees;

/// Another object's record and the index of its pack, and the number of the site that has them.
struct Found {
    site: usize,
    record: ObjectRecord,
    index: Index,
    whole: Option<Vec<u8>>,
}

impl Hearing<'_> {
    /// Adds how the outputs that a statement names differ from those that are here; each other
    /// object once.
    pub(super) fn explain(
        &self,
        site: usize,
        statement: &Sealed<Statement>,
        comparison: &mut Comparison,
    ) -> Result<(), StoreError> {
        for (output, stated) in &statement.unverified().outputs {
            let Some(here) = comparison.outputs.get(output) else { continue };
            let known = |it: &Difference| (&it.output, it.there.object) == (output, stated.object);
            if here.object == stated.object || comparison.differences.iter().any(known) {
                continue;
            }
            let there = Identity { object: stated.object, tree: stated.tree };
            let difference = self.difference(site, output, &here.object, there)?;
            comparison.differences.push(difference);
        }
        Ok(())
    }

    fn difference(
        &self,
        site: usize,
        output: &OutputName,
        here: &ObjectId,
        there: Identity,
    ) -> Result<Difference, StoreError> {
        let mut difference = Difference {
            output: output.clone(),
            there,
            listed_by: None,
            references_here: Vec::new(),
            references_there: Vec::new(),
            permissions_differ: false,
            changes: Vec::new(),
            causes: Vec::new(),
        };
        let Some(found) = self.find(site, &difference.there.object)? else {
            return Ok(difference);
        };
        difference.listed_by = Some(self.sites[found.site].url().to_owned());
        let (ours, theirs) = (self.store.info(here)?.object, &found.record.object);
        let only = |one: &Object, other: &Object| -> Vec<Reference> {
            one.references.difference(&other.references).copied().collect()
        };
        difference.references_here = only(&ours, theirs);
        difference.references_there = only(theirs, &ours);
        difference.permissions_differ = ours.permissions != theirs.permissions;
        let listing = self.store.listing(&ours.tree)?;
        let one = |tree, listing| Trees::from([(output.clone(), (tree, listing))]);
        let ours = one(self.store.tree_path(&ours.tree), listing);
        let theirs = |tree| one(tree, Arc::clone(&found.index.listing));
        difference.changes = self.changes(&found, &ours, &theirs)?;
        difference.causes = causes(&difference.changes);
        Ok(difference)
    }

    /// An object's listing, from the cache that says it is there, or from another one.
    fn find(&self, first: usize, id: &ObjectId) -> Result<Option<Found>, StoreError> {
        let others = (0..self.sites.len()).filter(|number| *number != first);
        for site in std::iter::once(first).chain(others) {
            let found = self.sites[site].ask(|cache| {
                let Some(record) = cache.object(id)? else { return Ok(None) };
                let (index, whole) = cache.index(&record)?;
                Ok(Some(Found { site, record, index, whole }))
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The paths that differ. Content is looked into if it can be had, and if there is room for it:
    /// a store that can only be read has none.
    fn changes(
        &self,
        found: &Found,
        ours: &Trees,
        theirs: &dyn Fn(PathBuf) -> Trees,
    ) -> Result<Vec<Change>, StoreError> {
        let listed = theirs(PathBuf::new());
        let points = compare::points(ours, &listed);
        let wanted = compare::looked_into(ours, &listed, &points);
        let scratch = match self.store.scratch() {
            Ok(scratch) => Some(scratch),
            Err(error) => {
                tracing::info!(%error, "what differs is only told by path");
                None
            }
        };
        let fetched = match &scratch {
            Some(scratch) if !wanted.is_empty() => {
                let tree = scratch.path().join("there");
                let fetched = self.fetch(found, &wanted, &tree)?;
                fetched.then_some(tree)
            }
            _ => None,
        };
        let read = fetched.is_some();
        let theirs = fetched.map_or(listed, theirs);
        let mut changes = compare::changes(ours, &theirs, &points, &[]);
        if !read {
            // Without the content there is nothing to say of it, not even that it can't be read.
            let content = |change: &&mut Change| matches!(change.kind, Kind::Content { .. });
            for change in changes.iter_mut().filter(content) {
                change.parts.clear();
            }
        }
        Ok(changes)
    }

    /// Fetches single files; false if they are not to be had.
    fn fetch(
        &self,
        found: &Found,
        wanted: &BTreeSet<srp_store::Digest>,
        to: &std::path::Path,
    ) -> Result<bool, StoreError> {
        let fetched = self.sites[found.site].ask(|cache| {
            // Asked again after a transfer that broke: what that left isn't begun with.
            srp_store::remove_tree(to)?;
            let fetcher = Fetcher::new(self.store, cache, Arc::<Holdings>::default());
            let packed = (&found.index, found.whole.clone());
            fetcher.fetch_files(&found.record, packed, wanted, to).map(Some)
        })?;
        Ok(fetched.is_some())
    }
}

/// What the files look like. That nothing was recognised is no cause.
fn causes(changes: &[Change]) -> Vec<Cause> {
    let seen = Seen { when: &[], steady_under: &[], recurs: false, changes };
    let mut causes = cause::causes(&seen);
    causes.retain(|cause| cause.pattern != "random");
    causes
}
