//! A directory's digest as Go's modules have it, which in-toto knows: what somebody without srp can
//! compute of a tree.
//!
//! SHA-256 over the lines that `sha256sum` prints of all files, sorted by path. Symlinks and
//! executable bits are not in it; the tree's own digest has them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use srp_store::{Entry, Listing, StoreError};

/// The digest in hexadecimal; none if a name can't be in such a line.
pub(super) fn digest(listing: &Listing, tree: &Path) -> Result<Option<String>, StoreError> {
    let mut paths = Vec::new();
    listing.walk(&mut |path, entry| {
        if matches!(entry, Entry::File { .. }) {
            paths.push(path.to_vec());
        }
    });
    // A walk goes by names, which is another order: `a/b` comes before `a.b` there.
    paths.sort();
    if paths.iter().any(|path| path.contains(&b'\n') || path.contains(&b'\\')) {
        return Ok(None);
    }
    let lines = paths.par_iter().map(|path| {
        let file = tree.join(OsStr::from_bytes(path));
        let hash = of_file(&file).map_err(|source| StoreError::Io {
            action: "read",
            path: file,
            source,
        })?;
        let mut line = hexadecimal(hash).into_bytes();
        line.extend_from_slice(b"  ");
        line.extend_from_slice(path);
        line.push(b'\n');
        Ok(line)
    });
    let lines = lines.collect::<Result<Vec<Vec<u8>>, StoreError>>()?;
    let mut hash = Sha256::new();
    lines.iter().for_each(|line| hash.update(line));
    Ok(Some(hexadecimal(hash)))
}

fn of_file(path: &Path) -> std::io::Result<Sha256> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
