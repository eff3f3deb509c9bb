//! Exports, read into a store of their own.
#![no_main]

use std::io::{Seek, Write};
use std::sync::{Arc, LazyLock};

use srp_store::cache::{Importer, Policy};
use srp_store::{Access, Store};

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // In memory where that can be: what is imported is synced.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
});
static STORE: LazyLock<Store> =
    LazyLock::new(|| Store::open(&DIRECTORY.path().join("store"), Access::Write).expect("opened"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile_in(DIRECTORY.path()).expect("a file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    let importer = Importer { store: &STORE, policy: &Policy::default(), trusted_outright: false };
    let _ = importer.import(file, "the export", Arc::new(|_| Ok(())));
});
