//! What a build finds in its sandbox.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{getegid, geteuid};
use srp_builder::CancelToken;
use srp_builder::sandbox::{Bind, BinfmtHandler, RootMode, SandboxError, Status, Stdio};

use super::fixture::{Fixture, foreign_busybox, qemu};
use super::harness::{Test, tests};
use super::processes::eventually;

pub(crate) const TESTS: &[Test] = tests![
    commands_exit_and_die,
    identity_is_fixed,
    nothing_is_inherited,
    the_root_is_read_only,
    what_is_built_belongs_to_the_caller,
    shells_write_to_memory,
    sysroots_are_composed,
    files_can_be_bound,
    many_layers_are_composed,
    a_plan_without_layers_is_a_skeleton,
    terminals_are_for_shells,
    foreign_programs_run_by_their_handler_only,
    errors_name_the_step,
    one_launcher_serves_many_threads,
    a_launcher_that_died_is_replaced,
];

fn commands_exit_and_die() {
    let fixture = Fixture::new();
    let status = |script| fixture.run(&fixture.plan(script)).unwrap().0.status;
    assert_eq!(status("exit 0"), Status::Exited(0));
    assert_eq!(status("exit 42"), Status::Exited(42));
    assert_eq!(status("kill -SEGV $$"), Status::Signaled(11));
    assert_eq!(status("kill -KILL $$"), Status::Signaled(9));
    let (outcome, log) = fixture.run(&fixture.plan("echo out; echo err >&2; cat")).unwrap();
    assert_eq!((outcome.status, log.as_str()), (Status::Exited(0), "out\nerr\n"));
    assert_eq!(outcome.log_bytes, 8);
    assert_eq!(outcome.isolation.idmapped, geteuid().is_root());
    let mut plan = fixture.plan("");
    plan.command = vec!["echo".into(), "by PATH".into()];
    assert_eq!(fixture.run(&plan).unwrap().1, "by PATH\n");
}

fn identity_is_fixed() {
    let fixture = Fixture::new();
    // `ps` lists its title, init, the shell and itself; in a pipe, what it
    // feeds may or may not have begun.
    let mut plan = fixture.plan(
        "id -u; id -g; hostname; umask; pwd; ulimit -n; ulimit -c; ulimit -s; env | sort; \
         ifconfig lo | grep -c UP; ps > /tmp/ps; wc -l < /tmp/ps; \
         cat /proc/1/cmdline | tr '\\0' ' '; echo; \
         cat /proc/self/oom_score_adj; \
         grep -E '^(CapPrm|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status",
    );
    plan.env.insert("A".into(), "b c".into());
    let expected = "1000\n1000\nsrp\n0022\n/srp/build\n4096\n0\n8192\nA=b c\nPATH=/usr/bin\n\
                    PWD=/srp/build\nSHLVL=1\n1\n4\nsrp __sandbox \n500\n\
                    CapPrm:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                    CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    assert_eq!(fixture.run(&plan).unwrap().1, expected);
    // Without a shell, which has signal actions of its own.
    let words = ["grep", "-E", "^Sig(Blk|Ign|Cgt|Pnd):", "/proc/self/status"];
    plan.command = words.map(str::to_owned).to_vec();
    let none = "0000000000000000";
    assert_eq!(
        fixture.run(&plan).unwrap().1,
        format!("SigPnd:\t{none}\nSigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")
    );
}

