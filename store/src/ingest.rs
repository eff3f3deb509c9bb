//! Normalising and hashing what is to become an object's tree.
//!
//! A tree is either taken over where it lies ([`take`]: what a build wrote) or copied ([`copy`]).
//! Both make files 0444 or 0555, directories 0555, every mtime the same; make hard links plain files and
//! absolute symlinks that stay in the tree relative; drop what packages overwrite of each other;
//! and refuse what no object can hold. Nothing here follows a symlink, or acts by a path: a
//! [`Crew`] that can touch nothing else does it, from the tree's descriptor down.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::content::{self, TREE_TIME};
use crate::crew::{Crew, Tasks};
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::object::Permission;
use crate::open_tree::{self, Listed, OpenTree};
use crate::tree::{Directory, Entry, MAX_DEPTH, printable};
use crate::visit::{self, join};

/// The longest path in a tree, in bytes: programs can open it below a root of 96.
pub(crate) const MAX_PATH_BYTES: usize = 4000;
/// So many files of one directory are one task.
pub(crate) const FILES_PER_TASK: usize = 32;

/// What is kept of a tree beyond the rules for all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'a> {
    /// Set-uid bits and owners that were declared, by absolute path.
    pub permissions: Option<&'a BTreeMap<String, Permission>>,
    /// Leave out what packages overwrite of each other (`/usr/share/info/dir`, `*.la` …).
    pub drop_shared: bool,
    /// How much a tree may be.
    pub limits: Limits,
    /// When this becomes true, it ends soon, with [`StoreError::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

/// How much a tree may be. No limit counts what holes in files save: whoever reads them later reads
/// zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The sum of all files' lengths.
    pub size_bytes: Option<u64>,
    /// Files, symlinks and directories.
    pub entries: Option<u64>,
}

/// Normalises a tree in place and hashes it.
///
/// The top directory itself keeps mode 0755, so that it can still be renamed to another parent.
pub fn take(tree: &OpenTree, rules: Rules<'_>) -> Result<Listing, StoreError> {
    Crew::begin(&[], &[tree], |crew| take_by(crew, tree, rules))?
}

/// Like [`take`], by a crew that may change the tree.
pub fn take_by(crew: &Crew, tree: &OpenTree, rules: Rules<'_>) -> Result<Listing, StoreError> {
    Ingest::new(tree, None, rules).run(crew, None)
}

/// Copies the tree (or the one file) at `source` to the new directory `destination`, normalised,
/// and hashes it on the way. A file becomes the tree's one entry, under its own name.
pub fn copy(source: &Path, destination: &Path, rules: Rules<'_>) -> Result<Listing, StoreError> {
    let kind = rustix::fs::lstat(source).at("read", source)?.st_mode;
    let kind = FileType::from_raw_mode(kind);
    std::fs::create_dir(destination).at("create", destination)?;
    let destination = OpenTree::open(destination)?;
    if kind == FileType::Directory {
        let source = OpenTree::open(source)?;
        let ingest = Ingest::new(&source, Some(&destination), rules);
        return Crew::begin(&[&source], &[&destination], |crew| ingest.run(crew, None))?;
    }
    let parent = source.parent().unwrap_or(Path::new("/"));
    // Where a user's own path leads is the user's business.
    let parent = OpenTree::open(&parent.canonicalize().at("open", parent)?)?;
    let name = source.file_name().unwrap_or(OsStr::new("file")).as_bytes();
    let one = Listed { name: name.into(), kind };
    let ingest = Ingest::new(&parent, Some(&destination), rules);
    Crew::begin(&[&parent], &[&destination], |crew| ingest.run(crew, Some(one)))?
}

/// The taking in of one tree.
struct Ingest<'a> {
    source: &'a OpenTree,
    destination: Option<&'a OpenTree>,
    rules: Rules<'a>,
    entries: AtomicU64,
    size_bytes: AtomicU64,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    directories: HashMap<Digest, Directory>,
    root: Option<Digest>,
}

/// What there is to do.
enum Task {
    /// A directory is to be listed, and what it lists to be taken in.
    Directory(Arc<Visit>),
    /// Files and symlinks of a directory.
    Files(Arc<Opened>, Vec<Listed>),
}

type Visit = visit::Visit<Mutex<Directory>>;

