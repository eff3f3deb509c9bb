//! Requests: from a head's bytes to what is asked for. Pure: no I/O, no panic.

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
    /// Whether the client may ask again over this connection. Not if it sends more than a head:
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
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Bad(431);
        }
        Err(httparse::Error::Version) => return Parsed::Bad(505),
        Err(_) => return Parsed::Bad(400),
    };
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
    };
    let mentions = |name: &str, word: &str| {
        let words = field(name).into_iter().flat_map(|value| value.split(','));
        words.into_iter().any(|it| it.trim().eq_ignore_ascii_case(word))
    };
    let target = head.path.unwrap_or_default();
    let has_body =
        field("transfer-encoding").is_some() || field("content-length").is_some_and(|it| it != "0");
    let request = Request {
        method: match head.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        path: target.split(['?', '#']).next().unwrap_or_default().to_owned(),
        // With a validator it is asked for only if that is the file's, and files have none here.
        range: field("range").filter(|_| field("if-range").is_none()).and_then(parse_range),
        host: field("host").map(str::to_owned),
        authorization: field("authorization").map(str::to_owned),
        keep_alive: head.version == Some(1) && !mentions("connection", "close") && !has_body,
    };
    Parsed::Whole(request, length)
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
        assert!(!whole("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n").keep_alive);
        let put = whole("PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
        assert!(put.method == Method::Other && !put.keep_alive);
        assert!(!whole("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").keep_alive);
        let guarded = "GET / HTTP/1.1\r\nRange: bytes=2-4\r\nIf-Range: \"x\"\r\n\r\n";
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
