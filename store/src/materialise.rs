//! Materialising: a composition written as a normal root filesystem, or as a cached tree for
//! sandboxes.
//!
//! Files are copied (reflinked where the file system can), never linked: changing a root
//! filesystem can't hurt the store, and a file's link count says nothing of who else uses it.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, Stat};

use crate::assurance::Assurance;
use crate::compose::{Composition, Kind, Node, SYSROOT, Source};
use crate::content::{self, TREE_TIME};
use crate::crew::{Crew, Tasks};
use crate::derivation::Role;
use crate::digest::{Digest, ObjectId};
use crate::error::{IoContext, StoreError};
use crate::ingest::{FILES_PER_TASK, create, finish_file};
use crate::manifest::Manifest;
use crate::object::{Object, ReferenceKind};
use crate::open_tree::OpenTree;
use crate::rely::Relied;
use crate::staged::StagedDirectory;
use crate::store::Store;
use crate::tree::Entry;
use crate::verification::{DamageKind, Place, Stamp};
use crate::visit::{Visit, join};

/// Up to so many trees are layers of an overlay as they are; more are composed once into a cached
/// tree, because every look-up visits every layer.
const MAX_LAYERS: usize = 6;

/// What a root filesystem has beside its components, where they don't provide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skeleton {
    /// A directory.
    Directory(&'static str),
    /// A small file and its text.
    File(&'static str, &'static str),
    /// A link of merged `/usr`, made where its target `usr/<name>` is there.
    MergedUsr(&'static str),
}

/// The base layout of a root filesystem: what a chroot expects.
pub const BASE_LAYOUT: &[Skeleton] = &[
    Skeleton::MergedUsr("bin"),
    Skeleton::MergedUsr("sbin"),
    Skeleton::MergedUsr("lib"),
    Skeleton::MergedUsr("lib32"),
    Skeleton::MergedUsr("lib64"),
    Skeleton::MergedUsr("libx32"),
    Skeleton::Directory("dev"),
    Skeleton::Directory("etc"),
    Skeleton::Directory("home"),
    Skeleton::Directory("mnt"),
    Skeleton::Directory("proc"),
    Skeleton::Directory("root"),
    Skeleton::Directory("run"),
    Skeleton::Directory("sys"),
    Skeleton::Directory("tmp"),
    Skeleton::Directory("usr"),
    Skeleton::Directory("var/tmp"),
    Skeleton::File(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         build:x:1000:1000:build:/srp/build:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    Skeleton::File("etc/group", "root:x:0:\ntty:x:5:\nbuild:x:1000:\nnogroup:x:65534:\n"),
    Skeleton::File("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// Directories that everybody may write to.
const STICKY: &[&str] = &["tmp", "var/tmp"];

/// A root filesystem that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Materialised {
    /// The digest of the written tree.
    pub digest: Digest,
    /// The sum of its files' lengths.
    pub size_bytes: u64,
    /// Declared owners and set-uid bits that only root can set, and that were left out.
    pub unapplied_permissions: Vec<String>,
}

/// How a composition is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// For the store: 0444 and 0555.
    Frozen,
    /// For a user: 0644 and 0755.
    Rootfs,
}

impl Store {
    /// The composition of an object's closure: a stage's components by role, or an ordinary
    /// object with what it refers to.
    pub fn compose_object(
        &self,
        object: &Object,
        kinds: &[ReferenceKind],
    ) -> Result<Composition, StoreError> {
        let Some(manifest) = self.manifest(object)? else {
            return self.compose(&[self.closure_ids(&[object.id()], kinds)?]);
        };
        let tools = self.closure_ids(&manifest.role(Role::Tools), kinds)?;
        let libs = self.closure_ids(&manifest.role(Role::Libs), kinds)?;
        self.compose_roles(tools, libs, manifest.is_cross())
    }

    /// The composition of two closures by role, `libs` at the sysroot when cross.
    pub fn compose_roles(
        &self,
        tools: Vec<ObjectId>,
        libs: Vec<ObjectId>,
        cross: bool,
    ) -> Result<Composition, StoreError> {
        if !cross {
            return self.compose(&[libs, tools]);
        }
        let mut root = self.compose(&[tools])?;
        if !libs.is_empty() {
            root.graft(SYSROOT, self.compose(&[libs])?);
        }
        Ok(root)
    }

    /// The directories that, laid over each other (first on top), are this composition.
    pub fn layers(
        &self,
        composition: &Composition,
        assurance: &Assurance<'_>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let trees: Vec<PathBuf> = composition
            .providers()
            .iter()
            .filter(|provider| !provider.is_manifest())
            .map(|provider| provider.path.clone())
            .collect();
        if trees.len() <= MAX_LAYERS {
            return Ok(trees);
        }
        Ok(vec![self.composed(composition, assurance)?])
    }

    /// The cached tree of a composition, made if there is none. One that lacks something, or that
    /// is damaged, is made anew; that is looked for as in trees, by the time of its own listing.
    pub fn composed(
        &self,
        composition: &Composition,
        assurance: &Assurance<'_>,
    ) -> Result<PathBuf, StoreError> {
        let listing = Arc::new(composition.listing());
        let place = self.composed_place(&listing.digest());
        self.rely([Relied::Composed(place.digest)])?;
        // The time of its last change says when it was last used; nothing else of it changes.
        let used = |place: Place| {
            let _ = fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o555));
            Ok(place.directory)
        };
        if fs::symlink_metadata(&place.directory).is_ok() {
            let whole = self.looks_whole(&place, &listing);
            if whole && self.is_fresh(&place, assurance.within)? {
                return used(place);
            }
            if !self.is_writable() {
                // Whoever can't keep what verification finds doesn't do it for each shell.
                let kind = Box::new(DamageKind::Missing);
                return match whole && self.stamp(&place)? != Stamp::Damaged {
                    true => Ok(place.directory),
                    false => Err(StoreError::Unsound { tree: None, path: place.directory, kind }),
                };
            }
            let report = self.assure_place(&place, Arc::clone(&listing), assurance)?;
            let damage = report.as_ref().and_then(|report| report.first());
            let Some(damage) = damage else { return used(place) };
            let path = place.directory.display();
            tracing::warn!("{path} is damaged ({damage}), and is composed anew");
            self.move_aside(&place)?;
        }
        let scratch = self.scratch()?;
        let staged = scratch.path().join("composed");
        fs::create_dir(&staged).at("create", &staged)?;
        let tree = OpenTree::open(&staged)?;
        composition
            .write(&tree, Style::Frozen, assurance.cancel)
            .inspect_err(|error| self.distrust_by(error))?;
        // It is trusted by its name from now on.
        self.committer.sync()?;
        let directory = self.directory("composed");
        fs::create_dir_all(&directory).at("create", &directory)?;
        self.write(&place.listing, &listing.encode(), 0o444)?;
        match fs::rename(&staged, &place.directory) {
            Ok(()) => {
                rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o555))
                    .at("change", &place.directory)?;
            }
            // Another process was faster.
            Err(_) if place.directory.is_dir() => {}
            Err(error) => return Err(error).at("rename", &staged),
        }
        Ok(place.directory)
    }

    /// Where the cached tree of a composition lies.
    pub(crate) fn composed_place(&self, digest: &Digest) -> Place {
        let composed = self.directory("composed");
        let listing = composed.join(format!("{digest}.listing"));
        Place { digest: *digest, directory: composed.join(digest.to_string()), listing }
    }
}

