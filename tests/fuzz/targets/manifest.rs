//! Manifests of stages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_store::fuzzing::manifest(bytes));
