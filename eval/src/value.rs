//! Derivations as Starlark values.

#![expect(unsafe_code, reason = "ProvidesStaticType is derived as an unsafe impl")]

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use allocative::Allocative;
use srp_store::{Action, Derivation, InputKey, OutputName, StaticHash, Triple};
use starlark::collections::StarlarkHasher;
use starlark::environment::{Methods, MethodsBuilder};
use starlark::values::none::NoneOr;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value, ValueLike,
    starlark_value,
};
use starlark::{starlark_module, starlark_simple_value};

use crate::invalid::Invalid;

/// A derivation with one of its outputs selected: what `fetch`, `derivation` and `stage` return.
///
/// It can be compared, and nothing of its identity can be read: no hash can get into a builder's
/// arguments.
#[derive(Clone, Debug, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
pub(crate) struct DerivationValue {
    #[allocative(skip)]
    pub(crate) derivation: Arc<Derivation>,
    #[allocative(skip)]
    pub(crate) key: InputKey,
}

starlark_simple_value!(DerivationValue);
starlark::methods_static!(METHODS = methods);

impl DerivationValue {
    /// A derivation whose `out` is selected.
    pub(crate) fn new(hash: StaticHash, derivation: Arc<Derivation>) -> DerivationValue {
        let key = InputKey { derivation: hash, output: OutputName::out() };
        DerivationValue { derivation, key }
    }

    /// How it is called in messages: `zlib-1.3`, `zlib-1.3 (dev)`.
    pub(crate) fn label(&self) -> String {
        let mut label = self.derivation.name.to_string();
        if !self.derivation.version.is_empty() {
            label += &format!("-{}", self.derivation.version);
        }
        if self.key.output != OutputName::out() {
            label += &format!(" ({})", self.key.output);
        }
        label
    }

    fn triples(&self) -> (Option<&Triple>, Option<&Triple>, Option<&Triple>) {
        match &self.derivation.action {
            Action::Build(it) => (Some(&it.build), Some(&it.host), it.target.as_ref()),
            Action::Stage(it) => (Some(&it.build), Some(&it.host), None),
            Action::Fetch(_) => (None, None, None),
        }
    }
}

impl fmt::Display for DerivationValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<derivation {}>", self.label())
    }
}

#[starlark_value(type = "derivation")]
impl<'v> StarlarkValue<'v> for DerivationValue {
    fn get_methods() -> Option<&'static Methods> {
        Some(METHODS.methods())
    }

    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(other.downcast_ref::<DerivationValue>().is_some_and(|other| other.key == self.key))
    }

    fn write_hash(&self, hasher: &mut StarlarkHasher) -> starlark::Result<()> {
        hasher.write(self.key.derivation.as_bytes());
        hasher.write(self.key.output.as_str().as_bytes());
        Ok(())
    }
}

#[starlark_module]
fn methods(builder: &mut MethodsBuilder) {
    /// What it is called.
    #[starlark(attribute)]
    fn name<'v>(this: &'v DerivationValue) -> starlark::Result<&'v str> {
        Ok(this.derivation.name.as_str())
    }

    /// Its version, which may be empty.
    #[starlark(attribute)]
    fn version<'v>(this: &'v DerivationValue) -> starlark::Result<&'v str> {
        Ok(&this.derivation.version)
    }

    /// The triple its builder runs on; `None` of a fetched file.
    #[starlark(attribute)]
    fn build<'v>(this: &'v DerivationValue) -> starlark::Result<NoneOr<&'v str>> {
        Ok(NoneOr::from_option(this.triples().0.map(Triple::as_str)))
    }

    /// The triple its output runs on; `None` of a fetched file.
    #[starlark(attribute)]
    fn host<'v>(this: &'v DerivationValue) -> starlark::Result<NoneOr<&'v str>> {
        Ok(NoneOr::from_option(this.triples().1.map(Triple::as_str)))
    }

    /// The triple its output makes programs for, if it is a compiler.
    #[starlark(attribute)]
    fn target<'v>(this: &'v DerivationValue) -> starlark::Result<NoneOr<&'v str>> {
        Ok(NoneOr::from_option(this.triples().2.map(Triple::as_str)))
    }

    /// The names of all its outputs.
    #[starlark(attribute)]
    fn outputs(this: &DerivationValue) -> starlark::Result<Vec<String>> {
        Ok(this.derivation.outputs().iter().map(OutputName::to_string).collect())
    }

    /// The same derivation, another of its outputs.
    fn output(
        this: &DerivationValue,
        #[starlark(require = pos)] name: &str,
    ) -> starlark::Result<DerivationValue> {
        let mut outputs = this.derivation.outputs().into_iter();
        let Some(output) = outputs.find(|output| output.as_str() == name) else {
            return Err(Invalid::Output {
                derivation: this.derivation.name.clone(),
                output: name.to_owned(),
                outputs: this.derivation.outputs(),
            }
            .into());
        };
        let key = InputKey { derivation: this.key.derivation, output };
        Ok(DerivationValue { derivation: this.derivation.clone(), key })
    }
}
