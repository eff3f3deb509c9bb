//! The functions that definitions call: `fetch`, `fetch_git`, `derivation`, `stage`, `read_json`,
//! `read_text`.
//!
//! They turn checked arguments ([`crate::check`]) into derivations. `docs/` describe them for
//! those who write definitions.

#![allow(clippy::too_many_arguments, reason = "keywords of the definition language, not positions")]

use srp_store::{Action, Advice, Build, Derivation, Fetch, Format, Stage};
use starlark::environment::{Globals, GlobalsBuilder, LibraryExtension};
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneOr;

use crate::check;
use crate::definitions::DefinitionPath;
use crate::invalid::Invalid;
use crate::session::Session;
use crate::value::DerivationValue;

/// Everything that a definition can name without loading it.
pub(crate) fn globals() -> Globals {
    GlobalsBuilder::extended_by(&[
        LibraryExtension::EnumType,
        LibraryExtension::Filter,
        LibraryExtension::Map,
        LibraryExtension::Partial,
        LibraryExtension::Print,
        LibraryExtension::RecordType,
        LibraryExtension::SetType,
        LibraryExtension::StructType,
        LibraryExtension::Typing,
    ])
    .with(functions)
    .with_namespace("json", json)
    .build()
}

/// The session that an evaluator works for.
fn session<'a>(eval: &Evaluator<'_, 'a, '_>) -> &'a Session {
    let session = eval.extra.and_then(|extra| extra.downcast_ref());
    session.expect("every evaluator is made with a session")
}

