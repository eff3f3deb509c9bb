//! `srp store gc`: removing what nothing keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use srp_store::gc::{Amount, Collected, Control, Item, Kind, Progress, Retention};
use srp_store::{Access, Store, StoreError};

use crate::automatic;
use crate::cache::counted;
use crate::config::parse_time;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::interrupt;
use crate::terminal;

/// Remove what nothing keeps
///
/// Kept are roots (srp root list) in all their generations with everything that they refer to, what
/// running commands of srp rely on, in other containers too, and what was made or used lately.
/// Derivations, their sources, logs and statements go with the last object that came of them. Builds
/// go on meanwhile. Whatever can't be read ends it before anything is removed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only list what would be removed
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Keep what was made or used within this time: 90s, 30m, 12h, 14d [default: gc.older_than_days
    /// of the configuration, or 14d]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    older_than: Option<Duration>,
    /// End as soon as so much is freed, what was used longest ago first: 500M, 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_freed: Option<u64>,
    /// Keep derivations of which nothing is left, and their sources
    #[arg(long)]
    keep_derivations: bool,
    /// Keep sources that no derivation needs any more
    #[arg(long)]
    keep_sources: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Free what the configuration asks for, and no more; used by srp itself
    #[arg(long, hide = true, conflicts_with_all = ["dry_run", "max_freed"])]
    automatic: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp store gc --dry-run
  srp store gc --older-than 30d
  srp store gc --max-freed 20G
  srp store gc --older-than 0s --keep-sources";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let cancel = interrupt::token()?;
    // Nothing is made for it where there is nothing to collect.
    drop(context.store_to_read()?);
    let store = context.store()?;
    let mut retention = retention(context, arguments.older_than);
    retention.max_freed_bytes = arguments.max_freed;
    retention.keep_derivations = arguments.keep_derivations;
    retention.keep_sources = arguments.keep_sources;
    if arguments.automatic {
        let Some(bytes) = automatic::missing_bytes(context, &store)? else { return Ok(()) };
        retention.max_freed_bytes = Some(bytes);
    }
    let bar = bar(context);
    let progress = |progress| match progress {
        Progress::Planned(Amount { disk_bytes, .. }) => bar.set_length(disk_bytes),
        Progress::Deleted { disk_bytes } => bar.inc(disk_bytes),
    };
    let is_cancelled = || cancel.is_cancelled();
    let control = Control { is_cancelled: &is_cancelled, progress: &progress };
    let collected = if arguments.dry_run {
        store.plan_garbage(&retention, &control).map(Some)
    } else {
        store.collect_garbage(&retention, &control)
    };
    bar.finish_and_clear();
    let collected = match collected {
        Err(StoreError::Cancelled) => {
            let message =
                "interrupted; what was removed by then is gone, and the rest is as it was";
            return Err(CommandError::new(ExitCode::Interrupted, message));
        }
        collected => collected?,
    };
    let Some(collected) = collected else {
        // It does what this one would.
        if arguments.automatic {
            return Ok(());
        }
        return Err(CommandError::user("another collection is at work in this store")
            .hint("it ends by itself; try again afterwards"));
    };
    if arguments.json {
        return terminal::answer_json(&as_json(&store, &collected, arguments.dry_run));
    }
    if arguments.dry_run {
        let lines: String = collected.items.iter().map(|item| line(&store, item)).collect();
        terminal::answer(&lines)?;
    }
    if !context.options.quiet {
        terminal::write(&summary(&collected, arguments.dry_run));
    }
    Ok(())
}

/// What is kept beside roots and what processes rely on.
pub(crate) fn retention(context: &Context, older_than: Option<Duration>) -> Retention {
    const DAY_SECONDS: u64 = 24 * 60 * 60;
    let configured = context.config.gc.older_than_days;
    let configured = configured.map(|days| Duration::from_secs(days.saturating_mul(DAY_SECONDS)));
    let older_than = older_than.or(configured).unwrap_or(Retention::OLDER_THAN);
    Retention { older_than, ..Retention::default() }
}

fn bar(context: &Context) -> ProgressBar {
    let shown = !context.options.quiet && console::Term::stderr().is_term();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("deleting  {bytes} of {total_bytes}  {bytes_per_sec}");
    let bar = ProgressBar::with_draw_target(Some(0), target);
    bar.set_style(style.expect("the template is valid"));
    bar
}

fn line(store: &Store, item: &Item) -> String {
    let path = store.root().join(&item.path);
    format!("{:>12}  {}\n", HumanBytes(item.disk_bytes).to_string(), path.display())
}

/// A line for each kind, and one for all.
fn summary(collected: &Collected, dry_run: bool) -> String {
    let kinds = collected.by_kind();
    let total = collected.total();
    let mut text = rows(&kinds);
    let verb = if dry_run { "would free" } else { "freed" };
    text += &format!(
        "{verb} {} ({}), {} kept\n",
        HumanBytes(total.disk_bytes),
        counted(total.count, "item"),
        counted(collected.kept_objects, "object"),
    );
    text
}

/// Kinds in a table.
pub(crate) fn rows(kinds: &BTreeMap<Kind, Amount>) -> String {
    kinds
        .iter()
        .map(|(kind, amount)| {
            let bytes = HumanBytes(amount.disk_bytes).to_string();
            format!("{bytes:>12}  {:>8}  {kind}\n", amount.count)
        })
        .collect()
}

/// Kinds in JSON, by their names.
pub(crate) fn kinds_as_json(kinds: &BTreeMap<Kind, Amount>) -> Value {
    let one = |(kind, amount): (&Kind, &Amount)| {
        let key = kind.name().replace(' ', "_");
        (key, json!({ "count": amount.count, "disk_bytes": amount.disk_bytes }))
    };
    Value::Object(kinds.iter().map(one).collect())
}

fn as_json(store: &Store, collected: &Collected, dry_run: bool) -> Value {
    let seconds = |item: &Item| {
        item.used
            .and_then(|it| it.duration_since(std::time::UNIX_EPOCH).ok())
            .map(|it| it.as_secs())
    };
    let item = |item: &Item| {
        json!({
            "kind": item.kind.name(),
            "path": store.root().join(&item.path),
            "disk_bytes": item.disk_bytes,
            "last_used": seconds(item),
        })
    };
    json!({
        "dry_run": dry_run,
        "items": collected.items.iter().map(item).collect::<Vec<_>>(),
        "kinds": kinds_as_json(&collected.by_kind()),
        "freed_bytes": collected.total().disk_bytes,
        "kept_objects": collected.kept_objects,
    })
}

/// `1000`, `500M`, `20G`, `1T`: bytes, and powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let parse = || {
        let digits = text.trim_end_matches(|char: char| !char.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    parse().ok_or_else(|| "a number and K, M, G or T are expected, such as 20G".to_owned())
}

/// A store of one's own, or somebody else's to read.
pub(crate) fn open(context: &Context) -> CommandResult<Store> {
    let path = context.store_path()?;
    let reading = context.store_to_read()?;
    Ok(Store::open(&path, Access::Write).unwrap_or(reading))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("1000"), Ok(1000));
        assert_eq!(parse_size("2K"), Ok(2048));
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        for wrong in ["", "G", "1.5G", "-1", "1 G", "99999999999T", "1X"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
