//! What is asked of the fetcher and what it answers: plain values without I/O.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::error::{FetchError, PlaceFailure};
use super::url;

/// A SHA-256 digest. Its text form is 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

/// Why a text is no SHA-256 digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no SHA-256 digest: 64 hexadecimal digits are needed")]
pub struct Sha256ParseError {
    /// What was given.
    pub text: String,
}

impl Sha256 {
    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = Sha256ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || Sha256ParseError { text: text.chars().take(80).collect() };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = (pair[0] as char).to_digit(16).ok_or_else(error)?;
            let low = (pair[1] as char).to_digit(16).ok_or_else(error)?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(bytes))
    }
}

/// A file to fetch: what it is (the digest) and where it may be had (the URLs, tried in order).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The file's name, as part of `<sha256>-<name>`: one path component without control characters.
    pub name: String,
    /// What the file's bytes hash to. This alone identifies the file.
    pub sha256: Sha256,
    /// The file's size where it is known. Answers of another size are refused before their transfer.
    pub size_bytes: Option<u64>,
    /// `https:`, `http:` and `file:` URLs, and `mirror://NAME/PATH`; with `git+` before and `@COMMIT`
    /// behind any of these, a commit of that git repository, as the canonical archive of its tree.
    pub urls: Vec<String>,
}

impl FetchRequest {
    /// The file's name in a sources directory.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.sha256, self.name)
    }

    pub(super) fn check(&self) -> Result<(), FetchError> {
        let name = &self.name;
        // 255 is what Linux file systems allow, 65 of them are the digest and its dash.
        let sound = !name.is_empty()
            && name.len() <= 190
            && !name.contains('/')
            && !name.chars().any(char::is_control);
        if sound { Ok(()) } else { Err(FetchError::InvalidName { name: name.clone() }) }
    }
}

/// A place that a file was, or could not be, had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The sources directory itself had it, or another thread or process fetched it meanwhile.
    Present,
    /// A partial transfer that turned out to be complete.
    Partial,
    /// A file in another sources directory (a store's, or one that `srp source mirror` wrote).
    Directory(PathBuf),
    /// A `file:` URL.
    File(PathBuf),
    /// An HTTP or HTTPS URL, mirrors resolved.
    Url(String),
    /// A commit of a git repository, mirrors resolved: `git+https://host/repository@commit`.
    Git(String),
    /// A URL that could not be turned into any of these.
    Unresolved(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("the sources directory"),
            Self::Partial => f.write_str("an earlier transfer"),
            Self::Directory(path) | Self::File(path) => path.display().fmt(f),
            // User names and passwords in URLs must not reach logs.
            Self::Url(text) | Self::Git(text) | Self::Unresolved(text) => {
                f.write_str(&url::redact(text))
            }
        }
    }
}

/// A fetched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where it lies: `<sources>/<sha256>-<name>`.
    pub path: PathBuf,
    /// Where it came from.
    pub from: Place,
    /// What was read from the network or copied, over all places that were tried.
    pub bytes_transferred: u64,
    /// Whether bytes of an earlier, interrupted transfer were used.
    pub resumed: bool,
}

/// Hears what a fetch is doing; every method may be left out. Called from the fetching thread.
pub trait Progress: Sync {
    /// A place answered. `resumed_at` bytes are here already, of `total` where that is known; what is
    /// received from now on comes on top. Called again for every further place and attempt.
    fn began(&self, place: &Place, resumed_at: u64, total: Option<u64>) {
        let _ = (place, resumed_at, total);
    }

    /// That many more bytes arrived.
    fn received(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A place failed, and the next one is tried.
    fn failed(&self, failure: &PlaceFailure) {
        let _ = failure;
    }

    /// A transfer broke off and is tried again at the same place.
    fn retrying(&self, failure: &PlaceFailure) {
        let _ = failure;
    }

    /// Another thread or process is fetching the same file; this fetch waits for it.
    fn waiting(&self) {}
}

/// Hears nothing.
impl Progress for () {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_their_text_form() {
        let text = "00ff9277aef97616320b2da259e1f8174c65b0ce2fbe2e8629644a97693402fe";
        let digest: Sha256 = text.parse().expect("a digest");
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Sha256>(), Ok(digest));
    }

    #[test]
    fn texts_that_are_no_digests_are_refused() {
        for text in ["", "abc", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65), &"+".repeat(64)]
        {
            assert!(text.parse::<Sha256>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_one_component() {
        let request = |name: &str| FetchRequest {
            name: name.into(),
            sha256: Sha256::from_bytes([0; 32]),
            size_bytes: None,
            urls: vec![],
        };
        assert!(request("musl-1.2.5.tar.gz").check().is_ok());
        for bad in ["", "a/b", "../x", "a\nb", "a\0", &"x".repeat(191)] {
            assert!(request(bad).check().is_err(), "{bad:?}");
        }
    }
}
