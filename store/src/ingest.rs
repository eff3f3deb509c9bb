//! Normalising and hashing what is to become an object's tree.
//!
//! A tree is either taken over where it lies ([`take`]: what a build wrote) or copied ([`copy`]).
//! Both make files 0444 or 0555, directories 0555, every mtime 1; make hard links plain files and
//! absolute symlinks that stay in the tree relative; drop what packages overwrite of each other;
//! and refuse what no object can hold. Nothing here follows a symlink.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use rayon::prelude::*;

use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::object::Permission;
use crate::tree::{Directory, Entry, printable};

/// The longest path in a tree, in bytes: programs can open it below a root of 96.
pub(crate) const MAX_PATH_BYTES: usize = 4000;
const EPOCH: TimeSpec = TimeSpec::new(1, 0);

/// What is kept of a tree beyond the rules for all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'a> {
    /// Set-uid bits and owners that were declared, by absolute path.
    pub permissions: Option<&'a BTreeMap<String, Permission>>,
    /// Leave out what packages overwrite of each other (`/usr/share/info/dir`, `*.la` …).
    pub drop_shared: bool,
}

/// Normalises the tree at `path` in place and hashes it.
///
/// The top directory itself keeps mode 0755, so that it can still be renamed to another parent.
pub fn take(path: &Path, rules: Rules<'_>) -> Result<Listing, StoreError> {
    Ingest { source: path, destination: None, rules }.run()
}

/// Copies the tree (or the one file) at `source` to the new directory `destination`, normalised,
/// and hashes it on the way. A file becomes the tree's one entry, under its own name.
pub fn copy(source: &Path, destination: &Path, rules: Rules<'_>) -> Result<Listing, StoreError> {
    let metadata = fs::symlink_metadata(source).at("read", source)?;
    fs::create_dir(destination).at("create", destination)?;
    if metadata.is_dir() {
        return Ingest { source, destination: Some(destination), rules }.run();
    }
    let parent = source.parent().unwrap_or(Path::new("/"));
    let name = source.file_name().unwrap_or(OsStr::new("file"));
    let ingest = Ingest { source: parent, destination: Some(destination), rules };
    let (directory, below) = ingest.directory_of(Path::new(""), vec![(name.into(), metadata)])?;
    finish_directory(destination)?;
    Ok(listing(directory, below))
}

struct Ingest<'a> {
    source: &'a Path,
    destination: Option<&'a Path>,
    rules: Rules<'a>,
}

type Below = HashMap<Digest, Directory>;

fn listing(root: Directory, mut directories: Below) -> Listing {
    let digest = root.digest();
    directories.insert(digest, root);
    Listing::new(digest, directories)
}