fn nothing_is_inherited() {
    // Without close-on-exec, as careless parents leave them.
    let secret = tempfile::tempfile().unwrap();
    let leaks: Vec<_> = (0..20).map(|_| nix::unistd::dup(&secret).unwrap()).collect();
    let fixture = Fixture::new();
    // ls itself opens the directory as descriptor 3.
    assert_eq!(fixture.sh("ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(fixture.sh("readlink /proc/self/fd/0"), "/dev/null\n");
    drop(leaks);
}

fn the_root_is_read_only() {
    let fixture = Fixture::new();
    for place in ["/x", "/usr/x", "/usr/bin/x", "/dev/x", "/srp/x", "/proc/x"] {
        let (outcome, log) = fixture.run(&fixture.plan(&format!("echo > {place}"))).unwrap();
        assert_ne!(outcome.status, Status::Exited(0), "{place}: {log}");
    }
    fixture.sh("echo > /srp/build/x; echo > /srp/out/out/x; echo > /tmp/x; echo > /dev/shm/x");
    fixture.sh("! rm /usr/bin/sh && ! chmod 777 /usr/bin/busybox && ! touch /usr/bin/busybox");
    assert_eq!(fixture.sh("cat /usr/share/word"), "upper\n");
}

fn what_is_built_belongs_to_the_caller() {
    let fixture = Fixture::new();
    fixture.sh("mkdir -p /srp/out/out/usr/bin; cp /usr/bin/busybox /srp/out/out/usr/bin/prog");
    for name in ["out/out/usr", "out/out/usr/bin/prog"] {
        let found = fs::metadata(fixture.directory.join(name)).unwrap();
        let owner = (found.uid(), found.gid());
        assert_eq!(owner, (geteuid().as_raw(), getegid().as_raw()), "{name}");
    }
}

fn shells_write_to_memory() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan(
        "echo new > /usr/share/word && rm -r /usr/share && mkdir /usr/share && ls -A /usr/share && \
         ln -s x /etc && rm /usr/bin/vi && mv /usr/bin/busybox /usr/bin/busybox2 && touch /x && \
         /usr/bin/busybox2 ls /",
    );
    plan.root = RootMode::Ephemeral;
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!(outcome.status, Status::Exited(0), "{log}");
    assert_eq!(log, "bin\ndev\netc\nproc\nsrp\ntmp\nusr\nx\n");
    let word = fs::read_to_string(fixture.directory.join("other/usr/share/word")).unwrap();
    assert_eq!(word, "upper\n");
    assert!(fixture.directory.join("busybox/usr/bin/vi").is_symlink());
}

fn sysroots_are_composed() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("cd /srp/sysroot && ls usr && ! touch usr/x 2>/dev/null");
    plan.sysroot = vec![fixture.directory.join("other")];
    assert_eq!(fixture.run(&plan).unwrap().1, "share\n");
    plan.sysroot.push(fixture.directory.join("busybox"));
    assert_eq!(fixture.run(&plan).unwrap().1, "bin\nshare\n");
}

fn files_can_be_bound() {
    let fixture = Fixture::new();
    let fifo = fixture.directory.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let source = fixture.directory.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("main.c"), "int main;\n").unwrap();
    let mut plan = fixture.plan(
        "test -p /srp/jobserver && stat -c %u:%a /srp/jobserver && \
         (echo token > /srp/jobserver & cat /srp/jobserver) && cat /srp/source/musl/main.c && \
         ! touch /srp/source/musl/x 2>/dev/null",
    );
    let bind = |source, target: &str, writable, directory| Bind {
        source,
        target: target.to_owned(),
        writable,
        directory,
    };
    plan.binds.push(bind(fifo, "/srp/jobserver", true, false));
    plan.binds.push(bind(source, "/srp/source/musl", false, true));
    assert_eq!(fixture.run(&plan).unwrap().1, "1000:600\ntoken\nint main;\n");
}

fn many_layers_are_composed() {
    let fixture = Fixture::new();
    let mut plan =
        fixture.plan("cat /usr/share/layer/*| sort -n | tail -n 1; ls /usr/share/layer | wc -l");
    plan.layers.truncate(2);
    for number in 0..100 {
        // Separators of overlay options in names must not matter.
        let layer = fixture.directory.join(format!("layer,{number}:\\x"));
        fs::create_dir_all(layer.join("usr/share/layer")).unwrap();
        fs::write(layer.join(format!("usr/share/layer/{number}")), format!("{number}\n")).unwrap();
        plan.layers.push(layer);
    }
    assert_eq!(fixture.run(&plan).unwrap().1, "99\n100\n");
}

fn a_plan_without_layers_is_a_skeleton() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("ls /; ! touch /x 2>/dev/null");
    let usr = plan.layers.remove(1).join("usr");
    plan.layers.clear();
    plan.binds.push(Bind { source: usr, target: "/usr".into(), writable: false, directory: true });
    assert_eq!(fixture.run(&plan).unwrap().1, "bin\ndev\nproc\nsrp\ntmp\nusr\n");
}

fn terminals_are_for_shells() {
    let fixture = Fixture::new();
    let script = "ls /dev; cat";
    let log = fixture.sh(script);
    assert_eq!(log, "fd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n");
    let mut plan = fixture.plan(script);
    plan.stdio = Stdio::Relayed;
    let file = fixture.directory.join("plan.json");
    fs::write(&file, serde_json::to_vec(&plan).unwrap()).unwrap();
    let mut srp = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("run")
        .arg(&file)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut srp.stdin.take().unwrap(), b"typed\n").unwrap();
    let output = srp.wait_with_output().unwrap().stdout;
    assert_eq!(
        String::from_utf8(output).unwrap(),
        "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\ntyped\n"
    );
}

