//! `srp list`: what can be asked for.

use clap::Args;
use serde_json::json;

use crate::context::Context;
use crate::error::CommandResult;
use crate::visible::visible;
use crate::{interrupt, terminal};

/// List the attributes that the definitions have
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  srp list\n  srp list stage1\n  srp list seed.x86_64 --json")]
pub(crate) struct Arguments {
    /// Only what lies within this: a stage, a target of it (stage1.aarch64-musl), or a component
    #[arg(value_name = "PREFIX")]
    within: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let definitions = context.definitions()?;
    let (arch, within) = (context.build_arch(), arguments.within.as_deref());
    let listed = context.evaluator().list(&definitions, arch, within, interrupt::descriptor())?;
    if arguments.json {
        let all = listed.iter().map(|it| {
            json!({
                "attribute": it.attr,
                "name": it.name,
                "version": it.version,
                "description": it.description,
            })
        });
        return terminal::answer_json(&all.collect());
    }
    // A definition's words: none of them is to look like another row.
    let rows =
        listed.iter().map(|it| [&it.attr, &it.version, &it.description].map(|it| visible(it)));
    let rows: Vec<[String; 3]> = rows.collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let mut text = String::new();
    for [attr, version, description] in &rows {
        let line = format!("{attr:first$}  {version:second$}  {description}");
        text += line.trim_end();
        text.push('\n');
    }
    terminal::answer(&text)
}
