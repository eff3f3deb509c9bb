//! A sources directory: complete files by digest and name, and partial transfers that can go on.
//!
//! A complete file is verified before it gets its name, by rename, and is trusted by its name and
//! size afterwards: hashing 1.5 GB again at every run would cost seconds and protect only against
//! someone who may write there anyway (unpacking yields an object whose own digest is checked). A
//! partial is locked with `flock` while somebody works on it, so that two processes never fetch the
//! same file; the lock is the kernel's and ends with the process. It is the digest's lock, not the
//! name's: of two fetches of one file under two names the second waits, and then links what the first
//! has fetched.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::Digest;

use super::error::FetchError;
use super::request::{FetchRequest, Progress, Sha256};
use crate::cancel::CancelToken;

/// How often a waiting fetch looks whether the other one is done.
const WAIT: Duration = Duration::from_millis(50);

/// A directory of sources.
pub(super) struct Sources {
    path: PathBuf,
}

/// What claiming a source yields.
pub(super) enum Claim {
    /// It is there, complete.
    Complete(PathBuf),
    /// It isn't; this caller alone may fetch it now.
    Partial(Partial),
}

impl Sources {
    /// Opens the directory, creating it where needed.
    pub(super) fn open(path: &Path) -> Result<Self, FetchError> {
        std::fs::create_dir_all(path).map_err(|source| failure("create", path, source))?;
        Ok(Self { path: path.to_owned() })
    }

    /// The complete file, if it is here: trusted by name and size.
    pub(super) fn complete(&self, request: &FetchRequest) -> Result<Option<PathBuf>, FetchError> {
        let path = self.path.join(request.file_name());
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.is_file() => Ok(None),
            Ok(metadata) if request.size_bytes.is_none_or(|size| size == metadata.len()) => {
                Ok(Some(path))
            }
            // Only a damaged disk or a meddler makes such a file; the fetch replaces it.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure("read", &path, error)),
        }
    }

    /// Waits until nobody else fetches this source, then claims it.
    pub(super) fn claim(
        &self,
        request: &FetchRequest,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Claim, FetchError> {
        let path = self.path.join(format!(".partial-{}", request.sha256));
        let mut told = false;
        loop {
            if let Some(complete) = self.complete(request)? {
                return Ok(Claim::Complete(complete));
            }
            if cancel.is_cancelled() {
                return Err(FetchError::Cancelled { name: request.name.clone() });
            }
            let Some(file) = try_lock(&path)? else {
                if !told {
                    progress.waiting();
                    told = true;
                }
                std::thread::sleep(WAIT);
                continue;
            };
            let complete = match self.complete(request)? {
                Some(complete) => Some(complete),
                None => self.link_other_name(request, cancel)?,
            };
            if let Some(complete) = complete {
                let _ = std::fs::remove_file(origin_path(&path));
                let _ = std::fs::remove_file(&path);
                return Ok(Claim::Complete(complete));
            }
            let destination = self.path.join(request.file_name());
            return Partial::open(file, path, destination, request.size_bytes).map(Claim::Partial);
        }
    }

    /// The file under the request's name, if it is here under another one: one more link, once its
    /// bytes have proved to be those that are wanted. The caller holds the digest's lock.
    fn link_other_name(
        &self,
        request: &FetchRequest,
        cancel: &CancelToken,
    ) -> Result<Option<PathBuf>, FetchError> {
        let destination = self.path.join(request.file_name());
        for other in Self::by_digest(&self.path, request.sha256) {
            let found = srp_store::open_plain(&other).and_then(|file| digest_of(file, cancel));
            if cancel.is_cancelled() {
                return Err(FetchError::Cancelled { name: request.name.clone() });
            }
            if other == destination || found.ok() != Some(request.sha256) {
                continue;
            }
            // A file of the wrong size may have the name.
            if let Err(error) = std::fs::remove_file(&destination)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(failure("remove", &destination, error));
            }
            // Some file systems have no hard links: there it is copied, as from any other directory.
            if std::fs::hard_link(&other, &destination).is_ok() {
                sync_directory(&self.path)?;
                return Ok(Some(destination));
            }
        }
        Ok(None)
    }

    /// Files of this digest under whatever name, for the other names of one file.
    pub(super) fn by_digest(directory: &Path, digest: Sha256) -> Vec<PathBuf> {
        let prefix = format!("{digest}-");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found
    }
}

