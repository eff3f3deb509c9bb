//! What others say of what is here, as text for people.
//!
//! It may hold what others wrote: every line of that is made visible.

use std::fmt::Write as _;

use srp_builder::audit::against::{Comparison, Difference, Outcome, Says, Voice};
use srp_builder::audit::{Change, Kind};
use srp_store::Reference;

use crate::audit_text::{self, MOST_PATHS};
use crate::target::short;
use crate::visible::{field, visible};

/// So many are named of those that nobody says anything of.
const MOST_SILENT: usize = 5;

/// The whole report.
pub(crate) fn report(comparisons: &[Comparison]) -> String {
    let mut text = String::new();
    // Few publish what something is built from: of a closure most is that.
    let (silence, heard): (Vec<_>, Vec<_>) = comparisons.iter().partition(|it| is_silence(it));
    for comparison in heard {
        one(&mut text, comparison);
    }
    match silence.as_slice() {
        [] => {}
        [comparison] => one(&mut text, comparison),
        several => {
            let names: Vec<String> = several.iter().take(MOST_SILENT).map(|it| title(it)).collect();
            let more = several.len() - names.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let _ = writeln!(text, "unknown: {}{more}", names.join(", "));
            let _ = writeln!(text, "  nobody says anything of these");
        }
    }
    let count =
        |wanted: fn(&Outcome) -> bool| comparisons.iter().filter(|it| wanted(&it.outcome)).count();
    let _ = writeln!(
        text,
        "{} agreed upon, {} disagreed upon, {} unknown",
        count(|outcome| matches!(outcome, Outcome::Agree)),
        count(|outcome| matches!(outcome, Outcome::Disagree)),
        count(|outcome| matches!(outcome, Outcome::Unknown { .. })),
    );
    text
}

/// Whether it is realised here, and nobody says a word about it.
fn is_silence(comparison: &Comparison) -> bool {
    let unknown = matches!(comparison.outcome, Outcome::Unknown { .. });
    unknown && comparison.resolved.is_some() && comparison.voices.is_empty()
}

/// A name, and a version if there is one.
fn title(comparison: &Comparison) -> String {
    format!("{} {}", comparison.name, comparison.version).trim_end().to_owned()
}

fn one(text: &mut String, comparison: &Comparison) {
    let status = match comparison.outcome {
        Outcome::Agree => "agree",
        Outcome::Disagree => "disagree",
        Outcome::Unknown { .. } => "unknown",
    };
    let _ = writeln!(text, "{status}: {}", title(comparison));
    if let Outcome::Unknown { reason } = &comparison.outcome {
        let _ = writeln!(text, "  {reason}");
    }
    for voice in &comparison.voices {
        self::voice(text, comparison, voice);
    }
    for difference in &comparison.differences {
        self::difference(text, difference);
    }
}

/// As long as an object's may be.
const MOST_OF_A_NAME: usize = 180;

fn voice(text: &mut String, comparison: &Comparison, voice: &Voice) {
    let key = voice.by.key.map(|key| key.to_string()).unwrap_or_default();
    let name = voice.by.name.as_deref().unwrap_or_default();
    let who = match voice.by.standing {
        "trusted" => name.to_owned(),
        "outright" => "the cache itself, which is trusted outright,".to_owned(),
        "unsigned" => "not counted: somebody who doesn't sign".to_owned(),
        "revoked" => format!("not counted: the revoked key {key}"),
        "wrong-signature" => {
            let _ =
                writeln!(text, "  WRONG SIGNATURE by {name} ({key}), in {}", visible(&voice.cache));
            return;
        }
        _ => {
            // Whoever it is doesn't end the quotation.
            let builder = field(&voice.builder, MOST_OF_A_NAME).replace('"', "'");
            format!("not counted: the untrusted key {key}, of \"{builder}\",")
        }
    };
    let says = match (voice.says, voice.same_build) {
        (Says::Agree, true) => "says the same",
        (Says::Agree, false) => "says the same, from other inputs",
        (Says::Disagree, _) => "says otherwise",
        (Says::Nonsense, _) => "says what makes no sense",
    };
    let how = match voice.runner.as_str() {
        "" | "native" => voice.provenance.clone(),
        runner => format!("{} by {}", voice.provenance, field(runner, MOST_OF_A_NAME)),
    };
    let _ = writeln!(text, "  {who} {says} ({how}; {})", visible(&voice.cache));
    for stated in voice.outputs.iter().filter(|stated| !stated.agrees) {
        let here = &comparison.outputs[&stated.output];
        let _ = writeln!(text, "    {} here:  {}, tree {}", stated.output, here.object, here.tree);
        let width = stated.output.as_str().len();
        let (object, tree) = (stated.there.object, stated.there.tree);
        let _ = writeln!(text, "    {:width$} there: {object}, tree {tree}", "");
    }
    for (depth, input) in voice.because.iter().enumerate() {
        let begin =
            if depth == 0 { "it is not the same build, because" } else { "and that because" };
        let there = input.there.map_or_else(|| "nothing".to_owned(), |there| there.to_string());
        let _ = writeln!(
            text,
            "    {begin} its input {} ({}, {}) is {} here and {there} there",
            visible(&input.name),
            short(&input.derivation),
            input.output,
            input.here
        );
    }
}

fn difference(text: &mut String, difference: &Difference) {
    let Some(cache) = &difference.listed_by else {
        let _ =
            writeln!(text, "  what differs is not known: no cache has {}", difference.there.object);
        return;
    };
    let _ = writeln!(
        text,
        "  {}: how {} differs, as {} has it",
        difference.output,
        difference.there.object,
        visible(cache)
    );
    for change in difference.changes.iter().take(MOST_PATHS) {
        self::change(text, change);
    }
    if difference.changes.len() > MOST_PATHS {
        let _ = writeln!(text, "    … and {} paths more", difference.changes.len() - MOST_PATHS);
    }
    let references =
        [("here", &difference.references_here), ("there", &difference.references_there)];
    for (place, references) in references {
        for Reference { object, .. } in references {
            let _ = writeln!(text, "    only {place} it refers to {object}");
        }
    }
    if difference.permissions_differ {
        let _ = writeln!(text, "    declared modes and owners differ");
    }
    audit_text::causes(text, &difference.causes);
}

fn change(text: &mut String, change: &Change) {
    let what = match &change.kind {
        Kind::Added => "only there".to_owned(),
        Kind::Removed => "only here".to_owned(),
        Kind::Type { registered, rebuilt } => format!("a {registered}, there a {rebuilt}"),
        Kind::Mode { registered_executable: true } => "executable only here".to_owned(),
        Kind::Mode { registered_executable: false } => "executable only there".to_owned(),
        Kind::Target { registered, rebuilt } => {
            format!("links to {}, there to {}", visible(registered), visible(rebuilt))
        }
        Kind::Content { registered_bytes, rebuilt_bytes } if registered_bytes == rebuilt_bytes => {
            format!("{registered_bytes} bytes")
        }
        Kind::Content { registered_bytes, rebuilt_bytes } => {
            format!("{registered_bytes} bytes, there {rebuilt_bytes}")
        }
    };
    let _ = writeln!(text, "    {}: {what}", visible(&change.path));
    for part in &change.parts {
        let _ = writeln!(text, "      {}", visible(&part.place));
        for line in &part.lines {
            let _ = writeln!(text, "        {}", visible(line));
        }
    }
}
