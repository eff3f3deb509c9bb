//! Two machines, as two network namespaces with a user and a store each: one serves, the other takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::host::{is_root, skipped};
use crate::support::processes::eventually;
use crate::support::serving::Serving;
use crate::support::{Place, Run};

/// A root of something small, and of 40 MB that don't compress.
const LARGE: &str = r#"
small = sh("small", "echo small > $out/usr/small")
large = sh("large", "dd if=/dev/urandom of=$out/usr/large bs=1M count=40", tools = [small], run = [small])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [large, applets])
return {"": root, "small": small}
"#;

/// Who builds and serves, and who takes: neither is root.
const SERVING_USER: u32 = 65_533;
const TAKING_USER: u32 = 65_534;

/// A network namespace, which lives as long as the process that waits in it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Namespace {
        let mut command = Command::new("unshare");
        let child = command.args(["--net", "sleep", "600"]).spawn().unwrap();
        let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let id = child.id().to_string();
        assert!(eventually(|| namespace(&id).is_some_and(|it| Some(it) != namespace("self"))));
        Namespace(child)
    }

    /// Runs a program of root's in it; whether it succeeded.
    fn run(&self, words: &str) -> bool {
        let mut command = self.enter(&[]);
        command.args(words.split(' ')).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    fn enter(&self, options: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "--net"]).args(options).arg("--");
        command
    }

    /// `srp` on this machine, by the user whose place it is.
    fn srp(&self, home: &Home, arguments: &[&str]) -> Command {
        let user = home.user.to_string();
        let mut command = self.enter(&["-S", &user, "-G", &user]);
        command.arg(&home.program).args(arguments);
        home.place.surround(&mut command);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cable between two machines, on which the first one sends 50 Mbit/s at most.
fn connect(one: &Namespace, two: &Namespace) -> bool {
    one.run(&format!("ip link add srp0 type veth peer name srp0 netns {}", two.0.id()))
        && one.run("tc qdisc add dev srp0 root tbf rate 50mbit burst 64kb latency 100ms")
        && [(one, "192.0.2.1/24"), (two, "192.0.2.2/24")].iter().all(|(machine, address)| {
            machine.run(&format!("ip addr add {address} dev srp0"))
                && machine.run("ip link set srp0 up")
                && machine.run("ip link set lo up")
        })
}

/// A user's place.
struct Home {
    place: Place,
    user: u32,
    program: PathBuf,
}

impl Home {
    fn of(user: u32, place: Place) -> Home {
        let program = place.give_to(user);
        Home { place, user, program }
    }
}

/// A place of the taking user's that asks these, and trusts a key.
fn taking(urls: &[&str], key: &str) -> Home {
    let place = Place::new(LARGE);
    let path = "home/.config/srp/config.toml";
    let mut config = fs::read_to_string(place.path(path)).unwrap();
    for (priority, url) in urls.iter().enumerate() {
        config += &format!("[[caches]]\nurl = '{url}'\npriority = {priority}\n");
    }
    place.write(path, &(config + &format!("[trust]\nkeys = ['{key}']\n")));
    Home::of(TAKING_USER, place)
}

fn name(stdout: &str) -> String {
    Path::new(stdout.trim_end()).file_name().unwrap().to_str().unwrap().to_owned()
}

/// Bytes that a machine has received.
fn received(machine: &Namespace) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/net/dev", machine.0.id())).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("srp0:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn one_serves_and_the_other_needs_no_build_even_if_the_server_dies() {
    let what = "two machines, one of which serves the other";
    if !is_root() {
        return skipped(what, "only root can give two users a network namespace each");
    }
    let (server, client) = (Namespace::new(), Namespace::new());
    if !connect(&server, &client) {
        return skipped(what, "no cable between network namespaces (iproute2, veth, sch_tbf)");
    }
    let builder = Home::of(SERVING_USER, Place::new(LARGE));
    let by = |arguments: &[&str]| server.srp(&builder, arguments);
    let key = Run::of(&mut by(&["key", "generate", "builder-1"])).succeeded().stdout;
    let key = key.trim_end();
    let built = name(&Run::of(&mut by(&["realise", "t.x"])).succeeded().stdout);
    let serve =
        |port: &str| Serving::by(&mut by(&["serve", "--listen", &format!("192.0.2.1:{port}")]));
    let (mut first, second) = (serve("5757"), serve("5758"));

    let realise = ["realise", "--no-build", "t.x"];
    let user = taking(&[first.url()], key);
    let began = Instant::now();
    let run = Run::of(&mut client.srp(&user, &realise)).succeeded();
    assert_eq!(name(&run.stdout), built, "{run}");
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());

    // Killed when some of it has come: the other one has the rest.
    let killing = |user: &Home, first: &mut Serving, arguments: &[&str]| {
        let mut command = client.srp(user, arguments);
        let before = received(&client);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(eventually(|| received(&client) > before + (4 << 20)), "nothing comes");
        first.kill();
        Run::from(child.wait_with_output().unwrap())
    };
    let user = taking(&[first.url(), second.url()], key);
    let run = killing(&user, &mut first, &realise).succeeded();
    assert_eq!(name(&run.stdout), built, "{run}");
    run.says(&["warning:", first.url()]);
    user.place.assert_tidy();

    // There is no other one: it is built.
    let mut first = serve("5757");
    let user = taking(&[first.url()], key);
    let run = killing(&user, &mut first, &["realise", "t.x"]).succeeded();
    assert!(run.built().contains(&"large"), "{run}");
    user.place.assert_tidy();
}
