//! `srp cache`: publishing to binary caches, and looking after them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use srp_store::RootName;
use srp_store::cache::{Cache, Published, Publisher, Retention, Scope, SecretKey, Verified};

use crate::building;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::Goals;
use crate::keyring::Keyring;
use crate::signing;
use crate::target::{Target, realised};
use crate::terminal;

/// Publish to binary caches, and look after them
///
/// A cache is files: a directory, what a web server serves of one, or a bucket. Give its path or
/// URL. Publishing over HTTP needs a server that takes PUT (nginx: dav_methods PUT;
/// create_full_put_path on). Buckets (s3://BUCKET/PREFIX) are found, and credentials for them, as by
/// Amazon's own programs: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
/// AWS_PROFILE. Those caches that are asked while realising are named by `caches` in the
/// configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an empty cache
    Create {
        /// Where
        url: String,
    },
    /// Publish what attributes or store paths stand for, with all that they need
    Push(Push),
    /// Say what is in a cache
    Info(Look),
    /// List the roots that were published
    List(Look),
    /// Delete what no kept root needs
    Gc(Gc),
    /// Read everything and compare it with its digests and records
    Verify(Look),
}

/// What is published, and how.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Push {
    /// Realised attributes, or store paths
    #[arg(required = true, value_name = "ATTR|PATH")]
    targets: Vec<String>,
    /// The cache
    #[arg(long, value_name = "URL")]
    to: String,
    /// The key that signs [default: the only one there is]
    #[arg(long, value_name = "NAME", conflicts_with = "unsigned")]
    key: Option<String>,
    /// Sign nothing: only those who trust the cache outright will use it
    #[arg(long)]
    unsigned: bool,
    /// Also publish what they were built from, so that others can change something and build on
    #[arg(long)]
    inputs: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// A cache that is looked at.
#[derive(Debug, Args)]
pub(crate) struct Look {
    /// The cache
    url: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What a garbage collection keeps.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// The cache
    url: String,
    /// Keep the newest of this root, however old it is; can be given again
    #[arg(long, value_name = "ROOT")]
    keep: Vec<String>,
    /// Keep what was published within this time: 12h, 30d
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_time, default_value = "30d")]
    older_than: Duration,
    /// Only say what would be deleted
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp cache push stage1.aarch64-musl --to /srv/www/cache
  srp cache push stage1.aarch64-musl --to https://cache.example/srp --key builder-1
  srp cache push stage1.aarch64-musl --to s3://bucket/srp
  srp cache push stage1.aarch64-musl --to /media/stick/cache --unsigned --inputs";

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    match command {
        Command::Create { url } => {
            let cache = Cache::create(remote(url)?)?;
            terminal::say(&format!("{} is a cache", cache.url()));
            Ok(())
        }
        Command::Push(arguments) => push(context, arguments),
        Command::Info(arguments) => info(arguments),
        Command::List(arguments) => list(arguments),
        Command::Gc(arguments) => gc(context, arguments),
        Command::Verify(arguments) => verify(context, arguments),
    }
}

/// What lies at a URL, or in a directory.
pub(crate) fn remote(url: &str) -> CommandResult<std::sync::Arc<dyn srp_store::cache::Remote>> {
    let absolute;
    let url = if url.contains("://") || url.is_empty() {
        url
    } else {
        absolute = building::absolute(std::path::Path::new(url))?.to_string_lossy().into_owned();
        &absolute
    };
    building::connections().open(url).map_err(|error| CommandError::chain(ExitCode::User, error))
}

fn open(url: &str) -> CommandResult<Cache> {
    Ok(Cache::open(remote(url)?)?)
}

fn push(context: &Context, arguments: &Push) -> CommandResult {
    let store = context.store_to_publish()?;
    let key = signing_key(context, arguments)?;
    let cache = Cache::create(remote(&arguments.to)?)?;
    let builder = signing::builder(key.as_ref());
    let verifying = AtomicBool::new(context.options.quiet);
    let progress = |_, _| {
        if !verifying.swap(true, Ordering::Relaxed) {
            terminal::say("verifying what is published, and what it was made from");
        }
    };
    let mut publisher = Publisher::new(&store, &cache, key.as_ref(), builder);
    publisher.assurance.progress = &progress;
    let scope = if arguments.inputs { Scope::Inputs } else { Scope::Closure };
    let mut answers: Vec<Value> = Vec::new();
    for text in &arguments.targets {
        if !context.options.quiet {
            terminal::say(&format!("publishing {text} to {}", cache.url()));
        }
        let published = match Target::parse(text)? {
            Target::Attribute(attr) => {
                let goals = Goals::of(context, Some(&store), std::slice::from_ref(&attr))?;
                let goal = goals.keys().remove(0);
                if realised(&store, &goal)?.is_none() {
                    return Err(CommandError::user(format!("{attr} is not realised"))
                        .hint(format!("srp realise {attr}")));
                }
                let root: RootName =
                    attr.parse().map_err(|error| CommandError::chain(ExitCode::User, error))?;
                publisher.publish(&root, &goal.derivation, scope)?
            }
            target => publisher.publish_objects(&[target.object(context, &store)?.id])?,
        };
        if arguments.json {
            answers.push(as_json(text, &published));
        } else {
            terminal::answer(&format!("{text}  {}\n", in_words(&published)))?;
        }
    }
    if arguments.json {
        return terminal::answer_json(&json!({ "cache": cache.url(), "published": answers }));
    }
    Ok(())
}

