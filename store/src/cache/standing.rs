//! Standing: how much one statement's signature counts, and whose there are to be asked for.
//!
//! The [policy](super::Policy) decides what to believe of a derivation by all that is said of it.
//! This says of each statement alone what there is to say, also of those that don't count.

use crate::cache::key::KeyId;
use crate::cache::path::{Signer, parse_signer};
use crate::cache::policy::{Asked, Policy};
use crate::cache::sealed::{SealError, Sealed};
use crate::cache::statement::Statement;
use crate::cache::{Cache, CacheError, CachePath};

/// How much a statement counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A trusted key signed it, and the signature is right.
    Trusted {
        /// The key.
        key: KeyId,
        /// The name under which it is trusted.
        name: String,
    },
    /// Nobody signed it, and it comes from a cache that the user trusts outright.
    Outright,
    /// Nobody signed it.
    Unsigned,
    /// A key signed it that isn't trusted. Whether the signature is right can't be known: a
    /// statement names its key, and doesn't hold it.
    Untrusted {
        /// The key.
        key: KeyId,
    },
    /// A key signed it that was revoked.
    Revoked {
        /// The key.
        key: KeyId,
    },
    /// It says that a trusted key signed it, and that isn't so.
    Wrong {
        /// The key.
        key: KeyId,
        /// The name under which it is trusted.
        name: String,
    },
}

impl Standing {
    /// Whether the statement counts.
    pub fn counts(&self) -> bool {
        matches!(self, Standing::Trusted { .. } | Standing::Outright)
    }
}

impl Policy {
    /// How much a statement from one cache counts.
    pub fn standing(&self, statement: &Sealed<Statement>, trusted_outright: bool) -> Standing {
        if let Some(key) = statement.signer()
            && self.revoked.contains(&key)
        {
            return Standing::Revoked { key };
        }
        match statement.check(&self.trusted) {
            Ok(Some(key)) => Standing::Trusted { key: key.id(), name: key.name().to_string() },
            Ok(None) if trusted_outright => Standing::Outright,
            Ok(None) => Standing::Unsigned,
            Err(SealError::UnknownKey { key }) => Standing::Untrusted { key },
            Err(SealError::Wrong { name, key }) => Standing::Wrong { key, name },
        }
    }
}

impl Cache {
    /// Whose statements on a derivation there are, whoever they are.
    ///
    /// # Errors
    /// [`CacheError::Unsupported`] where files can't be listed: then only those can be asked for
    /// who are known.
    pub fn signers(&self, asked: Asked) -> Result<Vec<Signer>, CacheError> {
        let path = match asked {
            Asked::Static(hash) => CachePath::by_static(&hash, None),
            Asked::Resolved(hash) => CachePath::by_resolved(&hash, None),
        };
        let directory = path.as_str().rsplit_once('/').map_or("", |(directory, _)| directory);
        let listed = self.remote().list(directory)?;
        let mut signers: Vec<Signer> =
            listed.iter().filter_map(|(path, _)| parse_signer(path.name())).collect();
        signers.sort();
        signers.dedup();
        Ok(signers)
    }
}
