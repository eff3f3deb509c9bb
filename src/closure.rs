//! `srp closure`: an object and everything it refers to.

use clap::Args;
use serde_json::json;
use srp_store::ReferenceKind;

use crate::context::Context;
use crate::error::CommandResult;
use crate::target::Target;
use crate::terminal;

/// List an object and everything that it needs
///
/// Each object comes before what it refers to.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  srp closure stage1.aarch64-musl\n  srp closure stage1.aarch64-musl.libcxx --develop --json"
)]
pub(crate) struct Arguments {
    /// A realised attribute, or a store path
    #[arg(value_name = "ATTR|PATH")]
    target: String,
    /// Also follow what is needed to build against it: headers, static libraries
    #[arg(long)]
    develop: bool,
    /// Answer in JSON, with sizes and references
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_to_read()?;
    let object = Target::parse(&arguments.target)?.object(context, &store)?;
    let closure = store.closure(&[object.id], kinds(arguments.develop))?;
    if arguments.json {
        let all = closure.iter().map(|(id, info)| {
            json!({
                "path": store.object_path(&info.object.path_name()),
                "id": id,
                "name": info.object.name,
                "tree": info.object.tree,
                "size_bytes": info.size_bytes,
                "references": info.object.references,
            })
        });
        return terminal::answer_json(&all.collect());
    }
    let paths: String = closure
        .iter()
        .map(|(_, info)| format!("{}\n", store.object_path(&info.object.path_name()).display()))
        .collect();
    terminal::answer(&paths)
}

/// The references that are followed.
pub(crate) fn kinds(develop: bool) -> &'static [ReferenceKind] {
    if develop { ReferenceKind::ALL } else { ReferenceKind::RUN }
}
