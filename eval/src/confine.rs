//! What an evaluating process gives up before it reads a definition.
//!
//! Two kinds, that share no code: limits of resources, without which nothing is evaluated, and
//! rights. Rights are a second line, behind an interpreter that has no function to misuse them:
//! where the kernel has no Landlock or no seccomp, that line is missing, and evaluation goes on.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::process::Limits;

/// Sets the limits, soft and hard: they can't be raised again.
pub(crate) fn limit(limits: &Limits) -> nix::Result<()> {
    // Processor time beyond the limit is SIGXCPU, a second later SIGKILL.
    set(Resource::RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds.saturating_add(1))?;
    let memory_bytes = limits.memory_mib.saturating_mul(1 << 20);
    set(Resource::RLIMIT_AS, memory_bytes, memory_bytes)?;
    // It writes to pipes only, and what it dies of is no secret that a core file keeps better.
    set(Resource::RLIMIT_FSIZE, 0, 0)?;
    set(Resource::RLIMIT_CORE, 0, 0)?;
    set(Resource::RLIMIT_NOFILE, 64, 64)?;
    // Without the process that reads its answer it has nothing left to do.
    prctl::set_pdeathsig(Signal::SIGKILL)
}

/// Sets a limit, or leaves a lower one that is there.
fn set(resource: Resource, soft: u64, hard: u64) -> nix::Result<()> {
    let (_, most) = getrlimit(resource)?;
    setrlimit(resource, soft.min(most), hard.min(most))
}

/// Leaves the calling thread, and those that it starts, the right to read beneath `directory`.
pub(crate) fn read_only(directory: impl AsFd) -> Result<(), RulesetError> {
    let abi = ABI::V6;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(directory, read))?
        .restrict_self()?;
    Ok(())
}

/// Leaves all threads the system calls of memory, threads, and files that are read.
///
/// Whatever else there is fails with EPERM: processes, sockets, signals to others, and what future
/// kernels invent.
pub(crate) fn filter_calls() -> Result<(), seccompiler::Error> {
    let Ok(arch) = std::env::consts::ARCH.try_into() else { return Ok(()) };
    let mut rules: BTreeMap<i64, _> = CALLS.iter().map(|number| (*number, Vec::new())).collect();
    // A process that aborts sends itself a signal.
    let own = u64::from(std::process::id());
    let itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![itself])?]);
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?;
    let filter: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&filter)
}

/// The system calls of an evaluation.
const CALLS: &[i64] = &[
    // Files and pipes.
    libc::SYS_openat2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_statx,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_newfstatat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Threads, time, and how a process ends.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
