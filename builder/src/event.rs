//! What happens while something is realised, for whoever shows progress.
//!
//! Events are plain values; this crate never writes to a terminal.

use std::time::Duration;

use srp_store::{ObjectName, StaticHash};

/// Receives events, from several threads.
pub trait Observer: Sync {
    /// Called for every event. It must be quick: work waits for it.
    fn event(&self, event: Event<'_>);
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// It is known how much there is to do, at most: early cutoff may leave less.
    Planned {
        /// Fetches.
        fetches: usize,
        /// Builds and stages.
        builds: usize,
        /// Derivations that caches have.
        substitutions: usize,
        /// Their bytes, at most.
        substitution_bytes: u64,
    },
    /// Work on a derivation began.
    Started {
        /// Which.
        task: Task<'a>,
        /// What is done.
        activity: Activity,
    },
    /// Bytes of what a build will see were compared with their digests.
    Verified {
        /// Of which build.
        task: Task<'a>,
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// Bytes of a fetch arrived.
    Fetched {
        /// Which.
        task: Task<'a>,
        /// So far.
        bytes: u64,
        /// In all, if that is known.
        total: Option<u64>,
    },
    /// A build wrote to its log.
    Log {
        /// Which.
        task: Task<'a>,
        /// Whole lines or not, as they came.
        bytes: &'a [u8],
    },
    /// A rebuild of an audit began.
    Round {
        /// Of which derivation.
        task: Task<'a>,
        /// What is varied, in words.
        varied: &'a str,
    },
    /// Work on a derivation ended well.
    Finished {
        /// Which.
        task: Task<'a>,
        /// What was done.
        activity: Activity,
        /// The object of the output `out`, or of the first output.
        object: &'a ObjectName,
        /// How long it took.
        elapsed: Duration,
    },
    /// A derivation needed no work: its inputs came out as they were before.
    Reused {
        /// Which.
        task: Task<'a>,
        /// The object.
        object: &'a ObjectName,
    },
    /// A derivation failed.
    Failed {
        /// Which.
        task: Task<'a>,
        /// In one line.
        reason: &'a str,
    },
}

/// A derivation as events name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task<'a> {
    /// Its static hash.
    pub hash: StaticHash,
    /// Its name.
    pub name: &'a str,
}

/// What is done for a derivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A source is fetched and unpacked.
    Fetching,
    /// A builder runs.
    Building,
    /// Objects are composed.
    Composing,
    /// Objects come from a binary cache.
    Substituting,
    /// Another srp process builds it; this one waits for the result.
    Waiting,
    /// What is there is rebuilt and compared.
    Auditing,
    /// What a build will see is compared with its digests.
    Verifying,
}
