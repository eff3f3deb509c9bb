//! `git+https://host/repository@commit`: a commit of a repository, as a place.

/// A commit of a repository: `git+https://host/repository@commit`, with `#submodules` at its end if its
/// submodules belong to it. The form is that of download locations in SPDX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GitPlace {
    /// The repository's URL: `https:`, `http:` or `file:`.
    pub(crate) url: String,
    /// The commit, in full.
    pub(crate) commit: String,
    pub(crate) submodules: bool,
}

impl GitPlace {
    /// Reads what follows `git+`; why it is no such place.
    pub(crate) fn parse(text: &str) -> Result<GitPlace, String> {
        let (text, submodules) = match text.strip_suffix("#submodules") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (url, commit) =
            text.rsplit_once('@').ok_or("git+URL@COMMIT is expected: it names no commit")?;
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(hexadecimal) {
            return Err(format!(
                "{commit:?} is not a commit: 40 or 64 hexadecimal digits in lower case are expected"
            ));
        }
        Ok(GitPlace { url: url.to_owned(), commit: commit.to_owned(), submodules })
    }
}
