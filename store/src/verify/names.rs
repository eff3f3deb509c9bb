//! What lies in a directory of the store, sorted into what belongs there and what doesn't; and
//! reading it so that whatever lies there instead is a finding and holds nobody up.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::lock::is_held;
use crate::staged;
use crate::store::Store;
use crate::verify::{Finding, Report, Subject, Unread};

/// What reading something came to.
pub(super) enum Looked<T> {
    /// It is as it should be.
    Sound(T),
    /// It isn't: "it is truncated".
    Wrong(String),
    /// It isn't there; whether it should be, somebody else knows.
    Gone,
    /// This user may not read it, or this process has no room for it: nothing is known.
    Unread(Error),
}

impl<T> Looked<T> {
    pub(super) fn failed(error: Error) -> Looked<T> {
        let own = [Errno::EACCES, Errno::EPERM, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Looked::Gone,
            Some(number) if own.contains(&number) => Looked::Unread(error),
            Some(Errno::ELOOP) => Looked::Wrong("it is a symbolic link".to_owned()),
            _ => Looked::Wrong(format!("it can't be read: {error}")),
        }
    }

    /// What it is as something else, or why it is none.
    pub(super) fn and_then<U>(self, then: impl FnOnce(T) -> Result<U, String>) -> Looked<U> {
        match self {
            Looked::Sound(value) => then(value).map_or_else(Looked::Wrong, Looked::Sound),
            Looked::Wrong(problem) => Looked::Wrong(problem),
            Looked::Gone => Looked::Gone,
            Looked::Unread(error) => Looked::Unread(error),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        matches!(self, Looked::Sound(_))
    }

    /// What must be there.
    pub(super) fn required(self) -> Looked<T> {
        match self {
            Looked::Gone => Looked::Wrong("it is missing".to_owned()),
            looked => looked,
        }
    }
}

impl Report {
    /// Counts something that was looked at, and keeps what there is to say of it.
    pub(super) fn take<T>(
        &mut self,
        subject: Subject,
        path: &Path,
        looked: Looked<T>,
    ) -> Option<T> {
        self.looked_at.records += 1;
        match looked {
            Looked::Sound(value) => return Some(value),
            Looked::Wrong(problem) => self.find(subject, path, problem),
            Looked::Gone => {}
            Looked::Unread(error) => {
                let reason = error.to_string();
                self.unread.push(Unread { path: path.to_owned(), reason });
            }
        }
        None
    }

    pub(super) fn find(&mut self, subject: Subject, path: &Path, problem: impl Into<String>) {
        self.findings.push(Finding::new(subject, path.to_owned(), problem));
    }
}

/// Reads a plain file; nothing else is read, followed or waited for.
pub(super) fn read(path: &Path) -> Looked<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(Error::new(ErrorKind::InvalidData, "it is no file"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(Looked::failed, Looked::Sound)
}

/// The names in a directory that are some `T`'s, each with its path. Staged files of the dead are
/// leftovers, those of the living are passed over; anything else is a finding.
pub(super) fn named<T: ToString>(
    directory: &Path,
    report: &mut Report,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<(T, PathBuf)>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // One that must be there is missed elsewhere, and what is no directory may have been found.
        Err(_) if report.findings.iter().any(|finding| finding.path == directory) => {
            return Ok(Vec::new());
        }
        Err(error) => {
            let looked = Looked::<()>::failed(error);
            report.take(Subject::Directory, directory, looked);
            return Ok(Vec::new());
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at("list", directory)?;
        let (name, path) = (entry.file_name(), entry.path());
        // One value has one spelling.
        let value = name.to_str().and_then(|name| parse(name).filter(|it| it.to_string() == name));
        match value {
            Some(value) => found.push((value, path)),
            None if staged::is_staged(&name) => {
                if !is_held(&path) {
                    report.leftovers.push(path);
                }
            }
            None => report.find(Subject::Foreign, &path, "it is nothing that srp puts there"),
        }
    }
    found.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(found)
}

impl Store {
    /// What killed processes left in `tmp/`, `eval/` and beside `meta`.
    pub(super) fn find_leftovers(&self, report: &mut Report) -> Result<(), StoreError> {
        // What is no directory is a finding of its own.
        let entries = |directory: PathBuf| match directory.is_dir() {
            true => files::entries(&directory),
            false => Ok(Vec::new()),
        };
        for path in entries(self.directory("tmp"))? {
            // A lock alone is of one who died between the two, or is about to make the directory.
            let is_lock = path.extension().is_some_and(|it| it == "lock");
            if !is_lock && !is_held(&path.with_extension("lock")) {
                report.leftovers.push(path);
            }
        }
        for directory in [self.directory("eval"), self.root().to_owned()] {
            for path in entries(directory)? {
                if path.file_name().is_some_and(staged::is_staged) && !is_held(&path) {
                    report.leftovers.push(path);
                }
            }
        }
        if self.directory("replaced").is_dir() {
            report.leftovers.extend(self.unused_replaced()?);
        }
        report.leftovers.sort();
        Ok(())
    }
}
