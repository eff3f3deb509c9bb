//! Sealed files: statements, records, manifests, pointers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| srp_store::fuzzing::sealed(bytes));
