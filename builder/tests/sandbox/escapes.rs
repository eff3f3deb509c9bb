//! Builds that try to get out, or to reach in.

use std::fs;
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};

use nix::libc;
use srp_builder::sandbox::{SandboxError, Status};

use super::fixture::Fixture;
use super::harness::{Test, tests};
use super::machine_code::{Call, DATA, Entry, write_program};
use super::processes::{eventually, processes_with};

pub(crate) const TESTS: &[Test] = tests![
    nothing_of_the_host_is_mounted,
    outputs_stay_where_they_are,
    init_cannot_be_touched,
    tools_of_escape_fail,
    system_calls_are_refused,
    other_abis_are_refused,
    sockets_lead_nowhere,
    layers_cannot_redirect_mounts,
    links_cannot_leave,
    crashes_do_not_reach_the_host,
    daemons_end_with_the_build,
    killing_srp_kills_the_build,
    killing_the_launcher_kills_the_build,
];

/// Nor is anything listed as mounted: a table of mounts says where the store is and on what, and
/// numbers what the kernel numbers as it goes.
fn nothing_of_the_host_is_mounted() {
    let fixture = Fixture::new();
    let tables = "/proc/mounts /proc/self/mounts /proc/self/mountinfo /proc/self/mountstats \
                  /proc/1/mounts /proc/1/mountinfo /proc/$$/task/$$/mountinfo";
    assert_eq!(fixture.sh(&format!("cat {tables}")), "");
    assert_eq!(fixture.sh("ls -A /"), "bin\ndev\nproc\nsrp\ntmp\nusr\n");
    assert_eq!(fixture.sh("ls -A /../../.."), "bin\ndev\nproc\nsrp\ntmp\nusr\n");
    fixture.sh("test $(stat -c %d:%i /) = $(stat -c %d:%i /..)");
    // Names of what is there are those inside.
    assert_eq!(
        fixture.sh(
            "cd /usr/share; pwd -P; readlink /proc/$$/root; readlink /proc/$$/cwd; cd /tmp; pwd -P"
        ),
        "/usr/share\n/\n/usr/share\n/tmp\n"
    );
    let host = fixture.directory.to_str().unwrap().to_owned();
    let told = fixture.sh("cat /proc/self/maps; ls -l /proc/self/fd /proc/self/exe /proc/self/ns");
    assert!(!told.contains(&host), "{told}");
}

/// `$out` is a mount, and what it lies in can't be written to: nothing can take its place.
fn outputs_stay_where_they_are() {
    let fixture = Fixture::new();
    for attempt in [
        "rmdir /srp/out/out",
        "mv /srp/out/out /srp/out/other",
        "ln -s / /srp/out/other",
        "mkdir /srp/out/other",
        "rmdir /srp/out/out && ln -s /tmp /srp/out/out",
        "touch /srp/out/x",
        "chmod 0 /srp/out",
        "touch -d 2001-01-01 /srp/out",
        "mv /srp/out /srp/elsewhere",
        "rmdir /srp/build",
    ] {
        fixture.sh(&format!("! {{ {attempt}; }} 2>/dev/null"));
    }
    fixture.sh("touch /srp/out/out/x; test -O /srp/out/out");
    assert!(fixture.directory.join("out/out/x").is_file());
}

fn init_cannot_be_touched() {
    let fixture = Fixture::new();
    fixture.sh("for it in root cwd exe fd environ mem maps; do \
           if ls /proc/1/$it/ >/dev/null 2>&1 || cat /proc/1/$it >/dev/null 2>&1 || \
              readlink /proc/1/$it; then echo reached $it; exit 1; fi; \
         done");
    fixture.sh("kill -KILL 1; kill -TERM 1; kill -STOP 1; sleep 0.1; true");
    fixture.sh("! echo 1000 > /proc/1/oom_score_adj 2>/dev/null");
    // Nor may a build change what of its own is for the machine to say: which process the kernel
    // kills first, and what its core handler gets.
    fixture.sh("for it in oom_score_adj coredump_filter comm timerslack_ns clear_refs mem; do \
           if echo 0 > /proc/self/$it; then echo wrote $it; exit 1; fi; \
         done 2>/dev/null; test $(cat /proc/self/oom_score_adj) = 500");
    fixture.sh("echo written > /dev/stdout; echo written > /proc/self/fd/1");
}

