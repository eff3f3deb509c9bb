//! What an audit varies: each dimension a small description of what it changes in a sandbox's plan,
//! and of what in the build's own view shows that it took effect.
//!
//! A dimension never changes what a build is given (inputs, command, the derivation's own
//! variables), only the circumstances that no build should depend on. What it can't vary here it
//! refuses with a reason; that is reported, and is not the same as "identical".

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::build::{BUILD_PATH, JOBSERVER_VARIABLES, environment_of_every_build, rename_host};
use crate::sandbox::told;
use crate::sandbox::{BinfmtHandler, Observation, Processors, SandboxPlan, SkeletonEntry, Stdio};

/// A circumstance of a build that must not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// The time of day.
    Clock,
    /// The host's name.
    Hostname,
    /// Where the build directory is.
    BuildPath,
    /// The user: number, group and name.
    User,
    /// The file mode creation mask.
    Umask,
    /// `LANG` and `LC_ALL`.
    Locale,
    /// `TZ`.
    TimeZone,
    /// How many processors there are, and so how many jobs are asked for.
    Processors,
    /// A variable more in the environment.
    Environment,
    /// Whether standard input and output are a terminal.
    Terminal,
    /// Whether address spaces are laid out at random.
    Addresses,
    /// The kernel's release, and what else it tells of itself in `/proc`.
    Kernel,
    /// The processor's model and what it can do, as `/proc/cpuinfo` says it.
    CpuModel,
    /// The order in which the entries of directories are listed.
    DirectoryOrder,
    /// The file system of the build directory and `/tmp`.
    FileSystem,
    /// What runs the build's programs: this machine's processor, or an emulator of it.
    Runner,
}

/// What there is to vary with.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// How many processors srp may use.
    pub(crate) processors: usize,
    /// How much memory there is for a build's files.
    pub(crate) memory_bytes: u64,
    /// An upper estimate of what the build writes beside its outputs.
    pub(crate) build_bytes: u64,
    /// Whether the store is in memory.
    pub(crate) store_in_memory: bool,
    /// How long a rebuild may take whose definition sets no limit.
    pub(crate) limit_seconds: u64,
    /// What of its values a dimension takes: what cancels out in one round doesn't in the next.
    pub(crate) turn: usize,
    /// An emulator of this machine's own architecture; or why the runner can't be another.
    pub(crate) emulator: Result<Emulator, String>,
}

/// An emulator, ready to run programs of the machine's own architecture.
#[derive(Clone, Debug)]
pub(crate) struct Emulator {
    /// Which programs it runs.
    pub(crate) handler: BinfmtHandler,
    /// What it is told.
    pub(crate) environment: Vec<(String, String)>,
    /// Its name, as a record names a runner.
    pub(crate) name: String,
}

/// What a dimension changed, in words: what every build has, and what this one had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variation {
    /// As in every build.
    pub usual: String,
    /// As in the audit's.
    pub varied: String,
}

/// Three years and some months: another year, month, day of the week and hour. In the time zone
/// below it is half a day further, so that morning and afternoon don't come out the same.
const AHEAD_SECONDS: u32 = (3 * 365 + 99) * 86_400 + 22 * 3600 + 22 * 60;
/// So much further with every turn, but for some: all of it lies before 2038.
const FURTHER_SECONDS: u32 = 211 * 86_400 + 7 * 3600 + 13 * 60;
const CLOCK_TURNS: usize = 8;
const HOSTNAME: &str = "audit-host";
/// Longer than the usual one, and not below it. It begins alike, so that what recipes do about
/// `/srp/` as a whole still works.
const ELSEWHERE: &str = "/srp/elsewhere/build";
const USER: (u32, u32, &str) = (2718, 3141, "auditor");
const UMASK: u32 = 0o027;
/// In no root: programs then behave as without any locale, but see the name.
const LOCALE: &str = "de_CH.UTF-8";
/// Offsets with odd minutes, east and west, in the one notation that needs no database.
const TIME_ZONES: [&str; 2] = ["AUD-13:45", "AUD+9:30"];
const VARIABLE: (&str, &str) = ("SRP_AUDIT_VARIABLE", "audit-variable-value");
const TMPFS: i64 = 0x0102_1994;

