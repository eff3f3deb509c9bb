//! Finds what a build's output needs: to run, and to be built against.
//!
//! [`scan()`] reads the needs out of the files of one tree: ELF `DT_NEEDED` and interpreters, the
//! `#!` line of executables, pkg-config's `Requires`. [`resolve()`] says which output or input
//! satisfies each of them, or why none does. [`forbidden()`] looks for the sandbox's own path
//! names in the bytes of an output, also inside archives and compressed members.
//!
//! What this deliberately isn't: it knows no object and no derivation. Trees are open directories,
//! providers are indices whose meaning is the caller's, and nothing here decides what a
//! reference is worth. It can't see what a program loads by `dlopen` or runs by name; that is
//! declared in the derivation. It follows no symlink of the tree that it reads, and it runs when
//! no process of the build is left, so nothing can change under it.

mod containers;
mod elf;
mod forbidden;
mod machine;
mod pkg_config;
mod resolve;
mod root;
mod script;
mod searching;
mod walk;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;
use std::sync::Mutex;

use srp_store::{Crew, OpenTree, StoreError};

use crate::archive::Exceeded;
use crate::cancel::CancelToken;

pub use forbidden::{Occurrence, forbidden};
pub use machine::{Class, ElfIdent, Endian};
pub use resolve::{Cause, Ignored, Provider, Unresolved, resolve};
pub(crate) use resolve::{hints, matches};
pub use root::{Entry, Root};

/// The kernel reads this much of a script to find its interpreter (`BINPRM_BUF_SIZE`).
const SCRIPT_HEAD_BYTES: usize = 256;

/// No pkg-config file comes near this; one that exceeds it is refused, not read in part.
const PKG_CONFIG_LIMIT_BYTES: u64 = 1 << 20;

/// One need of one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// The file's path in its tree, without a leading slash.
    pub file: String,
    /// What it needs.
    pub need: Need,
    /// When it needs it.
    pub kind: Kind,
}

/// When a need arises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// When the file is used.
    Run,
    /// When something is built against the file.
    Develop,
}

/// Something that a file names and another file has to provide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// A shared library, from `DT_NEEDED`.
    Library {
        /// The name to look for; one with a slash is a path.
        soname: String,
        /// What the library must have been built for.
        elf: ElfIdent,
        /// `DT_RUNPATH`, else `DT_RPATH`, in order, with `$ORIGIN` replaced by the file's
        /// directory. `$LIB` is still in it.
        search: Vec<String>,
    },
    /// A dynamic loader, from `PT_INTERP`.
    Interpreter {
        /// Its absolute path.
        path: String,
        /// What it must have been built for.
        elf: ElfIdent,
    },
    /// The absolute path after `#!`, or the one that `env` is given.
    Script {
        /// Its absolute path.
        interpreter: String,
    },
    /// A program that `#!/usr/bin/env` looks for along `PATH`.
    Program {
        /// Its name.
        name: String,
    },
    /// A pkg-config module, from `Requires` or `Requires.private`.
    PkgConfig {
        /// The module's name, without a version constraint.
        module: String,
        /// Whether only `Requires.private` names it.
        private: bool,
    },
}

impl Need {
    /// The needed thing's own name: what `ignore_references` lists and messages print.
    pub fn name(&self) -> &str {
        match self {
            Need::Library { soname, .. } => soname,
            Need::Interpreter { path, .. } => path,
            Need::Script { interpreter } => interpreter,
            Need::Program { name } => name,
            Need::PkgConfig { module, .. } => module,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why a tree could not be examined. Each of them fails the build: an output that was not read to
/// its end has unknown references.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was to end before it was through, or the threads that read could not be confined.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pkg-config file too large to be one.
    #[error("{file} has {size_bytes} bytes, too many for a pkg-config file (limit {limit_bytes})")]
    PkgConfigTooLarge {
        /// The file's path in its tree.
        file: String,
        /// Its size.
        size_bytes: u64,
        /// The most that is read.
        limit_bytes: u64,
    },
    /// A file that costs more to unpack than is spent on a search.
    #[error("{file} can't be searched to its end for paths of the sandbox: {source}")]
    Limit {
        /// The file's path in its tree.
        file: String,
        /// What it would take too much of.
        source: Exceeded,
    },
    /// A file that nests archives deeper than is searched.
    #[error("{file} nests archives more than {limit} deep, which is as deep as is searched")]
    NestedTooDeep {
        /// The file's path in its tree.
        file: String,
        /// The most levels that are entered.
        limit: usize,
    },
}

impl ScanError {
    /// What whoever wrote the definition can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            ScanError::Limit { file, .. } | ScanError::NestedTooDeep { file, .. } => {
                vec![format!(
                    "if it is test data or the like, leave it out of the search: \
                     allow_sandbox_paths = {{{file:?}: \"why\"}} (or leave it out of the output)"
                )]
            }
            _ => Vec::new(),
        }
    }
}

