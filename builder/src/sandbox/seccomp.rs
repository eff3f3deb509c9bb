//! Which system calls a build may make: one table, one filter section per ABI.
//!
//! The filter is a closed world. What Linux 5.11 knows is listed here or harmless; what came later
//! answers ENOSYS, so that a build sees the same kernel interface on every host, and a new system
//! call is never open by accident. Everything else about isolation (namespaces, capabilities,
//! mounts) is not this file's business: the filter is the second lock on each of those doors.
//!
//! Errors are those that an unprivileged process on a plain kernel would get: EPERM for what needs
//! privileges anyway, ENOSYS for optional features, so that programs take their usual fall-backs.

use nix::libc;
use serde::{Deserialize, Serialize};

use super::bpf::{Field, Instruction, Program, Test};

/// A system-call interface of the kernel: one machine can offer several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Abi {
    /// 64-bit x86. Its x32 variant shares the architecture number and is always refused.
    X86_64,
    /// 32-bit x86, on its own or on a 64-bit kernel.
    I386,
    /// 64-bit ARM.
    Aarch64,
}

impl Abi {
    /// The ABI of this program, always admitted.
    #[must_use]
    pub const fn native() -> Abi {
        #[cfg(target_arch = "x86_64")]
        return Abi::X86_64;
        #[cfg(target_arch = "aarch64")]
        return Abi::Aarch64;
    }

    /// The number by which seccomp names the ABI (`AUDIT_ARCH_*`).
    pub(super) fn architecture(self) -> u32 {
        match self {
            Abi::X86_64 => 0xC000_003E,
            Abi::I386 => 0x4000_0003,
            Abi::Aarch64 => 0xC000_00B7,
        }
    }

    fn number(self, call: &Call) -> Option<u32> {
        match self {
            Abi::X86_64 => call.x86_64,
            Abi::I386 => call.i386,
            Abi::Aarch64 => call.aarch64,
        }
    }
}

/// The last system call of Linux 5.11 (`epoll_pwait2`), the same number on every ABI.
const LAST_KNOWN: u32 = 441;
/// x32 calls carry this bit in their number.
const X32_BIT: u32 = 0x4000_0000;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// What is done about one system call.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// It fails with this errno.
    Fails(i32),
    /// Looking into another process: EPERM unless the plan allows debuggers.
    Debugs,
    /// EPERM when any of the bits is set in the argument.
    Flags { argument: u8, forbidden: u32 },
    /// The argument is a file mode: EPERM for set-uid and set-gid bits.
    Mode { argument: u8 },
    /// As `Mode`, but the mode counts only when the flags create a file.
    CreationMode { flags: u8, mode: u8 },
    /// As `Mode`; also EPERM for device nodes, among them overlay whiteouts, which need no
    /// privilege and would hide other objects' files.
    NodeMode { argument: u8 },
    /// Address families that a network namespace isolates; of IP only TCP and UDP, of netlink only
    /// routing (what `getifaddrs` asks): the rest is kernel surface that no build needs. AF_VSOCK
    /// would reach the hypervisor past the network namespace.
    Socket,
    /// Only local pairs.
    SocketPair,
    /// No pushing of characters into a terminal, no line disciplines, and of the 0x94 group (btrfs and generic) only
    /// reflinks: subvolumes would be directories that can't be walked or removed like others.
    DeviceControl,
    /// Setting the core size limit is answered with success and not done. The sandbox's is 1, the
    /// one value at which the kernel doesn't feed a crashed process to the host's core handler,
    /// which runs as root; 0 would.
    CoreLimit { new: Option<u8> },
    /// EPERM when the argument is the process id of init, which is the same user's: so it would be
    /// for a process of another user.
    NotInit { argument: u8 },
    /// As `NotInit`, of calls whose first argument says what the second numbers: `process`, or all
    /// processes of a `user`, which init is one of.
    Priority { process: u32, user: u32 },
    /// The arguments are ids of users or groups. The kernel answers EINVAL to those that a user
    /// namespace doesn't have, which no program expects: EPERM, as for any id but one's own.
    Identities { users: &'static [u8], groups: &'static [u8] },
    /// No leases and no signals about directories. EINVAL, as of a kernel without them: with a lease
    /// on a file a process lets others wait who open it.
    FileControl,
    /// Only personalities that keep memory protections: linux32, uname26, setarch -R, -L, -3.
    Personality,
}

struct Call {
    /// What the row is about; the tests look calls up by it.
    #[cfg_attr(not(test), allow(dead_code))]
    name: &'static str,
    x86_64: Option<u32>,
    i386: Option<u32>,
    aarch64: Option<u32>,
    rule: Rule,
}

const fn call(name: &'static str, numbers: [i32; 3], rule: Rule) -> Call {
    const fn known(number: i32) -> Option<u32> {
        if number < 0 { None } else { Some(number as u32) }
    }
    let [x86_64, i386, aarch64] = numbers;
    Call { name, x86_64: known(x86_64), i386: known(i386), aarch64: known(aarch64), rule }
}

