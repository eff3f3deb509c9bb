//! The system calls of the sandbox that no safe crate covers, each behind a safe function.
//!
//! This is the only file of the project with `unsafe` in it. It holds no policy: what is called,
//! in which order and why stands in `apply`, `init` and `zygote`.

use std::ffi::{CStr, CString, c_int};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;

use super::bpf::Instruction;

type Result<T> = std::result::Result<T, Errno>;

/// Which side of a `clone` the caller finds itself on.
#[derive(Debug)]
pub(super) enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the new process's id and, if asked for, a descriptor of it.
    Parent { pid: Pid, pidfd: Option<OwnedFd> },
}

/// Clones the process like `fork`, into the new namespaces that `flags` names.
///
/// Only for a single-threaded process: the child goes on in a copy of the caller's memory.
pub(super) fn clone_process(flags: libc::c_int, want_pidfd: bool) -> Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = flags | libc::SIGCHLD;
    if want_pidfd {
        flags |= libc::CLONE_PIDFD;
    }
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child runs on a copy of
    // the caller's stack. The kernel writes one int to `pidfd`, which outlives the call. The
    // process has one thread, so no lock is held by a thread that the child lacks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_ulong::from(flags as u32),
            std::ptr::null_mut::<libc::c_void>(),
            &raw mut pidfd,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    match Errno::result(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor that nobody else owns.
            let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Cloned::Parent { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
        }
    }
}

