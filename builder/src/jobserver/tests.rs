//! Tests of the job server with builds that behave and builds that don't.
//!
//! A build is a set of threads that speak GNU make's protocol on the FIFO: one runs jobs on the
//! implicit token, the others read a byte, run a job, write a byte. All count into one number of
//! running jobs, whose highest value is what the guarantees are about.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tempfile::TempDir;

use super::*;

const JOB: Duration = Duration::from_millis(3);

/// Counts the jobs that run now, and the most that ever ran.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Running {
    fn job(&self) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        thread::sleep(JOB);
        self.now.fetch_sub(1, SeqCst);
    }

    /// The most from now on.
    fn forget(&self) {
        self.most.store(0, SeqCst);
    }
}

/// A FIFO as the build opens it, by a description of its own.
fn open(path: &Path) -> File {
    let flags = OFlag::O_NONBLOCK.bits();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn take_one(mut fifo: &File) -> bool {
    matches!(fifo.read(&mut [0]), Ok(1))
}

/// A build that keeps to the protocol and has `width` jobs at a time.
struct Make {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The jobs that ran on tokens.
    jobs: Arc<AtomicUsize>,
}

impl Make {
    fn start(path: &Path, width: usize, running: &Arc<Running>) -> Make {
        let stop = Arc::new(AtomicBool::new(false));
        let jobs = Arc::new(AtomicUsize::new(0));
        let threads = (0..width)
            .map(|worker| {
                let (stop, jobs) = (Arc::clone(&stop), Arc::clone(&jobs));
                let (running, fifo) = (Arc::clone(running), open(path));
                thread::spawn(move || {
                    while !stop.load(SeqCst) {
                        if worker == 0 {
                            running.job();
                        } else if take_one(&fifo) {
                            running.job();
                            jobs.fetch_add(1, SeqCst);
                            (&fifo).write_all(b"+").unwrap();
                        } else {
                            thread::sleep(Duration::from_micros(300));
                        }
                    }
                })
            })
            .collect();
        Make { stop, threads, jobs }
    }

    fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.jobs.load(SeqCst)
    }
}

/// Builds of a broker, each in a directory of its own.
struct World {
    directory: TempDir,
    broker: Broker,
    running: Arc<Running>,
}

impl World {
    fn new(cores: usize) -> World {
        let (directory, running) = (TempDir::new().unwrap(), Arc::default());
        World { directory, broker: Broker::new(cores).unwrap(), running }
    }

    fn register(&self) -> Client {
        let directory = TempDir::new_in(self.directory.path()).unwrap().keep();
        self.broker.register(&directory).unwrap()
    }

    fn make(&self, client: &Client, width: usize) -> Make {
        Make::start(client.path(), width, &self.running)
    }

