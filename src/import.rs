//! `srp import`: what `srp export` wrote, from a file or a pipe.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueHint};
use serde_json::json;
use srp_store::Store;
use srp_store::cache::{Importer, Report, Verdict};

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::keyring::Keyring;
use crate::meter::Meter;
use crate::terminal;

/// Take what `srp export` wrote into the store
///
/// Everything is checked as it arrives. What is in the store already is passed over, so an import that
/// broke off is simply begun again. The store paths of what was exported are printed on standard
/// output. Objects are what their paths say; what they are the outputs of is believed if a trusted
/// key says so, as with binary caches, whenever `srp realise` needs to know it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The export [default: standard input, which must not be a terminal]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Believe what it says of derivations although nobody signed it
    #[arg(long)]
    trusted_unsigned: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp import /media/stick/stage1.srp
  ssh host srp export stage1.x86_64-musl | srp import";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let (from, name) = open(arguments.file.as_deref())?;
    let meter = Meter::new(context, "importing")?;
    let store = context.store()?;
    store.sweep()?;
    let policy = Keyring::of(context)?.policy(context)?;
    let importer =
        Importer { store: &store, policy: &policy, trusted_outright: arguments.trusted_unsigned };
    let passing = meter.clone();
    let failed = |error| CommandError::chain(ExitCode::User, error);
    let input = meter.interruptible(from.try_clone().map_err(failed)?);
    let progress = move |bytes| match bytes {
        // A pipe may say nothing for ever.
        0 => input.wait_to_read(),
        bytes => passing.pass(bytes),
    };
    let imported = importer.import(from, &name, Arc::new(progress));
    meter.finish();
    let report = imported.map_err(|error| meter.explain(error, "what had come whole is kept"))?;
    if !context.options.quiet {
        tell(context, &importer, &report)?;
    }
    if arguments.json {
        return terminal::answer_json(&as_json(&store, &importer, &report)?);
    }
    let mut paths = String::new();
    for asked in &report.contents.asked {
        let object = store.info(&asked.object)?.object.path_name();
        paths += &format!("{}\n", store.object_path(&object).display());
    }
    terminal::answer(&paths)
}

fn open(path: Option<&Path>) -> CommandResult<(File, String)> {
    if let Some(path) = path.filter(|path| *path != Path::new("-")) {
        let file = File::open(path).map_err(|error| {
            CommandError::new(ExitCode::User, format!("can't read {}: {error}", path.display()))
        })?;
        return Ok((file, path.display().to_string()));
    }
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(CommandError::usage("an export is no text, and this is a terminal")
            .hint("name the file, or give a pipe: ssh host srp export … | srp import"));
    }
    let file = input.as_fd().try_clone_to_owned();
    let file = file.map_err(|error| CommandError::chain(ExitCode::User, error))?.into();
    Ok((file, "standard input".to_owned()))
}

/// Says what came, and whether it will be believed.
fn tell(context: &Context, importer: &Importer<'_>, report: &Report) -> CommandResult {
    let mut text = format!("{} objects imported, {} were here", report.objects, report.present);
    if report.statements > 0 {
        text += &format!("; {} new statements", report.statements);
    }
    terminal::say(&text);
    let warn = |text: String| {
        terminal::say(&format!("{} {text}", context.style.warning("warning:")));
    };
    if report.unsigned > 0 {
        warn(format!(
            "{} statements were left out because nobody signed them; --trusted-unsigned keeps them",
            report.unsigned
        ));
    }
    if report.revoked > 0 {
        warn(format!("{} statements were left out: their key is revoked", report.revoked));
    }
    for asked in &report.contents.asked {
        let name = terminal::printable(&asked.name);
        match importer.verdict(asked)? {
            None => {}
            Some(verdict @ Verdict::Accepted { .. }) => {
                terminal::say(&format!("{name}: {verdict}"))
            }
            Some(verdict) => warn(format!("srp realise {name} will not take it: {verdict}")),
        }
    }
    Ok(())
}

fn as_json(
    store: &Store,
    importer: &Importer<'_>,
    report: &Report,
) -> CommandResult<serde_json::Value> {
    let mut imported = Vec::new();
    for asked in &report.contents.asked {
        let object = store.info(&asked.object)?.object.path_name();
        let verdict = importer.verdict(asked)?;
        imported.push(json!({
            "name": asked.name,
            "path": store.object_path(&object),
            "derivation": asked.derivation,
            "believed": matches!(verdict, Some(Verdict::Accepted { .. })),
            "verdict": verdict.map(|it| it.to_string()),
        }));
    }
    Ok(json!({
        "imported": imported,
        "objects": report.objects,
        "present": report.present,
        "statements": report.statements,
        "unsigned": report.unsigned,
        "revoked": report.revoked,
    }))
}