/// Ends the process at once, running no destructor: what a cloned child does instead of returning.
pub(super) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` is always safe to call and doesn't return.
    unsafe { libc::_exit(status) }
}

/// `open_tree`: a detached copy of the mount at `path` (`""`: of `dir` itself).
pub(super) fn clone_mount(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    }
    // SAFETY: the descriptor is open and `path` is NUL-terminated; the result is a new descriptor.
    unsafe { new_fd(libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags)) }
}

/// `open_tree`: a detached copy of the mount that `root` is the root of and of all that is mounted in
/// it. It is unmounted when the descriptor is closed.
pub(super) fn clone_mount_tree(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as libc::c_uint;
    // SAFETY: the descriptor is open and the path is a C string; the result is a new descriptor.
    unsafe { new_fd(libc::syscall(libc::SYS_open_tree, root.as_raw_fd(), c"".as_ptr(), flags)) }
}

/// `open_tree` of a path of the host, links followed.
pub(super) fn clone_mount_at(path: &CStr) -> Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is NUL-terminated; the result is a new descriptor.
    unsafe { new_fd(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)) }
}

/// Attributes that [`set_mount_attributes`] adds to a mount.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MountAttributes<'a> {
    pub(super) read_only: bool,
    pub(super) no_devices: bool,
    pub(super) no_exec: bool,
    /// Identities on the file system are mapped by this user namespace.
    pub(super) id_map: Option<BorrowedFd<'a>>,
}

impl MountAttributes<'_> {
    fn bits(&self) -> u64 {
        let mut bits = libc::MOUNT_ATTR_NOSUID;
        if self.read_only {
            bits |= libc::MOUNT_ATTR_RDONLY;
        }
        if self.no_devices {
            bits |= libc::MOUNT_ATTR_NODEV;
        }
        if self.no_exec {
            bits |= libc::MOUNT_ATTR_NOEXEC;
        }
        bits
    }
}

/// `mount_setattr` on the mount that `mount` refers to; always adds nosuid.
pub(super) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes<'_>,
) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    mount_setattr(mount.as_raw_fd(), c"", flags, attributes)
}

/// [`set_mount_attributes`] for the mount that lies at a path.
pub(super) fn set_mount_attributes_at(path: &CStr, attributes: &MountAttributes<'_>) -> Result<()> {
    mount_setattr(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW, attributes)
}

fn mount_setattr(
    at: RawFd,
    path: &CStr,
    flags: c_int,
    attributes: &MountAttributes<'_>,
) -> Result<()> {
    let mut set =
        libc::mount_attr { attr_set: attributes.bits(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    if let Some(map) = attributes.id_map {
        set.attr_set |= libc::MOUNT_ATTR_IDMAP;
        set.userns_fd = map.as_raw_fd() as u64;
    }
    // SAFETY: the path is a C string, and `set` is a mount_attr whose size is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// `move_mount`: attaches the mount `from` at the file or directory `to`, both by descriptor.
pub(super) fn attach_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    const FROM_AND_TO_ARE_DESCRIPTORS: libc::c_uint = 0x4 | 0x40;
    // SAFETY: both descriptors are open and both paths are C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            c"".as_ptr(),
            FROM_AND_TO_ARE_DESCRIPTORS,
        )
    };
    Errno::result(result).map(drop)
}

/// A new file system of type `kind` with string `options`, mounted nowhere yet
/// (`fsopen`, `fsconfig`, `fsmount`).
pub(super) fn new_filesystem(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: &MountAttributes<'_>,
) -> Result<OwnedFd> {
    const SET_STRING: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    // SAFETY: `kind` is a C string; the result is a new descriptor.
    let context =
        unsafe { new_fd(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1 as libc::c_uint))? };
    for (key, value) in options {
        // SAFETY: the context is open, key and value are C strings that outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0 as libc::c_int,
            )
        };
        Errno::result(result)?;
    }
    // SAFETY: the context is open; this command takes neither key nor value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_char>(),
            0 as libc::c_int,
        )
    };
    Errno::result(result)?;
    // SAFETY: the context is open; the result is a new descriptor.
    unsafe {
        new_fd(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            1 as libc::c_uint,
            attributes.bits() as libc::c_uint,
        ))
    }
}

/// Opens `path` beneath `root` as a bare reference, refusing every symbolic link on the way.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    // SAFETY: `open_how` is a plain C struct of integers, for which all zeros is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: the descriptor is open, `path` is a C string, and `how` comes with its size.
    unsafe {
        new_fd(libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        ))
    }
}

/// `pivot_root(".", ".")`: the working directory becomes the root, the old root lies on top of it.
pub(super) fn pivot_here() -> Result<()> {
    // SAFETY: both arguments are C strings.
    let result = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor that is not in `keep`.
pub(super) fn close_all_except(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0)
}

/// Marks every descriptor from `first` on to be closed by the next `exec`.
pub(super) fn close_on_exec_from(first: u32) -> Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> Result<()> {
    // SAFETY: the callers pass ranges that hold no descriptor which a live owner still uses: a
    // cloned child whose other values are never touched again, or close-on-exec marking.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Makes `fd` also descriptor number `number`, kept across `exec`.
pub(super) fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: called only for the numbers 0 to 2 in a child just before `exec`, where no Rust
    // value owns them.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// `prctl` with one number.
fn prctl(option: libc::c_int, argument: libc::c_ulong) -> Result<()> {
    // SAFETY: only options that take plain numbers are passed by this file.
    let result = unsafe { libc::prctl(option, argument, 0 as libc::c_ulong, 0, 0) };
    Errno::result(result).map(drop)
}

/// The capability to override file permissions, within a user namespace for its own files only.
pub(super) const CAP_DAC_OVERRIDE: u32 = 1;

/// Gives up every capability for good, or all but one: bounding and ambient sets and the process's
/// own, with the secure bits locked so that no uid brings any back.
pub(super) fn drop_capabilities(keep: Option<u32>) -> Result<()> {
    // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock, and KEEP_CAPS locked off.
    const SECURE_BITS: libc::c_ulong = 0b1110_1111;
    let kept = keep.map_or(0, |capability| 1u64 << capability);
    for capability in 0..64 {
        if Some(capability) == keep {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)) {
            Err(Errno::EINVAL) if capability > 37 => break, // past the last one of this kernel
            result => result?,
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    if let Some(capability) = keep {
        // Ambient capabilities are those that an ordinary program keeps across `exec`.
        set_capabilities(u64::MAX, kept)?;
        let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
        // SAFETY: this option takes plain numbers.
        let result = unsafe {
            let capability = libc::c_ulong::from(capability);
            libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0 as libc::c_ulong, 0)
        };
        Errno::result(result)?;
    }
    prctl(libc::PR_SET_SECUREBITS, SECURE_BITS)?;
    set_capabilities(kept, kept)
}

/// Sets effective and permitted capabilities to `own` as far as they are permitted, and the
/// inheritable ones.
fn set_capabilities(own: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut halves = [Half { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 of the interface reads one header and writes two triples of u32.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr())
    })?;
    for (number, half) in halves.iter_mut().enumerate() {
        half.permitted &= (own >> (32 * number)) as u32;
        half.effective = half.permitted;
        half.inheritable = (inheritable >> (32 * number)) as u32;
    }
    // SAFETY: version 3 of the interface reads one header and two triples of u32.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Installs a seccomp filter for this process and all that it starts. `no_new_privs` must be set.
pub(super) fn install_filter(program: &[Instruction]) -> Result<()> {
    // SPEC_ALLOW: before Linux 5.16 a filter silently switched on speculation mitigations that
    // slow every compiler down and that the same program outside a sandbox doesn't get.
    with_filter(program, |program| {
        // SAFETY: `program` points at its instructions, both alive during the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                &raw const *program,
            )
        };
        Errno::result(result).map(drop)
    })
}

/// Calls with a program as the kernel takes it.
fn with_filter<T>(
    program: &[Instruction],
    install: impl FnOnce(&libc::sock_fprog) -> Result<T>,
) -> Result<T> {
    let filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter { code: i.code, jt: i.jump_true, jf: i.jump_false, k: i.value })
        .collect();
    install(&libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        filter: filter.as_ptr().cast_mut(),
    })
}

/// As [`install_filter`], of a filter that asks: the descriptor on which its questions come.
pub(super) fn install_listening_filter(program: &[Instruction]) -> Result<OwnedFd> {
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Since Linux 5.19: a question that has been heard is not interrupted by signals, which would
    // show in programs as errors that these calls don't have.
    match install_listening(program, flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::EINVAL) => install_listening(program, flags),
        result => result,
    }
}

fn install_listening(program: &[Instruction], flags: libc::c_ulong) -> Result<OwnedFd> {
    with_filter(program, |program| {
        // SAFETY: `program` points at its instructions, both alive during the call; with this flag
        // the result is a new descriptor.
        unsafe {
            new_fd(libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const *program,
            ))
        }
    })
}

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notification {
    pub(super) id: u64,
    pub(super) pid: Pid,
    pub(super) call: u32,
    pub(super) arguments: [u64; 6],
}

/// The next system call that waits. Blocks if there is none.
pub(super) fn next_notification(listener: BorrowedFd<'_>) -> Result<Notification> {
    // SAFETY: `seccomp_notif` is a plain C struct of integers; the kernel wants it to be zeros.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one struct, alive during the call.
    let result = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV as _,
            &raw mut notification,
        )
    };
    Errno::result(result)?;
    Ok(Notification {
        id: notification.id,
        pid: Pid::from_raw(notification.pid as libc::pid_t),
        call: notification.data.nr as u32,
        arguments: notification.data.args,
    })
}

/// Whether the process of a notification still waits: ENOENT if it doesn't.
pub(super) fn notification_is_valid(listener: BorrowedFd<'_>, id: u64) -> Result<()> {
    // SAFETY: the kernel reads one u64, alive during the call.
    let result = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id)
    };
    Errno::result(result).map(drop)
}

/// Ends a waiting system call with a value or an error.
pub(super) fn answer_notification(
    listener: BorrowedFd<'_>,
    id: u64,
    answer: Result<i64>,
) -> Result<()> {
    let (val, error) = answer.map_or_else(|errno| (0, -(errno as i32)), |value| (value, 0));
    respond(listener, libc::seccomp_notif_resp { id, val, error, flags: 0 })
}

/// Lets the kernel answer a waiting system call.
pub(super) fn pass_notification(listener: BorrowedFd<'_>, id: u64) -> Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    respond(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags })
}

fn respond(listener: BorrowedFd<'_>, answer: libc::seccomp_notif_resp) -> Result<()> {
    // SAFETY: the kernel reads one struct, alive during the call.
    let result = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const answer)
    };
    Errno::result(result).map(drop)
}

/// Lets a traced process that has stopped go on, with a signal or 0.
pub(super) fn resume(pid: Pid, signal: i32) -> Result<()> {
    // SAFETY: this request takes a number and touches no memory of ours.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_CONT,
            pid.as_raw(),
            std::ptr::null_mut::<libc::c_void>(),
            signal as usize as *mut libc::c_void,
        )
    };
    Errno::result(result).map(drop)
}

/// The time of day as the system call says it, in seconds and nanoseconds: what a filter answers,
/// too, and not only what the page shared with the kernel says.
pub(super) fn real_time() -> Result<(i64, i64)> {
    let mut time = [0i64; 2];
    // SAFETY: the kernel writes two 64-bit integers, on every architecture that srp builds on.
    let result =
        unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, time.as_mut_ptr()) };
    Errno::result(result)?;
    Ok((time[0], time[1]))
}

/// Sets a timer that has a descriptor: interval and expiry, each in seconds and nanoseconds. Returns
/// what it was set to.
pub(super) fn set_timer(
    timer: BorrowedFd<'_>,
    flags: libc::c_int,
    setting: [i64; 4],
) -> Result<[i64; 4]> {
    let time = |seconds, nanoseconds| libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let [interval, nanoseconds, expiry, more] = setting;
    let new =
        libc::itimerspec { it_interval: time(interval, nanoseconds), it_value: time(expiry, more) };
    let mut old = libc::itimerspec { it_interval: time(0, 0), it_value: time(0, 0) };
    // SAFETY: the kernel reads one struct and writes the other, both alive during the call.
    let result =
        unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &raw const new, &raw mut old) };
    Errno::result(result)?;
    let (interval, expiry) = (old.it_interval, old.it_value);
    Ok([interval.tv_sec, interval.tv_nsec, expiry.tv_sec, expiry.tv_nsec])
}

/// Two ends of a socket for messages, closed by `exec`.
pub(super) fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sets every signal's action to the default and unblocks all: both survive `exec` otherwise.
pub(super) fn reset_signals() -> Result<()> {
    // The C library hides two signals from its own `sigaction`; a parent may have ignored those,
    // too, so the kernel is asked directly. Zeros are its `struct sigaction` for "default action,
    // no flags, nothing blocked", on every architecture shorter than this.
    let default = [0u64; 8];
    let none = 0u64;
    let set_size: libc::c_ulong = 8;
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the kernel reads one struct and writes nothing.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                set_size,
            )
        })?;
    }
    // SAFETY: the kernel reads eight bytes and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            set_size,
        )
    };
    Errno::result(result).map(drop)
}

/// What a process does about a signal, as far as that survives `exec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    Default,
    Ignored,
    /// By code of this program.
    Handled,
}

