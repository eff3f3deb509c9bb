//! `srp store verify`: whether the store is what its digests say, and putting right what isn't.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use srp_builder::{CancelToken, Known, RealiseError};
use srp_store::verify::{Finding, Outcome, Part, Remedy, Report, Subject, Verification, Watch};
use srp_store::{Access, Store, StoreError};

use crate::building::{Effort, Workshop};
use crate::cache::counted;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::Goals;
use crate::interrupt;
use crate::keyring::Keyring;
use crate::options;
use crate::progress::Progress;
use crate::target::Target;
use crate::terminal;

/// Compare the store with its digests, and repair what is damaged
///
/// Records, listings, store paths, roots, derivations and statements are always looked at, all of
/// them: whether each is valid, and whether everything that it names is there. Of the bytes of trees,
/// composed roots and sources a tenth is hashed, that which was not verified for the longest time:
/// after ten runs all have had their turn. With --all everything is hashed; with paths or attributes
/// all that these objects and everything that they refer to consist of, and nothing else is looked at.
///
/// Nothing is changed, but that the time of verification is kept in a store of one's own. Whoever may
/// read the store may verify it, and builds may run meanwhile. What is found to be damaged counts as
/// not here from then on: srp realise makes it anew.
///
/// With --repair, what is damaged is put right: made anew from what it follows from; copied from an
/// equal file in another tree; fetched from a binary cache of the configuration; fetched from where
/// its source came from; built again. Each is compared with the digest of what was lost: a build that
/// comes out differently is reported, and is no repair. Nothing that may be of use is removed before
/// what replaces it is on the disk.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only these, and what they refer to: store paths, or realised attributes
    #[arg(value_name = "ATTR|PATH", conflicts_with = "all")]
    targets: Vec<String>,
    /// Hash everything
    #[arg(long)]
    all: bool,
    /// Put right what is damaged
    #[arg(long)]
    repair: bool,
    /// Repair without building
    #[arg(long, requires = "repair")]
    no_build: bool,
    /// Repair without asking binary caches
    #[arg(long, requires = "repair")]
    no_substitute: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp store verify                        now and then, from a timer
  srp store verify --all                  after a defective disk or memory
  srp store verify --all --repair
  srp store verify stage1.aarch64-musl";

/// So many places in one tree are shown to people.
const MOST_PLACES: usize = 8;
/// How often it is said how far it is, where there is no terminal.
const PLAIN: Duration = Duration::from_secs(10);

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let cancel = interrupt::token()?;
    let store = open(context, arguments.repair)?;
    let part = part(context, &store, arguments)?;
    let keys = Keyring::of(context)?.known(context)?;
    let watch = Watch { cancel: Some(cancel.flag()), ..Watch::default() };
    let how = Verification { part: &part, keys: &keys, watch: &watch };
    let verified = watched(context, &watch, || store.verify_store(how));
    let interrupted =
        |kept: &str| CommandError::new(ExitCode::Interrupted, format!("interrupted; {kept}"));
    let mut report = match verified {
        Err(StoreError::Cancelled) => {
            return Err(interrupted("what was verified until then needn't be for now"));
        }
        report => report?,
    };
    let evaluations = srp_eval::Cache::new(&store.directory("eval"));
    if arguments.targets.is_empty() {
        for (path, problem) in evaluations.damaged() {
            report.findings.push(Finding::new(Subject::Evaluation, path, problem));
        }
    }
    if arguments.repair {
        let left = repair(context, &store, how, &mut report, arguments, &cancel);
        match left {
            Err(error) if cancel.is_cancelled() => {
                drop(error);
                tell(context, &report, arguments)?;
                return Err(interrupted("what was repaired until then is"));
            }
            left => left?,
        }
    }
    tell(context, &report, arguments)?;
    verdict(context, &report, arguments)
}

/// The store: for writing where that is possible, so that it is kept what was verified when.
fn open(context: &Context, repair: bool) -> CommandResult<Store> {
    let path = context.store_path()?;
    // A store is not made to find out that it has nothing.
    let store = Store::open_damaged(&path, Access::Read)?;
    let writable = Store::open_damaged(&path, Access::Write);
    if repair {
        return Ok(writable?);
    }
    Ok(writable.unwrap_or(store))
}

