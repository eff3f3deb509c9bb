//! A cache in a directory: `file://`.
//!
//! Files are written aside, synced and renamed, so a reader, a web server above the
//! directory and a power cut see whole files only. Two machines may publish to it at once. What is
//! being written lies in `.staging`, which every publisher holds a shared lock on: who gets it
//! alone knows that all that lies there was left by the dead, whatever any clock says.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::cache::error::{CacheError, Place};
use crate::cache::path::CachePath;
use crate::cache::remote::{Body, Content, Remote, Stat};
use crate::files;

/// Where files are written before they get their name.
const STAGING: &str = ".staging";

/// A directory that a cache lies in.
#[derive(Debug)]
pub struct DirectoryRemote {
    root: PathBuf,
    staging: PathBuf,
    url: String,
    /// The lock on the staging directory, once something was staged; none where there are no locks.
    held: OnceLock<Option<Flock<File>>>,
}

/// How often a directory is made again that somebody removes at the same moment.
const ATTEMPTS: usize = 8;

impl DirectoryRemote {
    /// The cache in the directory `root`. There need be nothing there.
    pub fn new(root: &Path) -> DirectoryRemote {
        DirectoryRemote {
            root: root.to_owned(),
            staging: root.join(STAGING),
            url: format!("file://{}", root.display()),
            held: OnceLock::new(),
        }
    }

    fn file(&self, path: &CachePath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn place<'a>(&'a self, path: &'a CachePath) -> Place<'a> {
        Place { url: &self.url, path }
    }

    fn write(&self, path: &CachePath, content: Content<'_>) -> std::io::Result<()> {
        let to = self.file(path);
        let directory = to.parent().unwrap_or(&self.root);
        let made = !directory.is_dir();
        fs::create_dir_all(directory)?;
        let staged = match content {
            Content::Staged(staged) => staged.to_owned(),
            Content::Bytes(_) | Content::File(_) => {
                self.stage()?;
                let staged = self.staging.join(staged_name());
                let mut file =
                    File::options().write(true).create_new(true).mode(0o644).open(&staged)?;
                let written = match content {
                    Content::Bytes(bytes) => file.write_all(bytes),
                    Content::File(from) | Content::Staged(from) => {
                        std::io::copy(&mut File::open(from)?, &mut file).map(drop)
                    }
                };
                if let Err(error) = written.and_then(|()| file.sync_all()) {
                    let _ = fs::remove_file(&staged);
                    return Err(error);
                }
                staged
            }
        };
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o644))?;
        let placed = self.place_staged(&staged, &to, directory);
        if placed.is_err() && !matches!(content, Content::Staged(_)) {
            let _ = fs::remove_file(&staged);
        }
        placed?;
        if made {
            // The directories' names are to survive, too.
            for above in directory.ancestors().skip(1).take_while(|it| it.starts_with(&self.root)) {
                File::open(above)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Renames a staged file to its place. A garbage collection may remove the directory meanwhile,
    /// which was empty until now.
    fn place_staged(&self, staged: &Path, to: &Path, directory: &Path) -> std::io::Result<()> {
        let mut attempts = 0;
        loop {
            match fs::rename(staged, to).and_then(|()| File::open(directory)?.sync_all()) {
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && attempts < ATTEMPTS
                        && staged.exists() =>
                {
                    attempts += 1;
                    fs::create_dir_all(directory)?;
                }
                placed => return placed,
            }
        }
    }

    /// Makes the staging directory, and holds it: what killed publishers left is removed if nobody
    /// else holds it.
    fn stage(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.staging)?;
        self.held.get_or_init(|| {
            let directory = || File::open(&self.staging).ok();
            if let Ok(alone) = Flock::lock(directory()?, FlockArg::LockExclusiveNonblock) {
                for entry in fs::read_dir(&self.staging).into_iter().flatten().flatten() {
                    let _ = fs::remove_file(entry.path());
                }
                drop(alone);
            }
            Flock::lock(directory()?, FlockArg::LockShared).ok()
        });
        Ok(())
    }

    fn list_into(
        &self,
        directory: &str,
        found: &mut Vec<(CachePath, Stat)>,
    ) -> std::io::Result<()> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(path) =
                name.to_str().and_then(|name| CachePath::parse(&format!("{directory}/{name}")))
            else {
                continue;
            };
            let metadata = match entry.metadata() {
                // Deleted, or replaced, by somebody else.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                self.list_into(path.as_str(), found)?;
            } else if metadata.is_file() {
                found.push((path, stat(&metadata)));
            }
        }
        Ok(())
    }
}

