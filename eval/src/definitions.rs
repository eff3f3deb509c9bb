//! The definitions directory: the only thing that evaluation reads.
//!
//! Files are named by [`DefinitionPath`] (`//lib/make.star`), wherever the directory lies. The
//! kernel is asked to resolve them beneath the directory, so that no `..` and no symlink leads out
//! of it. Parsing and loading are not done here.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use srp_store::Digest;

/// A directory of definitions: `main.star` and what it loads.
#[derive(Clone)]
pub struct Definitions {
    root: PathBuf,
    directory: Arc<File>,
    print: Sink,
    step: Sink,
    position: Option<Sink>,
}

/// Where texts about an evaluation go.
type Sink = Arc<dyn Fn(&str) + Send + Sync>;

/// The name of a file in a definitions directory: `//lib/make.star`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DefinitionPath(String);

/// What can go wrong between a definition's name and its bytes.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// There is no such directory, or it can't be opened.
    #[error("can't open the definitions directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Text that names no file of a definitions directory.
    #[error(
        "{path:?} is not a definition's path: \"//\" and the path from the definitions directory, without \"..\""
    )]
    Path {
        /// The text.
        path: String,
    },
    /// The file doesn't exist.
    #[error("there is no {path} in the definitions")]
    Missing {
        /// The file.
        path: DefinitionPath,
    },
    /// The path leads out of the directory by a symbolic link.
    #[error("{path} leads out of the definitions directory by a symbolic link")]
    Escape {
        /// The file.
        path: DefinitionPath,
    },
    /// It's a directory, a device or the like.
    #[error("{path} is not a plain file")]
    NotAFile {
        /// The file.
        path: DefinitionPath,
    },
    /// The file is larger than any definition should be.
    #[error("{path} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The file.
        path: DefinitionPath,
        /// The most that is read.
        limit_bytes: u64,
    },
    /// The files together are larger than any definitions should be.
    #[error("the evaluation reads more than {} MiB of files", limit_bytes >> 20)]
    TooMuch {
        /// The most that is read.
        limit_bytes: u64,
    },
    /// The file's bytes are not text.
    #[error("{path} is not UTF-8")]
    NotUtf8 {
        /// The file.
        path: DefinitionPath,
    },
    /// The file can't be read.
    #[error("can't read {path}")]
    Read {
        /// The file.
        path: DefinitionPath,
        /// Why.
        source: io::Error,
    },
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Of the content.
    pub(crate) digest: Digest,
    /// What `stat` said, if the same answer later proves the same content.
    pub(crate) stat: Option<Stat>,
}

/// What `stat` says of a file and what changes whenever its content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size_bytes: u64,
    pub(crate) modified_ns: i128,
    pub(crate) changed_ns: i128,
}

