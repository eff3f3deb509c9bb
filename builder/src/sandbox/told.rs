//! What the kernel tells of the machine and of itself in `/proc`, and the same of another machine.
//!
//! Scripts read it, and so do C libraries: where there is no `/sys`, as in a sandbox, they count the
//! processors in `/proc/stat`. What a program asks the processor itself, or is told by the kernel
//! when it begins, stays as it is: nothing but an emulator could change that.

use super::plan::Attributes;

/// What another processor is called, wherever it has a name.
pub(crate) const ANOTHER: &str = "audit-processor";
/// What an old kernel is called beside its release.
pub(crate) const ANOTHER_KERNEL: &str = "audit-kernel";

/// What every processor of the architecture can do, by the kernel's names for it.
const BASELINE: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge",
    "mca", "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
    "fp", "asimd",
];

/// Where it is told: paths in `/proc`.
const PROCESSORS: &str = "cpuinfo";
const STATISTICS: &str = "stat";
const VERSION: &str = "version";
const RELEASE: &str = "sys/kernel/osrelease";
const COMPILED: &str = "sys/kernel/version";
const BOOT: &str = "sys/kernel/random/boot_id";

/// What of `/proc` tells something else under these attributes.
pub(super) fn covered(attributes: &Attributes) -> Vec<&'static str> {
    let fewer = attributes.processors.is_some();
    let old = attributes.old_kernel;
    [
        (PROCESSORS, fewer || attributes.other_processor),
        (STATISTICS, fewer),
        (VERSION, old),
        (RELEASE, old),
        (COMPILED, old),
        (BOOT, old),
    ]
    .into_iter()
    .filter_map(|(path, covered)| covered.then_some(path))
    .collect()
}

/// What one of these files tells instead; `None` if there is nothing in it that could be otherwise.
pub(super) fn instead(path: &str, text: &str, attributes: &Attributes) -> Option<String> {
    let release = |text: &str| old_release(text.trim_end());
    Some(match path {
        PROCESSORS => {
            let other = attributes.other_processor.then(|| another(text));
            let text = other.unwrap_or_else(|| Some(text.to_owned()))?;
            match attributes.processors {
                Some(fewer) => first_processors(&text, fewer.count),
                None => text,
            }
        }
        STATISTICS => without_processors(text, attributes.processors?.count),
        VERSION => {
            let found = text.split_whitespace().nth(2)?;
            format!("Linux version {} ({ANOTHER_KERNEL}) #1\n", release(found)?)
        }
        RELEASE => release(text)? + "\n",
        COMPILED => format!("#1 {ANOTHER_KERNEL}\n"),
        BOOT => "a0d17a0d-17a0-4d17-8a0d-17a0d17a0d17\n".to_owned(),
        _ => return None,
    })
}

/// The paragraphs of the first processors in `/proc/cpuinfo`; where processors have none, all.
fn first_processors(text: &str, count: usize) -> String {
    let is_one = |paragraph: &&str| paragraph.starts_with("processor");
    let others = text.split("\n\n").filter(|paragraph| !is_one(paragraph));
    let kept: Vec<&str> = text.split("\n\n").filter(is_one).take(count).chain(others).collect();
    kept.join("\n\n")
}

