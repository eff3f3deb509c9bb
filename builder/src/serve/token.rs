//! A token: what clients have to know, where not everybody is to be served.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A token is no longer.
const MAX_BYTES: u64 = 1024;

/// What clients have to know. Only its hash is kept, which takes the same time to compare whatever
/// is guessed.
#[derive(Clone)]
pub struct Token(blake3::Hash);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read.
    #[error("can't read the token from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("{} has mode {mode:04o}: others may read the token; make it 0600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds nothing that can be a token.
    #[error("{} holds no token: one line without space or colon is expected", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads a token: the one line of a file that only its owner may read.
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let read = |source| TokenError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        (&mut file).take(MAX_BYTES + 1).read_to_string(&mut text).map_err(read)?;
        let token = text.trim_end_matches(['\n', '\r']);
        let valid = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if token.is_empty() || text.len() as u64 > MAX_BYTES || !token.bytes().all(valid) {
            return Err(TokenError::Malformed { path: path.to_owned() });
        }
        Ok(Token(blake3::hash(token.as_bytes())))
    }

    /// Whether an `Authorization` field has it: as a bearer's, or as the password in a URL
    /// (`http://anybody:TOKEN@host/`).
    pub(super) fn admits(&self, authorization: Option<&str>) -> bool {
        let Some((scheme, value)) = authorization.and_then(|value| value.split_once(' ')) else {
            return false;
        };
        let given = if scheme.eq_ignore_ascii_case("bearer") {
            value.trim().as_bytes().to_vec()
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = STANDARD.decode(value.trim()).unwrap_or_default();
            let colon = decoded.iter().position(|byte| *byte == b':');
            colon.map(|colon| decoded[colon + 1..].to_vec()).unwrap_or_default()
        } else {
            return false;
        };
        self.0 == blake3::hash(&given)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_is_known_or_not_and_its_file_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            Token::read(&path)
        };
        let token = read("s3cret\n", 0o600).expect("a token");
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(token.admits(Some("Bearer s3cret")));
        assert!(token.admits(Some("bearer  s3cret")));
        assert!(token.admits(Some(&basic("anybody:s3cret"))));
        for other in ["s3cret", "Bearer s3cre", "Bearer s3crett", "Digest s3cret", "Basic s3cret"] {
            assert!(!token.admits(Some(other)), "{other}");
        }
        for other in ["s3cret:", "s3cret", ":", "", "a:b:s3cret"] {
            assert!(!token.admits(Some(&basic(other))), "{other}");
        }
        assert!(!token.admits(None));
        assert_eq!(format!("{token:?}"), "Token");
        assert!(matches!(read("s3cret\n", 0o640), Err(TokenError::Mode { .. })));
        for bad in ["", "\n", "two words", "two\nlines", "a:b", "ä", &"x".repeat(2000)] {
            assert!(matches!(read(bad, 0o600), Err(TokenError::Malformed { .. })), "{bad:?}");
        }
    }
}