impl Remote for DirectoryRemote {
    fn url(&self) -> &str {
        &self.url
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        let open = || {
            let mut file = files::open_plain(&self.file(path))?;
            let length = file.metadata()?.len();
            let range = range.unwrap_or(0..length);
            if range.start > range.end || range.end > length {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            file.seek(SeekFrom::Start(range.start))?;
            let length = range.end - range.start;
            Ok(Body { length, reader: Box::new(file.take(length)) })
        };
        match open() {
            Ok(body) => Ok(Some(body)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.place(path).transport("read", error)),
        }
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        self.write(path, content).map_err(|error| self.place(path).transport("write", error))
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        match fs::symlink_metadata(self.file(path)) {
            Ok(metadata) => Ok(Some(stat(&metadata))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.place(path).transport("look at", error)),
        }
    }

    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError> {
        let refresh = || File::open(self.file(path))?.set_modified(SystemTime::now());
        match refresh() {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.place(path).transport("refresh", error)),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        let mut found = Vec::new();
        self.list_into(directory, &mut found).map_err(|source| CacheError::Transport {
            action: "list",
            url: self.url.clone(),
            path: directory.to_owned(),
            source,
        })?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn delete(&self, path: &CachePath) -> Result<(), CacheError> {
        match fs::remove_file(self.file(path)) {
            Err(error) if !is_absent(&error) => Err(self.place(path).transport("delete", error)),
            _ => {
                // The directory of a derivation's statements goes with the last of them.
                if path.as_str().matches('/').count() > 1
                    && let Some(directory) = self.file(path).parent()
                {
                    let _ = fs::remove_dir(directory);
                }
                Ok(())
            }
        }
    }

    fn request_cost_bytes(&self) -> u64 {
        64 << 10
    }

    fn staging(&self) -> Option<&Path> {
        self.stage().ok()?;
        Some(&self.staging)
    }
}

fn stat(metadata: &fs::Metadata) -> Stat {
    Stat { size_bytes: metadata.len(), modified: metadata.modified().ok() }
}

/// That a parent is missing, or is a file, means the same as that the file is.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Two machines may write to one directory, and their process ids may be the same.
fn staged_name() -> String {
    let mut random = [0; 8];
    // Without random numbers the name is still unique on this machine.
    let _ = getrandom::fill(&mut random);
    format!("{}-{:016x}", files::temporary_name(), u64::from_le_bytes(random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn files_are_put_read_by_ranges_listed_and_deleted() {
        let directory = tempfile::tempdir().expect("a directory");
        let remote = DirectoryRemote::new(&directory.path().join("cache"));
        let path = CachePath::pack(&Digest::of_file(b"x"));
        assert!(remote.get(&path, None).expect("no error").is_none());
        assert!(remote.list("packs").expect("no error").is_empty());
        remote.put(&path, Content::Bytes(b"0123456789")).expect("put");
        let read = |range| {
            let body = remote.get(&path, range)?.expect("there");
            let mut text = String::new();
            { body.reader }.read_to_string(&mut text).expect("text");
            assert_eq!(text.len() as u64, body.length);
            Ok::<_, CacheError>(text)
        };
        assert_eq!(read(None).expect("read"), "0123456789");
        assert_eq!(read(Some(3..5)).expect("read"), "34");
        assert!(read(Some(3..11)).is_err(), "beyond the end");
        let staged = remote.staging().expect("it has one").join("file");
        fs::write(&staged, "new").expect("written");
        remote.put(&path, Content::Staged(&staged)).expect("put");
        assert_eq!(read(None).expect("read"), "new");
        let listed = remote.list("packs").expect("listed");
        assert_eq!((listed.len(), listed[0].1.size_bytes), (1, 3));
        remote.delete(&path).expect("deleted");
        remote.delete(&path).expect("deleted twice");
        assert!(!remote.refresh(&path).expect("no error"));
    }

    #[test]
    fn what_the_dead_left_is_removed_and_what_the_living_write_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || DirectoryRemote::new(directory.path());
        let file = |remote: &DirectoryRemote, name: &str| {
            let file = remote.staging().expect("it has one").join(name);
            fs::write(&file, "half").expect("written");
            // By any clock it is from long ago, or from the future.
            let year = std::time::Duration::from_secs(365 * 24 * 60 * 60);
            let time =
                if name == "old" { SystemTime::now() - year } else { SystemTime::now() + year };
            File::open(&file).and_then(|it| it.set_modified(time)).expect("set");
            file
        };
        let first = open();
        let (old, new) = (file(&first, "old"), file(&first, "new"));
        let second = open();
        let another = file(&second, "old-too");
        assert!(old.exists() && new.exists() && another.exists());
        drop(first);
        let third = open();
        third.put(&CachePath::clock(), Content::Bytes(b"x")).expect("put");
        assert!(another.exists(), "the second is alive");
        drop((second, third));
        open().put(&CachePath::clock(), Content::Bytes(b"x")).expect("put");
        assert!(!old.exists() && !new.exists() && !another.exists());
    }

    #[test]
    fn a_directory_that_goes_beside_a_publisher_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let remote = DirectoryRemote::new(directory.path());
        let place = CachePath::parse("realisations/static/x/unsigned").expect("a path");
        let other = CachePath::parse("realisations/static/x/other").expect("a path");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    remote.put(&other, Content::Bytes(b"y")).expect("put");
                    remote.delete(&other).expect("deleted");
                }
            });
            for _ in 0..200 {
                remote.put(&place, Content::Bytes(b"x")).expect("put");
                remote.delete(&place).expect("deleted");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