impl Dimension {
    /// Every dimension, in the order in which reports name them.
    pub const ALL: &[Dimension] = &[
        Dimension::Clock,
        Dimension::Hostname,
        Dimension::BuildPath,
        Dimension::User,
        Dimension::Umask,
        Dimension::Locale,
        Dimension::TimeZone,
        Dimension::Processors,
        Dimension::Environment,
        Dimension::Terminal,
        Dimension::Addresses,
        Dimension::Kernel,
        Dimension::CpuModel,
        Dimension::DirectoryOrder,
        Dimension::FileSystem,
        Dimension::Runner,
    ];

    /// The name on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Dimension::Clock => "clock",
            Dimension::Hostname => "hostname",
            Dimension::BuildPath => "build-path",
            Dimension::User => "user",
            Dimension::Umask => "umask",
            Dimension::Locale => "locale",
            Dimension::TimeZone => "time-zone",
            Dimension::Processors => "processors",
            Dimension::Environment => "environment",
            Dimension::Terminal => "terminal",
            Dimension::Addresses => "addresses",
            Dimension::Kernel => "kernel",
            Dimension::CpuModel => "cpu-model",
            Dimension::DirectoryOrder => "directory-order",
            Dimension::FileSystem => "file-system",
            Dimension::Runner => "runner",
        }
    }

    /// Whether it is varied by itself only, and only if it is named: emulated builds take many times
    /// as long, and an emulator would hide from programs what other dimensions vary.
    #[must_use]
    pub fn by_itself(self) -> bool {
        self == Dimension::Runner
    }

    /// Changes a plan, or says why that can't be done or would show nothing.
    pub(crate) fn apply(
        self,
        plan: &mut SandboxPlan,
        around: &Surroundings,
    ) -> Result<Variation, String> {
        let changed = |usual: &str, varied: &str| {
            Ok(Variation { usual: usual.to_owned(), varied: varied.to_owned() })
        };
        match self {
            Dimension::Clock if !plan.abis.is_empty() => {
                Err("programs of another ABI would see the usual time".to_owned())
            }
            Dimension::Clock => {
                let further = (around.turn % CLOCK_TURNS) as u32 * FURTHER_SECONDS;
                let ahead = AHEAD_SECONDS + further;
                plan.attributes.clock_ahead_seconds = Some(ahead);
                changed("now", &format!("{} days ahead", ahead / 86_400))
            }
            Dimension::Hostname => {
                let usual = rename_host(plan, HOSTNAME);
                changed(&usual, HOSTNAME)
            }
            Dimension::BuildPath => {
                plan.cwd = ELSEWHERE.to_owned();
                for bind in plan.binds.iter_mut().filter(|bind| bind.target == BUILD_PATH) {
                    bind.target = ELSEWHERE.to_owned();
                }
                for path in plan.memory.iter_mut().filter(|path| *path == BUILD_PATH) {
                    *path = ELSEWHERE.to_owned();
                }
                if plan.env.get("HOME").is_some_and(|home| home == BUILD_PATH) {
                    plan.env.insert("HOME".to_owned(), ELSEWHERE.to_owned());
                }
                // Every build is promised that path: a recipe that names it means the directory.
                plan.skeleton.push(SkeletonEntry::Symlink {
                    path: BUILD_PATH.to_owned(),
                    target: ELSEWHERE.to_owned(),
                });
                changed(BUILD_PATH, ELSEWHERE)
            }
            Dimension::User => {
                let usual = format!("{}:{}", plan.uid, plan.gid);
                rename_user(plan);
                changed(&usual, &format!("{}:{} ({})", USER.0, USER.1, USER.2))
            }
            Dimension::Umask => {
                let usual = std::mem::replace(&mut plan.attributes.umask, UMASK);
                changed(&format!("{usual:03o}"), &format!("{UMASK:03o}"))
            }
            Dimension::Locale => {
                let names = ["LANG", "LC_ALL"].map(|name| vary_variable(plan, name, LOCALE));
                match names.into_iter().flatten().next() {
                    Some(usual) => changed(&usual, LOCALE),
                    None => Err("the derivation sets LANG and LC_ALL itself".to_owned()),
                }
            }
            Dimension::TimeZone => {
                let zone = TIME_ZONES[around.turn % TIME_ZONES.len()];
                match vary_variable(plan, "TZ", zone) {
                    Some(usual) => changed(&usual, zone),
                    None => Err("the derivation sets TZ itself".to_owned()),
                }
            }
            Dimension::Processors => processors(plan, around.processors),
            Dimension::Environment => {
                plan.env.insert(VARIABLE.0.to_owned(), VARIABLE.1.to_owned());
                changed("", &format!("{}={}", VARIABLE.0, VARIABLE.1))
            }
            Dimension::Terminal => {
                // Where none can be made, no build needs to fail to show it.
                nix::pty::openpty(None, None)
                    .map_err(|error| format!("no terminal can be made: {error}"))?;
                plan.stdio = Stdio::Terminal;
                changed("none", "a terminal")
            }
            Dimension::Addresses => {
                plan.attributes.random_addresses = false;
                changed("random", "fixed")
            }
            Dimension::Kernel if !plan.binfmt.is_empty() => {
                Err("an emulator says which kernel there is".to_owned())
            }
            Dimension::Kernel => {
                plan.attributes.old_kernel = true;
                changed("the machine's", "2.6")
            }
            Dimension::CpuModel => cpu_model(plan),
            Dimension::DirectoryOrder if !plan.abis.is_empty() => {
                Err("programs of another ABI would see the usual order".to_owned())
            }
            Dimension::DirectoryOrder => {
                plan.attributes.reversed_directories = true;
                changed("the file system's", "reversed")
            }
            Dimension::FileSystem => file_system(plan, around),
            Dimension::Runner if !plan.abis.is_empty() => {
                Err("programs of another ABI would run without an emulator".to_owned())
            }
            Dimension::Runner => {
                let emulator = around.emulator.as_ref().map_err(Clone::clone)?;
                plan.binfmt.push(emulator.handler.clone());
                plan.env.extend(emulator.environment.iter().cloned());
                // They are meant for this machine's own speed.
                (plan.limits.seconds, plan.limits.silence_seconds) = (None, None);
                changed("native", &emulator.name)
            }
        }
    }

    /// Whether the build saw what the plan says, and not what it would have seen otherwise; else
    /// what it saw. The environment is what the kernel was given.
    pub(crate) fn took_effect(
        self,
        plan: &SandboxPlan,
        usual: &Observation,
        seen: &Observation,
    ) -> Result<(), String> {
        let check = |saw: &dyn fmt::Display, wanted: bool, differs: bool| match (wanted, differs) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("the build saw {saw} all the same")),
            (true, false) => Err(format!("without it the build sees {saw}, too")),
        };
        match self {
            Dimension::Clock => {
                let ahead = i64::from(plan.attributes.clock_ahead_seconds.unwrap_or(0));
                // Neither was looked at in the same second.
                let wanted = seen.seconds > usual.seconds + ahead / 2;
                check(&format!("{} s since 1970", seen.seconds), wanted, ahead > 0)
            }
            Dimension::Hostname => {
                let wanted = seen.hostname == plan.hostname;
                check(&seen.hostname, wanted, seen.hostname != usual.hostname)
            }
            Dimension::BuildPath => check(&seen.cwd, seen.cwd == plan.cwd, seen.cwd != usual.cwd),
            Dimension::User => {
                let wanted = (seen.uid, seen.gid) == (plan.uid, plan.gid);
                let differs = seen.uid != usual.uid && seen.gid != usual.gid;
                check(&format!("{}:{}", seen.uid, seen.gid), wanted, differs)
            }
            Dimension::Umask => {
                let wanted = seen.umask == plan.attributes.umask;
                check(&format!("{:03o}", seen.umask), wanted, seen.umask != usual.umask)
            }
            Dimension::Processors => {
                let kept = plan.attributes.processors.map_or(0, |it| it.count);
                check(&seen.processors, seen.processors == kept, kept != usual.processors)?;
                // Where it can't be read, nothing is told.
                let told = seen.processors_told == kept || usual.processors_told == 0;
                check(&seen.processors_told, told, true)
            }
            Dimension::Terminal => {
                check(&"no terminal", seen.terminal, seen.terminal != usual.terminal)
            }
            Dimension::Addresses => {
                let differs = seen.random_addresses != usual.random_addresses;
                check(&"random addresses", !seen.random_addresses, differs)
            }
            Dimension::Kernel => {
                let wanted = seen.kernel_release.starts_with("2.6.");
                let differs = seen.kernel_release != usual.kernel_release;
                check(&seen.kernel_release, wanted, differs)
            }
            Dimension::CpuModel => {
                check(&"the machine's processor", seen.cpu_model != usual.cpu_model, true)
            }
            Dimension::DirectoryOrder => {
                let differs = seen.reversed_directories != usual.reversed_directories;
                check(&"the usual order", seen.reversed_directories, differs)
            }
            Dimension::FileSystem => {
                let differs = seen.file_system != usual.file_system;
                check(&"the same file system", seen.file_system == TMPFS, differs)
            }
            Dimension::Runner => match seen.emulated {
                None => Err("it ended before its runner could be seen".to_owned()),
                Some(emulated) => {
                    check(&"this machine's processor", emulated, seen.emulated != usual.emulated)
                }
            },
            Dimension::Locale | Dimension::TimeZone | Dimension::Environment => Ok(()),
        }
    }

    /// Text that is in an output only if this dimension's variation got there.
    pub(crate) fn trace(self) -> Option<&'static str> {
        match self {
            Dimension::Hostname => Some(HOSTNAME),
            Dimension::BuildPath => Some(ELSEWHERE),
            Dimension::User => Some(USER.2),
            Dimension::Locale => Some("de_CH"),
            Dimension::TimeZone => Some("AUD"),
            Dimension::Environment => Some(VARIABLE.1),
            Dimension::Kernel => Some(told::ANOTHER_KERNEL),
            Dimension::CpuModel => Some(told::ANOTHER),
            _ => None,
        }
    }
}

