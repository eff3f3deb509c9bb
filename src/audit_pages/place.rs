//! The directory that a report is in: made whole, or left as it was.
//!
//! A report is written beside the directory and renamed. What it replaces is a report of srp and
//! nothing else: the marker in it names every file of it, and a directory with anything more is
//! somebody's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Write};
use std::path::{Path, PathBuf};

use srp_store::staged::StagedDirectory;

use crate::building;
use crate::error::{CommandError, CommandResult, ExitCode};

/// The file that says that a directory is a report: a line, and the names of all its files.
const MARKER: &str = "srp-audit-report";
const FIRST_LINE: &str = "an audit's report by srp; another one may replace this directory";

const HINT: &str = "name a directory that is empty, or that isn't there";

/// A file's name, and what is in it.
pub(super) type Page = (String, String);

/// A directory that a report may be written to.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
}

impl Place {
    /// Makes sure that a report can be written there: better before audits, which may take hours.
    pub(crate) fn find(directory: &Path) -> CommandResult<Place> {
        let directory = match fs::canonicalize(directory) {
            // A link stays, and what it leads to is replaced.
            Ok(directory) => directory,
            Err(error) if error.kind() == ErrorKind::NotFound && !directory.is_symlink() => {
                building::absolute(directory)?
            }
            Err(error) => return Err(failed("read", directory, &error)),
        };
        if directory.file_name().is_none() {
            let what = format!("{} can't be a report: it has no name", directory.display());
            return Err(CommandError::user(what).hint(HINT));
        }
        let place = Place { directory };
        place.replaces()?;
        let parent = place.parent();
        fs::create_dir_all(&parent).map_err(|error| failed("make", &parent, &error))?;
        place.staged()?;
        Ok(place)
    }

    /// Where that page is, or will be.
    pub(super) fn page(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a report of these pages, instead of the one that is there.
    pub(super) fn write(&self, pages: &[Page]) -> CommandResult {
        // It goes with all that is still in it.
        let staged = self.staged()?;
        let partial = staged.path().join("report");
        self.write_to(&partial, pages)?;
        self.put(&partial, &staged.path().join("earlier"))
    }

    fn write_to(&self, partial: &Path, pages: &[Page]) -> CommandResult {
        fs::create_dir(partial).map_err(|error| failed("write", &self.directory, &error))?;
        let names: String = pages.iter().map(|(name, _)| format!("{name}\n")).collect();
        let marker = (MARKER.to_owned(), format!("{FIRST_LINE}\n{names}"));
        for (name, text) in pages.iter().chain([&marker]) {
            let write = || {
                let mut file = File::create_new(partial.join(name))?;
                file.write_all(text.as_bytes())?;
                file.sync_all()
            };
            // Told by the name that it was to have.
            write().map_err(|error| failed("write", &self.page(name), &error))?;
        }
        sync(partial).map_err(|error| failed("write", &self.directory, &error))
    }

    /// Gives the report its name. A crash in the middle leaves two whole ones with other names.
    fn put(&self, partial: &Path, earlier: &Path) -> CommandResult {
        // Somebody may have put something there meanwhile.
        let replaces = self.replaces()?;
        let put = || {
            if let Ok(metadata) = fs::metadata(&self.directory) {
                fs::set_permissions(partial, metadata.permissions())?;
            }
            if replaces {
                fs::rename(&self.directory, earlier)?;
            }
            let renamed = fs::rename(partial, &self.directory);
            if renamed.is_err() && replaces {
                fs::rename(earlier, &self.directory)?;
            }
            renamed?;
            sync(&self.parent())
        };
        put().map_err(|error| failed("write", &self.directory, &error))
    }

    /// Whether there is a report already; an error if there is anything else.
    fn replaces(&self) -> CommandResult<bool> {
        let failed = |error: &Error| failed("read", &self.directory, error);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            entries => entries.map_err(|error| failed(&error))?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names: BTreeSet<OsString> =
            names.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        if names.is_empty() {
            return Ok(false);
        }
        let marker = fs::read_to_string(self.page(MARKER)).unwrap_or_default();
        let ours: BTreeSet<OsString> = match marker.split_once('\n') {
            Some((FIRST_LINE, names)) => {
                names.lines().chain([MARKER]).map(OsString::from).collect()
            }
            _ => BTreeSet::new(),
        };
        let Some(other) = names.difference(&ours).next() else { return Ok(true) };
        let (directory, other) = (self.directory.display(), Path::new(other).display());
        let what = match ours.is_empty() {
            true => format!("{directory} has something in it that is no report of srp: {other}"),
            false => format!("{directory} has more in it than a report of srp: {other}"),
        };
        Err(CommandError::user(what).hint(HINT))
    }

    fn parent(&self) -> PathBuf {
        self.directory.parent().unwrap_or(Path::new("/")).to_owned()
    }

    /// A directory beside it, to write to.
    fn staged(&self) -> CommandResult<StagedDirectory> {
        StagedDirectory::beside(&self.directory)
            .map_err(|error| failed("write", &self.directory, &error))
    }
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory)?.sync_all()
}