const NEW_NAMESPACES: u32 = 0x7E02_0000;
const NEW_TIME_NAMESPACE: u32 = 0x80;
const RLIMIT_CORE: u32 = 4;
const EPERM: Rule = Rule::Fails(libc::EPERM);
const ENOSYS: Rule = Rule::Fails(libc::ENOSYS);

/// Every system call with a rule; numbers for x86_64, i386 and aarch64, -1 where there is none.
/// The ones that depend on arguments come first, in the order in which builds use them: the kernel
/// answers the others from a bitmap without running the filter.
const CALLS: &[Call] = &[
    call("openat", [257, 295, 56], Rule::CreationMode { flags: 2, mode: 3 }),
    call("open", [2, 5, -1], Rule::CreationMode { flags: 1, mode: 2 }),
    call("fcntl", [72, 55, 25], Rule::FileControl),
    call("fcntl64", [-1, 221, -1], Rule::FileControl),
    call("ioctl", [16, 54, 29], Rule::DeviceControl),
    // The flags of clone are its first argument on these three ABIs.
    call("clone", [56, 120, 220], Rule::Flags { argument: 0, forbidden: NEW_NAMESPACES }),
    call("chmod", [90, 15, -1], Rule::Mode { argument: 1 }),
    call("fchmod", [91, 94, 52], Rule::Mode { argument: 1 }),
    call("fchmodat", [268, 306, 53], Rule::Mode { argument: 2 }),
    call("creat", [85, 8, -1], Rule::Mode { argument: 1 }),
    call("mknod", [133, 14, -1], Rule::NodeMode { argument: 1 }),
    call("mknodat", [259, 297, 33], Rule::NodeMode { argument: 2 }),
    call("socket", [41, 359, 198], Rule::Socket),
    call("socketpair", [53, 360, 199], Rule::SocketPair),
    call("prlimit64", [302, 340, 261], Rule::CoreLimit { new: Some(2) }),
    call("setrlimit", [160, 75, 164], Rule::CoreLimit { new: None }),
    call("personality", [135, 136, 92], Rule::Personality),
    call(
        "unshare",
        [272, 310, 97],
        Rule::Flags { argument: 0, forbidden: NEW_NAMESPACES | NEW_TIME_NAMESPACE },
    ),
    call("chown", [92, 212, -1], Rule::Identities { users: &[1], groups: &[2] }),
    call("lchown", [94, 198, -1], Rule::Identities { users: &[1], groups: &[2] }),
    call("fchown", [93, 207, 55], Rule::Identities { users: &[1], groups: &[2] }),
    call("fchownat", [260, 298, 54], Rule::Identities { users: &[2], groups: &[3] }),
    call("setuid", [105, 213, 146], Rule::Identities { users: &[0], groups: &[] }),
    call("setreuid", [113, 203, 145], Rule::Identities { users: &[0, 1], groups: &[] }),
    call("setresuid", [117, 208, 147], Rule::Identities { users: &[0, 1, 2], groups: &[] }),
    call("setgid", [106, 214, 144], Rule::Identities { users: &[], groups: &[0] }),
    call("setregid", [114, 204, 143], Rule::Identities { users: &[], groups: &[0, 1] }),
    call("setresgid", [119, 210, 149], Rule::Identities { users: &[], groups: &[0, 1, 2] }),
    // What the same user may do to a process without tracing it.
    call("setpriority", [141, 97, 140], Rule::Priority { process: 0, user: 2 }),
    call("ioprio_set", [251, 289, 30], Rule::Priority { process: 1, user: 3 }),
    call("sched_setaffinity", [203, 241, 122], Rule::NotInit { argument: 0 }),
    call("sched_setscheduler", [144, 156, 119], Rule::NotInit { argument: 0 }),
    call("sched_setparam", [142, 154, 118], Rule::NotInit { argument: 0 }),
    call("sched_setattr", [314, 351, 274], Rule::NotInit { argument: 0 }),
    // Their arguments lie behind a pointer, where a filter can't look; programs fall back.
    call("clone3", [435, 435, 435], ENOSYS),
    call("openat2", [437, 437, 437], ENOSYS),
    call("socketcall", [-1, 102, -1], ENOSYS),
    // Namespaces and mounts.
    call("setns", [308, 346, 268], EPERM),
    call("mount", [165, 21, 40], EPERM),
    call("umount", [-1, 22, -1], EPERM),
    call("umount2", [166, 52, 39], EPERM),
    call("pivot_root", [155, 217, 41], EPERM),
    call("chroot", [161, 61, 51], EPERM),
    call("open_tree", [428, 428, 428], EPERM),
    call("move_mount", [429, 429, 429], EPERM),
    call("fsopen", [430, 430, 430], EPERM),
    call("fsconfig", [431, 431, 431], EPERM),
    call("fsmount", [432, 432, 432], EPERM),
    call("fspick", [433, 433, 433], EPERM),
    // Handles open files past every directory's permissions and mounts.
    call("name_to_handle_at", [303, 341, 264], Rule::Fails(libc::EOPNOTSUPP)),
    call("open_by_handle_at", [304, 342, 265], EPERM),
    // Extended attributes and ACLs: not every file system has them, outputs drop them, and
    // user.overlay.* would be read by an overlay.
    call("setxattr", [188, 226, 5], Rule::Fails(libc::EOPNOTSUPP)),
    call("lsetxattr", [189, 227, 6], Rule::Fails(libc::EOPNOTSUPP)),
    call("fsetxattr", [190, 228, 7], Rule::Fails(libc::EOPNOTSUPP)),
    // Other processes.
    call("ptrace", [101, 26, 117], Rule::Debugs),
    call("process_vm_readv", [310, 347, 270], Rule::Debugs),
    call("process_vm_writev", [311, 348, 271], Rule::Debugs),
    call("kcmp", [312, 349, 272], Rule::Debugs),
    call("pidfd_getfd", [438, 438, 438], Rule::Debugs),
    call("process_madvise", [440, 440, 440], EPERM),
    call("move_pages", [279, 317, 239], EPERM),
    call("migrate_pages", [256, 294, 238], EPERM),
    // Kernel facilities with a history of holes and no use in a build.
    call("add_key", [248, 286, 217], ENOSYS),
    call("request_key", [249, 287, 218], ENOSYS),
    call("keyctl", [250, 288, 219], ENOSYS),
    call("bpf", [321, 357, 280], EPERM),
    call("perf_event_open", [298, 336, 241], EPERM),
    call("userfaultfd", [323, 374, 282], ENOSYS),
    call("io_uring_setup", [425, 425, 425], ENOSYS),
    call("io_uring_enter", [426, 426, 426], ENOSYS),
    call("io_uring_register", [427, 427, 427], ENOSYS),
    // Its contexts are counted for the whole machine.
    call("io_setup", [206, 245, 0], ENOSYS),
    call("io_destroy", [207, 246, 1], ENOSYS),
    call("io_submit", [209, 248, 2], ENOSYS),
    call("io_cancel", [210, 249, 3], ENOSYS),
    call("io_getevents", [208, 247, 4], ENOSYS),
    call("io_pgetevents", [333, 385, 292], ENOSYS),
    call("fanotify_init", [300, 338, 262], EPERM),
    call("lookup_dcookie", [212, 253, 18], EPERM),
    call("modify_ldt", [154, 123, -1], ENOSYS),
    call("vm86", [-1, 166, -1], ENOSYS),
    call("vm86old", [-1, 113, -1], ENOSYS),
    call("uselib", [134, 86, -1], ENOSYS),
    call("_sysctl", [156, 149, -1], ENOSYS),
    call("nfsservctl", [180, 169, 42], ENOSYS),
    call("sysfs", [139, 135, -1], ENOSYS),
    call("ustat", [136, 62, -1], ENOSYS),
    // The machine.
    call("kexec_load", [246, 283, 104], EPERM),
    call("kexec_file_load", [320, -1, 294], EPERM),
    call("init_module", [175, 128, 105], EPERM),
    call("finit_module", [313, 350, 273], EPERM),
    call("delete_module", [176, 129, 106], EPERM),
    call("reboot", [169, 88, 142], EPERM),
    call("swapon", [167, 87, 224], EPERM),
    call("swapoff", [168, 115, 225], EPERM),
    call("acct", [163, 51, 89], EPERM),
    call("quotactl", [179, 131, 60], EPERM),
    call("syslog", [103, 103, 116], EPERM),
    call("vhangup", [153, 111, 58], EPERM),
    call("iopl", [172, 110, -1], EPERM),
    call("ioperm", [173, 101, -1], EPERM),
];

