//! Replacing a tree by a sound one, while others may be using it.
//!
//! A tree that is damaged is never changed: a running build or shell may have it mounted. A fresh
//! one takes its place by one rename, and the old one goes to `replaced/<random>/tree`, where it
//! lies as long as any process lives that was at work in the store then; their sessions are named
//! in `replaced/<random>/sessions`, one a line. If there is none the old tree is removed at once.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::lock;
use crate::store::Store;

const DIRECTORY: &str = "replaced";

impl Store {
    /// Renames the directory at `staged` to `place`, instead of what is there; on one file system.
    pub(crate) fn replace(&self, staged: &Path, place: &Path) -> Result<(), StoreError> {
        self.check_writable()?;
        let (own, read_only) =
            (fs::Permissions::from_mode(0o755), fs::Permissions::from_mode(0o555));
        match fs::symlink_metadata(place) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::rename(staged, place).at("rename", staged)?;
                return fs::set_permissions(place, read_only).at("change", place);
            }
            // A user may not move a read-only directory to another parent.
            Ok(found) if found.is_dir() => {
                fs::set_permissions(place, own).at("change", place)?;
            }
            Ok(_) => {}
            Err(error) => return Err(error).at("read", place),
        }
        match rustix::fs::renameat_with(CWD, staged, CWD, place, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // The file system can't exchange names: for a moment there is none.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let aside = staged.with_extension("aside");
                fs::rename(place, &aside).at("rename", place)?;
                fs::rename(staged, place).at("rename", staged)?;
                fs::rename(&aside, staged).at("rename", &aside)?;
            }
            Err(error) => return Err(error).at("rename", staged),
        }
        fs::set_permissions(place, read_only).at("change", place)?;
        self.discard(staged)
    }

    /// Removes what others may be using, once they are done. It lies on the store's file system.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        let sessions = self.other_sessions()?;
        if sessions.is_empty() {
            return files::remove_tree(path);
        }
        let name = files::temporary_name();
        let place = self.directory(DIRECTORY).join(name.trim_start_matches('.'));
        fs::create_dir_all(&place).at("create", &place)?;
        let text: String = sessions.iter().map(|name| format!("{name}\n")).collect();
        self.write(&place.join("sessions"), text.as_bytes(), 0o644)?;
        let tree = place.join("tree");
        fs::rename(path, &tree).at("rename", path)
    }

    /// Removes replaced trees that nobody uses any more.
    pub(crate) fn sweep_replaced(&self) -> Result<(), StoreError> {
        for path in self.unused_replaced()? {
            files::remove_tree(&path)?;
        }
        Ok(())
    }

    /// Replaced trees that nobody uses any more.
    pub(crate) fn unused_replaced(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut unused = Vec::new();
        for path in files::entries(&self.directory(DIRECTORY))? {
            let Some(bytes) = files::read_if_exists(&path.join("sessions"))? else {
                // Whoever makes one says so before the tree is in it.
                if self.other_sessions()?.is_empty() {
                    unused.push(path);
                }
                continue;
            };
            let text = String::from_utf8_lossy(&bytes);
            let tmp = self.directory("tmp");
            if !text.lines().any(|name| lock::is_held(&tmp.join(format!("{name}.lock")))) {
                unused.push(path);
            }
        }
        Ok(unused)
    }

    /// The sessions of other processes that write to the store, by name.
    pub(crate) fn other_sessions(&self) -> Result<Vec<String>, StoreError> {
        let own = self.session.lock().expect("no holder panics").clone();
        let mut names = Vec::new();
        for path in files::entries(&self.directory("tmp"))? {
            let is_lock = path.extension().is_some_and(|it| it == "lock");
            let is_own = own.as_ref().is_some_and(|session| session.lock == path);
            if is_lock && !is_own && lock::is_held(&path) {
                names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
            }
        }
        names.sort();
        Ok(names)
    }
}