/// What this process does about a signal.
pub(super) fn disposition(signal: Signal) -> Result<Disposition> {
    // SAFETY: `sigaction` is a plain C struct, for which all zeros is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and one struct is written, alive during the call.
    let result = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &raw mut action) };
    Errno::result(result)?;
    Ok(match action.sa_sigaction {
        libc::SIG_DFL => Disposition::Default,
        libc::SIG_IGN => Disposition::Ignored,
        _ => Disposition::Handled,
    })
}

/// Sets what this process does about a signal to the default or to nothing.
pub(super) fn set_disposition(signal: Signal, disposition: Disposition) -> Result<()> {
    let handler = match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignored => libc::SIG_IGN,
        Disposition::Handled => return Err(Errno::EINVAL),
    };
    // SAFETY: neither value makes the kernel call code of this process.
    let result = unsafe { libc::signal(signal as i32, handler) };
    if result == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}

/// Makes a terminal the controlling one of this session, which has none.
pub(super) fn control_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number.
    let result =
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0 as libc::c_int) };
    Errno::result(result).map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn loopback_up() -> Result<()> {
    // SAFETY: the arguments are plain numbers; the result is a new descriptor.
    let socket = unsafe {
        new_fd(libc::c_long::from(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        )))?
    };
    // SAFETY: `ifreq` is a plain C struct, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq with a NUL-terminated name.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    Errno::result(result).map(drop)
}

