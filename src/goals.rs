//! What attributes stand for: from the evaluation cache where that still holds, else evaluated.
//!
//! The cache knows an attribute's hash without its graph of derivations, and that hash is all that
//! a command with nothing to do needs. So the graph is only read by [`Goals::graph`].

use std::collections::BTreeMap;

use srp_builder::sandbox::BinfmtHandler;
use srp_builder::{Request, RunnerSpec};
use srp_eval::{Cache, CachedGoal, Definitions, Evaluation, Runner};
use srp_store::{Derivation, InputKey, StaticHash, Store};

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::interrupt;

/// Attributes and what they stand for.
pub(crate) struct Goals<'a> {
    context: &'a Context,
    store: Option<&'a Store>,
    attrs: Vec<String>,
    definitions: Definitions,
    found: Found,
}

enum Found {
    Cached(Vec<CachedGoal>),
    Evaluated(Evaluation),
}

/// Attributes and everything that is needed to realise them.
pub(crate) struct Graph {
    /// Each attribute and what it stands for.
    pub(crate) goals: Vec<(String, InputKey)>,
    /// Everything that the goals and the emulators are made from.
    pub(crate) derivations: BTreeMap<StaticHash, Derivation>,
    /// The emulators, by architecture.
    pub(crate) runners: BTreeMap<String, RunnerSpec>,
}

impl<'a> Goals<'a> {
    /// What `attrs` stand for. The cache in `store` is asked, if there is a store.
    pub(crate) fn of(
        context: &'a Context,
        store: Option<&'a Store>,
        attrs: &[String],
    ) -> CommandResult<Goals<'a>> {
        let definitions = context.definitions()?;
        let lookup = |store: &Store| {
            let cache = cache(store);
            let arch = context.build_arch();
            attrs.iter().map(|attr| cache.lookup(&definitions, arch, attr)).collect()
        };
        // Without attributes nothing is cached, and the emulators are still asked for.
        let cached = store.filter(|_| !attrs.is_empty()).and_then(lookup);
        let found = match cached {
            Some(cached) => Found::Cached(cached),
            None => Found::Evaluated(evaluate(context, store, &definitions, attrs)?),
        };
        Ok(Goals { context, store, attrs: attrs.to_vec(), definitions, found })
    }

    /// What each attribute stands for, in the order in which they were given.
    pub(crate) fn keys(&self) -> Vec<InputKey> {
        match &self.found {
            Found::Cached(cached) => cached.iter().map(|goal| goal.key.clone()).collect(),
            Found::Evaluated(evaluation) => {
                evaluation.goals.iter().map(|(_, key)| key.clone()).collect()
            }
        }
    }

    /// The derivations behind the attributes.
    pub(crate) fn graph(self) -> CommandResult<Graph> {
        let evaluation = match self.found {
            Found::Evaluated(evaluation) => evaluation,
            Found::Cached(cached) => match cached_graph(&self.attrs, &cached) {
                Some(graph) => return Ok(graph),
                // Another process replaced the entry since it was looked up.
                None => evaluate(self.context, self.store, &self.definitions, &self.attrs)?,
            },
        };
        Ok(Graph {
            goals: evaluation.goals,
            derivations: evaluation.derivations,
            runners: specs(&evaluation.runners),
        })
    }
}

impl Graph {
    /// A request for certain outputs.
    pub(crate) fn request(&self, goals: Vec<InputKey>) -> Request {
        let (derivations, runners) = (self.derivations.clone(), self.runners.clone());
        let roots = self.goals.iter().filter_map(|(attr, _)| attr.parse().ok()).collect();
        Request { goals, derivations, runners, roots }
    }

    /// What the attributes stand for, without their names.
    pub(crate) fn keys(&self) -> Vec<InputKey> {
        self.goals.iter().map(|(_, key)| key.clone()).collect()
    }
}

fn cache(store: &Store) -> Cache {
    Cache::new(&store.directory("eval"))
}

fn evaluate(
    context: &Context,
    store: Option<&Store>,
    definitions: &Definitions,
    attrs: &[String],
) -> CommandResult<Evaluation> {
    let evaluation = context.evaluator().evaluate(
        definitions,
        context.build_arch(),
        attrs,
        interrupt::descriptor(),
    )?;
    check_runners(evaluation.runners.keys())?;
    if let Some(store) = store
        && let Err(error) = cache(store).store(context.build_arch(), &evaluation)
    {
        // In a store that can only be read, each command evaluates anew.
        tracing::debug!(%error, "the evaluation is not remembered");
    }
    Ok(evaluation)
}

/// No sandbox could run programs of another architecture: that is known now, and not when everything
/// else has been built.
fn check_runners<'r>(archs: impl Iterator<Item = &'r String>) -> CommandResult {
    for arch in archs {
        if !BinfmtHandler::known().any(|known| known == arch) {
            let known: Vec<&str> = BinfmtHandler::known().collect();
            return Err(CommandError::user(format!(
                "//main.star: `runners` has {arch:?}, whose programs no sandbox can run (known: {})",
                known.join(", ")
            ))
            .hint("targets get their architecture's name as the kernel has it (uname -m)"));
        }
    }
    Ok(())
}

fn cached_graph(attrs: &[String], cached: &[CachedGoal]) -> Option<Graph> {
    let mut derivations = BTreeMap::new();
    for goal in cached {
        derivations.extend(goal.graph()?);
    }
    let goals = attrs.iter().cloned().zip(cached.iter().map(|goal| goal.key.clone()));
    let runners = cached.first().map(|goal| specs(&goal.runners)).unwrap_or_default();
    Some(Graph { goals: goals.collect(), derivations, runners })
}

fn specs(runners: &BTreeMap<String, Runner>) -> BTreeMap<String, RunnerSpec> {
    let spec = |runner: &Runner| RunnerSpec {
        key: runner.key.clone(),
        program: runner.program.clone(),
        cpu: runner.cpu.clone(),
        uname: runner.uname.clone(),
    };
    runners.iter().map(|(arch, runner)| (arch.clone(), spec(runner))).collect()
}
