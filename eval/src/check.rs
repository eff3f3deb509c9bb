//! What a definition may say: every argument of the builtins is checked here, so that a mistake is
//! named where it was made and not in the middle of a build.
//!
//! Starlark's own checks (unknown keywords, types of whole arguments) come before these.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use srp_store::name::NameError;
use srp_store::{Action, Input, InputKey, OutputName, Permission, Role, Sha256, Triple};
use starlark::values::dict::DictRef;
use starlark::values::list_or_tuple::UnpackListOrTuple;
use starlark::values::{UnpackValue, Value, ValueLike};

use crate::invalid::{Invalid, Shown};
use crate::value::DerivationValue;

/// A name, an output's name or a triple.
pub(crate) fn name<T: FromStr<Err = NameError>>(
    argument: &'static str,
    text: &str,
) -> Result<T, Invalid> {
    text.parse().map_err(|source| Invalid::Name { argument, source })
}

/// A triple, in its one spelling.
pub(crate) fn triple(argument: &'static str, text: &str) -> Result<Triple, Invalid> {
    name(argument, text)
}

/// A file's hash.
pub(crate) fn sha256(text: &str) -> Result<Sha256, Invalid> {
    text.parse().map_err(|_| Invalid::Sha256 { text: text.to_owned() })
}

/// One line for people: a version, a description, a reason.
pub(crate) fn line(argument: &'static str, text: &str) -> Result<String, Invalid> {
    if text.chars().any(char::is_control) {
        return Err(Invalid::Control { argument, text: text.to_owned() });
    }
    Ok(text.to_owned())
}

/// A line with something in it.
pub(crate) fn full_line(argument: &'static str, text: &str) -> Result<String, Invalid> {
    if text.trim().is_empty() {
        return Err(Invalid::Empty { argument });
    }
    line(argument, text)
}

/// An amount, which is never 0.
pub(crate) fn amount(argument: &'static str, value: Option<u64>) -> Result<Option<u64>, Invalid> {
    if value == Some(0) { Err(Invalid::Zero { argument }) } else { Ok(value) }
}

/// The items of a list or tuple.
pub(crate) fn items<'v>(
    argument: &'static str,
    list: Option<Value<'v>>,
) -> Result<Vec<Value<'v>>, Invalid> {
    let Some(list) = list else { return Ok(Vec::new()) };
    match UnpackListOrTuple::unpack_value_opt(list) {
        Some(UnpackListOrTuple { items }) => Ok(items),
        None => Err(Invalid::NotAList { argument, found: Shown::of(list) }),
    }
}

/// A list of texts without NUL, which no process could be given.
pub(crate) fn texts(
    argument: &'static str,
    list: Option<Value<'_>>,
) -> Result<Vec<String>, Invalid> {
    let items = items(argument, list)?.into_iter().enumerate();
    items.map(|(index, item)| text(argument, || format!("item {index}"), item)).collect()
}

/// A dict of texts.
pub(crate) fn text_map(
    argument: &'static str,
    dict: Option<Value<'_>>,
) -> Result<BTreeMap<String, String>, Invalid> {
    let Some(dict) = dict else { return Ok(BTreeMap::new()) };
    let Some(entries) = DictRef::from_value(dict) else {
        return Err(Invalid::NotADict { argument, found: Shown::of(dict) });
    };
    let texts = entries.iter().map(|(key, value)| {
        let key = text(argument, || "a key".to_owned(), key)?;
        let value = text(argument, || format!("the value of {key:?}"), value)?;
        Ok((key, value))
    });
    texts.collect()
}

fn text(
    argument: &'static str,
    item: impl FnOnce() -> String,
    value: Value<'_>,
) -> Result<String, Invalid> {
    match value.unpack_str() {
        None => Err(Invalid::NotAString { argument, item: item(), found: Shown::of(value) }),
        Some(text) if text.contains('\0') => {
            Err(Invalid::Control { argument, text: text.to_owned() })
        }
        Some(text) => Ok(text.to_owned()),
    }
}

/// A dict of things and why they are right.
pub(crate) fn reasons(
    argument: &'static str,
    dict: Option<Value<'_>>,
) -> Result<BTreeMap<String, String>, Invalid> {
    let reasons = text_map(argument, dict)?;
    for (key, reason) in &reasons {
        full_line(argument, key)?;
        line(argument, reason)?;
        if reason.trim().is_empty() {
            return Err(Invalid::EmptyReason { argument, key: key.clone() });
        }
    }
    Ok(reasons)
}

