//! Requests: from a head's bytes to what is asked for. Pure: no I/O, no panic.
//!
//! Where a request ends must be beyond doubt: what one party takes for a body and another for the
//! next request is how requests are smuggled past proxies (RFC 9112, section 11.2). So a head has
//! to be as the standard writes it, every field that may come once comes once, and whatever says
//! that a body follows ends the connection.

use std::ops::Range;

/// A head is no longer.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 10;
/// And has no more fields.
const MAX_FIELDS: usize = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The target as it came, without query.
    pub(super) path: String,
    pub(super) range: Option<AskedRange>,
    pub(super) host: Option<String>,
    pub(super) authorization: Option<String>,
    /// Whether the client may ask again over this connection. Never if it sends more than a head:
    /// that isn't read.
    pub(super) keep_alive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    /// Anything that would change something, or that nobody needs here.
    Other,
}

/// A range, of a file whose length isn't known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedRange {
    /// From the first byte on, to the last one if that was given.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

/// What a buffer is so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The beginning of a head.
    Partial,
    /// A whole head, and its length.
    Whole(Request, usize),
    /// No HTTP, or too much of it: the status to answer with.
    Bad(u16),
}

/// What the bytes that have come are.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(431),
        Err(httparse::Error::Version) => return Parsed::Bad(505),
        Err(_) => return Parsed::Bad(400),
    };
    match request(&head, &bytes[..length]) {
        Ok(request) => Parsed::Whole(request, length),
        Err(Malformed) => Parsed::Bad(400),
    }
}

/// A head that can be read in two ways.
struct Malformed;

fn request(head: &httparse::Request<'_, '_>, bytes: &[u8]) -> Result<Request, Malformed> {
    // The parser takes a bare LF for the end of a line, as old programs do. Others don't.
    let mut before = b' ';
    for byte in bytes {
        if *byte == b'\n' && before != b'\r' {
            return Err(Malformed);
        }
        before = *byte;
    }
    // The values of a field, in the order in which they come.
    let values = |name: &'static str| {
        let named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        head.headers.iter().filter(named).map(|field| field.value)
    };
    // The value of a field that may come once.
    let field = |name| {
        let mut values = values(name);
        let value = values.next().map(std::str::from_utf8).transpose().map_err(|_| Malformed)?;
        if values.next().is_some() { Err(Malformed) } else { Ok(value.map(str::trim)) }
    };
    let is_last_version = head.version == Some(1);
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => Method::Other,
    };
    let has_codings = values("transfer-encoding").next().is_some();
    let has_body = match field("content-length")? {
        // Either says where the body ends: both at once is somebody's attempt.
        Some(_) if has_codings => return Err(Malformed),
        Some(length) if length.is_empty() || !length.bytes().all(|it| it.is_ascii_digit()) => {
            return Err(Malformed);
        }
        Some(length) => length.bytes().any(|digit| digit != b'0'),
        None if has_codings && !is_last_version => return Err(Malformed),
        None => has_codings,
    };
    // Nobody has a reason to send one, and what isn't read mustn't be taken for another request.
    if has_body && method != Method::Other {
        return Err(Malformed);
    }
    let host = field("host")?;
    if host.is_none() && is_last_version {
        return Err(Malformed);
    }
    let closes = values("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
    let target = head.path.unwrap_or_default();
    let (range, validator) = (field("range")?, field("if-range")?);
    Ok(Request {
        method,
        path: target.split(['?', '#']).next().unwrap_or_default().to_owned(),
        // With a validator it is asked for only if that is the file's, and files have none here.
        range: range.filter(|_| validator.is_none()).and_then(parse_range),
        host: host.map(str::to_owned),
        authorization: field("authorization")?.map(str::to_owned),
        keep_alive: is_last_version && !closes && !has_body,
    })
}

/// One range of bytes; none for what a server may pass over: other units, several ranges.
fn parse_range(value: &str) -> Option<AskedRange> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", last) => number(last).map(AskedRange::Last),
        (first, "") => Some(AskedRange::From(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(AskedRange::From(first, Some(last)))
        }
    }
}

