//! The host: its processes, its users, and what a test can't do on it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A user without privileges.
pub(crate) const NOBODY: u32 = 65_534;

/// Says loudly that a test checks less than it could here.
pub(crate) fn skipped(what: &str, why: &str) {
    // Past libtest, which would keep it to itself.
    let text = format!("SKIPPED: {what}: {why}\n");
    let _ = nix::unistd::write(std::io::stderr(), text.as_bytes());
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Lets a command run as nobody.
pub(crate) fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

/// A number of seconds that no other process sleeps for: a mark to find a sandbox's processes by.
pub(crate) fn mark() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("7{}{next:03}", std::process::id())
}

/// Gives a tree to a user.
pub(crate) fn give(path: &Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}
