//! Definitions: `main.star`, and what `//other.star` and `//data.json` are, after lines of dashes.
//!
//! What is looked for are panics, and errors whose message doesn't end: memory, time and stack of a
//! single step are bounded by the process that evaluates, which isn't one here.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use srp_eval::{Definitions, EvalError};

static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // In memory where that can be.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, "\n----\n");
    for name in ["main.star", "other.star", "data.json"] {
        fs::write(DIRECTORY.path().join(name), parts.next().unwrap_or_default()).expect("written");
    }
    let definitions = Definitions::open(DIRECTORY.path()).expect("a directory").on_print(|_| ());
    let failed = match srp_eval::list(&definitions, "x86_64", None) {
        Ok(listed) => {
            let attrs: Vec<String> = listed.into_iter().map(|it| it.attr).take(8).collect();
            srp_eval::evaluate(&definitions, "x86_64", &attrs).err()
        }
        Err(error) => Some(error),
    };
    if let Some(error) = failed {
        assert!(error.rendered().len() < 64 << 10, "a message of {} bytes", error.rendered().len());
        assert!(!matches!(error, EvalError::Crashed { .. }), "{error}");
    }
});
