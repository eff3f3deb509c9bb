//! Composition: many objects' trees as one root.
//!
//! Trees are merged by their Merkle digests, so subtrees that one object alone provides, or that
//! are the same in several, are never looked into. Within a group of objects, one path with
//! different content is an error that names both; between groups the earlier one shadows. What an
//! object holds at `/srp` (a stage's manifest) is no part of any root.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{Digest, ObjectId};
use crate::error::{Conflict, StoreError};
use crate::listing::Listing;
use crate::object::{ObjectName, Permission, ReferenceKind};
use crate::store::Store;
use crate::tree::{Directory, Entry, printable};

/// The name in every root that belongs to srp.
pub const RESERVED: &[u8] = b"srp";
/// Where what is built against lies in a cross build's root, relative to it.
pub const SYSROOT: &str = "srp/sysroot";

/// A root as a plain value: which object provides what at each path.
#[derive(Debug)]
pub struct Composition {
    providers: Vec<Provider>,
    root: Node,
    shadowed: Vec<Conflict>,
}

/// An object that takes part in a composition.
#[derive(Debug)]
pub struct Provider {
    /// The object.
    pub object: ObjectName,
    /// Where its files lie.
    pub path: PathBuf,
    /// Where in the root its tree is composed: empty, or the sysroot.
    pub at: PathBuf,
    /// Its declared modes and owners.
    pub permissions: BTreeMap<String, Permission>,
    listing: Arc<Listing>,
    group: usize,
}

/// What lies at a path of a composition, symlinks followed.
#[derive(Debug)]
pub struct Located<'a> {
    /// Whose it is; `None` for a directory that several objects share.
    pub provider: Option<&'a Provider>,
    /// The path that was arrived at, without leading slash.
    pub path: String,
    /// The file; `None` for a directory.
    pub file: Option<&'a Entry>,
}

/// One place in a composed root.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// A file or symlink of one provider.
    Entry(Entry, Source),
    /// A whole directory as one provider has it.
    Subtree(Digest, usize),
    /// A directory made of several.
    Merged(BTreeMap<Box<[u8]>, Node>),
}

/// What a composed root has at a path, no symlink followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its length.
        size_bytes: u64,
    },
}

/// Where an entry's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The provider's tree, at the same path.
    Provider(usize),
    /// The program itself.
    Literal(&'static [u8]),
}

impl Store {
    /// Composes groups of objects: exactly these, no closure is taken here.
    pub fn compose(&self, groups: &[Vec<ObjectId>]) -> Result<Composition, StoreError> {
        let mut composition = Composition {
            providers: Vec::new(),
            root: Node::Merged(BTreeMap::new()),
            shadowed: Vec::new(),
        };
        for (group, ids) in groups.iter().enumerate() {
            self.rely_on_objects(ids)?;
            for id in ids {
                if composition.providers.iter().any(|provider| provider.object.id == *id) {
                    continue;
                }
                let object = self.info(id)?.object;
                composition.add(Provider {
                    path: self.tree_path(&object.tree),
                    at: PathBuf::new(),
                    listing: self.listing(&object.tree)?,
                    object: object.path_name(),
                    permissions: object.permissions,
                    group,
                })?;
            }
        }
        Ok(composition)
    }

    /// The closures of several objects as one list, each object once, in order.
    pub fn closure_ids(
        &self,
        ids: &[ObjectId],
        kinds: &[ReferenceKind],
    ) -> Result<Vec<ObjectId>, StoreError> {
        Ok(self.closure(ids, kinds)?.into_iter().map(|(id, _)| id).collect())
    }
}

impl Composition {
    /// The digest of the composed root.
    pub fn digest(&self) -> Digest {
        self.root.digest(&mut |_, _| {})
    }

    /// The composed root's listing.
    pub fn listing(&self) -> Listing {
        let mut directories = HashMap::new();
        let root = self.root.digest(&mut |digest, directory: &Directory| {
            directories.insert(digest, directory.clone());
        });
        // Subtrees are taken whole, so their directories are still missing.
        let mut pending: Vec<Digest> = directories.values().flat_map(below).collect();
        if directories.is_empty() {
            pending.push(root);
        }
        while let Some(digest) = pending.pop() {
            if directories.contains_key(&digest) {
                continue;
            }
            let directory = self
                .providers
                .iter()
                .find_map(|provider| provider.listing.directory(&digest))
                .expect("every subtree is some provider's");
            pending.extend(below(directory));
            directories.insert(digest, directory.clone());
        }
        Listing::new(root, directories)
    }

    /// The objects that take part, in composition order.
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// What a later group provides and an earlier one hides.
    pub fn shadowed(&self) -> &[Conflict] {
        &self.shadowed
    }

