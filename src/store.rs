//! `srp store`: looking after the store. Each subcommand has a file of its own.

use clap::Subcommand;

use crate::context::Context;
use crate::error::CommandResult;
use crate::store_verify;

/// Look after the store
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Verify(store_verify::Arguments),
}

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    match command {
        Command::Verify(arguments) => store_verify::run(context, arguments),
    }
}
