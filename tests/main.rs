//! Drives the `srp` program as a user does: real stores, real sandboxes, definitions of the test's own.
//!
//! One test program with one module for each theme. Unit tests lie beside the code, and the
//! sandbox's own attacks are in builder/tests.

#![allow(clippy::unwrap_used)] // a test that can't go on should panic

#[path = "crash/sound.rs"]
mod sound;
mod support;

mod cases {
    mod against;
    mod archives;
    mod attestation;
    mod audit;
    mod audit_fixtures;
    mod audit_pages;
    mod audit_runner;
    mod cache;
    mod cache_trouble;
    mod command_line;
    mod concurrency;
    mod crash;
    mod cutoff;
    mod export;
    mod failures;
    mod fetching;
    mod identity;
    mod keys;
    mod machines;
    mod memory;
    mod neighbours;
    mod patches;
    mod provenance;
    mod realise;
    mod recipes;
    mod refusals;
    #[cfg(feature = "s3")]
    mod s3;
    mod serve;
    mod store_gc;
    mod store_verify;
    mod tidy;
    mod trust;
    mod world;
}
