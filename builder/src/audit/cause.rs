//! Likely causes: a table of patterns, each with what gives it away and what to do about it.
//!
//! `docs/audit.md` has the same table. A pattern is a guess from what was seen, said as such.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::compare::{Change, Kind, Sign};
use super::dimension::Dimension;

/// A pattern of irreproducibility.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Its name in JSON and documentation.
    pub name: &'static str,
    /// What is the matter, in a sentence.
    pub what: &'static str,
    /// What to do about it.
    pub advice: &'static str,
    /// Any of these in a file gives it away …
    signs: &'static [Sign],
    /// … and so does any of these dimensions, whatever the files show.
    dimensions: &'static [Dimension],
}

/// A likely cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The pattern's name.
    pub pattern: Cow<'static, str>,
    /// What is the matter.
    pub what: Cow<'static, str>,
    /// What to do about it.
    pub advice: Cow<'static, str>,
}

impl From<&Pattern> for Cause {
    fn from(pattern: &Pattern) -> Cause {
        Cause {
            pattern: pattern.name.into(),
            what: pattern.what.into(),
            advice: pattern.advice.into(),
        }
    }
}

const fn pattern(
    name: &'static str,
    signs: &'static [Sign],
    dimensions: &'static [Dimension],
    what: &'static str,
    advice: &'static str,
) -> Pattern {
    Pattern { name, what, advice, signs, dimensions }
}

/// Every pattern, the more telling ones first.
pub const CAUSES: &[Pattern] = &[
    pattern(
        "compression-header",
        &[Sign::CompressionHeader],
        &[],
        "a compressed file has the time or name of what was compressed in its header",
        "gzip -n, or gzip of standard input",
    ),
    pattern(
        "member-time",
        &[Sign::MemberTime],
        &[],
        "an archive has the times of its members",
        "tar --mtime=@$SOURCE_DATE_EPOCH --pax-option=delete=atime,delete=ctime; ar with the modifier D; zip -X after touch -d @$SOURCE_DATE_EPOCH",
    ),
    pattern(
        "bytecode-time",
        &[Sign::BytecodeTime],
        &[],
        "compiled Python has the time of its source",
        "python3 -m compileall --invalidation-mode unchecked-hash, or SOURCE_DATE_EPOCH where it is compiled",
    ),
    pattern(
        "member-owner",
        &[Sign::MemberOwner],
        &[],
        "an archive has the owners of its members",
        "tar --owner=0 --group=0 --numeric-owner; ar with the modifier D; zip -X",
    ),
    pattern(
        "member-mode",
        &[Sign::MemberMode],
        &[],
        "an archive has its members' modes, which the umask had a part in",
        "install -m, or tar --mode=go=rX,u+rw,a-s",
    ),
    pattern(
        "build-path",
        &[Sign::BuildPath],
        &[Dimension::BuildPath],
        "the path of the build directory is in the output: __FILE__, debug information, a configuration that was installed",
        "-ffile-prefix-map=$PWD=. for compilers, relative paths for what else writes it",
    ),
    pattern(
        "host-name",
        &[Sign::Hostname],
        &[Dimension::Hostname],
        "the host's name is in the output",
        "give the program that writes it a fixed name, or leave it out",
    ),
    pattern(
        "locale",
        &[Sign::Locale],
        &[Dimension::Locale],
        "the locale changes how something is sorted, formatted or translated",
        "LC_ALL=C for sort and ls, and for whatever prints messages that are kept",
    ),
    pattern(
        "time-zone",
        &[Sign::TimeZone],
        &[Dimension::TimeZone],
        "a time is written in the local time zone",
        "date -u, gmtime instead of localtime, TZ=UTC",
    ),
    pattern(
        "user",
        &[Sign::User],
        &[Dimension::User],
        "the name or number of the user who builds is in the output",
        "leave it out, or give it a fixed value",
    ),
    pattern(
        "environment",
        &[Sign::Environment],
        &[Dimension::Environment],
        "variables of the environment that have nothing to do with the build are in the output",
        "write only those that are meant; env -i for what prints all of them",
    ),
    pattern(
        "umask",
        &[Sign::Mode],
        &[Dimension::Umask],
        "the umask decides about modes, and they are in the output",
        "install -m or chmod, instead of what mkdir and > leave",
    ),
    pattern(
        "processors",
        &[],
        &[Dimension::Processors],
        "the number of processors or of jobs is in the output, or decides how work is cut into pieces",
        "a fixed number of pieces; leave the number out of what is written",
    ),
    pattern(
        "kernel",
        &[Sign::Kernel],
        &[Dimension::Kernel],
        "the release of the kernel that builds is in the output, or decides what is built",
        "configure for a fixed release, not for the one that uname says",
    ),
    pattern(
        "cpu-model",
        &[Sign::CpuModel],
        &[Dimension::CpuModel],
        "the model of the processor that builds, or what it can do, is in the output or decides what is built",
        "configure for a fixed processor: no -march=native, no detection when it is built",
    ),
    pattern(
        "runner",
        &[],
        &[Dimension::Runner],
        "what the processor or the kernel says of itself (cpuid, getauxval, uname) is in the output or decides what is built, or a number is computed otherwise",
        "configure for a fixed processor and kernel: no -march=native, no detection when it is built",
    ),
    pattern(
        "terminal",
        &[],
        &[Dimension::Terminal],
        "a program behaves otherwise on a terminal (colours, progress, questions), and that is in the output",
        "redirect its output; --color=never; TERM=dumb",
    ),
    pattern(
        "date",
        &[Sign::Date],
        &[Dimension::Clock],
        "the date or time of the build is in the output",
        "SOURCE_DATE_EPOCH instead of the clock: date -u -d @$SOURCE_DATE_EPOCH; no __DATE__ and __TIME__ (-Werror=date-time finds them)",
    ),
    pattern(
        "file-system",
        &[],
        &[Dimension::FileSystem],
        "the file system shows: sizes of directories, inode numbers, the order of entries",
        "sort what is listed; leave out what ls -l and du say of directories",
    ),
    pattern(
        "order",
        &[Sign::Order],
        &[Dimension::DirectoryOrder, Dimension::FileSystem],
        "the same things in another order: a directory that is listed unsorted, a hash table, or jobs that end in another order",
        "sort what is listed (LC_ALL=C sort; $(sort $(wildcard …)); tar --sort=name), and don't collect in the order of completion",
    ),
    pattern(
        "addresses",
        &[],
        &[Dimension::Addresses],
        "addresses in memory decide or are written: printed pointers, hashes of pointers, sorting by address",
        "sort by a name or number; don't print pointers",
    ),
];

