//! The structure of a store: objects' records, trees, listings and store paths, and whether they
//! agree. What is said of derivations is in `records`, what is sealed in `sealed`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::compose::RESERVED;
use crate::db::{self, Info};
use crate::digest::{Digest, ObjectId, ResolvedHash, Sha256, StaticHash};
use crate::error::StoreError;
use crate::listing::Listing;
use crate::manifest;
use crate::object::{Object, ObjectName, ReferenceKind};
use crate::presence::link_target;
use crate::realisation::{Claim, Realisation};
use crate::store::{DIRECTORIES, Store, check_format};
use crate::verify::bytes::look_at_listing;
use crate::verify::names::{Looked, named, read};
use crate::verify::{Report, Subject, Verification};

/// What the store's records say, as far as they can be read.
#[derive(Debug, Default)]
pub struct Structure {
    /// The objects that have a sound record.
    pub(crate) objects: HashMap<ObjectId, Object>,
    /// The trees whose directory is there; with the lengths of all their files, if a listing says
    /// them.
    pub(crate) trees: BTreeMap<Digest, Option<u64>>,
    /// Those of them that hold something at `/srp`.
    pub(crate) reserved: HashSet<Digest>,
    /// What derivations came out as.
    pub(crate) realisations: HashMap<ResolvedHash, Realisation>,
    /// What was chosen for derivations.
    pub(crate) claims: BTreeMap<StaticHash, Claim>,
    /// Composed roots.
    pub(crate) composed: Vec<Digest>,
    /// Files as they were fetched, and their lengths.
    pub(crate) sources: Vec<(Sha256, PathBuf, u64)>,
}

impl Structure {
    /// An object, if its record is sound.
    pub fn object(&self, id: &ObjectId) -> Option<&Object> {
        self.objects.get(id)
    }

    /// The objects that have a tree.
    pub fn objects_with(&self, tree: &Digest) -> impl Iterator<Item = ObjectId> {
        self.objects.iter().filter(move |(_, it)| it.tree == *tree).map(|(id, _)| *id)
    }

    /// What was chosen for derivations.
    pub fn claims(&self) -> impl Iterator<Item = (&StaticHash, &Claim)> {
        self.claims.iter()
    }
}

/// A name in `trees/` or `composed/`.
enum TreeName {
    Tree(Digest),
    Listing(Digest),
}

/// A name in `sources/`.
enum SourceName {
    File(Sha256, String),
    /// Of a transfer that runs, or will go on.
    Partial(String),
}

/// Directories of a store that whoever first has something for them makes.
const MADE_WHEN_NEEDED: &[&str] = &[
    "statements",
    "rebuilt",
    "imported",
    "imported/realisations",
    "served",
    "caches",
    "trash",
    "partial",
    "audits",
    "replaced",
    "index",
];

impl Store {
    /// Looks at everything but the bytes of trees, composed roots and sources.
    pub(super) fn verify_structure(&self, how: &Verification<'_>) -> Result<Report, StoreError> {
        let mut report = Report::default();
        self.verify_meta(&mut report)?;
        match how.closure() {
            Some(ids) => self.read_closure(&mut report, ids),
            None => self.read_objects(&mut report)?,
        }
        how.watch.check()?;
        self.read_trees(&mut report, how)?;
        how.watch.check()?;
        self.verify_objects(&mut report);
        if how.closure().is_some() {
            return Ok(report);
        }
        self.read_others(&mut report)?;
        self.verify_records(&mut report)?;
        self.verify_roots(&mut report)?;
        self.verify_links(&mut report)?;
        how.watch.check()?;
        self.verify_sealed(&mut report, how.keys)?;
        self.find_leftovers(&mut report)?;
        Ok(report)
    }

