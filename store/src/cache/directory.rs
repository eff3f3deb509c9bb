//! A cache in a directory: `file://`.
//!
//! Files are written aside, synced and renamed, so a reader, a web server above the
//! directory and a power cut see whole files only. Two machines may publish to it at once. What is
//! being written lies in `.staging`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::SystemTime;

use crate::cache::error::{CacheError, Place};
use crate::cache::path::CachePath;
use crate::cache::remote::{Body, Content, Remote, Stat};
use crate::files;
use crate::staged::{self, Staged};

/// Where files are written before they get their name.
const STAGING: &str = ".staging";
/// So often in a row others may remove a directory that is about to be written to.
const ATTEMPTS: usize = 100;

/// A directory that a cache lies in.
#[derive(Debug)]
pub struct DirectoryRemote {
    root: PathBuf,
    staging: PathBuf,
    url: String,
    /// What killed publishers left is removed once, before something is written.
    swept: Once,
}

impl DirectoryRemote {
    /// The cache in the directory `root`. There need be nothing there.
    pub fn new(root: &Path) -> DirectoryRemote {
        DirectoryRemote {
            root: root.to_owned(),
            staging: root.join(STAGING),
            url: format!("file://{}", root.display()),
            swept: Once::new(),
        }
    }

    fn file(&self, path: &CachePath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn place<'a>(&'a self, path: &'a CachePath) -> Place<'a> {
        Place { url: &self.url, path }
    }

    fn sweep(&self) {
        self.swept.call_once(|| {
            if let Err(error) = staged::sweep(&self.staging) {
                tracing::debug!(%error, "what others left in a cache stays");
            }
        });
    }

    fn write(&self, path: &CachePath, content: Content<'_>) -> std::io::Result<()> {
        self.sweep();
        let to = self.file(path);
        let directory = to.parent().unwrap_or(&self.root);
        let own = match content {
            Content::Staged(_) => None,
            Content::Bytes(_) | Content::File(_) => {
                fs::create_dir_all(&self.staging)?;
                let mut own = Staged::new_in(&self.staging, 0o644)?;
                match content {
                    Content::Bytes(bytes) => own.write_all(bytes)?,
                    Content::File(from) | Content::Staged(from) => {
                        std::io::copy(&mut File::open(from)?, &mut own)?;
                    }
                }
                own.file().sync_all()?;
                Some(own)
            }
        };
        let staged = match (&own, content) {
            (None, Content::Staged(staged)) => staged,
            (Some(own), _) => own.path(),
            (None, _) => unreachable!("what isn't staged yet was just now"),
        };
        fs::set_permissions(staged, fs::Permissions::from_mode(0o644))?;
        let mut attempts = 0;
        let made = loop {
            let made = !directory.is_dir();
            fs::create_dir_all(directory)?;
            match fs::rename(staged, &to).and_then(|()| File::open(directory)?.sync_all()) {
                // Somebody removed the directory together with the last file in it.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < ATTEMPTS => {
                    if !staged.exists() {
                        // With this file in it, then.
                        return Ok(());
                    }
                    attempts += 1;
                }
                placed => break placed.map(|()| made)?,
            }
        };
        if made {
            // The directories' names are to survive, too.
            for above in directory.ancestors().skip(1).take_while(|it| it.starts_with(&self.root)) {
                File::open(above)?.sync_all()?;
            }
        }
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
        let refresh = || files::open_plain(&self.file(path))?.set_modified(SystemTime::now());
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
        fs::create_dir_all(&self.staging).ok()?;
        self.sweep();
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
