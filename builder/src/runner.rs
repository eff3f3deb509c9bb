//! Runners: whether a builder can run here, or what emulates it.
//!
//! This is about execution only. Whether a build is *cross* is decided by comparing triples, and a
//! runner is part of no derivation's hash: it is recorded in the realisation.

use std::collections::BTreeSet;

use srp_store::Triple;

/// This machine, as far as running programs goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    arch: String,
    cpu_features: BTreeSet<String>,
}

impl Machine {
    /// The machine that this program runs on.
    pub fn here() -> Machine {
        // Unreadable means that nothing is known to be there: what needs a feature is refused.
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine { arch: std::env::consts::ARCH.to_owned(), cpu_features: cpu_features(&cpuinfo) }
    }

    /// A machine of another architecture, for plans and tests.
    pub fn of_arch(arch: &str) -> Machine {
        Machine { arch: arch.to_owned(), cpu_features: BTreeSet::new() }
    }

    /// Its architecture as triples write it.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Those of `needed` that its processor doesn't have.
    pub fn lacks<'n>(&self, needed: &'n [String]) -> Vec<&'n str> {
        let lacking = needed.iter().filter(|name| !self.cpu_features.contains(*name));
        lacking.map(String::as_str).collect()
    }

    /// Whether programs for `triple` run here without an emulator.
    pub fn runs(&self, triple: &Triple) -> bool {
        self.runs_arch(triple.arch())
    }

    /// Whether programs of an architecture run here without an emulator.
    pub fn runs_arch(&self, arch: &str) -> bool {
        arch == self.arch
    }
}

/// The features in the text of `/proc/cpuinfo`: the first processor's line `flags` (x86) or
/// `Features` (ARM).
fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        matches!(key.trim(), "flags" | "Features").then_some(value)
    });
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_below_a_baseline_is_told_by_what_it_lacks() {
        let cpuinfo =
            "processor\t: 0\nflags\t\t: fpu avx\n\nprocessor\t: 1\nflags\t: fpu avx avx2\n";
        let machine = Machine { arch: "x86_64".to_owned(), cpu_features: cpu_features(cpuinfo) };
        let needed = ["avx", "avx2", "bmi2"].map(str::to_owned);
        assert_eq!(machine.lacks(&needed), ["avx2", "bmi2"]);
        assert!(machine.lacks(&needed[..1]).is_empty());
        assert_eq!(cpu_features("Features : fp asimd").len(), 2);
    }
}
