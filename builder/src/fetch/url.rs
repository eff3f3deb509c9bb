//! URLs, beyond what the crate `url` knows of them: `file:` paths, redaction, redirects as servers send
//! them, and what to say of one that can't be.

use std::path::PathBuf;

use url::Url;

use super::error::Reason;

/// What may stand in a URL that is sent: everything else is percent-encoded. RFC 3986's characters, and
/// no more, as HTTP libraries and servers differ in what else they take.
const SENT: &[u8] = b"-._~!$&'()*+,;=:@/?%[]|";

/// Parses an `http:` or `https:` URL, in which whatever a URL can't hold is percent-encoded, as browsers
/// and curl do it.
pub(crate) fn parse(url: &str) -> Result<Url, Reason> {
    check(Url::parse(url).map_err(|error| invalid(error.to_string()))?)
}

/// Where a `Location` header leads from `base`. It may hold spaces, raw UTF-8 or Latin-1, and may be
/// relative; its fragment isn't sent. What `base` holds of a login stays only where scheme, host and port
/// stay.
pub(crate) fn redirected(base: &Url, location: &[u8]) -> Result<Url, Reason> {
    let text: String = location
        .iter()
        .map(|byte| match byte {
            0x80.. => format!("%{byte:02X}"),
            _ => char::from(*byte).to_string(),
        })
        .collect();
    let invalid = |detail: String| {
        let location = String::from_utf8_lossy(location).chars().take(200).collect();
        Reason::InvalidRedirect { location, detail }
    };
    let mut next = base.join(&text).map_err(|error| invalid(error.to_string()))?;
    if next.origin() == base.origin() && next.username().is_empty() && next.password().is_none() {
        let login = next.set_username(base.username());
        let _ = login.and_then(|()| next.set_password(base.password()));
    }
    check(next).map_err(|reason| match reason {
        Reason::InvalidUrl { detail } => invalid(detail),
        reason => reason,
    })
}

fn check(mut url: Url) -> Result<Url, Reason> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Reason::UnsupportedScheme { scheme: url.scheme().to_owned() });
    }
    url.set_fragment(None);
    let encoded = |text: &str| {
        text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
            match byte.is_ascii_alphanumeric() || SENT.contains(&byte) {
                true => encoded.push(char::from(byte)),
                false => encoded += &format!("%{byte:02X}"),
            }
            encoded
        })
    };
    let (path, query) = (encoded(url.path()), url.query().map(encoded));
    url.set_path(&path);
    url.set_query(query.as_deref());
    Ok(url)
}

fn invalid(detail: String) -> Reason {
    Reason::InvalidUrl { detail }
}

/// Scheme, host and port of a URL, without a login; the text itself if it is no URL.
pub(crate) fn origin(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => redact(url),
    }
}

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

    fn to(base: &str, location: &[u8]) -> String {
        let base = parse(base).expect("a URL");
        redirected(&base, location).map_or_else(|error| error.to_string(), String::from)
    }

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
            ("HTTPS://Other.TEST/X", "https://other.test/X"),
        ] {
            assert_eq!(to(base, location.as_bytes()), expected, "{location}");
        }
        assert_eq!(to("http://h.test", b"x"), "http://h.test/x");
    }

    #[test]
    fn what_a_url_cannot_hold_is_encoded() {
        let base = "http://h.test/";
        for (location, expected) in [
            (&b"/a b.tar.gz"[..], "http://h.test/a%20b.tar.gz"),
            ("/caf\u{e9}.tar.gz?\u{e9}".as_bytes(), "http://h.test/caf%C3%A9.tar.gz?%C3%A9"),
            (b"/caf\xe9.tar.gz", "http://h.test/caf%E9.tar.gz"),
            (b"/a%20b%2Fc", "http://h.test/a%20b%2Fc"),
            (
                b"/a\"<>^`{}b?\"<>^`{}",
                "http://h.test/a%22%3C%3E%5E%60%7B%7Db?%22%3C%3E%5E%60%7B%7D",
            ),
            (b"/a[1]|b", "http://h.test/a[1]|b"),
        ] {
            let found = to(base, location);
            assert_eq!(found, expected);
            assert!(found.parse::<ureq::http::Uri>().is_ok(), "{found}");
        }
        let all: Vec<u8> = (0x20..=0xff).collect();
        let found = to(base, &[b"/x?", &all[..]].concat());
        assert!(found.parse::<ureq::http::Uri>().is_ok(), "{found}");
    }

    #[test]
    fn redirects_lead_to_web_servers_only() {
        let base = "http://h.test/";
        for location in ["file:///etc/passwd", "ftp://h.test/x", "javascript:x", "mirror://a/b"] {
            assert!(to(base, location.as_bytes()).contains("are not supported"), "{location}");
        }
        for location in ["http://", "//", "http://[::1/", "http://h\u{fffd}\\x@:y/"] {
            assert!(to(base, location.as_bytes()).contains("redirects to"), "{location}");
        }
    }

    #[test]
    fn a_login_is_for_one_server() {
        let base = "http://me:pw@h.test:81/a";
        for (location, expected) in [
            ("/b", "http://me:pw@h.test:81/b"),
            ("http://h.test:81/b", "http://me:pw@h.test:81/b"),
            ("http://you@h.test:81/b", "http://you@h.test:81/b"),
            ("http://h.test/b", "http://h.test/b"),
            ("https://h.test:81/b", "https://h.test:81/b"),
            ("//other.test:81/b", "http://other.test:81/b"),
        ] {
            assert_eq!(to(base, location.as_bytes()), expected);
        }
    }

    #[test]
    fn a_login_is_no_part_of_an_origin() {
        for url in
            ["http://me:p%40@h.test/x", "HTTP://H.test:80", "http://h.test?x@y", "http://h.test#"]
        {
            assert_eq!(origin(url), "http://h.test", "{url}");
        }
        assert_eq!(origin("https://h.test:8443/"), "https://h.test:8443");
        assert_ne!(origin("https://h.test"), origin("http://h.test"));
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
