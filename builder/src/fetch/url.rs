//! The little that fetching needs to know of URLs: scheme, redirects, `file:` paths, redaction. Not a
//! URL library: whatever is sent over the network is parsed again by the HTTP crate.

use std::path::PathBuf;

/// The part before the first colon in lower case, if it is a scheme.
pub(crate) fn scheme(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once(':')?;
    let mut characters = scheme.chars();
    let sound = characters.next()?.is_ascii_alphabetic()
        && characters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    sound.then(|| scheme.to_ascii_lowercase())
}

/// The URL without the user name and password it may hold.
pub(crate) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

/// The local path of `file:///path` or `file://localhost/path`, escapes decoded.
pub(crate) fn file_path(url: &str) -> Option<PathBuf> {
    let (_, rest) = url.split_once(':')?;
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => rest,
    };
    if !path.starts_with('/') {
        return None;
    }
    use std::os::unix::ffi::OsStringExt;
    Some(PathBuf::from(std::ffi::OsString::from_vec(percent_decode(path)?)))
}

/// Where a `Location` header leads from `base` (RFC 3986, 5.3, without fragments).
pub(crate) fn join(base: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    if scheme(location).is_some_and(|_| location.contains("://")) {
        return location.to_owned();
    }
    let (scheme, rest) = base.split_once("://").unwrap_or(("http", base));
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(authority_end);
    let path = path_and_query.split(['?', '#']).next().unwrap_or_default();
    let joined = if location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with('?') || location.is_empty() {
        format!("{}{location}", if path.is_empty() { "/" } else { path })
    } else {
        let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        format!("{directory}{location}")
    };
    format!("{scheme}://{authority}{}", without_dots(&joined))
}

/// Resolves `.` and `..` in the path part.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = match path_and_query.find('?') {
        Some(mark) => path_and_query.split_at(mark),
        None => (path_and_query, ""),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut components = path.split('/').skip(1).peekable();
    while let Some(component) = components.next() {
        let last = components.peek().is_none();
        match component {
            "." | ".." => {
                if component == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            component => kept.push(component),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

/// Decodes `%XX`; `None` if an escape is malformed or stands for a NUL byte.
pub(super) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = (bytes.next()? as char).to_digit(16)?;
        let low = (bytes.next()? as char).to_digit(16)?;
        decoded.push((high * 16 + low) as u8);
    }
    (!decoded.contains(&0)).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_as_rfc_3986_says() {
        let base = "http://example.test:81/a/b/c?q=1";
        for (location, expected) in [
            ("https://other.test/x", "https://other.test/x"),
            ("//other.test/x", "http://other.test/x"),
            ("/x/y?z", "http://example.test:81/x/y?z"),
            ("d", "http://example.test:81/a/b/d"),
            ("../d", "http://example.test:81/a/d"),
            ("../../../d", "http://example.test:81/d"),
            ("./", "http://example.test:81/a/b/"),
            ("?x", "http://example.test:81/a/b/c?x"),
            ("d#f", "http://example.test:81/a/b/d"),
        ] {
            assert_eq!(join(base, location), expected, "{location}");
        }
        assert_eq!(join("http://h.test", "x"), "http://h.test/x");
    }

    #[test]
    fn passwords_are_redacted() {
        assert_eq!(redact("https://me:secret@h.test/x@y"), "https://h.test/x@y");
        assert_eq!(redact("https://h.test/x@y"), "https://h.test/x@y");
        assert_eq!(redact("nonsense"), "nonsense");
    }

    #[test]
    fn file_urls_name_absolute_paths() {
        assert_eq!(file_path("file:///a%20b/c"), Some("/a b/c".into()));
        assert_eq!(file_path("file://localhost/a"), Some("/a".into()));
        assert_eq!(file_path("file:/a"), Some("/a".into()));
        for bad in ["file://host/a", "file:a", "file:///%0", "file:///%00", "file:///%zz"] {
            assert_eq!(file_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn schemes() {
        assert_eq!(scheme("HTTPS://x").as_deref(), Some("https"));
        assert_eq!(scheme("mirror+file:/x").as_deref(), Some("mirror+file"));
        assert_eq!(scheme("/x:y"), None);
        assert_eq!(scheme("x"), None);
    }
}
