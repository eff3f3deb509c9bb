//! Why a request to a bucket came to nothing, in one sentence.

use std::io::{Error, ErrorKind};

use object_store::client::HttpErrorKind;
use ureq::http::HeaderMap;

use super::settings::SettingsError;
use crate::fetch::Reason;
use crate::fetch::http::{is_transient, text};
use crate::remote::http::kind_of;

/// An answer's `<Message>` is a sentence; what is longer is cut.
const MESSAGE_CHARACTERS: usize = 300;

/// A failure as whoever asked is told of it.
///
/// It crosses `object_store` as the innermost cause of its errors, and is found there again: what is
/// wrapped around it names retries and headers, which help nobody.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Failure {
    text: String,
    kind: ErrorKind,
    /// Whether there simply is no such object.
    pub(super) is_absent: bool,
    /// Whether a server answered, and this is what it said.
    pub(super) is_answer: bool,
    /// Whether it may go well the next time.
    pub(super) retry: HttpErrorKind,
}

impl Failure {
    /// The server at `origin` didn't answer.
    pub(super) fn unanswered(origin: &str, reason: &Reason) -> Failure {
        let retry = match reason {
            Reason::Timeout { .. } => HttpErrorKind::Timeout,
            Reason::Protocol { .. } => HttpErrorKind::Interrupted,
            // Who isn't there won't be in a moment.
            _ => HttpErrorKind::Unknown,
        };
        let (text, kind) = (format!("{origin}: {reason}"), kind_of(reason));
        Failure { text, kind, is_absent: false, is_answer: false, retry }
    }

    /// The server at `origin` answered, with something else than success.
    pub(super) fn refused(origin: &str, status: u16, headers: &HeaderMap, page: &str) -> Failure {
        let code = element(page, "Code").unwrap_or_default();
        let mut said = format!("{origin} answers {status}");
        for (separator, part) in [(" ", "Code"), (": ", "Message")] {
            if let Some(part) = element(page, part) {
                said += separator;
                said.extend(part.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARACTERS));
            }
        }
        if let (300..400, Some(region)) = (status, text(headers, REGION)) {
            said += &format!("; the bucket is in the region {region} (AWS_REGION)");
        }
        let kind = match (status, code) {
            (401 | 403, _) => ErrorKind::PermissionDenied,
            (404 | 410, _) => ErrorKind::NotFound,
            (416, _) => ErrorKind::UnexpectedEof,
            _ => ErrorKind::Other,
        };
        Failure {
            text: said,
            kind,
            is_absent: kind == ErrorKind::NotFound && code != "NoSuchBucket",
            is_answer: true,
            retry: match status {
                status if is_transient(status) || status >= 500 => HttpErrorKind::Request,
                _ => HttpErrorKind::Unknown,
            },
        }
    }

    /// This failure came of looking for credentials: an object is not absent because of it.
    pub(super) fn of_credentials(self) -> Failure {
        let text = format!(
            "there are no credentials: variables and profile have none, nor does this machine ({})",
            self.text
        );
        let kind = ErrorKind::PermissionDenied;
        Failure { text, kind, is_absent: false, is_answer: false, ..self }
    }

    fn other(kind: ErrorKind, text: String) -> Failure {
        let retry = HttpErrorKind::Unknown;
        Failure { text, kind, is_absent: false, is_answer: false, retry }
    }
}

/// Of a bucket that is elsewhere.
const REGION: &str = "x-amz-bucket-region";

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        let mut cause: &(dyn std::error::Error + 'static) = &error;
        loop {
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                return failure.clone();
            }
            if let Some(error) = cause.downcast_ref::<Error>() {
                return Failure::other(error.kind(), error.to_string());
            }
            match cause.source() {
                Some(deeper) => cause = deeper,
                None => return Failure::other(ErrorKind::Other, cause.to_string()),
            }
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Failure {
        let kind = match error {
            SettingsError::NoCredentials => ErrorKind::PermissionDenied,
            _ => ErrorKind::InvalidInput,
        };
        Failure::other(kind, error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::other(error.kind(), error.to_string())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::new(failure.kind, failure)
    }
}

/// The text of the first XML element of that name, if it has nothing but text in it.
fn element<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("<{name}>"))?;
    let (text, rest) = rest.split_once('<')?;
    rest.strip_prefix('/')?.starts_with(name).then_some(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, page: &str) -> Failure {
        let mut headers = HeaderMap::new();
        headers.insert(REGION, "eu-west-1".parse().expect("a header"));
        Failure::refused("http://h.test", status, &headers, page)
    }

    #[test]
    fn a_refusal_says_what_the_server_says_and_no_more() {
        let page = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code>\
                    <Message>Check your\n key.</Message><StringToSign>x</StringToSign></Error>";
        let failure = refused(403, page);
        let expected = "http://h.test answers 403 SignatureDoesNotMatch: Check your key.";
        assert_eq!(failure.to_string(), expected);
        assert_eq!(Error::from(failure).kind(), ErrorKind::PermissionDenied);
        assert_eq!(refused(500, "<Code><b>x</b></Code>").to_string(), "http://h.test answers 500");
        let moved = refused(301, "<Error><Code>PermanentRedirect</Code></Error>").to_string();
        assert!(
            moved
                .ends_with("PermanentRedirect; the bucket is in the region eu-west-1 (AWS_REGION)")
        );
    }

    #[test]
    fn an_absent_object_is_neither_an_absent_bucket_nor_absent_credentials() {
        let absent = refused(404, "<Error><Code>NoSuchKey</Code></Error>");
        assert!(absent.is_absent && refused(404, "").is_absent);
        assert!(!refused(404, "<Error><Code>NoSuchBucket</Code></Error>").is_absent);
        let credentials = absent.of_credentials();
        assert!(!credentials.is_absent);
        assert!(credentials.to_string().starts_with("there are no credentials"), "{credentials}");
    }
}
