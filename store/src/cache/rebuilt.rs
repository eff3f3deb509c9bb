//! Rebuilt: what this machine has built again, and found to be what it has.
//!
//! A store that took something from others passes that on as "substituted", which is no second
//! witness. If it is then rebuilt here from the same inputs, and comes out the same, this machine
//! is one. `rebuilt/<resolved hash>/<key id>` of a store holds what it says then: an ordinary
//! statement that says "built", signed when the rebuild ended. It is published in the place of the
//! one that says "substituted", by whoever has the key that signed it: what lies in the store
//! alone makes nobody a witness.

use crate::assurance::Assurance;
use crate::cache::key::{PublicKey, SecretKey};
use crate::cache::sealed::Sealed;
use crate::cache::statement::{Provenance, StatedOutput, Statement};
use crate::digest::{ResolvedHash, StaticHash};
use crate::error::StoreError;
use crate::files;
use crate::realisation::{Claim, Route};
use crate::revision;
use crate::store::Store;

const DIRECTORY: &str = "rebuilt";

impl Store {
    /// Keeps, signed, that a derivation was rebuilt here from the inputs that its claim names, by
    /// `route`, and came out as the claim says. That this is so is up to the caller; that what it
    /// was and what it was made from is not damaged is verified here.
    pub fn keep_rebuilt(
        &self,
        derivation: &StaticHash,
        claim: &Claim,
        route: &Route,
        key: &SecretKey,
    ) -> Result<(), StoreError> {
        self.check_writable()?;
        let assurance = Assurance::within(self.validity().signing);
        self.assure_to_sign(Some(key), [claim], [], &assurance)?;
        let mut outputs = std::collections::BTreeMap::new();
        for (name, id) in &claim.outputs {
            outputs.insert(name.clone(), StatedOutput::of(&self.info(id)?.object));
        }
        let statement = Statement {
            derivation: *derivation,
            resolved: claim.resolved,
            outputs,
            inputs: claim.inputs.clone(),
            builder: key.name().to_string(),
            runner: route.runner.clone(),
            machine: route.machine.clone(),
            limits_by: route.limits_by.clone(),
            sandbox: revision::SANDBOX,
            provenance: Provenance::Built,
        };
        let path = self.rebuilt_path(&claim.resolved, &key.public());
        self.write(&path, &Sealed::new(statement, Some(key)).to_bytes(), 0o644)
    }

    /// The statement of a rebuild by the owner of a key, if there is one, its signature is right
    /// and it is about this claim.
    pub(crate) fn rebuilt(
        &self,
        derivation: &StaticHash,
        claim: &Claim,
        key: &PublicKey,
    ) -> Result<Option<Sealed<Statement>>, StoreError> {
        let path = self.rebuilt_path(&claim.resolved, key);
        let Some(bytes) = files::read_if_exists(&path)? else { return Ok(None) };
        let keys = [(key.id(), key.clone())].into();
        let sealed = match Sealed::<Statement>::from_bytes(&bytes) {
            Ok(sealed) if matches!(sealed.check(&keys), Ok(Some(_))) => sealed,
            _ => {
                tracing::warn!(path = %path.display(), "a statement is damaged, and left out");
                return Ok(None);
            }
        };
        let said = sealed.unverified();
        if said.resolved != claim.resolved {
            tracing::warn!(path = %path.display(), "a statement is another's, and is left out");
            return Ok(None);
        }
        let about_this = said.derivation == *derivation
            && said.provenance == Provenance::Built
            && said.claim() == *claim;
        Ok(about_this.then_some(sealed))
    }

    fn rebuilt_path(&self, resolved: &ResolvedHash, key: &PublicKey) -> std::path::PathBuf {
        let directory = self.directory(DIRECTORY).join(resolved.to_string());
        directory.join(key.id().to_string())
    }
}
