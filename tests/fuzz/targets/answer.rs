//! What the process that evaluates sends to srp.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_eval::fuzz_answer(bytes));