/// The filter that admits the native ABI and `also`; a process that makes a system call of any
/// other ABI is killed by SIGSYS. `owner`: the sandbox's user and group, as inside.
pub(super) fn filter(also: &[Abi], debuggers: bool, owner: (u32, u32)) -> Vec<Instruction> {
    let mut abis = vec![Abi::native()];
    abis.extend(also.iter().filter(|abi| **abi != Abi::native()));
    let mut program = Program::default();
    program.load(Field::Architecture);
    for abi in abis {
        program.when(Test::Equal(abi.architecture()), |section| {
            abi_section(section, abi, debuggers, owner);
        });
    }
    program.answer(KILL);
    program.finish()
}

fn abi_section(program: &mut Program, abi: Abi, debuggers: bool, owner: (u32, u32)) {
    program.load(Field::Number);
    if abi == Abi::X86_64 {
        program.when(Test::AtLeast(X32_BIT), |p| {
            p.answer(errno(libc::ENOSYS));
        });
    }
    program.when(Test::AtLeast(LAST_KNOWN + 1), |p| {
        p.answer(errno(libc::ENOSYS));
    });
    for call in CALLS {
        let Some(number) = abi.number(call) else { continue };
        if debuggers && matches!(call.rule, Rule::Debugs) {
            continue;
        }
        program.when(Test::Equal(number), |p| rule_section(p, call.rule, owner));
    }
    program.answer(ALLOW);
}

