//! Configuration: two small TOML files, the environment, and what follows from them.
//!
//! This and the command line are the only places where srp learns of the environment and of home
//! directories; the libraries get plain values. The user's file wins over the machine's, key by
//! key; the environment wins over both, and options win over everything.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected};
use srp_builder::fetch::Mirrors;
use srp_store::Validity;
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
    /// How much disk one build may take.
    pub(crate) disk_mib: Option<u64>,
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
    /// What one evaluation of definitions may take.
    pub(crate) evaluation: Evaluation,
    /// When garbage is collected without being asked for, and what then stays.
    pub(crate) gc: Gc,
    /// Where the user's keys are; none if nothing says where home is.
    pub(crate) keys: Option<PathBuf>,
    /// Whether things are registered without waiting for the disk.
    pub(crate) unsynced: bool,
    /// How long what verification found is valid, where that is said.
    pub(crate) verification: Verification,
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

/// What one evaluation of definitions may take, where that is not as ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evaluation {
    pub(crate) memory_mib: Option<u64>,
    /// Of processor time.
    pub(crate) seconds: Option<u64>,
}

/// How long what verification found is valid, where that is not as ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verification {
    pub(crate) building: Option<Duration>,
    pub(crate) signing: Option<Duration>,
}

/// When garbage is collected without being asked for, and what then stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gc {
    /// When less is free on the store's file system.
    pub(crate) min_free_mib: Option<u64>,
    /// When the store takes more.
    pub(crate) max_size_mib: Option<u64>,
    /// What was made or used within so many days stays.
    pub(crate) older_than_days: Option<u64>,
}

/// A configuration file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    jobs: Option<Count>,
    cores: Option<Count>,
    memory_mib: Option<Count>,
    disk_mib: Option<Count>,
    output_mib: Option<Count>,
    output_entries: Option<Count>,
    #[serde(default)]
    mirrors: BTreeMap<String, Urls>,
    #[serde(default)]
    sources: List<PathBuf>,
    #[serde(default)]
    caches: List<ConfiguredCache>,
    #[serde(default)]
    trust: WrittenTrust,
    #[serde(default)]
    evaluation: WrittenEvaluation,
    #[serde(default)]
    verification: WrittenVerification,
    #[serde(default)]
    gc: WrittenGc,
}

/// The table `[trust]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTrust {
    #[serde(default)]
    keys: List<String>,
    threshold: Option<Count>,
    refuse_emulated: Option<bool>,
}

/// The table `[evaluation]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEvaluation {
    memory_mib: Option<Count>,
    seconds: Option<Count>,
}

/// The table `[verification]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenVerification {
    building: Option<Time>,
    signing: Option<Time>,
}

/// A time as it is written: `"12h"`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Time(Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Time, String> {
        parse_time(&text).map(Time)
    }
}

/// `90s`, `30m`, `12h`, `30d`.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let parse = || {
        let unit = text.chars().last()?;
        let number: u64 = text[..text.len() - unit.len_utf8()].parse().ok()?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 60 * 60,
            'd' => 24 * 60 * 60,
            _ => return None,
        };
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    parse().ok_or_else(|| "a number and s, m, h or d are expected, such as 30d".to_owned())
}

/// The table `[gc]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGc {
    min_free_mib: Option<Count>,
    max_size_mib: Option<Count>,
    older_than_days: Option<Count>,
}

/// How many of something there are: one at least.
#[derive(Clone, Copy, Debug)]
struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Count, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1, without quotes")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Count, E> {
                match u32::try_from(number) {
                    Ok(number) if number > 0 => Ok(Count(number)),
                    _ => Err(E::invalid_value(Unexpected::Signed(number), &self)),
                }
            }
        }
        from.deserialize_i64(Visitor)
    }
}

