//! Adopting: what others stated becomes what this store has chosen, and is kept as evidence.
//!
//! `statements/<resolved hash>/<key id>` of a store holds the statements by which it took what it
//! didn't build. They are there before the claim is; whoever publishes passes them on, so that a
//! chain of caches doesn't pretend to be a chain of builders.

use std::path::{Path, PathBuf};

use crate::cache::path::parse_signer;
use crate::cache::sealed::Sealed;
use crate::cache::statement::Statement;
use crate::commit::Registration;
use crate::digest::ResolvedHash;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::store::Store;

impl Store {
    /// Registers an accepted statement's claim and realisation, and keeps `evidence`: the
    /// statements, sealed, that led to it. The objects must be there.
    pub fn adopt(
        &self,
        statement: &Statement,
        evidence: &[Sealed<Statement>],
    ) -> Result<(), StoreError> {
        self.check_writable()?;
        for object in statement.objects().values() {
            if !self.contains(object)? {
                return Err(StoreError::NoObject { id: *object, path: self.root().to_owned() });
            }
        }
        let directory = self.directory("statements").join(statement.resolved.to_string());
        for sealed in evidence {
            let name = sealed.signer().map_or_else(|| "unsigned".to_owned(), |key| key.to_string());
            self.write(&directory.join(name), &sealed.to_bytes(), 0o644)?;
        }
        let mut registration = Registration::default();
        registration.realisation(self, &statement.resolved, &statement.realisation());
        registration.claim(self, &statement.derivation, &statement.claim());
        self.commit(registration)
    }

    /// The statements by which what `resolved` came out as was taken from others; none if it was
    /// built here. What can't be read is left out.
    pub fn evidence(&self, resolved: &ResolvedHash) -> Result<Vec<Sealed<Statement>>, StoreError> {
        let mut found = Vec::new();
        for path in self.evidence_paths(resolved)? {
            match Sealed::from_bytes(&files::read(&path).at("read", &path)?) {
                Ok(sealed) if is_about(&sealed, resolved, &path) => found.push(sealed),
                Ok(_) => {
                    let path = path.display();
                    tracing::warn!(%path, "a statement is another's, and is left out");
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a statement is left out");
                }
            }
        }
        found.sort_by_key(Sealed::signer);
        Ok(found)
    }

    /// Whether what `resolved` came out as was taken from others, also if what they said can't be
    /// read any more: it isn't built here for that.
    pub(crate) fn is_taken(&self, resolved: &ResolvedHash) -> Result<bool, StoreError> {
        Ok(!self.evidence_paths(resolved)?.is_empty())
    }

    fn evidence_paths(&self, resolved: &ResolvedHash) -> Result<Vec<PathBuf>, StoreError> {
        files::entries(&self.directory("statements").join(resolved.to_string()))
    }

    /// Removes statements on what has not been registered: the process that took it died before
    /// it could. Whoever builds it now has it from nobody, and must not say otherwise.
    pub(crate) fn sweep_evidence(&self) -> Result<(), StoreError> {
        for directory in files::entries(&self.directory("statements"))? {
            let name = directory.file_name().and_then(|name| name.to_str());
            let Some(resolved) = name.and_then(|name| name.parse::<ResolvedHash>().ok()) else {
                continue;
            };
            let registered = || self.realisation_path(&resolved).exists();
            // Whoever is taking it holds the lock until it is registered.
            if !registered()
                && let Some(_lock) = self.lock(&resolved)?
                && !registered()
            {
                files::remove_tree(&directory)?;
            }
        }
        Ok(())
    }
}

/// Whether a statement lies where it belongs: by what it is about, and by who signed it.
fn is_about(sealed: &Sealed<Statement>, resolved: &ResolvedHash, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    sealed.unverified().resolved == *resolved && parse_signer(name) == Some(sealed.signer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::statement::tests::{sample, secret};
    use crate::store::Access;

    #[test]
    fn a_statement_in_the_place_of_anothers_says_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let (key, other_key) = (secret("builder-1", 7), secret("builder-2", 8));
        let sealed = Sealed::new(sample(5), Some(&key));
        let (resolved, other) = (sample(5).resolved, ResolvedHash::from_bytes([9; 32]));
        for (hash, signer, counts) in [
            (resolved, key.public().id(), true),
            (other, key.public().id(), false),
            (resolved, other_key.public().id(), false),
        ] {
            let place = store.directory("statements").join(hash.to_string());
            let file = place.join(signer.to_string());
            store.write(&file, &sealed.to_bytes(), 0o644).expect("written");
            let found = store.evidence(&hash).expect("read");
            assert_eq!(found, if counts { vec![sealed.clone()] } else { Vec::new() });
            // It was taken from somebody all the same.
            assert!(store.is_taken(&hash).expect("asked"));
            std::fs::remove_file(file).expect("removed");
        }
    }
}
