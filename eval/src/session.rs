//! What one evaluation gathers while Starlark runs: derivations made and files read.
//!
//! It is what the builtins reach through the evaluator. It knows no Starlark values.

#![expect(unsafe_code, reason = "ProvidesStaticType is derived as an unsafe impl")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use srp_store::{Action, Derivation, InputKey, StaticHash};
use starlark::codemap::FileSpan;
use starlark::values::ProvidesStaticType;

use crate::definitions::{DefinitionPath, Definitions, DefinitionsError, Seen};
use crate::error::position;
use crate::evaluate::graph;
use crate::module::Exceeded;

/// One evaluation's state.
#[derive(ProvidesStaticType)]
pub(crate) struct Session {
    definitions: Definitions,
    files: RefCell<BTreeMap<DefinitionPath, Seen>>,
    derivations: RefCell<BTreeMap<StaticHash, Arc<Derivation>>>,
    read_bytes: Cell<u64>,
    printed_bytes: Cell<usize>,
    kept_bytes: Cell<usize>,
    last_statement: RefCell<Option<FileSpan>>,
    asked: Cell<u64>,
    exceeded: Cell<Option<Exceeded>>,
}

/// Definitions that print without end.
#[derive(Debug, thiserror::Error)]
#[error("the evaluation prints more than {limit_bytes} bytes")]
pub(crate) struct PrintError {
    limit_bytes: usize,
}

impl Session {
    /// The most that a Starlark file may hold.
    const SOURCE_LIMIT_BYTES: u64 = 1 << 20;
    /// The most that `read_json` and `read_text` read.
    pub(crate) const DATA_LIMIT_BYTES: u64 = 64 << 20;
    /// The most that is read in all.
    const READ_LIMIT_BYTES: u64 = 128 << 20;
    /// The most that is printed in all.
    const PRINT_LIMIT_BYTES: usize = 1 << 20;

    pub(crate) fn new(definitions: Definitions) -> Session {
        Session {
            definitions,
            files: RefCell::default(),
            derivations: RefCell::default(),
            read_bytes: Cell::default(),
            printed_bytes: Cell::default(),
            kept_bytes: Cell::default(),
            last_statement: RefCell::default(),
            asked: Cell::default(),
            exceeded: Cell::default(),
        }
    }

    pub(crate) fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// A Starlark file's text.
    pub(crate) fn source(&self, path: &DefinitionPath) -> Result<String, DefinitionsError> {
        self.text(path, Self::SOURCE_LIMIT_BYTES)
    }

    /// A file's text; from then on the evaluation depends on it.
    pub(crate) fn text(
        &self,
        path: &DefinitionPath,
        limit_bytes: u64,
    ) -> Result<String, DefinitionsError> {
        let (bytes, seen) = self.definitions.read(path, limit_bytes)?;
        self.read_bytes.set(self.read_bytes.get().saturating_add(bytes.len() as u64));
        if self.read_bytes.get() > Self::READ_LIMIT_BYTES {
            return Err(DefinitionsError::TooMuch { limit_bytes: Self::READ_LIMIT_BYTES });
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| DefinitionsError::NotUtf8 { path: path.clone() })?;
        // Read twice with a change in between, no one content stands for the evaluation: the
        // first digest stays, so that the cache sees the file as changed.
        self.files.borrow_mut().entry(path.clone()).or_insert(seen);
        Ok(text)
    }

    /// Passes on what a definition prints.
    pub(crate) fn print(&self, text: &str) -> Result<(), PrintError> {
        let bytes = self.printed_bytes.get().saturating_add(text.len());
        if bytes > Self::PRINT_LIMIT_BYTES {
            return Err(PrintError { limit_bytes: Self::PRINT_LIMIT_BYTES });
        }
        self.printed_bytes.set(bytes);
        self.definitions.print(text);
        Ok(())
    }

    /// Says where the next statement is, unless it is the same as the last one.
    pub(crate) fn statement(&self, span: &FileSpan) {
        let mut last = self.last_statement.borrow_mut();
        if last.as_ref() != Some(span) {
            self.definitions.position(&position(span));
            *last = Some(span.clone());
        }
    }

    /// Counts the values of a module that was loaded.
    pub(crate) fn keep(&self, bytes: usize) {
        self.kept_bytes.set(self.kept_bytes.get().saturating_add(bytes));
    }

    /// How much the values of all loaded modules take.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes.get()
    }

    /// Takes a derivation in.
    ///
    /// A derivation made twice is one. What is in no hash may differ then: the places of a fetched
    /// file are added up, of the rest the first stays.
    pub(crate) fn add(&self, derivation: Derivation) -> (StaticHash, Arc<Derivation>) {
        let hash = derivation.static_hash();
        let mut derivations = self.derivations.borrow_mut();
        let known = derivations.entry(hash).or_insert_with(|| Arc::new(derivation.clone()));
        if matches!(derivation.action, Action::Fetch(_)) {
            let missing: Vec<String> = derivation
                .advice
                .urls
                .iter()
                .filter(|url| !known.advice.urls.contains(url))
                .cloned()
                .collect();
            if !missing.is_empty() {
                Arc::make_mut(known).advice.urls.extend(missing);
            }
        }
        (hash, Arc::new(derivation))
    }

    /// Whether Starlark must stop, which `limit` decides by how often it has asked before. It is
    /// told so only once, lest it complain of the complaint.
    pub(crate) fn stop(&self, limit: impl FnOnce(u64) -> Option<Exceeded>) -> bool {
        if self.exceeded.get().is_some() {
            return false;
        }
        self.asked.set(self.asked.get() + 1);
        self.exceeded.set(limit(self.asked.get()));
        self.exceeded.get().is_some()
    }

    /// The limit that stopped the evaluation.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        self.exceeded.get()
    }

    /// All files read so far.
    pub(crate) fn files(&self) -> BTreeMap<DefinitionPath, Seen> {
        self.files.borrow().clone()
    }

    /// The derivations that `goals` are made from, themselves included.
    pub(crate) fn graph<'k>(
        &self,
        goals: impl IntoIterator<Item = &'k InputKey>,
    ) -> BTreeMap<StaticHash, Derivation> {
        let derivations = self.derivations.borrow();
        graph(goals, |hash| &derivations[hash])
    }
}