fn rule_section(program: &mut Program, rule: Rule, owner: (u32, u32)) {
    const INIT: u32 = 1;
    const SET_ID_BITS: u32 = 0o6000;
    const CREATES: u32 = 0o100 | 0o20_000_000; // O_CREAT, __O_TMPFILE: the same on these ABIs
    let refuse = |number| move |p: &mut Program| p.answer(errno(number));
    match rule {
        Rule::Fails(number) => {
            program.answer(errno(number));
            return;
        }
        Rule::Debugs => {
            program.answer(errno(libc::EPERM));
            return;
        }
        Rule::Flags { argument, forbidden } => {
            program.load(Field::Argument(argument));
            program.when(Test::AnyBitOf(forbidden), refuse(libc::EPERM));
        }
        Rule::Mode { argument } => {
            program.load(Field::Argument(argument));
            program.when(Test::AnyBitOf(SET_ID_BITS), refuse(libc::EPERM));
        }
        Rule::CreationMode { flags, mode } => {
            program.load(Field::Argument(flags));
            program.when(Test::AnyBitOf(CREATES), |p| {
                p.load(Field::Argument(mode));
                p.when(Test::AnyBitOf(SET_ID_BITS), refuse(libc::EPERM));
            });
        }
        Rule::NodeMode { argument } => {
            program.load(Field::Argument(argument));
            program.when(Test::AnyBitOf(SET_ID_BITS), refuse(libc::EPERM));
            program.and(libc::S_IFMT);
            program.when(Test::Equal(libc::S_IFCHR), refuse(libc::EPERM));
            program.when(Test::Equal(libc::S_IFBLK), refuse(libc::EPERM));
        }
        Rule::Socket => socket_section(program),
        Rule::SocketPair => {
            program.load(Field::Argument(0));
            program.unless(Test::Equal(libc::AF_UNIX as u32), refuse(libc::EOPNOTSUPP));
        }
        Rule::DeviceControl => {
            const TIOCSETD: u32 = 0x5423;
            const FICLONE: u32 = 0x4004_9409;
            const FICLONERANGE: u32 = 0x4020_940D;
            const FIDEDUPERANGE: u32 = 0xC018_9436;
            program.load(Field::Argument(1));
            for command in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32, TIOCSETD] {
                program.when(Test::Equal(command), refuse(libc::EPERM));
            }
            // What no tree holds (inode flags), and what the machine's file system is called.
            for command in FILE_ATTRIBUTES {
                program.when(Test::Equal(*command), refuse(libc::ENOTTY));
            }
            for reflink in [FICLONE, FICLONERANGE, FIDEDUPERANGE] {
                program.when(Test::Equal(reflink), |p| p.answer(ALLOW));
            }
            program.and(0xFF00);
            program.when(Test::Equal(0x9400), refuse(libc::ENOTTY));
        }
        Rule::CoreLimit { new } => {
            const DONE: u32 = errno(0);
            if new.is_some() {
                program.load(Field::Argument(0));
                program.when(Test::Equal(INIT), refuse(libc::EPERM));
            }
            program.load(Field::Argument(1 - u8::from(new.is_none())));
            program.when(Test::Equal(RLIMIT_CORE), |p| match new {
                None => p.answer(DONE),
                Some(pointer) => {
                    // A null pointer only asks.
                    for half in [Field::Argument(pointer), Field::HighArgument(pointer)] {
                        p.load(half);
                        p.unless(Test::Equal(0), |p| p.answer(DONE));
                    }
                }
            });
        }
        Rule::NotInit { argument } => {
            program.load(Field::Argument(argument));
            program.when(Test::Equal(INIT), refuse(libc::EPERM));
        }
        Rule::Priority { process, user } => {
            program.load(Field::Argument(0));
            program.when(Test::Equal(user), refuse(libc::EPERM));
            program.when(Test::Equal(process), |p| {
                p.load(Field::Argument(1));
                p.when(Test::Equal(INIT), refuse(libc::EPERM));
            });
        }
        Rule::Identities { users, groups } => {
            for (arguments, own) in [(users, owner.0), (groups, owner.1)] {
                for argument in arguments {
                    program.load(Field::Argument(*argument));
                    program.unless(Test::Equal(own), |p| {
                        p.unless(Test::Equal(u32::MAX), refuse(libc::EPERM)); // "as it is"
                    });
                }
            }
        }
        Rule::FileControl => {
            program.load(Field::Argument(1));
            for command in [libc::F_SETLEASE, libc::F_NOTIFY] {
                program.when(Test::Equal(command as u32), refuse(libc::EINVAL));
            }
        }
        Rule::Personality => {
            const HARMLESS: u32 = 0x0008 | 0x2_0000 | 0x4_0000 | 0x20_0000 | 0x800_0000;
            program.load(Field::Argument(0));
            program.when(Test::Equal(u32::MAX), |p| p.answer(ALLOW));
            program.when(Test::AnyBitOf(!HARMLESS), refuse(libc::EPERM));
        }
    }
    program.answer(ALLOW);
}

/// FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, both as 32-bit programs call them, FS_IOC_GETVERSION and
/// FS_IOC_SETVERSION (the generation of an inode) likewise, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR,
/// FS_IOC_GETFSUUID and FS_IOC_GETFSSYSFSPATH.
///
/// Reading, too: what is read is the host's file system (`extents`, `nocow`), and who copies a file
/// with what it read (bsdcpio) takes it for a failure that it can't be set.
const FILE_ATTRIBUTES: &[u32] = &[
    0x8008_6601,
    0x4008_6602,
    0x8004_6601,
    0x4004_6602,
    0x8008_7601,
    0x4008_7602,
    0x8004_7601,
    0x4004_7602,
    0x801C_581F,
    0x401C_5820,
    0x8011_1500,
    0x8081_1501,
];

fn socket_section(program: &mut Program) {
    const TYPE_MASK: u32 = 0xF; // above it lie SOCK_NONBLOCK and SOCK_CLOEXEC
    let allow = |p: &mut Program| p.answer(ALLOW);
    program.load(Field::Argument(0));
    program.when(Test::Equal(libc::AF_UNIX as u32), allow);
    for family in [libc::AF_INET, libc::AF_INET6] {
        program.when(Test::Equal(family as u32), |p| {
            p.load(Field::Argument(1)).and(TYPE_MASK);
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                p.when(Test::Equal(kind as u32), |p| {
                    p.load(Field::Argument(2));
                    for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
                        p.when(Test::Equal(protocol as u32), allow);
                    }
                    p.answer(errno(libc::EPROTONOSUPPORT));
                });
            }
            p.answer(errno(libc::EPERM)); // raw sockets, as without the capability
        });
    }
    program.when(Test::Equal(libc::AF_NETLINK as u32), |p| {
        p.load(Field::Argument(2));
        p.when(Test::Equal(libc::NETLINK_ROUTE as u32), allow);
        p.answer(errno(libc::EPROTONOSUPPORT));
    });
    program.answer(errno(libc::EAFNOSUPPORT));
}

#[cfg(test)]
mod tests {
    use super::super::bpf::interpret;
    use super::*;

    const OWNER: (u32, u32) = (1000, 100);
    const ALL: [Abi; 3] = [Abi::X86_64, Abi::I386, Abi::Aarch64];

    fn ask(abi: Abi, name: &str, arguments: [u64; 6]) -> u32 {
        let call = CALLS.iter().find(|call| call.name == name).expect("a call of the table");
        let number = abi.number(call).expect("a call of this ABI");
        interpret(&filter(&ALL, false, OWNER), abi.architecture(), number, arguments)
    }

    fn on_all(name: &str, arguments: [u64; 6], expected: u32) {
        for abi in ALL {
            let call = CALLS.iter().find(|call| call.name == name).expect("a call of the table");
            if abi.number(call).is_some() {
                assert_eq!(ask(abi, name, arguments), expected, "{name}{arguments:x?} on {abi:?}");
            }
        }
    }

