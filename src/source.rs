//! `srp source mirror`: sources for a machine without a network.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use clap::{Subcommand, ValueHint};
use srp_builder::fetch::{self, FetchError, FetchRequest, Fetcher, FetcherConfig, Place};
use srp_builder::{Activity, CancelToken, Event, Observer, Task};
use srp_store::{Action, Derivation, Fetch, StaticHash};

use crate::building::{FETCHES, absolute, fetcher_config};
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode, causes};
use crate::goals::Goals;
use crate::interrupt;
use crate::progress::Progress;
use crate::terminal;

/// Manage sources
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Save every source that attributes are made from, for use without a network
    ///
    /// The directory then is a place to fetch from: name it as one of `sources` in the
    /// configuration. What it holds already is not fetched again; what the store has is copied.
    #[command(after_help = MIRROR_EXAMPLE)]
    Mirror {
        /// Where to save them
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
        /// What the sources are for: attributes such as stage1.aarch64-musl
        #[arg(required = true, value_name = "ATTR")]
        attrs: Vec<String>,
    },
}

const MIRROR_EXAMPLE: &str = "\
Example:
  srp source mirror ./sources stage1.aarch64-musl stage1.x86_64-musl
  echo \"sources = ['$PWD/sources']\" >> ~/.config/srp/config.toml";

pub(crate) fn run(context: &Context, command: &Command) -> CommandResult {
    let Command::Mirror { directory, attrs } = command;
    let directory = absolute(directory)?;
    let store = context.store_if_any()?;
    let graph = Goals::of(context, store.as_ref(), attrs)?.graph()?;
    // One file may be unpacked in several ways, and so be several derivations.
    let mut known = BTreeSet::new();
    let sources: VecDeque<Source<'_>> = graph
        .derivations
        .iter()
        .filter_map(|(hash, derivation)| match &derivation.action {
            Action::Fetch(fetch) => Some(Source { hash: *hash, derivation, fetch }),
            _ => None,
        })
        .filter(|source| known.insert(source.fetch.sha256))
        .collect();
    let cancel = interrupt::token()?;
    let mut config: FetcherConfig = fetcher_config(context);
    config.directories.extend(store.as_ref().map(|store| store.directory("sources")));
    let mirror = Mirror {
        fetcher: Fetcher::new(config),
        directory,
        progress: Progress::new(context, &cancel),
        cancel,
        pending: Mutex::new(sources),
        failures: Mutex::default(),
    };
    mirror.run(context)
}

struct Source<'a> {
    hash: StaticHash,
    derivation: &'a Derivation,
    fetch: &'a Fetch,
}

struct Mirror<'a> {
    fetcher: Fetcher,
    directory: PathBuf,
    progress: Progress,
    cancel: CancelToken,
    pending: Mutex<VecDeque<Source<'a>>>,
    failures: Mutex<Vec<FetchError>>,
}

/// Sums up what the fetcher reports of one file.
struct Bytes<'a> {
    progress: &'a Progress,
    task: Task<'a>,
    sum: Mutex<(u64, Option<u64>)>,
}

impl fetch::Progress for Bytes<'_> {
    fn began(&self, _: &Place, resumed_at: u64, total: Option<u64>) {
        *self.sum.lock().expect("no holder panics") = (resumed_at, total);
    }

    fn received(&self, bytes: u64) {
        let (bytes, total) = {
            let mut sum = self.sum.lock().expect("no holder panics");
            sum.0 += bytes;
            *sum
        };
        self.progress.event(Event::Fetched { task: self.task, bytes, total });
    }
}

impl<'a> Mirror<'a> {
    fn run(self, context: &Context) -> CommandResult {
        let count = self.pending.lock().expect("no holder panics").len();
        self.progress.event(Event::Planned {
            fetches: count,
            builds: 0,
            substitutions: 0,
            substitution_bytes: 0,
        });
        std::thread::scope(|scope| {
            for _ in 0..FETCHES.min(count) {
                scope.spawn(|| {
                    while !self.cancel.is_cancelled()
                        && let Some(source) = self.next()
                    {
                        self.fetch(&source);
                    }
                });
            }
        });
        self.progress.finish();
        if self.cancel.is_cancelled() {
            return Err(CommandError::new(
                ExitCode::Interrupted,
                "interrupted; what was fetched is kept",
            ));
        }
        let failures = self.failures.into_inner().expect("no holder panics");
        for failure in &failures {
            let mut text = format!(
                "{} {}\n",
                context.style.error("failed:"),
                terminal::indented(&failure.to_string())
            );
            text += &causes(failure);
            terminal::write(&text);
        }
        let mut hints: Vec<String> = failures.iter().flat_map(FetchError::hints).collect();
        hints.dedup();
        if failures.is_empty() {
            return terminal::answer(&format!("{}\n", self.directory.display()));
        }
        let message = format!("{} of {count} sources could not be saved", failures.len());
        let error = CommandError::new(ExitCode::Build, message);
        Err(hints.into_iter().fold(error, CommandError::hint))
    }

    fn next(&self) -> Option<Source<'a>> {
        self.pending.lock().expect("no holder panics").pop_front()
    }

    fn fetch(&self, source: &Source<'_>) {
        let name = source.derivation.name.as_str();
        let task = Task { hash: source.hash, name };
        let activity = Activity::Fetching;
        let request = FetchRequest {
            name: name.to_owned(),
            sha256: fetch::Sha256::from_bytes(*source.fetch.sha256.as_bytes()),
            size_bytes: source.derivation.advice.size_bytes,
            urls: source.derivation.advice.urls.clone(),
        };
        let began = Instant::now();
        self.progress.event(Event::Started { task, activity });
        let bytes = Bytes { progress: &self.progress, task, sum: Mutex::default() };
        match self.fetcher.fetch(&request, &self.directory, &bytes, &self.cancel) {
            Ok(_) => self.progress.saved(task, began.elapsed()),
            Err(FetchError::Cancelled { .. }) => {}
            Err(error) => {
                self.progress.event(Event::Failed { task, reason: &error.to_string() });
                self.failures.lock().expect("no holder panics").push(error);
            }
        }
    }
}
