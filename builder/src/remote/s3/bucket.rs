//! A bucket, or what lies below a prefix in it, as a remote.

use std::fs::File;
use std::future::Future;
use std::io::{Error, ErrorKind, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3CopyIfNotExists};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use srp_store::cache::{Body, CacheError, CachePath, Content, Remote, Stat};
use tokio::runtime::{Builder, Runtime};

use super::bridge::Bridge;
use super::failure::Failure;
use super::settings::AwsSettings;
use crate::fetch::Client;
use crate::remote::http::Exactly;

/// What is larger is uploaded in parts of this length, so that no more of it is ever in memory.
const PART_BYTES: u64 = 16 << 20;
/// No upload may have more than ten thousand parts: what is larger still has larger ones.
const MAX_PARTS: u64 = 10_000;

/// A cache in a bucket.
pub(crate) struct S3Remote {
    /// Or why it can't be asked. That is said when it is: a cache that can't be used is no reason
    /// not to build.
    store: Result<AmazonS3, Failure>,
    /// What every key begins with: nothing, or something that ends with a slash.
    prefix: String,
    url: String,
}

impl S3Remote {
    /// The cache below `prefix` in a bucket; none if these can't be the names of such.
    pub(crate) fn new(
        client: Arc<Client>,
        settings: &AwsSettings,
        bucket: &str,
        prefix: &str,
    ) -> Option<S3Remote> {
        let of_buckets = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(of_buckets) {
            return None;
        }
        let prefix = Path::parse(prefix).ok()?;
        let url = format!("s3://{bucket}/{prefix}").trim_end_matches('/').to_owned();
        let prefix = if prefix.is_root() { String::new() } else { format!("{prefix}/") };
        Some(S3Remote { store: open(client, settings, bucket), prefix, url })
    }

    fn store(&self) -> Result<&AmazonS3, Failure> {
        self.store.as_ref().map_err(Failure::clone)
    }

    /// The key of what has this path in the cache.
    fn at(&self, path: &str) -> Path {
        Path::parse(format!("{}{path}", self.prefix)).expect("paths in caches are plain")
    }

    fn read(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Body, Failure> {
        if range.as_ref().is_some_and(|range| range.start >= range.end) {
            return Ok(Body { length: 0, reader: Box::new(std::io::empty()) });
        }
        let asked = range.clone().map(GetRange::Bounded);
        let options = GetOptions { range: asked, ..GetOptions::default() };
        let at = self.at(path.as_str());
        let runtime = runtime()?;
        let found = runtime.block_on(self.store()?.get_opts(&at, options))?;
        // A range that goes beyond the end is answered with what there is.
        if range.is_some_and(|range| range != found.range) {
            return Err(Error::from(ErrorKind::UnexpectedEof).into());
        }
        let length = found.range.end - found.range.start;
        let reader = Reader { runtime, stream: found.into_stream(), chunk: Bytes::new() };
        Ok(Body { length, reader: Box::new(Exactly::new(reader, length)) })
    }

    fn write(&self, path: &CachePath, content: Content<'_>) -> Result<(), Failure> {
        let (store, at) = (self.store()?, self.at(path.as_str()));
        let mut file = match content {
            Content::Bytes(bytes) => {
                return wait(store.put(&at, bytes.to_vec().into())).map(drop);
            }
            Content::File(from) | Content::Staged(from) => File::open(from)?,
        };
        let length = file.metadata()?.len();
        let mut next = |length: u64| -> Result<PutPayload, Error> {
            let mut part = Vec::new();
            (&mut file).take(length).read_to_end(&mut part)?;
            Ok(part.into())
        };
        if length <= PART_BYTES {
            return wait(store.put(&at, next(length)?)).map(drop);
        }
        let part_bytes = PART_BYTES.max(length.div_ceil(MAX_PARTS));
        let mut upload = wait(store.put_multipart(&at))?;
        let mut send = || -> Result<(), Failure> {
            for _ in 0..length.div_ceil(part_bytes) {
                wait(upload.put_part(next(part_bytes)?))?;
            }
            wait(upload.complete()).map(drop)
        };
        let sent = send();
        if sent.is_err() {
            // Parts that belong to nothing cost their owner money.
            let _ = wait(upload.abort());
        }
        sent
    }

    fn error(&self, action: &'static str, path: &str, failure: Failure) -> CacheError {
        let (url, path) = (self.url.clone(), path.to_owned());
        CacheError::Transport { action, url, path, source: failure.into() }
    }
}

impl Remote for S3Remote {
    fn url(&self) -> &str {
        &self.url
    }

