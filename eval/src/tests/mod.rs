//! Definitions written into temporary directories, and what comes of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};

use srp_store::{Action, Build, Derivation};
use tempfile::TempDir;

use crate::{Definitions, EvalError, Evaluation, Listed, evaluate, list};

mod arguments;
mod attributes;
mod caching;
mod identity;
mod loading;
mod messages;

/// A definitions directory of one stage, `s`, with one target, `t`: its component `x` is what
/// `component` says in `//package.star`, line 2.
pub(crate) fn with_component(component: &str) -> Fixture {
    let package = format!(
        "load(\"//lib.star\", \"build\", \"source\", \"tool\")\ndef x(): return {component}\n"
    );
    Fixture::new(&[("main.star", MAIN), ("lib.star", LIB), ("package.star", &package)])
}

const MAIN: &str = r#"
load("//package.star", "x")
def _s(target, build):
    return {"": x()}
stages = {"s": _s}
targets = {"t": struct(name = "t")}
"#;

pub(crate) const LIB: &str = r#"
_triple = "x86_64-linux-gnu"
def source(name = "zlib.tar.gz", **arguments):
    return fetch(**({"name": name, "sha256": 64 * "0", "urls": ["https://a.example/" + name]} | arguments))
def build(**arguments):
    return derivation(**({
        "name": "zlib", "version": "1.3", "build": _triple, "host": _triple, "builder": "/usr/bin/bash",
    } | arguments))
tool = build(name = "tool", outputs = ["out", "dev"])
"#;

pub(crate) struct Fixture {
    directory: TempDir,
    printed: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    pub(crate) fn new(files: &[(&str, &str)]) -> Fixture {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let fixture = Fixture { directory, printed: Arc::default() };
        files.iter().for_each(|(path, text)| fixture.write(path, text));
        fixture
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn link(&self, path: &str, to: &str) {
        symlink(to, self.root().join(path)).expect("a symlink");
    }

    pub(crate) fn definitions(&self) -> Definitions {
        let printed = self.printed.clone();
        let definitions = Definitions::open(self.root()).expect("a directory");
        definitions.on_print(move |text| {
            printed.lock().expect("no panic before").push(text.to_owned());
        })
    }

    pub(crate) fn printed(&self) -> Vec<String> {
        self.printed.lock().expect("no panic before").clone()
    }

    pub(crate) fn try_evaluate(&self, attrs: &[&str]) -> Result<Evaluation, EvalError> {
        let attrs: Vec<String> = attrs.iter().map(ToString::to_string).collect();
        evaluate(&self.definitions(), "x86_64", &attrs)
    }

    pub(crate) fn evaluate(&self, attrs: &[&str]) -> Evaluation {
        self.try_evaluate(attrs).unwrap_or_else(|error| panic!("{}", error.rendered()))
    }

    pub(crate) fn error(&self, attr: &str) -> EvalError {
        self.try_evaluate(&[attr]).expect_err("an error")
    }

    pub(crate) fn list(&self, within: Option<&str>) -> Vec<Listed> {
        list(&self.definitions(), "x86_64", within).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The derivation that an attribute stands for.
    pub(crate) fn derivation(&self, attr: &str) -> Derivation {
        let evaluation = self.evaluate(&[attr]);
        evaluation.derivations[&evaluation.goals[0].1.derivation].clone()
    }
}

pub(crate) fn build_of(derivation: &Derivation) -> &Build {
    match &derivation.action {
        Action::Build(build) => build,
        other => panic!("not a build: {other:?}"),
    }
}
