//! The keyring: secret keys, and whom the user trusts, as files.
//!
//! ```text
//! $XDG_CONFIG_HOME/srp/keys/secret/<name>      mode 0600
//! $XDG_CONFIG_HOME/srp/keys/trusted/<key id>   a public key
//! $XDG_CONFIG_HOME/srp/keys/revoked/<key id>   empty, or the public key
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use srp_store::cache::{KeyError, KeyId, Policy, PublicKey, SecretKey};

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};

/// A directory of keys.
#[derive(Debug)]
pub(crate) struct Keyring {
    directory: PathBuf,
}

impl Keyring {
    /// The user's.
    pub(crate) fn of(context: &Context) -> CommandResult<Keyring> {
        let directory = context.config.keys.clone().ok_or_else(|| {
            CommandError::user(
                "there is no place for keys: neither HOME nor XDG_CONFIG_HOME is set",
            )
        })?;
        Ok(Keyring { directory })
    }

    /// Where a secret key of this name is.
    pub(crate) fn secret_path(&self, name: &str) -> PathBuf {
        self.directory.join("secret").join(name)
    }

    /// Keeps a new secret key.
    pub(crate) fn keep_secret(&self, key: &SecretKey) -> CommandResult<PathBuf> {
        let path = self.secret_path(key.name().as_str());
        make_private(path.parent().unwrap_or(&self.directory))?;
        key.write(&path)?;
        Ok(path)
    }

    /// The names of the secret keys.
    pub(crate) fn secrets(&self) -> CommandResult<Vec<String>> {
        names(&self.directory.join("secret"))
    }

    /// The public keys that are trusted by file. One that a crash tore is warned of, and trusted no
    /// more.
    pub(crate) fn trusted(&self) -> CommandResult<Vec<PublicKey>> {
        let directory = self.directory.join("trusted");
        let mut keys = Vec::new();
        for name in names(&directory)? {
            let path = directory.join(name);
            let text = fs::read(&path).map_err(|error| failed("read", &path, &error))?;
            match String::from_utf8_lossy(&text).trim().parse::<PublicKey>() {
                Ok(key) => keys.push(key),
                Err(_) => {
                    let error = KeyError::Malformed { kind: "public", path };
                    tracing::warn!("{error}, and is passed over; srp key trust writes it again");
                }
            }
        }
        Ok(keys)
    }

    /// Keys whose signatures can be checked, whether they are trusted or not: all that are known
    /// here, one's own among them.
    pub(crate) fn known(&self, context: &Context) -> CommandResult<BTreeMap<KeyId, PublicKey>> {
        let mut known = self.policy(context)?.trusted;
        for name in self.secrets()? {
            match SecretKey::read(&self.secret_path(&name)) {
                Ok(key) => drop(known.insert(key.public().id(), key.public())),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(known)
    }

    /// The keys that are revoked.
    pub(crate) fn revoked(&self) -> CommandResult<BTreeSet<KeyId>> {
        let names = names(&self.directory.join("revoked"))?;
        names.iter().map(|name| Ok(name.parse::<KeyId>()?)).collect()
    }

    /// Trusts a key from here on, even one that was revoked.
    pub(crate) fn trust(&self, key: &PublicKey) -> CommandResult {
        let id = key.id().to_string();
        write(&self.directory.join("trusted"), &id, &format!("{key}\n"))?;
        remove(&self.directory.join("revoked").join(id))
    }

    /// Trusts a key no longer, whatever the configuration says.
    pub(crate) fn revoke(&self, id: &KeyId) -> CommandResult {
        let id = id.to_string();
        // First of all: a crash in between leaves it revoked.
        write(&self.directory.join("revoked"), &id, "")?;
        remove(&self.directory.join("trusted").join(id))
    }

    /// All that is trusted: by file and by configuration.
    pub(crate) fn policy(&self, context: &Context) -> CommandResult<Policy> {
        let trust = &context.config.trust;
        let keys = self.trusted()?.into_iter().chain(trust.keys.iter().cloned());
        let trusted: BTreeMap<KeyId, PublicKey> = keys.map(|key| (key.id(), key)).collect();
        Ok(Policy {
            trusted,
            revoked: self.revoked()?,
            threshold: trust.threshold.unwrap_or(1),
            refuse_emulated: trust.refuse_emulated.unwrap_or(false),
        })
    }
}

/// The files of a directory, sorted; none if there is no directory. Anything else that keeps it
/// from being read is an error: a revocation must not be overlooked.
fn names(directory: &Path) -> CommandResult<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed("list", directory, &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed("list", directory, &error))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

fn write(directory: &Path, name: &str, text: &str) -> CommandResult {
    make_private(directory)?;
    let path = directory.join(name);
    srp_store::staged::write_synced(&path, text.as_bytes())
        .map_err(|error| failed("write", &path, &error))
}

fn remove(path: &Path) -> CommandResult {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        removed => removed,
    };
    let directory = path.parent().unwrap_or(path);
    removed
        .and_then(|()| fs::File::open(directory)?.sync_all())
        .map_err(|error| failed("remove", path, &error))
}

fn make_private(directory: &Path) -> CommandResult {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| failed("create", directory, &error))
}

fn failed(action: &str, path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::new(ExitCode::User, format!("can't {action} {}: {error}", path.display()))
}