/// A directory whose files are being taken in.
struct Opened {
    visit: Arc<Visit>,
    source: OwnedFd,
    destination: Option<OwnedFd>,
}

impl Opened {
    /// What becomes part of the store.
    fn made(&self) -> BorrowedFd<'_> {
        self.destination.as_ref().unwrap_or(&self.source).as_fd()
    }
}

impl<'a> Ingest<'a> {
    fn new(
        source: &'a OpenTree,
        destination: Option<&'a OpenTree>,
        rules: Rules<'a>,
    ) -> Ingest<'a> {
        let (entries, size_bytes, done) = Default::default();
        Ingest { source, destination, rules, entries, size_bytes, done }
    }

    /// Takes in the whole tree, or `one` entry of it.
    fn run(&self, crew: &Crew, one: Option<Listed>) -> Result<Listing, StoreError> {
        let root = Visit::top(Mutex::default());
        let first = match one {
            None => Task::Directory(root),
            Some(one) => Task::Files(self.open(root)?, vec![one]),
        };
        crew.run(vec![first], |task, tasks| self.work(task, tasks))?;
        let Done { directories, root } =
            std::mem::take(&mut *self.done.lock().expect("no holder panics"));
        let listing = Listing::new(root.expect("the top directory is done"), directories);
        for path in self.rules.permissions.into_iter().flat_map(|map| map.keys()) {
            if listing.find(path.as_bytes()).is_none() {
                return Err(StoreError::NoSuchFile { file: path.clone() });
            }
        }
        Ok(listing)
    }

    fn work(&self, task: Task, tasks: &Tasks<'_, Task>) -> Result<(), StoreError> {
        if self.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let opened = match task {
            Task::Directory(visit) => self.directory(visit, tasks)?,
            Task::Files(opened, files) => {
                self.files(&opened, files)?;
                opened
            }
        };
        self.end(&opened)
    }

    fn is_cancelled(&self) -> bool {
        self.rules.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }

    /// Lists a directory, takes some of its files in, and leaves the rest to others.
    fn directory(
        &self,
        visit: Arc<Visit>,
        tasks: &Tasks<'_, Task>,
    ) -> Result<Arc<Opened>, StoreError> {
        if visit.depth >= MAX_DEPTH {
            return Err(StoreError::TooDeep { file: beginning(&visit.path), limit: MAX_DEPTH });
        }
        check_length(&visit.path)?;
        let opened = self.open(visit)?;
        let visit = &opened.visit;
        if visit.parent().is_some() {
            let stat = rustix::fs::fstat(&opened.source).at("read", &self.path(&visit.path))?;
            self.check_mode(&visit.path, &stat)?;
        }
        let listed = open_tree::list(opened.source.as_fd()).at("list", &self.path(&visit.path))?;
        self.count(listed.len() as u64)?;
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        for entry in listed {
            let path = join(&visit.path, &entry.name);
            if self.rules.drop_shared && is_shared(&path) {
                if self.destination.is_none() {
                    files::remove_at(opened.source.as_fd(), &entry.name)
                        .at("remove", &self.path(&path))?;
                }
            } else if entry.kind == FileType::Directory {
                if let Some(destination) = &opened.destination {
                    rustix::fs::mkdirat(destination, &*entry.name, Mode::RWXU)
                        .at("create", &self.path(&path))?;
                }
                directories.push(visit.below(&entry.name, Mutex::default()));
            } else {
                files.push(entry);
            }
        }
        let mut rest = files.split_off(files.len().min(FILES_PER_TASK));
        visit.add_pending(rest.len().div_ceil(FILES_PER_TASK));
        directories.into_iter().for_each(|visit| tasks.add(Task::Directory(visit)));
        while !rest.is_empty() {
            // From its end: what is split off takes only the room that it needs.
            let some = rest.split_off(rest.len().saturating_sub(FILES_PER_TASK));
            tasks.add(Task::Files(Arc::clone(&opened), some));
        }
        self.files(&opened, files)?;
        Ok(opened)
    }

    fn open(&self, visit: Arc<Visit>) -> Result<Arc<Opened>, StoreError> {
        let source = match self.source.directory(&visit.path) {
            // Whatever the build left: from here on it can be read and changed.
            Err(Errno::ACCESS) if self.destination.is_none() && visit.parent().is_some() => {
                let (above, name) = visit.split();
                self.source.directory(above).and_then(|above| {
                    let stat = open_tree::stat(above.as_fd(), name)?;
                    open_tree::make_accessible(above.as_fd(), name, stat.st_mode & 0o7777 | 0o700)?;
                    open_tree::open_directory(above.as_fd(), name)
                })
            }
            source => source,
        };
        let source = source.at("open", &self.path(&visit.path))?;
        if self.destination.is_none() {
            let mode = rustix::fs::fstat(&source).at("read", &self.path(&visit.path))?.st_mode;
            if mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&source, Mode::from_raw_mode(mode & 0o7777 | 0o700))
                    .at("change", &self.path(&visit.path))?;
            }
        }
        let destination = self
            .destination
            .map(|tree| tree.directory(&visit.path).at("open", &tree.path_of(&visit.path)));
        let destination = destination.transpose()?;
        Ok(Arc::new(Opened { visit, source, destination }))
    }

    fn files(&self, opened: &Opened, files: Vec<Listed>) -> Result<(), StoreError> {
        for Listed { name, kind } in files {
            let path = join(&opened.visit.path, &name);
            check_length(&path)?;
            let entry = match kind {
                FileType::RegularFile => self.file(opened, &name, &path),
                FileType::Symlink => self.symlink(opened, &name, &path),
                kind => {
                    let what = open_tree::in_words(kind);
                    Err(StoreError::FileType { file: shown(&path), what })
                }
            }?;
            insert(&opened.visit, &name, entry);
        }
        Ok(())
    }

    /// A task for this directory is done. If it was the last one the directory is finished, and
    /// those above for which it was the last.
    fn end(&self, opened: &Opened) -> Result<(), StoreError> {
        opened.visit.end(|visit| {
            let again;
            let made = if std::ptr::eq(visit, &*opened.visit) {
                opened.made()
            } else {
                let tree = self.destination.unwrap_or(self.source);
                again = tree.directory(&visit.path).at("open", &self.path(&visit.path))?;
                again.as_fd()
            };
            let mode = if visit.parent().is_some() { 0o555 } else { 0o755 };
            rustix::fs::fchmod(made, Mode::from_raw_mode(mode))
                .and_then(|()| rustix::fs::futimens(made, &TREE_TIME))
                .at("change", &self.path(&visit.path))?;
            let directory = std::mem::take(&mut *visit.gathered.lock().expect("no holder panics"));
            let digest = directory.digest();
            match visit.parent() {
                Some(parent) => insert(parent, visit.split().1, Entry::Directory { digest }),
                None => self.done.lock().expect("no holder panics").root = Some(digest),
            }
            self.done.lock().expect("no holder panics").directories.insert(digest, directory);
            Ok(())
        })
    }

    /// Set-uid and the like are an error unless declared: silently dropped, a program breaks.
    fn check_mode(&self, path: &[u8], stat: &Stat) -> Result<(), StoreError> {
        let declared = self.rules.permissions.is_some_and(|map| map.contains_key(&shown(path)));
        let mode = stat.st_mode & 0o7777;
        // A directory inherits set-gid from its parent on some file systems; it means nothing here.
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let special = if is_directory { 0o5000 } else { 0o7000 };
        if mode & special != 0 && !declared {
            return Err(StoreError::Mode { file: shown(path), mode });
        }
        Ok(())
    }

    fn symlink(&self, opened: &Opened, name: &[u8], path: &[u8]) -> Result<Entry, StoreError> {
        let original = rustix::fs::readlinkat(&opened.source, name, Vec::new())
            .at("read", &self.path(path))?;
        let original = PathBuf::from(OsStr::from_bytes(original.as_bytes()));
        let target = relative_target(Path::new(OsStr::from_bytes(path)), &original);
        let made = opened.made();
        let make = || {
            if self.destination.is_none() {
                if target == original {
                    return Ok(());
                }
                rustix::fs::unlinkat(made, name, AtFlags::empty())?;
            }
            rustix::fs::symlinkat(&target, made, name)
        };
        make()
            .and_then(|()| rustix::fs::utimensat(made, name, &TREE_TIME, AtFlags::SYMLINK_NOFOLLOW))
            .at("write", &self.path(path))?;
        Ok(Entry::Symlink { target: target.into_os_string().into_vec().into() })
    }

    fn file(&self, opened: &Opened, name: &[u8], path: &[u8]) -> Result<Entry, StoreError> {
        let (mut file, stat) =
            self.open_file(opened.source.as_fd(), name).at("open", &self.path(path))?;
        self.check_mode(path, &stat)?;
        self.measure(path, stat.st_size as u64)?;
        let executable = stat.st_mode & 0o111 != 0;
        let mode = if executable { 0o555 } else { 0o444 };
        let done = match self.destination {
            Some(_) => {
                create(opened.made(), name).and_then(|to| self.copy(&mut file, &stat, to, mode))
            }
            None if stat.st_nlink > 1 => {
                // A hard link may be written to through its other name: this one becomes its own.
                let made = files::temporary_name();
                create(opened.made(), made.as_bytes())
                    .and_then(|to| self.copy(&mut file, &stat, to, mode))
                    .and_then(|hashed| {
                        rustix::fs::renameat(opened.made(), &*made, opened.made(), name)?;
                        Ok(hashed)
                    })
            }
            None => content::hash(&mut file, &stat, self.rules.cancel).and_then(|hashed| {
                if stat.st_mode & 0o7777 != mode {
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
                }
                rustix::fs::futimens(&file, &TREE_TIME)?;
                Ok(hashed)
            }),
        };
        if done.is_err() && self.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let (digest, size_bytes) = done.at("take in", &self.path(path))?;
        Ok(Entry::File { digest, size_bytes, executable })
    }

    /// Opens a file for reading. What it was before it could be read is looked at first.
    fn open_file(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(File, Stat), Errno> {
        match open_tree::open_file(at, name) {
            Err(Errno::ACCESS) if self.destination.is_none() => {
                let before = open_tree::stat(at, name)?;
                open_tree::make_accessible(at, name, before.st_mode & 0o7777 | 0o400)?;
                let (file, mut stat) = open_tree::open_file(at, name)?;
                stat.st_mode = before.st_mode;
                Ok((file, stat))
            }
            opened => opened,
        }
    }

    fn copy(
        &self,
        from: &mut File,
        stat: &Stat,
        mut to: File,
        mode: u32,
    ) -> std::io::Result<(Digest, u64)> {
        let hashed = content::copy(from, stat, &mut to, self.rules.cancel)?;
        finish_file(&to, mode)?;
        Ok(hashed)
    }

    /// Counts entries against the limit.
    fn count(&self, entries: u64) -> Result<(), StoreError> {
        let before = self.entries.fetch_add(entries, Ordering::Relaxed);
        match self.rules.limits.entries {
            Some(limit) if before.saturating_add(entries) > limit => {
                Err(StoreError::TooMany { limit })
            }
            _ => Ok(()),
        }
    }

    /// Counts a file's length against the limit, before it is read.
    fn measure(&self, path: &[u8], size_bytes: u64) -> Result<(), StoreError> {
        let before = self.size_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        match self.rules.limits.size_bytes {
            Some(limit) if before.saturating_add(size_bytes) > limit => {
                Err(StoreError::TooLarge { file: shown(path), size_bytes, limit })
            }
            _ => Ok(()),
        }
    }

    /// Where something lies, for messages.
    fn path(&self, below: &[u8]) -> PathBuf {
        self.source.path_of(below)
    }
}