/// The key that was named, or the only one; none if nothing is to be signed.
fn signing_key(context: &Context, arguments: &Push) -> CommandResult<Option<SecretKey>> {
    if arguments.unsigned {
        return Ok(None);
    }
    let key = signing::signer(context, arguments.key.as_deref())?;
    let none = || {
        CommandError::user("there is no key to sign with")
            .hint("srp key generate NAME makes one; --unsigned does without")
    };
    key.map(Some).ok_or_else(none)
}

fn in_words(published: &Published) -> String {
    let sent = published.pack_bytes + published.delta_bytes;
    let mut text = format!(
        "{}, {} and {} sent ({})",
        counted(published.objects, "object"),
        counted(published.packs, "pack"),
        counted(published.deltas, "delta"),
        HumanBytes(sent)
    );
    if published.substituted > 0 {
        text += &format!(", {} stated as not built here", published.substituted);
    }
    if let Some(generation) = published.generation {
        text += &format!(", generation {generation}");
    }
    text
}

fn as_json(target: &str, published: &Published) -> Value {
    json!({
        "asked": target,
        "objects": published.objects,
        "packs": published.packs,
        "pack_bytes": published.pack_bytes,
        "deltas": published.deltas,
        "delta_bytes": published.delta_bytes,
        "files": published.files,
        "substituted": published.substituted,
        "generation": published.generation,
    })
}

fn info(arguments: &Look) -> CommandResult {
    let cache = open(&arguments.url)?;
    let summary = cache.summary()?;
    if arguments.json {
        return terminal::answer_json(&json!({
            "url": cache.url(),
            "objects": summary.objects,
            "packs": summary.packs,
            "pack_bytes": summary.pack_bytes,
            "deltas": summary.deltas,
            "delta_bytes": summary.delta_bytes,
            "roots": summary.roots.len(),
        }));
    }
    terminal::answer(&format!(
        "{}\nobjects  {}\npacks    {} ({})\ndeltas   {} ({})\nroots    {}\n",
        cache.url(),
        summary.objects,
        summary.packs,
        HumanBytes(summary.pack_bytes),
        summary.deltas,
        HumanBytes(summary.delta_bytes),
        summary.roots.len()
    ))
}

fn list(arguments: &Look) -> CommandResult {
    let summary = open(&arguments.url)?.summary()?;
    if arguments.json {
        let roots = summary.roots.iter().map(|(pointer, key)| {
            json!({
                "root": pointer.root,
                "generation": pointer.generation,
                "derivation": pointer.derivation,
                "key": key,
            })
        });
        return terminal::answer_json(&roots.collect());
    }
    if summary.roots.is_empty() {
        terminal::say("no roots are published there yet");
    }
    let lines: String = summary
        .roots
        .iter()
        .map(|(pointer, key)| {
            let key = key.map_or_else(|| "unsigned".to_owned(), |key| key.to_string());
            format!("{}  {}  {key}\n", pointer.root, pointer.generation)
        })
        .collect();
    terminal::answer(&lines)
}

fn gc(context: &Context, arguments: &Gc) -> CommandResult {
    let roots: Result<BTreeSet<RootName>, _> =
        arguments.keep.iter().map(|name| name.parse()).collect();
    let keep = roots.map_err(|error| CommandError::chain(ExitCode::User, error))?;
    let (keys, older_than) = (Keyring::of(context)?.known(context)?, arguments.older_than);
    let retention = Retention { keep, older_than, keys, ..Retention::default() };
    let collected = open(&arguments.url)?.collect(&retention, arguments.dry_run)?;
    if arguments.json {
        let deleted: Vec<&str> = collected.deleted.iter().map(|path| path.as_str()).collect();
        return terminal::answer_json(&json!({
            "deleted": deleted,
            "deleted_bytes": collected.deleted_bytes,
            "kept": collected.kept,
            "kept_bytes": collected.kept_bytes,
            "dry_run": arguments.dry_run,
        }));
    }
    terminal::answer(&format!(
        "{} {} ({}), {} stay ({})\n",
        if arguments.dry_run { "would delete" } else { "deleted" },
        counted(collected.deleted.len(), "file"),
        HumanBytes(collected.deleted_bytes),
        collected.kept,
        HumanBytes(collected.kept_bytes)
    ))
}

fn verify(context: &Context, arguments: &Look) -> CommandResult {
    let keys = Keyring::of(context)?.known(context)?;
    let Verified { files, findings } = open(&arguments.url)?.verify(&keys)?;
    if arguments.json {
        let all =
            findings.iter().map(|it| json!({"path": it.path.as_str(), "problem": it.problem}));
        terminal::answer_json(&all.collect())?;
    } else {
        let lines: String =
            findings.iter().map(|it| format!("{}: {}\n", it.path, it.problem)).collect();
        terminal::answer(&lines)?;
    }
    match findings.len() {
        0 => {
            if !arguments.json && !context.options.quiet {
                terminal::say(&format!("{}, all as recorded", counted(files, "file")));
            }
            Ok(())
        }
        count => {
            let message = format!(
                "{} in the cache, of {}",
                counted(count, "problem"),
                counted(files, "file")
            );
            Err(CommandError::new(ExitCode::Integrity, message))
        }
    }
}

/// `1 file`, `2 files`.
pub(crate) fn counted(count: impl TryInto<u64>, what: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
