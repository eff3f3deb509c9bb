//! What is sealed in a store: statements on derivations, what was seen of caches, served packs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cache::{
    KeyId, ObjectRecord, Pointer, PublicKey, SealError, Sealable, Sealed, Signer, Statement, meta,
    parse_signer, signer_name,
};
use crate::digest::{Digest, ObjectId, ResolvedHash, StaticHash};
use crate::error::StoreError;
use crate::store::Store;
use crate::verify::names::{Looked, named, read};
use crate::verify::{Report, Subject};

type Keys = BTreeMap<KeyId, PublicKey>;

/// A signer as a file is named after it.
struct SignerName(Signer);

impl SignerName {
    fn parse(name: &str) -> Option<SignerName> {
        parse_signer(name).map(SignerName)
    }
}

impl std::fmt::Display for SignerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&signer_name(self.0))
    }
}

impl Store {
    /// Signatures by keys that aren't known can't be checked: then what is signed must be well
    /// formed and in its place.
    pub(super) fn verify_sealed(&self, report: &mut Report, keys: &Keys) -> Result<(), StoreError> {
        for name in ["statements", "rebuilt", "imported/realisations/resolved"] {
            statements(&self.directory(name), report, keys, |it, hash: &ResolvedHash| {
                it.resolved == *hash
            })?;
        }
        let imported = self.directory("imported/realisations/static");
        statements(&imported, report, keys, |it, hash: &StaticHash| it.derivation == *hash)?;
        let format = self.directory("imported").join("srp-cache");
        let looked = read(&format).and_then(|bytes| match bytes == meta() {
            true => Ok(()),
            false => Err("it is not a cache's format".to_owned()),
        });
        report.take(Subject::Statement, &format, looked);
        self.verify_sightings(report)?;
        self.verify_served(report)
    }

    fn verify_sightings(&self, report: &mut Report) -> Result<(), StoreError> {
        let caches = self.directory("caches");
        for (_, directory) in named(&caches, report, |name| name.parse::<Digest>().ok())? {
            for (name, path) in named(&directory, report, |name| Some(name.to_owned()))? {
                let looked = unseal::<Pointer>(&path, &Keys::new()).and_then(|sealed| {
                    // Roots' names have dots, too.
                    let root = name.rsplit_once('.').map(|(root, _)| root);
                    match root == Some(sealed.unverified().root.as_str()) {
                        true => Ok(()),
                        false => Err("it is about another root".to_owned()),
                    }
                });
                report.take(Subject::Sighting, &path, looked);
            }
        }
        Ok(())
    }

    /// What `srp serve` has written: packs are named by their digests, and small beside trees.
    fn verify_served(&self, report: &mut Report) -> Result<(), StoreError> {
        let served = self.directory("served");
        let packs = named(&served.join("packs"), report, |name| name.parse::<Digest>().ok())?;
        for (digest, path) in packs {
            let hashed = crate::files::open_plain(&path).and_then(|mut file| {
                let stat = rustix::fs::fstat(&file)?;
                crate::content::hash(&mut file, &stat, None)
            });
            let looked = hashed.map_or_else(Looked::failed, Looked::Sound);
            let looked = looked.and_then(|(found, _)| match found == digest {
                true => Ok(()),
                false => Err(format!("its digest is {found}")),
            });
            report.take(Subject::Pack, &path, looked);
        }
        let records = named(&served.join("objects"), report, |name| name.parse::<ObjectId>().ok())?;
        for (id, path) in records {
            let looked = unseal::<ObjectRecord>(&path, &Keys::new()).and_then(|sealed| {
                let described = sealed.unverified().object.id();
                match described == id {
                    true => Ok(()),
                    false => Err(format!("it describes the object {described}")),
                }
            });
            report.take(Subject::Pack, &path, looked);
        }
        Ok(())
    }
}

/// Statements in `<directory>/<hash>/<signer>`.
fn statements<H: std::str::FromStr + ToString>(
    directory: &Path,
    report: &mut Report,
    keys: &Keys,
    is_about: impl Fn(&Statement, &H) -> bool,
) -> Result<(), StoreError> {
    for (hash, directory) in named(directory, report, |name| name.parse::<H>().ok())? {
        for (signer, path) in named(&directory, report, SignerName::parse)? {
            let looked = unseal::<Statement>(&path, keys).and_then(|sealed| {
                if !is_about(sealed.unverified(), &hash) {
                    return Err("it is about another derivation".to_owned());
                }
                match sealed.signer() == signer.0 {
                    true => Ok(()),
                    false => Err("it is signed by another key than its name says".to_owned()),
                }
            });
            report.take(Subject::Statement, &path, looked);
        }
    }
    Ok(())
}

fn unseal<T: Sealable>(path: &Path, keys: &Keys) -> Looked<Sealed<T>> {
    read(path).and_then(|bytes| {
        let sealed = Sealed::<T>::from_bytes(&bytes).map_err(|error| error.to_string())?;
        match sealed.check(keys) {
            Ok(_) | Err(SealError::UnknownKey { .. }) => Ok(sealed),
            Err(error @ SealError::Wrong { .. }) => Err(error.to_string()),
        }
    })
}