    fn most(&self) -> usize {
        self.running.most.load(SeqCst)
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.broker.stats());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn sleep_ms(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
fn honest_builds_use_all_cores_and_no_more() {
    let world = World::new(7);
    let clients = [world.register(), world.register(), world.register()];
    let makes = clients.each_ref().map(|client| world.make(client, 8));
    world.wait_until("all cores in use", || world.most() == 7);
    sleep_ms(500);
    assert_eq!(world.most(), 7);
    for make in makes {
        assert!(make.stop() > 5, "a build got hardly a token");
    }
    let stats = clients.map(Client::finish);
    assert!(stats.iter().all(|stats| stats.forged == 0 && stats.leaked == 0), "{stats:?}");
    assert!(stats.iter().all(|stats| stats.handed_most >= 1), "{stats:?}");
    assert_eq!(world.broker.stats().handed, 0);
}

#[test]
fn tokens_that_others_leave_lying_go_to_who_wants_them() {
    let world = World::new(8);
    // Registered first, so that they get tokens, which they never touch.
    let silent = [world.register(), world.register(), world.register()];
    sleep_ms(200);
    let client = world.register();
    let make = world.make(&client, 8);
    world.wait_until("the one that wants them has all", || world.most() == 5);
    sleep_ms(300);
    assert_eq!(world.most(), 5, "four of eight cores are reserved, one of them for it");
    make.stop();
    assert!(silent.map(Client::finish).iter().all(|stats| stats.leaked == 0));
}

#[test]
fn a_build_that_comes_later_gets_its_share() {
    let world = World::new(8);
    let first = world.register();
    let make = world.make(&first, 8);
    world.wait_until("the first has all", || world.most() == 8);
    let second = world.register();
    world.wait_until("debts are paid", || world.broker.stats().handed <= 6);
    world.running.forget();
    let other = world.make(&second, 8);
    world.wait_until("the second has half", || world.broker.shared.lock().ledger.handed_to(1) >= 3);
    sleep_ms(200);
    assert_eq!(world.most(), 8);
    make.stop();
    other.stop();
}

#[test]
fn a_hoarder_keeps_a_share_and_others_go_on() {
    let world = World::new(9);
    let clients = [world.register(), world.register(), world.register()];
    let hoarder = open(clients[0].path());
    let makes = [world.make(&clients[1], 9), world.make(&clients[2], 9)];
    world.wait_until("the others are busy", || world.most() >= 6);
    world.running.forget();
    let mut hoarded = 0;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        hoarded += usize::from(take_one(&hoarder));
        sleep_ms(1);
    }
    world.running.forget();
    sleep_ms(50);
    assert!((1..=2).contains(&hoarded), "a third of six tokens is two, it has {hoarded}");
    assert!(world.most() <= 9 - 1 - hoarded, "its own core and its tokens are not to be had");
    for make in makes {
        assert!(make.stop() > 5);
    }
    let [hoarder, ..] = clients.map(Client::finish);
    assert_eq!(hoarder, ClientStats { handed_most: hoarded, forged: 0, leaked: hoarded as u64 });
}

#[test]
fn a_hoarder_that_came_first_leaves_the_implicit_tokens() {
    let world = World::new(4);
    let first = world.register();
    let hoarder = open(first.path());
    let hoarded = std::cell::Cell::new(0);
    world.wait_until("it has all", || {
        hoarded.set(hoarded.get() + usize::from(take_one(&hoarder)));
        hoarded.get() == 3
    });
    let second = world.register();
    let make = world.make(&second, 4);
    world.wait_until("the other goes on", || world.most() >= 1);
    sleep_ms(100);
    assert!(world.most() >= 1);
    // Its end sets them free.
    drop(hoarder);
    assert_eq!(first.finish().leaked, 3);
    world.wait_until("the other has all", || world.most() == 4);
    make.stop();
}

#[test]
fn what_a_killed_build_held_comes_back() {
    let world = World::new(4);
    let client = world.register();
    let mut build = Command::new("sh")
        .args(["-c", "dd bs=1 count=2 2>&1 >/dev/null <\"$0\" && echo held && exec sleep 1000"])
        .arg(client.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = build.stdout.take().unwrap();
    while !said.contains("held") {
        let mut buffer = [0; 64];
        let length = stdout.read(&mut buffer).unwrap();
        assert!(length > 0, "the build died by itself: {said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    build.kill().unwrap();
    build.wait().unwrap();
    assert_eq!(client.finish().leaked, 2);
    let client = world.register();
    let make = world.make(&client, 4);
    world.wait_until("the next has all", || world.most() == 4);
    make.stop();
    assert_eq!(world.broker.stats().leaked, 2);
}

#[test]
fn forged_bytes_are_drained_and_reach_nobody_else() {
    let world = World::new(6);
    let clients = [world.register(), world.register()];
    let forger = open(clients[0].path());
    let make = world.make(&clients[1], 8);
    assert_eq!((&forger).write(&[b'x'; 5000]).unwrap(), 5000);
    world.wait_until("the forgery is seen", || world.broker.stats().forged >= 4990);
    let (begin, rounds) = (Instant::now(), world.broker.stats().rounds);
    while begin.elapsed() < Duration::from_millis(500) {
        // As many as fit, again and again.
        let _ = (&forger).write(&[b'x'; 1 << 16]);
    }
    let rounds = u128::from(world.broker.stats().rounds - rounds);
    // Two for each pause, and the one that runs now.
    let most = 2 * begin.elapsed().as_millis() + 2;
    assert!(rounds < most, "a flood must not keep the broker busy: {rounds} rounds");
    assert!(world.most() <= 5, "the other has all cores but the forger's");
    assert!(make.stop() > 5);
    let [forger, honest] = clients.map(Client::finish);
    assert!(forger.forged > 5000);
    assert_eq!((honest.forged, honest.leaked), (0, 0));
    assert_eq!(world.broker.stats().forged, forger.forged);
}

#[test]
fn a_concealed_forgery_adds_no_more_than_was_forged() {
    let world = World::new(6);
    let clients = [world.register(), world.register()];
    let forger = open(clients[0].path());
    // It takes tokens, puts bytes of its own into their place, and goes on using the tokens.
    let mut used = 0;
    world.wait_until("it has a token", || take_one(&forger));
    used += 1;
    assert_eq!((&forger).write(b"x").unwrap(), 1);
    let make = world.make(&clients[1], 8);
    world.wait_until("the others have the rest", || world.most() == 5);
    sleep_ms(300);
    let all = world.most() + 1 + used;
    assert!(all <= 6 + used, "{all} jobs are more than the cores and what was forged");
    // When it gives the token back, there is one too many, which is found out.
    (&forger).write_all(b"+").unwrap();
    world.wait_until("it is found out", || world.broker.stats().forged == 1);
    make.stop();
}

#[test]
fn a_full_fifo_blocks_nobody() {
    let world = World::new(4);
    let client = world.register();
    let fifo = open(client.path());
    while (&fifo).write(&[b'x'; 4096]).is_ok() {}
    world.wait_until("it is drained", || world.broker.stats().forged >= 60_000);
    world.wait_until("it is drained to the tokens", || {
        rustix::io::ioctl_fionread(&fifo).unwrap() <= 3
    });
}

#[test]
fn reserved_cores_are_no_tokens() {
    let world = World::new(4);
    let directory = world.directory.path();
    let client = world.broker.register_reserving(directory, 3).unwrap();
    sleep_ms(200);
    assert_eq!(world.broker.stats().handed, 1);
    assert!(world.broker.register(directory).is_err(), "there is a FIFO already");
    drop(client);
    assert!(!directory.join(FIFO_NAME).exists());
    let client = world.broker.register_reserving(directory, 7).unwrap();
    sleep_ms(100);
    assert_eq!((world.broker.stats().handed, world.broker.spare()), (0, 0));
    drop(world.broker);
    assert_eq!(client.finish(), ClientStats::default());
}

#[test]
fn without_builds_the_broker_sleeps() {
    let world = World::new(4);
    drop(world.register());
    sleep_ms(100);
    let rounds = world.broker.stats().rounds;
    sleep_ms(200);
    assert_eq!(world.broker.stats().rounds, rounds);
}

/// The version that `program --version` begins its first number with.
fn version(program: &str) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number =
        text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// A job that notes when it began and ended.
const RECIPE: &str = "date +%s%N >$$.begin; sleep 0.1; date +%s%N >$$.end";

#[test]
fn real_clients() {
    let world = World::new(4);
    let client = world.register();
    let fifo = format!("--jobserver-auth=fifo:{}", client.path().display());
    let mut ran = 0;
    if version("make").is_some_and(|version| version >= (4, 4)) {
        let directory = TempDir::new().unwrap();
        let jobs = "1 2 3 4 5 6 7 8 9";
        let rule = format!("all: {jobs}\n{jobs}:\n\t@{}\n", RECIPE.replace('$', "$$"));
        std::fs::write(directory.path().join("Makefile"), rule).unwrap();
        let mut make = Command::new("make");
        check_real(make.current_dir(&directory), "GNUMAKEFLAGS", &fifo, directory.path());
        ran += 1;
    }
    if version("ninja").is_some_and(|version| version >= (1, 13)) {
        let directory = TempDir::new().unwrap();
        let rule = format!("rule r\n  command = {}\n", RECIPE.replace('$', "$$"));
        let builds: String = (0..9).map(|at| format!("build {at}: r\n")).collect();
        std::fs::write(directory.path().join("build.ninja"), rule + &builds).unwrap();
        let mut ninja = Command::new("ninja");
        check_real(ninja.current_dir(&directory), "MAKEFLAGS", &fifo, directory.path());
        ran += 1;
    }
    if ran == 0 {
        eprintln!("SKIPPED: neither make >= 4.4 nor ninja >= 1.13 is here to talk to a FIFO");
    }
    let stats = client.finish();
    assert_eq!((stats.forged, stats.leaked), (0, 0));
}

/// Runs a build of nine jobs on four cores, and looks at how many ran at once.
fn check_real(command: &mut Command, variable: &str, fifo: &str, directory: &Path) {
    let flags = format!("-j4 {fifo}");
    assert!(command.env(variable, &flags).status().unwrap().success());
    let mut events: Vec<(u64, bool)> = Vec::new();
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let begins = path.extension().is_some_and(|extension| extension == "begin");
        if begins || path.extension().is_some_and(|extension| extension == "end") {
            let time = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
            events.push((time, begins));
        }
    }
    assert_eq!(events.len(), 18);
    events.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, begins) in events {
        now = if begins { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    assert!((3..=4).contains(&most), "{most} jobs ran at once on four cores");
}
