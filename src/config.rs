//! Configuration: two small TOML files, the environment, and what follows from them.
//!
//! This and the command line are the only places where srp learns of the environment and of home
//! directories; the libraries get plain values. The user's file wins over the machine's, key by
//! key; the environment wins over both, and options win over everything.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use srp_builder::fetch::Mirrors;
use srp_store::cache::PublicKey;
use srp_store::ingest::Limits;

/// The machine's configuration file.
const MACHINE_FILE: &str = "/etc/srp/config.toml";

/// More than any toolchain's output, and read within minutes.
const OUTPUT_MIB: u64 = 64 << 10;
/// As many as a binary cache takes.
const OUTPUT_ENTRIES: u64 = 4_000_000;

/// An environment as a function of names: the process's own, or a test's.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// How many builds run at once.
    pub(crate) jobs: Option<usize>,
    /// How many cores builds share.
    pub(crate) cores: Option<usize>,
    /// How much memory builds may take together.
    pub(crate) memory_mib: Option<u64>,
    /// How much one output may hold.
    pub(crate) output_mib: Option<u64>,
    /// How many files, directories and links one output may have.
    pub(crate) output_entries: Option<u64>,
    /// Base URLs by the name of the mirror.
    pub(crate) mirrors: BTreeMap<String, Vec<String>>,
    /// Sources directories that are looked into before anything is fetched.
    pub(crate) sources: Vec<PathBuf>,
    /// Binary caches, those to be asked first at the beginning; of both files.
    pub(crate) caches: Vec<ConfiguredCache>,
    /// Whose signatures count.
    pub(crate) trust: Trust,
    /// Where the user's keys are; none if nothing says where home is.
    pub(crate) keys: Option<PathBuf>,
    /// Whether things are registered without waiting for the disk.
    pub(crate) unsynced: bool,
}

/// A binary cache as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfiguredCache {
    /// A URL, or the path of a directory.
    pub(crate) url: String,
    /// Smaller ones are asked first.
    #[serde(default = "default_priority")]
    pub(crate) priority: u32,
    /// Whether it is believed without any signature.
    #[serde(default)]
    pub(crate) trusted_unsigned: bool,
}

fn default_priority() -> u32 {
    50
}

/// Whose word is enough, beside the keys that `srp key trust` keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Public keys; of both files.
    pub(crate) keys: Vec<PublicKey>,
    /// How many different builders must say the same.
    pub(crate) threshold: Option<usize>,
    /// Whether what was built by an emulator is refused.
    pub(crate) refuse_emulated: Option<bool>,
}

/// A configuration file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    jobs: Option<std::num::NonZeroUsize>,
    cores: Option<std::num::NonZeroUsize>,
    memory_mib: Option<std::num::NonZeroU64>,
    output_mib: Option<std::num::NonZeroU64>,
    output_entries: Option<std::num::NonZeroU64>,
    #[serde(default)]
    mirrors: BTreeMap<String, Urls>,
    #[serde(default)]
    sources: Vec<PathBuf>,
    #[serde(default)]
    caches: Vec<ConfiguredCache>,
    #[serde(default)]
    trust: WrittenTrust,
}

/// The table `[trust]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTrust {
    #[serde(default)]
    keys: BTreeSet<String>,
    threshold: Option<std::num::NonZeroUsize>,
    refuse_emulated: Option<bool>,
}

/// One URL or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a URL or an array of URLs is expected")]
enum Urls {
    One(String),
    Several(Vec<String>),
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file can't be read.
    #[error("can't read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file is not what it should be.
    #[error("{}:{line}: {message}", path.display())]
    Malformed { path: PathBuf, line: usize, message: String },
    /// A key is none.
    #[error("{}: {text:?} of trust.keys: {source}", path.display())]
    Key { path: PathBuf, text: String, source: srp_store::cache::KeyError },
    /// The variable has another value than those it can have.
    #[error("SRP_SYNC is {value:?}, and can be `on` or `off`")]
    Sync { value: OsString },
    /// Nothing says where the user's files are.
    #[error("there is no directory for the store: neither HOME nor XDG_DATA_HOME is set")]
    NoHome,
}

