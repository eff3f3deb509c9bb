//! Readers of archives: what a file is by its first bytes, compressed streams, tar, zip and ar.
//!
//! Unpacking and the search of outputs read through these, so that a format has one reader and one set
//! of bounds. They turn bytes into [`Member`]s and contents; where a member goes, and whether it may go
//! there, is for whoever asks. Nothing here touches a file system, and no length that a file states is
//! believed: memory, bytes and time come out of a [`Budget`].

pub(crate) mod ar;
mod budget;
mod signature;
pub(crate) mod streams;
pub(crate) mod tar;
pub(crate) mod zip;

pub use budget::Exceeded;
pub(crate) use budget::{Budget, LargeFiles, Watched};
pub(crate) use signature::Signature;

/// One thing that an archive holds, as its headers describe it. Names are the archive's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits; at most `0o7777`.
    pub(crate) mode: u32,
    /// The owner's number, 0 where the archive has none that can be read.
    pub(crate) uid: u64,
    /// The group's number, likewise.
    pub(crate) gid: u64,
    /// How long the content is once it is written, holes included.
    pub(crate) size_bytes: u64,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file. The content that is read is all of it.
    File,
    /// A regular file with holes: what is read are the pieces, in their order.
    Sparse(Vec<Extent>),
    Directory,
    /// A symbolic link and its text.
    Symlink(Vec<u8>),
    /// A symbolic link whose text is the content.
    SymlinkInContent,
    /// Another name of the member that is called so.
    HardLink(Vec<u8>),
    /// What neither a tree nor a reader of source archives has a use for, in words.
    Other(&'static str),
}

/// A piece of a sparse file that isn't a hole. Pieces are in order and don't overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}
