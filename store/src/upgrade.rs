//! Making a store of an earlier format one of this program's.
//!
//! Each step can be done again, so that one which was interrupted is finished by the next srp: what
//! says that it is done, the number in `meta`, is written last.
//!
//! - 1 to 2: every file, directory and link of a tree has the modification time
//!   [`TREE_TIME_SECONDS`]; it was 1. What a build sees must not depend on how old a store is.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use rayon::prelude::*;

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::store::{FORMAT, check_format, write_meta};
use crate::tree::TREE_TIME_SECONDS;

/// Makes the store at `root`, which has the format `found`, one of [`FORMAT`].
pub(crate) fn upgrade(root: &Path, found: u32, synced: bool) -> Result<(), StoreError> {
    let path = root.join("locks").join("upgrade");
    let file = File::options().create(true).append(true).open(&path).at("open", &path)?;
    let _held =
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).at("lock", &path)?;
    let meta = root.join("meta");
    if check_format(root, &files::read_text(&meta).at("read", &meta)?)? == FORMAT {
        return Ok(()); // another srp was at it
    }
    tracing::info!(path = %root.display(), found, FORMAT, "the store is brought to this srp's format");
    for name in ["trees", "composed"] {
        let trees = files::entries(&root.join(name))?;
        trees.par_iter().try_for_each(|tree| set_times(tree))?;
    }
    if synced {
        let directory = File::open(root).at("open", root)?;
        nix::unistd::syncfs(&directory).at("sync", root)?;
    }
    write_meta(root, synced)
}

/// Sets the times of a tree, and of nothing that a link leads to.
fn set_times(tree: &Path) -> Result<(), StoreError> {
    let time = TimeSpec::new(TREE_TIME_SECONDS, 0);
    let mut pending: Vec<PathBuf> = vec![tree.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).at("read", &path)?;
        if found.is_dir() {
            pending.extend(files::entries(&path)?);
        }
        if (found.mtime(), found.mtime_nsec()) != (TREE_TIME_SECONDS, 0) {
            utimensat(AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink)
                .at("change", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::{Access, Store};

    #[test]
    fn trees_of_the_first_format_get_the_time_of_the_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("store");
        drop(Store::open(&root, Access::Write).expect("made"));
        let outside = directory.path().join("outside");
        let tree = root.join("trees/0123");
        fs::create_dir_all(tree.join("usr/bin")).expect("created");
        for path in [tree.join("usr/bin/x"), outside.clone()] {
            fs::write(path, "x").expect("written");
        }
        symlink(&outside, tree.join("usr/link")).expect("linked");
        let one = TimeSpec::new(1, 0);
        let old = |path: &Path| {
            utimensat(AT_FDCWD, path, &one, &one, UtimensatFlags::NoFollowSymlink).expect("set");
        };
        let names = ["usr/bin/x", "usr/link", "usr/bin", "usr", ""];
        names.iter().for_each(|name| old(&tree.join(name)));
        old(&outside);
        for (name, mode) in [("usr/bin/x", 0o444), ("usr/bin", 0o555), ("usr", 0o555)] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(tree.join(name), mode).expect("set");
        }
        let meta = root.join("meta");
        fs::write(&meta, "srp store\nformat 1\n").expect("written");
        let time = |path: &Path| fs::symlink_metadata(path).expect("there").mtime();

        // Whoever only reads changes nothing.
        drop(Store::open(&root, Access::Read).expect("opened"));
        assert_eq!(time(&tree.join("usr")), 1);
        for _ in 0..2 {
            drop(Store::open(&root, Access::Write).expect("opened"));
            for name in names {
                assert_eq!(time(&tree.join(name)), TREE_TIME_SECONDS, "{name}");
            }
            assert_eq!(time(&outside), 1, "no link is followed");
            assert_eq!(fs::read_to_string(&meta).expect("read"), "srp store\nformat 2\n");
        }
    }
}
