//! What a cache lies in: a directory, a web server, a bucket.
//!
//! Four things are needed to read and publish: get (also by ranges), put, ask, and refresh. Two
//! more, list and delete, serve those who look after a cache, and need not be there.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use crate::cache::error::CacheError;
use crate::cache::path::CachePath;

/// Files below an address.
///
/// It knows nothing of what the files mean, and checks nothing of it. Implementations bound every
/// single wait (for a connection, for the next bytes), so that a call returns in the end; callers
/// bound sizes and total times. They are shared by threads.
pub trait Remote: Send + Sync {
    /// The address, for messages and for telling caches apart. It holds no credentials.
    fn url(&self) -> &str;

    /// The file at `path`, or the given bytes of it; none if there is no such file.
    ///
    /// A body gives exactly the bytes asked for, or fails: a server that ignores ranges is that
    /// transport's error, and bytes beyond the file's end are [`std::io::ErrorKind::UnexpectedEof`].
    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError>;

    /// Puts a file there, whole or not at all, replacing what was there. When it returns, the
    /// file survives whatever the transport promises to survive.
    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError>;

    /// Whether there is such a file, and what of it is known without reading it.
    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError>;

    /// Makes a file look as new as if it had just been put there, so that no garbage collection
    /// takes it for abandoned; false if it isn't there.
    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError>;

    /// Every file whose path begins with `directory` and a slash.
    ///
    /// # Errors
    /// [`CacheError::Unsupported`] where files can't be listed.
    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        let _ = directory;
        Err(CacheError::Unsupported { action: "be listed", url: self.url().to_owned() })
    }

    /// Deletes a file; that there is none is success.
    ///
    /// # Errors
    /// [`CacheError::Unsupported`] where files can't be deleted.
    fn delete(&self, path: &CachePath) -> Result<(), CacheError> {
        let _ = path;
        Err(CacheError::Unsupported { action: "delete files", url: self.url().to_owned() })
    }

    /// How many bytes come in the time that one more request takes. Ranges that are closer
    /// together are read in one request.
    fn request_cost_bytes(&self) -> u64 {
        256 << 10
    }

    /// A directory on the file system that files are put on, if there is one: what is written
    /// there, synced, is put by renaming it.
    fn staging(&self) -> Option<&Path> {
        None
    }
}

/// A file, or a part of it, on its way here.
pub struct Body {
    /// How many bytes will come.
    pub length: u64,
    /// The bytes.
    pub reader: Box<dyn Read + Send>,
}

/// What is to be put.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// What is in this file.
    File(&'a Path),
    /// What is in this file of [`Remote::staging`], already synced, which may be moved away.
    Staged(&'a Path),
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its length.
    pub size_bytes: u64,
    /// When it was put or refreshed, by the clock of where it lies; if that is known.
    pub modified: Option<SystemTime>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.length)
    }
}
