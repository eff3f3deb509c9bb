//! Archives: Debian packages, zip, and tar in whatever compression.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use srp_builder::CancelToken;
use srp_builder::unpack::{Format, UnpackSpec, unpack};

static CANCEL: LazyLock<CancelToken> = LazyLock::new(|| CancelToken::new().expect("a descriptor"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // In memory where that can be.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let directory = directory.expect("a directory");
    let (file, into) = (directory.path().join("file"), directory.path().join("into"));
    fs::write(&file, bytes).expect("written");
    let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
    for format in [Format::Tar, Format::Zip, Format::Deb] {
        fs::create_dir(&into).expect("created");
        let _ = unpack(&file, format, &spec, &into, &CANCEL);
        fs::remove_dir_all(&into).expect("removed");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "something was written beside the tree: {left:?}");
});
