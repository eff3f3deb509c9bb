//! The build sandbox: rootless, without a daemon, and described by plain data.
//!
//! A [`SandboxPlan`] says what a sandbox holds and runs; [`SandboxPlan::steps`] derives the ordered
//! list of what is done for it; a [`Launcher`] has it done and returns an [`Outcome`]. What happens
//! where:
//!
//! - srp (`launcher`, `supervise`, `watch`, `disk`, `cgroup`): threads, logs, limits. Trusted.
//! - the launcher process (`zygote`): srp executed once more with one thread; clones sandboxes.
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
mod init;
mod inside;
mod launcher;
mod memory;
mod order;
mod outcome;
mod plan;
mod seccomp;
mod steps;
mod supervise;
#[allow(unsafe_code)]
mod sys;
pub(crate) mod told;
mod watch;
mod wire;
mod zygote;

pub use binfmt::BinfmtHandler;
pub(crate) use binfmt::copy_apart;
pub(crate) use cgroup::out_of_memory_kills;
pub use error::SandboxError;
pub use features::{Feature, features};
pub use launcher::Launcher;
pub use outcome::{Isolation, Limit, LimitsBy, Observation, Outcome, Status};
pub use plan::{
    Attributes, Bind, Limits, PlanError, Processors, RootMode, SandboxPlan, SkeletonEntry, Stdio,
};
pub use seccomp::Abi;
pub use steps::Step;
pub use zygote::{FIRST_SANDBOX_UID, launcher_main};
