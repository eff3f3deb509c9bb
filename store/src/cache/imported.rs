//! What was imported: statements that came with objects, kept until somebody asks.
//!
//! `imported/` of a store is a cache that has nothing but statements. Whether they are believed is
//! decided when their derivation is wanted, by the policy of then and together with what other
//! caches say: a key that is trusted later counts then, and two exports make a threshold of two.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::cache::directory::DirectoryRemote;
use crate::cache::remote::Remote;
use crate::cache::sealed::Sealed;
use crate::cache::statement::Statement;
use crate::cache::{CachePath, meta};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::store::Store;

const DIRECTORY: &str = "imported";

/// The statements that were imported into the store at `root`, as a cache; none if there are none.
///
/// It is trusted outright: what nobody signed is only there because whoever imported it said so.
pub fn imported(root: &Path) -> Option<Arc<dyn Remote>> {
    let directory = root.join(DIRECTORY);
    directory.is_dir().then(|| Arc::new(DirectoryRemote::new(&directory)) as Arc<dyn Remote>)
}

impl Store {
    /// Keeps a statement that came with an export; false if it was here already. Not synced: who
    /// loses it to a power cut imports again.
    pub(crate) fn keep_imported(&self, sealed: &Sealed<Statement>) -> Result<bool, StoreError> {
        self.check_writable()?;
        let directory = self.directory(DIRECTORY);
        let (statement, signer) = (sealed.unverified(), sealed.signer());
        let mut new = write(&directory, &CachePath::meta(), &meta())?;
        for path in [
            CachePath::by_static(&statement.derivation, signer),
            CachePath::by_resolved(&statement.resolved, signer),
        ] {
            new = write(&directory, &path, &sealed.to_bytes())?;
        }
        Ok(new)
    }
}

fn write(directory: &Path, path: &CachePath, bytes: &[u8]) -> Result<bool, StoreError> {
    let path = directory.join(path.as_str());
    if files::read_if_exists(&path)?.as_deref() == Some(bytes) {
        return Ok(false);
    }
    let parent = path.parent().expect("it lies in the directory");
    fs::create_dir_all(parent).at("create", parent)?;
    files::write_atomically(&path, bytes)?;
    Ok(true)
}
