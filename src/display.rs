//! Where the live display is drawn: the terminal at standard error, as long as it is there.
//!
//! A terminal can hang up in the middle of a line. Nobody sees the display then, but what it shows
//! goes on, or is cancelled by SIGHUP: drawing must not be what ends it.

use std::io;

use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};

/// How often it is drawn at most.
const PER_SECOND: u8 = 20;

/// Standard error if it is a terminal, else nothing.
pub(crate) fn target() -> ProgressDrawTarget {
    let term = Term::buffered_stderr();
    if !term.is_term() {
        return ProgressDrawTarget::hidden();
    }
    ProgressDrawTarget::term_like_with_hz(Box::new(Terminal(term)), PER_SECOND)
}

/// A terminal on which drawing never fails.
#[derive(Debug)]
struct Terminal(Term);

/// That nobody sees it is no failure.
fn drawn(_: io::Result<()>) -> io::Result<()> {
    Ok(())
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_left(n))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        drawn(self.0.write_line(text))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        drawn(self.0.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        drawn(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        drawn(self.0.flush())
    }
}
