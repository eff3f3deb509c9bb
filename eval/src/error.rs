//! What an evaluation fails with: where, why, and how Starlark came there.

use std::fmt::Write;
use std::io;

use serde::{Deserialize, Serialize};
use starlark::ErrorKind;
use starlark::codemap::FileSpan;
use starlark::errors::Frame;

use crate::definitions::DefinitionPath;
use crate::misnamed;
use crate::module::Exceeded;
use crate::process::Bound;
use crate::wire::{self, WireError};

/// An evaluation that failed.
///
/// `Display` is one line for an error chain; [`EvalError::rendered`] is what a terminal shows.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum EvalError {
    /// A definition is wrong.
    #[error("{}{message}", location.as_ref().map(|it| format!("{it}: ")).unwrap_or_default())]
    Definition {
        /// What is wrong.
        message: String,
        /// Where: `//lib/make.star:12:5`.
        location: Option<String>,
        /// The source there, and the chain of calls and loads that led there.
        excerpt: String,
    },
    /// `main.star` lacks something, or has it as something else.
    #[error("{}: {problem}", DefinitionPath::main())]
    Main {
        /// What.
        problem: String,
    },
    /// The attribute's stage is none.
    #[error("there is no stage for {attribute:?}{}", hint(near, known, "stages"))]
    UnknownStage {
        /// As asked for.
        attribute: String,
        /// Stages with a similar name, the most similar first.
        near: Vec<String>,
        /// All stages.
        known: Vec<String>,
    },
    /// The attribute ends after the stage.
    #[error("{attribute:?} names no target: {attribute}.<target> is expected{}", hint(&[], known, "targets"))]
    NoTarget {
        /// As asked for.
        attribute: String,
        /// All targets.
        known: Vec<String>,
    },
    /// The attribute's target is none.
    #[error("there is no target {target:?} of the stage {stage}{}", hint(near, known, "targets"))]
    UnknownTarget {
        /// As asked for.
        target: String,
        /// The stage.
        stage: String,
        /// Targets with a similar name, the most similar first.
        near: Vec<String>,
        /// All targets.
        known: Vec<String>,
    },
    /// The stage has no such component for the target.
    #[error("{stage}.{target} has no component {component:?}{}", hint(near, known, "components"))]
    UnknownComponent {
        /// As asked for.
        component: String,
        /// The stage.
        stage: String,
        /// The target, not an alias of it.
        target: String,
        /// Components with a similar name, the most similar first.
        near: Vec<String>,
        /// All components.
        known: Vec<String>,
    },
    /// The definitions know nothing of this build machine.
    #[error("there are no definitions for building on {arch:?}{}", hint(&[], known, "build machines"))]
    UnknownMachine {
        /// The machine's architecture.
        arch: String,
        /// All build machines.
        known: Vec<String>,
    },
    /// What a function of `main.star` returned is something else.
    #[error(
        "{}: what {function} returned for {argument:?} is wrong: {problem}",
        DefinitionPath::main()
    )]
    Returned {
        /// `stages["stage1"]`.
        function: String,
        /// What it was called for.
        argument: String,
        /// What is wrong.
        problem: String,
    },
    /// The derivations are more than an answer can hold.
    #[error("what the evaluation comes to is larger than {} MiB", wire::RESULT_BYTES >> 20)]
    ResultTooLarge,
    /// A value can't be as large as a definition wants it to be.
    #[error("the evaluation takes more memory than there can be")]
    OutOfMemory,
    /// A bound ended the process that evaluates.
    #[error("{}{bound}{}", prefix(position), during(what))]
    #[serde(skip)]
    Exhausted {
        /// The bound.
        bound: Bound,
        /// What was evaluated: `//lib/make.star`, or a stage function's call.
        what: Option<String>,
        /// The statement: `//lib/make.star:12:5`.
        position: Option<String>,
    },
    /// Somebody wanted it to end.
    #[error("interrupted")]
    #[serde(skip)]
    Cancelled,
    /// A process or thread can't be started or read from.
    #[error("can't {action}")]
    #[serde(skip)]
    Process {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// The evaluating process has sent something that isn't an answer.
    #[error("the evaluating process gave no proper answer")]
    #[serde(skip)]
    Answer {
        /// Why.
        source: WireError,
    },
    /// The evaluator panicked: a bug of srp or of the Starlark crate, not of the definitions.
    #[error("the evaluator crashed (a bug): {message}")]
    Crashed {
        /// What it said.
        message: String,
    },
}

impl EvalError {
    /// The message with the source it is about, and the calls and loads that led there.
    pub fn rendered(&self) -> String {
        match self {
            EvalError::Definition { message, excerpt, .. } => {
                // `fail` has any text: no line of it looks like one of its own.
                format!("{}\n{excerpt}", message.replace('\n', "\n  "))
            }
            other => other.to_string(),
        }
    }