/// A list, which is called that when there is something else.
#[derive(Debug)]
struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> List<T> {
        List(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<List<T>, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, in square brackets")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut from: A) -> Result<List<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = from.next_element()? {
                    items.push(item);
                }
                Ok(List(items))
            }
        }
        from.deserialize_seq(Visitor(PhantomData))
    }
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
    /// A binary cache is where nothing can be had from.
    #[error(
        "{}: a cache can't be at {url:?}: https://, http://, s3://, file:// or a directory is expected",
        path.display()
    )]
    CacheUrl { path: PathBuf, url: String },
    /// An evaluation couldn't even begin.
    #[error(
        "{}: memory_mib of [evaluation] is {mib}, and has to be {} at least",
        path.display(),
        srp_eval::Limits::LEAST_MEMORY_MIB
    )]
    EvaluationMemory { path: PathBuf, mib: u64 },
    /// The variable has another value than those it can have.
    #[error("SRP_SYNC is {value:?}, and can be `on` or `off`")]
    Sync { value: OsString },
    /// The variable is no time.
    #[error("{variable} is {value:?}: {message}")]
    Time { variable: &'static str, value: String, message: String },
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
        let time = |variable: &'static str| {
            let value = text(environment, variable);
            let parse = |value: String| {
                parse_time(&value).map_err(|message| ConfigError::Time { variable, value, message })
            };
            value.map(parse).transpose()
        };
        let verification = Verification {
            building: time("SRP_VERIFY_BUILDING")?,
            signing: time("SRP_VERIFY_SIGNING")?,
        };
        let mut config = Config { unsynced, verification, ..Config::default() };
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

    /// How long what verification found is valid.
    pub(crate) fn validity(&self) -> Validity {
        let usual = Validity::default();
        let Verification { building, signing } = self.verification;
        Validity {
            building: building.unwrap_or(usual.building),
            signing: signing.unwrap_or(usual.signing),
        }
    }

    /// How much one output, or one source unpacked, may be.
    pub(crate) fn output_limits(&self) -> Limits {
        let mib = self.output_mib.unwrap_or(OUTPUT_MIB);
        let size_bytes = Some(mib.saturating_mul(1 << 20));
        Limits { size_bytes, entries: Some(self.output_entries.unwrap_or(OUTPUT_ENTRIES)) }
    }

    /// Takes over what is not said yet.
    fn add(&mut self, file: File, path: &Path) -> Result<(), ConfigError> {
        let count = |count: Option<Count>| count.map(|Count(number)| u64::from(number));
        let size = |count: Option<Count>| count.and_then(|Count(number)| number.try_into().ok());
        self.jobs = self.jobs.or(size(file.jobs));
        self.cores = self.cores.or(size(file.cores));
        self.memory_mib = self.memory_mib.or(count(file.memory_mib));
        self.disk_mib = self.disk_mib.or(count(file.disk_mib));
        self.output_mib = self.output_mib.or(count(file.output_mib));
        self.output_entries = self.output_entries.or(count(file.output_entries));
        let evaluation = count(file.evaluation.memory_mib);
        if let Some(mib) = evaluation.filter(|mib| *mib < srp_eval::Limits::LEAST_MEMORY_MIB) {
            return Err(ConfigError::EvaluationMemory { path: path.to_owned(), mib });
        }
        self.evaluation.memory_mib = self.evaluation.memory_mib.or(evaluation);
        self.evaluation.seconds = self.evaluation.seconds.or(count(file.evaluation.seconds));
        let time = |time: Option<Time>| time.map(|Time(time)| time);
        let verification = &mut self.verification;
        verification.building = verification.building.or(time(file.verification.building));
        verification.signing = verification.signing.or(time(file.verification.signing));
        self.gc.min_free_mib = self.gc.min_free_mib.or(count(file.gc.min_free_mib));
        self.gc.max_size_mib = self.gc.max_size_mib.or(count(file.gc.max_size_mib));
        self.gc.older_than_days = self.gc.older_than_days.or(count(file.gc.older_than_days));
        for (name, urls) in file.mirrors {
            let urls = match urls {
                Urls::One(url) => vec![url],
                Urls::Several(urls) => urls,
            };
            self.mirrors.entry(name).or_insert(urls);
        }
        // A relative directory lies beside the file that names it.
        let directory = path.parent().unwrap_or(Path::new("/"));
        self.sources.extend(file.sources.0.iter().map(|source| directory.join(source)));
        for mut cache in file.caches.0 {
            match cache.url.split_once("://") {
                Some(("https" | "http" | "s3" | "file", rest)) if !rest.is_empty() => {}
                Some(_) => {
                    return Err(ConfigError::CacheUrl { path: path.to_owned(), url: cache.url });
                }
                None => cache.url = directory.join(&cache.url).to_string_lossy().into_owned(),
            }
            self.caches.push(cache);
        }
        for text in file.trust.keys.0 {
            let key = text.parse().map_err(|source| {
                let (path, text) = (path.to_owned(), text.clone());
                ConfigError::Key { path, text, source }
            })?;
            self.trust.keys.push(key);
        }
        self.trust.threshold = self.trust.threshold.or(size(file.trust.threshold));
        self.trust.refuse_emulated = self.trust.refuse_emulated.or(file.trust.refuse_emulated);
        Ok(())
    }
}

fn parse(text: &str, path: &Path) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..offset];
        let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |it| it + 1);
        let line = text[..begin].bytes().filter(|byte| *byte == b'\n').count() + 1;
        let message = match text[begin..].lines().next().and_then(valueless) {
            Some(key) => format!("the value of `{key}` is missing"),
            None => error.message().to_owned(),
        };
        ConfigError::Malformed { path: path.to_owned(), line, message }
    })
}

/// The key of a line that ends after it.
fn valueless(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    (value.is_empty() || value.starts_with('#')).then_some(key.trim())
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
            ("\n\ncores = 0\n", 3, "a whole number from 1, without quotes"),
            ("jobs = \"4\"\n", 1, "a whole number from 1, without quotes"),
            ("jobs = -1\n", 1, "a whole number from 1, without quotes"),
            ("[trust]\nthreshold = 1.5\n", 2, "a whole number from 1, without quotes"),
            ("[mirrors]\ndebian = 5\n", 2, "a URL or an array of URLs"),
            ("sources = \"/srv\"\n", 1, "a list, in square brackets"),
            ("[trust]\nkeys = \"k:1\"\n", 2, "a list, in square brackets"),
            ("jobs =\n", 1, "the value of `jobs` is missing"),
            ("jobs = 1\ncores = # all\n", 2, "the value of `cores` is missing"),
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
    fn what_nothing_can_be_had_from_is_no_cache() {
        for (url, fine) in [
            ("https://cache.test/srp", true),
            ("s3://bucket", true),
            ("file:///srv/cache", true),
            ("caches/mine", true),
            ("foo://bar", false),
            ("https://", false),
        ] {
            let path = Path::new(MACHINE_FILE);
            let file = parse(&format!("[[caches]]\nurl = '{url}'\n"), path).expect("valid");
            let added = Config::default().add(file, path);
            assert_eq!(added.is_ok(), fine, "{url}: {added:?}");
        }
    }

    #[test]
    fn an_evaluation_has_enough_memory_to_begin() {
        let add = |text| {
            Config::default().add(parse(text, Path::new("f")).expect("valid"), Path::new("f"))
        };
        assert!(add("[evaluation]\nmemory_mib = 512\nseconds = 1\n").is_ok());
        let error = add("[evaluation]\nmemory_mib = 511\n").expect_err("too little").to_string();
        assert_eq!(error, "f: memory_mib of [evaluation] is 511, and has to be 512 at least");
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
