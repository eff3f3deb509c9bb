//! Remotes: where binary caches lie, by their addresses.
//!
//! `file://` and paths are directories, `http(s)://` any web server, for publishing one that
//! takes PUT, `s3://` a bucket. What lies there, and whether it is to be believed, is the store's
//! business.

mod connections;
mod http;
#[cfg(feature = "s3")]
mod s3;
#[cfg(test)]
mod tests;

pub use connections::{AddressError, Connections};
#[cfg(feature = "s3")]
pub use s3::AwsSettings;
