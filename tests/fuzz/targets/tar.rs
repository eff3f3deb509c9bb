//! Tar headers: the checksum of each block is set right, so that damage gets past it.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use srp_builder::CancelToken;
use srp_builder::unpack::{Format, UnpackSpec, unpack};

static CANCEL: LazyLock<CancelToken> = LazyLock::new(|| CancelToken::new().expect("a descriptor"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| block[0] != 0) {
        // Only of what looks like a header: contents stay as they are.
        if block[148..156].iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ' | 0)) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
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
