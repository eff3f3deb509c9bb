//! Why an object is kept: a chain of references that leads to it, searched from its end.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::digest::ObjectId;
use crate::error::StoreError;
use crate::gc::graph::Number;
use crate::gc::kept::{self, Age, Kept, as_time};
use crate::gc::{Control, Retention};
use crate::object::ObjectName;
use crate::rely::{Gate, Relied};
use crate::store::Store;

/// Why an object is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhyAlive {
    /// What keeps the first of the chain.
    pub by: Keeper,
    /// What refers to the object, that which is kept first, the object itself last.
    pub chain: Vec<ObjectName>,
}

/// What keeps an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A generation of a root.
    Root {
        /// The root.
        name: String,
        /// Its generation.
        generation: u64,
    },
    /// A running process.
    Process {
        /// Its directory in `tmp/`.
        session: String,
    },
    /// It was made or used lately.
    Recent {
        /// When that was.
        used: Option<SystemTime>,
    },
}

impl Store {
    /// Why an object is kept: by a root if there is one that does, else by a process, else by its
    /// age. `None`: nothing keeps it.
    ///
    /// # Errors
    /// [`StoreError::NoObject`], or something that says what is kept can't be read.
    pub fn why_alive(
        &self,
        id: &ObjectId,
        retention: &Retention,
    ) -> Result<Option<WhyAlive>, StoreError> {
        // Others than the store's owner can't look into what processes rely on.
        let relied = if self.is_writable() {
            let gate = Gate::exclusive(self, Control::NONE.is_cancelled)?;
            self.relied_on(&gate)?
        } else {
            Vec::new()
        };
        let roots = self.roots()?;
        let kept = Kept::new(self, self.graph()?, &roots, &relied)?;
        let graph = &kept.graph;
        let to = graph.number(id).filter(|number| graph.is_here(*number));
        let to =
            to.ok_or_else(|| StoreError::NoObject { id: *id, path: self.root().to_owned() })?;
        let mut by_root: BTreeMap<Number, Keeper> = BTreeMap::new();
        for root in &roots {
            let (name, generation) = (root.name.clone(), root.generation);
            if let Some(number) = graph.number(&root.object.id) {
                by_root.insert(number, Keeper::Root { name, generation });
            }
        }
        let mut by_process = BTreeMap::new();
        for (session, relied) in relied {
            if let Relied::Object(id) = relied
                && let Some(number) = graph.number(&id)
            {
                by_process.insert(number, Keeper::Process { session });
            }
        }
        for starts in [by_root, by_process] {
            if let Some(chain) = graph.chain_to(to, &|number| starts.contains_key(&number)) {
                let by = starts[&chain[0]].clone();
                return Ok(Some(WhyAlive { by, chain: self.names(&kept, &chain)? }));
            }
        }
        let age = Age::of(retention.older_than);
        let used = |number: Number| {
            let path = self.info_path(kept.graph.id(number));
            kept::modified(&path).ok().flatten()
        };
        let is_young = |number: Number| used(number).is_some_and(|time| age.is_young(time));
        let Some(chain) = kept.graph.chain_to(to, &is_young) else { return Ok(None) };
        let by = Keeper::Recent { used: used(chain[0]).and_then(as_time) };
        Ok(Some(WhyAlive { by, chain: self.names(&kept, &chain)? }))
    }

    fn names(&self, kept: &Kept, chain: &[Number]) -> Result<Vec<ObjectName>, StoreError> {
        let name = |number: &Number| Ok(self.info(kept.graph.id(*number))?.object.path_name());
        chain.iter().map(name).collect()
    }
}
