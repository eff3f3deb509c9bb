//! `srp provenance`: what something was made from, down to what nobody here has built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use srp_store::{Action, Derivation, InputKey, Role, StaticHash, Store};

use crate::context::Context;
use crate::error::CommandResult;
use crate::goals::{Goals, Graph};
use crate::target::{realised, short};
use crate::terminal;
use crate::visible::visible;

/// Show what something is made from, down to the seed, and how much has to be trusted
///
/// The tree shows every derivation with its hash, and every fetched file with its SHA-256; what was
/// shown before isn't repeated below. What is fetched and then runs, or is built against, is the
/// seed: binaries that have to be trusted. What is fetched to be built is source. Emulators count
/// where something runs for another architecture. The kernel, and srp itself, come on top.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The attribute; it need not be realised
    #[arg(value_name = "ATTR")]
    attr: String,
    /// Only the seed, the sources and the sums
    #[arg(long, short)]
    summary: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp provenance stage1.aarch64-musl
  srp provenance stage2.x86_64-musl --summary
  srp provenance stage2.x86_64-musl --json | jq -r '.derivations[] | select(.kind == \"seed\").name'";

/// What a derivation is to the one that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Fetched, and run or built against.
    Seed,
    /// Fetched, and built.
    Source,
    /// Built.
    Build,
    /// A composition.
    Stage,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Seed => "seed",
            Kind::Source => "source",
            Kind::Build => "build",
            Kind::Stage => "stage",
        }
    }
}

/// All that an attribute is made from.
pub(crate) struct Provenance {
    pub(crate) goal: InputKey,
    pub(crate) graph: Graph,
    /// What was reached, and what it is.
    pub(crate) kinds: BTreeMap<StaticHash, Kind>,
}

/// How much something is.
#[derive(Clone, Copy, Debug)]
struct Sum {
    packages: usize,
    /// Of the files as they are fetched; none if that isn't known of all.
    fetched_bytes: Option<u64>,
    /// Unpacked; none if not all of it is here.
    unpacked_bytes: Option<u64>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_if_any()?;
    let provenance = Provenance::of(context, store.as_ref(), &arguments.attr)?;
    if arguments.json {
        return terminal::answer_json(&provenance.json(store.as_ref(), &arguments.attr)?);
    }
    let mut text = String::new();
    if !arguments.summary {
        provenance.write_tree(&mut text);
        text.push('\n');
    }
    for kind in [Kind::Seed, Kind::Source] {
        provenance.write_fetched(store.as_ref(), &mut text, kind);
    }
    let seed = provenance.sum(store.as_ref(), Kind::Seed)?;
    let sources = provenance.sum(store.as_ref(), Kind::Source)?;
    let built = provenance.kinds.values().filter(|kind| **kind == Kind::Build).count();
    let _ = writeln!(text, "{} is made by {built} builds", arguments.attr);
    let _ = writeln!(text, "  from {}", sources.in_words("source", "sources"));
    let _ = writeln!(
        text,
        "  trusting {}",
        seed.in_words("package of the seed", "packages of the seed")
    );
    terminal::answer(&text)
}

impl Provenance {
    /// What `attr` is made from.
    pub(crate) fn of(
        context: &Context,
        store: Option<&Store>,
        attr: &str,
    ) -> CommandResult<Provenance> {
        let graph = Goals::of(context, store, &[attr.to_owned()])?.graph()?;
        let goal = graph.keys().remove(0);
        let build_arch = context.build_arch();
        let mut kinds = BTreeMap::new();
        let mut pending = vec![(goal.derivation, Role::Sources)];
        while let Some((hash, role)) = pending.pop() {
            let derivation = &graph.derivations[&hash];
            let kind = match (&derivation.action, role) {
                (Action::Fetch(_), Role::Sources) => Kind::Source,
                (Action::Fetch(_), Role::Tools | Role::Libs) => Kind::Seed,
                (Action::Build(_), _) => Kind::Build,
                (Action::Stage(_), _) => Kind::Stage,
            };
            let known = kinds.insert(hash, kind);
            if known == Some(Kind::Seed) {
                // Source to one, and binary to another.
                kinds.insert(hash, Kind::Seed);
            }
            if known.is_some() {
                continue;
            }
            let inputs = derivation.inputs();
            pending.extend(inputs.iter().map(|input| (input.key.derivation, input.role)));
            if let Action::Build(build) = &derivation.action
                && build.build.arch() != build_arch
                && let Some(runner) = graph.runners.get(build.build.arch())
            {
                pending.push((runner.key.derivation, Role::Tools));
            }
        }
        Ok(Provenance { goal, graph, kinds })
    }

    /// All of one kind, by name.
    pub(crate) fn of_kind(&self, kind: Kind) -> Vec<(StaticHash, &Derivation)> {
        let of_kind = self.kinds.iter().filter(|(_, it)| **it == kind);
        let mut found: Vec<(StaticHash, &Derivation)> =
            of_kind.map(|(hash, _)| (*hash, &self.graph.derivations[hash])).collect();
        found.sort_by(|a, b| (&a.1.name, &a.1.version, a.0).cmp(&(&b.1.name, &b.1.version, b.0)));
        found
    }

