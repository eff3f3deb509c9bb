//! An audit's report as text for people.
//!
//! It may hold what builds wrote: every line of that is made visible.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use srp_builder::audit::{Audit, Cause, Change, Difference, Dimension, Kind, Status};
use srp_store::OutputName;

use crate::progress;
use crate::terminal::printable;
use crate::visible::visible;

/// So many paths of one difference are listed.
pub(crate) const MOST_PATHS: usize = 20;
/// So many causes are told.
const MOST_CAUSES: usize = 3;

/// The whole report.
pub(crate) fn report(audits: &[Audit]) -> String {
    let mut text = String::new();
    for audit in audits.iter().filter(|it| !matches!(it.status, Status::NotAudited { .. })) {
        one(&mut text, audit);
    }
    let count = |wanted: fn(&Status) -> bool| audits.iter().filter(|it| wanted(&it.status)).count();
    let _ = write!(
        text,
        "{} identical, {} differing",
        count(|status| matches!(status, Status::Identical)),
        count(|status| matches!(status, Status::Differs)),
    );
    for (number, word) in [
        (count(|status| matches!(status, Status::Unknown { .. })), "unknown"),
        (
            count(|status| matches!(status, Status::NotAudited { .. })),
            "not audited (fetched and verified by hash, or composed)",
        ),
    ] {
        if number > 0 {
            let _ = write!(text, ", {number} {word}");
        }
    }
    text + "\n"
}

/// What an audit came to, in a word.
pub(crate) fn word(status: &Status) -> &'static str {
    match status {
        Status::Identical => "identical",
        Status::Differs => "differs",
        Status::NotAudited { .. } => "not audited",
        Status::Unknown { .. } => "unknown",
    }
}

fn one(text: &mut String, audit: &Audit) {
    let _ = write!(text, "{}: {}", word(&audit.status), audit.name);
    if !audit.version.is_empty() {
        let _ = write!(text, " {}", audit.version);
    }
    if !audit.rounds.is_empty() {
        let rounds = audit.rounds.len();
        let varied = audit.dimensions.iter().filter(|tried| tried.variation.is_some()).count();
        let milliseconds: u64 = audit.rounds.iter().map(|round| round.milliseconds).sum();
        let comparing: u64 = audit.rounds.iter().map(|round| round.compare_milliseconds).sum();
        let plural = if rounds == 1 { "" } else { "s" };
        let dimensions = if varied == 1 { "" } else { "s" };
        let _ = write!(
            text,
            " ({rounds} round{plural}, {varied} dimension{dimensions}, {:.1} s, {} % of it comparing{})",
            milliseconds as f64 / 1000.0,
            comparing * 100 / milliseconds.max(1),
            if audit.remembered { age(audit) } else { String::new() }
        );
    }
    text.push('\n');
    if let Status::Unknown { reason } | Status::NotAudited { reason } = &audit.status {
        indented(text, 2, reason);
    }
    for tried in &audit.dimensions {
        if let Some(reason) = &tried.not_applicable {
            let _ = writeln!(text, "  not applicable: {}, because {reason}", tried.dimension);
        }
    }
    if let Some(costs) = &audit.costs {
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        let usual = seconds(costs.nothing_varied_milliseconds);
        let _ = writeln!(text, "  a build takes {usual:.2} s when nothing is varied");
        for cost in &costs.dimensions {
            let (took, percent) = (seconds(cost.milliseconds), cost.percent);
            let _ = writeln!(text, "    {:<16}{took:>9.2} s {percent:>5} %", cost.dimension.name());
        }
    }
    for difference in &audit.differences {
        self::difference(text, audit, difference);
    }
}

/// How long ago something was found out.
fn age(audit: &Audit) -> String {
    let then = UNIX_EPOCH + Duration::from_secs(audit.audited_at.unwrap_or(0));
    // A clock that was set back says nothing of use.
    let age = then.elapsed().unwrap_or_default();
    format!("; found {} ago", progress::seconds(age))
}

