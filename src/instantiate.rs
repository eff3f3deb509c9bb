//! `srp instantiate`: definitions to derivations, and nothing further.

use clap::Args;

use crate::context::Context;
use crate::error::CommandResult;
use crate::goals::Goals;
use crate::terminal;

/// Evaluate definitions to derivations, without building anything
///
/// The derivations, and all that they are made from, are kept in the store, where srp show finds
/// them. The hash of each attribute's derivation is printed on standard output.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  srp show $(srp instantiate stage1.aarch64-musl.musl)")]
pub(crate) struct Arguments {
    /// What to instantiate: attributes such as stage1.aarch64-musl.musl
    #[arg(required = true, value_name = "ATTR")]
    attrs: Vec<String>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store()?;
    let graph = Goals::of(context, Some(&store), &arguments.attrs)?.graph()?;
    for derivation in graph.derivations.values() {
        store.add_derivation(derivation)?;
    }
    let hashes: String =
        graph.goals.iter().map(|(_, key)| format!("{}\n", key.derivation)).collect();
    terminal::answer(&hashes)
}
