//! What an audit leaves for others: signed statements that caches publish, and attestations.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use srp_builder::audit::{Audit, attest};
use srp_builder::{FailureCause, Request};
use srp_store::cache::{Envelope, IN_TOTO, SecretKey};
use srp_store::staged::{self, Staged};
use srp_store::{Assurance, Store};

use crate::building;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::signing;
use crate::target::short;

/// What is left for others.
#[derive(Debug, Args)]
// The command's own group has the same name.
#[group(skip)]
#[command(next_help_heading = "Evidence")]
pub(crate) struct Arguments {
    /// Sign that this machine has built what comes out identical: srp cache push publishes that
    #[arg(long, conflicts_with = "against")]
    sign: bool,
    /// Write a signed in-toto attestation of each audit into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "against", value_hint = ValueHint::DirPath)]
    attest: Option<PathBuf>,
    /// The key that signs [default: the only one there is]
    #[arg(long, value_name = "NAME", conflicts_with = "against")]
    key: Option<String>,
}

/// What is left for others, and by whom.
pub(crate) struct Evidence {
    key: Option<SecretKey>,
    sign: bool,
    attest: Option<PathBuf>,
}

impl Evidence {
    /// What was asked for. That there is no key is found out before anything is built.
    pub(crate) fn asked_for(context: &Context, arguments: &Arguments) -> CommandResult<Evidence> {
        let sign = arguments.sign;
        let attest = arguments.attest.as_deref().map(building::absolute).transpose()?;
        if let Some(directory) = &attest {
            // As with the key: better now than after hours.
            probe(directory).map_err(|error| {
                let message = format!("can't write to {}: {error}", directory.display());
                CommandError::new(ExitCode::User, message)
            })?;
        }
        if !sign && attest.is_none() {
            return match arguments.key {
                Some(_) => Err(CommandError::usage("--key is for --sign or --attest")),
                None => Ok(Evidence { key: None, sign, attest }),
            };
        }
        let key = signing::signer(context, arguments.key.as_deref())?;
        let key = key.ok_or_else(|| {
            CommandError::user("there is no key to sign with")
                .hint("srp key generate NAME makes one")
        })?;
        Ok(Evidence { key: Some(key), sign, attest })
    }

    /// Leaves what there is to leave of one audit, as soon as it has ended: that what comes after
    /// it is interrupted takes nothing from it.
    pub(crate) fn leave(
        &self,
        store: &Store,
        request: &Request,
        audit: &Audit,
    ) -> Result<(), FailureCause> {
        let Some(key) = &self.key else { return Ok(()) };
        if let Some(claim) = &audit.claim {
            store.assure_claim(claim, &Assurance::within(store.validity().signing))?;
        }
        if self.sign
            && let Some(witness) = &audit.witness
        {
            witness.sign(store, key)?;
        }
        self.write(store, request, audit, key)
    }

    /// Writes the attestations of one audit, whole or not at all.
    fn write(
        &self,
        store: &Store,
        request: &Request,
        audit: &Audit,
        key: &SecretKey,
    ) -> Result<(), FailureCause> {
        let Some(directory) = &self.attest else { return Ok(()) };
        let mut lines = String::new();
        for statement in attest::statements(store, request, audit, &key.public().id())? {
            let envelope = Envelope::new(IN_TOTO, statement.to_string().into_bytes(), key);
            lines += &serde_json::to_string(&envelope).expect("an envelope is JSON");
            lines.push('\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let name = format!("{}-{}.intoto.jsonl", audit.name, short(&audit.derivation));
        let path = directory.join(&name);
        staged::write_synced(&path, lines.as_bytes()).map_err(|source| FailureCause::Io {
            action: format!("write {}", path.display()),
            source,
        })
    }

    /// Whose signature is under what was left as a statement, if any is.
    pub(crate) fn signer(&self) -> Option<&str> {
        self.key.as_ref().filter(|_| self.sign).map(|key| key.name().as_str())
    }
}

/// Makes a directory, and sees whether files can be made in it.
fn probe(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    staged::sweep(directory)?;
    Staged::new_in(directory, 0o644).map(drop)
}