impl Composition {
    /// Adds the base layout where the components don't provide it.
    pub fn add_base_layout(&mut self) {
        for item in BASE_LAYOUT {
            match *item {
                Skeleton::Directory(path) => self.add_missing(path, None),
                Skeleton::File(path, text) => {
                    let entry = Entry::File {
                        digest: Digest::of_file(text.as_bytes()),
                        size_bytes: text.len() as u64,
                        executable: false,
                    };
                    self.add_missing(path, Some((entry, Source::Literal(text.as_bytes()))));
                }
                Skeleton::MergedUsr(name) => {
                    let target = format!("usr/{name}");
                    if self.locate(&target).is_some() {
                        let entry = Entry::Symlink { target: target.into_bytes().into() };
                        self.add_missing(name, Some((entry, Source::Literal(b""))));
                    }
                }
            }
        }
    }

    /// Writes the composition as a root filesystem to `directory`, which must be empty or not be.
    ///
    /// It appears whole or not at all: it is written beside `directory`, synced if `synced` says so
    /// (else a power cut may leave it without contents), and renamed. Every file is compared with
    /// its digest on the way: of a damaged tree nothing is written ([`StoreError::Unsound`]). When
    /// `cancel` becomes true it ends soon.
    pub fn materialise(
        mut self,
        directory: &Path,
        synced: bool,
        cancel: Option<&AtomicBool>,
    ) -> Result<Materialised, StoreError> {
        check_empty(directory)?;
        self.add_base_layout();
        let staging = StagedDirectory::beside(directory).at("write beside", directory)?;
        let tree = staging.tree();
        let size_bytes = Writing::new(&self, tree, Style::Rootfs, cancel)?.run()?;
        let unapplied_permissions = self.apply_permissions(tree)?;
        for path in STICKY {
            // Where an object has a link there, it leads wherever it leads.
            if matches!(self.at(path), Some(Kind::Directory)) {
                let made = tree.directory(path.as_bytes());
                made.and_then(|it| rustix::fs::fchmod(it, Mode::from_raw_mode(0o1777)))
                    .at("change", &tree.path().join(path))?;
            }
        }
        let placed =
            if synced { staging.place_synced(directory) } else { staging.place(directory) };
        placed.at("rename to", directory)?;
        Ok(Materialised { digest: self.digest(), size_bytes, unapplied_permissions })
    }

