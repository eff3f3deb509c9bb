//! Requests to `srp serve`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_builder::serve::fuzz_request(bytes));