fn insert(visit: &Visit, name: &[u8], entry: Entry) {
    let mut directory = visit.gathered.lock().expect("no holder panics");
    directory.insert(name, entry).expect("the file system's names are valid");
}

fn check_length(path: &[u8]) -> Result<(), StoreError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(StoreError::TooLong { file: beginning(path), limit: MAX_PATH_BYTES });
    }
    Ok(())
}

/// As much of a path as a message bears.
fn beginning(path: &[u8]) -> String {
    printable(&path[..path.len().min(80)])
}

/// Makes a new file in a directory.
pub(crate) fn create(at: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Gives a file its mode and time.
pub(crate) fn finish_file(file: &File, mode: u32) -> std::io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    Ok(rustix::fs::futimens(file, &TREE_TIME)?)
}

/// The path as a root shows it.
fn shown(path: &[u8]) -> String {
    format!("/{}", printable(path))
}

/// An absolute link gets relative to its own place, so that a tree means the same wherever it is
/// composed or materialised. What leads into the kernel's file systems stays as it is.
fn relative_target(path: &Path, target: &Path) -> PathBuf {
    let Ok(inside) = target.strip_prefix("/") else { return target.to_owned() };
    let kernel = ["proc", "dev", "sys", "run"];
    if kernel.iter().any(|name| inside.starts_with(name)) {
        return target.to_owned();
    }
    let directory: Vec<_> = path.parent().into_iter().flat_map(Path::components).collect();
    let goal: Vec<_> = inside.components().collect();
    let common = directory.iter().zip(&goal).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Path::new(".."), directory.len() - common);
    let relative: PathBuf = up.chain(goal[common..].iter().map(|part| part.as_ref())).collect();
    if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative }
}