    /// Follows `path` in the root as a program in it would; `None` if it leads nowhere.
    pub fn locate(&self, path: &str) -> Option<Located<'_>> {
        const MAX_LINKS: usize = 40;
        let mut pending: Vec<Box<[u8]>> = components(path.as_bytes()).rev().collect();
        let mut at: Vec<(Box<[u8]>, Place<'_>)> = Vec::new();
        let mut links = 0;
        let top = Place::Node(&self.root);
        while let Some(name) = pending.pop() {
            if &*name == b".." {
                at.pop();
                continue;
            }
            let here = at.last().map_or(top, |(_, place)| *place);
            match self.child(here, &name)? {
                Place::Entry(Entry::Symlink { target }, _) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    pending.extend(components(target).rev());
                }
                place => at.push((name, place)),
            }
        }
        let names: Vec<_> = at.iter().map(|(name, _)| printable(name)).collect();
        let (provider, file) = match at.last().map_or(top, |(_, place)| *place) {
            Place::Entry(entry, provider) => (provider, Some(entry)),
            Place::Directory(_, provider) => (Some(provider), None),
            Place::Node(_) => (None, None),
        };
        Some(Located {
            provider: provider.map(|index| &self.providers[index]),
            path: names.join("/"),
            file,
        })
    }

    /// What the root itself has at a path; none if there is nothing, or a symlink on the way.
    pub(crate) fn at(&self, path: &str) -> Option<Kind> {
        let mut place = Place::Node(&self.root);
        for name in components(path.as_bytes()) {
            place = self.child(place, &name)?;
        }
        match place {
            Place::Entry(Entry::File { size_bytes, .. }, _) => {
                Some(Kind::File { size_bytes: *size_bytes })
            }
            Place::Entry(..) => None,
            Place::Directory(..) | Place::Node(_) => Some(Kind::Directory),
        }
    }

    /// Adds what is at no path yet: `entry` under the path, and the directories to it.
    pub(crate) fn add_missing(&mut self, path: &str, entry: Option<(Entry, Source)>) {
        let names: Vec<Box<[u8]>> = components(path.as_bytes()).collect();
        let mut node = &mut self.root;
        for (index, name) in names.iter().enumerate() {
            if let Node::Subtree(digest, provider) = *node {
                *node = expand(&self.providers[provider], provider, &digest);
            }
            let Node::Merged(entries) = node else { return };
            let last = index + 1 == names.len();
            node = entries.entry(name.clone()).or_insert_with(|| match &entry {
                Some((entry, source)) if last => Node::Entry(entry.clone(), *source),
                _ => Node::Merged(BTreeMap::new()),
            });
        }
    }

    /// Puts another composition at `path`, where nothing is yet.
    pub fn graft(&mut self, path: &str, other: Composition) {
        let offset = self.providers.len();
        let mut node = other.root;
        node.renumber(offset);
        self.providers.extend(other.providers.into_iter().map(|mut provider| {
            provider.at = path.into();
            provider
        }));
        self.shadowed.extend(other.shadowed);
        self.add_missing(path, None);
        let mut place = &mut self.root;
        for name in components(path.as_bytes()) {
            let Node::Merged(entries) = place else { return };
            place = entries.entry(name).or_insert_with(|| Node::Merged(BTreeMap::new()));
        }
        *place = node;
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    pub(crate) fn expand(&self, node: &Node) -> BTreeMap<Box<[u8]>, Node> {
        match node {
            Node::Merged(entries) => entries.clone(),
            Node::Subtree(digest, provider) => {
                match expand(&self.providers[*provider], *provider, digest) {
                    Node::Merged(entries) => entries,
                    _ => BTreeMap::new(),
                }
            }
            Node::Entry(..) => BTreeMap::new(),
        }
    }

    fn add(&mut self, provider: Provider) -> Result<(), StoreError> {
        let index = self.providers.len();
        let digest = provider.listing.digest();
        self.providers.push(provider);
        let mut tree = expand(&self.providers[index], index, &digest);
        if let Node::Merged(entries) = &mut tree {
            entries.remove(RESERVED);
            if entries.is_empty() {
                return Ok(());
            }
        }
        let mut merge =
            Merge { providers: &self.providers, path: Vec::new(), shadowed: Vec::new() };
        merge.merge(&mut self.root, tree).map_err(StoreError::Conflict)?;
        self.shadowed.append(&mut merge.shadowed);
        Ok(())
    }

    fn child<'a>(&'a self, place: Place<'a>, name: &[u8]) -> Option<Place<'a>> {
        let in_directory = |directory: &'a Directory, provider: usize| {
            Some(match directory.get(name)? {
                Entry::Directory { digest } => {
                    Place::Directory(self.providers[provider].listing.directory(digest)?, provider)
                }
                entry => Place::Entry(entry, Some(provider)),
            })
        };
        match place {
            Place::Entry(..) => None,
            Place::Directory(directory, provider) => in_directory(directory, provider),
            Place::Node(Node::Subtree(digest, provider)) => {
                in_directory(self.providers[*provider].listing.directory(digest)?, *provider)
            }
            Place::Node(Node::Entry(..)) => None,
            Place::Node(Node::Merged(entries)) => Some(match entries.get(name)? {
                Node::Entry(entry, Source::Provider(index)) => Place::Entry(entry, Some(*index)),
                Node::Entry(entry, Source::Literal(_)) => Place::Entry(entry, None),
                Node::Subtree(digest, provider) => Place::Directory(
                    self.providers[*provider].listing.directory(digest)?,
                    *provider,
                ),
                node => Place::Node(node),
            }),
        }
    }
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Entry(&'a Entry, Option<usize>),
    Directory(&'a Directory, usize),
    Node(&'a Node),
}

impl Node {
    /// The digest; `visit` sees every merged directory.
    fn digest(&self, visit: &mut dyn FnMut(Digest, &Directory)) -> Digest {
        match self {
            Node::Subtree(digest, _) => *digest,
            Node::Entry(..) => Directory::default().digest(),
            Node::Merged(entries) => {
                let mut directory = Directory::default();
                for (name, node) in entries {
                    let entry = match node {
                        Node::Entry(entry, _) => entry.clone(),
                        node => Entry::Directory { digest: node.digest(visit) },
                    };
                    directory.insert(name, entry).expect("names come from directories");
                }
                let digest = directory.digest();
                visit(digest, &directory);
                digest
            }
        }
    }

    fn renumber(&mut self, offset: usize) {
        match self {
            Node::Entry(_, Source::Provider(index)) | Node::Subtree(_, index) => *index += offset,
            Node::Entry(_, Source::Literal(_)) => {}
            Node::Merged(entries) => {
                entries.values_mut().for_each(|node| node.renumber(offset));
            }
        }
    }

    fn provider(&self) -> Option<usize> {
        match self {
            Node::Entry(_, Source::Provider(index)) | Node::Subtree(_, index) => Some(*index),
            Node::Entry(_, Source::Literal(_)) => None,
            Node::Merged(entries) => entries.values().find_map(Node::provider),
        }
    }

    fn kind(&self) -> String {
        match self {
            Node::Entry(Entry::Symlink { target }, _) => format!("a link to {}", printable(target)),
            Node::Entry(Entry::File { executable: true, .. }, _) => "an executable file".to_owned(),
            Node::Entry(..) => "a file".to_owned(),
            Node::Subtree(..) | Node::Merged(_) => "a directory".to_owned(),
        }
    }
}

struct Merge<'a> {
    providers: &'a [Provider],
    path: Vec<Box<[u8]>>,
    shadowed: Vec<Conflict>,
}

impl Merge<'_> {
    fn merge(&mut self, node: &mut Node, other: Node) -> Result<(), Box<Conflict>> {
        match (&*node, &other) {
            (Node::Entry(a, _), Node::Entry(b, _)) if a == b => return Ok(()),
            (Node::Subtree(a, _), Node::Subtree(b, _)) if a == b => return Ok(()),
            (Node::Entry(..), _) | (_, Node::Entry(..)) => return self.differ(node, &other),
            _ => {}
        }
        if let Node::Subtree(digest, provider) = *node {
            *node = expand(&self.providers[provider], provider, &digest);
        }
        let other = match other {
            Node::Subtree(digest, provider) => expand(&self.providers[provider], provider, &digest),
            other => other,
        };
        let (Node::Merged(entries), Node::Merged(others)) = (node, other) else { return Ok(()) };
        for (name, other) in others {
            match entries.get_mut(&name) {
                None => {
                    entries.insert(name, other);
                }
                Some(node) => {
                    self.path.push(name);
                    self.merge(node, other)?;
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Two different things at one path: an error within a group, shadowing between groups.
    fn differ(&mut self, node: &Node, other: &Node) -> Result<(), Box<Conflict>> {
        let provider = |node: &Node| &self.providers[node.provider().expect("it has a provider")];
        let (first, second) = (provider(node), provider(other));
        let path: Vec<_> = self.path.iter().map(|name| printable(name)).collect();
        let conflict = Conflict {
            path: path.join("/"),
            first: first.object.clone(),
            second: second.object.clone(),
            kinds: match (node.kind(), other.kind()) {
                (a, b) if a == b => (a, "another".to_owned()),
                kinds => kinds,
            },
        };
        if first.group == second.group {
            return Err(Box::new(conflict));
        }
        self.shadowed.push(conflict);
        Ok(())
    }
}

/// One provider's directory as a merged node of its entries.
fn expand(provider: &Provider, index: usize, digest: &Digest) -> Node {
    let directory = provider.listing.directory(digest).expect("a listing is complete");
    Node::Merged(
        directory
            .iter()
            .map(|(name, entry)| {
                let node = match entry {
                    Entry::Directory { digest } => Node::Subtree(*digest, index),
                    entry => Node::Entry(entry.clone(), Source::Provider(index)),
                };
                (name.into(), node)
            })
            .collect(),
    )
}

fn below(directory: &Directory) -> Vec<Digest> {
    directory
        .iter()
        .filter_map(|(_, entry)| match entry {
            Entry::Directory { digest } => Some(*digest),
            _ => None,
        })
        .collect()
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Box<[u8]>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(Box::from)
}

impl Provider {
    /// What its tree holds.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Where the file at a path of the root lies on disk, if this provider has it.
    pub fn file(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix(&self.at).unwrap_or(path))
    }
}
