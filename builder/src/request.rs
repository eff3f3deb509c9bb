//! What is asked of the builder, and what it answers: plain values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use srp_store::ingest::Limits;
use srp_store::{Derivation, InputKey, ObjectName, ResolvedHash, RootName, StaticHash, StoreError};

/// Derivations, and which of their outputs are wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What is wanted, in order.
    pub goals: Vec<InputKey>,
    /// Every derivation that a goal or runner leads to.
    pub derivations: BTreeMap<StaticHash, Derivation>,
    /// Emulators by architecture, for builders that don't run on this machine.
    pub runners: BTreeMap<String, RunnerSpec>,
    /// The names under which the goals may have been published: what caches call their newest
    /// generation is compared with what was seen before.
    pub roots: Vec<RootName>,
}

/// A user-mode emulator as the definitions describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerSpec {
    /// The output that holds it.
    pub key: InputKey,
    /// Its path in that output.
    pub program: String,
    /// The processor it is to emulate, as its `-cpu` takes it; empty for its default.
    pub cpu: String,
    /// The kernel release that programs see; empty for the machine's own.
    pub uname: String,
}

impl RunnerSpec {
    /// The emulator, in the tree of the object that holds it.
    pub(crate) fn program_in(&self, tree: &Path) -> PathBuf {
        tree.join(self.program.trim_start_matches('/'))
    }

    /// What the emulator is told.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (String, String)> {
        let variables = [("QEMU_CPU", &self.cpu), ("QEMU_UNAME", &self.uname)];
        let told = variables.into_iter().filter(|(_, value)| !value.is_empty());
        told.map(|(name, value)| (name.to_owned(), value.clone()))
    }
}

/// How work is done; nothing here changes a result.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many builds run at once, at most.
    pub jobs: usize,
    /// How many cores builds share.
    pub cores: usize,
    /// How many sources are fetched at once, at most.
    pub fetches: usize,
    /// How many derivations are substituted at once, at most.
    pub substitutions: usize,
    /// Whether nothing may be built: what no cache has is a failure.
    pub no_build: bool,
    /// Whether the rest goes on after a failure.
    pub keep_going: bool,
    /// How long a build may take unless it says otherwise.
    pub timeout_seconds: Option<u64>,
    /// How long a build may say nothing unless it says otherwise.
    pub silence_seconds: Option<u64>,
    /// How much a build may write to its log.
    pub log_bytes: Option<u64>,
    /// How much memory all builds together may be expected to take.
    pub memory_bytes: Option<u64>,
    /// How much disk one build may take; none: nine tenths of what is free when it begins.
    pub disk_bytes: Option<u64>,
    /// How much one output, or one source unpacked, may be.
    pub output_limits: Limits,
}

/// A goal that was realised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realised {
    /// What was asked for.
    pub key: InputKey,
    /// What it is.
    pub object: ObjectName,
}

/// A derivation that could not be realised.
#[derive(Debug)]
pub struct Failure {
    /// Which.
    pub derivation: StaticHash,
    /// Its name.
    pub name: String,
    /// Why.
    pub cause: FailureCause,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
    /// The whole log.
    pub log: Option<PathBuf>,
    /// Its resolved hash, if its inputs were there.
    pub resolved: Option<ResolvedHash>,
}

