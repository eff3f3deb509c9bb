//! Automatic collection: when there is less room than the configuration asks for, a process of its
//! own makes some, and nobody waits for it.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::HumanBytes;
use srp_store::Store;

use crate::context::Context;
use crate::error::CommandResult;
use crate::terminal;

/// How many bytes are missing for what the configuration asks for; none if nothing is.
pub(crate) fn missing_bytes(context: &Context, store: &Store) -> CommandResult<Option<u64>> {
    let free = missing_free(context, store).unwrap_or_default();
    let size = match context.config.gc.max_size_mib {
        Some(mib) => store.usage()?.disk_bytes().saturating_sub(mib.saturating_mul(1 << 20)),
        None => 0,
    };
    Ok(Some(free.max(size)).filter(|bytes| *bytes > 0))
}

/// How much less is free on the store's file system than is asked for.
fn missing_free(context: &Context, store: &Store) -> Option<u64> {
    let wanted = context.config.gc.min_free_mib?.saturating_mul(1 << 20);
    let found = nix::sys::statvfs::statvfs(store.root()).ok()?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    Some(wanted.saturating_sub(free)).filter(|bytes| *bytes > 0)
}

/// Starts a collection if there is too little room. `has_grown`: something was just made. Never
/// fails, and waits for nothing: srp once more, in a process group of its own and with a lower
/// priority, goes on when this one has ended.
pub(crate) fn collect(context: &Context, store: &Store, has_grown: bool) {
    let gc = &context.config.gc;
    let missing = missing_free(context, store);
    if missing.is_none() && !(has_grown && gc.max_size_mib.is_some()) {
        return;
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["store", "gc", "--automatic", "--quiet", "--store"]).arg(store.root());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    match command.spawn() {
        Ok(child) => {
            let child = rustix::process::Pid::from_raw(child.id().try_into().unwrap_or_default());
            let _ = child.map(|child| rustix::process::setpriority_process(Some(child), 10));
            static SAID: AtomicBool = AtomicBool::new(false);
            let is_silent = context.options.quiet || SAID.swap(true, Ordering::Relaxed);
            if let Some(bytes) = missing.filter(|_| !is_silent) {
                let bytes = HumanBytes(bytes);
                terminal::say(&format!(
                    "{bytes} less are free than min_free_mib asks for: collecting garbage in the background"
                ));
            } else if !is_silent {
                tracing::info!(
                    "looking in the background whether the store is within max_size_mib"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "no garbage is collected"),
    }
}
