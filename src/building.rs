//! Realising: the builder with everything it needs, progress, signals, and how failures are told.
//!
//! Commands call [`ensure`]. What needs no work is found out from claims alone: no graph is read,
//! no thread started, no signal touched.

use std::fmt::Write as _;
use std::path::PathBuf;

use srp_builder::fetch::{Fetcher, FetcherConfig, Mirrors, NetworkSettings};
use srp_builder::jobserver::Broker;
#[cfg(feature = "s3")]
use srp_builder::remote::AwsSettings;
use srp_builder::remote::Connections;
use srp_builder::sandbox::Launcher;
use srp_builder::substitute::{Substituters, Upstream};
use srp_builder::{
    Builder, CancelToken, Failure, FailureCause, Machine, Options, Plan, RealiseError, Request,
};
use srp_store::{InputKey, ObjectName, Store};

use crate::automatic;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode, causes, failure_hints};
use crate::goals::{Goals, Graph};
use crate::interrupt;
use crate::keyring::Keyring;
use crate::progress::Progress;
use crate::target::{realised, short};
use crate::terminal::{self, indented, printable};

/// How many sources are fetched at once: enough to fill a line, few enough for a mirror.
pub(crate) const FETCHES: usize = 6;
/// How many derivations are substituted at once; how many connections that is, each cache limits.
const SUBSTITUTIONS: usize = 8;
/// More than any honest build prints, less than a disk holds.
const LOG_BYTES: u64 = 1 << 30;

/// How much may be done at once.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Building")]
pub(crate) struct Effort {
    /// How many builds run at once [default: one more than there are cores]
    #[arg(long, short, value_name = "N")]
    pub(crate) jobs: Option<std::num::NonZeroUsize>,
    /// How many cores all builds share [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<std::num::NonZeroUsize>,
    /// After a failure, go on with what doesn't need what failed
    #[arg(long, short)]
    pub(crate) keep_going: bool,
    /// Build nothing: what no cache has is a failure
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Ask no binary cache
    #[arg(long)]
    pub(crate) no_substitute: bool,
}

/// What builds: made when there is something to do.
pub(crate) struct Workshop {
    launcher: Launcher,
    fetcher: Fetcher,
    substituters: Option<Substituters>,
    broker: Broker,
    options: Options,
    /// Cancelled by the first signal.
    pub(crate) cancel: CancelToken,
}

impl Workshop {
    /// The workshop that options and configuration ask for. Answers signals from here on.
    pub(crate) fn open(context: &Context, effort: &Effort) -> CommandResult<Workshop> {
        let cancel = interrupt::token()?;
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let chosen = |option: Option<std::num::NonZeroUsize>, configured: Option<usize>| {
            option.map(usize::from).or(configured)
        };
        let cores = chosen(effort.cores, context.config.cores).unwrap_or(all);
        let options = Options {
            // One more than cores: each build waits now and then, for the disk, or for the kernel
            // to make and end its sandbox.
            jobs: chosen(effort.jobs, context.config.jobs).unwrap_or(cores + 1),
            cores,
            fetches: FETCHES,
            substitutions: SUBSTITUTIONS,
            no_build: effort.no_build,
            keep_going: effort.keep_going,
            timeout_seconds: None,
            silence_seconds: None,
            log_bytes: Some(LOG_BYTES),
            memory_bytes: context
                .config
                .memory_mib
                .map(|mib| mib.saturating_mul(1 << 20))
                .or_else(memory_bytes),
            disk_bytes: context.config.disk_mib.map(|mib| mib.saturating_mul(1 << 20)),
            output_limits: context.config.output_limits(),
        };
        let broker =
            Broker::new(cores).map_err(|error| CommandError::chain(ExitCode::User, error))?;
        Ok(Workshop {
            launcher: launcher(),
            fetcher: Fetcher::new(fetcher_config(context)),
            substituters: substituters(context, effort, &cancel)?,
            broker,
            options,
            cancel,
        })
    }

