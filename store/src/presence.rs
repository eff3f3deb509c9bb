//! The one definition of "the object is here", and how what is missing of it is made anew.
//!
//! An object is here if its record can be read, its tree is there with the listing beside it, and
//! the store path leads to the tree. Everything that asks, asks here: what counts as here is what a
//! command may print, build from, publish and rely on in a record.
//!
//! The listing and the store path follow from the tree and the record. A power cut, a full disk or
//! a damaged block may take them; then they are made again, and one line of the log says so. That
//! needs a store that can be written to: in another one an object without its path is not here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::commit::Registration;
use crate::content;
use crate::db::Info;
use crate::digest::{Digest, ObjectId};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::object::{Object, ReferenceKind};
use crate::rely::Relied;
use crate::store::Store;
use crate::tree::{Directory, Entry};
use crate::verification::{Place, Stamp};

/// The shortest listing: an empty directory's.
const LISTING_BYTES: u64 = 8;

impl Store {
    /// The object's record, if the object is here. What it refers to need not be. The bytes of its
    /// files are not verified.
    ///
    /// # Errors
    /// What the system says. Damage is none: what is damaged beyond what can be made anew is not
    /// here, so that it is built or fetched again.
    ///
    /// What is here stays here until the store is closed (`rely`): no collection takes it.
    pub fn present(&self, id: &ObjectId) -> Result<Option<Info>, StoreError> {
        self.rely([Relied::Object(*id)])?;
        let found = self.find(id)?;
        if found.is_some() {
            self.remember_use(&[*id]);
        }
        Ok(found)
    }

    /// The object's record, if the object is here for now.
    pub(crate) fn find(&self, id: &ObjectId) -> Result<Option<Info>, StoreError> {
        let Some(info) = undamaged(self.find_info(id))?.flatten() else { return Ok(None) };
        let tree = &info.object.tree;
        let here = self.has_tree(tree)? && self.has_listing(tree)? && self.has_path(&info)?;
        Ok(here.then_some(info))
    }

    /// Whether the object is here; as [`present`](Store::present) says.
    pub fn contains(&self, id: &ObjectId) -> Result<bool, StoreError> {
        Ok(self.present(id)?.is_some())
    }

    /// Whether the objects and everything that they refer to are here. If so, they stay, as
    /// [`present`](Store::present) says.
    pub fn contains_closure(&self, ids: &[ObjectId]) -> Result<bool, StoreError> {
        self.rely(ids.iter().map(|id| Relied::Object(*id)))?;
        let mut seen = BTreeSet::new();
        let mut pending = ids.to_vec();
        while let Some(id) = pending.pop() {
            if seen.insert(id) {
                let Some(info) = self.find(&id)? else { return Ok(false) };
                pending.extend(info.object.references(ReferenceKind::ALL));
            }
        }
        self.remember_use(ids);
        Ok(true)
    }

    /// A tree's listing. Kept in memory: it is asked for again and again.
    ///
    /// # Errors
    /// The tree is not there, or is not what its name says and has no listing either.
    pub fn listing(&self, tree: &Digest) -> Result<Arc<Listing>, StoreError> {
        if let Some(listing) = self.listings.get(tree) {
            return Ok(listing);
        }
        let listing = Arc::new(self.read_listing(tree)?);
        self.remember_listing(Arc::clone(&listing));
        Ok(listing)
    }

    /// A tree's listing, if the tree is here. If so, it stays, as [`present`](Store::present) says.
    pub(crate) fn tree(&self, tree: &Digest) -> Result<Option<Arc<Listing>>, StoreError> {
        self.rely([Relied::Tree(*tree)])?;
        let here = self.has_tree(tree)? && self.has_listing(tree)?;
        Ok(if here { undamaged(self.listing(tree))? } else { None })
    }

    /// Registers those of these objects whose trees are here, and with them, or before, everything
    /// that they refer to. True if that was all of them.
    pub fn register_trees(&self, objects: &[&Object]) -> Result<bool, StoreError> {
        let objects: BTreeMap<ObjectId, &Object> =
            objects.iter().map(|it| (it.id(), *it)).collect();
        let mut registration = Registration::default();
        // What was decided: whether it is here, or will be.
        let mut here: BTreeMap<ObjectId, bool> = BTreeMap::new();
        for id in objects.keys() {
            // An explicit stack: depth comes from others.
            let mut pending = vec![(*id, false)];
            while let Some((id, below_is_done)) = pending.pop() {
                if here.contains_key(&id) {
                    continue;
                }
                let Some(object) = objects.get(&id).filter(|_| !below_is_done) else {
                    let made = match objects.get(&id) {
                        Some(object) => self.register_tree(object, &here, &mut registration)?,
                        None => self.contains(&id)?,
                    };
                    here.insert(id, made);
                    continue;
                };
                pending.push((id, true));
                pending.extend(object.references(ReferenceKind::ALL).map(|it| (it, false)));
            }
        }
        self.commit(registration)?;
        Ok(here.values().all(|here| *here))
    }