/// Reads every need out of the files of `tree`. The result is sorted and free of duplicates
/// whatever the order of work was.
///
/// A file that only looks like ELF (a test's corpus, a truncated download) has no needs; it is
/// mentioned in the trace. Object files, kernel modules, core dumps and split debug files have
/// none either.
pub fn scan(crew: &Crew, tree: &OpenTree, cancel: &CancelToken) -> Result<Vec<Finding>, ScanError> {
    let mut findings = each(crew, tree, cancel, |file| match file.kind {
        walk::Kind::Regular => scan_file(tree, file),
        walk::Kind::Symlink => Ok(Vec::new()),
    })?;
    findings.sort_unstable();
    findings.dedup();
    Ok(findings)
}

/// What there is to do.
enum Task {
    /// A directory is to be listed.
    Directory(Vec<u8>),
    /// These are to be read.
    Files(Vec<walk::Found>),
}

/// So many files are one task.
const FILES_PER_TASK: usize = 32;

/// What comes of each of the files of a tree that the crew may read.
fn each<T: Send>(
    crew: &Crew,
    tree: &OpenTree,
    cancel: &CancelToken,
    work: impl Fn(&walk::Found) -> Result<Vec<T>, ScanError> + Sync,
) -> Result<Vec<T>, ScanError> {
    let all = Mutex::new(Vec::new());
    let top = vec![Task::Directory(Vec::new())];
    crew.run(top, |task, tasks| {
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        match task {
            Task::Directory(path) => walk::list(tree, &path, &mut files, &mut directories)?,
            Task::Files(some) => files = some,
        }
        directories.into_iter().for_each(|path| tasks.add(Task::Directory(path)));
        while files.len() > FILES_PER_TASK {
            tasks.add(Task::Files(files.split_off(files.len() - FILES_PER_TASK)));
        }
        for file in files {
            if cancel.is_cancelled() {
                return Err(StoreError::Cancelled.into());
            }
            let found = work(&file)?;
            if !found.is_empty() {
                all.lock().expect("no holder panics").extend(found);
            }
        }
        Ok::<(), ScanError>(())
    })?;
    Ok(all.into_inner().expect("no holder panics"))
}

fn scan_file(tree: &OpenTree, entry: &walk::Found) -> Result<Vec<Finding>, ScanError> {
    let unreadable = |source| walk::unreadable(tree, &entry.path, source);
    let (mut file, stat) =
        tree.file(&entry.path).map_err(|error| unreadable(io::Error::from(error)))?;
    let mut head = Vec::with_capacity(SCRIPT_HEAD_BYTES);
    file.by_ref().take(SCRIPT_HEAD_BYTES as u64).read_to_end(&mut head).map_err(unreadable)?;

    let needs = if head.starts_with(b"\x7fELF") {
        elf_needs(entry, file)
    } else if head.starts_with(b"#!") && stat.st_mode & 0o111 != 0 {
        script::needs(&head).into_iter().map(|need| (need, Kind::Run)).collect()
    } else if is_pkg_config(&entry.name) {
        let size_bytes = stat.st_size as u64;
        if size_bytes > PKG_CONFIG_LIMIT_BYTES {
            return Err(ScanError::PkgConfigTooLarge {
                file: entry.name.clone(),
                size_bytes,
                limit_bytes: PKG_CONFIG_LIMIT_BYTES,
            });
        }
        let mut bytes = Vec::new();
        file.rewind().map_err(unreadable)?;
        file.take(PKG_CONFIG_LIMIT_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
        pkg_config::needs(&String::from_utf8_lossy(&bytes))
            .into_iter()
            .map(|need| (need, Kind::Develop))
            .collect()
    } else {
        Vec::new()
    };
    Ok(needs
        .into_iter()
        .map(|(need, kind)| Finding { file: entry.name.clone(), need, kind })
        .collect())
}

fn elf_needs(entry: &walk::Found, file: File) -> Vec<(Need, Kind)> {
    match elf::read(file) {
        Ok(elf) => elf.needs(directory_of(&entry.name)),
        Err(reason) => {
            tracing::warn!(
                file = entry.name,
                reason,
                "starts like an ELF file but can't be read as one"
            );
            Vec::new()
        }
    }
    .into_iter()
    .map(|need| (need, Kind::Run))
    .collect()
}

fn is_pkg_config(name: &str) -> bool {
    name.ends_with(".pc")
        && directory_of(name).rsplit('/').next().is_some_and(|parent| parent == "pkgconfig")
}

/// The part of a tree path before its last slash; empty at the top.
fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

#[cfg(test)]
mod tests;
