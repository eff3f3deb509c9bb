//! A shell's terminal: the sandbox's own, set up as the caller's is, and the caller's, in raw mode
//! while the sandbox has its keys.
//!
//! The copying between the two is `relay`'s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr,
    tcsetattr,
};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

/// How a terminal is set up: as data, since it is set up in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TerminalSettings {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    characters: Vec<u8>,
    rows: u16,
    columns: u16,
    /// Whether standard error is the terminal, too.
    pub(super) has_errors: bool,
}

impl TerminalSettings {
    /// The settings of a terminal.
    pub(super) fn of(terminal: BorrowedFd<'_>, has_errors: bool) -> Result<Self, Errno> {
        let modes = tcgetattr(terminal)?;
        // A terminal without a size is one of a serial line: its programs have a default.
        let size = tcgetwinsize(terminal).ok();
        Ok(TerminalSettings {
            input: modes.input_flags.bits(),
            output: modes.output_flags.bits(),
            control: modes.control_flags.bits(),
            local: modes.local_flags.bits(),
            characters: modes.control_chars.to_vec(),
            rows: size.map_or(0, |it| it.ws_row),
            columns: size.map_or(0, |it| it.ws_col),
            has_errors,
        })
    }

    /// A new terminal with these settings, in the mount namespace of the caller: where it is
    /// controlled, and the terminal itself.
    pub(super) fn open(&self) -> Result<(OwnedFd, OwnedFd), Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags)?;
        unlockpt(&master)?;
        let terminal = open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
        let mut modes = tcgetattr(&terminal)?;
        modes.input_flags = InputFlags::from_bits_retain(self.input);
        modes.output_flags = OutputFlags::from_bits_retain(self.output);
        modes.control_flags = ControlFlags::from_bits_retain(self.control);
        modes.local_flags = LocalFlags::from_bits_retain(self.local);
        for (to, from) in modes.control_chars.iter_mut().zip(&self.characters) {
            *to = *from;
        }
        tcsetattr(&terminal, SetArg::TCSANOW, &modes)?;
        let size = Winsize { ws_row: self.rows, ws_col: self.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).map_err(|e| Errno::from_raw(e.raw_os_error()))?;
        Ok((OwnedFd::from(master), terminal))
    }
}

/// What the caller's terminal was set to, as long as it is set to something else.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The caller's terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    pub(super) fn enter() -> Result<RawMode, Errno> {
        let modes = tcgetattr(io::stdin())?;
        *saved() = Some(modes.clone());
        let guard = RawMode(());
        set_raw(modes)?;
        Ok(guard)
    }

    /// Sets the terminal up once more, which somebody else may have had meanwhile, and the
    /// sandbox's to its size.
    pub(super) fn refresh(&self, sandbox: BorrowedFd<'_>) {
        if let Some(modes) = saved().clone() {
            let _ = set_raw(modes);
        }
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(sandbox, size);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Gives the terminal back as it was, if a shell has it: for whoever ends the process at once.
pub fn restore_terminal() {
    if let Some(modes) = saved().take() {
        // Not after what is still to be printed: nobody may be reading.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &modes);
    }
}

fn set_raw(mut modes: Termios) -> Result<(), Errno> {
    cfmakeraw(&mut modes);
    tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &modes)
}

fn saved() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
