//! `srp audit`: whether rebuilding what is in the store comes out the same, and if not, why.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};
use serde_json::json;
use srp_builder::Request;
use srp_builder::audit::{Audit, AuditError, AuditOptions, Dimension, Status};
use srp_store::StaticHash;

use crate::audit_against;
use crate::audit_evidence::{self, Evidence};
use crate::audit_pages::{self, Place};
use crate::audit_text;
use crate::building::{self, Effort, Workshop};
use crate::context::Context;
use crate::diffoscope;
use crate::error::{CommandError, CommandResult, ExitCode, causes};
use crate::goals::{Goals, Graph};
use crate::progress::Progress;
use crate::terminal;

/// Rebuild what is in the store, and say whether it comes out the same
///
/// Each derivation is rebuilt from what it was built from, in a sandbox whose circumstances are
/// varied: another host name, another user, another build path, fewer processors … What comes out
/// is compared with what the store has registered. If it differs, more rebuilds find out under
/// which circumstances, the files that differ are looked into, and likely causes are named.
/// Nothing is registered: the store is as it was. What was found is remembered: an audit that was
/// interrupted goes on where it was. With --against nothing is built: what caches and their signers
/// say is compared with what the store has registered.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What to audit: attributes that are realised
    #[arg(required = true, value_name = "ATTR")]
    attrs: Vec<String>,
    /// Also audit everything that they are made from
    #[arg(long)]
    closure: bool,
    /// How many rebuilds vary everything, each with another date: more find what differs rarely
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// What is varied, separated by commas [default: everything but the runner]
    ///
    /// With the runner, builds run in an emulator of this machine's own architecture. They take many
    /// times as long; what they come to is remembered beside what other audits have found.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = dimension_parser())]
    vary: Vec<Dimension>,
    /// Also rebuild with each dimension alone, and say what it costs
    #[arg(long)]
    costs: bool,
    /// Rebuild also what an earlier audit has found out about
    #[arg(long)]
    again: bool,
    /// Where outputs that differ are kept [default: audits/ in the store]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    keep: Option<PathBuf>,
    /// Also write the report as pages for a browser: DIR is made, or the earlier report in it replaced
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    html: Option<PathBuf>,
    /// Also have diffoscope report on what differs: beside what is kept
    #[arg(long)]
    diffoscope: bool,
    /// How many derivations are audited at once
    #[arg(long, short, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,
    /// How many cores builds share [default: all]
    #[arg(long, value_name = "N")]
    cores: Option<NonZeroUsize>,
    /// Build nothing: compare with what this cache, and who signs there, say; can be given again
    #[arg(long, value_name = "CACHE")]
    #[arg(conflicts_with_all = ["rounds", "vary", "costs", "again", "keep", "html", "diffoscope", "jobs", "cores"])]
    against: Vec<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    // Last: its heading is that of what follows it.
    #[command(flatten)]
    evidence: audit_evidence::Arguments,
}

const EXAMPLES: &str = "\
Examples:
  srp audit stage1.x86_64-musl.musl
  srp audit stage1.x86_64-musl --closure --json
  srp audit stage1.x86_64-musl.libunwind --vary build-path,user --rounds 3
  srp audit stage1.x86_64-musl.libunwind --vary runner
  srp audit stage1.x86_64-musl --closure --html ./report
  srp audit stage1.x86_64-musl --closure --against https://cache.example/srp";

fn dimension_parser() -> impl TypedValueParser<Value = Dimension> {
    let names = Dimension::ALL.iter().map(|dimension| dimension.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Dimension>())
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    // A store is not made to find out that it has nothing.
    context.store_to_read()?;
    let store = match arguments.against.is_empty() {
        true => context.store()?,
        false => context.store_to_publish()?,
    };
    let graph = Goals::of(context, Some(&store), &arguments.attrs)?.graph()?;
    let wanted = wanted(&graph, arguments.closure);
    if !arguments.against.is_empty() {
        let (caches, json) = (&arguments.against, arguments.json);
        return audit_against::run(context, &store, &graph, &wanted, caches, json);
    }
    let evidence = Evidence::asked_for(context, &arguments.evidence)?;
    let place = arguments.html.as_deref().map(Place::find).transpose()?;
    if arguments.diffoscope {
        diffoscope::find()?;
    }
    let effort = Effort {
        jobs: Some(arguments.jobs),
        cores: arguments.cores,
        no_substitute: true,
        ..Effort::default()
    };
    let workshop = Workshop::open(context, &effort)?;
    store.sweep()?;
    let keep = match &arguments.keep {
        Some(directory) => {
            let directory = building::absolute(directory)?;
            // Before anything is rebuilt that could then not be kept.
            std::fs::create_dir_all(&directory).map_err(|error| {
                CommandError::user(format!("can't create {}: {error}", directory.display()))
            })?;
            directory
        }
        None => store.directory("audits"),
    };
    let dimensions: BTreeSet<Dimension> = match arguments.vary.is_empty() {
        true => Dimension::ALL.iter().copied().filter(|it| !it.by_itself()).collect(),
        false => arguments.vary.iter().copied().collect(),
    };
    let options = AuditOptions {
        dimensions,
        rounds: arguments.rounds.into(),
        costs: arguments.costs,
        keep,
        again: arguments.again,
    };
    let request = graph.request(graph.keys());

    let progress = Progress::new(context, &workshop.cancel);
    let builder = workshop.builder(&store);
    let not_left: Mutex<Option<CommandError>> = Mutex::default();
    let audit = |hash: &StaticHash| {
        let audit = builder.audit(&request, hash, &options, &progress, &workshop.cancel)?;
        if let Err(error) = evidence.leave(&store, &request, &audit) {
            let mut first = not_left.lock().expect("no holder panics");
            let code = match building::is_damage(&error) {
                true => ExitCode::Integrity,
                false => ExitCode::User,
            };
            first.get_or_insert_with(|| CommandError::chain(code, error));
        }
        Ok(audit)
    };
    let audits = audit_all(&request, &wanted, arguments.jobs.into(), &audit);
    progress.finish();
    let (mut audits, damaged) = audits?;
    // What can't be added to the report, or left for others, costs nobody the report.
    let mut errors = Vec::new();
    if arguments.diffoscope {
        errors.extend(diffoscope::add(&store, &mut audits).err());
    }
    let mut first_page = None;
    match place.map(|place| audit_pages::write(&place, &audits, &command())).transpose() {
        Ok(page) => first_page = page,
        Err(error) => errors.push(error),
    }
    if arguments.json {
        let signer = evidence.signer();
        terminal::answer_json(&json!({ "format": 1, "audits": audits, "signed_by": signer }))?;
    } else {
        terminal::answer(&audit_text::report(&audits))?;
        let signed = audits.iter().any(|audit| audit.witness.is_some());
        if let Some(signer) = evidence.signer().filter(|_| signed) {
            terminal::say(&format!(
                "signed as built here by {signer}; srp cache push publishes it"
            ));
        }
    }
    if let Some(first) = first_page {
        let line = format!("pages: {}", first.display());
        match arguments.json {
            true => terminal::say(&line),
            false => terminal::answer(&format!("{line}\n"))?,
        }
    }
    errors.extend(not_left.into_inner().expect("no holder panics"));
    // The last, whose exit code counts: that something differs is the worst that there is to say.
    errors.extend(verdict(&audits, arguments.closure, damaged).err());
    let Some(last) = errors.pop() else { return Ok(()) };
    for error in errors {
        error.print(context.style);
    }
    Err(last)
}