fn foreign_programs_run_by_their_handler_only() {
    let fixture = Fixture::new();
    let other = if cfg!(target_arch = "x86_64") { 183u8 } else { 62 };
    let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    program.extend([0; 8]);
    program.extend([2, 0, other, 0, 1, 0, 0, 0]);
    program.resize(200, 0);
    let path = fixture.directory.join("build/foreign");
    fs::write(&path, program).unwrap();
    super::make_executable(&path);
    let mut plan = fixture.plan("");
    plan.command = vec!["/srp/build/foreign".into()];
    match fixture.run(&plan) {
        Err(SandboxError::Command { errno: nix::errno::Errno::ENOEXEC, .. }) => {}
        other => panic!("{other:?}"),
    }
    let (qemu, busybox) = (qemu(), foreign_busybox());
    let foreign = fixture.directory.join("build/busybox-arm");
    fs::copy(busybox, &foreign).unwrap();
    super::make_executable(&foreign);
    let emulator = fixture.directory.join("qemu");
    fs::copy(qemu, &emulator).unwrap();
    super::make_executable(&emulator);
    let mut plan = fixture.plan(
        "./busybox-arm uname -m; ./busybox-arm sh -c './busybox-arm uname -m; ./busybox-arm uname -m | ./busybox-arm cat'; \
         ls -A /proc/sys/fs/binfmt_misc; grep -c binfmt /proc/mounts; \
         ! find / -path /proc -prune -o -name '*qemu*' -print | grep .",
    );
    plan.binfmt.extend(BinfmtHandler::for_arch("aarch64", &emulator));
    let (outcome, log) = fixture.run(&plan).unwrap();
    assert_eq!(
        (outcome.status, log.as_str()),
        (Status::Exited(0), "aarch64\naarch64\naarch64\n0\n")
    );
    assert!(outcome.isolation.own_binfmt);
    // The next sandbox has none of it.
    plan.binfmt.clear();
    plan.command = vec!["/srp/build/busybox-arm".into(), "true".into()];
    assert!(matches!(fixture.run(&plan), Err(SandboxError::Command { .. })));
}

fn errors_name_the_step() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan("true");
    plan.layers.push("/nonexistent/layer".into());
    let error = fixture.run(&plan).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/layer") && error.contains("ENOENT"), "{error}");
    let mut plan = fixture.plan("");
    plan.command = vec!["/usr/bin/missing".into()];
    let error = fixture.run(&plan).unwrap_err().to_string();
    assert!(error.contains("start /usr/bin/missing") && error.contains("not there"), "{error}");
    let mut plan = fixture.plan("");
    plan.cwd = "/missing".into();
    let error = fixture.run(&plan).unwrap_err().to_string();
    assert!(error.contains("/missing"), "{error}");
    let mut plan = fixture.plan("");
    plan.binds[0].target = "/proc/x".into();
    assert!(matches!(fixture.run(&plan), Err(SandboxError::Plan { .. })));
    let nowhere = srp_builder::sandbox::Launcher::new("/nonexistent/srp");
    let result = nowhere.run(&fixture.plan(""), &mut std::io::sink(), &CancelToken::new().unwrap());
    assert!(matches!(result, Err(SandboxError::Launch { .. })));
}

fn one_launcher_serves_many_threads() {
    let fixture = Fixture::new();
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (fixture, done) = (&fixture, &done);
            scope.spawn(move || {
                for round in 0..8 {
                    let log = fixture.sh(&format!("echo {thread} {round}"));
                    assert_eq!(log, format!("{thread} {round}\n"));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 64);
}

fn a_launcher_that_died_is_replaced() {
    let fixture = Fixture::new();
    fixture.sh("true");
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    drop(children);
    // Which child of this program is this fixture's launcher only a run can tell.
    let plan = fixture.plan("echo > /srp/build/started; sleep 1000");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| fixture.run(&plan));
        assert!(eventually(|| fixture.directory.join("build/started").exists()));
        let marker = fixture.directory.join("build");
        let init = launcher_of(&marker);
        nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert!(matches!(run.join().unwrap(), Err(SandboxError::LauncherDied { .. })));
    });
    fixture.sh("true");
}

/// The launcher whose sandbox has `build` mounted: the parent of a process that sees it.
fn launcher_of(build: &std::path::Path) -> nix::unistd::Pid {
    let marker = build.join("started").metadata().unwrap();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let seen = fs::metadata(path.join("cwd/started"))
            .is_ok_and(|found| (found.ino(), found.dev()) == (marker.ino(), marker.dev()));
        if seen {
            let parent = |path: &std::path::Path| -> u32 {
                let status = fs::read_to_string(path.join("status")).unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
                line.trim().parse().unwrap()
            };
            // command → (sh) → init → launcher: climb to the last process before this program.
            let mut pid: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
            loop {
                let above = parent(&std::path::PathBuf::from(format!("/proc/{pid}")));
                if above == std::process::id() {
                    return nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
                }
                pid = above;
            }
        }
    }
    panic!("no process works in {}", build.display());
}
