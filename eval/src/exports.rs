//! What `main.star` exports, checked, and what its functions return.
//!
//! Names are looked up here; how attribute paths are taken apart is [`crate::attribute`]'s.

use std::collections::BTreeMap;

use srp_store::InputKey;
use starlark::environment::FrozenModule;
use starlark::eval::Evaluator;
use starlark::values::dict::DictRef;
use starlark::values::{Heap, Value, ValueLike};

use crate::definitions::DefinitionPath;
use crate::error::EvalError;
use crate::evaluate::{Listed, Runner};
use crate::invalid::Shown;
use crate::session::Session;
use crate::value::DerivationValue;
use crate::{attribute, check};

/// What `main.star` exports.
pub(crate) struct Exports<'v, 'a, 'e> {
    evaluator: Evaluator<'v, 'a, 'e>,
    session: &'a Session,
    build_arch: String,
    stages: BTreeMap<String, Value<'v>>,
    targets: BTreeMap<String, Value<'v>>,
    machines: BTreeMap<String, Value<'v>>,
    aliases: BTreeMap<String, String>,
    runners: Option<Value<'v>>,
    /// What stage functions returned, by stage and target.
    components: BTreeMap<(String, String), BTreeMap<String, DerivationValue>>,
}

/// The stage whose targets are build machines.
const SEED: &str = "seed";

impl<'v, 'a, 'e> Exports<'v, 'a, 'e> {
    pub(crate) fn new(
        module: &FrozenModule,
        evaluator: Evaluator<'v, 'a, 'e>,
        session: &'a Session,
        build_arch: &str,
    ) -> Result<Self, EvalError> {
        let heap = evaluator.heap();
        let export = |name: &str| {
            let value = module.get_option(name).ok().flatten();
            value.map(|value| heap.access_owned_frozen_value(&value))
        };
        let required = |name: &str| {
            export(name).ok_or_else(|| EvalError::Main { problem: format!("`{name}` is missing") })
        };
        let optional = |name: &str| export(name).map(|value| entries(name, value)).transpose();
        let exports = Exports {
            session,
            build_arch: build_arch.to_owned(),
            stages: entries("stages", required("stages")?)?,
            targets: entries("targets", required("targets")?)?,
            machines: optional("machines")?.unwrap_or_default(),
            aliases: aliases(optional("aliases")?.unwrap_or_default())?,
            runners: export("runners"),
            components: BTreeMap::new(),
            evaluator,
        };
        for (alias, target) in &exports.aliases {
            if !exports.targets.contains_key(target) {
                let problem =
                    format!("`aliases`: {alias:?} stands for {target:?}, which is no target");
                return Err(EvalError::Main { problem });
            }
        }
        if !exports.machines.is_empty() && !exports.machines.contains_key(build_arch) {
            return Err(EvalError::UnknownMachine {
                arch: build_arch.to_owned(),
                known: exports.machines.keys().cloned().collect(),
            });
        }
        Ok(exports)
    }

    /// What an attribute stands for.
    pub(crate) fn goal(&mut self, attr: &str) -> Result<InputKey, EvalError> {
        let (stage, rest) = self.stage(attr)?;
        let Some(rest) = rest else {
            let known = self.targets_of(&stage).keys().cloned().collect();
            return Err(EvalError::NoTarget { attribute: attr.to_owned(), known });
        };
        let (target, component) = self.target(&stage, rest)?;
        self.component(&stage, &target, component).map(|it| it.key.clone())
    }

