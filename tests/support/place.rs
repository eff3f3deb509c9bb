//! A place to run `srp` in, and what came of a run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::host::give;
use super::seed;

/// A directory with a store, a home and definitions.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    /// A place whose definitions are the components of `t.x` that the text returns as a dict.
    pub(crate) fn new(components: &str) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory };
        let package = seed::package(std::env::consts::ARCH, "busybox-static");
        let text = include_str!("seed.star")
            .replace("@ARCH@", std::env::consts::ARCH)
            .replace("@VERSION@", &package.version)
            .replace("@SHA256@", &package.sha256)
            .replace("@SIZE@", &package.size_bytes.to_string())
            .replace("@URL@", &package.url);
        place.write("derivations/seed.star", &text);
        let sources = seed::sources(&package);
        let config = format!("sources = ['{}']\n", sources.display());
        place.write("home/.config/srp/config.toml", &config);
        place.define(components);
        place
    }

    /// Replaces the components.
    pub(crate) fn define(&self, components: &str) {
        let mut text = String::from(
            "load(\"//seed.star\", \"TRIPLE\", \"applets\", \"busybox\", \"sh\")\n\
             targets = {\"x\": \"x\"}\n\
             def _components(target, build):\n",
        );
        for line in components.lines() {
            text += &format!("    {line}\n");
        }
        text += "stages = {\"t\": _components}\n";
        self.write("derivations/main.star", &text);
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Lets every user in.
    pub(crate) fn open_to_all(&self) {
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.directory.path(), everybody).unwrap();
    }

    /// Makes it another user's, with sources and a program that this user can reach; the program.
    pub(crate) fn give_to(&self, user: u32) -> PathBuf {
        self.open_to_all();
        let program = self.path("srp");
        fs::copy(super::program(), &program).unwrap();
        let package = seed::package(std::env::consts::ARCH, "busybox-static");
        let file = format!("{}-{}", package.sha256, package.name);
        let (from, to) = (seed::sources(&package), self.path("sources"));
        fs::create_dir(&to).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
        let path = "home/.config/srp/config.toml";
        let config = fs::read_to_string(self.path(path)).unwrap();
        self.write(path, &config.replace(from.to_str().unwrap(), to.to_str().unwrap()));
        give(self.directory.path(), user);
        program
    }

    /// `srp` with these arguments, not yet run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::program());
        self.surround(&mut command).args(arguments);
        command
    }

    /// Gives a command the place's environment and nothing else.
    pub(crate) fn surround<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("SRP_ROOT", self.store())
            .env("SRP_DEFINITIONS", self.path("derivations"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
    }

    /// Runs `srp`.
    pub(crate) fn srp(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// Realises what must succeed; its store path.
    pub(crate) fn realise(&self, attr: &str) -> PathBuf {
        let run = self.srp(&["realise", attr]).succeeded();
        PathBuf::from(run.stdout.trim_end())
    }

    /// What `srp show` says.
    pub(crate) fn show(&self, target: &str) -> Value {
        serde_json::from_str(&self.srp(&["show", target]).succeeded().stdout).unwrap()
    }

    /// The names that `realise --dry-run` would fetch or build.
    pub(crate) fn planned(&self, attr: &str) -> Vec<String> {
        let run = self.srp(&["realise", "--dry-run", "--json", attr]).succeeded();
        let plan: Value = serde_json::from_str(&run.stdout).unwrap();
        let mut names = Vec::new();
        for list in plan.as_object().unwrap().values() {
            let list = list.as_array().unwrap();
            names.extend(list.iter().map(|it| it["name"].as_str().unwrap().to_owned()));
        }
        names.sort();
        names
    }

    /// Fails unless nothing unfinished lies in the store.
    pub(crate) fn assert_tidy(&self) {
        for name in ["tmp", "locks"] {
            let left: Vec<_> = list(&self.store().join(name));
            let left: Vec<_> = left.into_iter().filter(|it| name == "tmp" || it.is_dir()).collect();
            assert!(left.is_empty(), "{name}/ holds {left:?}");
        }
    }
}

/// What a directory holds, sorted.
pub(crate) fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Run {
        loop {
            match command.output() {
                // A copy that was just written: another test's child, which hasn't executed yet,
                // still has it open.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                output => return Run::from(output.unwrap()),
            }
        }
    }

    pub(crate) fn succeeded(self) -> Run {
        self.exited(0)
    }

    pub(crate) fn exited(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Fails unless standard error has all of these.
    pub(crate) fn says(self, parts: &[&str]) -> Run {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in what was said:\n{self}");
        }
        self
    }

    /// The names of what this run built, from its lines of progress.
    pub(crate) fn built(&self) -> Vec<&str> {
        let lines = self.stderr.lines().filter_map(|line| line.strip_prefix("built "));
        let mut names: Vec<_> = lines.filter_map(|line| line.split(',').next()).collect();
        names.sort_unstable();
        names
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "exit code {:?}", self.code)?;
        writeln!(formatter, "standard output:\n{}", self.stdout)?;
        writeln!(formatter, "standard error:\n{}", self.stderr)
    }
}
