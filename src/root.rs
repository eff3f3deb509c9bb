//! `srp root`: GC roots, the names of what is to be kept.

use clap::Subcommand;
use serde_json::json;

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::target::Target;
use crate::terminal;

/// Name objects that are to be kept
///
/// srp realise names what it realised by the attribute. The last three generations of each name
/// are kept.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Name an object
    Add {
        /// The name
        name: String,
        /// A realised attribute, or a store path
        #[arg(value_name = "ATTR|PATH")]
        target: String,
    },
    /// Forget names, with all their generations
    Remove {
        /// The names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// List names and what they stand for, newest generation last
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    match command {
        Command::Add { name, target } => {
            let store = context.store()?;
            let object = Target::parse(target)?.object(context, &store)?;
            store.set_root(name, &object)?;
            terminal::answer(&format!("{}\n", store.object_path(&object).display()))
        }
        Command::Remove { names } => {
            let store = context.store()?;
            for name in names {
                if !store.remove_root(name)? {
                    return Err(CommandError::user(format!("there is no root {name}"))
                        .hint("srp root list shows all"));
                }
                if !context.options.quiet {
                    terminal::say(&format!(
                        "{name} is no root any more; its objects stay until they are collected"
                    ));
                }
            }
            Ok(())
        }
        Command::List { json } => {
            let store = context.store_to_read()?;
            let roots = store.roots()?;
            if *json {
                let all = roots.iter().map(|root| {
                    json!({
                        "name": root.name,
                        "generation": root.generation,
                        "path": store.object_path(&root.object),
                    })
                });
                return terminal::answer_json(&all.collect());
            }
            let width = roots.iter().map(|root| root.name.len()).max().unwrap_or_default();
            let lines: String = roots
                .iter()
                .map(|root| {
                    let path = store.object_path(&root.object);
                    format!("{:width$}  {}  {}\n", root.name, root.generation, path.display())
                })
                .collect();
            if roots.is_empty() && !context.options.quiet {
                terminal::say("no roots yet: srp realise ATTR makes one");
            }
            terminal::answer(&lines)
        }
    }
}