    fn verify_meta(&self, report: &mut Report) -> Result<(), StoreError> {
        let path = self.root().join("meta");
        let looked = read(&path).required().and_then(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            check_format(self.root(), &text).map_err(|error| error.to_string())?;
            match text.ends_with('\n') {
                true => Ok(()),
                false => Err("it is truncated".to_owned()),
            }
        });
        report.take(Subject::Meta, &path, looked);
        for name in DIRECTORIES {
            let path = self.directory(name);
            // Their owner may have put them elsewhere.
            let looked = match fs::metadata(&path) {
                Ok(found) if found.is_dir() => continue,
                // Links that lead nowhere, too.
                _ if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) => {
                    Looked::<()>::Wrong("it is no directory".to_owned())
                }
                Ok(_) => continue,
                Err(error) => Looked::failed(error).required(),
            };
            report.take(Subject::Directory, &path, looked);
        }
        for name in MADE_WHEN_NEEDED {
            let path = self.directory(name);
            let is_there = fs::symlink_metadata(&path).is_ok();
            if is_there && !fs::metadata(&path).is_ok_and(|found| found.is_dir()) {
                report.find(Subject::Directory, &path, "it is no directory");
            }
        }
        Ok(())
    }

    fn read_objects(&self, report: &mut Report) -> Result<(), StoreError> {
        let parse = |name: &str| name.parse::<ObjectId>().ok();
        let names = named(&self.directory("info"), report, parse)?;
        let looked: Vec<_> = names.par_iter().map(|(id, path)| look_at_info(id, path)).collect();
        for ((id, path), looked) in names.into_iter().zip(looked) {
            if let Some(info) = report.take(Subject::Info(id), &path, looked) {
                report.structure.objects.insert(id, info.object);
            }
        }
        Ok(())
    }

    fn read_closure(&self, report: &mut Report, ids: &[ObjectId]) {
        let mut seen = HashSet::new();
        let mut pending = ids.to_vec();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let path = self.info_path(&id);
            let mut looked = look_at_info(&id, &path);
            if ids.contains(&id) {
                looked = looked.required();
            }
            if let Some(info) = report.take(Subject::Info(id), &path, looked) {
                pending.extend(info.object.references(ReferenceKind::ALL));
                report.structure.objects.insert(id, info.object);
            }
        }
    }

    /// What lies in `trees/`, with the listings of all trees that are there.
    fn read_trees(&self, report: &mut Report, how: &Verification<'_>) -> Result<(), StoreError> {
        let mut trees = Vec::new();
        if how.closure().is_some() {
            let named: HashSet<Digest> =
                report.structure.objects.values().map(|it| it.tree).collect();
            trees.extend(named.into_iter().map(|tree| (tree, self.tree_path(&tree))));
        } else {
            let names = named(&self.directory("trees"), report, TreeName::parse)?;
            trees.extend(names.into_iter().filter_map(|(name, path)| match name {
                TreeName::Tree(tree) => Some((tree, path)),
                // One without a tree is of one that is moved there now, or was to be.
                TreeName::Listing(_) => None,
            }));
        }
        let looked: Vec<_> = trees
            .par_iter()
            .map(|(tree, path)| {
                let there = match fs::symlink_metadata(path) {
                    Ok(found) if found.is_dir() => Looked::Sound(()),
                    Ok(_) => Looked::Wrong("it is no directory".to_owned()),
                    Err(error) => Looked::failed(error),
                };
                (there, self.look_at_listing(tree))
            })
            .collect();
        for ((tree, path), (there, listing)) in trees.into_iter().zip(looked) {
            if report.take(Subject::Tree(tree), &path, there).is_none() {
                continue;
            }
            let listing_path = self.listing_path(&tree);
            // It is there before the tree is.
            let listing = report.take(Subject::Listing(tree), &listing_path, listing.required());
            report.structure.trees.insert(tree, listing.as_ref().map(|it| it.extent().size_bytes));
            if listing.is_some_and(|it| it.find(RESERVED).is_some()) {
                report.structure.reserved.insert(tree);
            }
        }
        Ok(())
    }

    pub(super) fn look_at_listing(&self, tree: &Digest) -> Looked<Listing> {
        let path = self.listing_path(tree);
        read(&path).and_then(|bytes| match Listing::decode(&bytes, *tree, &path) {
            Ok(listing) => Ok(listing),
            Err(StoreError::Damaged { reason, .. }) => Err(reason),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether everything that objects name is there: trees, store paths, other objects.
    fn verify_objects(&self, report: &mut Report) {
        let structure = std::mem::take(&mut report.structure);
        let mut wanted = Wanted::default();
        let mut trees = HashSet::new();
        for (id, object) in &structure.objects {
            let here = self.info_path(id);
            let tree = self.tree_path(&object.tree);
            if !structure.trees.contains_key(&object.tree) && trees.insert(object.tree) {
                report.miss(Subject::Tree(object.tree), &tree, &here);
            }
            let path = self.object_path(&object.path_name());
            let looked = match fs::read_link(&path) {
                Ok(target) if target == link_target(&object.tree) => Looked::Sound(()),
                Ok(target) => Looked::Wrong(format!("it leads to {}", target.display())),
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    Looked::Wrong("it is no symbolic link".to_owned())
                }
                Err(error) => Looked::failed(error).required(),
            };
            report.take(Subject::StorePath(*id), &path, looked);
            for reference in object.references(ReferenceKind::ALL) {
                wanted.object(reference, &here);
            }
            if structure.reserved.contains(&object.tree)
                && let Looked::Sound(listing) = self.look_at_listing(&object.tree)
                && let Err(error @ (StoreError::Reserved { .. } | StoreError::NotAStage { .. })) =
                    manifest::admit(object, &listing, &tree)
            {
                report.find(Subject::Info(*id), &here, error.to_string());
            }
        }
        report.structure = structure;
        self.miss_objects(report, wanted);
    }

    /// Says which of the objects that something names have no record.
    pub(super) fn miss_objects(&self, report: &mut Report, wanted: Wanted) {
        for (id, by) in wanted.0 {
            let subject = Subject::Info(id);
            let known = report.structure.objects.contains_key(&id)
                || report.findings.iter().any(|it| it.subject == subject);
            let path = self.info_path(&id);
            // One that can't be read is no missing one.
            if !known && matches!(look_at_info(&id, &path), Looked::Gone) {
                report.miss(subject, &path, &by);
            }
        }
    }

    /// Composed roots and sources.
    fn read_others(&self, report: &mut Report) -> Result<(), StoreError> {
        for (name, path) in named(&self.directory("composed"), report, TreeName::parse)? {
            if let TreeName::Tree(digest) = name {
                let looked = match fs::symlink_metadata(&path) {
                    Ok(found) if found.is_dir() => Looked::Sound(()),
                    Ok(_) => Looked::Wrong("it is no directory".to_owned()),
                    Err(error) => Looked::failed(error),
                };
                let there = report.take(Subject::Composed(digest), &path, looked);
                // An earlier srp made none.
                let place = self.composed_place(&digest);
                match look_at_listing(&place) {
                    Looked::Gone | Looked::Sound(_) => {}
                    looked => drop(report.take(Subject::Composed(digest), &place.listing, looked)),
                }
                report.structure.composed.extend(there.map(|()| digest));
            }
        }
        for (name, path) in named(&self.directory("sources"), report, SourceName::parse)? {
            let SourceName::File(sha256, _) = name else { continue };
            let looked = match fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() => Looked::Sound(found.len()),
                Ok(_) => Looked::Wrong("it is no file".to_owned()),
                Err(error) => Looked::failed(error),
            };
            if let Some(length) = report.take(Subject::Source(sha256), &path, looked) {
                report.structure.sources.push((sha256, path, length));
            }
        }
        Ok(())
    }

    /// Store paths of objects that have no record.
    fn verify_links(&self, report: &mut Report) -> Result<(), StoreError> {
        let parse = |name: &str| name.parse::<ObjectName>().ok();
        let mut others = None;
        for (name, path) in named(&self.directory("objects"), report, parse)? {
            let id = name.id;
            let subject = Subject::Info(id);
            let known = match report.structure.objects.get(&id) {
                Some(object) => object.name == name.name,
                None => report.findings.iter().any(|it| it.subject == subject),
            };
            if known || !matches!(look_at_info(&id, &self.info_path(&id)), Looked::Gone) {
                continue;
            }
            // The path is made before the record, and a crash may come in between.
            let others = match others {
                Some(others) => others,
                None => *others.insert(!self.other_sessions()?.is_empty()),
            };
            if !others {
                report.miss(subject, &self.info_path(&id), &path);
            }
        }
        Ok(())
    }

    fn verify_roots(&self, report: &mut Report) -> Result<(), StoreError> {
        let parse = |name: &str| name.parse::<crate::name::RootName>().ok();
        for (_, directory) in named(&self.directory("roots"), report, parse)? {
            for (_, path) in named(&directory, report, |name| name.parse::<u64>().ok())? {
                let looked = match fs::read_link(&path) {
                    Ok(target) => self.look_at_root(&target, report),
                    Err(error) if error.kind() == ErrorKind::InvalidInput => {
                        Looked::Wrong("it is no symbolic link".to_owned())
                    }
                    Err(error) => Looked::failed(error),
                };
                report.take(Subject::Root, &path, looked);
            }
        }
        Ok(())
    }

    fn look_at_root(&self, target: &Path, report: &mut Report) -> Looked<()> {
        let name: Option<ObjectName> =
            target.file_name().and_then(|name| name.to_str()?.parse().ok());
        let wrong = || Looked::Wrong(format!("it leads to {}, where nothing is", target.display()));
        let Some(name) = name else { return wrong() };
        if target != Path::new("../../objects").join(name.to_string()) {
            return wrong();
        }
        match report.structure.objects.get(&name.id) {
            Some(object) if object.name == name.name => Looked::Sound(()),
            Some(_) => wrong(),
            // The object is lost, not the root.
            None if report.findings.iter().any(|it| it.subject == Subject::Info(name.id)) => {
                Looked::Sound(())
            }
            None if fs::symlink_metadata(self.object_path(&name)).is_ok() => Looked::Sound(()),
            None => wrong(),
        }
    }
}

