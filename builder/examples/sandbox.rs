//! Runs a sandbox plan from a JSON file: for trying the sandbox by hand and for its tests.
//!
//! `sandbox PLAN.json [COUNT]` prints the log to standard output and the outcome to standard error;
//! with COUNT, it runs the plan that often and prints the time per run. `sandbox --features DIR`
//! tries the kernel. It is no user interface; that is `srp`.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use srp_builder::CancelToken;
use srp_builder::sandbox::{Launcher, SandboxPlan, features, launcher_main};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["__sandbox"] => launcher_main(),
        ["--features", store] => try_features(store),
        [plan] => run(plan, 1),
        [plan, count] => count.parse().map_err(Into::into).and_then(|count| run(plan, count)),
        _ => Err("usage: sandbox PLAN.json [COUNT] | sandbox --features DIR".into()),
    };
    if let Err(error) = result {
        let mut cause: Option<&dyn Error> = Some(&*error);
        while let Some(error) = cause {
            eprintln!("sandbox: {error}");
            cause = error.source();
        }
        std::process::exit(125);
    }
}

fn run(plan: &str, count: u32) -> Result<(), Box<dyn Error>> {
    let plan: SandboxPlan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let launcher = Launcher::new(std::env::current_exe()?);
    let cancel = CancelToken::new()?;
    let mut walls = Vec::new();
    let mut cpu = Duration::ZERO;
    for _ in 0..count {
        let start = Instant::now();
        let mut log = Vec::new();
        let outcome = launcher.run(&plan, &mut log, &cancel);
        std::io::stdout().write_all(&log)?;
        let outcome = outcome?;
        walls.push(start.elapsed());
        cpu += outcome.cpu;
        if count == 1 {
            eprintln!("{}", serde_json::to_string(&outcome)?);
        }
    }
    if count > 1 {
        walls.sort();
        let total: Duration = walls.iter().sum();
        eprintln!(
            "{count} runs: mean {:?}, median {:?}, p99 {:?}, sandbox cpu {:?} each",
            total / count,
            walls[walls.len() / 2],
            walls[walls.len() * 99 / 100],
            cpu / count,
        );
    }
    Ok(())
}

fn try_features(store: &str) -> Result<(), Box<dyn Error>> {
    let launcher = Launcher::new(std::env::current_exe()?);
    for feature in features(&launcher, store.as_ref())? {
        println!("{}", serde_json::to_string(&feature)?);
    }
    Ok(())
}
