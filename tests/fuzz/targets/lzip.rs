//! lzip, LZMA and xz, behind whose magic bytes anything may stand; the first byte says which.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use srp_builder::CancelToken;
use srp_builder::unpack::{Format, UnpackSpec, unpack};

static CANCEL: LazyLock<CancelToken> = LazyLock::new(|| CancelToken::new().expect("a descriptor"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let magic: &[u8] = match kind % 3 {
        0 => b"LZIP\x01",
        1 => b"]\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0",
        _ => b"\xfd7zXZ\0",
    };
    let bytes = [magic, rest].concat();
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let directory = directory.expect("a directory");
    let (file, into) = (directory.path().join("file"), directory.path().join("into"));
    fs::write(&file, &bytes).expect("written");
    fs::create_dir(&into).expect("created");
    let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
    let _ = unpack(&file, Format::Tar, &spec, &into, &CANCEL);
    let left: Vec<_> = fs::read_dir(directory.path()).expect("listed").collect();
    assert_eq!(left.len(), 2, "something was written beside the tree: {left:?}");
});