/// A path in the sandbox or in an output.
pub(crate) fn absolute(argument: &'static str, path: &str) -> Result<String, Invalid> {
    let plain = |rest: &str| rest.split('/').all(is_component);
    if path.strip_prefix('/').is_some_and(plain) {
        Ok(path.to_owned())
    } else {
        Err(Invalid::Absolute { argument, path: path.to_owned() })
    }
}

/// A path in an archive.
pub(crate) fn relative(argument: &'static str, path: &str) -> Result<String, Invalid> {
    if path.split('/').all(is_component) {
        Ok(path.to_owned())
    } else {
        Err(Invalid::Relative { argument, path: path.to_owned() })
    }
}

fn is_component(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(char::is_control)
}

/// Path prefixes in which `*` stands for any text within a component.
pub(crate) fn prefixes(
    argument: &'static str,
    list: Option<Value<'_>>,
) -> Result<Vec<String>, Invalid> {
    let prefixes = texts(argument, list)?;
    for path in &prefixes {
        relative(argument, path)?;
        if path.contains("**") {
            return Err(Invalid::Glob { argument, path: path.clone() });
        }
    }
    unique(argument, &prefixes)?;
    Ok(prefixes)
}

/// Paths in an archive and where they go.
pub(crate) fn renames(dict: Option<Value<'_>>) -> Result<BTreeMap<String, String>, Invalid> {
    let renames = text_map("rename", dict)?;
    for path in renames.iter().flat_map(|(old, new)| [old, new]) {
        relative("rename", path)?;
    }
    unique("rename", renames.values())?;
    Ok(renames)
}

/// Places of a file, best first.
pub(crate) fn urls(list: Option<Value<'_>>) -> Result<Vec<String>, Invalid> {
    let urls = texts("urls", list)?;
    if urls.is_empty() {
        return Err(Invalid::Empty { argument: "urls" });
    }
    for text in &urls {
        url("urls", text)?;
    }
    unique("urls", &urls)?;
    Ok(urls)
}

/// The place that a commit of a git repository is, as the fetcher takes it.
pub(crate) fn git_url(repository: &str, commit: &str, submodules: bool) -> Result<String, Invalid> {
    url("url", repository)?;
    if repository.contains(['#', '?']) {
        let wrong = "a repository's URL has no ? or #".to_owned();
        return Err(Invalid::Url { argument: "url", url: repository.to_owned(), wrong });
    }
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(hexadecimal) {
        return Err(Invalid::Commit { text: commit.to_owned() });
    }
    let submodules = if submodules { "#submodules" } else { "" };
    Ok(format!("git+{repository}@{commit}{submodules}"))
}

/// A place on a web server or mirror. Its scheme may be in any case.
fn url(argument: &'static str, url: &str) -> Result<(), Invalid> {
    let wrong = |wrong: String| Err(Invalid::Url { argument, url: url.to_owned(), wrong });
    if url.contains(' ') {
        return wrong("it holds a space, which a URL writes as %20".into());
    }
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return wrong("it holds a control character or white space".into());
    }
    const EXPECTED: &str = "https://, http:// or mirror:// is expected";
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return wrong(format!("it has no scheme: {EXPECTED}"));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !matches!(scheme.as_str(), "https" | "http" | "mirror") {
        return wrong(format!("{scheme}: is not supported: {EXPECTED}"));
    }
    match rest.strip_prefix("//") {
        None => wrong(format!("there is no // after {scheme}:")),
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '?', '#']) => {
            let what = if scheme == "mirror" { "mirror" } else { "host" };
            wrong(format!("it names no {what}"))
        }
        Some(_) => Ok(()),
    }
}

fn unique<'t>(
    argument: &'static str,
    texts: impl IntoIterator<Item = &'t String>,
) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    match texts.into_iter().find(|text| !seen.insert(text.as_str())) {
        Some(text) => Err(Invalid::Twice { argument, text: text.clone() }),
        None => Ok(()),
    }
}

/// The names of a build's outputs.
pub(crate) fn outputs(list: Option<Value<'_>>) -> Result<BTreeSet<OutputName>, Invalid> {
    if list.is_none() {
        return Ok([OutputName::out()].into());
    }
    let names = texts("outputs", list)?;
    unique("outputs", &names)?;
    let outputs: BTreeSet<OutputName> =
        names.iter().map(|text| name("outputs", text)).collect::<Result<_, _>>()?;
    if outputs.contains(&OutputName::out()) { Ok(outputs) } else { Err(Invalid::NoOut) }
}