/// Names the host and NIS domain of this UTS namespace.
pub(super) fn set_host_names(host: &str, domain: &str) -> Result<()> {
    // SAFETY: pointer and length belong to one live string each.
    unsafe {
        Errno::result(libc::sethostname(host.as_ptr().cast(), host.len() as _))?;
        Errno::result(libc::setdomainname(domain.as_ptr().cast(), domain.len() as _)).map(drop)
    }
}

/// How a process that was waited for ended, and what it and all its descendants used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waited {
    pub(super) pid: Pid,
    pub(super) status: i32,
    pub(super) cpu_microseconds: u64,
    pub(super) largest_process_bytes: u64,
}

/// `wait4` without blocking, for `pid` or any child (`None`). `Ok(None)`: none has ended yet.
pub(super) fn wait_for(pid: Option<Pid>, block: bool) -> Result<Option<Waited>> {
    let mut status: libc::c_int = 0;
    // SAFETY: `rusage` is a plain C struct, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    let target = pid.map_or(-1, Pid::as_raw);
    // SAFETY: the kernel writes one int and one rusage, both alive during the call.
    let result = unsafe { libc::wait4(target, &raw mut status, flags, &raw mut usage) };
    match Errno::result(result)? {
        0 => Ok(None),
        pid => {
            let microseconds =
                |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
            Ok(Some(Waited {
                pid: Pid::from_raw(pid),
                status,
                cpu_microseconds: microseconds(usage.ru_utime) + microseconds(usage.ru_stime),
                largest_process_bytes: usage.ru_maxrss as u64 * 1024,
            }))
        }
    }
}

/// Kills the process behind a process descriptor.
pub(super) fn kill_process(pidfd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is open; a null siginfo means "as kill would".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0 as libc::c_uint,
        )
    };
    Errno::result(result).map(drop)
}

/// Sends one datagram with descriptors over a socket; never raises SIGPIPE.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// The most descriptors that one datagram carries (the kernel's SCM_MAX_FD).
pub(super) const MAX_FDS: usize = 253;

/// Receives one datagram with its descriptors. `None`: the other side is gone.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut io = [IoSliceMut::new(buffer)];
    let message = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut io,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = item {
            // SAFETY: the kernel just installed these descriptors for this process; nobody else
            // owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    match (message.bytes, cut) {
        (_, true) => Err(Errno::EMSGSIZE),
        (0, _) if fds.is_empty() => Ok(None),
        (bytes, _) => Ok(Some((bytes, fds))),
    }
}

/// A path or argument as a C string; an inner NUL is EINVAL, as the kernel would say.
pub(super) fn c_string(bytes: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// The descriptor that a system call returned.
///
/// # Safety
/// `result` is the return value of a call that, when it succeeds, makes a new descriptor.
unsafe fn new_fd(result: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: by this function's contract the descriptor is new and unowned.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
