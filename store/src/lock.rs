//! Locks between processes, and scratch directories and staged files that outlive no process.
//!
//! All rest on what the kernel gives up when a process dies, so nothing here needs cleaning up
//! after a crash but the scratch directories themselves.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;
use tempfile::TempPath;

use crate::digest::ResolvedHash;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::staged;
use crate::store::Store;

/// A derivation that nobody else realises while this is held.
///
/// It is a lock on one byte of a file that has no bytes: its place says which derivation, so
/// nothing is made or removed for a lock. It belongs to the open file (not to the process, as
/// ordinary byte locks do), so threads exclude each other, too.
#[derive(Debug)]
pub struct Lock {
    _held: File,
}

/// A directory for one build or transfer, emptied when dropped, and used again by this process.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    session: Arc<Session>,
}

/// What one process's scratch directories and staged files lie in. It is removed when the store is closed, or by
/// the next process that has work to do if this one is killed.
#[derive(Debug)]
pub(crate) struct Session {
    path: PathBuf,
    pub(crate) lock: PathBuf,
    _held: Flock<File>,
    /// Scratch directories that are empty again, and how many were ever made. No build sees these
    /// directories themselves, only ones that are made in them for it alone.
    idle: Mutex<(Vec<PathBuf>, u64)>,
    /// How many files were ever staged, or trees moved aside.
    files: AtomicU64,
}

impl Store {
    /// Keeps others from realising this derivation; `None` if somebody is at it.
    pub fn lock(&self, resolved: &ResolvedHash) -> Result<Option<Lock>, StoreError> {
        self.check_writable()?;
        let path = self.directory("locks").join("resolved");
        let file = lock_file(&path)?;
        let byte = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: place_of(resolved),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => Ok(Some(Lock { _held: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error).at("lock", &path),
        }
    }

    /// A new, empty directory on the store's file system.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        let session = self.session()?;
        let path = session.directory()?;
        Ok(Scratch { path, session })
    }

    /// A path at which nothing is, for what is to go when this process closes the store.
    pub(crate) fn aside(&self) -> Result<PathBuf, StoreError> {
        let session = self.session()?;
        let number = session.files.fetch_add(1, Ordering::Relaxed);
        Ok(session.path.join(format!("aside-{number}")))
    }

    /// Writes a new file to the store's file system, which [`files::place`] then moves.
    pub(crate) fn stage(&self, bytes: &[u8], mode: u32) -> Result<TempPath, StoreError> {
        self.session()?.file(|path| {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
        })
    }

    /// Writes a file of the store whole or not at all. Not synced: the next commit does it.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let staged = self.stage(bytes, mode)?;
        if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
            fs::create_dir_all(directory).at("create", directory)?;
        }
        files::place(staged, path)
    }

    /// Makes a symlink whole or not at all, instead of what is there.
    pub(crate) fn link(&self, path: &Path, target: &Path) -> Result<(), StoreError> {
        match symlink(target, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.at("create", path),
        }
        if fs::read_link(path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        files::place(self.session()?.file(|staged| symlink(target, staged))?, path)
    }

    /// What this process has in `tmp/`; made when it is first needed.
    pub(crate) fn session(&self) -> Result<Arc<Session>, StoreError> {
        self.check_writable()?;
        let mut session = self.session.lock().expect("no holder panics");
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        Ok(Arc::clone(session.insert(Arc::new(Session::begin(&self.directory("tmp"))?))))
    }

    /// Removes what killed processes left: scratch directories, staged files, evidence of what was
    /// never registered, and transfers that nobody took up.
    ///
    /// Whether a process lives is said by the locks that it holds, which are seen from every
    /// container; its number is not.
    pub fn sweep(&self) -> Result<(), StoreError> {
        self.check_writable()?;
        self.sweep_sessions()?;
        // The evaluator doesn't know the store's sessions, and `meta` is older than any.
        for directory in [self.directory("eval"), self.root().to_owned()] {
            staged::sweep(&directory).at("list", &directory)?;
        }
        self.sweep_replaced()?;
        self.sweep_evidence()?;
        self.sweep_partial()
    }

    /// Removes the scratch directories and staged files of killed processes.
    pub(crate) fn sweep_sessions(&self) -> Result<(), StoreError> {
        for path in files::entries(&self.directory("tmp"))? {
            // Whoever holds the lock of a directory is alive. A lock without a directory is of one
            // who died between the two, or of one who is about to make it.
            let session = path.with_extension("");
            if let Some((_held, lock)) = hold(&session)? {
                files::remove_tree(&session)?;
                remove_lock(&lock);
            }
        }
        Ok(())
    }
}

