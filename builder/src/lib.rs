//! Builds derivations: plan, scheduler, sandbox, runners, fetchers, logs, audits.
//!
//! The way in is [`Builder`]. This crate knows nothing of definitions, terminals or the
//! environment: what it is to do comes as plain values.

mod archive;
pub mod audit;
pub mod cancel;
mod event;
pub mod fetch;
pub mod jobserver;
pub mod remote;
pub mod sandbox;
pub mod scan;
pub mod serve;
pub mod unpack;

mod assure;
mod build;
mod estimates;
pub mod log;
mod mend;
mod plan;
mod realise;
mod request;
mod roots;
mod runner;
mod scheduler;
mod shell;
mod slots;
pub mod substitute;
mod work;

pub use build::SANDBOX_PATHS;
pub use cancel::CancelToken;
pub use event::{Activity, Event, Observer, Task};
pub use mend::Known;
pub use plan::{Plan, adopted};
pub use realise::Builder;
pub use request::{Failure, FailureCause, Options, RealiseError, Realised, Request, RunnerSpec};
pub use runner::Machine;
pub use shell::{Shell, ShellError, ShellRequest};