impl AskedRange {
    /// The bytes of a file of this length; none if it has none of them.
    pub(super) fn of(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            AskedRange::From(first, last) => {
                first..last.map_or(length, |last| last.saturating_add(1).min(length))
            }
            AskedRange::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Parsed::Whole(request, length) if length == text.len() => request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn heads() {
        let request = whole("GET /packs/x?y HTTP/1.1\r\nHost: h:1\r\nRange: bytes=2-4\r\n\r\n");
        assert_eq!((request.method, request.path.as_str()), (Method::Get, "/packs/x"));
        assert_eq!(request.range, Some(AskedRange::From(2, Some(4))));
        assert_eq!(request.host.as_deref(), Some("h:1"));
        assert!(request.keep_alive);
        assert!(!whole("GET / HTTP/1.0\r\n\r\n").keep_alive);
        for last in
            ["Connection: Close", "Connection: x, close", "Connection: x\r\nConnection: close"]
        {
            let text = format!("HEAD / HTTP/1.1\r\nHost: h\r\n{last}\r\n\r\n");
            assert!(!whole(&text).keep_alive, "{last}");
        }
        let guarded = "GET / HTTP/1.1\r\nHost: h\r\nRange: bytes=2-4\r\nIf-Range: \"x\"\r\n\r\n";
        assert_eq!(whole(guarded).range, None);
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost"), Parsed::Partial);
        assert_eq!(parse(b"nonsense\r\n\r\n"), Parsed::Bad(400));
        assert_eq!(parse(b"GET / HTTP/3.0\r\n\r\n"), Parsed::Bad(505));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD_BYTES));
        assert_eq!(parse(long.as_bytes()), Parsed::Bad(431));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(many.as_bytes()), Parsed::Bad(431));
    }

    #[test]
    fn where_a_request_ends_is_beyond_doubt() {
        let nothing = whole("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        assert!(nothing.keep_alive);
        for body in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let put = whole(&format!("PUT / HTTP/1.1\r\nHost: h\r\n{body}\r\n\r\n"));
            assert!(put.method == Method::Other && !put.keep_alive, "{body}");
        }
        for fields in [
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: \u{ff}",
            "Content-Length: 0\r\nContent-Length: 5",
            "Content-Length: 0\r\ncontent-length: 0",
            "Content-Length: 0, 0",
            "Content-Length: +0",
            "Content-Length: -1",
            "Content-Length: 0x0",
            "Content-Length:",
            "Content-Length: \u{b2}",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Content-Length : 0",
            "Content-Length: 0\r\n 5",
            "Content-Length: 0\r\n\tx: y",
            "Content-Length: 0\n",
            "X: a\nContent-Length: 0",
            "X: a\rContent-Length: 0",
            "X: \0",
            "Host: other",
            "Authorization: a\r\nAuthorization: b",
            "Range: bytes=1-2\r\nRange: bytes=3-4",
        ] {
            let text =
                format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\nGET /x HTTP/1.1\r\n\r\n");
            assert_eq!(parse(text.as_bytes()), Parsed::Bad(400), "{fields:?}");
        }
        let invalid = b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \xff\r\n\r\nabc";
        assert_eq!(parse(invalid), Parsed::Bad(400));
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\n",
            "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\n",
        ] {
            assert_eq!(parse(text.as_bytes()), Parsed::Bad(400), "{text:?}");
        }
    }

    #[test]
    fn ranges() {
        let of = |value: &str| parse_range(value).map(|range| range.of(10));
        assert_eq!(of("bytes=0-0"), Some(Some(0..1)));
        assert_eq!(of("bytes=2-4"), Some(Some(2..5)));
        assert_eq!(of("bytes=2-99"), Some(Some(2..10)));
        assert_eq!(of("bytes=2-"), Some(Some(2..10)));
        assert_eq!(of("bytes=-3"), Some(Some(7..10)));
        assert_eq!(of("bytes=-99"), Some(Some(0..10)));
        let far = format!("bytes=5-{}", u64::MAX);
        assert_eq!(of(&far), Some(Some(5..10)));
        for none_of_it in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of(none_of_it), Some(None), "{none_of_it}");
        }
        for passed_over in ["", "bytes=", "bytes=-", "lines=1-2", "bytes=4-2", "bytes=1-2,4-5"] {
            assert_eq!(of(passed_over), None, "{passed_over}");
        }
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, range: String) {
            let _ = parse(&bytes);
            let _ = parse(&[b"GET / HTTP/1.1\r\nRange: ", &bytes[..], b"\r\n\r\n"].concat());
            let _ = parse_range(&range).map(|it| it.of(10));
        }
    }
}
