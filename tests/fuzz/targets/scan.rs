//! What a file needs: ELF and scripts, as an output's files are searched for it.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use srp_builder::CancelToken;

static CANCEL: LazyLock<CancelToken> = LazyLock::new(|| CancelToken::new().expect("a descriptor"));

static TREE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // In memory where that can be.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fs::write(TREE.path().join("file"), bytes).expect("written");
    let tree = srp_store::OpenTree::open(TREE.path()).expect("it is there");
    let _ = srp_store::Crew::begin(&[&tree], &[], |crew| {
        let _ = srp_builder::scan::scan(crew, &tree, &CANCEL);
        srp_builder::scan::forbidden(crew, &tree, &["/srp/build"], &|_| false, &CANCEL)
    });
});
