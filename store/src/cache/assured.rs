//! Assured: that what is to be signed, and what it was made from, was verified lately.
//!
//! A statement says that these objects came out of those inputs. Were one byte of either another
//! than its digest says, it would say so all the same: hashes of what was built are all it holds. So
//! nobody states anything with a key without an [`Assured`], and only a verification makes one.

use std::collections::BTreeSet;

use crate::assurance::Assurance;
use crate::cache::key::SecretKey;
use crate::digest::{Digest, ObjectId};
use crate::error::StoreError;
use crate::object::ReferenceKind;
use crate::realisation::Claim;
use crate::store::Store;

/// A proof that trees were verified; or that nobody signs.
#[derive(Debug)]
pub(crate) struct Assured(());

impl Store {
    /// Sees to it that all of these objects, what these claims name as outputs and as inputs, and all
    /// that they refer to was verified within the time that is valid for signing. What isn't here
    /// any more can't be verified, and is left out.
    ///
    /// # Errors
    /// [`StoreError::Unsound`] for what is damaged: nothing may be signed then.
    pub(crate) fn assure_to_sign<'a>(
        &self,
        key: Option<&SecretKey>,
        claims: impl IntoIterator<Item = &'a Claim>,
        objects: impl IntoIterator<Item = ObjectId>,
        assurance: &Assurance<'_>,
    ) -> Result<Assured, StoreError> {
        if key.is_some() {
            let named = claims.into_iter().flat_map(|claim| {
                claim.outputs.values().chain(claim.inputs.values()).copied().collect::<Vec<_>>()
            });
            let trees = self.trees_here(objects.into_iter().chain(named))?;
            self.assure_all(&trees, assurance)?;
        }
        Ok(Assured(()))
    }

    /// Verifies what a claim names as outputs and as inputs, and all that they refer to, as far as it
    /// is here: for whoever signs something else about it.
    ///
    /// # Errors
    /// As of [`assure_all`](Store::assure_all).
    pub fn assure_claim(&self, claim: &Claim, assurance: &Assurance<'_>) -> Result<(), StoreError> {
        let named = claim.outputs.values().chain(claim.inputs.values()).copied();
        self.assure_all(&self.trees_here(named)?, assurance)
    }

    /// As [`assure`](Store::assure); damage is an error.
    pub fn assure_all(
        &self,
        trees: &BTreeSet<Digest>,
        assurance: &Assurance<'_>,
    ) -> Result<(), StoreError> {
        let damaged = self.assure(trees, assurance)?;
        for report in &damaged {
            tracing::error!("{}", self.in_words(report));
        }
        match damaged.first() {
            Some(report) => Err(self.unsound(report)),
            None => Ok(()),
        }
    }

    /// The trees of objects and of all that they refer to, as far as they are here.
    pub fn trees_here(
        &self,
        ids: impl IntoIterator<Item = ObjectId>,
    ) -> Result<BTreeSet<Digest>, StoreError> {
        let (mut trees, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut pending: Vec<ObjectId> = ids.into_iter().collect();
        while let Some(id) = pending.pop() {
            if seen.insert(id)
                && let Some(info) = self.present(&id)?
            {
                trees.insert(info.object.tree);
                pending.extend(info.object.references(ReferenceKind::ALL));
            }
        }
        Ok(trees)
    }
}