    /// The builder for a store.
    pub(crate) fn builder<'a>(&'a self, store: &'a Store) -> Builder<'a> {
        Builder {
            store,
            launcher: &self.launcher,
            fetcher: &self.fetcher,
            substituters: self.substituters.as_ref(),
            broker: &self.broker,
            machine: Machine::here(),
            options: self.options.clone(),
        }
    }

    /// Realises a request, showing progress and telling of failures.
    pub(crate) fn realise(
        &self,
        context: &Context,
        store: &Store,
        request: &Request,
    ) -> CommandResult<Vec<ObjectName>> {
        automatic::collect(context, store, false);
        let progress = Progress::new(context, &self.cancel);
        let result = self.builder(store).realise(request, &progress, &self.cancel);
        progress.finish();
        automatic::collect(context, store, true);
        match result {
            Ok(done) => Ok(done.into_iter().map(|realised| realised.object).collect()),
            Err(RealiseError::Failed { failures, skipped }) => {
                Err(tell(context, failures, skipped))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The objects of goals, realised where they aren't yet.
pub(crate) fn ensure(
    context: &Context,
    store: &Store,
    goals: Goals<'_>,
    effort: &Effort,
) -> CommandResult<Vec<ObjectName>> {
    if let Some(objects) = present(store, &goals.keys())? {
        return Ok(objects);
    }
    store.let_gate_go()?;
    let graph = goals.graph()?;
    let keys = graph.keys();
    Workshop::open(context, effort)?.realise(context, store, &graph.request(keys))
}

/// What there is to do for goals.
pub(crate) fn plan(
    context: &Context,
    store: &Store,
    graph: &Graph,
    effort: &Effort,
) -> CommandResult<(Request, Plan)> {
    let workshop = Workshop::open(context, effort)?;
    let request = graph.request(graph.keys());
    let plan = workshop.builder(store).plan(&request)?;
    Ok((request, plan))
}

/// The objects of outputs, if nothing is to be done for any of them.
fn present(store: &Store, keys: &[InputKey]) -> CommandResult<Option<Vec<ObjectName>>> {
    keys.iter().map(|key| realised(store, key)).collect()
}

/// Starts the launcher process from this program: by this name it is found even after its file was
/// replaced or removed.
pub(crate) fn launcher() -> Launcher {
    Launcher::new("/proc/self/exe")
}

/// How sources are fetched: configuration and environment as plain values.
pub(crate) fn fetcher_config(context: &Context) -> FetcherConfig {
    for directory in context.config.sources.iter().filter(|directory| !directory.is_dir()) {
        tracing::warn!("there is no sources directory {}", directory.display());
    }
    let variable = |name: &str| crate::config::text(&|name| std::env::var_os(name), name);
    let defaults = FetcherConfig::default();
    FetcherConfig {
        mirrors: Mirrors::new(context.config.mirrors.clone()).with_apt_directory("/etc/apt"),
        directories: context.config.sources.clone(),
        network: NetworkSettings::from_variables(variable),
        git: program("git").unwrap_or(defaults.git),
        ..FetcherConfig::default()
    }
}

/// A program's absolute path, as `PATH` has it.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    places.map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// What reaches caches: proxies, certificates and buckets' credentials of the environment.
pub(crate) fn connections() -> Connections {
    let variable = |name: &str| crate::config::text(&|name| std::env::var_os(name), name);
    let connections = Connections::new(NetworkSettings::from_variables(variable));
    #[cfg(feature = "s3")]
    let connections = connections.with_aws(AwsSettings::from_variables(variable));
    connections
}

/// The caches that are configured, unless none is to be asked.
fn substituters(
    context: &Context,
    effort: &Effort,
    cancel: &CancelToken,
) -> CommandResult<Option<Substituters>> {
    let caches = &context.config.caches;
    let imported = srp_store::cache::imported(&context.store_path()?);
    if effort.no_substitute || (caches.is_empty() && imported.is_none()) {
        return Ok(None);
    }
    let connections = connections();
    // What was imported is asked first: it is here.
    let imported = imported.map(|remote| Upstream { remote, priority: 0, trusted_outright: true });
    let mut upstreams: Vec<Upstream> = imported.into_iter().collect();
    for cache in caches {
        let remote = connections.open(&cache.url).map_err(|error| {
            CommandError::chain(ExitCode::User, error).hint("see [[caches]] in the configuration")
        })?;
        upstreams.push(Upstream {
            remote,
            priority: cache.priority,
            trusted_outright: cache.trusted_unsigned,
        });
    }
    let policy = Keyring::of(context)?.policy(context)?;
    Ok(Some(Substituters::new(upstreams, policy, cancel.clone())))
}

/// Nine tenths of the memory that srp may use, which is the machine's or a container's: a build that
/// takes more is stopped before the kernel stops something else.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = total_kib(&text).map(|kib| kib * 1024);
    let most = [machine, srp_builder::sandbox::memory_limit_bytes()].into_iter().flatten().min();
    most.map(|bytes| bytes / 10 * 9)
}

fn total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Tells of each failure: what, why, the end of its log, and where the rest of it is.
fn tell(context: &Context, failures: Vec<Failure>, skipped: usize) -> CommandError {
    let style = context.style;
    for failure in &failures {
        let cause = indented(&failure.cause.to_string());
        let mut text = format!("\n{} {}: {cause}\n", style.error("failed:"), failure.name);
        text += &causes(&failure.cause);
        if !failure.log_tail.is_empty() {
            text += "  the end of its log:\n";
            for line in &failure.log_tail {
                let _ = writeln!(text, "  {} {}", style.faint("|"), printable(line));
            }
        }
        if failure.log.is_some() {
            let command =
                format!("srp log {}{}", short(&failure.derivation), context.store_option());
            let _ = writeln!(text, "  the whole log: {command}");
        }
        for hint in failure_hints(&failure.cause).into_iter().chain(output_hint(&failure.log_tail))
        {
            let _ = writeln!(text, "{} {}", style.hint("hint:"), indented(&hint));
        }
        terminal::write(&text);
    }
    terminal::say("");
    let damaged = |failure: &Failure| is_damage(&failure.cause);
    let panicked = |failure: &Failure| matches!(failure.cause, FailureCause::Panicked { .. });
    let code = match () {
        () if failures.iter().any(panicked) => ExitCode::Internal,
        () if failures.iter().any(damaged) => ExitCode::Integrity,
        () => ExitCode::Build,
    };
    CommandError::new(code, summary(failures.len(), skipped))
}

/// Whether something in the store isn't what it should be.
pub(crate) fn is_damage(cause: &FailureCause) -> bool {
    matches!(cause, FailureCause::Store(error) if error.is_damage())
}

/// What a builder meets that removes its output: the directory is a mount, and its parent read-only.
fn output_hint(log_tail: &[String]) -> Option<String> {
    let output = log_tail.iter().find_map(|line| {
        let (_, after) = line.split_once("/srp/out/").filter(|_| line.contains("Read-only"))?;
        let end = after.find(|char: char| !char.is_ascii_alphanumeric() && char != '-');
        Some(&after[..end.unwrap_or(after.len())]).filter(|name| !name.is_empty())
    })?;
    Some(format!(
        "its output {output} is a directory already (${output}), and must be one: write into it, it can \
         be neither removed nor replaced by a file or a link"
    ))
}

fn summary(failed: usize, skipped: usize) -> String {
    let mut text = match failed {
        1 => "1 derivation failed".to_owned(),
        several => format!("{several} derivations failed"),
    };
    if skipped > 0 {
        let _ = write!(text, "; {skipped} more were not tried because of that");
    }
    text + "; what was finished is kept"
}

/// A directory on the command line, absolute.
pub(crate) fn absolute(path: &std::path::Path) -> CommandResult<PathBuf> {
    std::path::absolute(path).map_err(|error| CommandError::chain(ExitCode::User, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_own_words() {
        assert_eq!(total_kib("MemTotal:       16309412 kB\nMemFree: 1 kB\n"), Some(16_309_412));
        assert_eq!(total_kib(""), None);
    }

    #[test]
    fn the_summary_counts() {
        assert_eq!(summary(1, 0), "1 derivation failed; what was finished is kept");
        assert_eq!(
            summary(2, 3),
            "2 derivations failed; 3 more were not tried because of that; what was finished is kept"
        );
    }
}
