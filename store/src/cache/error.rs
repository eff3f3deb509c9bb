//! What can go wrong with a cache, and how much it matters.

use std::io;

use crate::cache::limited::TooSlow;
use crate::cache::path::CachePath;
use crate::digest::Digest;
use crate::error::StoreError;

/// A failure to read from or publish to a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The transport failed: unreachable, refused, broken off.
    #[error("can't {action} {path} in the cache {url}")]
    Transport {
        /// What was tried, as a verb.
        action: &'static str,
        /// The cache's address.
        url: String,
        /// The path in the cache.
        path: String,
        /// What the transport says.
        source: io::Error,
    },
    /// The transport can't do this at all: listing behind a web server that lists nothing, for
    /// instance.
    #[error("the cache {url} can't {action}")]
    Unsupported {
        /// What was asked for, as a verb.
        action: &'static str,
        /// The cache's address.
        url: String,
    },
    /// The address answers, and is no cache.
    #[error("{url} is not a cache: it has no file `srp-cache`")]
    NotACache {
        /// The address.
        url: String,
    },
    /// The cache's format is unknown to this program.
    #[error("the cache {url} has {found}, and this srp knows format {known} without features")]
    Format {
        /// The cache's address.
        url: String,
        /// What its `srp-cache` says.
        found: String,
        /// What this program knows.
        known: u32,
    },
    /// Something that the cache names is not in it.
    #[error("{path} is not in the cache {url}")]
    Missing {
        /// The cache's address.
        url: String,
        /// The path in the cache.
        path: String,
    },
    /// What lies at a path is not what belongs there.
    #[error("{path} in the cache {url} is damaged: {reason}")]
    Damaged {
        /// The cache's address.
        url: String,
        /// The path in the cache.
        path: String,
        /// In what way.
        reason: String,
    },
    /// Bytes are not what their digest says.
    #[error(transparent)]
    Digest(Box<WrongDigest>),
    /// A signature doesn't fit what it is on.
    #[error("the signature by {key} on {path} in the cache {url} is wrong")]
    Signature {
        /// The cache's address.
        url: String,
        /// The path in the cache.
        path: String,
        /// The key, by name and id.
        key: String,
    },
    /// A derivation that is to be published was never realised here.
    #[error("the derivation {hash} was not realised in this store")]
    NotRealised {
        /// Its static hash.
        hash: String,
    },
    /// A garbage collection is to keep roots that aren't there.
    #[error(
        "the cache {url} has no root {}; {}",
        unknown.join(" or "),
        if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) }
    )]
    UnknownRoots {
        /// The cache's address.
        url: String,
        /// The names that were given.
        unknown: Vec<String>,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The store on this machine failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Bytes that are not what their digest says.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} of {path} in the cache {url} is not what its digest {expected} says: it is {found}"
)]
pub struct WrongDigest {
    /// The cache's address.
    pub url: String,
    /// The path in the cache.
    pub path: String,
    /// Which part: `block 3`, `the file usr/bin/x`.
    pub what: String,
    /// What it should be.
    pub expected: Digest,
    /// What it is.
    pub found: Digest,
}

/// What is to be made of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The cache hasn't got it, or can't be reached: one warning, and go on without.
    Miss,
    /// The cache holds something wrong: loud, naming the cache; then go on without.
    Integrity,
    /// This machine failed, a full disk for instance: no other cache will help.
    Local,
}

impl CacheError {
    /// What is to be made of it.
    pub fn severity(&self) -> Severity {
        match self {
            CacheError::Transport { .. }
            | CacheError::Unsupported { .. }
            | CacheError::NotACache { .. }
            | CacheError::Format { .. }
            | CacheError::Missing { .. }
            | CacheError::Damaged { .. } => Severity::Miss,
            // An object that forges a stage is the cache's, and not this machine's fault.
            CacheError::Digest(_)
            | CacheError::Signature { .. }
            | CacheError::Store(StoreError::Reserved { .. } | StoreError::NotAStage { .. }) => {
                Severity::Integrity
            }
            CacheError::NotRealised { .. }
            | CacheError::UnknownRoots { .. }
            | CacheError::Store(_) => Severity::Local,
        }
    }

    /// Whether a connection broke, or what came of it ended early: it may be well the next time.
    pub fn is_interruption(&self) -> bool {
        let CacheError::Transport { source, .. } = self else { return false };
        matches!(
            source.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
    }

    /// Whether the transfer was given up because too little came ([`Patience`](super::Patience)):
    /// then trying again would take as long.
    pub fn is_too_slow(&self) -> bool {
        let CacheError::Transport { source, .. } = self else { return false };
        source.get_ref().is_some_and(|cause| cause.is::<TooSlow>())
    }
}

/// A cache's address and a path in it, for making errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) url: &'a str,
    pub(crate) path: &'a CachePath,
}

impl Place<'_> {
    pub(crate) fn transport(self, action: &'static str, source: io::Error) -> CacheError {
        let (url, path) = (self.url.to_owned(), self.path.to_string());
        CacheError::Transport { action, url, path, source }
    }

    pub(crate) fn damaged(self, reason: impl Into<String>) -> CacheError {
        let (url, path) = (self.url.to_owned(), self.path.to_string());
        CacheError::Damaged { url, path, reason: reason.into() }
    }

    pub(crate) fn missing(self) -> CacheError {
        CacheError::Missing { url: self.url.to_owned(), path: self.path.to_string() }
    }

    /// Checks a digest.
    pub(crate) fn expect(
        self,
        what: impl Into<String>,
        expected: Digest,
        found: Digest,
    ) -> Result<(), CacheError> {
        if expected == found {
            return Ok(());
        }
        let (url, path) = (self.url.to_owned(), self.path.to_string());
        let wrong = WrongDigest { url, path, what: what.into(), expected, found };
        Err(CacheError::Digest(Box::new(wrong)))
    }
}