/// Sets a variable that the derivation has left as it is in every build; its usual value.
fn vary_variable(plan: &mut SandboxPlan, name: &str, value: &str) -> Option<String> {
    let (_, usual) = environment_of_every_build().find(|(every, _)| *every == name)?;
    let current = plan.env.get_mut(name).filter(|current| **current == usual)?;
    Some(std::mem::replace(current, value.to_owned()))
}

/// Another user, who has a name as the usual one has.
fn rename_user(plan: &mut SandboxPlan) {
    let usual = (plan.uid.to_string(), plan.gid.to_string());
    (plan.uid, plan.gid) = (USER.0, USER.1);
    vary_variable(plan, "USER", USER.2);
    let (uid, gid) = (USER.0.to_string(), USER.1.to_string());
    for entry in &mut plan.skeleton {
        if let SkeletonEntry::File { path, content, .. } = entry
            && (path == "/etc/passwd" || path == "/etc/group")
        {
            let rename = |field: &str| match field {
                "build" => USER.2.to_owned(),
                field if field == usual.0 => uid.clone(),
                field => field.to_owned(),
            };
            let line = |line: &str| {
                let mut fields: Vec<String> = line.split(':').map(rename).collect();
                // In passwd the group follows the user's number.
                if fields.len() > 4 && fields[3] == uid && usual.0 == usual.1 {
                    fields[3].clone_from(&gid);
                } else if fields.len() == 4 && fields[2] == uid {
                    fields[2].clone_from(&gid);
                }
                fields.join(":") + "\n"
            };
            *content = content.lines().map(line).collect();
        }
    }
}