/// What is left when no pattern fits, and nothing was varied.
const RANDOM: Pattern = pattern(
    "random",
    &[],
    &[],
    "it differs from build to build: random bytes, a race between jobs, or the time",
    "look for /dev/urandom, mktemp names, uuidgen, and for jobs that write to one file",
);
/// As `RANDOM`, where rebuilds agree with each other.
const SLOW: Pattern = pattern(
    "since-registered",
    &[],
    &[],
    "rebuilds agree with each other, but not with what is registered: the date, or another machine or emulator",
    "SOURCE_DATE_EPOCH instead of the clock; compare srp show of both machines",
);
/// What the varied clock may do to builds that are reproducible.
const FILE_AGE: Pattern = pattern(
    "file-age",
    &[],
    &[],
    "the time of a file is compared with the time of day, or set to it and compared with others: the audit's clock is ahead, and the times that the kernel gives files are not",
    "if that is so, it is the audit's doing: leave clock out of --vary, and audit on another day",
);
/// As `RANDOM`, where one processor makes it steady.
const RACE: Pattern = pattern(
    "race",
    &[],
    &[],
    "it is steady on one processor: jobs race with each other",
    "declare what each job needs; don't collect in the order of completion",
);

/// Why a rebuild failed, as far as the dimensions tell.
pub(super) fn of_failure(when: &[Dimension]) -> Vec<Cause> {
    let is_it = |pattern: &&Pattern| pattern.dimensions.iter().any(|it| when.contains(it));
    let fails = |pattern: &Pattern| Cause {
        pattern: pattern.name.into(),
        what: format!("a check or test of the build fails, which minds this: {}", pattern.what)
            .into(),
        advice: format!("what fails is at the end of the log; {}", pattern.advice).into(),
    };
    CAUSES.iter().filter(is_it).map(fails).collect()
}

/// What is known of a difference.
pub(super) struct Seen<'a> {
    pub(super) when: &'a [Dimension],
    pub(super) steady_under: &'a [Dimension],
    pub(super) recurs: bool,
    pub(super) changes: &'a [Change],
}

/// The likely causes, the likeliest first.
pub(super) fn causes(seen: &Seen<'_>) -> Vec<Cause> {
    let signs: BTreeSet<Sign> = seen.changes.iter().flat_map(|it| it.signs.clone()).collect();
    let names_differ = seen.changes.iter().any(|it| matches!(it.kind, Kind::Added | Kind::Removed));
    let by_sign = |pattern: &&Pattern| pattern.signs.iter().any(|sign| signs.contains(sign));
    let by_dimension =
        |pattern: &&Pattern| pattern.dimensions.iter().any(|it| seen.when.contains(it));
    let steady =
        |pattern: &&Pattern| pattern.dimensions.iter().any(|it| seen.steady_under.contains(it));
    let mut found: Vec<&Pattern> = Vec::new();
    // What was varied is known; what the files look like is a guess.
    let race = seen.steady_under.contains(&Dimension::Processors);
    if seen.when.is_empty() && race && !signs.contains(&Sign::Date) {
        found.push(&RACE);
    }
    let addresses = CAUSES.iter().filter(|it| it.name == "addresses").filter(steady);
    found.extend(addresses);
    // A field of a header says what it is, and there is a switch for it: that helps more than to know
    // which dimension it shows.
    let is_field = |pattern: &&Pattern| pattern.dimensions.is_empty() && by_sign(pattern);
    found.extend(CAUSES.iter().filter(is_field));
    found.extend(CAUSES.iter().filter(|pattern| by_sign(pattern) && by_dimension(pattern)));
    found.extend(CAUSES.iter().filter(by_dimension));
    found.extend(CAUSES.iter().filter(by_sign));
    if seen.when.contains(&Dimension::Clock) && !signs.contains(&Sign::Date) {
        found.push(&FILE_AGE);
    }
    if found.is_empty() && seen.when.is_empty() {
        found.push(if seen.recurs { &SLOW } else { &RANDOM });
    }
    if found.is_empty() && names_differ {
        found.push(&RANDOM);
    }
    let mut causes: Vec<Cause> = Vec::new();
    for pattern in found {
        if causes.iter().all(|cause| cause.pattern != pattern.name) {
            causes.push(pattern.into());
        }
    }
    causes
}
