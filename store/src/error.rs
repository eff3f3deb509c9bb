//! What can go wrong with a store on disk. Each error names the path it is about.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, ObjectId};
use crate::object::ObjectName;
use crate::verification::DamageKind;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `rename` …
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is no store, and something else is in it.
    #[error("{} is not a store: it has no file `meta` and is not empty", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// There is no store.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The store's format is newer than this program, or damaged.
    #[error("the store {} has {found}, and this srp knows format {known} without features", path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// What its `meta` says.
        found: String,
        /// What this program knows.
        known: u32,
    },
    /// The store belongs to another user.
    #[error("the store {} belongs to user {owner}, and you are user {user}: it can be read, not changed", path.display())]
    Owner {
        /// The store.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The caller's uid.
        user: u32,
    },
    /// The store was opened for reading only.
    #[error("the store {} can only be read", path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// A record or listing is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        reason: String,
    },
    /// An object is not in the store.
    #[error("the object {id} is not in the store {}", path.display())]
    NoObject {
        /// The object.
        id: ObjectId,
        /// The store.
        path: PathBuf,
    },
    /// A tree holds something that no object can hold.
    #[error("{file} is {what}, which no store object can hold")]
    FileType {
        /// The path in the tree.
        file: String,
        /// What it is: `a device`, `a socket` …
        what: &'static str,
    },
    /// A file has mode bits that must be declared.
    #[error(
        "{file} has mode {mode:04o}: set-uid, set-gid and sticky bits must be declared in `permissions`"
    )]
    Mode {
        /// The path in the tree.
        file: String,
        /// Its twelve mode bits.
        mode: u32,
    },
    /// A permission was declared for what isn't there.
    #[error("`permissions` names {file}, which the output does not have")]
    NoSuchFile {
        /// The path as declared.
        file: String,
    },
    /// A path in a tree is longer than programs can open.
    #[error("{file}… is longer than the {limit} bytes that a path may have")]
    TooLong {
        /// The path's beginning.
        file: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// Directories lie in one another more deeply than whatever walks trees can bear.
    #[error("{file}… lies more than {limit} directories deep, and no tree may")]
    TooDeep {
        /// The path's beginning.
        file: String,
        /// How many directories may lie in one another.
        limit: usize,
    },
    /// A tree's files are larger than they may be, holes counted.
    #[error(
        "with {file}, which is {size_bytes} bytes long, its files have more than the {limit} bytes \
         that they may have (output_mib of the configuration; holes count)"
    )]
    TooLarge {
        /// The path in the tree.
        file: String,
        /// The file's length.
        size_bytes: u64,
        /// The limit for all files of the tree together.
        limit: u64,
    },
    /// A tree has more entries than it may have.
    #[error(
        "it has more than the {limit} files, directories and links that it may have \
         (output_entries of the configuration)"
    )]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// What has to be a directory is none.
    #[error("{} is {what} and must be a directory", path.display())]
    NotADirectory {
        /// Its path.
        path: PathBuf,
        /// What it is: `a symbolic link`, `a file`, `missing` …
        what: &'static str,
    },
    /// It was to end before it was through.
    #[error("interrupted")]
    Cancelled,
    /// An object that is no stage holds something at `/srp`.
    #[error(
        "{object} holds something at /srp, which is srp's own: only a stage's manifest lies there"
    )]
    Reserved {
        /// The object.
        object: ObjectName,
    },
    /// A manifest names what the stage doesn't refer to: it would compose what isn't its own.
    #[error("{object} is no stage: its manifest names {component}, which it does not refer to")]
    NotAStage {
        /// The object.
        object: ObjectName,
        /// What the manifest names.
        component: ObjectName,
    },
    /// Two objects provide different things at one path.
    #[error("{}", .0)]
    Conflict(Box<Conflict>),
    /// A tree is not what its digest says.
    #[error("{} is not what its digest {expected} says: it is {found}", path.display())]
    Corrupt {
        /// The tree or file.
        path: PathBuf,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Something in a tree is not what its listing says, or not there.
    #[error("{} is damaged: {kind}", path.display())]
    Unsound {
        /// The tree; none if it is a composed one, which nothing refers to.
        tree: Option<Digest>,
        /// The file, or the tree itself.
        path: PathBuf,
        /// In what way.
        kind: Box<DamageKind>,
    },
    /// The directory to write to is in use.
    #[error("{} exists and is not an empty directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A root's name can't be a path below `roots/`.
    #[error("{name:?} can't be the name of a root: use the characters A-Z a-z 0-9 + - . _")]
    RootName {
        /// The name.
        name: String,
    },
}

impl StoreError {
    /// Whether it says that something in the store isn't what it should be.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            StoreError::Damaged { .. } | StoreError::Corrupt { .. } | StoreError::Unsound { .. }
        )
    }

    /// Whether something was not there: no error where others may remove it at the same time.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Two objects that provide different things at one path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/{path} is {} in {first} and {} in {second}", .kinds.0, .kinds.1)]
pub struct Conflict {
    /// The path in the composed root, without leading slash.
    pub path: String,
    /// One object.
    pub first: ObjectName,
    /// The other.
    pub second: ObjectName,
    /// What the path is in each, in words.
    pub kinds: (String, String),
}

/// Adds what was tried on which path to an [`io::Error`].
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { action, path: path.to_owned(), source: error.into() })
    }
}
