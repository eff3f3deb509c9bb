//! One round of an audit: a rebuild in a varied sandbox, and which paths came out differently.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use srp_store::{Build, Route, Scratch, StoreError};

use super::compare::{self, Point};
use super::dimension::{Dimension, Surroundings, Variation};
use super::report::{Failed, RoundReport};
use crate::build::{Roots, Trees};
use crate::request::FailureCause;
use crate::sandbox::{Observation, SandboxPlan, told};
use crate::work::Work;

/// The end of a failed round's log that is reported.
const TAIL_LINES: usize = 25;
/// The log of a round, in its scratch directory.
pub(super) const LOG: &str = "log";

/// What a round came to.
pub(super) struct Rebuilt {
    /// Holds the trees and the log.
    pub(super) scratch: Scratch,
    pub(super) trees: Trees,
    /// Where it is not as registered; empty: it is identical.
    pub(super) points: BTreeSet<Point>,
    pub(super) failed: Option<Failed>,
    /// How it was built; none if it failed.
    pub(super) route: Option<Route>,
    /// What became of each dimension that was to be varied.
    pub(super) varied: BTreeMap<Dimension, Result<Variation, String>>,
    pub(super) report: RoundReport,
}

/// Rebuilds in a sandbox varied in `dimensions`.
///
/// # Errors
/// What says nothing about the derivation: the store's, the sandbox's or the system's failures.
pub(super) fn rebuild(
    work: &Work<'_>,
    build: &Build,
    roots: &Roots,
    registered: &Trees,
    dimensions: &BTreeSet<Dimension>,
    around: &Surroundings,
) -> Result<Rebuilt, FailureCause> {
    let started = Instant::now();
    let scratch = work.store.scratch()?;
    let plans: RefCell<Option<Plans>> = RefCell::default();
    let vary = |plan: &mut SandboxPlan| {
        // What waits for something that a dimension keeps from it would wait for ever.
        plan.limits.seconds.get_or_insert(around.limit_seconds);
        let usual = plan.clone();
        let mut varied = BTreeMap::new();
        for dimension in dimensions {
            varied.insert(*dimension, dimension.apply(plan, around));
        }
        plan.observe = true;
        *plans.borrow_mut() = Some(Plans { usual, plan: plan.clone(), varied });
    };
    let log = scratch.path().join(LOG);
    let ran = work.execute(build, roots, &scratch, &log, &vary, &|| {});
    let built = Instant::now();
    let (Plans { usual, plan, mut varied }, ran) = match (plans.into_inner(), ran) {
        (Some(plans), ran) => (plans, ran),
        (None, Err(cause)) => return Err(cause),
        (None, Ok(_)) => unreachable!("a plan is varied before it is carried out"),
    };
    let usual = usually_seen(&usual, &scratch)?;
    let mut route = None;
    let taken = ran.and_then(|outcome| {
        route = Some(work.route(&outcome)?);
        if let Some(seen) = &outcome.observation {
            for (dimension, variation) in &mut varied {
                let effect = dimension.took_effect(&plan, &usual, seen);
                if variation.is_ok()
                    && let Err(reason) = effect
                {
                    *variation = Err(reason);
                }
            }
        }
        work.take(build, &scratch)
    });
    let (trees, failed) = match taken {
        Ok(trees) => (trees, None),
        Err(cause) if says_something(&cause) && !work.cancel.is_cancelled() => {
            check_room(&scratch)?;
            let log_tail = crate::log::tail(&log, TAIL_LINES);
            (Trees::new(), Some(Failed { how: cause.to_string(), log_tail }))
        }
        Err(cause) => return Err(cause),
    };
    let points = match failed {
        Some(_) => [Point::Failure].into(),
        None => compare::points(registered, &trees),
    };
    let in_effect = varied.iter().filter(|(_, variation)| variation.is_ok());
    let report = RoundReport {
        varied: in_effect.map(|(dimension, _)| *dimension).collect(),
        identical: points.is_empty(),
        milliseconds: started.elapsed().as_millis() as u64,
        compare_milliseconds: built.elapsed().as_millis() as u64,
    };
    Ok(Rebuilt { scratch, trees, points, failed, route, varied, report })
}

