//! What was imported: statements that came with objects, kept until somebody asks.
//!
//! `imported/` of a store is a cache that has nothing but statements. Whether they are believed is
//! decided when their derivation is wanted, by the policy of then and together with what other
//! caches say: a key that is trusted later counts then, and two exports make a threshold of two.

use std::path::Path;
use std::sync::Arc;

use crate::cache::directory::DirectoryRemote;
use crate::cache::remote::Remote;
use crate::cache::sealed::Sealed;
use crate::cache::statement::Statement;
use crate::cache::{CachePath, meta};
use crate::error::StoreError;
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
        let keep = |path: CachePath, bytes: &[u8]| {
            let path = directory.join(path.as_str());
            let new = files::read_if_exists(&path)?.as_deref() != Some(bytes);
            if new {
                self.write(&path, bytes, 0o644)?;
            }
            Ok(new)
        };
        keep(CachePath::meta(), &meta())?;
        let bytes = sealed.to_bytes();
        keep(CachePath::by_static(&statement.derivation, signer), &bytes)?;
        keep(CachePath::by_resolved(&statement.resolved, signer), &bytes)
    }
}