    fn write_tree(&self, text: &mut String) {
        let mut shown = BTreeSet::new();
        // An explicit stack: how deep it goes is up to the definitions.
        let mut pending = vec![(self.goal.derivation, 0)];
        while let Some((hash, depth)) = pending.pop() {
            let derivation = &self.graph.derivations[&hash];
            let again = !shown.insert(hash) && !derivation.inputs().is_empty();
            let _ = writeln!(
                text,
                "{:indent$}{} {}{}",
                "",
                self.kinds[&hash].as_str(),
                described(&hash, derivation),
                if again { "  (see above)" } else { "" },
                indent = 2 * depth
            );
            if !again {
                let inputs = derivation.inputs().iter().rev();
                pending.extend(inputs.map(|input| (input.key.derivation, depth + 1)));
            }
        }
    }

    fn write_fetched(&self, store: Option<&Store>, text: &mut String, kind: Kind) {
        for (hash, derivation) in self.of_kind(kind) {
            let size = fetched_bytes(store, derivation).map(|it| HumanBytes(it).to_string());
            let size = size.unwrap_or_default();
            let _ =
                writeln!(text, "{:6}  {size:>11}  {}", kind.as_str(), described(&hash, derivation));
        }
        text.push('\n');
    }

    fn sum(&self, store: Option<&Store>, kind: Kind) -> CommandResult<Sum> {
        let mut sum = Sum { packages: 0, fetched_bytes: Some(0), unpacked_bytes: Some(0) };
        let plus = |sum: Option<u64>, bytes: Option<u64>| Some(sum? + bytes?);
        // One file may be unpacked in several ways: its bytes are trusted once.
        let mut files = BTreeSet::new();
        for (hash, derivation) in self.of_kind(kind) {
            if let Action::Fetch(fetch) = &derivation.action
                && !files.insert(fetch.sha256)
            {
                continue;
            }
            sum.packages += 1;
            sum.fetched_bytes = plus(sum.fetched_bytes, fetched_bytes(store, derivation));
            let unpacked = unpacked_bytes(store, hash, derivation)?;
            sum.unpacked_bytes = plus(sum.unpacked_bytes, unpacked);
        }
        Ok(sum)
    }

    fn json(&self, store: Option<&Store>, attr: &str) -> CommandResult<Value> {
        let mut derivations = Vec::new();
        for (hash, kind) in &self.kinds {
            let derivation = &self.graph.derivations[hash];
            let inputs = derivation.inputs().iter().map(|input| {
                let InputKey { derivation, output } = &input.key;
                json!({ "role": input.role, "derivation": derivation, "output": output })
            });
            let mut objects = BTreeMap::new();
            for output in derivation.outputs() {
                let key = InputKey { derivation: *hash, output: output.clone() };
                let object = store.map(|store| realised(store, &key)).transpose()?.flatten();
                objects.extend(object.map(|object| (output, object.to_string())));
            }
            let mut value = json!({
                "derivation": hash,
                "kind": kind.as_str(),
                "name": derivation.name,
                "version": derivation.version,
                "inputs": inputs.collect::<Vec<_>>(),
                "objects": objects,
            });
            if let Action::Fetch(fetch) = &derivation.action {
                value["sha256"] = json!(fetch.sha256);
                value["urls"] = json!(derivation.advice.urls);
                value["fetched_bytes"] = json!(fetched_bytes(store, derivation));
                value["unpacked_bytes"] = json!(unpacked_bytes(store, *hash, derivation)?);
            }
            derivations.push(value);
        }
        Ok(json!({
            "attribute": attr,
            "derivation": self.goal.derivation,
            "output": self.goal.output,
            "derivations": derivations,
            "seed": self.sum(store, Kind::Seed)?.json(),
            "sources": self.sum(store, Kind::Source)?.json(),
        }))
    }
}

impl Sum {
    fn in_words(&self, one: &str, many: &str) -> String {
        let size = |bytes: Option<u64>| match bytes {
            Some(bytes) => HumanBytes(bytes).to_string(),
            None => "unknown (not all of it is here)".to_owned(),
        };
        format!(
            "{} {}; as fetched: {}; unpacked: {}",
            self.packages,
            if self.packages == 1 { one } else { many },
            size(self.fetched_bytes),
            size(self.unpacked_bytes)
        )
    }

    fn json(&self) -> Value {
        json!({
            "packages": self.packages,
            "fetched_bytes": self.fetched_bytes,
            "unpacked_bytes": self.unpacked_bytes,
        })
    }
}

/// Name, version and hash: of a fetched file its SHA-256.
fn described(hash: &StaticHash, derivation: &Derivation) -> String {
    let hash = match &derivation.action {
        Action::Fetch(fetch) => format!("sha256:{}", fetch.sha256),
        _ => short(hash),
    };
    let version = if derivation.version.is_empty() { "" } else { " " };
    format!("{}{version}{}  {hash}", derivation.name, visible(&derivation.version))
}

/// How large a fetched file is, if the definitions say it or the store has it.
fn fetched_bytes(store: Option<&Store>, derivation: &Derivation) -> Option<u64> {
    let Action::Fetch(fetch) = &derivation.action else { return None };
    let kept = || {
        let file = format!("{}-{}", fetch.sha256, derivation.name);
        std::fs::metadata(store?.directory("sources").join(file)).ok().map(|it| it.len())
    };
    derivation.advice.size_bytes.or_else(kept)
}

/// How large a fetched file is unpacked, if it is here.
fn unpacked_bytes(
    store: Option<&Store>,
    hash: StaticHash,
    derivation: &Derivation,
) -> CommandResult<Option<u64>> {
    let Some(store) = store else { return Ok(None) };
    let Some(output) = derivation.outputs().into_iter().next() else { return Ok(None) };
    let object = realised(store, &InputKey { derivation: hash, output })?;
    Ok(match object {
        Some(object) => Some(store.info(&object.id)?.size_bytes),
        None => None,
    })
}
