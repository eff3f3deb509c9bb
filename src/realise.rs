//! `srp realise`: derivations to objects, and objects to root file systems.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde_json::{Value, json};
use srp_builder::Plan;
use srp_store::{Action, InputKey, ObjectName, ReferenceKind, Store, StoreError};

use crate::building::{self, Effort};
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::{Goals, Graph};
use crate::interrupt;
use crate::target::{Target, short};
use crate::terminal;

/// Build what an attribute stands for, or take it from the store
///
/// Sources are fetched and checked against their hashes, builders run in sandboxes, and what comes
/// out is kept in the store. What is there already is not built again, and what a binary cache of
/// the configuration has, signed by a trusted key, is fetched instead. The store path of each
/// attribute is printed on standard output, and registered as a GC root named by the attribute.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What to realise: attributes such as stage1.aarch64-musl.musl, or store paths
    #[arg(required = true, value_name = "ATTR|PATH")]
    targets: Vec<String>,
    /// Also write the closure to this new or empty directory, as a root file system
    ///
    /// It has the usual links and directories beside what the objects hold, and appears whole or
    /// not at all. Files are copies: changing them doesn't touch the store. The digest of the tree
    /// is printed on standard error; it is the same on every machine.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "dry_run")]
    rootfs: Option<PathBuf>,
    /// Only say what would be fetched and built
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Register no GC root
    #[arg(long)]
    no_root: bool,
    #[command(flatten)]
    effort: Effort,
}

const EXAMPLES: &str = "\
Examples:
  srp realise stage1.aarch64-musl
  srp realise stage1.aarch64-musl --rootfs ./root
  srp realise stage1.x86_64-musl stage1.aarch64-musl --keep-going
  srp realise stage1.aarch64-musl.check --dry-run";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    if arguments.rootfs.is_some() && arguments.targets.len() > 1 {
        return Err(CommandError::usage("--rootfs writes one root: give one attribute with it")
            .hint("a stage is what composes several things into one root"));
    }
    let targets = arguments
        .targets
        .iter()
        .map(|text| match Target::parse(text)? {
            Target::Hash(hash) => Err(CommandError::user(format!(
                "{hash} is a hash: attributes and store paths can be realised"
            ))),
            target => Ok(target),
        })
        .collect::<CommandResult<Vec<_>>>()?;
    let store = context.store()?;
    if arguments.dry_run {
        return dry_run(context, &store, &attributes(&targets), arguments);
    }
    let realised = realise(context, &store, &targets, arguments)?;
    if !arguments.no_root {
        for (target, (object, _)) in targets.iter().zip(&realised) {
            if let Target::Attribute(attr) = target {
                store.set_root(attr, object)?;
            }
        }
    }
    let written = match &arguments.rootfs {
        Some(directory) => Some(write_rootfs(context, &store, &realised[0].0, directory)?),
        None => None,
    };
    if arguments.json {
        return terminal::answer_json(&as_json(&store, &arguments.targets, &realised, written));
    }
    let paths: String = realised
        .iter()
        .map(|(object, _)| format!("{}\n", store.object_path(object).display()))
        .collect();
    terminal::answer(&paths)
}

/// What each target is, realised where it isn't yet; for attributes with what they stand for.
fn realise(
    context: &Context,
    store: &Store,
    targets: &[Target],
    arguments: &Arguments,
) -> CommandResult<Vec<(ObjectName, Option<InputKey>)>> {
    let attrs = attributes(targets);
    let mut made = if attrs.is_empty() {
        Vec::new().into_iter()
    } else {
        let goals = Goals::of(context, Some(store), &attrs)?;
        let keys = goals.keys();
        if arguments.rootfs.is_none() {
            // Most often there is nothing to do, and this is through in a moment.
            store.hold_gate()?;
        }
        let objects = building::ensure(context, store, goals, &arguments.effort)?;
        objects.into_iter().zip(keys.into_iter().map(Some)).collect::<Vec<_>>().into_iter()
    };
    let object = |target: &Target| match target {
        Target::Attribute(_) => Ok(made.next().expect("one for each attribute")),
        target => {
            let object = target.object(context, store)?;
            if !store.contains_closure(&[object.id])? {
                return Err(CommandError::user(format!(
                    "not everything that {object} needs is in the store"
                ))
                .hint("realise the attribute that it came from"));
            }
            Ok((object, None))
        }
    };
    targets.iter().map(object).collect()
}

fn attributes(targets: &[Target]) -> Vec<String> {
    let attribute = |target: &Target| match target {
        Target::Attribute(attr) => Some(attr.clone()),
        _ => None,
    };
    targets.iter().filter_map(attribute).collect()
}

