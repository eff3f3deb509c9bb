//! The two streams: answers on standard output, everything else on standard error.
//!
//! Whatever srp writes for people goes through here. Much of it isn't srp's own: names and messages
//! of definitions, archives, servers and builders. So nothing that steers a terminal passes, from
//! wherever it is, but for what [`Style`] has painted; no line is longer than some thousand
//! characters; and a message's further lines are indented, so that a line that begins at the margin
//! is always srp's own. Lines for standard error appear above a live display.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{CommandError, CommandResult, ExitCode};
use crate::style::{Style, mark};
use crate::visible::{is_unseen, log_line, spelled};

/// A line on standard error has no more characters.
const MOST_OF_A_LINE: usize = 4096;

/// The live display, once there is one.
static LIVE: OnceLock<MultiProgress> = OnceLock::new();

/// From here on lines appear above `display`.
pub(crate) fn set_live(display: &MultiProgress) {
    // A second display would be a bug, but a harmless one.
    let _ = LIVE.set(display.clone());
}

/// Writes a message to standard error: a line, or several.
pub(crate) fn say(message: &str) {
    write(&format!("{}\n", indented(message)));
}

/// Writes whole lines to standard error.
pub(crate) fn write(text: &str) {
    let text = shown(text, MOST_OF_A_LINE);
    // There is nowhere left to say that standard error is closed.
    let write = || drop(std::io::stderr().lock().write_all(text.as_bytes()));
    match LIVE.get() {
        Some(live) => live.suspend(write),
        None => write(),
    }
}

/// A message whose further lines are indented, and deeper than anything that srp itself indents in
/// an error: none of them can be taken for one of its own.
pub(crate) fn indented(message: &str) -> String {
    message.trim_end_matches('\n').replace('\n', "\n    ")
}

/// A line of a live display.
pub(crate) fn row(line: &str) -> String {
    shown(&line.replace('\n', &spelled('\n')), MOST_OF_A_LINE)
}

/// Text as a terminal may have it: what [`Style`] painted in colour, everything else that isn't
/// seen as text spelled out, and long lines cut.
fn shown(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len());
    let (mut rest, mut column, mut painted) = (text, 0, false);
    while let Some(char) = rest.chars().next() {
        if let Some((sequence, length)) = mark(rest) {
            painted = sequence != RESET;
            shown += &sequence;
            rest = &rest[length..];
            continue;
        }
        rest = &rest[char.len_utf8()..];
        if char == '\n' {
            // What a message leaves open ends with its line.
            if std::mem::take(&mut painted) {
                shown += RESET;
            }
            shown.push('\n');
            column = 0;
            continue;
        }
        column += 1;
        match column.cmp(&most) {
            std::cmp::Ordering::Less if is_unseen(char) => shown += &spelled(char),
            std::cmp::Ordering::Less => shown.push(char),
            std::cmp::Ordering::Equal => shown.push('…'),
            std::cmp::Ordering::Greater => {}
        }
    }
    shown
}

/// Ends all colours.
const RESET: &str = "\x1b[0m";

/// Writes an answer to standard output. That nobody reads it any more is a silent end.
/// What steers a terminal reaches none; a file or a pipe has everything as it is.
pub(crate) fn answer(text: &str) -> CommandResult {
    match std::io::stdout().is_terminal() {
        true => answer_bytes(shown(text, usize::MAX).as_bytes()),
        false => answer_bytes(text.as_bytes()),
    }
}

/// Answers with a part of a build's log, whole lines but for the last: as it is, but a terminal gets
/// colours and emphasis only.
pub(crate) fn answer_log(bytes: &[u8]) -> CommandResult {
    if !std::io::stdout().is_terminal() {
        return answer_bytes(bytes);
    }
    let mut text = String::new();
    for line in String::from_utf8_lossy(bytes).split_inclusive('\n') {
        let content = line.trim_end_matches('\n');
        text += &log_line(content.strip_suffix('\r').unwrap_or(content));
        text += &line[content.len()..];
    }
    answer_bytes(text.as_bytes())
}

/// As [`answer`], for what is srp's own, or no text.
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
/// or with `-vv` everything. A panic's message goes the same way.
pub(crate) fn report(verbose: u8, quiet: bool, style: Style) {
    let level = match (quiet, verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::WARN,
        (false, 1) => Level::INFO,
        (false, _) => Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Report)
        .with_ansi(false)
        .event_format(Lines { style, targets: level == Level::DEBUG })
        .finish();
    // There is no other: this is the one place that sets it.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        // The index is made anew then, which is reported.
        if srp_store::is_index_panic() {
            return;
        }
        let backtrace = std::backtrace::Backtrace::capture();
        let mut text = panic.to_string();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            let _ = write!(text, "\n{backtrace}");
        }
        say(&text);
    }));
}

/// How a report is written: as any other message.
struct Lines {
    style: Style,
    targets: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let label = match *event.metadata().level() {
            Level::ERROR => self.style.error("error:"),
            Level::WARN => self.style.warning("warning:"),
            Level::INFO => "note:".to_owned(),
            _ => "debug:".to_owned(),
        };
        write!(writer, "{label} ")?;
        if self.targets {
            write!(writer, "{}: ", event.metadata().target())?;
        }
        context.field_format().format_fields(writer.by_ref(), event)
    }
}

/// Where `tracing` writes: one event at a time.
#[derive(Clone, Copy, Debug)]
struct Report;

impl Write for Report {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        say(&String::from_utf8_lossy(bytes));
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

    #[test]
    fn only_what_srp_painted_is_coloured() {
        let style = Style::new(crate::style::Color::Always, false);
        let text = format!("{} a\x1b[31mb\u{202e}\u{fdd0}0[1m\u{fdd1}\n", style.error("error:"));
        let text = shown(&text, 100);
        assert!(text.starts_with("\x1b[1m\x1b[31merror:\x1b[0m a␛[31mb\\u{202e}"), "{text:?}");
        assert_eq!(text.matches('\x1b').count(), 3, "{text:?}");
        assert_eq!(shown("abcdef\nabc\tdef\r\n", 4), "abc…\nabc…\n");
        assert_eq!(row("a\nerror: b\x1b[2J"), "a␊error: b␛[2J");
    }

    #[test]
    fn a_message_has_one_line_at_the_margin() {
        let forged = "no such file\nerror: all is lost\n  because: of me\r\nhint: x\n\n";
        let lines = indented(forged);
        assert!(lines.lines().skip(1).all(|line| line.starts_with("    ")), "{lines}");
        assert_eq!(lines.lines().count(), 4);
    }
}
