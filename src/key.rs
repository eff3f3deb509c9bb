//! `srp key`: who signs, and whose signature counts.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use srp_store::Name;
use srp_store::cache::{KeyId, PublicKey, SecretKey};

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::key_verify;
use crate::keyring::Keyring;
use crate::terminal;

/// Make keys to sign what is published, and say whose are trusted
///
/// What a binary cache offers is believed if a trusted key signed it. Secret keys stay below
/// $XDG_CONFIG_HOME/srp/keys, mode 0600; only public ones are given away.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a secret key; the public one is printed
    Generate {
        /// Whose key it is: a machine's or a person's name
        name: String,
    },
    /// List the keys that sign here, and those that are trusted or revoked
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Trust what this key signs
    Trust {
        /// A public key, or a file that holds one
        #[arg(value_name = "NAME:BASE64|FILE")]
        key: String,
        /// Trust it again, although it was revoked
        #[arg(long)]
        force: bool,
    },
    /// Trust a key no longer, even if the configuration names it
    Revoke {
        /// A public key, its id, or the name of a trusted one
        #[arg(value_name = "KEY|ID|NAME")]
        key: String,
    },
    /// Check who signed attestations, as srp audit --attest writes them, and show what they say
    Verify(key_verify::Arguments),
}

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    let keyring = Keyring::of(context)?;
    match command {
        Command::Generate { name } => {
            let name: Name = name.parse().map_err(|_| {
                CommandError::user(format!(
                    "{name:?} can't be a key's name: letters, digits and + - . _ can be in it"
                ))
            })?;
            let key = SecretKey::generate(name)?;
            keyring.keep_secret(&key)?;
            terminal::answer(&format!("{}\n", key.public()))
        }
        Command::List { json } => list(context, &keyring, *json),
        Command::Trust { key, force } => {
            let key = public(key)?;
            if !force && keyring.revoked()?.contains(&key.id()) {
                let message = format!("the key {} ({}) is revoked", key.name(), key.id());
                return Err(CommandError::user(message).hint("--force trusts it again"));
            }
            keyring.trust(&key)?;
            terminal::say(&format!("{} ({}) is trusted", key.name(), key.id()));
            Ok(())
        }
        Command::Verify(arguments) => key_verify::run(context, &keyring, arguments),
        Command::Revoke { key } => {
            let ids = meant(context, &keyring, key)?;
            for id in ids {
                keyring.revoke(&id)?;
                terminal::say(&format!("{id} is revoked"));
            }
            Ok(())
        }
    }
}

fn list(context: &Context, keyring: &Keyring, as_json: bool) -> CommandResult {
    let (mut own, mut unusable) = (Vec::new(), Vec::new());
    for name in keyring.secrets()? {
        match SecretKey::read(&keyring.secret_path(&name)) {
            Ok(key) => own.push(key.public()),
            Err(error) => unusable.push(error),
        }
    }
    for error in &unusable {
        tracing::warn!("{error}");
    }
    let policy = keyring.policy(context)?;
    let state = |key: &PublicKey| match policy.revoked.contains(&key.id()) {
        true => "  (revoked: it signs nothing)",
        false => "",
    };
    let trusted = || policy.trusted.values().filter(|key| !policy.revoked.contains(&key.id()));
    if as_json {
        return terminal::answer_json(&json!({
            "secret": own.iter().map(|key| json!({"id": key.id(), "public": key})).collect::<Vec<_>>(),
            "trusted": trusted().map(|key| json!({"id": key.id(), "public": key})).collect::<Vec<_>>(),
            "revoked": policy.revoked,
            "threshold": policy.threshold,
            "refuse_emulated": policy.refuse_emulated,
        }));
    }
    let mut text = String::new();
    for key in &own {
        text += &format!("secret   {}  {key}{}\n", key.id(), state(key));
    }
    for key in trusted() {
        text += &format!("trusted  {}  {key}\n", key.id());
    }
    for id in &policy.revoked {
        text += &format!("revoked  {id}\n");
    }
    if text.is_empty() && unusable.is_empty() && !context.options.quiet {
        terminal::say(
            "no keys yet: srp key generate NAME makes one, srp key trust KEY trusts another's",
        );
    }
    terminal::answer(&text)
}

/// A public key, or what is in a file. What may be a secret is never repeated.
pub(crate) fn public(text: &str) -> CommandResult<PublicKey> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let path = PathBuf::from(text);
    if path.is_file()
        && let Ok(content) = std::fs::read_to_string(&path)
    {
        return Ok(content.trim().parse::<PublicKey>()?);
    }
    Ok(text.parse::<PublicKey>()?)
}

/// The keys that a text names.
fn meant(context: &Context, keyring: &Keyring, text: &str) -> CommandResult<Vec<KeyId>> {
    if let Ok(id) = text.parse() {
        return Ok(vec![id]);
    }
    if let Ok(key) = public(text) {
        return Ok(vec![key.id()]);
    }
    let policy = keyring.policy(context)?;
    let named = policy.trusted.values().filter(|key| key.name().as_str() == text);
    let ids: Vec<KeyId> = named.map(PublicKey::id).collect();
    if ids.is_empty() {
        return Err(CommandError::user("no trusted key has this name, and it is no key or id")
            .hint("srp key list shows all"));
    }
    Ok(ids)
}
