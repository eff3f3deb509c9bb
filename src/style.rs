//! Colour on standard error, or none.
//!
//! What is painted here carries marks that only [`crate::terminal`] turns into a terminal's own
//! sequences: of these nothing passes it, so that foreign text can't bring any. The marks hold a
//! number that is drawn when srp starts, and that no foreign text can know.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::io::IsTerminal;
use std::sync::LazyLock;

use clap::builder::styling::{AnsiColor, Style as Ansi};

/// When output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How text on standard error is set off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    coloured: bool,
}

impl Style {
    /// The style that was asked for; `no_color` is whether the environment says NO_COLOR.
    pub(crate) fn new(color: Color, no_color: bool) -> Style {
        Style {
            coloured: match color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => !no_color && std::io::stderr().is_terminal(),
            },
        }
    }

    /// What went wrong.
    pub(crate) fn error(self, text: &str) -> String {
        self.paint(AnsiColor::Red.on_default().bold(), text)
    }

    /// What may be wrong.
    pub(crate) fn warning(self, text: &str) -> String {
        self.paint(AnsiColor::Yellow.on_default().bold(), text)
    }

    /// What could be done.
    pub(crate) fn hint(self, text: &str) -> String {
        self.paint(AnsiColor::Cyan.on_default().bold(), text)
    }

    /// What was done.
    pub(crate) fn done(self, text: &str) -> String {
        self.paint(AnsiColor::Green.on_default().bold(), text)
    }

    /// What matters less.
    pub(crate) fn faint(self, text: &str) -> String {
        self.paint(Ansi::new().dimmed(), text)
    }

    fn paint(self, style: Ansi, text: &str) -> String {
        if !self.coloured {
            return text.to_owned();
        }
        let mark = &*MARK;
        format!("{mark}{}{END}{text}{mark}{END}", style.render().to_string().replace('\x1b', ""))
    }
}

/// What a mark begins and ends with: characters that Unicode keeps for such use.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';
static MARK: LazyLock<String> =
    LazyLock::new(|| format!("{BEGIN}{:016x}", RandomState::new().hash_one("style")));

/// What a text begins with, if that is a mark: the terminal's sequence, and the mark's length.
pub(crate) fn mark(text: &str) -> Option<(String, usize)> {
    let rest = text.strip_prefix(BEGIN)?.strip_prefix(&MARK[BEGIN.len_utf8()..])?;
    let (styles, _) = rest.split_once(END)?;
    let mut sequence = String::new();
    for style in styles.split('[').skip(1) {
        let _ = write!(sequence, "\x1b[{style}");
    }
    if sequence.is_empty() {
        sequence = "\x1b[0m".to_owned();
    }
    Some((sequence, MARK.len() + styles.len() + END.len_utf8()))
}
