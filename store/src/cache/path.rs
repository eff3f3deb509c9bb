//! Paths in a cache: where each thing lies below the cache's address.
//!
//! A path is what a web server, a bucket and a directory all take without quoting. Pure text.

use std::fmt;

use crate::cache::key::KeyId;
use crate::digest::{Digest, ObjectId, ResolvedHash, StaticHash};
use crate::name::RootName;

/// A path below a cache's address, without leading slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CachePath(String);

/// Who signed what lies at a path: a key, or nobody.
pub type Signer = Option<KeyId>;

/// Takes the place of a key's id where nobody signed.
const UNSIGNED: &str = "unsigned";

impl CachePath {
    /// The cache's format; what makes it one.
    pub fn meta() -> CachePath {
        CachePath("srp-cache".to_owned())
    }

    /// Written by a garbage collection to ask what time the cache thinks it is.
    pub fn clock() -> CachePath {
        CachePath("clock".to_owned())
    }

    /// A pack, by the digest of its bytes.
    pub fn pack(digest: &Digest) -> CachePath {
        CachePath(format!("packs/{digest}"))
    }

    /// A delta, by the digest of its bytes.
    pub fn delta(digest: &Digest) -> CachePath {
        CachePath(format!("deltas/{digest}"))
    }

    /// An object's record.
    pub fn object(id: &ObjectId) -> CachePath {
        CachePath(format!("objects/{id}"))
    }

    /// A statement, by the derivation's static hash.
    pub fn by_static(hash: &StaticHash, signer: Signer) -> CachePath {
        CachePath(format!("realisations/static/{hash}/{}", signer_name(signer)))
    }

    /// A statement, by the derivation's resolved hash.
    pub fn by_resolved(hash: &ResolvedHash, signer: Signer) -> CachePath {
        CachePath(format!("realisations/resolved/{hash}/{}", signer_name(signer)))
    }

    /// The closure manifest of a derivation that was published as a root.
    pub fn closure(hash: &StaticHash, signer: Signer) -> CachePath {
        CachePath(format!("closures/{hash}/{}", signer_name(signer)))
    }

    /// The pointer to a root's newest closure manifest.
    pub fn root(name: &RootName, signer: Signer) -> CachePath {
        CachePath(format!("roots/{name}/{}", signer_name(signer)))
    }

    /// A path as somebody else wrote it; none if it could leave the cache or needs quoting.
    pub fn parse(text: &str) -> Option<CachePath> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
        let valid =
            |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
        (text.len() <= 1000 && text.split('/').all(valid)).then(|| CachePath(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last slash.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for CachePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a file is named after its signer.
pub(crate) fn signer_name(signer: Signer) -> String {
    signer.map_or_else(|| UNSIGNED.to_owned(), |key| key.to_string())
}

/// The signer that a path's last part names.
pub(crate) fn parse_signer(name: &str) -> Option<Signer> {
    if name == UNSIGNED { Some(None) } else { name.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain_and_none_leaves_the_cache() {
        let hash = StaticHash::from_bytes([0xab; 32]);
        let path = CachePath::closure(&hash, None);
        assert_eq!(path.as_str(), format!("closures/{}/unsigned", "ab".repeat(32)));
        assert_eq!(CachePath::parse(path.as_str()), Some(path));
        for bad in ["", "/", "a/", "/a", "a//b", "../a", "a/..", "a/.hidden", "a b", "a?b", "ä"] {
            assert_eq!(CachePath::parse(bad), None, "{bad:?}");
        }
    }
}