    /// What Starlark reports, in our words. `exceeded` is the limit that stopped it, if one did;
    /// `notes` are lines for the end of the excerpt.
    pub(crate) fn of_starlark(
        error: &starlark::Error,
        exceeded: Option<Exceeded>,
        notes: &[String],
    ) -> EvalError {
        let misnamed = misnamed::find(error);
        let (told, inner_calls) = match &misnamed {
            Some(found) => (&found.error, found.inner_calls),
            None => (error, 0),
        };
        let location = told.span().map(position);
        let mut excerpt = source_excerpt(told);
        let frames = &error.call_stack().frames;
        let calls = calls(&frames[..frames.len() - inner_calls], location.as_deref());
        for line in calls.iter().chain(notes) {
            excerpt.push_str(line);
            excerpt.push('\n');
        }
        let message = match exceeded {
            Some(exceeded) => exceeded.to_string(),
            None => shortened(message(told.kind())),
        };
        EvalError::Definition { message, location, excerpt }
    }
}

/// A message of a length that can be read: `fail` says whatever a definition says.
fn shortened(mut message: String) -> String {
    const MOST_BYTES: usize = 3 << 10;
    if message.len() > MOST_BYTES {
        let length = message.len();
        let mut end = MOST_BYTES;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        let _ = write!(message, "… ({length} bytes in all)");
    }
    message
}

fn prefix(position: &Option<String>) -> String {
    position.as_ref().map(|position| format!("{position}: ")).unwrap_or_default()
}

fn during(what: &Option<String>) -> String {
    what.as_ref().map(|what| format!(" (while evaluating {what})")).unwrap_or_default()
}

/// Starlark's message in the style of ours.
fn message(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::Fail(reason) => reason.to_string().trim().to_owned(),
        ErrorKind::StackOverflow(_) => Exceeded::Calls.to_string(),
        // With what it was caused by.
        other => format!("{other:#}").trim().to_owned(),
    }
}

/// `//lib/make.star:12:5`: lines and columns are counted from 1.
pub(crate) fn position(span: &FileSpan) -> String {
    let begin = span.resolve_span().begin;
    format!("{}:{}:{}", span.filename(), begin.line + 1, begin.column + 1)
}

/// The lines that the error is about, underlined; nothing if it isn't about any.
fn source_excerpt(error: &starlark::Error) -> String {
    const WIDTH: usize = 200;
    let whole = error.to_string();
    let calls = error.call_stack().to_string();
    let snippet = whole.strip_prefix(&calls).unwrap_or(&whole);
    // The title before it is the message, which may have several lines.
    let arrow = error.span().and_then(|span| snippet.find(&format!("--> {}:", span.filename())));
    let Some(arrow) = arrow else { return String::new() };
    let begin = snippet[..arrow].rfind('\n').map_or(0, |newline| newline + 1);
    let lines = snippet[begin..].trim_end().lines();
    lines.fold(String::new(), |excerpt, line| match line.char_indices().nth(WIDTH) {
        None => format!("{excerpt}{line}\n"),
        Some((end, _)) => format!("{excerpt}{}…\n", &line[..end]),
    })
}

/// How the error was reached, the innermost call first, one line each.
///
/// A builtin fails where it was called, which is `location` and in the excerpt already. Calls that
/// repeat are counted, and of a long chain the middle is left out.
fn calls(frames: &[Frame], location: Option<&str>) -> Vec<String> {
    const FIRST: usize = 8;
    const LAST: usize = 4;
    let mut lines: Vec<(String, usize)> = Vec::new();
    let mut caller = "";
    let mut calls = Vec::new();
    for frame in frames {
        calls.extend(frame.location.as_ref().map(|location| (position(location), caller)));
        caller = &frame.name;
    }
    if calls.last().is_some_and(|(last, _)| Some(last.as_str()) == location) {
        calls.pop();
    }
    for (location, caller) in calls.into_iter().rev() {
        let line = match caller {
            "" => format!("called from {location}"),
            caller => format!("called from {location}, in {caller}"),
        };
        match lines.last_mut() {
            Some((last, count)) if *last == line => *count += 1,
            _ => lines.push((line, 1)),
        }
    }
    let mut lines: Vec<String> = lines
        .into_iter()
        .map(|(line, count)| if count > 1 { format!("{line} ({count} times)") } else { line })
        .collect();
    if lines.len() > FIRST + LAST + 1 {
        let left_out = lines.len() - FIRST - LAST;
        let note = format!("({left_out} more calls)");
        lines.splice(FIRST..FIRST + left_out, [note]);
    }
    lines
}

/// `: did you mean "stage1"? (stages: …)`.
fn hint(near: &[String], known: &[String], what: &str) -> String {
    const SHOWN: usize = 24;
    let mut text = String::new();
    if !near.is_empty() {
        let near: Vec<String> = near.iter().map(|name| format!("{name:?}")).collect();
        let _ = write!(text, ": did you mean {}?", near.join(" or "));
    }
    if known.is_empty() {
        let _ = write!(text, " (there are no {what})");
    } else {
        let _ = write!(text, " ({what}: {}", known[..known.len().min(SHOWN)].join(", "));
        if known.len() > SHOWN {
            let _ = write!(text, " and {} more", known.len() - SHOWN);
        }
        text.push(')');
    }
    text
}
