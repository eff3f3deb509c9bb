//! What the kernel writes about the processor, and the same about another one.
//!
//! This is `/proc/cpuinfo`, which scripts read. What a program asks the processor itself, or is told
//! by the kernel when it begins, stays as it is: nothing but an emulator could change that.

/// What another processor is called, wherever it has a name.
pub(crate) const ANOTHER: &str = "audit-processor";

/// What every processor of the architecture can do, by the kernel's names for it.
const BASELINE: &[&str] = &[
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge",
    "mca", "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
    "fp", "asimd",
];

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
}
