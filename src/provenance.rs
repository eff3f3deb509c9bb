//! `srp provenance`: what an attribute is made from, down to what was fetched, with every hash; and
//! how much of that must be trusted without its source.
//!
//! It is read from the definitions alone: nothing need be realised. What is realised is shown with
//! its object.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use srp_store::{Action, Derivation, Fetch, Format, OutputName, StaticHash, Store};

use crate::context::Context;
use crate::error::CommandResult;
use crate::goals::{Goals, Graph};
use crate::target::realised;
use crate::terminal;

/// Show what an attribute is made from, down to the seed that must be trusted
///
/// Each derivation is listed with its hash and, where it is realised, its store object; what it is
/// made from is indented below it, once. What was fetched is shown with its SHA-256. Packages that
/// were fetched as programs are the binary seed: they must be trusted without their source.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  srp provenance stage2.x86_64-musl\n  srp provenance stage1.x86_64-musl.musl --json"
)]
pub(crate) struct Arguments {
    /// An attribute
    #[arg(value_name = "ATTR")]
    attr: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_if_any()?;
    let attrs = std::slice::from_ref(&arguments.attr);
    let graph = Goals::of(context, store.as_ref(), attrs)?.graph()?;
    let goal = graph.goals[0].1.derivation;
    let provenance = Provenance { graph: &graph, store: store.as_ref() };
    let walked = provenance.walk(goal);
    let trusted = Trusted::of(walked.iter().filter(|step| !step.again).map(|step| step.derivation));
    if arguments.json {
        let first = walked.iter().filter(|step| !step.again);
        let derivations = first.map(|step| provenance.as_json(step));
        let derivations = derivations.collect::<CommandResult<Vec<Value>>>()?;
        return terminal::answer_json(&json!({
            "derivation": goal,
            "derivations": derivations,
            "seed": { "packages": trusted.packages, "size_bytes": trusted.package_bytes },
            "sources": { "files": trusted.sources, "size_bytes": trusted.source_bytes },
        }));
    }
    let mut text = String::new();
    for step in &walked {
        provenance.line(&mut text, step)?;
    }
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        several => format!("{several} {what}s"),
    };
    let _ = writeln!(
        text,
        "\nbinary seed, to be trusted: {}, {} ({} bytes)\nsources: {}, {} ({} bytes)",
        count(trusted.packages, "package"),
        HumanBytes(trusted.package_bytes),
        trusted.package_bytes,
        count(trusted.sources, "file"),
        HumanBytes(trusted.source_bytes),
        trusted.source_bytes,
    );
    terminal::answer(&text)
}

struct Provenance<'a> {
    graph: &'a Graph,
    store: Option<&'a Store>,
}

/// A derivation on the way from an output to the seed.
struct Step<'a> {
    depth: usize,
    hash: StaticHash,
    derivation: &'a Derivation,
    /// Whether what it is made from was shown before.
    again: bool,
}

impl<'a> Provenance<'a> {
    /// Every derivation that `goal` is made from, each below one that needs it.
    fn walk(&self, goal: StaticHash) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        let mut seen = BTreeSet::new();
        // An explicit stack: how deep it is, the definitions say.
        let mut stack = vec![(0, goal)];
        while let Some((depth, hash)) = stack.pop() {
            let derivation = &self.graph.derivations[&hash];
            let again = !seen.insert(hash);
            steps.push(Step { depth, hash, derivation, again });
            if !again {
                let mut below = BTreeSet::new();
                let inputs = derivation.inputs().iter().map(|input| input.key.derivation);
                let inputs: Vec<StaticHash> = inputs.filter(|hash| below.insert(*hash)).collect();
                stack.extend(inputs.into_iter().rev().map(|hash| (depth + 1, hash)));
            }
        }
        steps
    }

    /// The object that it came out as here.
    fn object(&self, step: &Step<'_>) -> CommandResult<Option<String>> {
        let Some(store) = self.store else { return Ok(None) };
        let key = srp_store::InputKey { derivation: step.hash, output: OutputName::out() };
        Ok(realised(store, &key)?.map(|object| object.to_string()))
    }

    fn line(&self, text: &mut String, step: &Step<'_>) -> CommandResult {
        let derivation = step.derivation;
        let _ = write!(text, "{:width$}{}", "", derivation.name, width = 2 * step.depth);
        if !derivation.version.is_empty() {
            let _ = write!(text, " {}", derivation.version);
        }
        if step.again {
            text.push_str(" (above)\n");
            return Ok(());
        }
        let _ = write!(text, "  {}", step.hash);
        match &derivation.action {
            Action::Fetch(fetch) => {
                let kind = if is_seed(fetch) { "package of the seed" } else { "source" };
                let _ = write!(text, "  {kind}, SHA-256 {}", fetch.sha256);
            }
            Action::Build(_) | Action::Stage(_) => {
                if let Some(object) = self.object(step)? {
                    let _ = write!(text, "  {object}");
                }
            }
        }
        text.push('\n');
        Ok(())
    }

    fn as_json(&self, step: &Step<'_>) -> CommandResult<Value> {
        let derivation = step.derivation;
        let inputs: BTreeSet<StaticHash> =
            derivation.inputs().iter().map(|input| input.key.derivation).collect();
        let mut value = json!({
            "derivation": step.hash,
            "name": derivation.name,
            "version": derivation.version,
            "inputs": inputs,
            "object": self.object(step)?,
        });
        let kind = match &derivation.action {
            Action::Build(_) => "build",
            Action::Stage(_) => "stage",
            Action::Fetch(fetch) => {
                value["sha256"] = json!(fetch.sha256.to_string());
                value["size_bytes"] = json!(derivation.advice.size_bytes);
                if is_seed(fetch) { "seed" } else { "source" }
            }
        };
        value["kind"] = json!(kind);
        Ok(value)
    }
}

/// A Debian package is programs that somebody else has compiled.
fn is_seed(fetch: &Fetch) -> bool {
    fetch.format == Format::Deb
}

/// How much was fetched.
#[derive(Default)]
struct Trusted {
    packages: usize,
    package_bytes: u64,
    sources: usize,
    source_bytes: u64,
}

impl Trusted {
    /// Each file counts once, however many derivations unpack parts of it.
    fn of<'a>(derivations: impl Iterator<Item = &'a Derivation>) -> Trusted {
        let mut trusted = Trusted::default();
        let mut seen = BTreeSet::new();
        for derivation in derivations {
            let Action::Fetch(fetch) = &derivation.action else { continue };
            if !seen.insert(fetch.sha256.to_string()) {
                continue;
            }
            let size_bytes = derivation.advice.size_bytes.unwrap_or(0);
            if is_seed(fetch) {
                trusted.packages += 1;
                trusted.package_bytes += size_bytes;
            } else {
                trusted.sources += 1;
                trusted.source_bytes += size_bytes;
            }
        }
        trusted
    }
}
