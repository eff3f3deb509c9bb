//! What the fuzz targets in `tests/fuzz` call, and nobody else: this is compiled for them alone.
//!
//! Each takes any bytes at all. That it panics, runs on and on, or takes more memory than its limits
//! allow, is a defect; that it refuses them is not.

use crate::cache::{
    Closure, Contents, Location, ObjectRecord, Pointer, Sealable, Sealed, Statement,
};
use crate::cache::{DELTA_MAGIC, Index, apply_delta, first_line};
use crate::derivation::Derivation;
use crate::digest::Digest;
use crate::encode::{Canonical, Encoder};
use crate::manifest::Manifest;
use crate::object::Object;
use crate::tree::Directory;

/// Every kind of sealed file, after its first line.
pub fn sealed(bytes: &[u8]) {
    fn file<T: Sealable>(bytes: &[u8]) {
        let bytes = [first_line::<T>().as_bytes(), bytes].concat();
        if let Ok(sealed) = Sealed::<T>::from_bytes(&bytes) {
            let again = Sealed::<T>::from_bytes(&sealed.to_bytes()).ok();
            assert_eq!(again.map(|it| it.digest()), Some(sealed.digest()));
        }
    }
    file::<Statement>(bytes);
    file::<ObjectRecord>(bytes);
    file::<Closure>(bytes);
    file::<Pointer>(bytes);
}

/// What is inside sealed files, and what they refer to: one value has one encoding.
pub fn payload(bytes: &[u8]) {
    fn value<T: Canonical>(bytes: &[u8]) {
        if let Ok(value) = T::from_canonical(bytes) {
            assert_eq!(value.to_canonical(), bytes);
        }
    }
    value::<Statement>(bytes);
    value::<ObjectRecord>(bytes);
    value::<Closure>(bytes);
    value::<Pointer>(bytes);
    value::<Contents>(bytes);
    value::<Derivation>(bytes);
    value::<Object>(bytes);
}

/// A stage's manifest.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(manifest) = text.parse::<Manifest>() {
        assert_eq!(manifest.encode().parse(), Ok(manifest));
    }
}

/// A directory's entries, and a pack's index of a tree that is this one directory.
pub fn index(bytes: &[u8]) {
    let Some((lengths, bytes)) = bytes.split_first_chunk::<4>() else { return };
    let [listing_low, pack_low, pack_high, listing_high] = lengths.map(usize::from);
    let (listing, rest) = bytes.split_at((listing_low | listing_high << 8).min(bytes.len()));
    let Ok(directory) = Directory::decode(listing) else { return };
    assert_eq!(directory.encode(), listing);
    let listing = [&(listing.len() as u64).to_le_bytes(), listing].concat();
    let mut encoder = Encoder::default();
    encoder.bytes(&listing);
    encoder.raw(rest);
    let plain = encoder.finish();
    let packed = zstd::bulk::compress(&plain, 1).expect("memory can be compressed");
    let location = Location {
        pack: Digest::of_file(&packed),
        pack_bytes: (pack_low | pack_high << 8) as u64 + packed.len() as u64,
        index_bytes: packed.len() as u64,
        index_plain_bytes: plain.len() as u64,
        index_digest: Digest::of_file(&packed),
    };
    if let Ok(index) = Index::decode(&packed, &location, &directory.digest()) {
        for file in &index.files {
            assert!(index.blocks_of(file).end <= index.blocks.len());
        }
    }
}

/// A delta, after its first bytes, of a file that is the first part of the bytes.
pub fn delta(bytes: &[u8]) {
    let Some(([old, new], bytes)) = bytes.split_first_chunk::<2>() else { return };
    let (old, delta) = bytes.split_at(usize::from(*old).min(bytes.len()));
    let mut made = Vec::new();
    let delta = [DELTA_MAGIC, delta].concat();
    if apply_delta(old, &delta, u64::from(*new), &mut made).is_ok() {
        assert_eq!(made.len(), usize::from(*new));
    }
}
