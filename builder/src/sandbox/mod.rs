//! The build sandbox: rootless, without a daemon, and described by plain data.
//!
//! A [`SandboxPlan`] says what a sandbox holds and runs; [`SandboxPlan::steps`] derives the ordered
//! list of what is done for it; a [`Launcher`] has it done and returns an [`Outcome`]. What happens
//! where:
//!
//! - srp (`launcher`, `supervise`, `relay`, `watch`, `disk`, `cgroup`): threads, logs, streams,
//!   limits. Trusted.
//! - the launcher process (`zygote`): srp executed once more with one thread, out of sealed memory
//!   (`program`); clones sandboxes. `inherited` says what of the caller's it keeps.
//! - the sandbox's init (`apply`, `inside`, `identity`, `init`, `answers`, `memory`, `clock`,
//!   `order`): namespaces, mounts, filter; then process 1. The build can neither trace nor signal
//!   it, nor set its limits, and it decides nothing that a limit depends on.
//! - the command.
//!
//! There is deliberately no weaker mode: a step that fails is an error. There is no network, and no
//! way to ask for one. Of the store it knows nothing but the time of its files: layers are
//! directories.

mod answers;
mod apply;
mod binfmt;
mod bpf;
mod cgroup;
mod clock;
mod deadline;
mod disk;
mod error;
mod features;
mod identity;
mod inherited;
mod init;
mod inside;
mod launcher;
mod memory;
mod order;
mod outcome;
mod plan;
mod program;
mod relay;
mod seccomp;
mod steps;
mod supervise;
#[allow(unsafe_code)]
mod sys;
mod terminal;
pub(crate) mod told;
mod watch;
mod wire;
mod zygote;

pub use binfmt::BinfmtHandler;
pub(crate) use binfmt::copy_apart;
pub use cgroup::memory_limit_bytes;
pub(crate) use cgroup::out_of_memory_kills;
pub use error::SandboxError;
pub use features::{Feature, features};
pub use inherited::{LowLimit, is_ignored, normalise_process};
pub use launcher::Launcher;
pub use outcome::{Isolation, Limit, LimitsBy, NotStarted, Observation, Outcome, Status};
pub use plan::{
    Attributes, Bind, Limits, PlanError, Processors, RootMode, SandboxPlan, SkeletonEntry, Stdio,
};
pub use relay::Stream;
pub use seccomp::Abi;
pub use steps::Step;
pub use terminal::restore_terminal;
pub use zygote::{FIRST_SANDBOX_UID, launcher_main};