impl Ingest<'_> {
    fn run(self) -> Result<Listing, StoreError> {
        let (directory, below) = self.directory(Path::new(""))?;
        let listing = listing(directory, below);
        for path in self.rules.permissions.into_iter().flat_map(|map| map.keys()) {
            if listing.find(path.as_bytes()).is_none() {
                return Err(StoreError::NoSuchFile { file: path.clone() });
            }
        }
        finish_directory(self.destination.unwrap_or(self.source))?;
        Ok(listing)
    }

    /// The directory at `path` in the tree, and all directories below it.
    fn directory(&self, path: &Path) -> Result<(Directory, Below), StoreError> {
        let source = self.source.join(path);
        if path.as_os_str().len() > MAX_PATH_BYTES {
            let file = printable(&path.as_os_str().as_bytes()[..80]);
            return Err(StoreError::TooLong { file, limit: MAX_PATH_BYTES });
        }
        if self.destination.is_none() {
            // Whatever the build left: from here on it can be read and changed.
            fs::set_permissions(&source, fs::Permissions::from_mode(0o755))
                .at("change", &source)?;
        }
        let entries = fs::read_dir(&source)
            .at("list", &source)?
            .map(|entry| {
                let entry = entry.at("list", &source)?;
                Ok((entry.file_name(), entry.metadata().at("read", &entry.path())?))
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.directory_of(path, entries)
    }

    fn directory_of(
        &self,
        path: &Path,
        entries: Vec<(std::ffi::OsString, Metadata)>,
    ) -> Result<(Directory, Below), StoreError> {
        let done = entries
            .into_par_iter()
            .map(|(name, metadata)| {
                let entry = self.entry(&path.join(&name), &metadata)?;
                Ok(entry.map(|(entry, below)| (name.into_vec(), entry, below)))
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let mut directory = Directory::default();
        let mut below = Below::new();
        for (name, entry, subdirectories) in done.into_iter().flatten() {
            below.extend(subdirectories);
            directory.insert(&name, entry).expect("the file system's names are valid");
        }
        Ok((directory, below))
    }

    fn entry(
        &self,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<Option<(Entry, Below)>, StoreError> {
        let kind = metadata.file_type();
        let source = self.source.join(path);
        let refused = |what| StoreError::FileType { file: shown(path), what };
        if self.rules.drop_shared && is_shared(path) {
            if self.destination.is_none() {
                files::remove_tree(&source)?;
            }
            return Ok(None);
        }
        if kind.is_dir() {
            self.check_mode(path, metadata)?;
            if let Some(destination) = self.destination {
                let destination = destination.join(path);
                fs::create_dir(&destination).at("create", &destination)?;
            }
            let (directory, mut below) = self.directory(path)?;
            let made = self.destination.unwrap_or(self.source).join(path);
            finish_directory(&made)?;
            fs::set_permissions(&made, fs::Permissions::from_mode(0o555)).at("change", &made)?;
            let digest = directory.digest();
            below.insert(digest, directory);
            return Ok(Some((Entry::Directory { digest }, below)));
        }
        let entry = if kind.is_symlink() {
            self.symlink(path)?
        } else if kind.is_file() {
            self.check_mode(path, metadata)?;
            self.file(path, metadata)?
        } else if kind.is_fifo() {
            return Err(refused("a named pipe"));
        } else if kind.is_socket() {
            return Err(refused("a socket"));
        } else {
            return Err(refused("a device"));
        };
        Ok(Some((entry, Below::new())))
    }

    /// Set-uid and the like are an error unless declared: silently dropped, a program breaks.
    fn check_mode(&self, path: &Path, metadata: &Metadata) -> Result<(), StoreError> {
        let declared = self.rules.permissions.is_some_and(|map| map.contains_key(&shown(path)));
        let mode = metadata.mode() & 0o7777;
        // A directory inherits set-gid from its parent on some file systems; it means nothing here.
        let special = if metadata.is_dir() { 0o5000 } else { 0o7000 };
        if mode & special != 0 && !declared {
            return Err(StoreError::Mode { file: shown(path), mode });
        }
        Ok(())
    }

    fn symlink(&self, path: &Path) -> Result<Entry, StoreError> {
        let source = self.source.join(path);
        let original = fs::read_link(&source).at("read", &source)?;
        let target = relative_target(path, &original);
        let made = match self.destination {
            Some(destination) => {
                let made = destination.join(path);
                std::os::unix::fs::symlink(&target, &made).at("create", &made)?;
                made
            }
            None => {
                if target != original {
                    fs::remove_file(&source).at("replace", &source)?;
                    std::os::unix::fs::symlink(&target, &source).at("replace", &source)?;
                }
                source
            }
        };
        let at = nix::fcntl::AT_FDCWD;
        utimensat(at, &made, &EPOCH, &EPOCH, UtimensatFlags::NoFollowSymlink)
            .at("change", &made)?;
        Ok(Entry::Symlink { target: target.into_os_string().into_vec().into() })
    }

    fn file(&self, path: &Path, metadata: &Metadata) -> Result<Entry, StoreError> {
        let source = self.source.join(path);
        let executable = metadata.mode() & 0o111 != 0;
        let mode = if executable { 0o555 } else { 0o444 };
        if self.destination.is_none() && metadata.mode() & 0o400 == 0 {
            fs::set_permissions(&source, fs::Permissions::from_mode(0o600))
                .at("change", &source)?;
        }
        let mut file = files::open_plain(&source).at("open", &source)?;
        let (digest, size_bytes) = match self.destination {
            Some(destination) => {
                let made = destination.join(path);
                let (mut to, hashed) = copy_hashed(&mut file, metadata.len(), &made)?;
                finish_file(&mut to, mode).at("change", &made)?;
                hashed
            }
            None if metadata.nlink() > 1 => {
                // A hard link may be written to through its other name: this one becomes its own.
                let made = source.with_file_name(files::temporary_name());
                let (mut to, hashed) = copy_hashed(&mut file, metadata.len(), &made)?;
                finish_file(&mut to, mode).at("change", &made)?;
                fs::rename(&made, &source).at("replace", &source)?;
                hashed
            }
            None => {
                let hashed =
                    hash(&mut file, metadata.len(), &mut |_| Ok(())).at("read", &source)?;
                finish_file(&mut file, mode).at("change", &source)?;
                hashed
            }
        };
        Ok(Entry::File { digest, size_bytes, executable })
    }
}

fn copy_hashed(
    from: &mut File,
    length: u64,
    to: &Path,
) -> Result<(File, (Digest, u64)), StoreError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).at("create", to)?;
    let hashed = hash(from, length, &mut |bytes| file.write_all(bytes)).at("copy to", to)?;
    Ok((file, hashed))
}

/// Reads to the end, hashing and handing on what was read.
///
/// Big files are hashed by several threads at a time; small ones, which are most, by one read.
pub(crate) fn hash(
    file: &mut File,
    length: u64,
    also: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<(Digest, u64)> {
    const CHUNK: u64 = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; length.clamp(1, CHUNK) as usize + 1];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((Digest::from_bytes(*hasher.finalize().as_bytes()), total));
        }
        if count >= 128 << 10 {
            hasher.update_rayon(&buffer[..count]);
        } else {
            hasher.update(&buffer[..count]);
        }
        also(&buffer[..count])?;
        total += count as u64;
    }
}

