//! Envelopes of attestations, as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_store::fuzzing::envelope(bytes));
