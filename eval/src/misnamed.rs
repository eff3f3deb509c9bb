//! An argument that no function has, reported where it was written.
//!
//! A build style passes what it doesn't know to the next one (`**arguments`), down to `derivation`,
//! which complains at the end of that chain. The mistake is where the name was written: at the call
//! of the style. And the style's own parameters are what may have been meant.

use starlark::codemap::{FileSpan, Span};
use starlark::docs::{DocItem, DocMember};
use starlark::{Error, ErrorKind};

use crate::{attribute, builtin};

/// A wrong name of an argument.
pub(crate) struct Misnamed {
    /// What is said of it, with its position.
    pub(crate) error: Error,
    /// How many of the innermost calls lie below that call.
    pub(crate) inner_calls: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("{function} has no argument `{argument}`{}", meant(near))]
struct NoArgument {
    function: String,
    argument: String,
    near: Vec<String>,
}

/// `; did you mean …?`, if there is something.
pub(crate) fn meant(near: &[String]) -> String {
    let near: Vec<String> = near.iter().map(|name| format!("`{name}`")).collect();
    match near.as_slice() {
        [] => String::new(),
        near => format!("; did you mean {}?", near.join(" or ")),
    }
}

/// The wrong name that `error` is about, if it is about one.
pub(crate) fn find(error: &Error) -> Option<Misnamed> {
    let ErrorKind::Function(said) = error.kind() else { return None };
    let said = format!("{said:#}");
    let (names, _) = said.strip_prefix("Found `")?.split_once("` extra named parameter")?;
    let argument = names.split("` `").next()?;
    let frames = &error.call_stack().frames;
    // The innermost call whose text has the name.
    let (index, call, offset) = frames.iter().enumerate().rev().find_map(|(index, frame)| {
        let call = frame.location.as_ref()?;
        Some((index, call, passes(call.source_span(), argument)?))
    })?;
    let function = frames[index].name.clone();
    // Whatever these functions have would have reached one of them.
    let mut known: Vec<String> = Vec::new();
    for (callee, next) in
        frames[index..].iter().zip(frames[index + 1..].iter().map(Some).chain([None]))
    {
        match next.and_then(|next| next.location.as_ref()) {
            Some(inside) => known.extend(parameters(inside, &callee.name)),
            None => known.extend(builtin_parameters(&callee.name)),
        }
    }
    let near = attribute::nearest(argument, known.iter().map(String::as_str));
    let mut found = Error::new_value(NoArgument { function, argument: argument.to_owned(), near });
    let begin = call.span.begin() + offset;
    let end = begin + u32::try_from(argument.len()).ok()?;
    found.set_span(Span::new(begin, end), &call.file);
    Some(Misnamed { error: found, inner_calls: frames.len() - index })
}

/// Where a call's text passes an argument of that name: `name =`, or `"name":` in a dict.
fn passes(call: &str, name: &str) -> Option<u32> {
    let (at, _) = call.match_indices(name).find(|(at, _)| {
        let before = call[..*at].chars().next_back();
        let after = call[at + name.len()..].trim_start_matches(['"', '\'']).trim_start();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            && (after.starts_with(':') || after.starts_with('=') && !after.starts_with("=="))
    })?;
    u32::try_from(at).ok()
}

/// The names of a function's parameters, by its text: `inside` is somewhere in the function.
fn parameters(inside: &FileSpan, function: &str) -> Vec<String> {
    let source = inside.file.source();
    let head = format!("def {function}(");
    let Some(begin) = source.find(&head).map(|at| at + head.len()) else { return Vec::new() };
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut name = String::new();
    // Up to the parenthesis that closes the list; between commas, what is before `=` and `:`.
    let mut named = false;
    for char in source[begin..].chars() {
        match char {
            // What takes the rest has a name that can't be given.
            '*' if depth == 0 => named = true,
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                named = false;
            }
            '=' | ':' if depth == 0 => named = true,
            char if !named && (char.is_alphanumeric() || char == '_') => name.push(char),
            _ => {}
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

fn builtin_parameters(function: &str) -> Vec<String> {
    let documented = match builtin::globals().documentation().members.get(function) {
        Some(DocItem::Member(DocMember::Function(function))) => Some(function.params.clone()),
        // A function that is the name of its values' type, too.
        Some(DocItem::Type(of)) => of.constructor.as_ref().map(|it| it.params.clone()),
        _ => None,
    };
    let params = documented.iter().flat_map(|params| params.regular_params());
    params.map(|param| param.name.clone()).collect()
}
