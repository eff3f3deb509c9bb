//! `srp shell`: entering the root that an attribute stands for.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use srp_builder::sandbox::{Bind, Status};
use srp_builder::{Machine, RunnerSpec, Shell, ShellError, ShellRequest};
use srp_store::{Action, Assurance, InputKey, ObjectId, ObjectName, Store, Triple};

use crate::building::{self, Effort};
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::{Goals, Graph};
use crate::interrupt;
use crate::target::{Target, realised};

/// Run a shell or a command in the root that an attribute stands for
///
/// What the attribute stands for is realised, and its closure becomes the root file system of a
/// sandbox like those of builds: no network, nothing of the host, an ordinary user. What is written
/// in it is gone afterwards. In a toolchain, what is compiled against lies at /srp/sysroot, read-only,
/// and programs linked against that run there. Those of other architectures run by the emulators that
/// the definitions name.
///
/// srp exits with the command's exit code, or with 128 and the signal's number.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What to enter: an attribute such as stage1.aarch64-musl.toolchain, or a store path
    #[arg(value_name = "ATTR|PATH")]
    target: String,
    /// The command [default: a shell]
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Let a directory of the host appear at a path inside, /work if none is said; it can be
    /// written to
    #[arg(long, value_name = "DIR[:PATH]", value_parser = parse_bind)]
    #[arg(value_hint = ValueHint::DirPath)]
    bind: Vec<(PathBuf, String)>,
    #[command(flatten)]
    effort: Effort,
}

const EXAMPLES: &str = "\
Examples:
  srp shell stage1.aarch64-musl.toolchain
  srp shell stage1.aarch64-musl.toolchain -- aarch64-unknown-linux-musl-clang --version
  srp shell stage1.aarch64-musl.toolchain --bind . -- make -C /work";

/// Where a directory of the host appears unless something else is said.
const WORK: &str = "/work";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult<u8> {
    let store = context.store()?;
    let machine = Machine::here();
    let (object, host, graph) = enter(context, &store, arguments)?;
    let shell = Shell::new(&store, &object, host.as_ref())?;
    let known = graph.as_ref().map(|graph| graph.runners.clone()).unwrap_or_default();
    let wanted = shell.emulated(&arguments.command, &machine, &known).map_err(failed)?;
    let mut runners = BTreeMap::new();
    for arch in wanted {
        let graph = graph.as_ref().expect("emulators are known from it");
        let object = runner(context, &store, graph, &known[&arch], &arguments.effort)?;
        runners.insert(arch.clone(), (known[&arch].clone(), object));
    }
    let request = ShellRequest {
        command: arguments.command.clone(),
        term: crate::config::text(&|name| std::env::var_os(name), "TERM"),
        binds: binds(&arguments.bind)?,
        runners,
    };
    let cancel = interrupt::token()?;
    let assurance =
        Assurance { cancel: Some(cancel.flag()), ..Assurance::within(store.validity().building) };
    let plan = shell.plan(&request, &machine, &assurance).map_err(failed)?;
    let signals = interrupt::forward()?;
    let outcome = building::launcher()
        .run_interactive(&plan, signals.as_fd(), &cancel)
        .map_err(CommandError::from)?;
    match outcome.status {
        Status::Exited(code) => Ok(u8::try_from(code).unwrap_or(ExitCode::User as u8)),
        Status::Signaled(signal) => Ok(u8::try_from(128 + signal).unwrap_or(ExitCode::User as u8)),
        Status::Cancelled => Ok(ExitCode::Interrupted as u8),
        Status::LimitExceeded(limit) => {
            Err(CommandError::user(format!("it was stopped: {limit:?}")))
        }
    }
}

/// The object to enter, where its programs run, and the graph if there are definitions.
fn enter(
    context: &Context,
    store: &Store,
    arguments: &Arguments,
) -> CommandResult<(ObjectName, Option<Triple>, Option<Graph>)> {
    match Target::parse(&arguments.target)? {
        Target::Attribute(attr) => {
            let attrs = [attr];
            let goals = Goals::of(context, Some(store), &attrs)?;
            let object = building::ensure(context, store, goals, &arguments.effort)?.remove(0);
            let graph = Goals::of(context, Some(store), &attrs)?.graph()?;
            let host = match &graph.derivations[&graph.goals[0].1.derivation].action {
                Action::Build(build) => Some(build.host.clone()),
                Action::Stage(_) | Action::Fetch(_) => None,
            };
            Ok((object, host, Some(graph)))
        }
        target => {
            let object = target.object(context, store)?;
            // Without definitions there are no emulators, and what is native runs all the same.
            let graph = match Goals::of(context, Some(store), &[]) {
                Ok(goals) => Some(goals.graph()?),
                Err(error) => {
                    tracing::debug!(?error, "no emulators: there are no definitions");
                    None
                }
            };
            Ok((object, None, graph))
        }
    }
}

/// An emulator's object, realised.
fn runner(
    context: &Context,
    store: &Store,
    graph: &Graph,
    spec: &RunnerSpec,
    effort: &Effort,
) -> CommandResult<ObjectId> {
    let key: &InputKey = &spec.key;
    if let Some(object) = realised(store, key)? {
        return Ok(object.id);
    }
    let workshop = building::Workshop::open(context, effort)?;
    let request = graph.request(vec![key.clone()]);
    Ok(workshop.realise(context, store, &request)?.remove(0).id)
}

fn binds(asked: &[(PathBuf, String)]) -> CommandResult<Vec<Bind>> {
    let bind = |(source, target): &(PathBuf, String)| {
        let source = building::absolute(source)?;
        let directory = std::fs::metadata(&source).map_err(|error| {
            CommandError::user(format!("can't bind {}: {error}", source.display()))
        })?;
        Ok(Bind { source, target: target.clone(), writable: true, directory: directory.is_dir() })
    };
    asked.iter().map(bind).collect()
}

/// `DIR[:PATH]`.
fn parse_bind(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((_, path)) if !path.starts_with('/') => Err(format!("{path} is not an absolute path")),
        Some(("", _)) | None if text.is_empty() => Err("a directory is expected".to_owned()),
        Some((directory, path)) => Ok((PathBuf::from(directory), path.to_owned())),
        None => Ok((Path::new(text).to_owned(), WORK.to_owned())),
    }
}

fn failed(error: ShellError) -> CommandError {
    match error {
        ShellError::Store(error) => error.into(),
        ShellError::NoShell { .. } => CommandError::chain(ExitCode::User, error)
            .hint("name a program: srp shell ATTR -- PROGRAM"),
        error => CommandError::chain(ExitCode::User, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_parsed() {
        let parsed = |directory: &str, path: &str| Ok((directory.into(), path.to_owned()));
        assert_eq!(parse_bind("."), parsed(".", "/work"));
        assert_eq!(parse_bind("/a:/b"), parsed("/a", "/b"));
        assert_eq!(parse_bind("/a:b:/c"), parsed("/a:b", "/c"));
        assert!(parse_bind("a:b").is_err() && parse_bind("").is_err());
    }
}
