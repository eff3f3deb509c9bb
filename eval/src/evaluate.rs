//! Evaluation: attributes to derivations.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::resume_unwind;
use std::thread;

use srp_store::{Derivation, Digest, InputKey, StaticHash};
use starlark::environment::Module;

use crate::definitions::{DefinitionPath, Definitions, Seen};
use crate::error::EvalError;
use crate::exports::Exports;
use crate::module::{Failure, Hooks, Modules};
use crate::session::Session;

/// What attributes stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The goals' and the runners' whole graph.
    pub derivations: BTreeMap<StaticHash, Derivation>,
    /// The attributes as they were asked for, in that order, and what each stands for.
    pub goals: Vec<(String, InputKey)>,
    /// The emulators that the definitions provide, by the architecture that each emulates.
    pub runners: BTreeMap<String, Runner>,
    /// Every definition file that was read, by its path (`//main.star`).
    pub files: BTreeMap<String, Digest>,
    pub(crate) seen: BTreeMap<DefinitionPath, Seen>,
}

/// A user-mode emulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// The derivation that provides it.
    pub key: InputKey,
    /// The program's path in that derivation's output.
    pub program: String,
    /// The CPU that it emulates, in its own words.
    pub cpu: String,
    /// The kernel version that it reports.
    pub uname: String,
}

/// An attribute that could be asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// `<stage>.<target>[.<component>]`.
    pub attr: String,
    /// The derivation's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line about it.
    pub description: String,
}

impl Evaluation {
    /// The derivations that `goal` and the runners are made from, themselves included.
    pub fn graph_of(&self, goal: &InputKey) -> BTreeMap<StaticHash, Derivation> {
        let goals = self.runners.values().map(|runner| &runner.key).chain([goal]);
        graph(goals, |hash| &self.derivations[hash])
    }
}

/// Evaluates attributes, as building on a machine of architecture `build_arch` (`x86_64`) needs
/// them.
///
/// In this process: definitions that aren't trusted can end it. See [`Evaluator`](crate::Evaluator).
pub fn evaluate(
    definitions: &Definitions,
    build_arch: &str,
    attrs: &[String],
) -> Result<Evaluation, EvalError> {
    on_large_stack(|| evaluate_here(definitions, build_arch, attrs))
}

/// Lists what can be asked for: all of it, or what lies within `<stage>`, `<stage>.<target>` or a
/// component's attribute.
///
/// In this process, as [`evaluate()`].
pub fn list(
    definitions: &Definitions,
    build_arch: &str,
    within: Option<&str>,
) -> Result<Vec<Listed>, EvalError> {
    on_large_stack(|| list_here(definitions, build_arch, within))
}

/// As [`evaluate()`], on the calling thread's stack.
pub(crate) fn evaluate_here(
    definitions: &Definitions,
    build_arch: &str,
    attrs: &[String],
) -> Result<Evaluation, EvalError> {
    run(definitions, build_arch, |exports, session| {
        let mut goals = Vec::new();
        for attr in attrs {
            goals.push((attr.clone(), exports.goal(attr)?));
        }
        let runners = exports.runners()?;
        let seen = session.files();
        Ok(Evaluation {
            derivations: session
                .graph(goals.iter().map(|(_, key)| key).chain(runners.values().map(|it| &it.key))),
            goals,
            runners,
            files: seen.iter().map(|(path, seen)| (path.to_string(), seen.digest)).collect(),
            seen,
        })
    })
}

/// As [`list()`], on the calling thread's stack.
pub(crate) fn list_here(
    definitions: &Definitions,
    build_arch: &str,
    within: Option<&str>,
) -> Result<Vec<Listed>, EvalError> {
    run(definitions, build_arch, |exports, _| exports.list(within))
}

/// Native stack for parsing and running; it is only reserved, not used.
const STACK_BYTES: usize = 256 << 20;

/// Runs `work` on the definitions' `main.star`.
fn run<T>(
    definitions: &Definitions,
    build_arch: &str,
    work: impl FnOnce(&mut Exports<'_, '_, '_>, &Session) -> Result<T, EvalError>,
) -> Result<T, EvalError> {
    let session = Session::new(definitions.clone());
    let module = Modules::new(&session).main().map_err(|Failure { error, loads }| {
        EvalError::of_starlark(&error, session.exceeded(), &loads)
    })?;
    let hooks = Hooks::new(&session);
    Module::with_temp_heap(|heap| {
        let mut evaluator =
            hooks.evaluator(&heap).map_err(|error| EvalError::of_starlark(&error, None, &[]))?;
        // Values are held across calls, out of the collector's sight.
        evaluator.disable_gc();
        let mut exports = Exports::new(&module, evaluator, &session, build_arch)?;
        work(&mut exports, &session)
    })
}

/// Runs `work` on a thread whose stack suffices for parsing and running definitions.
pub(crate) fn on_large_stack<T: Send>(
    work: impl FnOnce() -> Result<T, EvalError> + Send,
) -> Result<T, EvalError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("srp-eval".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|source| {
                let action = "start the evaluation's thread".to_owned();
                EvalError::Process { action, source }
            })?;
        thread.join().unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            match message {
                Some(message) if is_about_size(message) => Err(EvalError::OutOfMemory),
                Some(message) => Err(EvalError::Crashed { message: message.to_owned() }),
                None => resume_unwind(panic),
            }
        })
    })
}

/// Whether a panic is about a value that can't be as large as it would have to be: what vectors and
/// Starlark's arenas say then.
fn is_about_size(panic: &str) -> bool {
    ["capacity overflow", "out of memory", "AlignedSize must not exceed"]
        .into_iter()
        .any(|beginning| panic.starts_with(beginning))
}

/// The derivations that `goals` are made from, themselves included. Not recursive: a definition's
/// loop makes a chain as long as it likes.
pub(crate) fn graph<'k, 'd>(
    goals: impl IntoIterator<Item = &'k InputKey>,
    derivation: impl Fn(&StaticHash) -> &'d Derivation,
) -> BTreeMap<StaticHash, Derivation> {
    let mut graph = BTreeMap::new();
    let mut open: Vec<StaticHash> = goals.into_iter().map(|key| key.derivation).collect();
    while let Some(hash) = open.pop() {
        if let Entry::Vacant(vacant) = graph.entry(hash) {
            let derivation = vacant.insert(derivation(&hash).clone());
            open.extend(derivation.inputs().iter().map(|input| input.key.derivation));
        }
    }
    graph
}
