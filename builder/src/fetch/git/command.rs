//! Running git: with nobody's configuration, no hook, filter, helper or prompt, and no other protocol than
//! the repository's own.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::{Broken, url};
use crate::cancel::CancelToken;
use crate::fetch::error::Reason;
use crate::fetch::network::NetworkSettings;
use crate::fetch::pace::LowSpeed;

/// How often a running git is looked after.
const TICK: Duration = Duration::from_millis(50);
/// How often the size of what it has written is looked at.
const SIZE_TICK: Duration = Duration::from_secs(1);
/// No repository is larger; one that is must not fill the disk.
const MAX_REPOSITORY_BYTES: u64 = 16 << 30;
/// What git has to say is short.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;

/// How git is run, whatever it is to do.
pub(super) struct Git<'a> {
    /// The program, by its absolute path.
    pub(super) program: &'a Path,
    pub(super) network: &'a NetworkSettings,
    pub(super) low_speed: LowSpeed,
    pub(super) cancel: &'a CancelToken,
    /// A repository of this fetch's own, without a working tree.
    pub(super) repository: PathBuf,
}

/// What git objects to in old commits that do no harm to whoever only reads a tree.
const HARMLESS: &[&str] = &[
    "badDate",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "zeroPaddedFilemode",
];

impl Git<'_> {
    /// Git with these arguments. Its configuration comes by variables, where a URL's login is in no list
    /// of processes.
    fn command(&self, arguments: &[&str], remote: Option<&str>) -> Command {
        let mut settings: Vec<(String, String)> = [
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("core.attributesFile", "/dev/null"),
            // Large files are passed on in pieces instead of being held in memory.
            ("core.bigFileThreshold", "16m"),
            ("credential.helper", ""),
            ("fetch.fsckObjects", "true"),
            ("fetch.recurseSubmodules", "false"),
            ("fetch.unpackLimit", "1"),
            ("fetch.writeCommitGraph", "false"),
            ("gc.auto", "0"),
            ("init.defaultBranch", "none"),
            ("maintenance.auto", "false"),
            ("transfer.bundleURI", "false"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        settings.extend(HARMLESS.iter().map(|it| (format!("fetch.fsck.{it}"), "ignore".into())));
        if let Some(remote) = remote {
            settings.push(("remote.origin.url".into(), remote.to_owned()));
            settings.extend(self.reaching(remote));
        }
        let directory = self.program.parent().unwrap_or(Path::new("/usr/bin")).display();
        let mut command = Command::new(self.program);
        command
            .env_clear()
            .env("PATH", format!("{directory}:/usr/local/bin:/usr/bin:/bin"))
            .env("HOME", &self.repository)
            .env("XDG_CONFIG_HOME", &self.repository)
            .env("LC_ALL", "C")
            .env("GIT_DIR", &self.repository)
            .env("GIT_ALLOW_PROTOCOL", remote.map_or("", protocols))
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (number, (name, value)) in settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What it starts ends with it.
            .process_group(0);
        command
    }

    /// Proxy and certificates for a URL, as for every other fetch.
    fn reaching(&self, remote: &str) -> Vec<(String, String)> {
        let mut settings = Vec::new();
        let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
        if let Ok(url) = url::parse(remote) {
            let host = url.host_str().unwrap_or_default();
            let proxy = self.network.proxy_for(url.scheme(), host, url.port_or_known_default());
            set("http.proxy", proxy.unwrap_or_default().to_owned());
        }
        let certificates = &self.network.ca_certificates;
        if let Some(file) = &certificates.file {
            set("http.sslCAInfo", file.display().to_string());
        }
        if let Some(directory) = certificates.directories.first() {
            set("http.sslCAPath", directory.display().to_string());
        }
        set("http.lowSpeedLimit", self.low_speed.bytes_per_second.to_string());
        set("http.lowSpeedTime", self.low_speed.seconds.to_string());
        settings
    }

    /// Runs git to its end; what it printed, at most `limit` bytes of it.
    pub(super) fn run(
        &self,
        arguments: &[&str],
        remote: Option<&str>,
        limit: u64,
    ) -> Result<Finished, Broken> {
        let mut running = self.start(arguments, remote)?;
        let output = collect(running.child.stdout.take(), limit);
        let message = running.message.take();
        let mut looked = Instant::now();
        while !running.has_ended(WaitPidFlag::WNOHANG).map_err(Broken::git)? {
            if self.cancel.is_cancelled() {
                return Err(Broken::Cancelled);
            }
            if looked.elapsed() >= SIZE_TICK {
                looked = Instant::now();
                let pack = self.repository.join("objects/pack");
                let sizes = pack.read_dir().into_iter().flatten().flatten();
                let sizes = sizes.filter_map(|entry| Some(entry.metadata().ok()?.len()));
                if sizes.sum::<u64>() > MAX_REPOSITORY_BYTES {
                    let detail = format!("it is larger than {} GiB", MAX_REPOSITORY_BYTES >> 30);
                    return Err(Reason::Git { detail }.into());
                }
            }
            std::thread::sleep(TICK);
        }
        let status = running.end().map_err(Broken::git)?;
        let text = |reader: Option<Collected>| {
            let read = reader.and_then(|reader| reader.join().ok());
            read.unwrap_or_default()
        };
        Ok(Finished {
            success: status.success(),
            output: text(output),
            message: said(&text(message)),
        })
    }

    /// Starts git, whose output is read while it runs.
    pub(super) fn start(
        &self,
        arguments: &[&str],
        remote: Option<&str>,
    ) -> Result<Running, Broken> {
        self.start_with(arguments, remote, Stdio::null())
    }

    /// Starts git, with something to read.
    pub(super) fn start_with(
        &self,
        arguments: &[&str],
        remote: Option<&str>,
        input: Stdio,
    ) -> Result<Running, Broken> {
        let mut command = self.command(arguments, remote);
        let spawned = command.stdin(input).spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Broken::Place(Reason::GitMissing),
            _ => Broken::git(error),
        })?;
        let message = collect(child.stderr.take(), MAX_MESSAGE_BYTES);
        Ok(Running { child, message, ended: false })
    }
}