/// The byte that stands for a derivation: the first 63 bits of its hash. Should two ever share
/// it, one waits for the other without need.
fn place_of(resolved: &ResolvedHash) -> i64 {
    let first = resolved.as_bytes().first_chunk().expect("a hash has 32 bytes");
    (u64::from_be_bytes(*first) >> 1) as i64
}

impl Scratch {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match files::empty_tree(&self.path) {
            Ok(()) => self.session.give_back(std::mem::take(&mut self.path)),
            // It goes with the session, or with the next one's sweep.
            Err(error) => tracing::warn!(%error, "a scratch directory can't be emptied"),
        }
    }
}

impl Session {
    fn begin(tmp: &Path) -> Result<Session, StoreError> {
        if !tmp.is_dir() {
            fs::create_dir_all(tmp).at("create", tmp)?;
        }
        loop {
            let path = tmp.join(files::temporary_name().trim_start_matches('.'));
            let Some((held, lock)) = hold(&path)? else { continue };
            DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
            let (idle, files) = (Mutex::default(), AtomicU64::default());
            return Ok(Session { path, lock, _held: held, idle, files });
        }
    }

    /// A file of a name of its own, made by `make`. It is removed if that fails.
    fn file(
        &self,
        make: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<TempPath, StoreError> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("file-{number}"));
        make(&path).inspect_err(|_| drop(fs::remove_file(&path))).at("write", &path)?;
        TempPath::try_from_path(&path).at("write", &path)
    }

    fn directory(&self) -> Result<PathBuf, StoreError> {
        let mut idle = self.idle.lock().expect("no holder panics");
        if let Some(path) = idle.0.pop() {
            return Ok(path);
        }
        let path = self.path.join(idle.1.to_string());
        idle.1 += 1;
        DirBuilder::new().mode(0o700).create(&path).at("create", &path)?;
        Ok(path)
    }

    /// Its name in `tmp/`.
    pub(crate) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Where this process says what it relies on.
    pub(crate) fn relied(&self) -> PathBuf {
        self.path.join("relied")
    }

    fn give_back(&self, path: PathBuf) {
        self.idle.lock().expect("no holder panics").0.push(path);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        match files::remove_tree(&self.path) {
            Ok(()) => remove_lock(&self.lock),
            Err(error) => tracing::warn!(%error, "scratch directories stay behind"),
        }
    }
}

/// Opens a file that is only there to be locked.
fn lock_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).open(path).at("open", path)
}

/// Locks the file beside a session's directory and returns its path; `None` if its process lives.
fn hold(session: &Path) -> Result<Option<(Flock<File>, PathBuf)>, StoreError> {
    let path = session.with_extension("lock");
    Ok(hold_file(&path)?.map(|held| (held, path)))
}

/// Whether the process lives that has this session.
pub(crate) fn is_alive(session: &Path) -> Result<bool, StoreError> {
    let path = session.with_extension("lock");
    // Not made if there is none: whoever lives has made it before anything else.
    let file = match OpenOptions::new().read(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file.at("open", &path)?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error).at("lock", &path),
    }
}

/// Makes a file and locks it; `None` if somebody else has it locked.
pub(crate) fn hold_file(path: &Path) -> Result<Option<Flock<File>>, StoreError> {
    loop {
        let file = lock_file(path)?;
        let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error).at("lock", path),
        };
        // The last holder may have removed the file between opening and locking.
        let ours = held.metadata().at("read", path)?;
        if fs::metadata(path).is_ok_and(|current| current.ino() == ours.ino()) {
            return Ok(Some(held));
        }
    }
}

/// Whether somebody has a file locked. One that can't be asked about is somebody's.
pub(crate) fn is_held(path: &Path) -> bool {
    match files::open_plain(path) {
        Ok(file) => matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Removes a lock's file while the lock is held: whoever waits for it then finds that it is no
/// longer the one in the directory.
pub(crate) fn remove_lock(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a lock's file stays behind");
    }
}
