//! Python programs that the tests run: an environment of their own, made once below cargo's target
//! directory.
//!
//! Nothing of the machine's is used but a Python 3 that can make environments: what lies in `PATH`
//! under a program's name may be a shim, another version, or another program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

use super::host::skipped;

/// What is installed, from PyPI. moto 5.2.1 takes Amazon's own client for somebody with a wrong
/// secret when it lists below a prefix.
const PACKAGES: &[&str] =
    &["cyclonedx-python-lib[json-validation]==11.12.0", "moto[server]==5.2.5", "spdx-tools==0.8.5"];

/// The directory of the environment's programs, or `None` after saying loudly that `what` is not
/// tested, and why.
pub(crate) fn programs(what: &str) -> Option<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match MADE.get_or_init(|| make(Path::new(env!("CARGO_TARGET_TMPDIR")))) {
        Ok(programs) => Some(programs.clone()),
        Err(why) => {
            skipped(what, &format!("no Python environment with {}: {why}", PACKAGES.join(" ")));
            None
        }
    }
}

fn make(target: &Path) -> Result<PathBuf, String> {
    let environment = target.join("python");
    // Written last: an environment without it is unfinished, or has other packages.
    let (record, wanted) = (environment.join("packages"), PACKAGES.join("\n"));
    let lock = fs::File::create(target.join("python.lock")).map_err(|error| error.to_string())?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string())?;
    let python = environment.join("bin/python3");
    let sound = || run(Command::new(&python).args(["-c", "import cyclonedx, moto, spdx_tools"]));
    if fs::read_to_string(&record).is_ok_and(|found| found == wanted) && sound().is_ok() {
        return Ok(environment.join("bin"));
    }
    let _ = fs::remove_dir_all(&environment);
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    run(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(PACKAGES))?;
    sound()?;
    fs::write(record, wanted).map_err(|error| error.to_string())?;
    Ok(environment.join("bin"))
}

/// Runs a command that prints nothing of interest unless it fails.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.trim_end().lines().last().unwrap_or_default();
    Err(format!("{program} failed ({}): {last}", output.status))
}