#[starlark_module]
fn functions(builder: &mut GlobalsBuilder) {
    /// A file fetched by its hash, as it is or unpacked.
    fn fetch<'v>(
        #[starlark(require = named)] name: &str,
        #[starlark(require = named)] sha256: &str,
        #[starlark(require = named)] urls: Value<'v>,
        #[starlark(require = named, default = "")] version: &str,
        #[starlark(require = named, default = NoneOr::None)] size: NoneOr<u64>,
        #[starlark(require = named, default = NoneOr::None)] unpack: NoneOr<&str>,
        #[starlark(require = named, default = 0)] strip: u64,
        #[starlark(require = named)] only: Option<Value<'v>>,
        #[starlark(require = named)] exclude: Option<Value<'v>>,
        #[starlark(require = named)] rename: Option<Value<'v>>,
        #[starlark(require = named, default = "")] description: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<DerivationValue> {
        let format = match unpack {
            NoneOr::None => Format::File,
            NoneOr::Other("tar") => Format::Tar,
            NoneOr::Other("deb") => Format::Deb,
            NoneOr::Other(text) => return Err(Invalid::Unpack { text: text.to_owned() }.into()),
        };
        let fetch = Fetch {
            sha256: check::sha256(sha256)?,
            format,
            strip,
            only: check::prefixes("only", only)?,
            exclude: check::prefixes("exclude", exclude)?,
            rename: check::renames(rename)?,
        };
        if format == Format::File {
            for (argument, given) in [
                ("strip", fetch.strip != 0),
                ("only", !fetch.only.is_empty()),
                ("exclude", !fetch.exclude.is_empty()),
                ("rename", !fetch.rename.is_empty()),
            ] {
                if given {
                    return Err(Invalid::NotUnpacked { argument }.into());
                }
            }
        }
        add(
            eval,
            Derivation {
                name: check::name("name", name)?,
                version: check::line("version", version)?,
                action: Action::Fetch(fetch),
                advice: Advice {
                    description: check::line("description", description)?,
                    urls: check::urls(Some(urls))?,
                    size_bytes: check::amount("size", size.into_option())?,
                    ..Advice::default()
                },
            },
        )
    }

    /// The tree of a commit, fetched from a git repository by the hash of its canonical archive.
    ///
    /// To the store it is a fetched archive like any other; that it comes from git is a matter of its URL,
    /// which is in no hash.
    fn fetch_git<'v>(
        #[starlark(require = named)] name: &str,
        #[starlark(require = named)] url: &str,
        #[starlark(require = named)] commit: &str,
        #[starlark(require = named)] sha256: &str,
        #[starlark(require = named, default = false)] submodules: bool,
        #[starlark(require = named, default = "")] version: &str,
        #[starlark(require = named, default = NoneOr::None)] size: NoneOr<u64>,
        #[starlark(require = named)] only: Option<Value<'v>>,
        #[starlark(require = named)] exclude: Option<Value<'v>>,
        #[starlark(require = named)] rename: Option<Value<'v>>,
        #[starlark(require = named, default = "")] description: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<DerivationValue> {
        let fetch = Fetch {
            sha256: check::sha256(sha256)?,
            format: Format::Tar,
            strip: 0,
            only: check::prefixes("only", only)?,
            exclude: check::prefixes("exclude", exclude)?,
            rename: check::renames(rename)?,
        };
        add(
            eval,
            Derivation {
                name: check::name("name", name)?,
                version: check::line("version", version)?,
                action: Action::Fetch(fetch),
                advice: Advice {
                    description: check::line("description", description)?,
                    urls: vec![check::git_url(url, commit, submodules)?],
                    size_bytes: check::amount("size", size.into_option())?,
                    ..Advice::default()
                },
            },
        )
    }

    /// A program run in a sandbox.
    #[starlark(as_type = DerivationValue)]
    fn derivation<'v>(
        #[starlark(require = named)] name: &str,
        #[starlark(require = named)] version: &str,
        #[starlark(require = named)] build: &str,
        #[starlark(require = named)] host: &str,
        #[starlark(require = named, default = NoneOr::None)] target: NoneOr<&str>,
        #[starlark(require = named)] builder: &str,
        #[starlark(require = named)] args: Option<Value<'v>>,
        #[starlark(require = named)] env: Option<Value<'v>>,
        #[starlark(require = named)] tools: Option<Value<'v>>,
        #[starlark(require = named)] libs: Option<Value<'v>>,
        #[starlark(require = named)] sources: Option<Value<'v>>,
        #[starlark(require = named)] outputs: Option<Value<'v>>,
        #[starlark(require = named)] run: Option<Value<'v>>,
        #[starlark(require = named)] develop: Option<Value<'v>>,
        #[starlark(require = named)] ignore_references: Option<Value<'v>>,
        #[starlark(require = named)] permissions: Option<Value<'v>>,
        #[starlark(require = named, default = NoneOr::None)] allow_sandbox_paths: NoneOr<&str>,
        #[starlark(require = named, default = "")] description: &str,
        #[starlark(require = named)] cpu_features: Option<Value<'v>>,
        #[starlark(require = named, default = NoneOr::None)] memory_mib: NoneOr<u64>,
        #[starlark(require = named, default = NoneOr::None)] cores: NoneOr<u64>,
        #[starlark(require = named, default = NoneOr::None)] timeout_seconds: NoneOr<u64>,
        #[starlark(require = named, default = NoneOr::None)] silence_seconds: NoneOr<u64>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<DerivationValue> {
        let inputs = check::inputs(tools, libs, sources)?;
        let outputs = check::outputs(outputs)?;
        let target = target.into_option().map(|target| check::triple("target", target));
        let reason = allow_sandbox_paths.into_option();
        let reason = reason.map(|reason| check::full_line("allow_sandbox_paths", reason));
        let arguments = check::texts("args", args)?;
        let environment = check::environment(env, &outputs)?;
        check::kernel_limits(builder, &arguments, &environment)?;
        let action = Action::Build(Build {
            build: check::triple("build", build)?,
            host: check::triple("host", host)?,
            target: target.transpose()?,
            builder: check::absolute("builder", builder)?,
            arguments,
            environment,
            run: check::references("run", run, &inputs)?,
            develop: check::references("develop", develop, &inputs)?,
            inputs,
            outputs,
            ignore_references: check::reasons("ignore_references", ignore_references)?,
            permissions: check::permissions(permissions)?,
            allow_sandbox_paths: reason.transpose()?,
        });
        add(
            eval,
            Derivation {
                name: check::name("name", name)?,
                version: check::line("version", version)?,
                action,
                advice: Advice {
                    description: check::line("description", description)?,
                    cpu_features: check::texts("cpu_features", cpu_features)?,
                    memory_mib: check::amount("memory_mib", memory_mib.into_option())?,
                    cores: check::amount("cores", cores.into_option())?,
                    timeout_seconds: check::amount(
                        "timeout_seconds",
                        timeout_seconds.into_option(),
                    )?,
                    silence_seconds: check::amount(
                        "silence_seconds",
                        silence_seconds.into_option(),
                    )?,
                    ..Advice::default()
                },
            },
        )
    }

    /// A set of objects composed into one root.
    fn stage<'v>(
        #[starlark(require = named)] name: &str,
        #[starlark(require = named)] build: &str,
        #[starlark(require = named)] host: &str,
        #[starlark(require = named)] tools: Option<Value<'v>>,
        #[starlark(require = named)] libs: Option<Value<'v>>,
        #[starlark(require = named, default = "")] description: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<DerivationValue> {
        let action = Action::Stage(Stage {
            build: check::triple("build", build)?,
            host: check::triple("host", host)?,
            inputs: check::inputs(tools, libs, None)?,
        });
        add(
            eval,
            Derivation {
                name: check::name("name", name)?,
                version: String::new(),
                action,
                advice: Advice {
                    description: check::line("description", description)?,
                    ..Advice::default()
                },
            },
        )
    }

    /// A file of the definitions, as the value that its JSON stands for.
    fn read_json<'v>(
        #[starlark(require = pos)] path: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        Ok(eval.heap().alloc(parse_json(path, &read(eval, path)?)?))
    }

    /// A file of the definitions, as text.
    fn read_text(
        #[starlark(require = pos)] path: &str,
        eval: &mut Evaluator,
    ) -> starlark::Result<String> {
        Ok(read(eval, path)?)
    }
}

