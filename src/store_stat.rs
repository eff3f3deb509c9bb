//! `srp store stat`: what a store takes on the disk.

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;
use srp_store::gc::{Control, RootUsage};

use crate::cache::counted;
use crate::context::Context;
use crate::error::CommandResult;
use crate::store_gc::{kinds_as_json, open, retention, rows};
use crate::terminal;

/// Show what the store takes on the disk: by kind, by root, and what srp store gc would free
///
/// Sizes are of blocks on the disk: holes count nothing, and a tree that several objects have counts
/// once. The first time, every file is looked at; what was found is remembered.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  srp store stat\n  srp store stat --json")]
pub(crate) struct Arguments {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = open(context)?;
    let usage = store.usage()?;
    // What processes rely on is known to the store's owner alone.
    let freed = match store.is_writable() {
        true => Some(store.plan_garbage(&retention(context, None), &Control::NONE)?),
        false => None,
    };
    if arguments.json {
        let root = |root: &RootUsage| {
            json!({
                "name": root.name,
                "generations": root.generations,
                "own_objects": root.own.count,
                "own_bytes": root.own.disk_bytes,
                "shared_objects": root.shared.count,
                "shared_bytes": root.shared.disk_bytes,
            })
        };
        return terminal::answer_json(&json!({
            "disk_bytes": usage.disk_bytes(),
            "kinds": kinds_as_json(&usage.kinds),
            "roots": usage.roots.iter().map(root).collect::<Vec<_>>(),
            "unrooted_objects": usage.unrooted.count,
            "unrooted_bytes": usage.unrooted.disk_bytes,
            "gc_would_free": freed.as_ref().map(|it| kinds_as_json(&it.by_kind())),
            "gc_would_free_bytes": freed.as_ref().map(|it| it.total().disk_bytes),
        }));
    }
    let mut text = rows(&usage.kinds);
    text += &format!("{:>12}            in all\n", HumanBytes(usage.disk_bytes()).to_string());
    if !usage.roots.is_empty() {
        text += "\n         own        shared  root\n";
        for root in &usage.roots {
            let (own, shared) =
                (HumanBytes(root.own.disk_bytes), HumanBytes(root.shared.disk_bytes));
            let (own, shared) = (own.to_string(), shared.to_string());
            text += &format!(
                "{own:>12}  {shared:>12}  {} ({})\n",
                root.name,
                counted(root.generations, "generation")
            );
        }
    }
    text += &format!(
        "\n{:>12}  {:>8}  objects that no root keeps\n",
        HumanBytes(usage.unrooted.disk_bytes).to_string(),
        usage.unrooted.count
    );
    if let Some(freed) = freed {
        let freed = freed.total();
        text += &format!(
            "{:>12}  {:>8}  would be freed by srp store gc\n",
            HumanBytes(freed.disk_bytes).to_string(),
            freed.count
        );
    }
    terminal::answer(&text)
}
