//! `srp audit --diffoscope`: another tool's report on what differs, beside ours.
//!
//! <https://diffoscope.org> takes apart many more formats, by the tools of the machine that it finds.
//! It is no part of an audit: it runs afterwards, outside of any sandbox, on what is kept.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use srp_builder::audit::{Audit, Difference};
use srp_store::staged::Staged;
use srp_store::{OutputName, Store};

use crate::error::{CommandError, CommandResult, ExitCode};
use crate::terminal;

const PROGRAM: &str = "diffoscope";

/// Makes sure that it is there: better before audits, which may take hours.
pub(crate) fn find() -> CommandResult {
    let mut command = Command::new(PROGRAM);
    let run = command.arg("--version").stdin(Stdio::null()).output();
    match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(output.status, &output.stderr)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let hint =
                "Debian: apt-get install diffoscope-minimal; without it --html has pages, too";
            Err(CommandError::user(format!("{PROGRAM} is not installed")).hint(hint))
        }
        Err(error) => Err(not_run(&error)),
    }
}

/// Has what differs reported on, and adds the reports' paths to the differences.
pub(crate) fn add(store: &Store, audits: &mut [Audit]) -> CommandResult {
    for audit in audits {
        let Some(claim) = &audit.claim else { continue };
        for difference in &mut audit.differences {
            let Some(kept) = &difference.kept else { continue };
            let mut reports = Vec::new();
            for output in differing(difference) {
                let Some(object) = claim.outputs.get(output) else { continue };
                let registered = store.tree_path(&store.info(object)?.object.tree);
                reports.extend(report(&registered, &kept.join(output.as_str()))?);
            }
            difference.diffoscope = reports;
        }
    }
    Ok(())
}

fn differing(difference: &Difference) -> BTreeSet<&OutputName> {
    difference.changes.iter().map(|change| &change.output).collect()
}

/// The reports on two trees: text and a page, beside the second. Those of a remembered audit are
/// there already.
fn report(registered: &Path, rebuilt: &Path) -> CommandResult<Vec<PathBuf>> {
    let beside = |ending: &str| {
        let mut path = rebuilt.as_os_str().to_owned();
        path.push(format!(".{PROGRAM}.{ending}"));
        PathBuf::from(path)
    };
    let reports = vec![beside("txt"), beside("html")];
    if reports.iter().all(|path| path.exists()) {
        return Ok(reports);
    }
    // What was interrupted leaves no report that looks whole.
    let stage = |path: &PathBuf| Staged::beside(path, 0o644);
    let partial = reports.iter().map(stage).collect::<Result<Vec<_>, _>>();
    let partial = partial.map_err(|error| not_run(&error))?;
    terminal::say(&format!("{PROGRAM} compares {}", rebuilt.display()));
    let mut command = Command::new(PROGRAM);
    // Times and owners are the store's own; of other directories there is nothing to say.
    command.args(["--no-progress", "--exclude-directory-metadata=yes"]);
    command.arg("--text").arg(partial[0].path()).arg("--html").arg(partial[1].path());
    command.arg(registered).arg(rebuilt).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let output = command.output().map_err(|error| not_run(&error))?;
    match output.status.code() {
        Some(1) => {
            for (partial, report) in partial.into_iter().zip(&reports) {
                partial.place(report).map_err(|error| not_run(&error))?;
            }
            Ok(reports)
        }
        // They differ only in what it doesn't compare, such as modes: it writes nothing.
        Some(0) => Ok(Vec::new()),
        _ => Err(failed(output.status, &output.stderr)),
    }
}

fn not_run(error: &std::io::Error) -> CommandError {
    CommandError::new(ExitCode::User, format!("{PROGRAM} can't be run: {error}"))
}

fn failed(status: ExitStatus, said: &[u8]) -> CommandError {
    let said = String::from_utf8_lossy(said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    let message = format!("{PROGRAM} failed ({status}): {}", terminal::printable(last));
    CommandError::new(ExitCode::User, message).hint("the audit is remembered: try again without it")
}
