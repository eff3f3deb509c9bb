//! `srp store why-alive`: what keeps an object from being collected.

use std::time::UNIX_EPOCH;

use clap::Args;
use serde_json::{Value, json};
use srp_store::gc::Keeper;

use crate::context::Context;
use crate::error::CommandResult;
use crate::store_gc::{open, retention};
use crate::target::Target;
use crate::terminal;

/// Show what keeps an object: the references that lead to it from a root, a running command of
/// srp, or something that was used lately
///
/// The chain is printed, one store path a line, after what keeps the first of it. If nothing keeps
/// the object, nothing is printed on standard output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  srp store why-alive /var/lib/srp/objects/<id>-<name>")]
pub(crate) struct Arguments {
    /// A store path, or a realised attribute
    #[arg(value_name = "PATH|ATTR")]
    target: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    // That this is asked must not be what keeps it.
    let store = open(context)?.relying_on_nothing();
    let object = Target::parse(&arguments.target)?.object(context, &store)?;
    let why = store.why_alive(&object.id, &retention(context, None))?;
    if arguments.json {
        let value = why.map(|why| {
            let chain: Vec<_> = why.chain.iter().map(|it| store.object_path(it)).collect();
            json!({ "by": as_json(&why.by), "chain": chain })
        });
        return terminal::answer_json(&json!({
            "path": store.object_path(&object),
            "kept": value.is_some(),
            "why": value,
        }));
    }
    let Some(why) = why else {
        terminal::say(&format!("nothing keeps {object}: srp store gc removes it"));
        return Ok(());
    };
    let mut text = format!("{}\n", in_words(&why.by));
    for (depth, object) in why.chain.iter().enumerate() {
        let path = store.object_path(object);
        text += &format!("{:indent$}{}\n", "", path.display(), indent = 2 * (depth + 1));
    }
    terminal::answer(&text)
}

fn in_words(keeper: &Keeper) -> String {
    match keeper {
        Keeper::Root { name, generation } => format!("the root {name}, generation {generation}"),
        Keeper::Process { session } => format!("a running command of srp (tmp/{session})"),
        Keeper::Recent { used } => match used.and_then(|used| used.elapsed().ok()) {
            Some(age) => {
                format!("its age: it was made or used {} ago", indicatif::HumanDuration(age))
            }
            None => "its age: it was made or used lately".to_owned(),
        },
    }
}

fn as_json(keeper: &Keeper) -> Value {
    match keeper {
        Keeper::Root { name, generation } => json!({ "root": name, "generation": generation }),
        Keeper::Process { session } => json!({ "process": session }),
        Keeper::Recent { used } => {
            let seconds = used.and_then(|used| used.duration_since(UNIX_EPOCH).ok());
            json!({ "last_used": seconds.map(|it| it.as_secs()) })
        }
    }
}