/// When something differs: `differs when: hostname (srp → audit-host)`.
pub(crate) fn when(audit: &Audit, difference: &Difference) -> String {
    let verb = if difference.failed.is_some() { "fails" } else { "differs" };
    let sometimes = if difference.sometimes { "sometimes " } else { "" };
    let when = match difference.when.as_slice() {
        [] => "nothing is varied (race, randomness, time)".to_owned(),
        [one] => described(audit, *one),
        several => {
            let names: Vec<&str> = several.iter().map(|dimension| dimension.name()).collect();
            format!("only together: {}", names.join(", "))
        }
    };
    format!("{sometimes}{verb} when: {when}")
}

fn difference(text: &mut String, audit: &Audit, difference: &Difference) {
    let _ = writeln!(text, "  {}", when(audit, difference));
    if !difference.steady_under.is_empty() {
        let names: Vec<String> =
            difference.steady_under.iter().map(|it| described(audit, *it)).collect();
        let _ = writeln!(text, "    steady when: {}", names.join(", "));
    }
    if let Some(failed) = &difference.failed {
        indented(text, 4, &failed.how);
        for line in &failed.log_tail {
            let _ = writeln!(text, "    | {}", printable(line));
        }
    }
    for change in difference.changes.iter().take(MOST_PATHS) {
        self::change(text, change);
    }
    if difference.changes.len() > MOST_PATHS {
        let _ = writeln!(text, "    … and {} paths more", difference.changes.len() - MOST_PATHS);
    }
    causes(text, &difference.causes);
    if let Some(kept) = &difference.kept {
        let _ = writeln!(text, "    kept: {}", kept.display());
    }
    for report in &difference.diffoscope {
        let _ = writeln!(text, "    diffoscope: {}", report.display());
    }
}

/// A dimension and what of it was varied: `build-path (/srp/build, /srp/elsewhere/build)`.
pub(crate) fn described(audit: &Audit, dimension: Dimension) -> String {
    let tried = audit.dimensions.iter().find(|tried| tried.dimension == dimension);
    match tried.and_then(|tried| tried.variation.as_ref()) {
        Some(variation) if variation.usual.is_empty() => {
            format!("{dimension} ({})", variation.varied)
        }
        Some(variation) => format!("{dimension} ({} → {})", variation.usual, variation.varied),
        None => dimension.to_string(),
    }
}

/// Where something differs: `dev:/usr/include/h`. Not yet visible.
pub(crate) fn place(change: &Change) -> String {
    match change.output == OutputName::out() {
        true => change.path.clone(),
        false => format!("{}:{}", change.output, change.path),
    }
}

/// The likeliest causes.
pub(crate) fn causes(text: &mut String, causes: &[Cause]) {
    for cause in causes.iter().take(MOST_CAUSES) {
        let _ = writeln!(text, "    likely cause: {} [{}]", cause.what, cause.pattern);
        let _ = writeln!(text, "      what helps: {}", cause.advice);
    }
}

/// How it differs. Not yet visible.
pub(crate) fn how(kind: &Kind) -> String {
    match kind {
        Kind::Added => "only in the rebuild".to_owned(),
        Kind::Removed => "missing in the rebuild".to_owned(),
        Kind::Type { registered, rebuilt } => format!("a {registered}, rebuilt a {rebuilt}"),
        Kind::Mode { registered_executable: true } => "no longer executable".to_owned(),
        Kind::Mode { registered_executable: false } => "now executable".to_owned(),
        Kind::Target { registered, rebuilt } => {
            format!("links to {registered}, rebuilt to {rebuilt}")
        }
        Kind::Content { registered_bytes, rebuilt_bytes } if registered_bytes == rebuilt_bytes => {
            format!("{registered_bytes} bytes")
        }
        Kind::Content { registered_bytes, rebuilt_bytes } => {
            format!("{registered_bytes} bytes, rebuilt {rebuilt_bytes}")
        }
    }
}

fn change(text: &mut String, change: &Change) {
    let _ = writeln!(text, "    {}: {}", visible(&place(change)), visible(&how(&change.kind)));
    for part in &change.parts {
        let _ = writeln!(text, "      {}", visible(&part.place));
        for line in &part.lines {
            let _ = writeln!(text, "        {}", visible(line));
        }
    }
}

fn indented(text: &mut String, columns: usize, lines: &str) {
    for line in lines.lines() {
        let _ = writeln!(text, "{:columns$}{}", "", visible(line));
    }
}
