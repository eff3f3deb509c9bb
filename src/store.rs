//! `srp store`: what a store takes, what keeps it, and making room.

use clap::Subcommand;

use crate::context::Context;
use crate::error::CommandResult;
use crate::{store_gc, store_stat, store_why_alive};

/// Look after the store: what it takes, what is kept and why, and making room
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Gc(store_gc::Arguments),
    Stat(store_stat::Arguments),
    WhyAlive(store_why_alive::Arguments),
}

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    match command {
        Command::Gc(arguments) => store_gc::run(context, arguments),
        Command::Stat(arguments) => store_stat::run(context, arguments),
        Command::WhyAlive(arguments) => store_why_alive::run(context, arguments),
    }
}
