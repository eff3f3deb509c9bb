//! Indexes of packs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_store::fuzzing::index(bytes));
