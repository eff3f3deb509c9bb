//! The two streams: answers on standard output, everything else on standard error.
//!
//! Lines for standard error go through here, so that they appear above a live display and not in
//! the middle of it.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;

use crate::error::{CommandError, CommandResult, ExitCode};

/// The live display, once there is one.
static LIVE: OnceLock<MultiProgress> = OnceLock::new();

/// From here on lines appear above `display`.
pub(crate) fn set_live(display: &MultiProgress) {
    // A second display would be a bug, but a harmless one.
    let _ = LIVE.set(display.clone());
}

/// Writes a line to standard error.
pub(crate) fn say(line: &str) {
    write(format!("{line}\n").as_bytes());
}

/// Writes whole lines to standard error.
pub(crate) fn write(bytes: &[u8]) {
    // There is nowhere left to say that standard error is closed.
    let write = || drop(std::io::stderr().lock().write_all(bytes));
    match LIVE.get() {
        Some(live) => live.suspend(write),
        None => write(),
    }
}

/// Writes an answer to standard output. That nobody reads it any more is a silent end.
pub(crate) fn answer(text: &str) -> CommandResult {
    answer_bytes(text.as_bytes())
}

/// As [`answer`], for what need not be text.
pub(crate) fn answer_bytes(bytes: &[u8]) -> CommandResult {
    let mut output = std::io::stdout().lock();
    output.write_all(bytes).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CommandError::silent(ExitCode::Success),
        _ => CommandError::chain(ExitCode::User, error).hint("standard output can't be written to"),
    })
}

/// Writes a JSON value to standard output.
pub(crate) fn answer_json(value: &serde_json::Value) -> CommandResult {
    answer(&format!("{value:#}\n"))
}

/// A line of foreign text without what could move the cursor or change the terminal.
pub(crate) fn printable(line: &str) -> String {
    let plain = console::strip_ansi_codes(line);
    plain.chars().filter(|char| *char == '\t' || !char.is_control()).collect()
}

/// Shows what the libraries report beside their results: warnings, with `-v` what is worth knowing,
/// or with `-vv` everything.
pub(crate) fn report(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => tracing::Level::ERROR,
        (false, 0) => tracing::Level::WARN,
        (false, 1) => tracing::Level::INFO,
        (false, _) => tracing::Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Report)
        .with_ansi(false)
        .without_time()
        .with_target(level == tracing::Level::DEBUG)
        .finish();
    // There is no other: this is the one place that sets it.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Where `tracing` writes.
#[derive(Clone, Copy, Debug)]
struct Report;

impl Write for Report {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[31mred\x1b[0m\tb\r\x07\x1b]0;title\x07c"), "ared\tbc");
    }
}
