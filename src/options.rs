//! The command line: every subcommand's name and help, and the options that all have.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::config::Environment;
use crate::error::EXIT_CODES;
use crate::style::Color;
use crate::{
    add, audit, cache, closure, doctor, export, help, import, instantiate, key, list, log,
    provenance, realise, root, sbom, serve, shell, show, source, store, why_depends,
};

/// Turns definitions into store objects: pinned sources, built in sandboxes, composed into roots
#[derive(Debug, Parser)]
#[command(
    name = "srp",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    disable_help_subcommand = true
)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) options: GlobalOptions,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  srp list                                          what there is
  srp realise stage1.aarch64-musl --rootfs ./root   build it, and write it as a root file system
  srp shell stage1.aarch64-musl.toolchain           a shell that has the cross compiler
  srp log stage1.aarch64-musl.check                 what a build printed
  srp serve --listen 0.0.0.0:5757                   let other machines take what is built here
  srp doctor                                        whether this machine can build";

/// The options of every subcommand.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalOptions {
    /// The store
    ///
    /// Without this it is $SRP_ROOT; without that /var/lib/srp for root, and for everybody else
    /// $XDG_DATA_HOME/srp, which usually is ~/.local/share/srp.
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// The definitions: the directory that holds main.star
    ///
    /// Without this it is $SRP_DEFINITIONS; without that `derivations` in the current directory or
    /// the nearest one above it.
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) definitions: Option<PathBuf>,
    /// The architecture of the machine that builds, if it isn't this one's
    #[arg(long, global = true, value_name = "ARCH")]
    pub(crate) build_arch: Option<String>,
    /// How progress is shown
    #[arg(long, global = true, value_name = "HOW", value_enum, default_value_t)]
    #[arg(hide_possible_values = false)]
    pub(crate) progress: ProgressStyle,
    /// When messages are coloured
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) color: Color,
    /// Show errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Show what builds print, as they run; twice: also what srp itself does
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl GlobalOptions {
    /// Takes what wasn't given from the environment. Not clap's way: an empty variable is none, and
    /// usage lines are the same whatever is set.
    pub(crate) fn or_of(mut self, environment: Environment<'_>) -> GlobalOptions {
        let path = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.store = self.store.or_else(|| path("SRP_ROOT"));
        self.definitions = self.definitions.or_else(|| path("SRP_DEFINITIONS"));
        self
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// Live on a terminal, else plain.
    #[default]
    Auto,
    /// A display that is redrawn.
    Live,
    /// A line for each thing that happens.
    Plain,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Realise(realise::Arguments),
    Instantiate(instantiate::Arguments),
    List(list::Arguments),
    Show(show::Arguments),
    Log(log::Arguments),
    Closure(closure::Arguments),
    WhyDepends(why_depends::Arguments),
    Audit(audit::Arguments),
    Provenance(provenance::Arguments),
    Sbom(sbom::Arguments),
    Shell(shell::Arguments),
    Add(add::Arguments),
    #[command(subcommand)]
    Root(root::Command),
    #[command(subcommand)]
    Source(source::Command),
    #[command(subcommand)]
    Store(store::Command),
    #[command(subcommand)]
    Cache(cache::Command),
    Export(export::Arguments),
    Import(import::Arguments),
    Serve(serve::Arguments),
    #[command(subcommand)]
    Key(key::Command),
    Doctor(doctor::Arguments),
    Completions(help::CompletionsArguments),
    Man(help::ManArguments),
}