fn failed(action: &str, path: &Path, error: &Error) -> CommandError {
    CommandError::new(ExitCode::User, format!("can't {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(names: &[&str]) -> Vec<Page> {
        names.iter().map(|name| ((*name).to_owned(), format!("page {name}"))).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let name = |entry: Result<fs::DirEntry, Error>| entry.expect("an entry").file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_report_replaces_a_report_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("a directory");
        let report = scratch.path().join("a/report");
        Place::find(&report).expect("new").write(&pages(&["index.html", "x.html"])).expect("new");
        assert_eq!(names(&report), ["index.html", MARKER, "x.html"]);
        Place::find(&report).expect("ours").write(&pages(&["index.html"])).expect("replaced");
        assert_eq!(names(&report), ["index.html", MARKER]);
        assert_eq!(names(&scratch.path().join("a")), ["report"]);

        // Found in time, and also what comes later.
        let place = Place::find(&report).expect("ours");
        fs::write(report.join("notes"), "precious").expect("written");
        assert!(place.write(&pages(&["index.html"])).is_err());
        assert!(Place::find(&report).is_err());
        assert_eq!(names(&report), ["index.html", "notes", MARKER]);
        assert_eq!(names(&scratch.path().join("a")), ["report"]);
        // A file of such a name alone is no report.
        fs::write(report.join(MARKER), "notes\nindex.html\n").expect("written");
        assert!(Place::find(&report).is_err());
    }

    #[test]
    fn a_report_that_cannot_be_finished_leaves_the_earlier_one() {
        let scratch = tempfile::tempdir().expect("a directory");
        let report = scratch.path().join("report");
        let place = Place::find(&report).expect("new");
        place.write(&pages(&["index.html"])).expect("new");
        assert!(place.write(&pages(&["other.html", "no-such-directory/x"])).is_err());
        assert_eq!(names(&report), ["index.html", MARKER]);
        assert_eq!(names(scratch.path()), ["report"]);
    }

    #[test]
    fn an_empty_directory_is_taken_through_a_link_and_keeps_its_mode() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let scratch = tempfile::tempdir().expect("a directory");
        let (empty, link) = (scratch.path().join("empty"), scratch.path().join("link"));
        fs::create_dir(&empty).expect("a directory");
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o750)).expect("a mode");
        symlink("empty", &link).expect("a link");
        Place::find(&link).expect("empty").write(&pages(&["index.html"])).expect("written");
        assert!(link.is_symlink());
        symlink("nothing", scratch.path().join("dangling")).expect("a link");
        for nowhere in ["dangling", "missing/..", "link/index.html/x"] {
            assert!(Place::find(&scratch.path().join(nowhere)).is_err(), "{nowhere}");
        }
        assert_eq!(names(scratch.path()), ["dangling", "empty", "link"]);
        assert_eq!(names(&empty), ["index.html", MARKER]);
        let mode = fs::metadata(&empty).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o777, 0o750);
    }
}
