//! What a process takes over from whoever started it, and what srp makes of it.
//!
//! Everything that survives `exec` is either made the same for every srp and every build, refused
//! with an error, or passed on because it is the user's wish:
//!
//! | inherited | what becomes of it |
//! | --- | --- |
//! | ignored signals | SIGCHLD gets its default, without which no child's end is seen; an ignored SIGHUP, SIGINT, SIGQUIT or SIGTERM stays ignored (`nohup`, `&`); commands in sandboxes begin with defaults |
//! | blocked signals | unblocked |
//! | descriptors | closed when srp executes a program; closed 0, 1 and 2 are `/dev/null` (Rust's runtime) |
//! | soft limits of memory, files, file sizes and the stack | raised to the hard ones |
//! | hard limits lower than every build's, or than srp's own needs | refused with an error, unless srp is root and can raise them |
//! | umask | srp's own files are never taken from their owner, nor given to others to write; builds have 022 |
//! | personality | none |
//! | working directory | the launcher's is `/`: a deleted one matters to relative paths only |
//! | environment | builds have their own, the launcher has none |
//! | nice, I/O priority, scheduling policy, processor affinity, cgroup, OOM score | passed on: they say how fast a build is, or whether it is killed, not what comes out |
//!
//! What in it concerns one sandbox is `identity`'s.

use nix::errno::Errno;
use nix::libc;
use nix::sys::personality::{self, Persona};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

use super::sys::{self, Disposition};
use super::wire::Failure;

/// The stack that srp's own threads were written for, and every build has.
pub(super) const STACK_BYTES: u64 = 8 << 20;
/// The same number of open files in every build: what every kernel grants by default.
pub(super) const OPEN_FILES: u64 = 4096;
pub(super) const LOCKED_BYTES: u64 = 64 << 10;
pub(super) const PENDING_SIGNALS: u64 = 1024;
pub(super) const MESSAGE_QUEUE_BYTES: u64 = 819_200;

/// The hard limits that every build needs: at least so much.
const NEEDED: &[(Resource, u64)] = &[
    (Resource::RLIMIT_AS, RLIM_INFINITY),
    (Resource::RLIMIT_CPU, RLIM_INFINITY),
    (Resource::RLIMIT_DATA, RLIM_INFINITY),
    (Resource::RLIMIT_FSIZE, RLIM_INFINITY),
    (Resource::RLIMIT_LOCKS, RLIM_INFINITY),
    (Resource::RLIMIT_RSS, RLIM_INFINITY),
    (Resource::RLIMIT_RTTIME, RLIM_INFINITY),
    (Resource::RLIMIT_STACK, STACK_BYTES),
    (Resource::RLIMIT_NOFILE, OPEN_FILES),
    (Resource::RLIMIT_MEMLOCK, LOCKED_BYTES),
    (Resource::RLIMIT_SIGPENDING, PENDING_SIGNALS),
    (Resource::RLIMIT_MSGQUEUE, MESSAGE_QUEUE_BYTES),
];

/// The limits without which srp itself ends in the midst of something, with the shell's name of each.
const OWN_NEEDS: &[(Resource, libc::rlim_t, &str)] = &[
    (Resource::RLIMIT_AS, 1 << 30, "memory (ulimit -v)"),
    (Resource::RLIMIT_DATA, 272 << 20, "data (ulimit -d)"),
    (Resource::RLIMIT_FSIZE, 64 << 20, "file sizes (ulimit -f)"),
    (Resource::RLIMIT_STACK, 1 << 20, "the stack (ulimit -s)"),
    (Resource::RLIMIT_NOFILE, 256, "open files (ulimit -n)"),
];

/// A hard limit of whoever started srp that is too low for srp, which may not raise it.
#[derive(Debug, thiserror::Error)]
#[error("the hard limit of {what} is {hard}, and srp needs {needed} at least")]
pub struct LowLimit {
    what: &'static str,
    hard: libc::rlim_t,
    needed: libc::rlim_t,
}

/// The step that fails where a hard limit is in a build's way.
pub(super) const LIMITS_STEP: &str = "give builds the limits that they always have";

/// Brings this process into the state that srp expects, whoever started it. To be called first of
/// all, before there are threads.
///
/// A limit that is too low, and can't be raised, is an error. What else can't be changed is met
/// again, as an error, where it matters.
pub fn normalise_process() -> Result<(), LowLimit> {
    // An ignored SIGCHLD makes the kernel reap children itself, and waiting for them fail.
    let _ = sys::set_disposition(Signal::SIGCHLD, Disposition::Default);
    // A file that grows beyond the caller's limit is an error of that write, not the end of srp.
    let _ = sys::set_disposition(Signal::SIGXFSZ, Disposition::Ignored);
    let _ = SigSet::empty().thread_set_mask();
    let _ = sys::close_on_exec_from(3);
    for resource in [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_NOFILE,
    ] {
        raise_soft(resource, RLIM_INFINITY);
    }
    raise_soft(Resource::RLIMIT_STACK, STACK_BYTES);
    // What one may not write to oneself, one could not finish, either.
    let mask = umask(Mode::empty());
    umask(mask & (Mode::S_IRWXG | Mode::S_IRWXO) | Mode::S_IWGRP | Mode::S_IWOTH);
    let _ = personality::set(Persona::empty());
    for (resource, needed, what) in OWN_NEEDS {
        let Ok((_, hard)) = getrlimit(*resource) else { continue };
        if hard < *needed && setrlimit(*resource, *needed, *needed).is_err() {
            return Err(LowLimit { what, hard, needed: *needed });
        }
    }
    Ok(())
}

/// Whether the caller had this signal ignored, and wants srp to ignore it, too.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    sys::disposition(signal).is_ok_and(|it| it == Disposition::Ignored)
}

/// Sees to it that builds can have the limits that they always have: in the launcher, which as root
/// may raise hard limits.
pub(super) fn raise_hard_limits() -> Result<(), Failure> {
    for (resource, needed) in NEEDED {
        let limits = getrlimit(*resource);
        let failed = |action, errno| Failure::new(LIMITS_STEP, action, errno);
        let (soft, hard) = limits.map_err(|e| failed(format!("read {resource:?}"), e))?;
        if hard >= *needed {
            continue;
        }
        setrlimit(*resource, soft, *needed).map_err(|errno| {
            let needed = amount(*needed);
            failed(format!("raise the hard limit {resource:?} from {hard} to {needed}"), errno)
        })?;
    }
    Ok(())
}

/// Raises the soft limit to `wanted`, or as near as the hard limit allows.
fn raise_soft(resource: Resource, wanted: u64) {
    if let Ok((soft, hard)) = getrlimit(resource)
        && soft < wanted.min(hard)
    {
        let _: Result<(), Errno> = setrlimit(resource, wanted.min(hard), hard);
    }
}

fn amount(limit: libc::rlim_t) -> String {
    if limit == RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() }
}