/// A plan before and after it was varied.
struct Plans {
    usual: SandboxPlan,
    plan: SandboxPlan,
    varied: BTreeMap<Dimension, Result<Variation, String>>,
}

/// What a build sees whose plan is not varied.
fn usually_seen(plan: &SandboxPlan, scratch: &Scratch) -> Result<Observation, FailureCause> {
    let look = || -> nix::Result<Observation> {
        let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
        let may_use = |number: &usize| allowed.is_set(*number).unwrap_or(false);
        let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        // Where it can't be read, builds can't read it, either.
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let statistics = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let file_system = nix::sys::statfs::statfs(scratch.path())?.filesystem_type();
        Ok(Observation {
            hostname: plan.hostname.clone(),
            cwd: plan.cwd.clone(),
            uid: plan.uid,
            gid: plan.gid,
            umask: plan.attributes.umask,
            processors: (0..nix::sched::CpuSet::count()).filter(may_use).count(),
            processors_told: told::processors(&statistics),
            terminal: false,
            random_addresses: plan.attributes.random_addresses,
            kernel_release: release,
            file_system: file_system.0 as i64,
            cpu_model: told::model(&cpuinfo),
            reversed_directories: plan.attributes.reversed_directories,
            emulated: Some(!plan.binfmt.is_empty()),
            seconds: nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME)?.tv_sec(),
        })
    };
    look().map_err(|errno| FailureCause::Io {
        action: "see what builds see".to_owned(),
        source: errno.into(),
    })
}

/// An error if the disk is full that a round was built on. Its builder failed because of that, or
/// may have.
fn check_room(scratch: &Scratch) -> Result<(), FailureCause> {
    const ROOM_BYTES: u64 = 1 << 20;
    let action = || format!("rebuild in {}", scratch.path().display());
    let failed = |source: std::io::Error| FailureCause::Io { action: action(), source };
    let disk = nix::sys::statvfs::statvfs(scratch.path()).map_err(|errno| failed(errno.into()))?;
    let bytes = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    // Some file systems don't count inodes.
    let no_inodes = disk.files() > 0 && disk.files_available() == 0;
    if bytes < ROOM_BYTES || no_inodes {
        return Err(failed(nix::errno::Errno::ENOSPC.into()));
    }
    Ok(())
}

/// Whether a failure is the builder's own doing, and not this machine's.
fn says_something(cause: &FailureCause) -> bool {
    matches!(
        cause,
        FailureCause::Builder { .. }
            | FailureCause::OutOfMemory { .. }
            | FailureCause::Limit { .. }
            | FailureCause::Output {
                // Whatever else the store says is that it could not write or read.
                source: StoreError::FileType { .. }
                    | StoreError::Mode { .. }
                    | StoreError::NoSuchFile { .. }
                    | StoreError::TooLong { .. }
                    | StoreError::TooDeep { .. }
                    | StoreError::TooLarge { .. }
                    | StoreError::TooMany { .. },
                ..
            }
            | FailureCause::NotADirectory { .. }
            | FailureCause::Empty { .. }
            | FailureCause::Reserved { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_machine_is_no_difference() {
        let output = |source| FailureCause::Output { output: "out".to_owned(), source };
        let broken = StoreError::Io {
            action: "read",
            path: "tree".into(),
            source: nix::errno::Errno::EIO.into(),
        };
        assert!(!says_something(&output(broken)));
        assert!(says_something(&output(StoreError::FileType {
            file: "f".into(),
            what: "a socket"
        })));
        assert!(says_something(&FailureCause::Empty { output: "out".to_owned() }));
    }
}