/// Starlark's own module of that name, without its panic on numbers that are too large.
#[starlark_module]
fn json(builder: &mut GlobalsBuilder) {
    /// The value that JSON text stands for.
    fn decode<'v>(
        #[starlark(require = pos)] text: &str,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        Ok(eval.heap().alloc(parse_json("the text", text)?))
    }

    /// A value as JSON text.
    fn encode(#[starlark(require = pos)] value: Value) -> starlark::Result<String> {
        Ok(value.to_json()?)
    }
}

fn add(eval: &Evaluator<'_, '_, '_>, derivation: Derivation) -> starlark::Result<DerivationValue> {
    let (hash, derivation) = session(eval).add(derivation);
    Ok(DerivationValue::new(hash, derivation))
}

fn read(eval: &Evaluator<'_, '_, '_>, path: &str) -> Result<String, Invalid> {
    let path: DefinitionPath = path.parse()?;
    Ok(session(eval).text(&path, Session::DATA_LIMIT_BYTES)?)
}

fn parse_json(what: &str, text: &str) -> Result<serde_json::Value, Invalid> {
    let json = serde_json::from_str(text)
        .map_err(|source| Invalid::Json { what: what.to_owned(), source })?;
    match unrepresentable(&json) {
        None => Ok(json),
        Some(number) => Err(Invalid::JsonNumber { what: what.to_owned(), number: number.clone() }),
    }
}

/// The first number that Starlark's conversion would panic on: it has neither an exact integer nor
/// a finite float for `1e999`.
fn unrepresentable(json: &serde_json::Value) -> Option<&serde_json::Number> {
    match json {
        serde_json::Value::Number(number) => {
            let text = number.to_string();
            let exact = text.trim_start_matches('-').bytes().all(|digit| digit.is_ascii_digit());
            (!exact && number.as_f64().is_none_or(f64::is_infinite)).then_some(number)
        }
        serde_json::Value::Array(items) => items.iter().find_map(unrepresentable),
        serde_json::Value::Object(entries) => entries.values().find_map(unrepresentable),
        _ => None,
    }
}
