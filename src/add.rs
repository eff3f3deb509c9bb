//! `srp add`: files and trees as store objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueHint};
use srp_builder::CancelToken;
use srp_store::ingest::{self, Rules};
use srp_store::{Name, Object, Registration, Scratch, Store};

use crate::building::absolute;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::{interrupt, terminal};

/// Add files or directories to the store
///
/// Each becomes an object: a copy, normalised as a build's output is, without references. A file
/// becomes the one entry of its object, under its own name. The store paths are printed on
/// standard output.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  srp add ./rootfs --name my-rootfs")]
pub(crate) struct Arguments {
    /// What to add
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    paths: Vec<PathBuf>,
    /// What to call the object [default: the path's last component]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    if arguments.name.is_some() && arguments.paths.len() > 1 {
        return Err(CommandError::usage("--name names one object: give one path with it"));
    }
    let cancel = interrupt::token()?;
    let store = context.store()?;
    store.sweep()?;
    let mut registration = Registration::default();
    // They hold what is to be moved into the store, and go when all of it is there.
    let mut scratches = Vec::new();
    let mut paths = String::new();
    for path in &arguments.paths {
        let object = add(&store, path, arguments, &cancel, &mut registration, &mut scratches)?;
        paths += &format!("{}\n", store.object_path(&object.path_name()).display());
    }
    store.commit(registration)?;
    terminal::answer(&paths)
}

fn add(
    store: &Store,
    path: &Path,
    arguments: &Arguments,
    cancel: &CancelToken,
    registration: &mut Registration,
    scratches: &mut Vec<Scratch>,
) -> CommandResult<Object> {
    let path = absolute(path)?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => {
            let last = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            last.parse().map_err(|error: srp_store::name::NameError| {
                CommandError::chain(ExitCode::User, error).hint("say another by --name")
            })?
        }
    };
    let scratch = store.scratch()?;
    let tree = scratch.path().join("tree");
    let rules = Rules { cancel: Some(cancel.flag()), ..Rules::default() };
    let listing = Arc::new(ingest::copy(&path, &tree, rules)?);
    let object =
        Object { name, tree: listing.digest(), references: [].into(), permissions: [].into() };
    registration.object(store, &object, listing, tree);
    scratches.push(scratch);
    Ok(object)
}
