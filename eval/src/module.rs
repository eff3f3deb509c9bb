//! Modules: each file is parsed and run once, what it loads first.

use std::collections::HashMap;

use starlark::codemap::{CodeMap, FileSpanRef, Pos, Span};
use starlark::environment::{FrozenModule, Globals, Module};
use starlark::eval::{BeforeStmtFunc, Evaluator, ReturnFileLoader};
use starlark::syntax::{AstModule, Dialect, DialectTypes};
use starlark::{Error, PrintHandler};

use crate::definitions::{DefinitionPath, DefinitionsError};
use crate::misnamed::meant;
use crate::nesting;
use crate::session::Session;
use crate::{attribute, builtin};

/// How deep calls may be nested. Real definitions stay below 20.
pub(crate) const CALL_DEPTH: usize = 200;
/// How deep loads may be nested.
const LOAD_DEPTH: usize = 100;
/// How many calls and rounds of loops one evaluation may take: one to three seconds.
const STEPS: u64 = 20_000_000;
/// How many of those pass between two calls of the function that Starlark asks whether to stop.
const STEPS_AT_ONCE: u64 = 1_000;
/// How much the values of all modules and stage functions may take. Starlark counts what lies in
/// its own heap, after the fact: this ends what runs away step by step, always at the same point.
/// What takes more in a single step is ended by the limits of the process ([`crate::Limits`]).
const HEAP_BYTES: usize = 256 << 20;

/// A limit that stopped an evaluation. Time is none of them: the same definitions always stop at
/// the same point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    /// [`CALL_DEPTH`].
    #[error(
        "calls are nested more than {CALL_DEPTH} deep: a function calls itself, directly or through others"
    )]
    Calls,
    /// [`STEPS`].
    #[error("the evaluation takes more than {STEPS} calls and rounds of loops")]
    Steps,
    /// [`HEAP_BYTES`].
    #[error("the evaluation takes more than {} MiB of memory", HEAP_BYTES >> 20)]
    Heap,
}

/// The modules of one evaluation.
pub(crate) struct Modules<'s> {
    session: &'s Session,
    globals: Globals,
    loaded: HashMap<DefinitionPath, FrozenModule>,
}

/// A module that could not be loaded.
pub(crate) struct Failure {
    /// What Starlark says.
    pub(crate) error: Error,
    /// Lines about the `load` statements that led to it, the innermost first.
    pub(crate) loads: Vec<String>,
}

/// A file that can't be loaded from where it is asked for.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("files load each other in a circle: {}", chain.join(" → "))]
    Cycle { chain: Vec<String> },
    #[error("files load each other more than {LOAD_DEPTH} deep")]
    Depth,
    #[error("{path} exports no `{name}`{}", meant(near))]
    Name { path: DefinitionPath, name: String, near: Vec<String> },
    #[error("expressions are nested more than {} deep", nesting::LIMIT)]
    Nesting,
    #[error(transparent)]
    File(#[from] DefinitionsError),
}

/// Whether a module exports a name. What is private Starlark refuses itself.
fn exported(module: &FrozenModule, path: &DefinitionPath, name: &str) -> Result<(), LoadError> {
    let names: Vec<&str> = module.names().map(|name| name.as_str()).collect();
    if name.starts_with('_') || names.contains(&name) {
        return Ok(());
    }
    let near = attribute::nearest(name, names);
    Err(LoadError::Name { path: path.clone(), name: name.to_owned(), near })
}

