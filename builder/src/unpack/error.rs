//! Everything that can go wrong while unpacking.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::ar::ArError;
use super::paths::PathError;

/// Why a file could not be unpacked. Entries are named as the archive names them.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The file itself can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The compressed data is damaged or ends early.
    #[error("{} is damaged: its {compression} data cannot be decompressed", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        compression: &'static str,
        /// What the decompressor said.
        source: io::Error,
    },
    /// What should be a tar archive isn't, or ends early.
    #[error("{} is no sound tar archive ({entries} entries were read)", path.display())]
    Tar {
        /// The file.
        path: PathBuf,
        /// How many entries were fine.
        entries: u64,
        /// What was wrong.
        source: io::Error,
    },
    /// What should be a `.deb` isn't.
    #[error("{} is no sound Debian package", path.display())]
    Ar {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        source: ArError,
    },
    /// An entry's path, or the target of its link, can't be taken.
    #[error("the path of archive entry {entry:?} is refused")]
    Path {
        /// The entry.
        entry: String,
        /// Why.
        source: PathError,
    },
    /// A device, fifo, or something that tar knows and trees don't.
    #[error("archive entry {entry:?} is a {kind}, which a tree cannot hold")]
    Kind {
        /// The entry.
        entry: String,
        /// What it is.
        kind: &'static str,
    },
    /// An entry whose extended headers can't be understood.
    #[error("the extended header of archive entry {entry:?} is malformed")]
    ExtendedHeader {
        /// The entry.
        entry: String,
    },
    /// A hard link to something that wasn't unpacked before it.
    #[error(
        "archive entry {entry:?} is a hard link to {target:?}, which was not unpacked before it as a \
         file (do `only` and `exclude` agree?)"
    )]
    HardLink {
        /// The entry.
        entry: String,
        /// Its target, as the archive names it.
        target: String,
    },
    /// An entry would be written through a symlink or a file that the archive made.
    #[error("archive entry {entry:?} lies below {obstacle:?}, which is not a directory")]
    Through {
        /// The entry, or its place in the tree.
        entry: String,
        /// The path of the link or file.
        obstacle: String,
    },
    /// A file or link in place of a directory that is there.
    #[error("archive entry {entry:?} would replace a directory")]
    ReplacesDirectory {
        /// The entry's place in the tree.
        entry: String,
    },
    /// A top-level link of a package that cannot be merged into `/usr`.
    #[error("package entry {entry:?} links to {target:?}, where a merged /usr has no place for it")]
    Unmergeable {
        /// The entry.
        entry: String,
        /// Where it points.
        target: String,
    },
    /// More bytes than allowed.
    #[error("unpacking {entry:?} would exceed the limit of {max_bytes} bytes")]
    TooLarge {
        /// The entry that went over.
        entry: String,
        /// The limit.
        max_bytes: u64,
    },
    /// Writing failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `only` names what the archive doesn't have.
    #[error("{} holds nothing at {patterns:?}, which `only` asks for", path.display())]
    NothingSelected {
        /// The archive.
        path: PathBuf,
        /// The patterns that nothing matched.
        patterns: Vec<String>,
    },
    /// A file without a name that could be used.
    #[error("{} has no name for the tree", path.display())]
    NoName {
        /// The file.
        path: PathBuf,
    },
    /// The caller cancelled.
    #[error("unpacking was cancelled")]
    Cancelled,
}