impl Definitions {
    /// The definitions in `root`.
    pub fn open(root: &Path) -> Result<Definitions, DefinitionsError> {
        let opened = File::open(root).and_then(|directory| {
            if directory.metadata()?.is_dir() {
                Ok(directory)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        let directory = opened
            .map_err(|source| DefinitionsError::Directory { path: root.to_owned(), source })?;
        Ok(Definitions { root: root.to_owned(), ..Definitions::of_directory(directory) })
    }

    /// The definitions in an open directory, wherever it is.
    pub(crate) fn of_directory(directory: File) -> Definitions {
        Definitions {
            root: PathBuf::new(),
            directory: Arc::new(directory),
            print: Arc::new(|text| tracing::info!("{text}")),
            step: Arc::new(|_| ()),
            position: None,
        }
    }

    /// Another descriptor of the directory.
    pub(crate) fn directory(&self) -> io::Result<File> {
        self.directory.try_clone()
    }

    /// The same definitions, whose `print()` goes to `sink`, line by line without the newline.
    pub fn on_print(mut self, sink: impl Fn(&str) + Send + Sync + 'static) -> Definitions {
        self.print = Arc::new(sink);
        self
    }

    /// The same definitions; `sink` gets to know what is evaluated next.
    pub(crate) fn on_step(mut self, sink: impl Fn(&str) + Send + Sync + 'static) -> Definitions {
        self.step = Arc::new(sink);
        self
    }

    /// The same definitions; `sink` gets to know where each statement is before it is run.
    pub(crate) fn on_position(
        mut self,
        sink: impl Fn(&str) + Send + Sync + 'static,
    ) -> Definitions {
        self.position = Some(Arc::new(sink));
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Passes on what a definition prints.
    pub(crate) fn print(&self, text: &str) {
        (self.print)(text);
    }

    /// Says what is evaluated next.
    pub(crate) fn step(&self, what: &str) {
        (self.step)(what);
    }

    /// Whether somebody wants to know where each statement is.
    pub(crate) fn wants_positions(&self) -> bool {
        self.position.is_some()
    }

    /// Says where the next statement is.
    pub(crate) fn position(&self, place: &str) {
        if let Some(sink) = &self.position {
            sink(place);
        }
    }

    /// A file's bytes, no more than `limit_bytes`, and what it was like.
    pub(crate) fn read(
        &self,
        path: &DefinitionPath,
        limit_bytes: u64,
    ) -> Result<(Vec<u8>, Seen), DefinitionsError> {
        let failed = |source| DefinitionsError::Read { path: path.clone(), source };
        let file = self.open_file(path)?;
        let before = file.metadata().map_err(failed)?;
        if !before.is_file() {
            return Err(DefinitionsError::NotAFile { path: path.clone() });
        }
        if before.len() > limit_bytes {
            return Err(DefinitionsError::TooLarge { path: path.clone(), limit_bytes });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or_default());
        (&file).take(limit_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit_bytes {
            return Err(DefinitionsError::TooLarge { path: path.clone(), limit_bytes });
        }
        let before = Stat::of(&before);
        let unchanged = file.metadata().is_ok_and(|after| Stat::of(&after) == before);
        let stat = (unchanged && !before.is_racy(SystemTime::now())).then_some(before);
        let digest = Digest::of_file(&bytes);
        Ok((bytes, Seen { digest, stat }))
    }

    /// What `stat` says of a file now, if it is there at all.
    ///
    /// Unlike [`Definitions::read`] this follows any symlink: it only serves to recognise the very
    /// inode that was once read from within the directory.
    pub(crate) fn stat(&self, path: &DefinitionPath) -> Option<Stat> {
        std::fs::metadata(self.root.join(path.relative())).ok().map(|it| Stat::of(&it))
    }

    fn open_file(&self, path: &DefinitionPath) -> Result<File, DefinitionsError> {
        let how = OpenHow::new()
            // Not blocking: a FIFO is opened at once, and then refused.
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&*self.directory, path.relative(), how).map(File::from).map_err(|errno| match errno
        {
            nix::Error::ENOENT | nix::Error::ENOTDIR => {
                DefinitionsError::Missing { path: path.clone() }
            }
            // A socket.
            nix::Error::ENXIO => DefinitionsError::NotAFile { path: path.clone() },
            nix::Error::EXDEV => DefinitionsError::Escape { path: path.clone() },
            errno => DefinitionsError::Read { path: path.clone(), source: errno.into() },
        })
    }
}

impl fmt::Debug for Definitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definitions").field("root", &self.root).finish_non_exhaustive()
    }
}

impl DefinitionPath {
    /// The file that evaluation begins with.
    pub fn main() -> DefinitionPath {
        DefinitionPath("//main.star".to_owned())
    }

    /// The whole text, with the slashes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path from the definitions directory.
    pub fn relative(&self) -> &str {
        &self.0[2..]
    }
}

impl FromStr for DefinitionPath {
    type Err = DefinitionsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let component = |part: &str| {
            !matches!(part, "" | "." | "..") && !part.contains(['\0', '\\', '\n', ':'])
        };
        match text.strip_prefix("//") {
            Some(relative) if relative.split('/').all(component) => {
                Ok(DefinitionPath(text.to_owned()))
            }
            _ => Err(DefinitionsError::Path { path: text.to_owned() }),
        }
    }
}

impl fmt::Display for DefinitionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DefinitionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Stat {
    /// How coarse a file system's clock may be: a file changed twice within one of its ticks has
    /// the same times both times.
    const RACY_WINDOW: Duration = Duration::from_secs(2);

    fn of(metadata: &Metadata) -> Stat {
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Stat {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the file was touched so shortly before `now` (or after it) that it could change
    /// without a change of its times: the "racy" entries of git's index.
    fn is_racy(&self, now: SystemTime) -> bool {
        let Some(settled) = now.checked_sub(Self::RACY_WINDOW) else { return true };
        let Ok(settled) = settled.duration_since(UNIX_EPOCH) else { return true };
        let settled = i128::try_from(settled.as_nanos()).unwrap_or_default();
        self.modified_ns >= settled || self.changed_ns >= settled
    }
}
