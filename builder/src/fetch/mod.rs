//! Fetching sources: srp's own downloads, the only network traffic of a build.
//!
//! Builds never have a network; whatever they need is fetched here first, by SHA-256, from the first
//! of several places that has it: directories, `file:` URLs, mirrors and upstream servers. What
//! arrives lies in a *sources directory*, whose format is one for the store's `sources/` and for
//! what `srp source mirror` writes:
//!
//! ```text
//! <sha256 hex>-<name>            a complete file, verified, mode 0444
//! .partial-<sha256 hex>          a transfer that was interrupted or runs now (then it is flocked)
//! .partial-<sha256 hex>.origin   where the partial's bytes came from: URL and HTTP validator
//! .partial-<sha256 hex>.git/     the repository that a git source is being fetched into
//! ```
//!
//! Deliberately not here: unpacking (`crate::unpack`), anything about derivations or the store, and
//! reading the environment; the caller passes configuration as plain values.

mod apt;

mod download;
mod error;
mod fetcher;
mod forward;
mod git;
pub(crate) mod http;
mod mirrors;
mod network;
mod pace;
mod request;
mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod url;

pub use crate::cancel::CancelToken;
pub use apt::{AptSource, parse_deb822, parse_one_line_list, read_apt_directory};
pub use error::{FetchError, MirrorError, PlaceFailure, Reason};
pub use fetcher::{Fetcher, FetcherConfig};
pub(crate) use http::{Client, Redirects, Timeouts};
pub use mirrors::Mirrors;
pub use network::{CaCertificates, NetworkSettings, NoProxy};
pub(crate) use pace::{LowSpeed, Pace};
pub use request::{FetchRequest, Fetched, Place, Progress, Sha256, Sha256ParseError};
