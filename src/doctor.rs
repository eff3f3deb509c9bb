//! `srp doctor`: whether this machine can build, and what to do if it can't.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use srp_builder::fetch::Mirrors;
use srp_builder::sandbox::{Feature, features};
use srp_store::{Access, Store, StoreError};

use crate::building;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode, causes};
use crate::terminal;

/// Check whether this machine can build
///
/// Every feature of the kernel that sandboxes need is tried, and the store, the definitions and
/// the mirrors are looked for. What is missing is named with what to do about it. The exit code
/// is 1 if something is missing that every build needs.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    present: bool,
    optional: bool,
    needed_for: String,
    /// What was found.
    detail: Option<String>,
    /// What to do about it.
    fix: Option<String>,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let mut checks = vec![store(context)?, definitions(context), debian(context)];
    let launcher = building::launcher();
    // Where a store would be, its file system is what matters.
    let path = context.store_path()?;
    let nearest = path.ancestors().find(|path| path.is_dir()).unwrap_or(&path);
    let found = features(&launcher, nearest).map_err(|error| {
        CommandError::chain(ExitCode::User, error).hint("without its launcher srp can't build")
    })?;
    checks.extend(found.into_iter().map(Check::from));
    let broken = checks.iter().any(|check| !check.present && !check.optional);
    if arguments.json {
        let value = serde_json::to_value(&checks)
            .map_err(|error| CommandError::chain(ExitCode::Internal, error))?;
        terminal::answer_json(&value)?;
    } else {
        let lines: String = checks.iter().map(|check| check.line(context)).collect();
        terminal::answer(&lines)?;
    }
    if broken { Err(CommandError::user("this machine can't build as it is")) } else { Ok(()) }
}

impl Check {
    fn line(&self, context: &Context) -> String {
        let style = context.style;
        let mark = match (self.present, self.optional) {
            (true, _) => style.done("ok     "),
            (false, true) => style.warning("absent "),
            (false, false) => style.error("missing"),
        };
        let mut text = format!("{mark}  {}", self.name);
        if !self.present {
            let _ = write!(text, ", needed for {}", self.needed_for);
        }
        if let Some(detail) = &self.detail {
            let _ = write!(text, ": {detail}");
        }
        text.push('\n');
        if let Some(fix) = &self.fix
            && !self.present
        {
            let _ = writeln!(text, "         {} {fix}", style.hint("fix:"));
        }
        text
    }
}

impl From<Feature> for Check {
    fn from(feature: Feature) -> Check {
        Check {
            name: feature.name.to_owned(),
            present: feature.present,
            optional: feature.optional,
            needed_for: feature.needed_for.to_owned(),
            detail: feature.reason,
            fix: feature.fix,
        }
    }
}

fn store(context: &Context) -> CommandResult<Check> {
    let path = context.store_path()?;
    let (present, detail, fix) = match Store::open(&path, Access::Read) {
        Ok(_) => match Store::open(&path, Access::Write) {
            Ok(_) => (true, path.display().to_string(), None),
            Err(error) => (false, told(&error), Some("name a store of your own: --store DIR")),
        },
        Err(StoreError::Missing { .. }) => {
            let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(&path);
            match nix::unistd::access(nearest, nix::unistd::AccessFlags::W_OK) {
                Ok(()) => {
                    (true, format!("{} will be made when it is needed", path.display()), None)
                }
                Err(error) => (
                    false,
                    format!("{} can't be made: {}: {error}", path.display(), nearest.display()),
                    Some("name another store: --store DIR"),
                ),
            }
        }
        Err(error) => (false, told(&error), Some("name another store: --store DIR")),
    };
    Ok(Check {
        name: "the store".to_owned(),
        present,
        optional: false,
        needed_for: "everything".to_owned(),
        detail: Some(detail),
        fix: fix.map(str::to_owned),
    })
}

fn definitions(context: &Context) -> Check {
    let found = context.definitions();
    Check {
        name: "definitions".to_owned(),
        present: found.is_ok(),
        optional: true,
        needed_for: "realising attributes".to_owned(),
        detail: found.ok().map(|definitions| definitions.root().display().to_string()),
        fix: Some("go to a checkout of srp, or name them by --definitions DIR".to_owned()),
    }
}

fn debian(context: &Context) -> Check {
    let mirrors = Mirrors::new(context.config.mirrors.clone()).with_apt_directory("/etc/apt");
    let resolved = mirrors.resolve("mirror://debian/pool");
    let (detail, fix) = match &resolved {
        Ok(urls) => (urls.first().map(|url| url.trim_end_matches("/pool").to_owned()), None),
        Err(error) => (
            Some(error.to_string()),
            Some(
                "set SRP_MIRROR_DEBIAN, or mirrors.debian in ~/.config/srp/config.toml".to_owned(),
            ),
        ),
    };
    Check {
        name: "mirror://debian".to_owned(),
        present: resolved.is_ok(),
        optional: true,
        needed_for: "fetching the seed".to_owned(),
        detail,
        fix,
    }
}

fn told(error: &StoreError) -> String {
    format!("{error}{}", causes(error).replace("\n  because: ", ": ")).trim_end().to_owned()
}
