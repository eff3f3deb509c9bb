//! Before a build: that everything in its root was verified lately, and what becomes of what is
//! damaged.
//!
//! A damaged input is given up, so that it counts as not here; then everything is planned anew,
//! and it is built or fetched again. That happens once for each tree: what is damaged again as soon
//! as it was made anew says that this machine can't be relied on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use srp_store::{Assurance, Digest, ObjectId, Role, StoreError};

use crate::build::Roots;
use crate::event::{Activity, Event};
use crate::request::FailureCause;
use crate::work::Work;

impl Work<'_> {
    /// Verifies what the build will see, where that was not done lately.
    ///
    /// # Errors
    /// [`StoreError::Unsound`] for what is damaged.
    pub(crate) fn assure(&self, roots: &Roots) -> Result<(), FailureCause> {
        let mut trees: BTreeSet<Digest> = roots.trees().collect();
        let beside = self.role(Role::Sources).into_iter().chain(self.runner_object());
        for id in beside {
            trees.insert(self.store.info(&id)?.object.tree);
        }
        self.with_assurance(|assurance| self.store.assure_all(&trees, assurance))
    }

    /// Does something that may have to verify, and shows that as what is done for the derivation.
    pub(crate) fn with_assurance<T>(
        &self,
        action: impl FnOnce(&Assurance<'_>) -> Result<T, StoreError>,
    ) -> Result<T, FailureCause> {
        let (task, began) = (self.task(), AtomicBool::new(false));
        let progress = |bytes, total| {
            if !began.swap(true, Ordering::Relaxed) {
                self.observer.event(Event::Started { task, activity: Activity::Verifying });
            }
            self.observer.event(Event::Verified { task, bytes, total });
        };
        let cancel = Some(self.cancel.flag());
        // What an audit finds may be signed, if not now.
        let validity = self.store.validity();
        let (activity, within) = match self.is_audit {
            true => (Activity::Auditing, validity.signing),
            false => (Activity::Building, validity.building),
        };
        let done = action(&Assurance { within, cancel, progress: &progress })?;
        if began.into_inner() {
            self.observer.event(Event::Started { task, activity });
        }
        Ok(done)
    }

    /// Whether everything is to be planned anew, because an input was found to be damaged: it is
    /// given up then.
    pub(crate) fn give_up_damaged(&self, cause: &FailureCause) -> Result<bool, StoreError> {
        let FailureCause::Store(error @ StoreError::Unsound { tree: Some(tree), .. }) = cause
        else {
            return Ok(false);
        };
        let again = !self.store.give_up(tree);
        let name = self.name_of(tree)?;
        match again {
            false => tracing::warn!("{error}: {name} is built or fetched again"),
            true => tracing::error!(
                "{name} was made anew, and is damaged again: is the disk, or the memory, defective?"
            ),
        }
        Ok(!again)
    }

    fn runner_object(&self) -> Option<ObjectId> {
        self.runner.as_ref().map(|(_, object)| *object)
    }

    /// The object that a tree is of, among the inputs and what they refer to.
    fn name_of(&self, tree: &Digest) -> Result<String, StoreError> {
        let ids: Vec<ObjectId> =
            self.inputs.values().copied().chain(self.runner_object()).collect();
        let closure = self.store.closure(&ids, srp_store::ReferenceKind::ALL)?;
        let found = closure.into_iter().find(|(_, info)| info.object.tree == *tree);
        Ok(found.map_or_else(|| "it".to_owned(), |(_, info)| info.object.path_name().to_string()))
    }
}