pub(crate) fn finish_file(file: &mut File, mode: u32) -> std::io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(futimens(&*file, &EPOCH, &EPOCH)?)
}

pub(crate) fn finish_directory(path: &Path) -> Result<(), StoreError> {
    let at = nix::fcntl::AT_FDCWD;
    utimensat(at, path, &EPOCH, &EPOCH, UtimensatFlags::NoFollowSymlink).at("change", path)
}

/// The path as a root shows it.
fn shown(path: &Path) -> String {
    format!("/{}", path.display())
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
fn is_shared(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    path == Path::new("usr/share/info/dir")
        || matches!(name, b"perllocal.pod" | b".packlist" | b"__pycache__")
        || (name.ends_with(b".la") && path.starts_with("usr/lib"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

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
        let second = take(&taken, rules()).expect("taken");
        assert_eq!(first, second);
        for root in [&taken, &copied] {
            let tool = fs::metadata(root.join("usr/bin/tool")).expect("there");
            assert_eq!((tool.mode() & 0o7777, tool.mtime(), tool.nlink()), (0o555, 1, 1));
            assert_eq!(fs::metadata(root.join("usr")).expect("there").mtime(), 1);
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
            take(&copied, rules()).expect("again"),
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
        let error = take(&root, rules()).expect_err("set-uid").to_string();
        assert!(error.contains("has mode 4755"), "{error}");

        let permissions: BTreeMap<_, _> = ["/usr/bin/same", "/usr/bin/tool"]
            .map(|path| (path.to_owned(), "4755 root:root".parse().expect("valid")))
            .into();
        take(&root, Rules { permissions: Some(&permissions), ..rules() }).expect("declared");

        let permissions: BTreeMap<_, _> =
            [("/usr/bin/su".to_owned(), "4755 root:root".parse().expect("valid"))].into();
        let error = take(&root, Rules { permissions: Some(&permissions), ..rules() });
        assert!(error.expect_err("missing").to_string().contains("/usr/bin/su"));

        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let error = take(&root, rules()).expect_err("a pipe").to_string();
        assert_eq!(error, "/pipe is a named pipe, which no store object can hold");
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
