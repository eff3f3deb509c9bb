//! The bytes of files, on their way from one to another or into a digest.
//!
//! Foreign files are of any size, and mostly hole if their writer likes: holes are passed by
//! without being read, kept where a file is copied, and every megabyte somebody may say stop.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::tree::TREE_TIME_SECONDS;

const CHUNK: u64 = 1 << 20;
static ZEROS: [u8; CHUNK as usize] = [0; CHUNK as usize];

/// The modification time of everything in a tree.
pub(crate) const TREE_TIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: TREE_TIME_SECONDS, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: TREE_TIME_SECONDS, tv_nsec: 0 },
};

/// Hashes a file from its beginning; its digest and its length.
pub(crate) fn hash(
    file: &mut File,
    stat: &Stat,
    cancel: Option<&AtomicBool>,
) -> Result<(Digest, u64)> {
    read(file, stat, cancel, &mut |_| Ok(()))
}

/// As [`hash`]; `progress` is called with the number of bytes that were hashed since the last call.
pub(crate) fn hash_with(
    file: &mut File,
    stat: &Stat,
    cancel: Option<&AtomicBool>,
    progress: &dyn Fn(u64),
) -> Result<(Digest, u64)> {
    read(file, stat, cancel, &mut |piece| {
        progress(match piece {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Hole(length) => length,
        });
        Ok(())
    })
}

/// Copies a file to an empty one, and hashes it on the way; its digest and its length.
///
/// The copy shares its bytes with the original where the file system can.
pub(crate) fn copy(
    from: &mut File,
    stat: &Stat,
    to: &mut File,
    cancel: Option<&AtomicBool>,
) -> Result<(Digest, u64)> {
    if stat.st_size as u64 >= SHARED_BYTES && share(from, to) {
        return hash(from, stat, cancel);
    }
    let mut ends_in_hole = false;
    let copied = read(from, stat, cancel, &mut |piece| match piece {
        Piece::Data(bytes) => {
            ends_in_hole = false;
            to.write_all(bytes)
        }
        Piece::Hole(length) => {
            ends_in_hole = true;
            to.seek_relative(length as i64)
        }
    })?;
    if ends_in_hole {
        to.set_len(copied.1)?;
    }
    Ok(copied)
}

/// Below this, asking costs more than copying.
const SHARED_BYTES: u64 = 64 << 10;

/// Makes `to` share its bytes with `from`, if the file system can.
fn share(from: &File, to: &File) -> bool {
    static CANNOT: AtomicBool = AtomicBool::new(false);
    if CANNOT.load(Ordering::Relaxed) {
        return false;
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => true,
        Err(error) => {
            // Files of another file system might share; a process seldom has to do with two.
            if matches!(error, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) {
                CANNOT.store(true, Ordering::Relaxed);
            }
            false
        }
    }
}

enum Piece<'a> {
    Data(&'a [u8]),
    Hole(u64),
}

/// Reads to the end, hashing and handing on what was read.
///
/// Big files are hashed by several threads at a time; small ones, which are most, by one read.
fn read(
    file: &mut File,
    stat: &Stat,
    cancel: Option<&AtomicBool>,
    also: &mut dyn FnMut(Piece<'_>) -> Result<()>,
) -> Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut update = |bytes: &[u8]| {
        if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Error::other("it was interrupted"));
        }
        if bytes.len() >= 128 << 10 {
            hasher.update_rayon(bytes);
        } else {
            hasher.update(bytes);
        }
        Ok(())
    };
    let size_bytes = stat.st_size as u64;
    let mut buffer = vec![0; size_bytes.clamp(1, CHUNK) as usize + 1];
    let mut total = 0;
    if (stat.st_blocks as u64).saturating_mul(512) < size_bytes {
        while let Some((data, end)) = extent(file, total, size_bytes)? {
            let mut hole = data - total;
            also(Piece::Hole(hole))?;
            while hole > 0 {
                let zeros = &ZEROS[..hole.min(CHUNK) as usize];
                update(zeros)?;
                hole -= zeros.len() as u64;
            }
            file.seek(SeekFrom::Start(data))?;
            total = data;
            while total < end {
                let wanted = (end - total).min(CHUNK) as usize;
                let count = file.read(&mut buffer[..wanted])?;
                if count == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                update(&buffer[..count])?;
                also(Piece::Data(&buffer[..count]))?;
                total += count as u64;
            }
        }
    }
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((Digest::from_bytes(*hasher.finalize().as_bytes()), total));
        }
        update(&buffer[..count])?;
        also(Piece::Data(&buffer[..count]))?;
        total += count as u64;
    }
}

/// Where the next data at or after `from` begin and end; both are the file's end after the last.
fn extent(file: &File, from: u64, size_bytes: u64) -> Result<Option<(u64, u64)>> {
    if from >= size_bytes {
        return Ok(None);
    }
    let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(data) => data,
        // There is nothing but hole.
        Err(Errno::NXIO) => return Ok(Some((size_bytes, size_bytes))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data))?;
    // It may have grown since it was looked at.
    Ok(Some((data.min(size_bytes), end.min(size_bytes))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn sparse(length: u64, data: &[(u64, &[u8])]) -> (File, Stat) {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(length).expect("made longer");
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).expect("written");
        }
        let stat = rustix::fs::fstat(&file).expect("looked at");
        (file, stat)
    }

    #[test]
    fn holes_are_hashed_as_zeros_and_copied_as_holes() {
        for (length, data) in [
            (0, &[][..]),
            (5, &[(0, &b"hello"[..])]),
            (9 << 20, &[]),
            (9 << 20, &[(0, b"start")]),
            (9 << 20, &[((9 << 20) - 3, b"end")]),
            (5 << 20, &[(1 << 20, b"middle"), ((3 << 20) + 17, b"more")]),
        ] {
            let (mut file, stat) = sparse(length, data);
            let mut plain = vec![0; length as usize];
            for (offset, bytes) in data {
                plain[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            let expected = (Digest::of_file(&plain), length);
            assert_eq!(hash(&mut file, &stat, None).expect("hashed"), expected);
            file.rewind().expect("rewound");
            let mut to = tempfile::tempfile().expect("a file");
            assert_eq!(copy(&mut file, &stat, &mut to, None).expect("copied"), expected);
            let mut copied = Vec::new();
            to.rewind().expect("rewound");
            to.read_to_end(&mut copied).expect("read");
            assert!(copied == plain, "{length} {data:?}");
            let blocks = to.metadata().expect("looked at").blocks();
            assert!(blocks <= stat.st_blocks as u64 + 16, "{blocks} of {}", stat.st_blocks);
        }
    }

    #[test]
    fn it_ends_when_somebody_says_stop() {
        let (mut file, stat) = sparse(1 << 42, &[]);
        let cancel = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                cancel.store(true, Ordering::Relaxed);
            });
            let error = hash(&mut file, &stat, Some(&cancel)).expect_err("a day's work");
            assert_eq!(error.to_string(), "it was interrupted");
        });
    }
}