/// Objects that must be there, and what names them.
#[derive(Debug, Default)]
pub(super) struct Wanted(BTreeMap<ObjectId, PathBuf>);

impl Wanted {
    pub(super) fn object(&mut self, id: ObjectId, by: &Path) {
        self.0.entry(id).or_insert_with(|| by.to_owned());
    }
}

impl Report {
    pub(super) fn miss(&mut self, subject: Subject, path: &Path, named_by: &Path) {
        self.find(subject, path, format!("it is missing, and {} names it", named_by.display()));
    }
}

fn look_at_info(id: &ObjectId, path: &Path) -> Looked<Info> {
    read(path).and_then(|bytes| {
        let info: Info = db::decode(&bytes, &id.to_string())?;
        match info.object.id() == *id {
            true => Ok(info),
            false => Err(format!("it describes the object {}", info.object.id())),
        }
    })
}

impl TreeName {
    fn parse(name: &str) -> Option<TreeName> {
        match name.strip_suffix(".listing") {
            Some(digest) => digest.parse().ok().map(TreeName::Listing),
            None => name.parse().ok().map(TreeName::Tree),
        }
    }
}

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeName::Tree(digest) => write!(f, "{digest}"),
            TreeName::Listing(digest) => write!(f, "{digest}.listing"),
        }
    }
}

impl SourceName {
    fn parse(name: &str) -> Option<SourceName> {
        if name.starts_with(".partial-") {
            return Some(SourceName::Partial(name.to_owned()));
        }
        let (sha256, rest) = name.split_once('-').filter(|(_, rest)| !rest.is_empty())?;
        Some(SourceName::File(sha256.parse().ok()?, rest.to_owned()))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceName::File(sha256, name) => write!(f, "{sha256}-{name}"),
            SourceName::Partial(name) => f.write_str(name),
        }
    }
}