/// Half of the processors, and so many jobs.
fn processors(plan: &mut SandboxPlan, all: usize) -> Result<Variation, String> {
    if all < 2 {
        return Err("this machine has one processor".to_owned());
    }
    let usual = plan.env.get("SRP_CORES").cloned().unwrap_or_default();
    let fewer = all / 2;
    let jobs = if usual == fewer.to_string() { all } else { fewer }.to_string();
    // Not the same for all: what is rebuilt at the same time would share a few and leave the others.
    // A thread rebuilds one thing after the other, always on the same.
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    let before = THREAD.with(|number| number % all);
    plan.attributes.processors = Some(Processors { count: fewer, after: before * fewer });
    for name in JOBSERVER_VARIABLES {
        if let Some(flags) = plan.env.get_mut(*name) {
            *flags = flags.replacen(&format!("-j{usual}"), &format!("-j{jobs}"), 1);
        }
    }
    plan.env.insert("SRP_CORES".to_owned(), jobs.clone());
    let with = |processors: usize, jobs: &str| match jobs {
        "1" => format!("{processors}, 1 job"),
        several => format!("{processors}, {several} jobs"),
    };
    Ok(Variation { usual: with(all, &usual), varied: with(fewer, &jobs) })
}

/// Another processor, for what reads about it.
fn cpu_model(plan: &mut SandboxPlan) -> Result<Variation, String> {
    if !plan.binfmt.is_empty() {
        return Err("an emulator says which processor there is".to_owned());
    }
    let text = std::fs::read_to_string("/proc/cpuinfo")
        .map_err(|error| format!("/proc/cpuinfo can't be read: {error}"))?;
    if told::another(&text).is_none() {
        return Err("/proc/cpuinfo doesn't say which processor there is".to_owned());
    }
    plan.attributes.other_processor = true;
    let varied = format!("{}, with the least that it can do", told::ANOTHER);
    Ok(Variation { usual: "the machine's".to_owned(), varied })
}

