//! Who the sandbox's processes are and what each may use: the two user namespaces, resource limits.
//!
//! More steps of `apply`, which owns the order. Limits of the sandbox as a whole are `supervise`'s.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::personality::{self, Persona};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};

use super::apply::{Done, Setup, While, write_file};
use super::inherited::{
    LOCKED_BYTES, MESSAGE_QUEUE_BYTES, OPEN_FILES, PENDING_SIGNALS, STACK_BYTES,
};
use super::plan::{Attributes, Processors};

/// Less than any core: none is written. And unlike 0, the kernel doesn't start the host's core
/// handler, either.
const NO_CORE: u64 = 1;
/// When the machine runs out of memory, the kernel takes builds before it takes srp.
const OOM_SCORE: i32 = 500;

impl Setup<'_> {
    pub(super) fn become_user(&mut self, uid: u32, gid: u32) -> Done {
        let proc = self.bare_proc.take().expect("Proc comes before BecomeUser");
        // A change of identity made this process's maps root's; nobody is there to trace it yet.
        nix::sys::prctl::set_dumpable(true).during(|| "own the identity maps".to_owned())?;
        unshare(CloneFlags::CLONE_NEWUSER).during(|| "unshare".to_owned())?;
        // One who is to be killed even earlier stays so: going back takes a privilege.
        let inherited = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let inherited = inherited.trim().parse().unwrap_or(OOM_SCORE);
        for (file, line) in [
            ("self/gid_map", format!("{gid} 0 1")),
            ("self/uid_map", format!("{uid} 0 1")),
            ("sys/user/max_user_namespaces", "0".to_owned()),
            ("self/oom_score_adj", OOM_SCORE.max(inherited).to_string()),
        ] {
            write_file(proc.as_fd(), file, line.as_bytes())
                .during(|| format!("write /proc/{file}"))?;
        }
        die_with_the_launcher()
    }
}

pub(super) fn become_outer_root() -> Done {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).during(|| "setresgid".to_owned())?;
    setresuid(uid, uid, uid).during(|| "setresuid".to_owned())?;
    // After the change of identity, which clears it.
    die_with_the_launcher()
}

fn die_with_the_launcher() -> Done {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .during(|| "ask for a signal when the launcher dies".to_owned())
}

pub(super) fn process_limits(processes: Option<u64>, attributes: &Attributes) -> Done {
    umask(Mode::from_bits_truncate(attributes.umask));
    if let Some(processors) = attributes.processors {
        keep_processors(processors)
            .during(|| format!("keep to {} processors", processors.count))?;
    }
    let unlimited = [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_RTTIME,
    ];
    for resource in unlimited {
        raise(resource, u64::MAX)?;
    }
    raise(Resource::RLIMIT_STACK, STACK_BYTES)?;
    // Where the caller may have none at all, there is none to be had.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).during(|| "read RLIMIT_CORE".to_owned())?;
    for (resource, value) in [
        (Resource::RLIMIT_CORE, NO_CORE.min(hard)),
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        (Resource::RLIMIT_MEMLOCK, LOCKED_BYTES),
        (Resource::RLIMIT_SIGPENDING, PENDING_SIGNALS),
        (Resource::RLIMIT_MSGQUEUE, MESSAGE_QUEUE_BYTES),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ] {
        setrlimit(resource, value, value).during(|| format!("set {resource:?} to {value}"))?;
    }
    // Since Linux 5.14 processes are counted per user namespace, before that per user of the
    // machine, where this ceiling would hit the innocent.
    if let Some(processes) = processes.filter(|_| kernel_is_at_least(5, 14)) {
        let resource = Resource::RLIMIT_NPROC;
        let (_, hard) = getrlimit(resource).during(|| format!("read {resource:?}"))?;
        let ceiling = processes.min(hard);
        setrlimit(resource, ceiling, ceiling)
            .during(|| format!("set {resource:?} to {ceiling}"))?;
    }
    // The last: it decides which kernel there is said to be.
    let mut persona = Persona::empty();
    persona.set(Persona::ADDR_NO_RANDOMIZE, !attributes.random_addresses);
    persona.set(Persona::UNAME26, attributes.old_kernel);
    personality::set(persona).during(|| "set the personality".to_owned()).map(drop)
}

/// Restricts this process and its descendants to some of the processors that it has.
fn keep_processors(Processors { count, after }: Processors) -> Result<(), Errno> {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this)?;
    let has = |number: &usize| all.is_set(*number).unwrap_or(false);
    let all: Vec<usize> = (0..CpuSet::count()).filter(has).collect();
    let mut kept = CpuSet::new();
    for number in all.iter().cycle().skip(after % all.len().max(1)).take(count.min(all.len())) {
        kept.set(*number)?;
    }
    sched_setaffinity(this, &kept)
}

/// Sets a soft limit to `value`, or as near as the hard limit allows.
fn raise(resource: Resource, value: u64) -> Done {
    let (_, hard) = getrlimit(resource).during(|| format!("read {resource:?}"))?;
    let soft = value.min(hard);
    setrlimit(resource, soft, hard).during(|| format!("set {resource:?} to {soft}"))
}

fn kernel_is_at_least(wanted_major: u32, wanted_minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (wanted_major, wanted_minor)
}