fn write_rootfs(
    context: &Context,
    store: &Store,
    object: &ObjectName,
    directory: &Path,
) -> CommandResult<Value> {
    let directory = building::absolute(directory)?;
    if let Some(place) = directory.parent().and_then(|parent| parent.canonicalize().ok())
        && store.root().canonicalize().is_ok_and(|root| place.starts_with(root))
    {
        let message = format!("{} would lie in the store itself", directory.display());
        return Err(CommandError::usage(message).hint("write the root somewhere else"));
    }
    let object = store.info(&object.id)?.object;
    let composition = store.compose_object(&object, ReferenceKind::RUN)?;
    let cancel = interrupt::token()?;
    let written =
        composition.materialise(&directory, !context.config.unsynced, Some(cancel.flag()));
    let written = match written.inspect_err(|error| store.distrust_by(error)) {
        Err(StoreError::Cancelled) => {
            let message = "interrupted; nothing half-written stays";
            return Err(CommandError::new(ExitCode::Interrupted, message));
        }
        written => written?,
    };
    if cancel.is_cancelled() {
        let message = format!("interrupted when {} had been written", directory.display());
        return Err(CommandError::new(ExitCode::Interrupted, message));
    }
    if !context.options.quiet {
        terminal::say(&format!("{}  {}", written.digest, directory.display()));
    }
    for permission in &written.unapplied_permissions {
        let warning = context.style.warning("warning:");
        terminal::say(&format!("{warning} not applied, as only root can: {permission}"));
    }
    Ok(json!({
        "directory": directory,
        "digest": written.digest,
        "size_bytes": written.size_bytes,
        "unapplied_permissions": written.unapplied_permissions,
    }))
}

fn as_json(
    store: &Store,
    names: &[String],
    realised: &[(ObjectName, Option<InputKey>)],
    rootfs: Option<Value>,
) -> Value {
    let one = |(name, (object, key)): (&String, &(ObjectName, Option<InputKey>))| {
        let mut value = json!({ "asked": name, "path": store.object_path(object) });
        if let Some(key) = key {
            value["derivation"] = json!(key.derivation);
            value["output"] = json!(key.output);
        }
        value
    };
    let mut value = json!({ "realised": names.iter().zip(realised).map(one).collect::<Vec<_>>() });
    if let Some(rootfs) = rootfs {
        value["rootfs"] = rootfs;
    }
    value
}

fn dry_run(
    context: &Context,
    store: &Store,
    attrs: &[String],
    arguments: &Arguments,
) -> CommandResult {
    let graph = Goals::of(context, Some(store), attrs)?.graph()?;
    let (_, plan) = building::plan(context, store, &graph, &arguments.effort)?;
    if arguments.json {
        return terminal::answer_json(&plan_as_json(&plan, &graph));
    }
    if plan.order().is_empty() {
        terminal::say("nothing to do");
        return Ok(());
    }
    for hash in plan.order() {
        let derivation = &graph.derivations[&hash];
        if let Some(offer) = plan.offers.get(&hash) {
            let caches: Vec<&str> = offer.caches().into_iter().collect();
            let from = match caches.is_empty() {
                true => "it is here".to_owned(),
                false => {
                    format!("{} from {}", indicatif::HumanBytes(offer.bytes()), caches.join(", "))
                }
            };
            let name = &derivation.name;
            terminal::say(&format!("substitute  {}  {name}  ({from})", short(&hash)));
            continue;
        }
        let verb = match derivation.action {
            Action::Fetch(_) => "fetch  ",
            Action::Build(_) => "build  ",
            Action::Stage(_) => "compose",
        };
        let mut line = format!("{verb}  {}  {}", short(&hash), derivation.name);
        if !derivation.version.is_empty() {
            line += &format!(" {}", derivation.version);
        }
        if let Some(bytes) = derivation.advice.size_bytes {
            line += &format!("  ({})", indicatif::HumanBytes(bytes));
        }
        terminal::say(&line);
    }
    let (fetches, builds) = counts(&plan, &graph);
    let order = plan.order();
    let made = order.iter().filter(|hash| !plan.offers.contains_key(hash));
    let bytes: u64 = made.filter_map(|hash| graph.derivations[hash].advice.size_bytes).sum();
    if !plan.offers.is_empty() {
        terminal::say(&format!(
            "{} to substitute ({})",
            plan.offers.len(),
            indicatif::HumanBytes(plan.offered_bytes())
        ));
    }
    terminal::say(&format!(
        "at most {fetches} to fetch ({}) and {builds} to build or compose",
        indicatif::HumanBytes(bytes)
    ));
    Ok(())
}

fn counts(plan: &Plan, graph: &Graph) -> (usize, usize) {
    let fetch =
        |hash: &srp_store::StaticHash| matches!(graph.derivations[hash].action, Action::Fetch(_));
    let order: Vec<_> =
        plan.order().into_iter().filter(|hash| !plan.offers.contains_key(hash)).collect();
    let fetches = order.iter().filter(|hash| fetch(hash)).count();
    (fetches, order.len() - fetches)
}

fn plan_as_json(plan: &Plan, graph: &Graph) -> Value {
    let of = |wanted: &dyn Fn(&Action) -> bool| {
        let mut list = Vec::new();
        for hash in plan.order() {
            let derivation = &graph.derivations[&hash];
            if wanted(&derivation.action) && !plan.offers.contains_key(&hash) {
                list.push(json!({
                    "derivation": hash,
                    "name": derivation.name,
                    "version": derivation.version,
                    "size_bytes": derivation.advice.size_bytes,
                }));
            }
        }
        list
    };
    let substitute = plan.offers.iter().map(|(hash, offer)| {
        json!({
            "derivation": hash,
            "name": graph.derivations[hash].name,
            "objects": offer.parts.len(),
            "size_bytes": offer.bytes(),
            "caches": offer.caches(),
            "by": offer.by,
        })
    });
    json!({
        "substitute": substitute.collect::<Vec<_>>(),
        "fetch": of(&|action| matches!(action, Action::Fetch(_))),
        "build": of(&|action| matches!(action, Action::Build(_))),
        "compose": of(&|action| matches!(action, Action::Stage(_))),
    })
}