/// The build directory and `/tmp` in memory.
fn file_system(plan: &mut SandboxPlan, around: &Surroundings) -> Result<Variation, String> {
    if around.store_in_memory {
        return Err("the store is in memory itself".to_owned());
    }
    if around.build_bytes > around.memory_bytes {
        return Err(format!(
            "it may write {} MiB, which don't fit in memory",
            around.build_bytes >> 20
        ));
    }
    let path = plan.cwd.clone();
    plan.binds.retain(|bind| bind.target != path && bind.target != "/tmp");
    plan.memory.push(path);
    Ok(Variation { usual: "the store's".to_owned(), varied: "in memory".to_owned() })
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Dimension {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Dimension {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dimension, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// No dimension is called that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no dimension {name:?}")]
pub struct NoDimension {
    /// What was asked for.
    name: String,
}

impl FromStr for Dimension {
    type Err = NoDimension;

    fn from_str(name: &str) -> Result<Dimension, NoDimension> {
        let found = Dimension::ALL.iter().find(|dimension| dimension.name() == name);
        found.copied().ok_or_else(|| NoDimension { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_and_the_time_zone_together_are_half_a_day() {
        let zone = 13 * 3600 + 45 * 60; // "-13:45" lies to the east
        assert_eq!(TIME_ZONES[0], "AUD-13:45");
        let half_days = f64::from(AHEAD_SECONDS + zone) / 43_200.0;
        assert!(half_days as u32 % 2 == 1 && half_days.fract() < 0.02, "{half_days}");
        // Neither alone nor together, morning or evening, do they come to whole weeks.
        let days = [AHEAD_SECONDS, AHEAD_SECONDS + zone].map(|seconds| seconds / 86_400);
        assert!(days.iter().all(|days| days % 7 != 0 && (days + 1) % 7 != 0), "{days:?}");
        // The last of 2037, as seen from 2027: clocks with 32 bits go on until January.
        let furthest = AHEAD_SECONDS + (CLOCK_TURNS as u32 - 1) * FURTHER_SECONDS;
        assert!(furthest < 10 * 365 * 86_400);
    }
}
