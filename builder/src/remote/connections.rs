//! Connections: from an address to a remote. All remotes of one `Connections` share its pool.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use srp_store::cache::{DirectoryRemote, Remote};

use crate::fetch::{Client, NetworkSettings, Timeouts, url};
use crate::remote::http::HttpRemote;
#[cfg(feature = "s3")]
use crate::remote::s3::{AwsSettings, S3Remote};

/// Opens remotes.
#[derive(Clone)]
pub struct Connections {
    client: Arc<Client>,
    #[cfg(feature = "s3")]
    aws: AwsSettings,
}

/// An address that no cache can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The scheme is none of ours.
    #[error("{url} can't be a cache: {scheme}:// is not supported; {SCHEMES}")]
    Scheme {
        /// The address.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// The rest of it makes no sense.
    #[error("{url} can't be a cache: {reason}")]
    Malformed {
        /// The address.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What an address can begin with.
const SCHEMES: &str = if cfg!(feature = "s3") {
    "file://, http(s):// and s3:// are"
} else {
    "file:// and http(s):// are (s3:// was left out when this srp was compiled)"
};

impl Connections {
    /// With these proxies and certificates. Nothing is connected yet.
    pub fn new(network: NetworkSettings) -> Connections {
        // Short: a cache that doesn't answer is one that has nothing, and builds wait to begin.
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(15),
            read: Duration::from_secs(20),
        };
        let user_agent = concat!("srp/", env!("CARGO_PKG_VERSION")).to_owned();
        Connections {
            client: Arc::new(Client::new(network, timeouts, user_agent)),
            #[cfg(feature = "s3")]
            aws: AwsSettings::default(),
        }
    }

    /// With this endpoint and these credentials for buckets.
    #[cfg(feature = "s3")]
    #[must_use]
    pub fn with_aws(self, aws: AwsSettings) -> Connections {
        Connections { aws, ..self }
    }

    /// The remote at an address: a URL, or the path of a directory.
    pub fn open(&self, address: &str) -> Result<Arc<dyn Remote>, AddressError> {
        let malformed = |reason| AddressError::Malformed { url: url::redact(address), reason };
        if !address.contains("://") {
            return match address {
                "" => Err(malformed("it is empty")),
                path => Ok(Arc::new(DirectoryRemote::new(Path::new(path)))),
            };
        }
        match url::scheme(address).as_deref() {
            Some("file") => {
                let path = url::file_path(address)
                    .ok_or_else(|| malformed("file:// is followed by an absolute path"))?;
                Ok(Arc::new(DirectoryRemote::new(&path)))
            }
            Some("http" | "https") => {
                let host = address.split("://").nth(1).unwrap_or_default();
                if host.is_empty() || host.starts_with('/') {
                    return Err(malformed("it names no host"));
                }
                if address.contains(['?', '#']) {
                    return Err(malformed("files are asked for below it, so it has no ? or #"));
                }
                Ok(Arc::new(HttpRemote::new(Arc::clone(&self.client), address)))
            }
            #[cfg(feature = "s3")]
            Some("s3") => {
                let place = address["s3://".len()..].trim_end_matches('/');
                let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
                if prefix.contains(['?', '#']) {
                    return Err(malformed("files are asked for below it, so it has no ? or #"));
                }
                S3Remote::new(Arc::clone(&self.client), &self.aws, bucket, prefix)
                    .map(|remote| Arc::new(remote) as Arc<dyn Remote>)
                    .ok_or_else(|| malformed("it names no bucket, or no prefix of plain names"))
            }
            scheme => Err(AddressError::Scheme {
                url: url::redact(address),
                scheme: scheme.unwrap_or("this").to_owned(),
            }),
        }
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}