fn tools_of_escape_fail() {
    let fixture = Fixture::new();
    for attempt in [
        "mount -t tmpfs x /tmp",
        "mount -o bind / /tmp",
        "mount -o remount,rw /",
        "umount /proc",
        "umount /tmp",
        "unshare -U true",
        "unshare -r true",
        "unshare -m true",
        "unshare -n true",
        "nsenter -t 1 -m true",
        "chroot /srp/build /x",
        "pivot_root /tmp /tmp",
        "mknod /srp/build/disk b 8 0",
        "mknod /srp/build/whiteout c 0 0",
        "chmod u+s /srp/build/own",
        "chmod g+s /srp/build/own",
        "chown 0:0 /srp/build/own",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 99 > /proc/sys/user/max_user_namespaces",
        "echo srp2 > /proc/sys/kernel/hostname",
        "echo b > /proc/sysrq-trigger",
        "cat /proc/keys | grep .",
        "cat /proc/kmsg | grep .",
        "dmesg",
        "ls -A /proc/fs | grep .",
        "hostname other",
        "ifconfig lo 10.0.0.1",
        "ip link add type dummy",
        "ping -c 1 -W 1 8.8.8.8",
        "wget -T 2 -O - http://1.1.1.1/",
        "insmod /srp/build/own",
        "swapon /srp/build/own",
        "reboot -f",
        "renice -n -5 $$",
        "ls /sys/kernel",
    ] {
        let script = format!("touch /srp/build/own; {attempt}");
        let (outcome, log) = fixture.run(&fixture.plan(&script)).unwrap();
        assert_ne!(outcome.status, Status::Exited(0), "{attempt}: {log}");
        assert!(matches!(outcome.status, Status::Exited(_)), "{attempt}: {outcome:?}");
    }
    assert_eq!(fixture.sh("cat /proc/sys/user/max_user_namespaces"), "0\n");
}

