//! `srp completions` and `srp man`: what the command line says of itself, for shells and man.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, ValueHint};
use clap_complete::Shell;

use crate::error::{CommandError, CommandResult, ExitCode};
use crate::options::CommandLine;
use crate::terminal;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  srp completions bash > ~/.local/share/bash-completion/completions/srp"
)]
pub(crate) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write all pages to a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  srp man | man -l -\n  srp man ~/.local/share/man/man1")]
pub(crate) struct ManArguments {
    /// Where to write srp.1, srp-realise.1 …
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

pub(crate) fn completions(arguments: &CompletionsArguments) -> CommandResult {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "srp", &mut text);
    terminal::answer_bytes(&text)
}

pub(crate) fn man(arguments: &ManArguments) -> CommandResult {
    let mut command = CommandLine::command();
    command.build();
    let Some(directory) = &arguments.directory else {
        return terminal::answer_bytes(&page(command)?);
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    write_pages(command, "srp", directory)
}

/// Writes the page of a command and those of its subcommands.
fn write_pages(command: clap::Command, name: &str, directory: &Path) -> CommandResult {
    for subcommand in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        let name = format!("{name}-{}", subcommand.get_name());
        write_pages(subcommand.clone(), &name, directory)?;
    }
    let path = directory.join(format!("{name}.1"));
    // clap borrows a name for the program's life; pages are few.
    let page = page(command.name(String::leak(name.to_owned()) as &'static str))?;
    std::fs::write(&path, page).map_err(|error| failed(&path, error))
}

/// A page as people know them: the usage as `--help` prints it, and examples as they are typed.
fn page(mut command: clap::Command) -> CommandResult<Vec<u8>> {
    let usage = command.render_usage().to_string();
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = clap_mangen::Man::new(command);
    let mut page = Vec::new();
    let mut render = || {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        page.extend(as_typed("SYNOPSIS", usage.trim_start_matches("Usage:")));
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if has_subcommands {
            man.render_subcommands_section(&mut page)?;
        }
        for part in after.split("\n\n").filter(|part| !part.is_empty()) {
            let (heading, text) = part.split_once(":\n").unwrap_or(("Notes", part));
            page.extend(as_typed(&heading.to_uppercase(), text));
        }
        Ok::<(), std::io::Error>(())
    };
    render().map_err(|error| CommandError::chain(ExitCode::Internal, error))?;
    Ok(page)
}

/// A section whose lines are kept as they are: roff would fill them.
fn as_typed(heading: &str, text: &str) -> Vec<u8> {
    let mut section = format!(".SH \"{heading}\"\n.nf\n");
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        // `\&` keeps a dot or a quote at a line's start from being a request.
        let line = line.strip_prefix("  ").unwrap_or(line).replace('\\', "\\e").replace('-', "\\-");
        section.push_str(&format!("\\&{}\n", line.trim_start_matches(' ')));
    }
    section.push_str(".fi\n");
    section.into_bytes()
}

fn failed(path: &Path, error: std::io::Error) -> CommandError {
    CommandError::new(ExitCode::User, format!("can't write {}: {error}", path.display()))
}