    fn register_tree(
        &self,
        object: &Object,
        here: &BTreeMap<ObjectId, bool>,
        registration: &mut Registration,
    ) -> Result<bool, StoreError> {
        if self.contains(&object.id())? {
            return Ok(true);
        }
        let complete = object.references(ReferenceKind::ALL).all(|it| here.get(&it) == Some(&true));
        let Some(listing) = self.tree(&object.tree)?.filter(|_| complete) else { return Ok(false) };
        registration.existing_tree(self, object, &listing);
        Ok(true)
    }

    /// A tree's listing, read for once.
    pub(crate) fn read_listing(&self, tree: &Digest) -> Result<Listing, StoreError> {
        let path = self.listing_path(tree);
        let read = files::read_if_exists(&path)?.map(|bytes| Listing::decode(&bytes, *tree, &path));
        match undamaged(read.transpose())?.flatten() {
            Some(listing) => Ok(listing),
            None => self.list_again(&self.place(tree)),
        }
    }

    /// Whether a tree's directory is there.
    fn has_tree(&self, tree: &Digest) -> Result<bool, StoreError> {
        let path = self.tree_path(tree);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            metadata => metadata.at("read", &path)?,
        };
        // A process that is killed right after the renaming leaves it so.
        if metadata.is_dir() && metadata.permissions().mode() & 0o222 != 0 && self.is_writable() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).at("change", &path)?;
        }
        Ok(metadata.is_dir())
    }

    /// Whether a tree's listing is there, or can be made, and doesn't say that the tree is damaged.
    /// That what is there is right shows when it is read.
    fn has_listing(&self, tree: &Digest) -> Result<bool, StoreError> {
        let path = self.listing_path(tree);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() >= LISTING_BYTES => {
                Ok(self.stamp_in(&path, &metadata) != Stamp::Damaged)
            }
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("read", &path),
            _ => Ok(undamaged(self.list_again(&self.place(tree)))?.is_some()),
        }
    }

    /// Whether the store path leads to the tree, or can be made to.
    fn has_path(&self, info: &Info) -> Result<bool, StoreError> {
        let path = self.object_path(&info.object.path_name());
        let target = link_target(&info.object.tree);
        match fs::read_link(&path) {
            Ok(found) if found == target => return Ok(true),
            // `InvalidInput`: it is no symlink.
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) =>
            {
                return Err(error).at("read", &path);
            }
            _ => {}
        }
        if !self.is_writable() {
            return Ok(false);
        }
        tracing::warn!(path = %path.display(), "a store path was lost, and is made again");
        self.link(&path, &target)?;
        Ok(true)
    }

    /// Makes a listing again from the tree's files, all of which are hashed for it.
    pub(crate) fn list_again(&self, place: &Place) -> Result<Listing, StoreError> {
        let listing = hash_tree(&place.directory)?;
        if listing.digest() != place.digest {
            let (path, expected) = (place.directory.clone(), place.digest);
            return Err(StoreError::Corrupt { path, expected, found: listing.digest() });
        }
        self.write_lost_listing(place, &listing)?;
        Ok(listing)
    }

    pub(crate) fn write_lost_listing(
        &self,
        place: &Place,
        listing: &Listing,
    ) -> Result<(), StoreError> {
        if self.is_writable() {
            tracing::warn!(path = %place.listing.display(), "a listing was lost, and is made again");
            self.write(&place.listing, &listing.encode(), 0o444)?;
        }
        Ok(())
    }
}

/// Where the store path of an object with this tree leads.
pub(crate) fn link_target(tree: &Digest) -> std::path::PathBuf {
    Path::new("../trees").join(tree.to_string())
}

