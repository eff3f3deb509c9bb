//! Realising: from a request to the objects that it asks for, by plans that the scheduler works off.

use std::sync::atomic::{AtomicBool, Ordering};

use srp_store::{Action, Derivation, Store};

use crate::cancel::CancelToken;
use crate::event::{Event, Observer};
use crate::fetch::Fetcher;
use crate::jobserver::Broker;
use crate::plan::Plan;
use crate::request::{Options, RealiseError, Realised, Request, RunnerSpec};
use crate::runner::Machine;
use crate::sandbox::Launcher;
use crate::scheduler::Run;
use crate::substitute::Substituters;

/// Realises derivations into a store.
pub struct Builder<'a> {
    /// Where objects go.
    pub store: &'a Store,
    /// Starts sandboxes.
    pub launcher: &'a Launcher,
    /// Fetches sources.
    pub fetcher: &'a Fetcher,
    /// The caches that may be asked.
    pub substituters: Option<&'a Substituters>,
    /// Hands out job tokens.
    pub broker: &'a Broker,
    /// What runs here without an emulator.
    pub machine: Machine,
    /// How work is done.
    pub options: Options,
}

impl Builder<'_> {
    /// What there is to do for a request.
    pub fn plan(&self, request: &Request) -> Result<Plan, RealiseError> {
        let runner = |derivation: &Derivation| {
            self.runner(request, derivation).map(|runner| runner.key.clone())
        };
        Plan::new(self.store, request, &runner, self.substituters)
    }

    /// Realises the goals of a request.
    pub fn realise(
        &self,
        request: &Request,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Vec<Realised>, RealiseError> {
        self.store.rely_on_derivations(request.derivations.keys())?;
        for derivation in request.derivations.values() {
            self.store.add_derivation(derivation)?;
        }
        let mut compared = false;
        let chosen = loop {
            let plan = self.plan(request)?;
            if cancel.is_cancelled() {
                return Err(RealiseError::Cancelled);
            }
            if self.options.no_build {
                let names = plan.builds(request);
                if !names.is_empty() {
                    return Err(RealiseError::NoBuild { names });
                }
            }
            if plan.graph.node_count() > 0 {
                self.store.sweep()?;
            }
            let (fetches, builds) = plan.counts(request);
            if plan.graph.node_count() > 0 {
                observer.event(Event::Planned {
                    fetches,
                    builds,
                    substitutions: plan.offers.len(),
                    substitution_bytes: plan.offered_bytes(),
                });
            }
            let run = Run::new(self, request, &plan, observer, cancel);
            let is_over = AtomicBool::new(false);
            let chosen = std::thread::scope(|scope| {
                if plan.graph.node_count() > 0 {
                    // What a killed collection left may be much: no build waits for it.
                    let sweep = || {
                        let is_cancelled =
                            || is_over.load(Ordering::Relaxed) || cancel.is_cancelled();
                        if let Err(error) = self.store.sweep_trash(&is_cancelled) {
                            tracing::debug!(%error, "trash stays");
                        }
                    };
                    // Without a thread of its own it is left for the next one.
                    drop(std::thread::Builder::new().spawn_scoped(scope, sweep));
                }
                if builds > 0 {
                    // Without a thread of its own the first build does it.
                    let prepare = || self.launcher.prepare();
                    drop(std::thread::Builder::new().spawn_scoped(scope, prepare));
                }
                if let Some(substituters) = self.substituters
                    && plan.graph.node_count() > 0
                    && !std::mem::replace(&mut compared, true)
                {
                    let compare = || substituters.compare_with_memory(self.store, &request.roots);
                    // Without a thread of its own it is done first.
                    if std::thread::Builder::new().spawn_scoped(scope, compare).is_err() {
                        substituters.compare_with_memory(self.store, &request.roots);
                    }
                }
                let done = run.run();
                is_over.store(true, Ordering::Relaxed);
                done
            })?;
            // What could not be had as promised is planned anew, and then no longer from caches.
            if let Some(chosen) = chosen {
                break chosen;
            }
        };
        request
            .goals
            .iter()
            .map(|key| {
                let object = chosen
                    .get(&key.derivation)
                    .and_then(|outputs| outputs.get(&key.output))
                    .ok_or_else(|| RealiseError::Incomplete {
                        name: format!(
                            "{} (output {})",
                            request.derivations[&key.derivation].name, key.output
                        ),
                        input: key.derivation,
                    })?;
                Ok(Realised {
                    key: key.clone(),
                    object: self.store.info(object)?.object.path_name(),
                })
            })
            .collect()
    }

    /// The emulator that a derivation's builder needs here, if it needs one and there is one.
    pub(crate) fn runner<'r>(
        &self,
        request: &'r Request,
        derivation: &Derivation,
    ) -> Option<&'r RunnerSpec> {
        let Action::Build(build) = &derivation.action else { return None };
        if self.machine.runs(&build.build) {
            return None;
        }
        request.runners.get(build.build.arch())
    }
}
