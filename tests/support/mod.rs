//! What every test of the `srp` command stands on: a place of its own, and the program's answers.
//!
//! A [`Place`] has a store, a home and definitions of its own, so that tests neither see each other
//! nor the user's configuration. Nothing in it is a mock: the program is the one that cargo built.

#![allow(dead_code)] // each of the test programs that share this uses a part

pub(crate) mod browser;
pub(crate) mod caches;
pub(crate) mod host;
#[cfg(feature = "s3")]
pub(crate) mod moto;
pub(crate) mod nginx;
pub(crate) mod place;
pub(crate) mod processes;
pub(crate) mod project;
pub(crate) mod python;
pub(crate) mod seed;
pub(crate) mod server;
pub(crate) mod serving;

pub(crate) use place::{Place, Run};

/// The srp that is tested.
pub(crate) fn program() -> std::path::PathBuf {
    let copy = seed::home().map(|home| home.join("srp"));
    copy.unwrap_or_else(|| env!("CARGO_BIN_EXE_srp").into())
}