/// Opens a partial, creating it where needed, and locks it; nothing if another holds the lock.
fn try_lock(path: &Path) -> Result<Option<File>, FetchError> {
    let mut options = File::options();
    let created = options.read(true).write(true).create_new(true).open(path);
    let opened = match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.create_new(false).open(path)
        }
        created => created,
    };
    let (file, writable) = match opened {
        Ok(file) => (file, true),
        // It was renamed since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Complete, and so read-only: it is about to be renamed, unless its srp died before.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            match srp_store::open_plain(path) {
                Ok(file) => (file, false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(failure("open", path, source)),
            }
        }
        Err(source) => return Err(failure("create", path, source)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(failure("lock", path, source)),
    }
    // The one before us may have renamed or removed what we opened: then our lock is on a file that has
    // no name any more, or another one.
    let locked = file.metadata().map_err(|source| failure("read", path, source))?;
    let named = path.symlink_metadata();
    if !named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
        return Ok(None);
    }
    if writable {
        return Ok(Some(file));
    }
    // Abandoned: the next try can write to it.
    let result = file.set_permissions(Permissions::from_mode(0o644));
    result.map_err(|source| failure("change the mode of", path, source))?;
    Ok(None)
}

/// The digest of a file's bytes.
fn digest_of(mut file: File, cancel: &CancelToken) -> io::Result<Sha256> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Sha256::from_bytes(hasher.finalize().into())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), FetchError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failure("sync", path, source))
}

/// A partial transfer that this process holds the lock of.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    destination: PathBuf,
    length: u64,
    hasher: sha2::Sha256,
    origin: Option<Origin>,
    committed: bool,
}

/// Where a partial's bytes came from, so that the server can be asked for the rest of the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) url: String,
    /// A strong `ETag`, or else `Last-Modified`.
    pub(super) validator: String,
}

impl Partial {
    fn open(
        file: File,
        path: PathBuf,
        destination: PathBuf,
        size_bytes: Option<u64>,
    ) -> Result<Self, FetchError> {
        let origin = std::fs::read_to_string(origin_path(&path)).ok().and_then(|text| {
            let (url, validator) = text.trim_end().split_once('\n')?;
            Some(Origin { url: url.to_owned(), validator: validator.to_owned() })
        });
        let hasher = sha2::Sha256::new();
        let mut partial =
            Self { file, path, destination, length: 0, hasher, origin, committed: false };
        // The bytes that are here count towards the digest.
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = match partial.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failure("read", &partial.path, error)),
            };
            partial.hasher.update(&buffer[..read]);
            partial.length += read as u64;
        }
        if size_bytes.is_some_and(|size| partial.length > size) {
            partial.reset()?;
        }
        Ok(partial)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The digest of what is here.
    pub(super) fn digest(&self) -> Sha256 {
        Sha256::from_bytes(self.hasher.clone().finalize().into())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(bytes).map_err(|source| failure("write", &self.path, source))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything that is here.
    pub(super) fn reset(&mut self) -> Result<(), FetchError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(drop))
            .map_err(|source| failure("truncate", &self.path, source))?;
        self.length = 0;
        self.hasher = sha2::Sha256::new();
        self.set_origin(None)
    }

    /// Remembers where the bytes come from.
    pub(super) fn set_origin(&mut self, origin: Option<Origin>) -> Result<(), FetchError> {
        if self.origin == origin {
            return Ok(());
        }
        let path = origin_path(&self.path);
        let result = match &origin {
            Some(origin) => {
                std::fs::write(&path, format!("{}\n{}\n", origin.url, origin.validator))
            }
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
        };
        self.origin = origin;
        result.map_err(|source| failure("write", &path, source))
    }

    /// Whether what is here begins like an HTML page.
    pub(super) fn looks_like_html(&self) -> bool {
        let mut start = [0; 512];
        let read = self.file.read_at(&mut start, 0).unwrap_or(0);
        let start = String::from_utf8_lossy(&start[..read]).to_ascii_lowercase();
        let start = start.trim_start_matches('\u{feff}').trim_start();
        start.starts_with("<!doctype html") || start.starts_with("<html")
    }

    /// Makes what is here the complete file. The caller has checked the digest.
    ///
    /// The data reaches the disk before the name does: a name is a promise that survives power cuts.
    pub(super) fn commit(mut self) -> Result<PathBuf, FetchError> {
        let directory = self.destination.parent().expect("a source lies in a directory").to_owned();
        self.file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| self.file.sync_all())
            .map_err(|source| failure("sync", &self.path, source))?;
        self.set_origin(None)?;
        std::fs::rename(&self.path, &self.destination)
            .map_err(|source| failure("create", &self.destination, source))?;
        self.committed = true;
        sync_directory(&directory)?;
        Ok(self.destination.clone())
    }
}

impl Drop for Partial {
    /// What came stays for the next attempt; an empty file would only be litter. The lock is still held.
    fn drop(&mut self) {
        if !self.committed && self.length == 0 {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_file(origin_path(&self.path));
        }
    }
}

fn origin_path(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".origin");
    name.into()
}

pub(super) fn failure(action: &'static str, path: &Path, source: io::Error) -> FetchError {
    FetchError::Sources { action, path: path.to_owned(), source }
}