    fn stage<'p>(&self, attr: &'p str) -> Result<(String, Option<&'p str>), EvalError> {
        let known = || self.stages.keys().map(String::as_str);
        match attribute::split(attr, known()) {
            Some((stage, rest)) => Ok((stage.to_owned(), rest)),
            None => {
                let wanted = attr.split('.').next().unwrap_or_default();
                Err(EvalError::UnknownStage {
                    attribute: attr.to_owned(),
                    near: attribute::nearest(wanted, known()),
                    known: known().map(str::to_owned).collect(),
                })
            }
        }
    }

    /// The target that `rest` begins with, aliases resolved, and what follows.
    fn target<'p>(
        &self,
        stage: &str,
        rest: &'p str,
    ) -> Result<(String, Option<&'p str>), EvalError> {
        let targets = self.targets_of(stage);
        let no_aliases = BTreeMap::new();
        let aliases = if self.is_for_machines(stage) { &no_aliases } else { &self.aliases };
        let known = || targets.keys().chain(aliases.keys()).map(String::as_str);
        match attribute::split(rest, known()) {
            Some((name, rest)) if targets.contains_key(name) => Ok((name.to_owned(), rest)),
            Some((alias, rest)) => Ok((aliases[alias].clone(), rest)),
            None => {
                let wanted = rest.split('.').next().unwrap_or_default();
                Err(EvalError::UnknownTarget {
                    target: wanted.to_owned(),
                    stage: stage.to_owned(),
                    near: attribute::nearest(wanted, known()),
                    known: known().map(str::to_owned).collect(),
                })
            }
        }
    }

    fn component(
        &mut self,
        stage: &str,
        target: &str,
        component: Option<&str>,
    ) -> Result<&DerivationValue, EvalError> {
        let components = self.components(stage, target)?;
        // The stage itself is the component "", which no path names: `stage1.x86_64.` is nothing.
        let name = component.unwrap_or_default();
        if component != Some("") && components.contains_key(name) {
            return Ok(&components[name]);
        }
        let known = || components.keys().map(String::as_str).filter(|name| !name.is_empty());
        Err(EvalError::UnknownComponent {
            component: name.to_owned(),
            stage: stage.to_owned(),
            target: target.to_owned(),
            near: attribute::nearest(name, known()),
            known: known().map(str::to_owned).collect(),
        })
    }

    fn targets_of(&self, stage: &str) -> &BTreeMap<String, Value<'v>> {
        if self.is_for_machines(stage) { &self.machines } else { &self.targets }
    }

    fn is_for_machines(&self, stage: &str) -> bool {
        stage == SEED && !self.machines.is_empty()
    }

    /// A stage's components for a target. Its function is called once.
    fn components(
        &mut self,
        stage: &str,
        target: &str,
    ) -> Result<&BTreeMap<String, DerivationValue>, EvalError> {
        let key = (stage.to_owned(), target.to_owned());
        if !self.components.contains_key(&key) {
            let (function, record) = (self.stages[stage], self.targets_of(stage)[target]);
            let build = self.evaluator.heap().alloc(self.build_arch.as_str());
            let what = format!("stages[{stage:?}] for the target {target}");
            let result = self.call(function, &[record, build], &what)?;
            let components = components(result).map_err(|problem| EvalError::Returned {
                function: format!("stages[{stage:?}]"),
                argument: target.to_owned(),
                problem,
            })?;
            self.components.insert(key.clone(), components);
        }
        Ok(&self.components[&key])
    }

    /// Calls a function that `main.star` exports.
    fn call(
        &mut self,
        function: Value<'v>,
        arguments: &[Value<'v>],
        what: &str,
    ) -> Result<Value<'v>, EvalError> {
        self.session.definitions().step(what);
        self.evaluator.eval_function(function, arguments, &[]).map_err(|error| {
            let note = format!("called for {}: {what}", DefinitionPath::main());
            EvalError::of_starlark(&error, self.session.exceeded(), &[note])
        })
    }

    pub(crate) fn runners(&mut self) -> Result<BTreeMap<String, Runner>, EvalError> {
        let Some(function) = self.runners else { return Ok(BTreeMap::new()) };
        let build = self.evaluator.heap().alloc(self.build_arch.as_str());
        let what = format!("runners for the build machine {}", self.build_arch);
        let result = self.call(function, &[build], &what)?;
        runners(result, self.evaluator.heap()).map_err(|problem| EvalError::Returned {
            function: "runners".to_owned(),
            argument: self.build_arch.clone(),
            problem,
        })
    }

    pub(crate) fn list(&mut self, within: Option<&str>) -> Result<Vec<Listed>, EvalError> {
        let (stages, rest) = match within {
            None => (self.stages.keys().cloned().collect(), None),
            Some(attr) => {
                let (stage, rest) = self.stage(attr)?;
                (vec![stage], rest)
            }
        };
        let mut listed = Vec::new();
        for stage in stages {
            let (targets, component) = match rest {
                None => (self.targets_of(&stage).keys().cloned().collect(), None),
                Some(rest) => {
                    let (target, component) = self.target(&stage, rest)?;
                    (vec![target], component)
                }
            };
            for target in targets {
                if let Some(component) = component {
                    let value = self.component(&stage, &target, Some(component))?;
                    listed.push(Listed::new(&stage, &target, component, value));
                } else {
                    let components = self.components(&stage, &target)?.iter();
                    listed.extend(
                        components.map(|(name, value)| Listed::new(&stage, &target, name, value)),
                    );
                }
            }
        }
        Ok(listed)
    }
}