fn part(context: &Context, store: &Store, arguments: &Arguments) -> CommandResult<Part> {
    if arguments.targets.is_empty() {
        return Ok(if arguments.all { Part::All } else { Part::Oldest });
    }
    let mut ids = Vec::new();
    for text in &arguments.targets {
        match Target::parse(text)? {
            Target::Object(object) => ids.push(object.id),
            Target::Attribute(attr) => {
                let goals = Goals::of(context, Some(store), std::slice::from_ref(&attr))?;
                // As it is chosen here, whether or not all of it is there.
                let key = goals.keys().remove(0);
                let claim = store.claim(&key.derivation)?;
                let id = claim.and_then(|claim| claim.outputs.get(&key.output).copied());
                ids.push(id.ok_or_else(|| {
                    CommandError::user(format!("{attr} is not realised"))
                        .hint(format!("srp realise {attr}"))
                })?);
            }
            target @ Target::Hash(_) => ids.push(target.object(context, store)?.id),
        }
    }
    Ok(Part::Closure(ids))
}

/// Does something, and shows how far it is.
fn watched<T>(context: &Context, watch: &Watch<'_>, work: impl FnOnce() -> T) -> T {
    if context.options.quiet {
        return work();
    }
    let live = match context.options.progress {
        options::ProgressStyle::Auto => console::Term::stderr().is_term(),
        options::ProgressStyle::Live => true,
        options::ProgressStyle::Plain => false,
    };
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Without a thread of its own nothing is shown.
        let shown = std::thread::Builder::new().spawn_scoped(scope, move || match live {
            true => show_live(watch, &ended),
            false => show_plain(watch, &ended),
        });
        drop(shown);
        let done = work();
        drop(end);
        done
    })
}

fn show_live(watch: &Watch<'_>, ended: &mpsc::Receiver<()>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let counting = ProgressStyle::with_template("reading records  {elapsed}");
    let hashing = ProgressStyle::with_template(
        "verifying  {percent} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left",
    );
    bar.set_style(counting.expect("the template is valid"));
    let hashing = hashing.expect("the template is valid");
    let mut known = false;
    while ended.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
        let total = watch.total_bytes.load(Ordering::Relaxed);
        if total > 0 && !known {
            known = true;
            bar.set_style(hashing.clone());
            bar.set_length(total);
            bar.reset();
        }
        bar.set_position(watch.read_bytes.load(Ordering::Relaxed));
        bar.tick();
    }
    bar.finish_and_clear();
}

fn show_plain(watch: &Watch<'_>, ended: &mpsc::Receiver<()>) {
    let began = Instant::now();
    while ended.recv_timeout(PLAIN) == Err(RecvTimeoutError::Timeout) {
        let total = watch.total_bytes.load(Ordering::Relaxed);
        let read = watch.read_bytes.load(Ordering::Relaxed);
        if let Some(percent) = read.saturating_mul(100).checked_div(total) {
            let rate = read as f64 / began.elapsed().as_secs_f64();
            terminal::say(&format!(
                "verifying: {} %, {} of {}, {}/s",
                percent,
                HumanBytes(read),
                HumanBytes(total),
                HumanBytes(rate as u64)
            ));
        }
    }
}

