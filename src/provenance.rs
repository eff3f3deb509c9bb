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
    let [seed, sources] = [true, false].map(|seed| Fetched::of(&walked, seed));
    if arguments.json {
        let first = walked.iter().filter(|step| !step.again);
        let derivations = first.map(|step| provenance.as_json(step));
        let derivations = derivations.collect::<CommandResult<Vec<Value>>>()?;
        return terminal::answer_json(&json!({
            "derivation": goal,
            "derivations": derivations,
            "seed": { "packages": seed.files, "size_bytes": seed.size_bytes },
            "sources": { "files": sources.files, "size_bytes": sources.size_bytes },
        }));
    }
    let mut text = String::new();
    for step in &walked {
        provenance.line(&mut text, step)?;
    }
    let _ = writeln!(
        text,
        "\nbinary seed, to be trusted: {}\nsources: {}",
        seed.told("package"),
        sources.told("file")
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

/// Fetched files of one kind.
struct Fetched {
    files: usize,
    /// All together; none if the definitions don't say it of each.
    size_bytes: Option<u64>,
}

impl Fetched {
    /// Those of the seed, or the others. Each counts once, however many derivations unpack parts
    /// of it.
    fn of(steps: &[Step<'_>], seed: bool) -> Fetched {
        let mut fetched = Fetched { files: 0, size_bytes: Some(0) };
        let mut seen = BTreeSet::new();
        for step in steps {
            let Action::Fetch(fetch) = &step.derivation.action else { continue };
            if is_seed(fetch) == seed && seen.insert(fetch.sha256.to_string()) {
                fetched.files += 1;
                let size_bytes = step.derivation.advice.size_bytes;
                fetched.size_bytes =
                    fetched.size_bytes.zip(size_bytes).map(|(sum, bytes)| sum + bytes);
            }
        }
        fetched
    }

    fn told(&self, what: &str) -> String {
        let plural = if self.files == 1 { "" } else { "s" };
        match self.size_bytes {
            Some(bytes) => {
                format!("{} {what}{plural}, {} ({bytes} bytes)", self.files, HumanBytes(bytes))
            }
            None => format!("{} {what}{plural}", self.files),
        }
    }
}