    fn get(&self, path: &CachePath, range: Option<Range<u64>>) -> Result<Option<Body>, CacheError> {
        match self.read(path, range) {
            Err(failure) if failure.is_absent => Ok(None),
            read => read.map(Some).map_err(|failure| self.error("read", path.as_str(), failure)),
        }
    }

    fn put(&self, path: &CachePath, content: Content<'_>) -> Result<(), CacheError> {
        self.write(path, content).map_err(|failure| self.error("write", path.as_str(), failure))
    }

    fn stat(&self, path: &CachePath) -> Result<Option<Stat>, CacheError> {
        let at = self.at(path.as_str());
        match self.store().and_then(|store| wait(store.head(&at))) {
            Err(failure) if failure.is_absent => Ok(None),
            looked => looked
                .map(|meta| Some(stat(&meta)))
                .map_err(|failure| self.error("look at", path.as_str(), failure)),
        }
    }

    /// Copies the object onto itself, which the server does without any of it being sent.
    fn refresh(&self, path: &CachePath) -> Result<bool, CacheError> {
        let at = self.at(path.as_str());
        match self.store().and_then(|store| wait(store.copy_if_not_exists(&at, &at))) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_answer => {
                // Not every server can, and none with what is larger than 5 GiB: it is sent again.
                tracing::debug!(%failure, %path, "the time of an object can't be renewed");
                Ok(false)
            }
            Err(failure) => Err(self.error("refresh", path.as_str(), failure)),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<(CachePath, Stat)>, CacheError> {
        let below = self.at(directory);
        let list = |store: &AmazonS3| wait(store.list(Some(&below)).try_collect::<Vec<_>>());
        let listed = self.store().and_then(list);
        let listed = listed.map_err(|failure| self.error("list", directory, failure))?;
        let mut found: Vec<(CachePath, Stat)> = listed
            .iter()
            // Some programs put an empty object where a directory would be.
            .filter(|meta| meta.location != below)
            .filter_map(|meta| {
                let path = meta.location.as_ref().strip_prefix(&self.prefix)?;
                Some((CachePath::parse(path)?, stat(meta)))
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn delete(&self, path: &CachePath) -> Result<(), CacheError> {
        let at = self.at(path.as_str());
        match self.store().and_then(|store| wait(store.delete(&at))) {
            Err(failure) if !failure.is_absent => Err(self.error("delete", path.as_str(), failure)),
            _ => Ok(()),
        }
    }
}

/// The bucket, as far as it is known without asking it anything.
fn open(client: Arc<Client>, settings: &AwsSettings, bucket: &str) -> Result<AmazonS3, Failure> {
    let resolved = settings.resolve()?;
    let mut builder = AmazonS3Builder::new();
    for (name, value) in resolved.values {
        let key: AmazonS3ConfigKey =
            name.to_ascii_lowercase().parse().expect("a variable that it knows");
        builder = builder.with_config(key, value);
    }
    // A cache that doesn't answer is one that has nothing, and builds wait to begin.
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(20),
        ..RetryConfig::default()
    };
    // Nothing can be copied onto itself unless something of it is replaced; see `refresh`. This is
    // how `object_store` lets a header be sent with a copy.
    let replace = ("x-amz-metadata-directive".to_owned(), "REPLACE".to_owned());
    let store = builder
        .with_endpoint(&resolved.endpoint)
        .with_bucket_name(bucket)
        .with_copy_if_not_exists(S3CopyIfNotExists::Header(replace.0, replace.1))
        // One by one: not every server knows the request that deletes several.
        .with_disable_bulk_delete(true)
        .with_retry(retry)
        .with_http_connector(Bridge::new(client, &resolved.endpoint))
        .build()?;
    Ok(store)
}

/// Waits for what `object_store` promises.
fn wait<T>(future: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
    Ok(runtime()?.block_on(future)?)
}

/// What a future is polled and sleeps in. Each wait has its own, as threads that shared one would
/// sleep until another's request is done; it costs less than any request.
fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread().enable_time().build()
}

fn stat(meta: &ObjectMeta) -> Stat {
    Stat { size_bytes: meta.size, modified: Some(meta.last_modified.into()) }
}

/// A body on its way, waited for by whoever reads it.
struct Reader {
    runtime: Runtime,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk.map_err(Failure::from)?,
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
