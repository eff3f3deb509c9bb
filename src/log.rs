//! `srp log`: what a build printed.

use std::io::{BufRead, BufReader, Read};

use clap::Args;
use srp_store::{Action, Derivation, StaticHash, Store};

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::target::{Target, resolved_hash, short};
use crate::terminal;

/// Print the log of a build, finished or failed
///
/// On a terminal a log keeps its colours, and nothing else that would steer the terminal: that is
/// spelled out. A file or a pipe gets the log's own bytes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// An attribute, the beginning of a derivation's hash, or a store path
    #[arg(value_name = "ATTR|HASH|PATH")]
    target: String,
    /// Print where the log is, instead of the log
    #[arg(long)]
    path: bool,
}

const EXAMPLES: &str = "\
Examples:
  srp log stage1.aarch64-musl.check
  srp log 3fa94c01beef | less
  less $(srp log --path stage1.aarch64-musl.musl)";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let store = context.store_to_read()?;
    let target = Target::parse(&arguments.target)?;
    let (hash, derivation) = target.derivation(context, Some(&store))?.ok_or_else(|| {
        CommandError::user(format!("nothing here says which derivation made {}", arguments.target))
    })?;
    let Some(log) = find(&store, &hash, &derivation)? else {
        return Err(no_log(&arguments.target, &derivation));
    };
    if arguments.path {
        return terminal::answer(&format!("{}\n", log.display()));
    }
    let failed = |error| {
        CommandError::chain(ExitCode::User, error).hint(format!("the log is {}", log.display()))
    };
    let mut log = BufReader::with_capacity(1 << 16, srp_store::open_plain(&log).map_err(failed)?);
    let mut lines = Vec::new();
    // Whole lines at a time, unless one is longer than a builder has any reason for.
    while (&mut log).take(MOST_BYTES).read_until(b'\n', &mut lines).map_err(failed)? > 0 {
        let more = log.buffer().iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        lines.extend_from_slice(&log.buffer()[..more]);
        log.consume(more);
        terminal::answer_log(&lines)?;
        lines.clear();
    }
    Ok(())
}

const MOST_BYTES: u64 = 1 << 20;

/// The log of a derivation with the inputs that are chosen here, or of what was realised of it.
fn find(
    store: &Store,
    hash: &StaticHash,
    derivation: &Derivation,
) -> CommandResult<Option<std::path::PathBuf>> {
    let claimed = store.claim(hash)?.map(|claim| claim.resolved);
    let resolved = resolved_hash(store, hash, derivation)?;
    let logs = resolved.into_iter().chain(claimed).map(|resolved| store.log_path(&resolved));
    Ok(logs.into_iter().find(|log| log.is_file()))
}

fn no_log(asked: &str, derivation: &Derivation) -> CommandError {
    let name = &derivation.name;
    match derivation.action {
        Action::Build(_) => CommandError::user(format!("{name} was not built here"))
            .hint(format!("srp realise {asked}")),
        Action::Fetch(_) => {
            CommandError::user(format!("{name} is fetched and not built: it has no log"))
        }
        Action::Stage(_) => {
            let error = CommandError::user(format!(
                "{name} is a stage: it is composed of others, and has no log itself"
            ));
            let first = derivation.inputs().first().map(|it| short(&it.key.derivation));
            match first {
                Some(first) => {
                    error.hint(format!("srp show {asked} lists its components, such as {first}"))
                }
                None => error,
            }
        }
    }
}