/// Why a derivation could not be realised.
#[derive(Debug, thiserror::Error)]
pub enum FailureCause {
    /// The builder ended with an error.
    #[error("its builder {how}")]
    Builder {
        /// `exited with status 2`, `was killed by signal 9` …
        how: String,
    },
    /// It failed while the kernel was killing processes for lack of memory.
    #[error(
        "its builder {how} while the kernel killed processes for lack of memory ({killed}); \
         its own held {} MiB at most",
        peak_memory_bytes >> 20
    )]
    OutOfMemory {
        /// As of `Builder`.
        how: String,
        /// How many processes were killed meanwhile, whosoever they were: the kernel doesn't say.
        killed: u64,
        /// The most memory its processes held at once.
        peak_memory_bytes: u64,
    },
    /// A limit was exceeded.
    #[error("{limit}")]
    Limit {
        /// What happened and which limit that passed.
        limit: String,
        /// The most memory they held at once.
        peak_memory_bytes: u64,
    },
    /// An output is not what an output can be.
    #[error("its output {output} can't be registered")]
    Output {
        /// The output.
        output: String,
        /// What is wrong with it.
        source: StoreError,
    },
    /// An output is no directory.
    #[error("its output {output} is {what} and must be a directory")]
    NotADirectory {
        /// The output.
        output: String,
        /// What it is: `a symbolic link`, `missing` …
        what: &'static str,
    },
    /// An output has nothing in it.
    #[error("it wrote nothing to its output {output} (${output})")]
    Empty {
        /// The output.
        output: String,
    },
    /// An output holds what belongs to srp.
    #[error("its output {output} holds /srp, which is reserved")]
    Reserved {
        /// The output.
        output: String,
    },
    /// Files name paths that exist only in the sandbox.
    #[error("files of its output name paths that exist only in the sandbox:\n{}", occurrences.join("\n"))]
    SandboxPaths {
        /// Each in words.
        occurrences: Vec<String>,
    },
    /// Files need what no input provides.
    #[error("files of its output need what its inputs don't provide:\n{}", needs.join("\n"))]
    References {
        /// Each in words.
        needs: Vec<String>,
        /// What can be done about some of them.
        hints: Vec<String>,
    },
    /// An output could not be examined.
    #[error(transparent)]
    Scan(#[from] crate::scan::ScanError),
    /// A source could not be fetched.
    #[error(transparent)]
    Fetch(#[from] crate::fetch::FetchError),
    /// A fetched file could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] crate::unpack::UnpackError),
    /// The sandbox could not be set up.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// The program that is its builder isn't in its root.
    #[error("no input in tools has its builder {builder}")]
    NoBuilder {
        /// The builder's path.
        builder: String,
    },
    /// srp failed while it worked on it.
    #[error("srp panicked while it worked on it, which is a bug: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// Nothing here can run its builder.
    #[error(
        "its builder runs on {triple}, which this machine ({machine}) can't run, and the definitions have no runner for {arch}"
    )]
    NoRunner {
        /// Where the builder runs.
        triple: String,
        /// The triple's architecture.
        arch: String,
        /// This machine's.
        machine: String,
    },
    /// This machine's processor is older than what its builder was compiled for.
    #[error(
        "its builder needs a processor with {features}, which this machine's lacks: realise it on a newer one"
    )]
    Processor {
        /// What is missing.
        features: String,
    },
    /// It would have to be built, and that was ruled out.
    #[error("no cache has it, and nothing may be built")]
    NoBuild,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused.
    #[error("can't {action}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl FailureCause {
    /// Of what a thread panicked with.
    pub(crate) fn of_panic(payload: &(dyn std::any::Any + Send)) -> FailureCause {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        FailureCause::Panicked { message: text.unwrap_or_else(|| "it said nothing".to_owned()) }
    }

    /// What the build's processes held at most, where that was why it failed.
    pub(crate) fn peak_memory_bytes(&self) -> Option<u64> {
        match self {
            FailureCause::OutOfMemory { peak_memory_bytes, .. }
            | FailureCause::Limit { peak_memory_bytes, .. } => Some(*peak_memory_bytes),
            _ => None,
        }
    }
}

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum RealiseError {
    /// Some derivations failed.
    #[error("{}", summary(failures, *skipped))]
    Failed {
        /// Those that failed themselves.
        failures: Vec<Failure>,
        /// How many were not tried because of them.
        skipped: usize,
    },
    /// The request was cancelled.
    #[error("interrupted; what was finished is kept")]
    Cancelled,
    /// A derivation names an input that the request does not hold.
    #[error("the derivation {name} needs {input}, which is not part of the request")]
    Incomplete {
        /// The derivation's name.
        name: String,
        /// The input's hash.
        input: StaticHash,
    },
    /// Something would have to be built, and that was ruled out.
    #[error("nothing may be built, and no cache has {}", names.join(", "))]
    NoBuild {
        /// The derivations' names.
        names: Vec<String>,
    },
    /// Nothing can be worked on: the system gives this process no thread.
    #[error("cannot start a thread")]
    Threads {
        /// Why not.
        source: std::io::Error,
    },
    /// A derivation needs itself.
    #[error("the derivation {name} needs itself")]
    Cycle {
        /// One on the cycle.
        name: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn summary(failures: &[Failure], skipped: usize) -> String {
    let names: Vec<&str> = failures.iter().map(|failure| failure.name.as_str()).collect();
    let mut text = format!("{} failed", names.join(", "));
    if skipped > 0 {
        text += &format!(
            "; {skipped} that need {} were not tried",
            if names.len() == 1 { "it" } else { "them" }
        );
    }
    text
}
