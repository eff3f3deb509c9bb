//! Evaluates attributes of a definitions directory and prints what they stand for as JSON.
//!
//! `cargo run -p srp-eval --example evaluate -- DIRECTORY BUILD_ARCH ATTRIBUTE…`; without an
//! attribute, lists what there is. For those who write definitions; the real command is `srp`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use srp_eval::{Definitions, EvalError, Evaluation, evaluate, list};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, arch, attrs @ ..] = arguments.as_slice() else {
        eprintln!("usage: evaluate DIRECTORY BUILD_ARCH [ATTRIBUTE…]");
        return ExitCode::from(2);
    };
    let definitions = match Definitions::open(Path::new(root)) {
        Ok(definitions) => definitions.on_print(|text| eprintln!("{text}")),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let start = Instant::now();
    let done = if attrs.is_empty() {
        list(&definitions, arch, None).map(|listed| {
            for it in listed {
                println!("{}\t{}\t{}\t{}", it.attr, it.name, it.version, it.description);
            }
        })
    } else {
        evaluate(&definitions, arch, attrs).map(|evaluation| print(&evaluation))
    };
    eprintln!("took {:?}", start.elapsed());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn print(evaluation: &Evaluation) {
    let derivations: serde_json::Map<String, serde_json::Value> = evaluation
        .derivations
        .iter()
        .map(|(hash, derivation)| (hash.to_string(), json!(derivation)))
        .collect();
    let runners: serde_json::Map<String, serde_json::Value> = evaluation
        .runners
        .iter()
        .map(|(arch, it)| {
            let value = json!({
                "key": it.key, "program": it.program, "cpu": it.cpu, "uname": it.uname,
            });
            (arch.clone(), value)
        })
        .collect();
    let all = json!({
        "goals": evaluation.goals,
        "derivations": derivations,
        "runners": runners,
        "files": evaluation.files,
    });
    println!("{all:#}");
}

fn report(error: &EvalError) -> ExitCode {
    eprintln!("error: {}", error.rendered());
    ExitCode::FAILURE
}
