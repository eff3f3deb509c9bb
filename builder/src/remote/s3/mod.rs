//! Caches in buckets: `s3://bucket/prefix`, of Amazon or of anybody who speaks its protocol.
//!
//! The crate `object_store` knows the protocol: signatures, listings, uploads in parts, when to try
//! again. It is asynchronous; here it is waited for, and nothing asynchronous leaves this directory.
//! Its requests are sent by the client that all caches share, so that proxies and certificates are
//! the same, and no second HTTP stack is linked.

mod bridge;
mod bucket;
mod failure;
mod settings;
#[cfg(test)]
mod tests;

pub(super) use bucket::S3Remote;
pub use settings::AwsSettings;