impl Config {
    /// The configuration of the user and the machine.
    pub(crate) fn load(environment: Environment<'_>) -> Result<Config, ConfigError> {
        let unsynced = match environment("SRP_SYNC") {
            None => false,
            Some(value) if value == "on" => false,
            Some(value) if value == "off" => true,
            Some(value) => return Err(ConfigError::Sync { value }),
        };
        let mut config = Config { unsynced, ..Config::default() };
        let user = user_directory(environment, "XDG_CONFIG_HOME", ".config")
            .map(|directory| directory.join("srp"));
        config.keys = user.as_ref().map(|directory| directory.join("keys"));
        let user = user.map(|directory| directory.join("config.toml"));
        for path in user.into_iter().chain([PathBuf::from(MACHINE_FILE)]) {
            match std::fs::read_to_string(&path) {
                Ok(text) => config.add(parse(&text, &path)?, &path)?,
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(ConfigError::Read { path, source }),
            }
        }
        if let Some(urls) = text(environment, "SRP_MIRROR_DEBIAN") {
            config.mirrors.insert("debian".to_owned(), Mirrors::split_urls(&urls));
        }
        config.caches.sort_by_key(|cache| cache.priority);
        Ok(config)
    }

    /// How much one output, or one source unpacked, may be.
    pub(crate) fn output_limits(&self) -> Limits {
        let mib = self.output_mib.unwrap_or(OUTPUT_MIB);
        let size_bytes = Some(mib.saturating_mul(1 << 20));
        Limits { size_bytes, entries: Some(self.output_entries.unwrap_or(OUTPUT_ENTRIES)) }
    }

    /// Takes over what is not said yet.
    fn add(&mut self, file: File, path: &Path) -> Result<(), ConfigError> {
        self.jobs = self.jobs.or(file.jobs.map(usize::from));
        self.cores = self.cores.or(file.cores.map(usize::from));
        self.memory_mib = self.memory_mib.or(file.memory_mib.map(u64::from));
        self.output_mib = self.output_mib.or(file.output_mib.map(u64::from));
        self.output_entries = self.output_entries.or(file.output_entries.map(u64::from));
        for (name, urls) in file.mirrors {
            let urls = match urls {
                Urls::One(url) => vec![url],
                Urls::Several(urls) => urls,
            };
            self.mirrors.entry(name).or_insert(urls);
        }
        // A relative directory lies beside the file that names it.
        let directory = path.parent().unwrap_or(Path::new("/"));
        self.sources.extend(file.sources.iter().map(|source| directory.join(source)));
        for mut cache in file.caches {
            if !cache.url.contains("://") {
                cache.url = directory.join(&cache.url).to_string_lossy().into_owned();
            }
            self.caches.push(cache);
        }
        for text in file.trust.keys {
            let key = text.parse().map_err(|source| {
                let (path, text) = (path.to_owned(), text.clone());
                ConfigError::Key { path, text, source }
            })?;
            self.trust.keys.push(key);
        }
        self.trust.threshold = self.trust.threshold.or(file.trust.threshold.map(usize::from));
        self.trust.refuse_emulated = self.trust.refuse_emulated.or(file.trust.refuse_emulated);
        Ok(())
    }
}

fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::Malformed { path: path.to_owned(), line, message: error.message().to_owned() }
    })
}

/// Where the store is unless an option or `SRP_ROOT` says otherwise.
pub(crate) fn default_store(
    environment: Environment<'_>,
    is_root: bool,
) -> Result<PathBuf, ConfigError> {
    if is_root {
        return Ok(PathBuf::from("/var/lib/srp"));
    }
    user_directory(environment, "XDG_DATA_HOME", ".local/share")
        .map(|directory| directory.join("srp"))
        .ok_or(ConfigError::NoHome)
}

/// The definitions in the current directory or the nearest above it that has any.
pub(crate) fn find_definitions(current: &Path) -> Option<PathBuf> {
    current
        .ancestors()
        .map(|directory| directory.join("derivations"))
        .find(|directory| directory.join("main.star").is_file())
}