/// Puts right what can be.
fn repair(
    context: &Context,
    store: &Store,
    how: Verification<'_>,
    report: &mut Report,
    arguments: &Arguments,
    cancel: &CancelToken,
) -> CommandResult {
    store.repair(how, report)?;
    let known = known(context, store, report);
    for finding in report.findings.iter_mut().filter(|it| it.subject == Subject::Evaluation) {
        let removed = match std::fs::remove_file(&finding.path) {
            Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {
                srp_store::remove_tree(&finding.path)
                    .map_err(|error| std::io::Error::other(error.to_string()))
            }
            removed => removed,
        };
        match removed {
            Ok(()) => finding.mended(Remedy::Removed),
            Err(error) => finding.unmended(format!("it can't be removed: {error}")),
        }
    }
    if report.unmended().next().is_none() {
        return Ok(());
    }
    let effort = Effort {
        no_build: arguments.no_build,
        no_substitute: arguments.no_substitute,
        ..Effort::default()
    };
    let workshop = Workshop::open(context, &effort)?;
    let progress = Progress::new(context, cancel);
    let mended = workshop.builder(store).mend(how, report, &known, &progress, cancel);
    progress.finish();
    match mended {
        Err(RealiseError::Failed { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What definitions say of what is damaged: from the evaluation cache, and from those at hand.
fn known(context: &Context, store: &Store, report: &Report) -> Known {
    let mut known = Known::default();
    if report.unmended().next().is_none() {
        return known;
    }
    known.derivations = srp_eval::Cache::new(&store.directory("eval")).derivations();
    // None at hand, or others: then that is all that is known.
    if let Ok(graph) = Goals::of(context, Some(store), &[]).and_then(Goals::graph) {
        known.derivations.extend(graph.derivations);
        known.runners = graph.runners;
    }
    for entry in std::fs::read_dir(store.directory("roots")).into_iter().flatten().flatten() {
        let attr = entry.file_name().to_string_lossy().into_owned();
        match Goals::of(context, Some(store), &[attr]).and_then(Goals::graph) {
            Ok(graph) => known.derivations.extend(graph.derivations),
            // A root may be called anything.
            Err(_) => tracing::debug!("{entry:?} is no attribute of the definitions at hand"),
        }
    }
    known
}

fn tell(context: &Context, report: &Report, arguments: &Arguments) -> CommandResult {
    if arguments.json {
        return terminal::answer_json(&as_json(report));
    }
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "{}: {}", finding.path.display(), finding.problem);
        for damage in finding.damages.iter().take(MOST_PLACES) {
            let _ = writeln!(text, "    {damage}");
        }
        let more = finding.damages.len().saturating_sub(MOST_PLACES);
        if more > 0 {
            let _ = writeln!(text, "    and {} more", counted(more, "place"));
        }
        match &finding.outcome {
            Some(Outcome::Mended(remedy)) => drop(writeln!(text, "    mended: {remedy}")),
            Some(Outcome::Unmended(why)) => drop(writeln!(text, "    not mended: {why}")),
            None => {}
        }
    }
    for unread in &report.unread {
        let _ = writeln!(text, "{}: not verified: {}", unread.path.display(), unread.reason);
    }
    terminal::answer(&text)?;
    if !context.options.quiet {
        if !report.leftovers.is_empty() {
            terminal::say(&format!(
                "{} of killed processes; the next srp realise that has work to do removes that",
                counted(report.leftovers.len(), "leftover")
            ));
        }
        let seen = &report.looked_at;
        terminal::say(&format!(
            "verified: {}, and {} in {} ({} of {})",
            counted(seen.records, "record"),
            counted(seen.files, "file"),
            counted(seen.trees, "tree"),
            HumanBytes(seen.size_bytes),
            HumanBytes(seen.of_bytes)
        ));
    }
    Ok(())
}

fn verdict(context: &Context, report: &Report, arguments: &Arguments) -> CommandResult {
    let unmended = report.unmended().count();
    let mended = report.findings.len() - unmended;
    if unmended > 0 {
        let what = match arguments.repair {
            true => format!(
                "{} can't be repaired; {mended} of {} could",
                counted(unmended, "damage"),
                report.findings.len()
            ),
            false => match report.unmended().map(|it| it.damages.len()).sum::<usize>() {
                0 => format!("the store is damaged in {}", counted(unmended, "place")),
                files => format!(
                    "the store is damaged in {}, with {} of trees",
                    counted(unmended, "place"),
                    counted(files, "file")
                ),
            },
        };
        let error = CommandError::new(ExitCode::Integrity, what);
        return Err(match arguments.repair {
            true => error.hint("what is said of each above is what there is to do"),
            false => error.hint(format!(
                "srp{} store verify --repair{} puts right what can be",
                context.store_option(),
                if arguments.all { " --all" } else { "" }
            )),
        });
    }
    if !report.unread.is_empty() {
        return Err(CommandError::user(format!(
            "{} can't be read by this user, and may be damaged or not",
            counted(report.unread.len(), "file")
        ))
        .hint("verify the store as its owner"));
    }
    if !arguments.json && !context.options.quiet {
        terminal::say(&match mended {
            0 => "nothing is damaged".to_owned(),
            count => format!("{} repaired, nothing else is damaged", counted(count, "damage")),
        });
    }
    Ok(())
}

fn as_json(report: &Report) -> Value {
    let finding = |it: &Finding| {
        let files = it.damages.iter().map(|damage| {
            json!({
                "path": String::from_utf8_lossy(&damage.path),
                "problem": damage.kind.to_string(),
            })
        });
        let (mended, by, how) = match &it.outcome {
            None => (false, None, None),
            Some(Outcome::Mended(remedy)) => (true, Some(remedy.kind()), Some(remedy.to_string())),
            Some(Outcome::Unmended(why)) => (false, None, Some(why.clone())),
        };
        json!({
            "kind": it.subject.kind(),
            "path": it.path,
            "problem": it.problem,
            "files": files.collect::<Vec<_>>(),
            "mended": mended,
            "mended_by": by,
            "outcome": how,
        })
    };
    let unread = report.unread.iter().map(|it| json!({ "path": it.path, "reason": it.reason }));
    json!({
        "format": 1,
        "looked_at": report.looked_at,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "unread": unread.collect::<Vec<_>>(),
        "leftovers": report.leftovers,
    })
}