    #[test]
    fn native_numbers_agree_with_the_c_library() {
        let known = [
            ("openat", libc::SYS_openat),
            ("fcntl", libc::SYS_fcntl),
            ("fchown", libc::SYS_fchown),
            ("fchownat", libc::SYS_fchownat),
            ("setuid", libc::SYS_setuid),
            ("setreuid", libc::SYS_setreuid),
            ("setresuid", libc::SYS_setresuid),
            ("setgid", libc::SYS_setgid),
            ("setregid", libc::SYS_setregid),
            ("setresgid", libc::SYS_setresgid),
            ("setpriority", libc::SYS_setpriority),
            ("ioprio_set", libc::SYS_ioprio_set),
            ("sched_setaffinity", libc::SYS_sched_setaffinity),
            ("sched_setscheduler", libc::SYS_sched_setscheduler),
            ("sched_setparam", libc::SYS_sched_setparam),
            ("sched_setattr", libc::SYS_sched_setattr),
            ("ioctl", libc::SYS_ioctl),
            ("clone", libc::SYS_clone),
            ("fchmod", libc::SYS_fchmod),
            ("fchmodat", libc::SYS_fchmodat),
            ("mknodat", libc::SYS_mknodat),
            ("socket", libc::SYS_socket),
            ("socketpair", libc::SYS_socketpair),
            ("personality", libc::SYS_personality),
            ("unshare", libc::SYS_unshare),
            ("prlimit64", libc::SYS_prlimit64),
            ("setrlimit", libc::SYS_setrlimit),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("setns", libc::SYS_setns),
            ("mount", libc::SYS_mount),
            ("umount2", libc::SYS_umount2),
            ("pivot_root", libc::SYS_pivot_root),
            ("chroot", libc::SYS_chroot),
            ("open_tree", libc::SYS_open_tree),
            ("move_mount", libc::SYS_move_mount),
            ("fsopen", libc::SYS_fsopen),
            ("fsconfig", libc::SYS_fsconfig),
            ("fsmount", libc::SYS_fsmount),
            ("fspick", libc::SYS_fspick),
            ("name_to_handle_at", libc::SYS_name_to_handle_at),
            ("open_by_handle_at", libc::SYS_open_by_handle_at),
            ("setxattr", libc::SYS_setxattr),
            ("lsetxattr", libc::SYS_lsetxattr),
            ("fsetxattr", libc::SYS_fsetxattr),
            ("ptrace", libc::SYS_ptrace),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("process_vm_writev", libc::SYS_process_vm_writev),
            ("kcmp", libc::SYS_kcmp),
            ("pidfd_getfd", libc::SYS_pidfd_getfd),
            ("process_madvise", libc::SYS_process_madvise),
            ("move_pages", libc::SYS_move_pages),
            ("migrate_pages", libc::SYS_migrate_pages),
            ("add_key", libc::SYS_add_key),
            ("request_key", libc::SYS_request_key),
            ("keyctl", libc::SYS_keyctl),
            ("bpf", libc::SYS_bpf),
            ("perf_event_open", libc::SYS_perf_event_open),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("io_uring_enter", libc::SYS_io_uring_enter),
            ("io_uring_register", libc::SYS_io_uring_register),
            ("io_setup", libc::SYS_io_setup),
            ("io_destroy", libc::SYS_io_destroy),
            ("io_submit", libc::SYS_io_submit),
            ("io_cancel", libc::SYS_io_cancel),
            ("io_getevents", libc::SYS_io_getevents),
            ("fanotify_init", libc::SYS_fanotify_init),
            ("kexec_load", libc::SYS_kexec_load),
            ("kexec_file_load", libc::SYS_kexec_file_load),
            ("init_module", libc::SYS_init_module),
            ("finit_module", libc::SYS_finit_module),
            ("delete_module", libc::SYS_delete_module),
            ("reboot", libc::SYS_reboot),
            ("swapon", libc::SYS_swapon),
            ("swapoff", libc::SYS_swapoff),
            ("acct", libc::SYS_acct),
            ("quotactl", libc::SYS_quotactl),
            ("syslog", libc::SYS_syslog),
            ("vhangup", libc::SYS_vhangup),
        ];
        for (name, number) in known {
            let call = CALLS.iter().find(|call| call.name == name).expect("a call of the table");
            assert_eq!(Abi::native().number(call), u32::try_from(number).ok(), "{name}");
        }
    }

    #[test]
    fn no_number_appears_twice() {
        for abi in ALL {
            let mut numbers: Vec<_> = CALLS.iter().filter_map(|call| abi.number(call)).collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{abi:?}");
        }
    }

