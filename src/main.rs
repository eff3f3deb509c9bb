//! The `srp` command: reads the command line, and leaves the rest to one file per subcommand.
//!
//! Here, and nowhere in the libraries, srp touches the environment, home directories and the
//! terminal.

// The arguments' doc comments are the help, where `<stage>` is a placeholder and not HTML.
#![allow(rustdoc::invalid_html_tags)]

mod add;
mod audit;
mod audit_against;
mod audit_against_text;
mod audit_evidence;
mod audit_pages;
mod audit_text;
mod automatic;
mod building;
mod cache;
mod closure;
mod config;
mod context;
mod diffoscope;
mod display;
mod doctor;
mod error;
mod export;
mod goals;
mod help;
mod html;
mod import;
mod instantiate;
mod interrupt;
mod key;
mod key_verify;
mod keyring;
mod list;
mod log;
mod meter;
mod options;
mod page;
mod progress;
mod provenance;
mod realise;
mod root;
mod sbom;
mod serve;
mod shell;
mod show;
mod signing;
mod source;
mod store;
mod store_gc;
mod store_stat;
mod store_verify;
mod store_why_alive;
mod style;
mod target;
mod terminal;
mod visible;
mod why_depends;

use clap::Parser;

use crate::context::Context;
use crate::error::{CommandResult, ExitCode};
use crate::options::{Command, CommandLine};
use crate::style::Style;

fn main() -> std::process::ExitCode {
    // The process that clones sandboxes is srp again: it must be small, and have one thread.
    // So is the process that evaluates definitions.
    match std::env::args_os().nth(1) {
        Some(argument) if argument == "__sandbox" => srp_builder::sandbox::launcher_main(),
        Some(argument) if argument == "__evaluate" => srp_eval::worker_main(),
        _ => {}
    }
    if let Err(limit) = srp_builder::sandbox::normalise_process() {
        let error = error::CommandError::chain(ExitCode::User, limit);
        error.hint("start srp where it is higher").print(Style::new(style::Color::Auto, true));
        return std::process::ExitCode::from(ExitCode::User as u8);
    }
    let CommandLine { options, command } = CommandLine::parse();
    let options = options.or_of(&|name| std::env::var_os(name));
    let style = Style::new(options.color, std::env::var_os("NO_COLOR").is_some());
    terminal::report(options.verbose, options.quiet, style);
    // A panic has printed its message already.
    let result = std::panic::catch_unwind(|| run(options, &command));
    let code = match result {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            error.print(style);
            error.code as u8
        }
        Err(_) => {
            let bug = "this is a bug of srp; the message above says where";
            error::CommandError::new(ExitCode::Internal, bug).print(style);
            ExitCode::Internal as u8
        }
    };
    std::process::ExitCode::from(code)
}

fn run(options: options::GlobalOptions, command: &Command) -> CommandResult<u8> {
    interrupt::answer_signals()?;
    let context = &Context::new(options)?;
    let done = |()| ExitCode::Success as u8;
    match command {
        Command::Realise(arguments) => realise::run(context, arguments).map(done),
        Command::Instantiate(arguments) => instantiate::run(context, arguments).map(done),
        Command::List(arguments) => list::run(context, arguments).map(done),
        Command::Show(arguments) => show::run(context, arguments).map(done),
        Command::Log(arguments) => log::run(context, arguments).map(done),
        Command::Closure(arguments) => closure::run(context, arguments).map(done),
        Command::WhyDepends(arguments) => why_depends::run(context, arguments).map(done),
        Command::Audit(arguments) => audit::run(context, arguments).map(done),
        Command::Provenance(arguments) => provenance::run(context, arguments).map(done),
        Command::Sbom(arguments) => sbom::run(context, arguments).map(done),
        Command::Shell(arguments) => shell::run(context, arguments),
        Command::Add(arguments) => add::run(context, arguments).map(done),
        Command::Root(command) => root::run(context, command).map(done),
        Command::Store(command) => store::run(context, command).map(done),
        Command::Source(command) => source::run(context, command).map(done),
        Command::Export(arguments) => export::run(context, arguments).map(done),
        Command::Import(arguments) => import::run(context, arguments).map(done),
        Command::Serve(arguments) => serve::run(context, arguments).map(done),
        Command::Key(command) => key::run(context, command).map(done),
        Command::Cache(command) => cache::run(context, command).map(done),
        Command::Doctor(arguments) => doctor::run(context, arguments).map(done),
        Command::Completions(arguments) => help::completions(arguments).map(done),
        Command::Man(arguments) => help::man(arguments).map(done),
    }
}