/// The command as it was given.
fn command() -> Vec<String> {
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once("srp".to_owned()).chain(arguments).collect()
}

/// What is to be audited, inputs before what is made from them.
fn wanted(graph: &Graph, closure: bool) -> Vec<StaticHash> {
    let goals: Vec<StaticHash> = graph.goals.iter().map(|(_, key)| key.derivation).collect();
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    // An explicit stack: what is left when all below it is done comes after that.
    let mut stack: Vec<(StaticHash, bool)> =
        goals.iter().rev().map(|hash| (*hash, false)).collect();
    while let Some((hash, below_is_done)) = stack.pop() {
        if below_is_done {
            order.push(hash);
            continue;
        }
        if !seen.insert(hash) {
            continue;
        }
        stack.push((hash, true));
        if closure && let Some(derivation) = graph.derivations.get(&hash) {
            let inputs = derivation.inputs().iter().map(|input| input.key.derivation);
            stack.extend(inputs.map(|input| (input, false)));
        }
    }
    order
}

/// Audits all, some at once; the reports in the order of `wanted`, and whether some couldn't be
/// audited because something in the store is damaged.
fn audit_all(
    request: &Request,
    wanted: &[StaticHash],
    jobs: usize,
    audit: &(dyn Fn(&StaticHash) -> Result<Audit, AuditError> + Sync),
) -> CommandResult<(Vec<Audit>, bool)> {
    let next = Mutex::new(wanted.iter().enumerate());
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some((number, hash)) = { next.lock().expect("no holder panics").next() } {
            let result = audit(hash);
            let end = matches!(result, Err(AuditError::Cancelled));
            done.lock().expect("no holder panics").push((number, result));
            if end {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(wanted.len()) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|(number, _)| *number);
    let mut damaged = false;
    let report = |(number, result): (usize, Result<Audit, AuditError>)| match result {
        Ok(audit) => Ok(audit),
        Err(AuditError::Failed { source, .. }) => {
            damaged |= building::is_damage(&source);
            let hash = &wanted[number];
            let reason = format!("{source}\n{}", causes(&*source)).trim_end().to_owned();
            let derivation = &request.derivations[hash];
            Ok(Audit::of(hash, derivation, Status::Unknown { reason }))
        }
        Err(error) => Err(error.into()),
    };
    let audits = done.into_iter().map(report).collect::<CommandResult<_>>()?;
    Ok((audits, damaged))
}

/// The command's end: what differs is worse than what is unknown.
fn verdict(audits: &[Audit], closure: bool, damaged: bool) -> CommandResult {
    let count =
        |wanted: fn(&Status) -> bool| audits.iter().filter(|audit| wanted(&audit.status)).count();
    let differing = count(|status| matches!(status, Status::Differs));
    let unknown = count(|status| matches!(status, Status::Unknown { .. }));
    let audited = differing + count(|status| matches!(status, Status::Identical));
    if differing > 0 {
        let what = match differing {
            1 => "1 derivation is not reproducible".to_owned(),
            several => format!("{several} derivations are not reproducible"),
        };
        return Err(CommandError::new(ExitCode::Differs, what));
    }
    if unknown > 0 {
        let what = format!("{unknown} of {} could not be audited", unknown + audited);
        if damaged {
            let hint = "what is damaged counts as not here: srp realise makes it anew";
            return Err(CommandError::new(ExitCode::Integrity, what).hint(hint));
        }
        let hint = "where something is missing, srp realise has it built, with its inputs";
        return Err(CommandError::user(what).hint(hint));
    }
    if audited == 0 {
        terminal::say(match closure {
            false => "nothing of that is built: --closure also audits what it is made from",
            true => "nothing of that, and of what it is made from, is built",
        });
    }
    Ok(())
}