    #[test]
    fn namespaces_are_refused_and_threads_are_not() {
        for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000] {
            on_all("clone", [flag | 17, 0, 0, 0, 0, 0], errno(libc::EPERM));
            on_all("unshare", [flag, 0, 0, 0, 0, 0], errno(libc::EPERM));
        }
        on_all("unshare", [0x80, 0, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("unshare", [0x400, 0, 0, 0, 0, 0], ALLOW); // CLONE_FILES
        on_all("clone", [0x3D_0F00, 0, 0, 0, 0, 0], ALLOW); // pthread_create
        on_all("clone", [0x4000 | 0x100 | 17, 0, 0, 0, 0, 0], ALLOW); // posix_spawn
        on_all("clone3", [0; 6], errno(libc::ENOSYS));
    }

    #[test]
    fn newer_calls_and_the_x32_abi_do_not_exist() {
        let program = filter(&ALL, false, OWNER);
        for abi in ALL {
            for number in [442, 449, 452, 462, 500, 0x3FFF_FFFF] {
                let answer = interpret(&program, abi.architecture(), number, [0; 6]);
                assert_eq!(answer, errno(libc::ENOSYS), "{number} on {abi:?}");
            }
            assert_eq!(interpret(&program, abi.architecture(), 441, [0; 6]), ALLOW);
        }
        for number in [X32_BIT, X32_BIT | 39, X32_BIT | 520, u32::MAX] {
            let answer = interpret(&program, Abi::X86_64.architecture(), number, [0; 6]);
            assert_eq!(answer, errno(libc::ENOSYS));
        }
    }

    #[test]
    fn an_abi_that_the_plan_does_not_admit_kills() {
        let program = filter(&[], false, OWNER);
        for abi in ALL.into_iter().filter(|abi| *abi != Abi::native()) {
            assert_eq!(interpret(&program, abi.architecture(), 20, [0; 6]), KILL);
        }
        assert_eq!(interpret(&program, 0x4000_0028, 20, [0; 6]), KILL); // 32-bit ARM
        assert_eq!(interpret(&program, 0, 20, [0; 6]), KILL);
    }

    #[test]
    fn set_id_bits_and_devices_cannot_be_made() {
        on_all("chmod", [0, 0o4755, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("fchmod", [3, 0o2755, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("fchmodat", [0, 0, 0o6755, 0, 0, 0], errno(libc::EPERM));
        on_all("fchmodat", [0, 0o4755, 0o1777, 0, 0, 0], ALLOW);
        on_all("openat", [0, 0, 0o101, 0o4755, 0, 0], errno(libc::EPERM));
        on_all("openat", [0, 0, 0o20_200_001, 0o4755, 0, 0], errno(libc::EPERM)); // O_TMPFILE
        on_all("openat", [0, 0, 0, 0o4755, 0, 0], ALLOW); // the mode of a plain open is noise
        on_all("openat", [0, 0, 0o101, 0o755, 0, 0], ALLOW);
        on_all("mknodat", [0, 0, 0o020_644, 0, 0, 0], errno(libc::EPERM)); // a whiteout
        on_all("mknodat", [0, 0, 0o060_644, 0x103, 0, 0], errno(libc::EPERM));
        on_all("mknodat", [0, 0, 0o010_644, 0, 0, 0], ALLOW); // a fifo
        on_all("mknodat", [0, 0, 0o104_755, 0, 0, 0], errno(libc::EPERM));
    }

    #[test]
    fn sockets_stay_within_the_network_namespace() {
        let socket = |family: i32, kind: u64, protocol: u64, expected: u32| {
            on_all("socket", [family as u64, kind, protocol, 0, 0, 0], expected);
        };
        socket(libc::AF_UNIX, 1, 0, ALLOW);
        socket(libc::AF_INET, 1 | 0o2_000_000, 6, ALLOW);
        socket(libc::AF_INET6, 2, 17, ALLOW);
        socket(libc::AF_INET, 1, 262, errno(libc::EPROTONOSUPPORT)); // MPTCP
        socket(libc::AF_INET, 1, 132, errno(libc::EPROTONOSUPPORT)); // SCTP
        socket(libc::AF_INET, 3, 0, errno(libc::EPERM)); // raw
        socket(libc::AF_NETLINK, 3, 0, ALLOW);
        socket(libc::AF_NETLINK, 3, 12, errno(libc::EPROTONOSUPPORT)); // netfilter
        for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET, libc::AF_TIPC, libc::AF_XDP] {
            socket(family, 1, 0, errno(libc::EAFNOSUPPORT));
        }
        on_all("socketpair", [1, 1, 0, 0, 0, 0], ALLOW);
        on_all("socketpair", [30, 1, 0, 0, 0, 0], errno(libc::EOPNOTSUPP));
    }

    #[test]
    fn terminals_are_not_typed_into() {
        on_all("ioctl", [0, 0x5412, 0, 0, 0, 0], errno(libc::EPERM));
        // The kernel ignores the high half of the command, so must the filter.
        on_all("ioctl", [0, 0x1_0000_5412, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("ioctl", [0, 0x5423, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("ioctl", [0, 0x541C, 0, 0, 0, 0], errno(libc::EPERM));
        on_all("ioctl", [0, 0x4008_6602, 0, 0, 0, 0], errno(libc::ENOTTY)); // FS_IOC_SETFLAGS
        on_all("ioctl", [0, 0x8008_6601, 0, 0, 0, 0], errno(libc::ENOTTY)); // FS_IOC_GETFLAGS
        on_all("ioctl", [0, 0x5401, 0, 0, 0, 0], ALLOW); // TCGETS
        on_all("ioctl", [0, 0x4004_9409, 0, 0, 0, 0], ALLOW); // FICLONE
        on_all("ioctl", [0, 0x5000_940E, 0, 0, 0, 0], errno(libc::ENOTTY)); // BTRFS_IOC_SUBVOL_CREATE
    }

    #[test]
    fn the_core_limit_stays() {
        let (done, core) = (errno(0), u64::from(RLIMIT_CORE));
        on_all("setrlimit", [core, 0x1000, 0, 0, 0, 0], done);
        on_all("setrlimit", [3, 0x1000, 0, 0, 0, 0], ALLOW);
        on_all("prlimit64", [0, core, 0x1000, 0, 0, 0], done);
        on_all("prlimit64", [0, core, 0x7000_0000_0000, 0, 0, 0], done);
        on_all("prlimit64", [0, core, 0, 0x1000, 0, 0], ALLOW); // a question
        on_all("prlimit64", [0, 3, 0x1000, 0, 0, 0], ALLOW);
    }

    #[test]
    fn init_is_nobodys_to_change() {
        let refused = errno(libc::EPERM);
        let no_pid = 1 << 32; // the kernel ignores the high half
        for name in ["sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"] {
            on_all(name, [1, 0, 0, 0, 0, 0], refused);
            on_all(name, [no_pid | 1, 0, 0, 0, 0, 0], refused);
            on_all(name, [0, 1, 1, 0, 0, 0], ALLOW);
            on_all(name, [2, 1, 1, 0, 0, 0], ALLOW);
        }
        on_all("prlimit64", [1, 3, 0x1000, 0, 0, 0], refused);
        on_all("prlimit64", [1, u64::from(RLIMIT_CORE), 0x1000, 0, 0, 0], refused);
        for (name, process) in [("setpriority", 0), ("ioprio_set", 1)] {
            on_all(name, [process, 1, 10, 0, 0, 0], refused);
            on_all(name, [process, 0, 10, 0, 0, 0], ALLOW);
            on_all(name, [process + 1, 0, 10, 0, 0, 0], ALLOW); // a process group
            on_all(name, [process + 2, 0, 10, 0, 0, 0], refused); // all of a user
            on_all(name, [process + 2, 1000, 10, 0, 0, 0], refused);
        }
    }

    #[test]
    fn other_identities_are_refused_and_not_unknown() {
        let (user, group) = (u64::from(OWNER.0), u64::from(OWNER.1));
        let as_it_is = u64::from(u32::MAX);
        let refused = errno(libc::EPERM);
        for (name, first) in [("chown", 1), ("lchown", 1), ("fchown", 1), ("fchownat", 2)] {
            let with = |user, group, expected| {
                let mut arguments = [0; 6];
                arguments[first..first + 2].copy_from_slice(&[user, group]);
                on_all(name, arguments, expected);
            };
            with(0, as_it_is, refused);
            with(as_it_is, 0, refused);
            with(user, 0, refused);
            with(group, user, refused);
            with(user, group, ALLOW);
            with(as_it_is, as_it_is, ALLOW);
        }
        for (name, own) in [("setuid", user), ("setgid", group)] {
            on_all(name, [0; 6], refused);
            on_all(name, [own, 0, 0, 0, 0, 0], ALLOW);
        }
        on_all("setresuid", [as_it_is, as_it_is, user, 0, 0, 0], ALLOW);
        on_all("setresuid", [user, user, 0, 0, 0, 0], refused);
        on_all("setregid", [as_it_is, 5, 0, 0, 0, 0], refused);
    }

    #[test]
    fn leases_and_signals_about_directories_do_not_exist() {
        on_all("fcntl", [3, 1024, 1, 0, 0, 0], errno(libc::EINVAL)); // F_SETLEASE
        on_all("fcntl", [3, 1026, 1, 0, 0, 0], errno(libc::EINVAL)); // F_NOTIFY
        on_all("fcntl", [3, 1, 0, 0, 0, 0], ALLOW); // F_GETFD
        on_all("fcntl", [3, 1025, 0, 0, 0, 0], ALLOW); // F_GETLEASE
        on_all("fcntl", [3, 1030, 0, 0, 0, 0], ALLOW); // F_DUPFD_CLOEXEC
    }

    #[test]
    fn personalities_keep_memory_protections() {
        on_all("personality", [0xFFFF_FFFF, 0, 0, 0, 0, 0], ALLOW);
        on_all("personality", [0, 0, 0, 0, 0, 0], ALLOW);
        on_all("personality", [8, 0, 0, 0, 0, 0], ALLOW);
        on_all("personality", [0x4_0000, 0, 0, 0, 0, 0], ALLOW);
        on_all("personality", [0x40_0000, 0, 0, 0, 0, 0], errno(libc::EPERM)); // READ_IMPLIES_EXEC
        on_all("personality", [0x10_0000, 0, 0, 0, 0, 0], errno(libc::EPERM)); // MMAP_PAGE_ZERO
    }

    #[test]
    fn debuggers_only_where_the_plan_says_so() {
        let number = |name| {
            let call = CALLS.iter().find(|call| call.name == name).expect("a call of the table");
            Abi::native().number(call).expect("every ABI has it")
        };
        let arch = Abi::native().architecture();
        for name in ["ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"] {
            let closed = interpret(&filter(&[], false, OWNER), arch, number(name), [0; 6]);
            assert_eq!(closed, errno(libc::EPERM));
            assert_eq!(interpret(&filter(&[], true, OWNER), arch, number(name), [0; 6]), ALLOW);
        }
        assert_eq!(
            interpret(&filter(&[], true, OWNER), arch, number("mount"), [0; 6]),
            errno(libc::EPERM)
        );
    }
}
