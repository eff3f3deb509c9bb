//! What an audit leaves for others: signed statements that caches publish.

use clap::Args;
use srp_builder::FailureCause;
use srp_builder::audit::{Audit, AuditError};
use srp_store::Store;
use srp_store::cache::SecretKey;

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::signing;

/// What is left for others.
#[derive(Debug, Args)]
#[command(next_help_heading = "Evidence")]
pub(crate) struct Arguments {
    /// Sign that this machine has built what comes out identical: srp cache push publishes that
    #[arg(long, conflicts_with = "against")]
    sign: bool,
    /// The key that signs [default: the only one there is]
    #[arg(long, value_name = "NAME", conflicts_with = "against")]
    key: Option<String>,
}

/// What is left for others, and by whom.
pub(crate) struct Evidence {
    key: Option<SecretKey>,
    sign: bool,
}

impl Evidence {
    /// What was asked for. That there is no key is found out before anything is built.
    pub(crate) fn asked_for(context: &Context, arguments: &Arguments) -> CommandResult<Evidence> {
        let sign = arguments.sign;
        if !sign {
            return match arguments.key {
                Some(_) => Err(CommandError::usage("--key is for --sign, which isn't there")),
                None => Ok(Evidence { key: None, sign }),
            };
        }
        let key = signing::signer(context, arguments.key.as_deref())?;
        let key = key.ok_or_else(|| {
            CommandError::user("there is no key to sign with")
                .hint("srp key generate NAME makes one")
        })?;
        Ok(Evidence { key: Some(key), sign })
    }

    /// Leaves what there is to leave of one audit, as soon as it has ended: that what comes after
    /// it is interrupted takes nothing from it.
    pub(crate) fn leave(&self, store: &Store, audit: &Audit) -> Result<(), AuditError> {
        let Some(key) = &self.key else { return Ok(()) };
        let failed = |source: FailureCause| {
            let (name, source) = (audit.name.clone(), Box::new(source));
            AuditError::Failed { name, source }
        };
        if self.sign
            && let Some(witness) = &audit.witness
        {
            witness.sign(store, key).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    /// Whose signature is under what was left as a statement, if any is.
    pub(crate) fn signer(&self) -> Option<&str> {
        self.key.as_ref().filter(|_| self.sign).map(|key| key.name().as_str())
    }
}