/// A variable as text, unless it is empty.
pub(crate) fn text(environment: Environment<'_>, name: &str) -> Option<String> {
    environment(name)?.into_string().ok().filter(|value| !value.is_empty())
}

/// A directory of the XDG base directory specification: relative ones are to be ignored.
fn user_directory(environment: Environment<'_>, variable: &str, below: &str) -> Option<PathBuf> {
    let absolute = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| Some(absolute("HOME")?.join(below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        }
    }

    #[test]
    fn unknown_keys_are_errors_with_file_and_line() {
        for (text, line, part) in [
            ("jobs = 2\njob = 3\n", 2, "unknown field `job`"),
            ("\n\ncores = 0\n", 3, "nonzero"),
            ("[mirrors]\ndebian = 5\n", 2, "a URL or an array of URLs"),
            ("jobs =\n", 1, ""),
        ] {
            let error = parse(text, Path::new("/etc/srp/config.toml")).expect_err("malformed");
            let text = error.to_string();
            assert!(text.starts_with(&format!("/etc/srp/config.toml:{line}: ")), "{text}");
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_first_file_wins_key_by_key() {
        let user = "jobs = 2\nsources = ['mine']\n[mirrors]\ndebian = 'http://a.test'\n";
        let machine = "jobs = 9\ncores = 4\nsources = ['/srv/sources']\n\
                       [mirrors]\ndebian = ['http://b.test']\ngnu = ['http://c.test', 'http://d.test']\n";
        let mut config = Config::default();
        for (text, path) in [(user, "/home/u/.config/srp/config.toml"), (machine, MACHINE_FILE)] {
            let file = parse(text, Path::new(path)).expect("valid");
            config.add(file, Path::new(path)).expect("valid");
        }
        assert_eq!((config.jobs, config.cores), (Some(2), Some(4)));
        assert_eq!(config.mirrors["debian"], ["http://a.test"]);
        assert_eq!(config.mirrors["gnu"], ["http://c.test", "http://d.test"]);
        let sources = ["/home/u/.config/srp/mine", "/srv/sources"].map(PathBuf::from);
        assert_eq!(config.sources, sources);
    }

    #[test]
    fn syncing_is_on_unless_it_is_said_to_be_off() {
        let unsynced = |pairs| Config::load(&environment(pairs)).map(|config| config.unsynced).ok();
        assert_eq!(unsynced(&[]), Some(false));
        assert_eq!(unsynced(&[("SRP_SYNC", "on")]), Some(false));
        assert_eq!(unsynced(&[("SRP_SYNC", "off")]), Some(true));
        assert_eq!(unsynced(&[("SRP_SYNC", "0")]), None);
        assert_eq!(unsynced(&[("SRP_SYNC", "")]), None);
    }

    #[test]
    fn the_store_is_where_the_specification_says() {
        let store = |pairs, is_root| default_store(&environment(pairs), is_root).ok();
        assert_eq!(store(&[("HOME", "/home/u")], true), Some("/var/lib/srp".into()));
        assert_eq!(store(&[("HOME", "/home/u")], false), Some("/home/u/.local/share/srp".into()));
        let both: &'static [_] = &[("HOME", "/home/u"), ("XDG_DATA_HOME", "/data")];
        assert_eq!(store(both, false), Some("/data/srp".into()));
        let relative: &'static [_] = &[("HOME", "/home/u"), ("XDG_DATA_HOME", "data")];
        assert_eq!(store(relative, false), Some("/home/u/.local/share/srp".into()));
        assert_eq!(store(&[("HOME", "")], false), None);
    }

    #[test]
    fn definitions_are_found_above() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = directory.path().join("a/b");
        std::fs::create_dir_all(&below).expect("created");
        let definitions = directory.path().join("derivations");
        std::fs::create_dir(&definitions).expect("created");
        assert_eq!(find_definitions(&below), None);
        std::fs::write(definitions.join("main.star"), "").expect("written");
        assert_eq!(find_definitions(&below), Some(definitions));
    }
}