/// Calls with what they must answer; native numbers of x86_64.
fn system_calls_are_refused() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("system calls by machine code", "the code is x86_64's");
        return;
    }
    let fixture = Fixture::new();
    let new_user = 0x1000_0000;
    let cases: &[(&str, Call, i32)] = &[
        ("getpid", (39, [0; 6]), 0),
        ("clone3", (435, [DATA, 88, 0, 0, 0, 0]), libc::ENOSYS),
        ("clone of a user namespace", (56, [new_user | 17, 0, 0, 0, 0, 0]), libc::EPERM),
        ("unshare of a user namespace", (272, [new_user, 0, 0, 0, 0, 0]), libc::EPERM),
        ("unshare of a time namespace", (272, [0x80, 0, 0, 0, 0, 0]), libc::EPERM),
        ("setns", (308, [0, 0, 0, 0, 0, 0]), libc::EPERM),
        ("ptrace of init", (101, [16, 1, 0, 0, 0, 0]), libc::EPERM),
        ("ptrace of itself", (101, [0, 0, 0, 0, 0, 0]), libc::EPERM),
        ("process_vm_readv of init", (310, [1, DATA, 1, DATA, 1, 0]), libc::EPERM),
        ("process_vm_writev of init", (311, [1, DATA, 1, DATA, 1, 0]), libc::EPERM),
        ("mount", (165, [DATA, DATA, DATA, 0, 0, 0]), libc::EPERM),
        ("open_tree", (428, [-100, DATA, 1, 0, 0, 0]), libc::EPERM),
        ("fsopen", (430, [DATA, 0, 0, 0, 0, 0]), libc::EPERM),
        ("mount_setattr", (442, [-100, DATA, 0, DATA, 32, 0]), libc::ENOSYS),
        ("openat2", (437, [-100, DATA, DATA, 24, 0, 0]), libc::ENOSYS),
        ("open_by_handle_at", (304, [-100, DATA, 0, 0, 0, 0]), libc::EPERM),
        ("keyctl", (250, [0, -3, 0, 0, 0, 0]), libc::ENOSYS),
        ("add_key", (248, [DATA, DATA, 0, 0, -4, 0]), libc::ENOSYS),
        ("bpf", (321, [0, DATA, 64, 0, 0, 0]), libc::EPERM),
        ("perf_event_open", (298, [DATA, 0, -1, -1, 0, 0]), libc::EPERM),
        ("userfaultfd", (323, [1, 0, 0, 0, 0, 0]), libc::ENOSYS),
        ("io_uring_setup", (425, [1, DATA, 0, 0, 0, 0]), libc::ENOSYS),
        ("kexec_load", (246, [0; 6]), libc::EPERM),
        ("init_module", (175, [DATA, 0, DATA, 0, 0, 0]), libc::EPERM),
        ("landlock, newer than the closed world", (444, [0, 0, 1, 0, 0, 0]), libc::ENOSYS),
        ("a socket to the hypervisor", (41, [40, 1, 0, 0, 0, 0]), libc::EAFNOSUPPORT),
        ("a socket to the kernel's ciphers", (41, [38, 5, 0, 0, 0, 0]), libc::EAFNOSUPPORT),
        ("a netfilter socket", (41, [16, 3, 12, 0, 0, 0]), libc::EPROTONOSUPPORT),
        ("typing into a terminal", (16, [0, 0x5412, DATA, 0, 0, 0]), libc::EPERM),
        ("a line discipline", (16, [0, 0x5423, DATA, 0, 0, 0]), libc::EPERM),
        ("READ_IMPLIES_EXEC", (135, [0x40_0000, 0, 0, 0, 0, 0]), libc::EPERM),
        ("a set-uid file", (257, [-100, DATA, 0o101, 0o4755, 0, 0]), libc::EPERM),
        ("a set-uid file by creat", (85, [DATA, 0o4755, 0, 0, 0, 0]), libc::EPERM),
        ("limits of init", (302, [1, 7, DATA, 0, 0, 0]), libc::EPERM),
        ("init's limits, asked for", (302, [1, 7, 0, DATA, 0, 0]), libc::EPERM),
        ("its own limits", (302, [0, 7, 0, DATA, 0, 0]), 0),
        ("the priority of init", (141, [0, 1, 19, 0, 0, 0]), libc::EPERM),
        ("the priority of all of a user", (141, [2, 0, 19, 0, 0, 0]), libc::EPERM),
        ("its own priority", (141, [0, 0, 19, 0, 0, 0]), 0),
        ("the disk priority of init", (251, [1, 1, 3 << 13, 0, 0, 0]), libc::EPERM),
        ("the disk priority of all of a user", (251, [3, 1000, 3 << 13, 0, 0, 0]), libc::EPERM),
        ("its own disk priority", (251, [1, 0, 3 << 13, 0, 0, 0]), 0),
        ("the processors of init", (203, [1, 8, DATA, 0, 0, 0]), libc::EPERM),
        ("how init is scheduled", (144, [1, 3, DATA + 16, 0, 0, 0]), libc::EPERM),
        ("how init is scheduled, otherwise", (314, [1, DATA, 0, 0, 0, 0]), libc::EPERM),
        ("how it is scheduled itself", (144, [0, 3, DATA + 16, 0, 0, 0]), 0),
        ("a lease", (72, [0, 1024, 0, 0, 0, 0]), libc::EINVAL),
        ("signals about a directory", (72, [0, 1026, 1, 0, 0, 0]), libc::EINVAL),
        ("an owner by path", (92, [DATA, 0, -1, 0, 0, 0]), libc::EPERM),
        ("a group by path", (92, [DATA, -1, 5, 0, 0, 0]), libc::EPERM),
        ("an owner by descriptor", (93, [0, 0, 0, 0, 0, 0]), libc::EPERM),
        ("an owner of a link", (94, [DATA, 1001, -1, 0, 0, 0]), libc::EPERM),
        ("an owner beneath", (260, [-100, DATA, 0, 0, 0, 0]), libc::EPERM),
        ("another user", (105, [0; 6]), libc::EPERM),
        ("another group", (106, [5, 0, 0, 0, 0, 0]), libc::EPERM),
        ("other users", (117, [1000, 1000, 0, 0, 0, 0]), libc::EPERM),
        ("other groups", (119, [-1, 0, -1, 0, 0, 0]), libc::EPERM),
        ("more groups", (116, [1, DATA, 0, 0, 0, 0]), libc::EPERM),
        ("its own user", (117, [1000, -1, 1000, 0, 0, 0]), 0),
        ("an extended attribute", (188, [DATA, DATA, DATA, 1, 0, 0]), libc::EOPNOTSUPP),
        ("a plain file", (257, [-100, DATA, 0o101, 0o755, 0, 0]), 0),
        ("chroot", (161, [DATA, 0, 0, 0, 0, 0]), libc::EPERM),
        ("the 32-bit number space of x32", (0x4000_0027, [0; 6]), libc::ENOSYS),
    ];
    for (name, call, errno) in cases {
        let program = fixture.directory.join("build/program");
        let _ = fs::remove_file(&program);
        write_program(&program, &[*call], b"file\0", Entry::Native); // the rest is zeros
        let mut plan = fixture.plan("");
        plan.command = vec!["/srp/build/program".into()];
        let (outcome, _) = fixture.run(&plan).unwrap();
        assert_eq!(outcome.status, Status::Exited(*errno), "{name}");
    }
    // Where the plan says so, and only there, a process may trace its own.
    let program = fixture.directory.join("build/program");
    fs::remove_file(&program).unwrap();
    write_program(&program, &[(101, [0; 6])], b"", Entry::Native);
    let mut plan = fixture.plan("");
    plan.command = vec!["/srp/build/program".into()];
    plan.debuggers = true;
    assert_eq!(fixture.run(&plan).unwrap().0.status, Status::Exited(0));
    fs::remove_file(&program).unwrap();
    write_program(&program, &[(101, [16, 1, 0, 0, 0, 0])], b"", Entry::Native);
    assert_eq!(fixture.run(&plan).unwrap().0.status, Status::Exited(libc::EPERM), "but not init");
}