impl<'s> Modules<'s> {
    pub(crate) fn new(session: &'s Session) -> Modules<'s> {
        Modules { session, globals: builtin::globals(), loaded: HashMap::new() }
    }

    /// The module `main.star`.
    pub(crate) fn main(&mut self) -> Result<FrozenModule, Failure> {
        self.load(&DefinitionPath::main(), &mut Vec::new())
    }

    fn load(
        &mut self,
        path: &DefinitionPath,
        chain: &mut Vec<DefinitionPath>,
    ) -> Result<FrozenModule, Failure> {
        if let Some(module) = self.loaded.get(path) {
            return Ok(module.clone());
        }
        let refused = |error: LoadError| Failure { error: Error::new_value(error), loads: vec![] };
        if let Some(first) = chain.iter().position(|loading| loading == path) {
            let chain = chain[first..].iter().chain([path]).map(ToString::to_string).collect();
            return Err(refused(LoadError::Cycle { chain }));
        }
        if chain.len() >= LOAD_DEPTH {
            return Err(refused(LoadError::Depth));
        }
        self.session.definitions().step(path.as_str());
        let text = self.session.source(path).map_err(|error| refused(error.into()))?;
        let failed = |error| Failure { error, loads: vec![] };
        if let Some(byte) = nesting::too_deep(&text) {
            let byte = u32::try_from(byte).map_or(Pos::new(0), Pos::new);
            let mut failure = refused(LoadError::Nesting);
            let file = CodeMap::new(path.to_string(), text);
            failure.error.set_span(Span::new(byte, byte), &file);
            return Err(failure);
        }
        let ast = AstModule::parse(path.as_str(), text, &dialect()).map_err(failed)?;

        chain.push(path.clone());
        let mut modules = HashMap::new();
        for load in ast.loads() {
            let at = |mut failure: Failure| {
                if failure.error.has_diagnostic() {
                    let line = load.span.resolve().begin_file_line();
                    failure.loads.push(format!("loaded by {line}"));
                } else {
                    failure.error.set_span(load.span.span, &load.span.file);
                }
                failure
            };
            let path = load.module_id.parse::<DefinitionPath>();
            let path = path.map_err(|error| at(refused(error.into())))?;
            let module = self.load(&path, chain).map_err(at)?;
            for name in load.symbols.values() {
                exported(&module, &path, name).map_err(|error| at(refused(error)))?;
            }
            modules.insert(load.module_id.to_owned(), module);
        }
        chain.pop();

        self.session.definitions().step(path.as_str());
        let module = self.run(ast, &modules).map_err(failed)?;
        self.loaded.insert(path.clone(), module.clone());
        Ok(module)
    }

    fn run(
        &self,
        ast: AstModule,
        modules: &HashMap<String, FrozenModule>,
    ) -> Result<FrozenModule, Error> {
        let modules = modules.iter().map(|(name, module)| (name.as_str(), module)).collect();
        let loader = ReturnFileLoader { modules: &modules };
        let hooks = Hooks::new(self.session);
        Module::with_temp_heap(|module| {
            {
                let mut evaluator = hooks.evaluator(&module)?;
                evaluator.set_loader(&loader);
                evaluator.eval_module(ast, &self.globals)?;
            }
            let module = module.freeze()?;
            self.session.keep(module.frozen_heap().allocated_bytes());
            Ok(module)
        })
    }
}

/// What is called before a statement.
type Statement<'s> = dyn Fn(FileSpanRef<'_>, bool, &mut Evaluator<'_, '_, '_>) + 's;

/// What an evaluator asks and tells the session that it works for.
pub(crate) struct Hooks<'s> {
    session: &'s Session,
    /// Called before each statement.
    statement: Box<Statement<'s>>,
}

impl<'s> Hooks<'s> {
    pub(crate) fn new(session: &'s Session) -> Hooks<'s> {
        let statement = |span: FileSpanRef<'_>, _: bool, _: &mut Evaluator<'_, '_, '_>| {
            session.statement(&span.to_file_span());
        };
        Hooks { session, statement: Box::new(statement) }
    }

    /// An evaluator with its limits set.
    pub(crate) fn evaluator<'v, 'a, 'e>(
        &'a self,
        module: &'a Module<'v>,
    ) -> Result<Evaluator<'v, 'a, 'e>, Error> {
        let session = self.session;
        let mut evaluator = Evaluator::new(module);
        evaluator.set_max_callstack_size(CALL_DEPTH)?;
        // Not by Starlark's own limits: their error comes once more after a run has ended, and that
        // second one, which says nothing of where it was, is what the caller gets.
        let heap = module.heap();
        evaluator.set_check_cancelled(Box::new(move || {
            session.stop(|steps| {
                let heap_bytes = heap.peak_allocated_bytes().saturating_add(session.kept_bytes());
                if steps.saturating_mul(STEPS_AT_ONCE) > STEPS {
                    Some(Exceeded::Steps)
                } else if heap_bytes > HEAP_BYTES {
                    Some(Exceeded::Heap)
                } else {
                    None
                }
            })
        }));
        if session.definitions().wants_positions() {
            // Meant for debuggers, as this is; only errors that were found already use it.
            evaluator.before_stmt_for_dap(BeforeStmtFunc::Fn(&*self.statement));
        }
        evaluator.set_print_handler(self);
        evaluator.extra = Some(session);
        Ok(evaluator)
    }
}

impl PrintHandler for Hooks<'_> {
    fn println(&self, text: &str) -> starlark::Result<()> {
        self.session.print(text).map_err(Error::new_value)
    }
}

/// Starlark with types, f-strings and keyword-only arguments. What a file loads isn't its own: no
/// re-export.
fn dialect() -> Dialect {
    Dialect {
        enable_keyword_only_arguments: true,
        enable_positional_only_arguments: true,
        enable_types: DialectTypes::Enable,
        enable_load_reexport: false,
        enable_top_level_stmt: true,
        enable_f_strings: true,
        ..Dialect::Standard
    }
}