/// What packages overwrite of each other, or what only says when and where it was made.
fn is_shared(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    path == b"usr/share/info/dir"
        || matches!(name, b"perllocal.pod" | b".packlist" | b"__pycache__")
        || (name.ends_with(b".la") && path.starts_with(b"usr/lib/"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::tree::TREE_TIME_SECONDS;

    fn open(path: &Path) -> OpenTree {
        OpenTree::open(path).expect("opened")
    }

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("tree");
        fs::create_dir_all(root.join("usr/bin")).expect("created");
        fs::create_dir_all(root.join("usr/share/info")).expect("created");
        fs::write(root.join("usr/share/info/dir"), "index").expect("written");
        fs::write(root.join("usr/bin/tool"), "#!").expect("written");
        fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o700))
            .expect("changed");
        fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/same")).expect("linked");
        symlink("/usr/bin/tool", root.join("usr/bin/absolute")).expect("linked");
        symlink("/proc/self", root.join("usr/self")).expect("linked");
        directory
    }

    fn rules() -> Rules<'static> {
        Rules { drop_shared: true, ..Rules::default() }
    }

    #[test]
    fn taking_and_copying_give_the_same_normalised_tree() {
        let directory = tree();
        let (taken, copied) = (directory.path().join("tree"), directory.path().join("copy"));
        let first = copy(&taken, &copied, rules()).expect("copied");
        let second = take(&open(&taken), rules()).expect("taken");
        assert_eq!(first, second);
        for root in [&taken, &copied] {
            let tool = fs::metadata(root.join("usr/bin/tool")).expect("there");
            assert_eq!(
                (tool.mode() & 0o7777, tool.mtime(), tool.nlink()),
                (0o555, TREE_TIME_SECONDS, 1)
            );
            assert_eq!(fs::metadata(root.join("usr")).expect("there").mtime(), TREE_TIME_SECONDS);
            assert_eq!(
                fs::read_link(root.join("usr/bin/absolute")).expect("link"),
                Path::new("tool")
            );
            assert_eq!(
                fs::read_link(root.join("usr/self")).expect("link"),
                Path::new("/proc/self")
            );
            assert!(!root.join("usr/share/info/dir").exists());
        }
        assert_eq!(
            take(&open(&copied), rules()).expect("again"),
            first,
            "normalising twice changes nothing"
        );
    }

    #[test]
    fn what_no_object_can_hold_is_refused_by_name() {
        let directory = tree();
        let root = directory.path().join("tree");
        fs::set_permissions(root.join("usr/bin/same"), fs::Permissions::from_mode(0o4755))
            .expect("changed");
        let error = take(&open(&root), rules()).expect_err("set-uid").to_string();
        assert!(error.contains("has mode 4755"), "{error}");

        let permissions: BTreeMap<_, _> = ["/usr/bin/same", "/usr/bin/tool"]
            .map(|path| (path.to_owned(), "4755 root:root".parse().expect("valid")))
            .into();
        take(&open(&root), Rules { permissions: Some(&permissions), ..rules() }).expect("declared");

        let permissions: BTreeMap<_, _> =
            [("/usr/bin/su".to_owned(), "4755 root:root".parse().expect("valid"))].into();
        let error = take(&open(&root), Rules { permissions: Some(&permissions), ..rules() });
        assert!(error.expect_err("missing").to_string().contains("/usr/bin/su"));

        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let error = take(&open(&root), rules()).expect_err("a pipe").to_string();
        assert_eq!(error, "/pipe is a named pipe, which no store object can hold");
    }

    #[test]
    fn a_link_in_a_trees_place_is_no_tree() {
        let directory = tree();
        let link = directory.path().join("link");
        symlink(directory.path().join("tree"), &link).expect("linked");
        let error = OpenTree::open(&link).expect_err("a link").to_string();
        assert!(error.ends_with("link is a symbolic link and must be a directory"), "{error}");
        let top = open(directory.path());
        for (name, what) in [("link", "a symbolic link"), ("gone", "missing")] {
            match top.reclaim(name) {
                Err(StoreError::NotADirectory { what: found, .. }) => assert_eq!(found, what),
                other => panic!("{other:?}"),
            }
        }
        for path in [&b"link/usr"[..], b"tree/../link", b"../x", b"/etc"] {
            assert!(top.directory(path).is_err() && top.file(path).is_err());
        }
        assert!(top.directory(b"tree/usr").is_ok() && top.file(b"tree/usr/bin/tool").is_ok());
        assert!(top.file(b"tree/usr").is_err() && top.file(b"tree/usr/bin/absolute").is_err());
    }

    #[test]
    fn directories_may_lie_so_deep_and_no_deeper() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut deepest = directory.path().join("tree");
        fs::create_dir(&deepest).expect("created");
        for _ in 1..MAX_DEPTH {
            deepest.push("d");
            fs::create_dir(&deepest).expect("created");
        }
        fs::write(deepest.join("file"), "data").expect("written");
        let root = directory.path().join("tree");
        let listing = take(&open(&root), rules()).expect("as deep as may be");
        let bytes = listing.encode();
        let decoded = Listing::decode(&bytes, listing.digest(), Path::new("x.listing"));
        assert_eq!(decoded.expect("decoded"), listing);
        copy(&root, &directory.path().join("copy"), rules()).expect("copied");
        fs::set_permissions(&deepest, fs::Permissions::from_mode(0o755)).expect("changed");
        fs::create_dir(deepest.join("d")).expect("created");
        for result in
            [copy(&root, &directory.path().join("copy2"), rules()), take(&open(&root), rules())]
        {
            let error = result.expect_err("too deep").to_string();
            assert!(error.contains("more than 256 directories deep"), "{error}");
        }
    }

    #[test]
    fn a_tree_may_be_so_large_and_no_larger() {
        let directory = tree();
        let root = directory.path().join("tree");
        let huge = File::create(root.join("usr/huge")).expect("created");
        huge.set_len(400 << 30).expect("made longer");
        let limits = Limits { size_bytes: Some(64 << 30), entries: None };
        let error = take(&open(&root), Rules { limits, ..rules() }).expect_err("too large");
        let text = error.to_string();
        assert!(
            text.contains("/usr/huge") && text.contains(&(400_u64 << 30).to_string()),
            "{text}"
        );
        fs::remove_file(root.join("usr/huge")).expect("removed");
        let limits = Limits { entries: Some(7), ..limits };
        let error = take(&open(&root), Rules { limits, ..rules() });
        assert!(matches!(error, Err(StoreError::TooMany { limit: 7 })), "{error:?}");
        let cancel = AtomicBool::new(true);
        let error = take(&open(&root), Rules { cancel: Some(&cancel), ..rules() });
        assert!(matches!(error, Err(StoreError::Cancelled)), "{error:?}");
    }

    #[test]
    fn a_single_file_is_a_tree_of_one() {
        let directory = tree();
        let source = directory.path().join("tree/usr/share/info/dir");
        let listing =
            copy(&source, &directory.path().join("one"), Rules::default()).expect("copied");
        assert!(listing.find(b"dir").is_some());
        assert!(directory.path().join("one/dir").exists());
    }

    #[test]
    fn links_are_made_relative_to_their_own_place() {
        for (path, target, expected) in [
            ("usr/bin/a", "/usr/bin/b", "b"),
            ("usr/bin/a", "/usr/lib/b", "../lib/b"),
            ("a", "/b", "b"),
            ("usr/bin/a", "/", "../.."),
            ("usr/a", "/usr", "."),
            ("usr/a", "../b", "../b"),
            ("usr/a", "/dev/null", "/dev/null"),
        ] {
            let target = relative_target(Path::new(path), Path::new(target));
            assert_eq!(target, Path::new(expected), "{path}");
        }
    }
}
