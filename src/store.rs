//! `srp store`: looking after the store. Each subcommand has a file of its own.

use clap::Subcommand;

use crate::context::Context;
use crate::error::CommandResult;
use crate::{store_gc, store_stat, store_verify, store_why_alive};

/// Look after the store: what it takes, what keeps it, making room, damage
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Verify(store_verify::Arguments),
    Gc(store_gc::Arguments),
    Stat(store_stat::Arguments),
    WhyAlive(store_why_alive::Arguments),
}

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    match command {
        Command::Verify(arguments) => store_verify::run(context, arguments),
        Command::Gc(arguments) => store_gc::run(context, arguments),
        Command::Stat(arguments) => store_stat::run(context, arguments),
        Command::WhyAlive(arguments) => store_why_alive::run(context, arguments),
    }
}
