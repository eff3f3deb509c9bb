//! Colour on standard error, or none.

use std::io::IsTerminal;

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
        if self.coloured { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}
