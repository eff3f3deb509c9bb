//! What commands share: the global options, and from them the store and the definitions.
//!
//! Everything is opened when it is asked for: a command that has nothing to do opens next to
//! nothing.

use std::path::PathBuf;

use srp_eval::{Definitions, Evaluator, Limits};
use srp_store::{Access, Store, StoreError};

use crate::config::{self, Config};
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::options::GlobalOptions;
use crate::style::Style;
use crate::terminal::say;

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) options: GlobalOptions,
    pub(crate) config: Config,
    pub(crate) style: Style,
}

impl Context {
    pub(crate) fn new(options: GlobalOptions) -> CommandResult<Context> {
        let style = Style::new(options.color, std::env::var_os("NO_COLOR").is_some());
        let config = Config::load(&|name| std::env::var_os(name))
            .map_err(|error| CommandError::chain(ExitCode::User, error))?;
        Ok(Context { options, config, style })
    }

    /// The store's directory. There need be none yet.
    pub(crate) fn store_path(&self) -> CommandResult<PathBuf> {
        let path = match &self.options.store {
            Some(path) => path.clone(),
            None => {
                let is_root = nix::unistd::geteuid().is_root();
                config::default_store(&|name| std::env::var_os(name), is_root).map_err(|error| {
                    CommandError::chain(ExitCode::User, error)
                        .hint("name the store by --store DIR, or by SRP_ROOT in the environment")
                })?
            }
        };
        // Sandboxes and links need it absolute.
        std::path::absolute(&path).map_err(|error| CommandError::chain(ExitCode::User, error))
    }

    /// The option that another command needs to use the same store, if it needs one.
    pub(crate) fn store_option(&self) -> String {
        let said = self.options.store.as_deref();
        let in_environment = std::env::var_os("SRP_ROOT");
        match said.filter(|store| in_environment.as_deref() != Some(store.as_os_str())) {
            Some(store) => format!(" --store {}", store.display()),
            None => String::new(),
        }
    }

    /// The store, for writing; it is made if there is none.
    pub(crate) fn store(&self) -> CommandResult<Store> {
        let access = if self.config.unsynced { Access::WriteUnsynced } else { Access::Write };
        self.open_store(access)
    }

    /// The store, for reading.
    pub(crate) fn store_to_read(&self) -> CommandResult<Store> {
        self.open_store(Access::Read)
    }

    /// The store, for reading; for writing, too, if it is ours: then it has room for what is made
    /// on the way.
    pub(crate) fn store_to_publish(&self) -> CommandResult<Store> {
        let store = self.store_to_read()?;
        Ok(self.open_store(Access::Write).unwrap_or(store))
    }

    fn open_store(&self, access: Access) -> CommandResult<Store> {
        let store = Store::open(&self.store_path()?, access)?;
        Ok(store.with_validity(self.config.validity()))
    }

    /// The store, for reading, if there is one.
    pub(crate) fn store_if_any(&self) -> CommandResult<Option<Store>> {
        match Store::open(&self.store_path()?, Access::Read) {
            Ok(store) => Ok(Some(store.with_validity(self.config.validity()))),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The definitions directory.
    pub(crate) fn definitions(&self) -> CommandResult<Definitions> {
        let root = match &self.options.definitions {
            Some(root) => root.clone(),
            None => {
                let current = std::env::current_dir()
                    .map_err(|error| CommandError::chain(ExitCode::User, error))?;
                config::find_definitions(&current).ok_or_else(|| {
                    CommandError::user(format!(
                        "there are no definitions: neither {} nor any directory above it has \
                         derivations/main.star",
                        current.display()
                    ))
                    .hint("go to a checkout of srp, or name its derivations directory by --definitions DIR")
                })?
            }
        };
        let definitions = Definitions::open(&root)?;
        // It is foreign: no line of it is to be taken for srp's own.
        let print = |text: &str| {
            text.split('\n').for_each(|line| say(&format!("print: {line}")));
        };
        Ok(definitions.on_print(print))
    }

    /// What evaluates definitions: this program, once more.
    pub(crate) fn evaluator(&self) -> Evaluator {
        // Not by its path: that may lead to another version by now, or to nothing.
        let evaluator = Evaluator::new("/proc/self/exe");
        let mut limits = Limits::default();
        if let Some(mib) = self.config.evaluation.memory_mib {
            limits.memory_mib = mib;
        }
        if let Some(seconds) = self.config.evaluation.seconds {
            let waiting = limits.seconds / limits.cpu_seconds;
            limits.cpu_seconds = seconds;
            limits.seconds = seconds.saturating_mul(waiting);
        }
        evaluator.with_limits(limits)
    }

    /// The architecture of the machine that builds.
    pub(crate) fn build_arch(&self) -> &str {
        self.options.build_arch.as_deref().unwrap_or(std::env::consts::ARCH)
    }
}