fn other_abis_are_refused() {
    if !cfg!(target_arch = "x86_64") {
        super::skipped("32-bit system calls", "the code is x86's");
        return;
    }
    let fixture = Fixture::new();
    let program = fixture.directory.join("build/program");
    write_program(&program, &[(20, [0; 6])], b"", Entry::Interrupt80); // getpid of i386
    let mut plan = fixture.plan("");
    plan.command = vec!["/srp/build/program".into()];
    assert_eq!(fixture.run(&plan).unwrap().0.status, Status::Signaled(libc::SIGSYS));
    plan.abis.push(srp_builder::sandbox::Abi::I386);
    match fixture.run(&plan).unwrap().0.status {
        Status::Exited(0) => {}
        Status::Signaled(libc::SIGSEGV) => {
            super::skipped("admitting i386", "this kernel has no 32-bit system calls");
        }
        status => panic!("{status:?}"),
    }
}

fn sockets_lead_nowhere() {
    let fixture = Fixture::new();
    let name = format!("srp-test-{}", fixture.directory.display());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    fixture.sh(&format!("! nc -w 1 127.0.0.1 {port} </dev/null"));
    if !cfg!(target_arch = "x86_64") {
        super::skipped("connecting to an abstract socket", "the code is x86_64's");
        return;
    }
    let mut data = vec![1, 0, 0];
    data.extend(name.as_bytes());
    let length = i32::try_from(data.len()).unwrap();
    let program = fixture.directory.join("build/program");
    let calls = [(41, [1, 1, 0, 0, 0, 0]), (42, [3, DATA, length, 0, 0, 0])];
    write_program(&program, &calls, &data, Entry::Native);
    assert!(Command::new(&program).stdin(Stdio::null()).status().is_ok(), "the program runs");
    let mut plan = fixture.plan("");
    plan.command = vec!["/srp/build/program".into()];
    assert_eq!(fixture.run(&plan).unwrap().0.status, Status::Exited(libc::ECONNREFUSED));
}

fn layers_cannot_redirect_mounts() {
    let fixture = Fixture::new();
    for (link, target) in [("srp", "/etc"), ("srp/build", "/tmp"), ("proc", "/"), ("dev", "usr")] {
        let evil = fixture.directory.join("evil").join(link.replace('/', "-"));
        let place = evil.join(link);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(target, place).unwrap();
        let mut plan = fixture.plan("true");
        plan.layers.insert(0, evil);
        match fixture.run(&plan) {
            Err(SandboxError::Setup { errno, .. }) => {
                let expected = [nix::errno::Errno::ELOOP, nix::errno::Errno::ENOENT];
                assert!(expected.contains(&errno), "{link}: {errno}");
            }
            other => panic!("{link}: {other:?}"),
        }
    }
}