/// Variables beyond what every sandbox sets: that which makes a sandbox work can't be changed.
pub(crate) fn environment(
    dict: Option<Value<'_>>,
    outputs: &BTreeSet<OutputName>,
) -> Result<BTreeMap<String, String>, Invalid> {
    let environment = text_map("env", dict)?;
    for name in environment.keys() {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(allowed)
        {
            return Err(Invalid::Variable { name: name.clone() });
        }
        if name.starts_with("SRP_") || outputs.iter().any(|output| output.as_str() == name) {
            return Err(Invalid::ReservedVariable { name: name.clone() });
        }
    }
    Ok(environment)
}

/// The most bytes of one argument, or of one variable with its name: what the kernel passes on
/// (MAX_ARG_STRLEN, which counts a NUL, for the smallest pages).
const ONE_TEXT_BYTES: usize = (128 << 10) - 1;
/// The most bytes of all together: a quarter of the stack that every build has (8 MiB), less what the
/// sandbox adds.
const ALL_TEXTS_BYTES: usize = (2 << 20) - (64 << 10);
/// What each takes beside its bytes: a NUL, and the pointer to it.
const PER_TEXT_BYTES: usize = 9;

/// That the kernel will pass a builder's arguments and variables on to it.
pub(crate) fn kernel_limits(
    builder: &str,
    arguments: &[String],
    environment: &BTreeMap<String, String>,
) -> Result<(), Invalid> {
    let arguments = arguments.iter().enumerate();
    let arguments = arguments.map(|(index, text)| (format!("`args`: item {index}"), text.len()));
    let variables = environment.iter().map(|(name, value)| {
        (format!("`env`: {name:?} with its value"), name.len() + 1 + value.len())
    });
    let mut sum = builder.len() + PER_TEXT_BYTES;
    for (what, bytes) in arguments.chain(variables) {
        if bytes > ONE_TEXT_BYTES {
            return Err(Invalid::TooLong { what, bytes, limit: ONE_TEXT_BYTES });
        }
        sum += bytes + PER_TEXT_BYTES;
    }
    if sum > ALL_TEXTS_BYTES {
        let what = "`args` and `env` together".to_owned();
        return Err(Invalid::TooLong { what, bytes: sum, limit: ALL_TEXTS_BYTES });
    }
    Ok(())
}

/// Modes and owners by path.
pub(crate) fn permissions(
    dict: Option<Value<'_>>,
) -> Result<BTreeMap<String, Permission>, Invalid> {
    let permission = |(path, text): (String, String)| {
        let path = absolute("permissions", &path)?;
        match text.parse() {
            Ok(permission) => Ok((path, permission)),
            Err(source) => Err(Invalid::Permission { path, source }),
        }
    };
    text_map("permissions", dict)?.into_iter().map(permission).collect()
}

/// A list of derivations, each once.
fn derivations<'v>(
    argument: &'static str,
    list: Option<Value<'v>>,
) -> Result<Vec<&'v DerivationValue>, Invalid> {
    let mut seen = BTreeSet::new();
    let derivation = |(index, item): (usize, Value<'v>)| {
        let Some(value) = item.downcast_ref::<DerivationValue>() else {
            return Err(Invalid::NotADerivation { argument, index, found: Shown::of(item) });
        };
        if !seen.insert(&value.key) {
            return Err(Invalid::InputTwice { argument, label: value.label() });
        }
        Ok(value)
    };
    items(argument, list)?.into_iter().enumerate().map(derivation).collect()
}

/// Inputs in composition order: tools, libs, sources, each in the order of its list.
pub(crate) fn inputs<'v>(
    tools: Option<Value<'v>>,
    libs: Option<Value<'v>>,
    sources: Option<Value<'v>>,
) -> Result<Vec<Input>, Invalid> {
    let mut inputs = Vec::new();
    let mut names = BTreeSet::new();
    for (role, list) in [(Role::Tools, tools), (Role::Libs, libs), (Role::Sources, sources)] {
        for value in derivations(role.tag(), list)? {
            if role == Role::Sources {
                if matches!(value.derivation.action, Action::Stage(_)) {
                    return Err(Invalid::StageSource { label: value.label() });
                }
                let name = value.derivation.object_name(&value.key.output);
                if !names.insert(name.clone()) {
                    return Err(Invalid::SourceTwice { name });
                }
            }
            inputs.push(Input { role, key: value.key.clone() });
        }
    }
    Ok(inputs)
}

/// Declared references, which must be inputs.
pub(crate) fn references(
    argument: &'static str,
    list: Option<Value<'_>>,
    inputs: &[Input],
) -> Result<BTreeSet<InputKey>, Invalid> {
    let reference = |value: &DerivationValue| {
        if inputs.iter().any(|input| input.key == value.key) {
            Ok(value.key.clone())
        } else {
            Err(Invalid::NotAnInput { argument, label: value.label() })
        }
    };
    derivations(argument, list)?.into_iter().map(reference).collect()
}