    /// Writes the composition to an empty directory.
    fn write(
        &self,
        to: &OpenTree,
        style: Style,
        cancel: Option<&AtomicBool>,
    ) -> Result<u64, StoreError> {
        Writing::new(self, to, style, cancel)?.run()
    }

    /// Applies declared modes and owners, and returns those that this user can't apply.
    fn apply_permissions(&self, root: &OpenTree) -> Result<Vec<String>, StoreError> {
        let users = self.numbers(root, "etc/passwd")?;
        let groups = self.numbers(root, "etc/group")?;
        let number = |names: &[(String, u32)], name: &str| {
            let known = names.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
            known.or_else(|| name.parse().ok())
        };
        let mut unapplied = Vec::new();
        for provider in self.providers() {
            for (path, permission) in &provider.permissions {
                let file = provider.at.join(path.trim_start_matches('/'));
                let file = file.to_string_lossy();
                let owner =
                    number(&users, &permission.user).zip(number(&groups, &permission.group));
                // What is reached through a link may lie outside the root.
                let opened = match self.at(&file) {
                    Some(Kind::Directory) => root.directory(file.as_bytes()).map(Some),
                    Some(Kind::File { .. }) => {
                        root.file(file.as_bytes()).map(|(file, _)| Some(file.into()))
                    }
                    None => Ok(None),
                };
                let path_of_it = root.path_of(file.as_bytes());
                let opened = opened.at("open", &path_of_it)?;
                let is_root = nix::unistd::geteuid().is_root();
                let (Some((user, group)), Some(opened), true) = (owner, opened, is_root) else {
                    unapplied.push(format!("{path} {permission}"));
                    continue;
                };
                let mode = Mode::from_raw_mode(permission.mode.into());
                nix::unistd::fchown(&opened, Some(user.into()), Some(group.into()))
                    .at("change", &path_of_it)?;
                rustix::fs::fchmod(&opened, mode).at("change", &path_of_it)?;
            }
        }
        Ok(unapplied)
    }

    /// Names and numbers of the root's `/etc/passwd` or `/etc/group`: fields 1 and 3. None if
    /// there is no ordinary file, which is all that can be read without following anything.
    fn numbers(&self, root: &OpenTree, path: &str) -> Result<Vec<(String, u32)>, StoreError> {
        const MAX_BYTES: u64 = 1 << 20;
        if !matches!(self.at(path), Some(Kind::File { size_bytes: ..=MAX_BYTES })) {
            return Ok(Vec::new());
        }
        let mut text = Vec::new();
        let (file, _) = root.file(path.as_bytes()).at("open", &root.path().join(path))?;
        file.take(MAX_BYTES).read_to_end(&mut text).at("read", &root.path().join(path))?;
        let parse = |line: &str| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
    }
}