/// What was read; none, and a line in the log, if it is damaged.
pub(crate) fn undamaged<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_damage() || matches!(error, StoreError::FileType { .. }) => {
            tracing::warn!(%error, "it counts as not there");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The listing that a tree's files come to. Nothing is changed, and no symlink followed.
pub(crate) fn hash_tree(root: &Path) -> Result<Listing, StoreError> {
    let (directory, below) = hash_directory(root)?;
    let digest = directory.digest();
    let directories = below.into_iter().chain([directory]).map(|it| (it.digest(), it));
    Ok(Listing::new(digest, directories.collect()))
}

/// A directory, and all that are below it.
fn hash_directory(path: &Path) -> Result<(Directory, Vec<Directory>), StoreError> {
    let hashed = files::entries(path)?
        .into_par_iter()
        .map(|path| {
            let metadata = fs::symlink_metadata(&path).at("read", &path)?;
            let (entry, below) = if metadata.is_dir() {
                let (directory, mut below) = hash_directory(&path)?;
                let digest = directory.digest();
                below.push(directory);
                (Entry::Directory { digest }, below)
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).at("read", &path)?;
                (Entry::Symlink { target: target.into_os_string().into_vec().into() }, Vec::new())
            } else if metadata.is_file() {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                let mut file = files::open_plain(&path).at("open", &path)?;
                let stat = rustix::fs::fstat(&file).at("read", &path)?;
                let hashed = content::hash(&mut file, &stat, None);
                let (digest, size_bytes) = hashed.at("read", &path)?;
                (Entry::File { digest, size_bytes, executable }, Vec::new())
            } else {
                let file = path.display().to_string();
                return Err(StoreError::FileType { file, what: "no file, directory or link" });
            };
            let name = path.file_name().unwrap_or_default().to_owned().into_vec();
            Ok((name, entry, below))
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    let (mut directory, mut below) = (Directory::default(), Vec::new());
    for (name, entry, directories) in hashed {
        directory.insert(&name, entry).expect("the file system's names are valid");
        below.extend(directories);
    }
    Ok((directory, below))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::ingest::{self, Rules};
    use crate::object::Reference;
    use crate::open_tree::OpenTree;
    use crate::store::Access;

    fn open(directory: &tempfile::TempDir, access: Access) -> Store {
        Store::open(&directory.path().join("store"), access).expect("opened")
    }

    /// Has a tree of one file written and registered, without its object.
    fn tree(store: &Store, name: &str, references: &[&Object]) -> Object {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).expect("created");
        fs::write(tree.join(name), "text").expect("written");
        let listing = Arc::new(
            ingest::take(&OpenTree::open(&tree).expect("opened"), Rules::default()).expect("taken"),
        );
        let reference =
            |object: &&Object| Reference { kind: ReferenceKind::Run, object: object.id() };
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references: references.iter().map(reference).collect(),
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.tree(store, listing, tree);
        store.commit(registration).expect("committed");
        object
    }

    #[test]
    fn what_follows_from_something_else_is_made_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let object = tree(&store, "object", &[]);
        assert!(store.register_trees(&[&object]).expect("registered"));
        let (listing, path) =
            (store.listing_path(&object.tree), store.object_path(&object.path_name()));
        let right = fs::read(&listing).expect("read");
        let damages: [&dyn Fn(); 6] = [
            &|| fs::remove_file(&listing).expect("removed"),
            &|| crate::staged::write(&listing, b"").expect("written"),
            &|| crate::staged::write(&listing, &right[..20]).expect("written"),
            &|| fs::remove_file(&path).expect("removed"),
            &|| {
                fs::remove_file(&path).expect("removed");
                symlink("../trees", &path).expect("linked");
            },
            &|| {
                fs::remove_file(&path).expect("removed");
                fs::write(&path, "no link").expect("written");
            },
        ];
        for damage in damages {
            damage();
            let store = open(&directory, Access::Write);
            assert!(store.contains_closure(&[object.id()]).expect("asked"));
            store.listing(&object.tree).expect("listed");
            assert_eq!(fs::read(&listing).expect("read"), right);
            assert_eq!(fs::read(path.join("object")).expect("read"), b"text");
        }
        // Where nothing can be written, what needs no writing is made, and nothing is claimed that
        // isn't there.
        fs::remove_file(&listing).expect("removed");
        let reading = open(&directory, Access::Read);
        assert!(reading.contains(&object.id()).expect("asked"));
        assert_eq!(reading.listing(&object.tree).expect("listed").encode(), right);
        fs::remove_file(&path).expect("removed");
        assert!(!reading.contains(&object.id()).expect("asked"));
        assert!(!listing.exists() && !path.exists());
    }

    #[test]
    fn a_tree_without_a_listing_that_is_not_what_its_name_says_is_not_here() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let object = tree(&store, "object", &[]);
        store.register_trees(&[&object]).expect("registered");
        let file = store.tree_path(&object.tree).join("object");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        fs::write(&file, "else").expect("written");
        fs::remove_file(store.listing_path(&object.tree)).expect("removed");
        let store = open(&directory, Access::Write);
        assert!(!store.contains(&object.id()).expect("asked"));
        assert!(!store.listing_path(&object.tree).exists());
    }

    #[test]
    fn trees_become_objects_after_what_they_refer_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory, Access::Write);
        let low = tree(&store, "low", &[]);
        let missing = Object {
            name: "missing".parse().expect("a name"),
            tree: Digest::of_file(b""),
            ..low.clone()
        };
        let middle = tree(&store, "middle", &[&low]);
        let high = tree(&store, "high", &[&middle]);
        let other = tree(&store, "other", &[&high, &missing]);
        assert!(!store.contains(&high.id()).expect("asked"), "its tree alone is here");
        assert!(
            !store.register_trees(&[&other, &high, &middle]).expect("asked"),
            "nothing is whole"
        );
        assert!(!store.contains(&middle.id()).expect("asked"));
        assert!(!store.register_trees(&[&other, &high, &missing, &middle, &low]).expect("asked"));
        assert!(store.contains_closure(&[high.id()]).expect("asked"), "it is whole");
        assert!(!store.contains(&other.id()).expect("asked"));
    }
}
