//! Why an argument was refused.
//!
//! The checks themselves are in [`crate::check`].

use std::collections::BTreeSet;
use std::fmt;

use srp_store::name::NameError;
use srp_store::object::PermissionError;
use srp_store::{Name, OutputName};
use starlark::values::Value;

use crate::definitions::DefinitionsError;

/// An argument that was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("`{argument}`")]
    Name { argument: &'static str, source: NameError },
    #[error("`sha256`: {text:?} is not a SHA-256 (64 hexadecimal digits in lower case)")]
    Sha256 { text: String },
    #[error("`permissions`: {path:?}")]
    Permission { path: String, source: PermissionError },
    #[error("`{argument}` is not a list but {found}")]
    NotAList { argument: &'static str, found: Shown },
    #[error("`{argument}` is not a dict but {found}")]
    NotADict { argument: &'static str, found: Shown },
    #[error("`{argument}`: {item} is not a string but {found}")]
    NotAString { argument: &'static str, item: String, found: Shown },
    #[error("`{argument}`: item {index} is not a derivation but {found}")]
    NotADerivation { argument: &'static str, index: usize, found: Shown },
    #[error("`{argument}` is empty")]
    Empty { argument: &'static str },
    #[error("`{argument}`: the reason for {key:?} is empty")]
    EmptyReason { argument: &'static str, key: String },
    #[error("`{argument}`: {text:?} holds a control character")]
    Control { argument: &'static str, text: String },
    #[error("`{argument}` is 0")]
    Zero { argument: &'static str },
    #[error("`{argument}`: {text:?} is there twice")]
    Twice { argument: &'static str, text: String },
    #[error("`{argument}`: {path:?} is not an absolute path without \".\" and \"..\"")]
    Absolute { argument: &'static str, path: String },
    #[error("`{argument}`: {path:?} is not a relative path without \".\" and \"..\"")]
    Relative { argument: &'static str, path: String },
    #[error(
        "`{argument}`: {path:?}: \"*\" stands for any text within one component; there is no \"**\""
    )]
    Glob { argument: &'static str, path: String },
    #[error("`{argument}`: {url:?} can't be a place: {wrong}")]
    Url { argument: &'static str, url: String, wrong: String },
    #[error(
        "`commit`: {text:?} is not a commit: 40 or 64 hexadecimal digits in lower case are expected"
    )]
    Commit { text: String },
    #[error("`unpack`: {text:?} is not an archive format: None, \"tar\" or \"deb\" is expected")]
    Unpack { text: String },
    #[error("`{argument}` is about unpacking, but `unpack` is None")]
    NotUnpacked { argument: &'static str },
    #[error("`env`: {name:?} is not a variable's name")]
    Variable { name: String },
    #[error("`env`: {name:?} is set by the sandbox")]
    ReservedVariable { name: String },
    #[error(
        "{what}: {bytes} bytes, and the kernel passes at most {limit} on to a program: put the text \
         into a file of the definitions and make that a source (`written_here` in lib/sources.star)"
    )]
    TooLong { what: String, bytes: usize, limit: usize },
    #[error("`outputs`: \"out\" is missing")]
    NoOut,
    #[error("{derivation} has no output {output:?}, only {}", quoted(outputs))]
    Output { derivation: Name, output: String, outputs: BTreeSet<OutputName> },
    #[error("`{argument}`: {label} is there twice")]
    InputTwice { argument: &'static str, label: String },
    #[error("`sources`: two sources are called {name:?}, and would both be at /srp/source/{name}")]
    SourceTwice { name: Name },
    #[error("`sources`: {label} is a stage: its components belong in `tools` or `libs`")]
    StageSource { label: String },
    #[error("`{argument}`: {label} is not an input: add it to `tools` or `libs`")]
    NotAnInput { argument: &'static str, label: String },
    #[error(transparent)]
    File(#[from] DefinitionsError),
    #[error("{what} is not JSON")]
    Json { what: String, source: serde_json::Error },
    #[error("{what} holds the number {number}, which is too large")]
    JsonNumber { what: String, number: serde_json::Number },
}

impl From<Invalid> for starlark::Error {
    fn from(invalid: Invalid) -> starlark::Error {
        starlark::Error::new_value(invalid)
    }
}

/// A value as a message shows it: its type, and a short value itself.
#[derive(Debug)]
pub(crate) struct Shown(String);

impl Shown {
    pub(crate) fn of(value: Value<'_>) -> Shown {
        let kind = match value.get_type() {
            "NoneType" => return Shown("None".to_owned()),
            kind => kind,
        };
        let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let text = value.to_repr();
        Shown(match text.chars().nth(60) {
            None => format!("{article} {kind}: {text}"),
            Some(_) => format!("{article} {kind}"),
        })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn quoted(names: &BTreeSet<OutputName>) -> String {
    names.iter().map(|name| format!("{:?}", name.as_str())).collect::<Vec<_>>().join(", ")
}