/// A composition on its way to a directory.
struct Writing<'a> {
    composition: &'a Composition,
    to: &'a OpenTree,
    style: Style,
    cancel: Option<&'a AtomicBool>,
    /// The store's trees; none if no provider has any part in it.
    trees: Option<OpenTree>,
    size_bytes: AtomicU64,
}

/// What there is to write.
enum Task {
    /// A directory, which is there, and what it is to hold.
    Directory(Arc<Visit<()>>, Node),
    /// Files and symlinks in a directory.
    Files(Arc<Opened>, Vec<(Box<[u8]>, Entry, Source)>),
}

/// A directory whose files are being written.
struct Opened {
    visit: Arc<Visit<()>>,
    directory: OwnedFd,
}

impl<'a> Writing<'a> {
    fn new(
        composition: &'a Composition,
        to: &'a OpenTree,
        style: Style,
        cancel: Option<&'a AtomicBool>,
    ) -> Result<Writing<'a>, StoreError> {
        let first = composition.providers().first();
        let trees = first.and_then(|provider| provider.path.parent());
        // Where its owner has put them is the store's business.
        let open = |trees: &Path| OpenTree::open(&trees.canonicalize().at("open", trees)?);
        let trees = trees.map(open).transpose()?;
        Ok(Writing { composition, to, style, cancel, trees, size_bytes: AtomicU64::new(0) })
    }

    /// Writes everything; the sum of the files' lengths.
    fn run(self) -> Result<u64, StoreError> {
        let read: Vec<&OpenTree> = self.trees.iter().collect();
        let top = Task::Directory(Visit::top(()), self.composition.root().clone());
        Crew::begin(&read, &[self.to], |crew| {
            crew.run(vec![top], |task, tasks| self.work(task, tasks))
        })??;
        Ok(self.size_bytes.into_inner())
    }

    fn work(&self, task: Task, tasks: &Tasks<'_, Task>) -> Result<(), StoreError> {
        if self.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let opened = match task {
            Task::Directory(visit, node) => self.directory(visit, &node, tasks)?,
            Task::Files(opened, files) => {
                self.files(&opened, files)?;
                opened
            }
        };
        opened.visit.end(|visit| {
            let again;
            let made = if std::ptr::eq(visit, &*opened.visit) {
                &opened.directory
            } else {
                again = self.to.directory(&visit.path).at("open", &self.path(&visit.path))?;
                &again
            };
            // The top one can still be renamed to another parent.
            let frozen = self.style == Style::Frozen && visit.parent().is_some();
            let mode = Mode::from_raw_mode(if frozen { 0o555 } else { 0o755 });
            rustix::fs::fchmod(made, mode)
                .and_then(|()| rustix::fs::futimens(made, &TREE_TIME))
                .at("change", &self.path(&visit.path))
        })
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Makes what is in a directory: directories, some of the files; the rest is left to others.
    fn directory(
        &self,
        visit: Arc<Visit<()>>,
        node: &Node,
        tasks: &Tasks<'_, Task>,
    ) -> Result<Arc<Opened>, StoreError> {
        let directory = self.to.directory(&visit.path).at("open", &self.path(&visit.path))?;
        let opened = Arc::new(Opened { visit, directory });
        let visit = &opened.visit;
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        for (name, node) in self.composition.expand(node) {
            match node {
                Node::Entry(entry, source) => files.push((name, entry, source)),
                node => {
                    rustix::fs::mkdirat(&opened.directory, &*name, Mode::RWXU)
                        .at("create", &self.path(&join(&visit.path, &name)))?;
                    directories.push(Task::Directory(visit.below(&name, ()), node));
                }
            }
        }
        let mut rest = files.split_off(files.len().min(FILES_PER_TASK));
        visit.add_pending(rest.len().div_ceil(FILES_PER_TASK));
        directories.into_iter().for_each(|task| tasks.add(task));
        while !rest.is_empty() {
            // From its end: what is split off takes only the room that it needs.
            let some = rest.split_off(rest.len().saturating_sub(FILES_PER_TASK));
            tasks.add(Task::Files(Arc::clone(&opened), some));
        }
        self.files(&opened, files)?;
        Ok(opened)
    }

    fn files(
        &self,
        opened: &Opened,
        files: Vec<(Box<[u8]>, Entry, Source)>,
    ) -> Result<(), StoreError> {
        let directory = opened.directory.as_fd();
        for (name, entry, source) in files {
            let path = join(&opened.visit.path, &name);
            match entry {
                Entry::Symlink { target } => rustix::fs::symlinkat(&*target, directory, &*name)
                    .and_then(|()| {
                        let flags = AtFlags::SYMLINK_NOFOLLOW;
                        rustix::fs::utimensat(directory, &*name, &TREE_TIME, flags)
                    })
                    .at("create", &self.path(&path))?,
                Entry::File { digest, size_bytes, executable } => {
                    self.file(directory, &name, &path, (digest, size_bytes, executable, source))?;
                }
                Entry::Directory { .. } => unreachable!("a directory is a node of its own"),
            }
        }
        Ok(())
    }

    fn file(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        (digest, size, executable, source): (Digest, u64, bool, Source),
    ) -> Result<(), StoreError> {
        let io = |error: std::io::Error, action, path: &Path| StoreError::Io {
            action,
            path: path.to_owned(),
            source: error,
        };
        let made = self.path(path);
        let mut to = create(directory, name).at("create", &made)?;
        let size_bytes = match source {
            Source::Literal(bytes) => {
                to.write_all(bytes).at("write", &made)?;
                bytes.len() as u64
            }
            Source::Provider(index) => {
                let trees = self.trees.as_ref().expect("a provider has its tree there");
                let provider = &self.composition.providers()[index];
                let place = provider.file(Path::new(OsStr::from_bytes(path)));
                let below = place.strip_prefix(provider.path.parent().unwrap_or(&place));
                let below = below.unwrap_or(&place).as_os_str().as_bytes();
                let unsound = |kind| {
                    let tree = Some(provider.listing().digest());
                    StoreError::Unsound { tree, path: place.clone(), kind: Box::new(kind) }
                };
                let (mut from, stat) = trees.file(below).map_err(|error| {
                    let damaged = DamageKind::of(error).map(unsound);
                    damaged.unwrap_or_else(|| io(error.into(), "open", &place))
                })?;
                match content::copy(&mut from, &stat, &mut to, self.cancel) {
                    Ok((found, size_bytes)) if found == digest => size_bytes,
                    Ok((_, length)) if length != size => {
                        return Err(unsound(DamageKind::Size { expected: size, found: length }));
                    }
                    Ok((found, _)) => {
                        return Err(unsound(DamageKind::Bytes { expected: digest, found }));
                    }
                    Err(_) if self.is_cancelled() => return Err(StoreError::Cancelled),
                    // Is it the one that is read, or the one that is written?
                    Err(error) => {
                        return Err(match unreadable(&mut from, &stat) {
                            Some(kind) => unsound(kind),
                            None => io(error, "copy to", &made),
                        });
                    }
                }
            }
        };
        self.size_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        let mode = match (self.style, executable) {
            (Style::Frozen, false) => 0o444,
            (Style::Frozen, true) => 0o555,
            (Style::Rootfs, false) => 0o644,
            (Style::Rootfs, true) => 0o755,
        };
        finish_file(&to, mode).at("change", &made)
    }

    /// Where something is written, for messages.
    fn path(&self, below: &[u8]) -> PathBuf {
        self.to.path_of(below)
    }
}

/// Why a file can't be read to its end, if it can't.
fn unreadable(file: &mut fs::File, stat: &Stat) -> Option<DamageKind> {
    let error = file.rewind().and_then(|()| content::hash(file, stat, None)).err()?;
    Some(DamageKind::Unreadable { reason: error.to_string() })
}

fn check_empty(directory: &Path) -> Result<(), StoreError> {
    let not_empty = || StoreError::NotEmpty { path: directory.to_owned() };
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(not_empty()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(not_empty()),
        Err(error) => Err(error).at("list", directory),
    }
}

impl crate::compose::Provider {
    /// Whether the object is a stage, which has no part in a root itself.
    fn is_manifest(&self) -> bool {
        let path = Manifest::path(&self.object.name);
        self.listing().find(path.as_os_str().as_bytes()).is_some()
    }
}
