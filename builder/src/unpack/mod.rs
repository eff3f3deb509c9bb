//! In-process unpackers: a fetched file becomes a tree that the store can take in.
//!
//! The bytes are foreign, so archives are read defensively (`archive`): nothing leaves the
//! destination, nothing is written through a link, every length is bounded, and what cannot be
//! represented (devices) is refused by name instead of left out. No program is run; the maintainer
//! scripts of `.deb`s aren't even read.
//!
//! Deliberately not here: fetching and hashing of the file, and the store's normalisation (modes,
//! times, absolute symlinks). What unpacks to what is fixed by [`srp_store::revision::UNPACKER`].

mod decompress;
mod error;
mod members;
mod paths;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::archive::ar;
use crate::fetch::CancelToken;
use members::Unpacker;

pub use crate::archive::Exceeded;
pub use crate::archive::ar::ArError;
pub use error::{Described, UnpackError};
pub use paths::PathError;

/// What kind of file is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Nothing is unpacked: the tree holds the file itself.
    File,
    /// A tar archive, plain or compressed by gzip, bzip2, xz, lzip, LZMA or zstd (recognised by its
    /// first bytes).
    Tar,
    /// A zip archive.
    Zip,
    /// A Debian binary package. Its top-level `bin`, `sbin`, `lib`, `lib32`, `lib64` and `libx32` move
    /// below `usr`, after `strip` and before `only`; links at the top level to those places are left out.
    Deb,
}

/// Which of an archive's entries are unpacked, and where to. The steps apply in the fields' order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnpackSpec {
    /// How many leading path components are removed. Entries with no more than that are left out.
    pub strip: u32,
    /// If not empty: only what lies at or below one of these paths. A component may hold `*`, which
    /// stands for any characters within that component.
    pub only: Vec<String>,
    /// Nothing that lies at or below one of these paths, written likewise.
    pub exclude: Vec<String>,
    /// Paths (whole components, no `*`) that are replaced by others, with all that lies below; of
    /// several, the longest.
    pub rename: BTreeMap<String, String>,
    /// The name of the file for [`Format::File`]. By default the file's own, without the `<sha256>-`
    /// that it has in a sources directory.
    pub file_name: Option<String>,
    /// More than this many bytes in all are refused, before the disk is full; 64 GiB if nothing is said.
    /// Holes of sparse files count as if they weren't.
    pub max_bytes: Option<u64>,
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files and symbolic links.
    pub files: u64,
    /// Bytes in regular files.
    pub bytes: u64,
    /// What had special permissions, which weren't applied, by path.
    pub special: Vec<Special>,
}

/// An entry whose permissions say more than "executable": set-uid, set-gid or sticky; in a `.deb` also
/// one with an owner or group other than root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Special {
    /// The path in the tree.
    pub path: PathBuf,
    /// The permission bits, at most `0o7777`.
    pub mode: u32,
    /// The owner's number.
    pub uid: u64,
    /// The group's number.
    pub gid: u64,
}

/// Unpacks `file` into the existing, empty directory `into`.
///
/// Regular files get mode 0755 or 0644, directories 0755; times and owners are those of writing. Of
/// two entries with one path the last wins. After an error the directory holds an unspecified part.
pub fn unpack(
    file: &Path,
    format: Format,
    spec: &UnpackSpec,
    into: &Path,
    cancel: &CancelToken,
) -> Result<Unpacked, UnpackError> {
    let source = srp_store::open_plain(file)
        .map_err(|source| UnpackError::Read { path: file.to_owned(), source })?;
    match format {
        Format::File => copy_file(file, source, spec, into, cancel),
        Format::Tar | Format::Zip | Format::Deb => {
            let mut unpacker = Unpacker::new(spec, format, into, cancel)?;
            let read = |source| UnpackError::Read { path: file.to_owned(), source };
            match format {
                Format::Zip => zip::unpack(file, source, &mut unpacker, cancel)?,
                Format::Deb => {
                    let mut source = source;
                    let failure = |source| UnpackError::Ar { path: file.to_owned(), source };
                    let size = ar::find_data(&mut source).map_err(failure)?;
                    tar::unpack(file, source.take(size), size, &mut unpacker, cancel)?;
                }
                _ => {
                    let size = source.metadata().map_err(read)?.len();
                    tar::unpack(file, source, size, &mut unpacker, cancel)?;
                }
            }
            unpacker.finish(file)
        }
    }
}

fn copy_file(
    file: &Path,
    mut source: File,
    spec: &UnpackSpec,
    into: &Path,
    cancel: &CancelToken,
) -> Result<Unpacked, UnpackError> {
    let name = match &spec.file_name {
        Some(name) => name.clone(),
        None => own_name(file).ok_or(UnpackError::NoName { path: file.to_owned() })?,
    };
    let path = paths::clean(name.as_bytes())
        .map_err(|source| UnpackError::Path { entry: name.clone(), source })?;
    if path.is_empty() {
        return Err(UnpackError::NoName { path: file.to_owned() });
    }
    let mut writer = tree::TreeWriter::new(into)?;
    let bytes = writer.file(&path, false, &mut source, spec.max_bytes, cancel).map_err(
        |error| match error {
            tree::WriteError::Read(source) => UnpackError::Read { path: file.to_owned(), source },
            tree::WriteError::Tree(error) => error,
        },
    )?;
    Ok(Unpacked { files: 1, bytes, special: Vec::new() })
}

/// A file's name without the digest in front.
fn own_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let rest = match name.split_at_checked(64) {
        Some((digest, rest)) if digest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            rest.strip_prefix('-').unwrap_or(name)
        }
        _ => name,
    };
    Some(rest.to_owned())
}