/// `/proc/stat` with lines for so many processors.
fn without_processors(text: &str, count: usize) -> String {
    let (mut kept, mut seen) = (String::new(), 0);
    for line in text.lines() {
        seen += usize::from(is_processor(line));
        if !is_processor(line) || seen <= count {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

/// How many processors there are by the text of `/proc/stat`.
pub(crate) fn processors(text: &str) -> usize {
    text.lines().filter(|line| is_processor(line)).count()
}

fn is_processor(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A kernel's release as the personality `UNAME26` has it: `6.1.0-13` is `2.6.61-13`.
fn old_release(release: &str) -> Option<String> {
    let minor: u32 = release.split(|c: char| !c.is_ascii_digit()).nth(1)?.parse().ok()?;
    let numbers = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    let third = release[..numbers].match_indices('.').nth(2).map_or(numbers, |(at, _)| at);
    Some(format!("2.6.{}{}", 60 + minor, &release[third..]))
}

/// What the first processor is, in a line: all that [`another`] changes, but for what changes by
/// itself.
pub(crate) fn model(text: &str) -> String {
    let first = text.split("\n\n").next().unwrap_or_default();
    let told = first.lines().filter_map(field).filter(|(key, _)| changed(key).is_some());
    let told = told.filter(|(key, _)| !["cpu MHz", "bogomips", "BogoMIPS"].contains(key));
    told.map(|(_, value)| value).collect::<Vec<_>>().join(", ")
}

/// The same text about another processor, which can do less; `None` if nothing in it says which it
/// is.
pub(crate) fn another(text: &str) -> Option<String> {
    let mut told = String::new();
    let mut is_another = false;
    for line in text.lines() {
        let changed = field(line).and_then(|(key, value)| Some((value, changed(key)?(value))));
        match changed {
            Some((value, other)) if value != other => {
                let label = &line[..line.len() - value.len()];
                told += &format!("{}{other}", label);
                is_another = true;
            }
            _ => told += line,
        }
        told.push('\n');
    }
    is_another.then_some(told)
}

fn field(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    Some((key.trim_end(), value.trim_start()))
}

/// What another processor has in a field.
fn changed(key: &str) -> Option<fn(&str) -> String> {
    Some(match key {
        "model name" => |_| ANOTHER.to_owned(),
        "flags" | "Features" => |value| {
            let known = value.split_whitespace().filter(|flag| BASELINE.contains(flag));
            known.collect::<Vec<_>>().join(" ")
        },
        "model" | "stepping" | "CPU revision" => |_| "1".to_owned(),
        "CPU part" => |_| "0xfff".to_owned(),
        "microcode" => |_| "0x1".to_owned(),
        "cache size" => |_| "1024 KB".to_owned(),
        "cpu MHz" => |_| "1000.000".to_owned(),
        "bogomips" | "BogoMIPS" => |_| "2000.00".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_has_another_name_and_can_do_less() {
        let text = "processor\t: 0\nvendor_id\t: Some\nmodel\t\t: 85\nmodel name\t: Some CPU @ 3 GHz\n\
                    cpu MHz\t\t: 3000.123\nflags\t\t: fpu sse2 avx2 lm\n\n\
                    processor\t: 1\nflags\t\t: fpu avx2\n";
        let expected = "processor\t: 0\nvendor_id\t: Some\nmodel\t\t: 1\n\
                        model name\t: audit-processor\ncpu MHz\t\t: 1000.000\n\
                        flags\t\t: fpu sse2 lm\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(another(text).as_deref(), Some(expected));
        assert_eq!(model(text), "85, Some CPU @ 3 GHz, fpu sse2 avx2 lm");
        assert_eq!(model(expected), "1, audit-processor, fpu sse2 lm");
        let arm =
            "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU part\t: 0xd0c\n";
        assert_eq!(model(&another(arm).expect("it is one")), "fp asimd, 0xfff");
        assert_eq!(another("processor\t: 0\nhart\t: 0\n"), None);
        assert_eq!(another(""), None);
    }

    #[test]
    fn fewer_processors_are_told_of() {
        let attributes = Attributes {
            processors: Some(super::super::Processors { count: 1, after: 0 }),
            other_processor: true,
            ..Attributes::default()
        };
        assert_eq!(covered(&attributes), [PROCESSORS, STATISTICS]);
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Some\n\nprocessor\t: 1\nmodel name\t: Some\n\n";
        let told = instead(PROCESSORS, cpuinfo, &attributes);
        assert_eq!(told.as_deref(), Some("processor\t: 0\nmodel name\t: audit-processor\n\n"));
        // Some architectures tell of the machine after its processors.
        assert_eq!(
            first_processors("processor\t: 0\n\nprocessor\t: 1\n\nHardware: x\n", 1),
            "processor\t: 0\n\nHardware: x\n"
        );
        let statistics = "cpu  1 2\ncpu0 1 1\ncpu1 0 1\nintr 7\nctxt 9\n";
        let told = instead(STATISTICS, statistics, &attributes).expect("it is told");
        assert_eq!(told, "cpu  1 2\ncpu0 1 1\nintr 7\nctxt 9\n");
        assert_eq!([processors(statistics), processors(&told)], [2, 1]);
    }

    #[test]
    fn an_old_kernel_is_the_one_that_uname_tells_of() {
        let cases = [
            ("6.1.0-13-amd64", "2.6.61-13-amd64"),
            ("5.15.167.4-x", "2.6.75.4-x"),
            ("6.18.5", "2.6.78"),
            ("6.18", "2.6.78"),
        ];
        for (release, expected) in cases {
            assert_eq!(old_release(release).as_deref(), Some(expected));
        }
        let attributes = Attributes { old_kernel: true, ..Attributes::default() };
        let version = "Linux version 6.1.0-13-amd64 (a@b) (gcc 12) #1 SMP 2026\n";
        let told = instead(VERSION, version, &attributes);
        assert_eq!(told.as_deref(), Some("Linux version 2.6.61-13-amd64 (audit-kernel) #1\n"));
        assert_eq!(instead(RELEASE, "6.1.0\n", &attributes).as_deref(), Some("2.6.61\n"));
        assert_eq!(covered(&Attributes::default()), [""; 0]);
    }
}
