//! `srp export`: a closure as one file, for a stick or a pipe.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use indicatif::HumanBytes;
use srp_store::Store;
use srp_store::cache::{Exported, Exporter, Packs};
use srp_store::staged::{self, Staged};

use crate::cache::counted;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::Goals;
use crate::meter::{Meter, Metered};
use crate::signing::{self, Signing};
use crate::target::{Target, realised};
use crate::terminal;

/// Write what attributes or store paths stand for, with all that they need, as one file
///
/// `srp import` reads it, from the file or from a pipe, while it is written. What attributes came
/// out as is stated in it, signed if there is a key; whoever trusts the key needn't build. The same
/// store exports the same bytes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Realised attributes, or store paths
    #[arg(required = true, value_name = "ATTR|PATH")]
    targets: Vec<String>,
    /// Where to write it [default: standard output, which must not be a terminal]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    #[command(flatten)]
    signing: Signing,
}

const EXAMPLES: &str = "\
Examples:
  srp export stage1.x86_64-musl --output /media/stick/stage1.srp
  srp export stage1.x86_64-musl | ssh host srp import";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let output = Output::open(arguments.output.as_deref())?;
    let key = arguments.signing.key(context)?;
    let meter = Meter::new(context, "exporting")?;
    let store = context.store_to_publish()?;
    if store.is_writable() {
        store.sweep()?;
    }
    let asked = asked(context, &store, &arguments.targets)?;
    // One at a time: those before it were written out.
    let packs = Packs::temporary(&store, 0)?;
    let exporter = Exporter {
        store: &store,
        packs: &packs,
        key: key.as_ref(),
        builder: signing::builder(key.as_ref()),
    };
    let mut to = Metered { to: meter.interruptible(output.file()), meter: meter.clone() };
    let exported = exporter.export(&asked, &mut to);
    meter.finish();
    let contents = exported.map_err(|error| meter.explain(error, "what was written is no use"))?;
    output.finish()?;
    if !context.options.quiet {
        let signed = match &key {
            Some(key) => format!("signed by {}", key.name()),
            None => "signed by nobody".to_owned(),
        };
        terminal::say(&format!(
            "{} ({} before compression), {signed}",
            counted(contents.objects, "object"),
            HumanBytes(contents.size_bytes)
        ));
    }
    Ok(())
}

/// What arguments stand for: an object each, and the derivation if they name one.
pub(crate) fn asked(
    context: &Context,
    store: &Store,
    targets: &[String],
) -> CommandResult<Vec<Exported>> {
    let one = |text: &String| match Target::parse(text)? {
        Target::Attribute(attr) => {
            let goals = Goals::of(context, Some(store), std::slice::from_ref(&attr))?;
            let key = goals.keys().remove(0);
            let object = realised(store, &key)?.ok_or_else(|| {
                CommandError::user(format!("{attr} is not realised"))
                    .hint(format!("srp realise {attr}"))
            })?;
            let derivation = Some(key.derivation);
            Ok(Exported { name: attr, derivation, object: object.id })
        }
        target => {
            let object = target.object(context, store)?;
            Ok(Exported { name: object.to_string(), derivation: None, object: object.id })
        }
    };
    targets.iter().map(one).collect()
}

/// What an export is written to.
enum Output {
    /// What is there already: standard output, a device, a named pipe.
    Open(File),
    /// A new file, which has another name until it is complete.
    New(Staged, PathBuf),
}

impl Output {
    fn open(path: Option<&Path>) -> CommandResult<Output> {
        let Some(path) = path else {
            let output = std::io::stdout();
            if output.is_terminal() {
                return Err(CommandError::usage("an export is no text, and this is a terminal")
                    .hint("give --output FILE, or a pipe: srp export … | ssh host srp import"));
            }
            // Not through std's stdout, which looks for the ends of lines.
            let file = output.as_fd().try_clone_to_owned();
            let file = file.map_err(|error| CommandError::chain(ExitCode::User, error))?.into();
            return Ok(Output::Open(file));
        };
        let failed = |error| failed("write", path, &error);
        // A device or a named pipe is written to as it is.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file = File::options().write(true).open(path).map_err(failed)?;
            return Ok(Output::Open(file));
        }
        // What a killed export left there may be as long as this one gets.
        staged::sweep(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        Ok(Output::New(Staged::beside(path, 0o644).map_err(failed)?, path.to_owned()))
    }

    fn file(&self) -> &File {
        match self {
            Output::Open(file) => file,
            Output::New(staged, _) => staged.file(),
        }
    }

    /// All of it is written: it survives from here on that a stick is pulled out.
    fn finish(self) -> CommandResult {
        match self {
            Output::Open(_) => Ok(()),
            Output::New(staged, path) => {
                staged.place_synced(&path).map_err(|error| failed("write", &path, &error))
            }
        }
    }
}

fn failed(action: &str, path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::new(ExitCode::User, format!("can't {action} {}: {error}", path.display()))
}
