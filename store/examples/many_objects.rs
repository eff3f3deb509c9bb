//! Fills a store for the benchmark of collections: `many_objects STORE OBJECTS REFERENCES TREES`.
//!
//! Each object refers to so many that were made before it; every third one, and what it refers to,
//! hangs on no root. So that a million of them lie on a disk of ordinary size, `TREES` trees of one
//! small file are shared by all.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use srp_store::ingest::{self, Rules};
use srp_store::{Access, Listing, Object, ObjectId, OpenTree, Reference, ReferenceKind};
use srp_store::{Registration, Store};

/// How many are registered together.
const GROUP: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, store, objects, references, trees] = &*arguments else {
        return Err("usage: many_objects STORE OBJECTS REFERENCES TREES".into());
    };
    let store = Store::open(Path::new(store), Access::WriteUnsynced)?;
    let listings = trees_of(&store, trees.parse()?)?;
    let (objects, references): (usize, usize) = (objects.parse()?, references.parse()?);
    // Two families, in each of which every object is reached from its last one.
    let mut families: [Vec<ObjectId>; 2] = [Vec::new(), Vec::new()];
    let mut random = 1u64;
    let mut registration = Registration::default();
    let mut last = None;
    for number in 0..objects {
        let family = &mut families[usize::from(number % 3 == 0)];
        let mut chosen: BTreeSet<ObjectId> = family.last().copied().into_iter().collect();
        while chosen.len() < references.min(family.len()) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            chosen.insert(family[(random >> 33) as usize % family.len()]);
        }
        let reference = |object| Reference { kind: ReferenceKind::Run, object };
        let listing = &listings[number % listings.len()];
        let object = Object {
            name: format!("object-{number}").parse()?,
            tree: listing.digest(),
            references: chosen.into_iter().map(reference).collect(),
            permissions: BTreeMap::new(),
        };
        family.push(object.id());
        registration.existing_tree(&store, &object, listing);
        if number % 3 == 1 {
            last = Some(object.path_name());
        }
        if number % GROUP == GROUP - 1 {
            store.commit(std::mem::take(&mut registration))?;
        }
    }
    store.commit(registration)?;
    if let Some(last) = last {
        store.set_root("many", &last)?;
    }
    Ok(())
}

fn trees_of(store: &Store, count: usize) -> Result<Vec<Arc<Listing>>, Box<dyn Error>> {
    let mut listings = Vec::new();
    let scratch = store.scratch()?;
    let mut registration = Registration::default();
    for number in 0..count {
        let tree = scratch.path().join(number.to_string());
        fs::create_dir(&tree)?;
        fs::write(tree.join("file"), number.to_string())?;
        let listing = Arc::new(ingest::take(&OpenTree::open(&tree)?, Rules::default())?);
        let object = Object {
            name: "tree".parse()?,
            tree: listing.digest(),
            references: BTreeSet::new(),
            permissions: BTreeMap::new(),
        };
        registration.object(store, &object, Arc::clone(&listing), tree);
        listings.push(listing);
        if number % GROUP == GROUP - 1 {
            store.commit(std::mem::take(&mut registration))?;
        }
    }
    store.commit(registration)?;
    Ok(listings)
}
