//! From `object_store` to the client that all caches share: its requests, and what comes of them.

use std::fmt;
use std::io::Read;
use std::iter;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use ureq::http::{Method, request};

use super::failure::Failure;
use crate::fetch::Client;
use crate::fetch::url::origin;
use crate::remote::http::page;

/// What is read from the network at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends what `object_store` asks for.
///
/// It blocks in a future, on purpose: whoever polls it has a thread that does nothing but wait
/// for it.
#[derive(Clone)]
pub(super) struct Bridge {
    client: Arc<Client>,
    /// What requests to the bucket begin with; what is sent elsewhere asks for credentials.
    endpoint: Arc<str>,
}

impl Bridge {
    pub(super) fn new(client: Arc<Client>, endpoint: &str) -> Bridge {
        Bridge { client, endpoint: format!("{endpoint}/").into() }
    }

    /// Sends a request. What isn't success is a failure already here, where all of it is known.
    fn send(&self, head: request::Parts, body: &[u8]) -> Result<HttpResponse, Failure> {
        let url = head.uri.to_string();
        let of_bucket = url.starts_with(&*self.endpoint);
        let tell = |failure: Failure| if of_bucket { failure } else { failure.of_credentials() };
        let headers = head.headers.iter();
        let headers =
            headers.filter_map(|(name, it)| Some((name.clone(), it.to_str().ok()?.into())));
        let headers: Vec<_> = headers.collect();
        let answer = match head.method {
            Method::PUT | Method::POST => self.client.exchange(head.method, &url, &headers, body),
            method => self.client.exchange(method, &url, &headers, ()),
        };
        let answer = answer.map_err(|reason| tell(Failure::unanswered(&origin(&url), &reason)))?;
        let (head, body) = answer.into_parts();
        let mut from = body.into_reader();
        if !head.status.is_success() {
            let page = page(&mut from);
            let page = String::from_utf8_lossy(&page);
            let status = head.status.as_u16();
            return Err(tell(Failure::refused(&origin(&url), status, &head.headers, &page)));
        }
        Ok(HttpResponse::from_parts(head, frames(from)))
    }
}

#[async_trait]
impl HttpService for Bridge {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.send(head, &body).map_err(|failure| HttpError::new(failure.retry, failure))
    }
}

impl HttpConnector for Bridge {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bridge({})", self.endpoint)
    }
}

/// The body of an answer. To read it to its end frees its connection for the next request.
fn frames(mut from: impl Read + Send + Sync + 'static) -> HttpResponseBody {
    let chunks = iter::from_fn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        match from.read(&mut chunk) {
            Ok(0) => None,
            Ok(count) => {
                chunk.truncate(count);
                Some(Ok(Frame::data(Bytes::from(chunk))))
            }
            Err(error) => Some(Err(HttpError::new(HttpErrorKind::Interrupted, error))),
        }
    });
    HttpResponseBody::new(StreamBody::new(stream::iter(chunks)))
}
