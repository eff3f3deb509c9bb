//! Everything that can go wrong while unpacking.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::paths::PathError;
use crate::archive::ar::ArError;
use crate::archive::{Exceeded, Signature};

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
    /// It asks for more than is given.
    #[error("{} is refused", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// Which limit.
        source: Exceeded,
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
    /// What should be a tar archive is something else.
    #[error("{} is no tar archive: {what}", path.display())]
    NotTar {
        /// The file.
        path: PathBuf,
        /// What it is, once decompressed.
        what: Described,
    },
    /// What should be a zip archive is something else.
    #[error("{} is no zip archive: {what}", path.display())]
    NotZip {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: Described,
    },
    /// A zip archive that is damaged, or of a kind that isn't read.
    #[error("{} is no sound zip archive", path.display())]
    Zip {
        /// The file.
        path: PathBuf,
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
    /// A hard link to something that wasn't unpacked.
    #[error(
        "archive entry {entry:?} is a hard link to {target:?}, which was not unpacked as a file (do \
         `only` and `exclude` agree?)"
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
    /// More entries than any source has.
    #[error("unpacking {entry:?} would exceed the limit of {limit} entries")]
    TooMany {
        /// The entry that went over.
        entry: String,
        /// The limit.
        limit: u64,
    },
    /// More bytes than allowed.
    #[error(
        "unpacking {entry:?} would exceed the limit of {max_bytes} bytes, holes included (`only` and \
         `exclude` say what is unpacked)"
    )]
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
    /// The archive is empty, or `exclude` leaves nothing of it.
    #[error("{} leaves an empty tree: of its {members} entries none was unpacked", path.display())]
    Nothing {
        /// The archive.
        path: PathBuf,
        /// How many entries it has.
        members: u64,
    },
    /// `strip` leaves nothing.
    #[error(
        "strip = {strip} leaves nothing of {}: of its {members} entries none lies deeper than that \
         and is selected (is there no top directory?)",
        path.display()
    )]
    NothingLeft {
        /// The archive.
        path: PathBuf,
        /// How many entries it has.
        members: u64,
        /// How many leading components are removed.
        strip: usize,
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

/// What a file is that was to be something else, and what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described(pub(crate) Signature);

impl fmt::Display for Described {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(what) = self.0.describe() else {
            return formatter.write_str("it begins like nothing that is known");
        };
        write!(formatter, "it is {what}")?;
        match self.0 {
            Signature::Zip => formatter.write_str(", for which there is unpack = \"zip\""),
            Signature::Ar => formatter.write_str(", for which there is unpack = \"deb\""),
            Signature::Tar => formatter.write_str(", for which there is unpack = \"tar\""),
            Signature::Known("an HTML page") => formatter.write_str("; is it the right URL?"),
            Signature::Known(_) => formatter.write_str(
                ", which srp doesn't read: fetch another format of it, or fetch it without `unpack` \
                 and unpack it in a build",
            ),
            Signature::Elf | Signature::Unknown => Ok(()),
            // Within another compression, or where a zip archive was to be.
            _ => formatter.write_str("; tar archives that are compressed once are unpacked by unpack = \"tar\""),
        }
    }
}