/// How git ended.
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) output: Vec<u8>,
    /// What it said, in one line.
    pub(super) message: String,
}

/// A git that runs. It is killed, with all that it has started, when this is dropped.
pub(super) struct Running {
    pub(super) child: Child,
    message: Option<Collected>,
    ended: bool,
}

impl Running {
    /// Waits for its end; what it said if that was none.
    pub(super) fn finish(mut self) -> Result<(), Broken> {
        drop(self.child.stdin.take());
        self.has_ended(WaitPidFlag::empty()).map_err(Broken::git)?;
        let status = self.end().map_err(Broken::git)?;
        if status.success() {
            return Ok(());
        }
        let said_last = self.message.take().and_then(|reader| reader.join().ok());
        Err(Reason::Git { detail: said(&said_last.unwrap_or_default()) }.into())
    }

    /// Whether it has ended, or waits until it has. It isn't reaped: while it is a zombie, no other
    /// process group can have its number.
    fn has_ended(&self, flags: WaitPidFlag) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | flags;
        loop {
            match waitid(Id::Pid(self.group()), flags) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(status) => return Ok(status != WaitStatus::StillAlive),
            }
        }
    }

    /// Kills what it has left behind, and would keep its pipes open, and itself if it still runs.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.ended = true;
        let _ = killpg(self.group(), Signal::SIGKILL);
        self.child.wait()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

type Collected = std::thread::JoinHandle<Vec<u8>>;

/// Reads a pipe to its end, and keeps what comes first.
fn collect(pipe: Option<impl Read + Send + 'static>, limit: u64) -> Option<Collected> {
    let mut pipe = pipe?;
    let read = move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(limit).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
        bytes
    };
    std::thread::Builder::new().name("srp-git".into()).spawn(read).ok()
}

/// What git complained of, as part of a sentence. A login in a URL isn't repeated.
fn said(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim_start_matches(['>', ' ']))
        .filter_map(|line| line.strip_prefix("fatal: ").or_else(|| line.strip_prefix("error: ")))
        .collect();
    let words = lines.join("; ");
    let words = if words.is_empty() { text.trim().to_owned() } else { words };
    let words: Vec<String> = words
        .split_whitespace()
        .map(|word| word.chars().filter(|c| !c.is_control()).collect::<String>())
        .map(|word| match word.split_once("://") {
            Some((before, rest)) => {
                let scheme = before.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
                let quote = &before[..before.len() - scheme.len()];
                format!("{quote}{}", url::redact(&format!("{scheme}://{rest}")))
            }
            None => word,
        })
        .collect();
    words.join(" ").chars().take(500).collect()
}

/// What a repository may be asked by, and redirect to.
fn protocols(url: &str) -> &'static str {
    match url::scheme(url).as_deref() {
        Some("https") => "https",
        Some("http") => "http:https",
        _ => "file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_is_one_line_without_logins() {
        let message =
            b"Cloning\nremote: no\nfatal: unable to access 'https://me:pw@h.test/x/': \x1b[1mno\n";
        assert_eq!(said(message), "unable to access 'https://h.test/x/': [1mno");
        assert_eq!(said(b"something\nelse\n"), "something else");
    }
}