fn links_cannot_leave() {
    let fixture = Fixture::new();
    fixture.sh("! ln /usr/bin/busybox /srp/build/x 2>/dev/null");
    fixture.sh("touch /srp/build/a; ! ln /srp/build/a /srp/out/out/a 2>/dev/null");
    fixture.sh("ln -s /etc/passwd /srp/build/p; ! cat /srp/build/p 2>/dev/null");
    fixture.sh("ln -s /proc/1/root/etc/passwd /srp/build/q; ! cat /srp/build/q 2>/dev/null");
    fixture.sh("! cat /proc/self/root/etc/passwd 2>/dev/null");
}

/// A core size limit of 0 would still start the host's core handler, as root.
fn crashes_do_not_reach_the_host() {
    let fixture = Fixture::new();
    let limit = "grep 'Max core file size' /proc/self/limits | tr -s ' '";
    assert_eq!(fixture.sh(limit), "Max core file size 1 1 bytes \n");
    let lower = format!("ulimit -c 0; {limit}");
    assert_eq!(fixture.sh(&lower), "Max core file size 1 1 bytes \n");
    let crash = "sh -c 'kill -SEGV $$'; ls /srp/build";
    assert_eq!(fixture.sh(crash), "Segmentation fault\n");
}

fn daemons_end_with_the_build() {
    let fixture = Fixture::new();
    let marker = format!("86{}", std::process::id());
    let log = fixture.sh(&format!(
        "(setsid sleep {marker} &) ; (setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' &) ; \
         sleep 0.1; echo done"
    ));
    assert_eq!(log, "done\n");
    assert_eq!(processes_with(&marker), Vec::<u32>::new(), "run returned before they were gone");
}

fn killing_srp_kills_the_build() {
    let fixture = Fixture::new();
    let marker = format!("87{}", std::process::id());
    let script = format!(
        "(setsid sleep {marker} &); (trap '' TERM INT HUP; sleep {marker} & wait) & \
         echo started; sleep {marker}"
    );
    let mut srp = start_srp(&fixture, &script);
    assert!(eventually(|| processes_with(&marker).len() >= 3));
    srp.kill().unwrap();
    srp.wait().unwrap();
    assert!(eventually(|| processes_with(&marker).is_empty()), "processes outlived srp");
    assert!(eventually(|| children_named_launcher(srp.id()).is_empty()));
}

fn killing_the_launcher_kills_the_build() {
    let fixture = Fixture::new();
    let marker = format!("88{}", std::process::id());
    let mut srp = start_srp(&fixture, &format!("echo started; sleep {marker}"));
    assert!(eventually(|| !processes_with(&marker).is_empty()));
    let launchers = children_named_launcher(srp.id());
    assert_eq!(launchers.len(), 1);
    let launcher = nix::unistd::Pid::from_raw(i32::try_from(launchers[0]).unwrap());
    nix::sys::signal::kill(launcher, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(eventually(|| processes_with(&marker).is_empty()), "processes outlived the launcher");
    srp.wait().unwrap();
}

/// Another process that runs the script in a sandbox, after the script said "started".
fn start_srp(fixture: &Fixture, script: &str) -> std::process::Child {
    let file = fixture.directory.join("plan.json");
    fs::write(&file, serde_json::to_vec(&fixture.plan(script)).unwrap()).unwrap();
    let mut srp = Command::new(std::env::current_exe().unwrap())
        .arg("run")
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut started = [0; 8];
    srp.stdout.as_mut().unwrap().read_exact(&mut started).unwrap();
    assert_eq!(&started, b"started\n");
    srp
}

fn children_named_launcher(parent: u32) -> Vec<u32> {
    let line = format!("PPid:\t{parent}\n");
    let launchers = processes_with("__sandbox").into_iter().filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| text.contains(&line))
    });
    launchers.collect()
}