impl Listed {
    fn new(stage: &str, target: &str, component: &str, value: &DerivationValue) -> Listed {
        let mut attr = format!("{stage}.{target}");
        if !component.is_empty() {
            attr = format!("{attr}.{component}");
        }
        Listed {
            attr,
            name: value.derivation.name.to_string(),
            version: value.derivation.version.clone(),
            description: value.derivation.advice.description.clone(),
        }
    }
}

/// A dict that `main.star` exports, whose keys are names.
fn entries<'v>(name: &str, value: Value<'v>) -> Result<BTreeMap<String, Value<'v>>, EvalError> {
    let wrong = |problem: String| EvalError::Main { problem: format!("`{name}` {problem}") };
    let Some(dict) = DictRef::from_value(value) else {
        return Err(wrong(format!("is not a dict but {}", Shown::of(value))));
    };
    let entry = |(key, value): (Value<'v>, Value<'v>)| match key.unpack_str() {
        Some(text) if is_name(text) => Ok((text.to_owned(), value)),
        Some(text) => {
            Err(wrong(format!("has the key {text:?}, which can't be part of an attribute")))
        }
        None => Err(wrong(format!("has a key that is not a string but {}", Shown::of(key)))),
    };
    dict.iter().map(entry).collect()
}

/// Whether an attribute could name it: no empty part between dots, nothing that a shell splits.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-_".contains(c);
    text.split('.').all(|part| !part.is_empty() && part.chars().all(allowed))
}

fn aliases(entries: BTreeMap<String, Value<'_>>) -> Result<BTreeMap<String, String>, EvalError> {
    let alias = |(alias, value): (String, Value<'_>)| match value.unpack_str() {
        Some(target) => Ok((alias, target.to_owned())),
        None => Err(EvalError::Main {
            problem: format!("`aliases`: {alias:?} is not a string but {}", Shown::of(value)),
        }),
    };
    entries.into_iter().map(alias).collect()
}

/// What a stage function returned.
fn components(value: Value<'_>) -> Result<BTreeMap<String, DerivationValue>, String> {
    let Some(dict) = DictRef::from_value(value) else {
        return Err(format!("not a dict of components but {}", Shown::of(value)));
    };
    let mut components = BTreeMap::new();
    for (key, value) in dict.iter() {
        let name = match key.unpack_str() {
            Some(name) if name.is_empty() || is_name(name) => name.to_owned(),
            Some(name) => return Err(format!("{name:?} can't be a component's name")),
            None => {
                return Err(format!("a component's name is not a string but {}", Shown::of(key)));
            }
        };
        let Some(derivation) = value.downcast_ref::<DerivationValue>() else {
            return Err(format!("{name:?} is not a derivation but {}", Shown::of(value)));
        };
        components.insert(name, derivation.clone());
    }
    Ok(components)
}

/// What the function `runners` returned.
fn runners<'v>(value: Value<'v>, heap: Heap<'v>) -> Result<BTreeMap<String, Runner>, String> {
    let Some(dict) = DictRef::from_value(value) else {
        return Err(format!("not a dict of runners but {}", Shown::of(value)));
    };
    let mut runners = BTreeMap::new();
    for (key, value) in dict.iter() {
        let Some(arch) = key.unpack_str() else {
            return Err(format!("an architecture is not a string but {}", Shown::of(key)));
        };
        let field = |name: &str| match value.get_attr(name, heap) {
            Ok(Some(value)) => Ok(value),
            Ok(None) | Err(_) => Err(format!("{arch:?} has no `{name}`")),
        };
        let text = |name: &str| {
            let value = field(name)?;
            match value.unpack_str() {
                Some(text) if !text.is_empty() && !text.contains(char::is_control) => {
                    Ok(text.to_owned())
                }
                _ => Err(format!("`{name}` of {arch:?} is not a name but {}", Shown::of(value))),
            }
        };
        let derivation = field("derivation")?;
        let Some(derivation) = derivation.downcast_ref::<DerivationValue>() else {
            let found = Shown::of(derivation);
            return Err(format!("`derivation` of {arch:?} is not a derivation but {found}"));
        };
        let runner = Runner {
            key: derivation.key.clone(),
            program: check::absolute("program", &text("program")?).map_err(|it| it.to_string())?,
            cpu: text("cpu")?,
            uname: text("uname")?,
        };
        runners.insert(arch.to_owned(), runner);
    }
    Ok(runners)
}
