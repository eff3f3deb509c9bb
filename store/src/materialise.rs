//! Materialising: a composition written as a normal root filesystem, or as a cached tree for
//! sandboxes.
//!
//! Files are copied (reflinked where the file system can), never linked: changing a root
//! filesystem can't hurt the store, and a file's link count says nothing of who else uses it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use rayon::prelude::*;

use crate::compose::{Composition, Node, SYSROOT, Source};
use crate::derivation::Role;
use crate::digest::{Digest, ObjectId};
use crate::error::{IoContext, StoreError};
use crate::manifest::Manifest;
use crate::object::{Object, ReferenceKind};
use crate::staged::StagedDirectory;
use crate::store::Store;
use crate::tree::Entry;

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
    pub fn layers(&self, composition: &Composition) -> Result<Vec<PathBuf>, StoreError> {
        let trees: Vec<PathBuf> = composition
            .providers()
            .iter()
            .filter(|provider| !provider.is_manifest())
            .map(|provider| provider.path.clone())
            .collect();
        if trees.len() <= MAX_LAYERS {
            return Ok(trees);
        }
        Ok(vec![self.composed(composition)?])
    }

    /// The cached tree of a composition, made if there is none.
    pub fn composed(&self, composition: &Composition) -> Result<PathBuf, StoreError> {
        let path = self.directory("composed").join(composition.digest().to_string());
        if path.is_dir() {
            return Ok(path);
        }
        let scratch = self.scratch()?;
        let staged = scratch.path().join("composed");
        fs::create_dir(&staged).at("create", &staged)?;
        composition.write(&staged, Style::Frozen)?;
        // It is trusted by its name from now on.
        self.committer.sync()?;
        let directory = self.directory("composed");
        fs::create_dir_all(&directory).at("create", &directory)?;
        match fs::rename(&staged, &path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o555))
                    .at("change", &path)?;
            }
            // Another process was faster.
            Err(_) if path.is_dir() => {}
            Err(error) => return Err(error).at("rename", &staged),
        }
        Ok(path)
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
    /// (else a power cut may leave it without contents), and renamed.
    pub fn materialise(
        mut self,
        directory: &Path,
        synced: bool,
    ) -> Result<Materialised, StoreError> {
        check_empty(directory)?;
        self.add_base_layout();
        let staging = StagedDirectory::beside(directory).at("write beside", directory)?;
        let staged = staging.path();
        let size_bytes = self.write(staged, Style::Rootfs)?;
        let unapplied_permissions = self.apply_permissions(staged)?;
        for path in STICKY {
            let path = staged.join(path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).at("change", &path)?;
        }
        let placed =
            if synced { staging.place_synced(directory) } else { staging.place(directory) };
        placed.at("rename to", directory)?;
        Ok(Materialised { digest: self.digest(), size_bytes, unapplied_permissions })
    }

    /// Writes the composition to the empty directory `to`.
    fn write(&self, to: &Path, style: Style) -> Result<u64, StoreError> {
        let size_bytes = self.write_node(self.root(), Path::new(""), to, style)?;
        finish_directory(to, Style::Rootfs)?;
        Ok(size_bytes)
    }

    fn write_node(
        &self,
        node: &Node,
        path: &Path,
        to: &Path,
        style: Style,
    ) -> Result<u64, StoreError> {
        self.expand(node)
            .into_iter()
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(name, node)| {
                let path = path.join(std::ffi::OsStr::from_bytes(&name));
                let made = to.join(&path);
                match &node {
                    Node::Entry(entry, source) => {
                        self.write_entry(entry, *source, &path, &made, style)
                    }
                    node => {
                        fs::create_dir(&made).at("create", &made)?;
                        let size_bytes = self.write_node(node, &path, to, style)?;
                        finish_directory(&made, style)?;
                        Ok(size_bytes)
                    }
                }
            })
            .sum()
    }

    fn write_entry(
        &self,
        entry: &Entry,
        source: Source,
        path: &Path,
        made: &Path,
        style: Style,
    ) -> Result<u64, StoreError> {
        let size_bytes = match (entry, source) {
            (Entry::Symlink { target }, _) => {
                let target = std::ffi::OsStr::from_bytes(target);
                std::os::unix::fs::symlink(target, made).at("create", made)?;
                0
            }
            (_, Source::Literal(bytes)) => {
                fs::write(made, bytes).at("write", made)?;
                bytes.len() as u64
            }
            (_, Source::Provider(index)) => {
                fs::copy(self.providers()[index].file(path), made).at("copy to", made)?
            }
        };
        if let Entry::File { executable, .. } = entry {
            let mode = match (style, executable) {
                (Style::Frozen, false) => 0o444,
                (Style::Frozen, true) => 0o555,
                (Style::Rootfs, false) => 0o644,
                (Style::Rootfs, true) => 0o755,
            };
            fs::set_permissions(made, fs::Permissions::from_mode(mode)).at("change", made)?;
        }
        set_time(made)?;
        Ok(size_bytes)
    }

    /// Applies declared modes and owners, and returns those that this user can't apply.
    fn apply_permissions(&self, root: &Path) -> Result<Vec<String>, StoreError> {
        let (users, groups) =
            (numbers(&root.join("etc/passwd"))?, numbers(&root.join("etc/group"))?);
        let number = |names: &[(String, u32)], name: &str| {
            let known = names.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
            known.or_else(|| name.parse().ok())
        };
        let mut unapplied = Vec::new();
        for provider in self.providers() {
            for (path, permission) in &provider.permissions {
                let file = root.join(&provider.at).join(path.trim_start_matches('/'));
                // What is reached through a link may lie outside the root.
                if !is_plain(root, &file)? {
                    unapplied.push(format!("{path} {permission}"));
                    continue;
                }
                let owner =
                    number(&users, &permission.user).zip(number(&groups, &permission.group));
                let (Some((user, group)), true) = (owner, nix::unistd::geteuid().is_root()) else {
                    unapplied.push(format!("{path} {permission}"));
                    continue;
                };
                std::os::unix::fs::lchown(&file, Some(user), Some(group)).at("change", &file)?;
                let mode = fs::Permissions::from_mode(u32::from(permission.mode));
                fs::set_permissions(&file, mode).at("change", &file)?;
            }
        }
        Ok(unapplied)
    }
}

/// Whether neither `file` nor any directory between it and `root` is a symlink.
fn is_plain(root: &Path, file: &Path) -> Result<bool, StoreError> {
    for path in file.ancestors().take_while(|path| *path != root) {
        if fs::symlink_metadata(path).at("read", path)?.is_symlink() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Names and numbers of `/etc/passwd` or `/etc/group`: fields 1 and 3.
fn numbers(path: &Path) -> Result<Vec<(String, u32)>, StoreError> {
    let text = fs::read_to_string(path).at("read", path)?;
    let parse = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    Ok(text.lines().filter_map(parse).collect())
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

fn finish_directory(path: &Path, style: Style) -> Result<(), StoreError> {
    let mode = if style == Style::Frozen { 0o555 } else { 0o755 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("change", path)?;
    set_time(path)
}

fn set_time(path: &Path) -> Result<(), StoreError> {
    let epoch = TimeSpec::new(1, 0);
    let at = nix::fcntl::AT_FDCWD;
    utimensat(at, path, &epoch, &epoch, UtimensatFlags::NoFollowSymlink).at("change", path)
}

impl crate::compose::Provider {
    /// Whether the object is a stage, which has no part in a root itself.
    fn is_manifest(&self) -> bool {
        let path = Manifest::path(&self.object.name);
        self.listing().find(path.as_os_str().as_bytes()).is_some()
    }
}
