//! `srp why-depends`: by which references one object needs another.

use clap::Args;
use srp_store::{ObjectName, Store};

use crate::closure::kinds;
use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::target::Target;
use crate::terminal;

/// Show by which references one object needs another
///
/// The shortest chain of references is printed, one store path a line. If there is none, nothing
/// is printed on standard output.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  srp why-depends stage1.aarch64-musl libunwind\n  srp why-depends stage1.aarch64-musl.libcxx stage1.aarch64-musl.linux-headers --develop"
)]
pub(crate) struct Arguments {
    /// What needs the other: a realised attribute, or a store path
    #[arg(value_name = "ATTR|PATH")]
    from: String,
    /// What is needed: a realised attribute, a store path, or the name of an object
    #[arg(value_name = "ATTR|PATH|NAME")]
    to: String,
    /// Also follow what is needed to build against something: headers, static libraries
    #[arg(long)]
    develop: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_to_read()?;
    let from = Target::parse(&arguments.from)?.object(context, &store)?;
    let wanted = wanted(context, &store, arguments, &from)?;
    let mut found = false;
    for to in &wanted {
        let Some(chain) = store.reference_chain(&from.id, &to.id, kinds(arguments.develop))? else {
            continue;
        };
        let mut text = String::new();
        for (depth, object) in chain.iter().enumerate() {
            let path = store.object_path(object);
            text += &format!("{:indent$}{}\n", "", path.display(), indent = 2 * depth);
        }
        terminal::answer(&text)?;
        found = true;
    }
    if !found {
        let also = if arguments.develop {
            ""
        } else {
            " when it runs (with --develop, what is built against counts too)"
        };
        terminal::say(&format!("{from} doesn't need {}{also}", arguments.to));
    }
    Ok(())
}

/// The objects that are meant: those of that name that can be reached, or one that is named
/// outright.
fn wanted(
    context: &Context,
    store: &Store,
    arguments: &Arguments,
    from: &ObjectName,
) -> CommandResult<Vec<ObjectName>> {
    let name = &arguments.to;
    let reachable = store.closure(&[from.id], kinds(true))?;
    let named: Vec<ObjectName> = reachable
        .iter()
        .map(|(_, info)| info.object.path_name())
        .filter(|object| object.name.as_str() == name)
        .collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let target = Target::parse(name)?;
    // An attribute has a dot; anything else that isn't reachable could only be a name.
    if matches!(&target, Target::Attribute(attr) if !attr.contains('.')) {
        return Ok(Vec::new());
    }
    Ok(vec![target.object(context, store).map_err(|error: CommandError| {
        error.hint("the second argument may also be the name of an object, such as musl")
    })?])
}
