//! Who signs what is published, exported or served: options, and the key they come to.

use clap::Args;
use srp_store::Name;
use srp_store::cache::SecretKey;

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::keyring::Keyring;

/// Who signs, where nobody need.
#[derive(Debug, Args)]
pub(crate) struct Signing {
    /// The key that signs [default: the only one there is, if there is one]
    #[arg(long, value_name = "NAME", conflicts_with = "unsigned")]
    key: Option<String>,
    /// Sign nothing: only those who trust it outright will believe what it says of derivations
    #[arg(long)]
    unsigned: bool,
}

impl Signing {
    /// The key that signs, if any.
    pub(crate) fn key(&self, context: &Context) -> CommandResult<Option<SecretKey>> {
        if self.unsigned { Ok(None) } else { signer(context, self.key.as_deref()) }
    }
}

/// The secret key of this name, or the only one that there is; none if there is none.
pub(crate) fn signer(context: &Context, name: Option<&str>) -> CommandResult<Option<SecretKey>> {
    let keyring = Keyring::of(context)?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => {
            let mut names = keyring.secrets()?;
            match (names.pop(), names.is_empty()) {
                (Some(name), true) => name,
                (Some(_), false) => {
                    return Err(CommandError::user("there are several keys that could sign")
                        .hint("name one by --key NAME; srp key list shows them"));
                }
                (None, _) => return Ok(None),
            }
        }
    };
    // A name is one component of a path.
    let name: Name = name.parse().map_err(|_| {
        CommandError::user(format!("{name:?} is not the name of a key"))
            .hint("srp key list shows them")
    })?;
    let key = SecretKey::read(&keyring.secret_path(name.as_str()))?;
    let id = key.public().id();
    if keyring.revoked()?.contains(&id) {
        return Err(CommandError::user(format!(
            "the key {name} ({id}) is revoked: it signs nothing"
        ))
        .hint("srp key generate NAME makes another; --key NAME signs by it"));
    }
    Ok(Some(key))
}

/// Who builds here, as statements say it.
pub(crate) fn builder(key: Option<&SecretKey>) -> &str {
    key.map_or("unsigned", |key| key.name().as_str())
}
