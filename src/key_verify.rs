//! `srp key verify`: whether a trusted key signed an attestation, and what it says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde_json::{Value, json};
use srp_store::cache::{Envelope, EnvelopeError, IN_TOTO, KeyId, PublicKey};

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::key;
use crate::keyring::Keyring;
use crate::terminal;
use crate::visible::visible;

/// No file with attestations is longer.
const MAX_BYTES: u64 = 64 << 20;

/// What is verified, and by whose keys.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A file of attestations, one a line (.intoto.jsonl), or of a single one
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    /// The public key that must have signed [default: any that is trusted]
    #[arg(long, value_name = "NAME:BASE64|FILE")]
    key: Option<String>,
    /// Answer in JSON: who signed, and the statements
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, keyring: &Keyring, arguments: &Arguments) -> CommandResult {
    let mut keys: BTreeMap<KeyId, PublicKey> = match &arguments.key {
        Some(text) => {
            let key = key::public(text)?;
            [(key.id(), key)].into()
        }
        None => keyring.policy(context)?.trusted,
    };
    let revoked = keyring.revoked()?;
    keys.retain(|id, _| !revoked.contains(id));
    let mut text = String::new();
    let mut answers = Vec::new();
    for file in &arguments.files {
        for (number, envelope) in envelopes(file)?.into_iter().enumerate() {
            let place = format!("{}: attestation {}", file.display(), number + 1);
            let (statement, by) = open(&envelope, &keys, &place)?;
            write(&mut text, file, &statement, &by);
            answers.push(json!({ "file": file, "by": by, "statement": statement }));
        }
    }
    match arguments.json {
        true => terminal::answer_json(&Value::from(answers)),
        false => terminal::answer(&text),
    }
}

/// The envelopes in a file: it as a whole, or each of its lines that is one. Lines that are
/// something else are passed over, as in-toto asks, but not all of them.
fn envelopes(path: &Path) -> CommandResult<Vec<Envelope>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        CommandError::new(ExitCode::User, format!("can't read {}: {error}", path.display()))
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        let what = format!("{} is larger than {} MiB", path.display(), MAX_BYTES >> 20);
        return Err(CommandError::user(what).hint("verify it in parts"));
    }
    let text = String::from_utf8_lossy(&bytes);
    if let Ok(envelope) = serde_json::from_str(&text) {
        return Ok(vec![envelope]);
    }
    let mut envelopes: Vec<Envelope> = Vec::new();
    let mut passed_over = 0;
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(envelope) => envelopes.push(envelope),
            // What was one, and was changed, is not something else.
            Err(error) if ["payload", "signatures"].iter().any(|it| line.contains(it)) => {
                let what = format!("{}: line {number} is a broken attestation", path.display());
                return Err(CommandError::new(ExitCode::Integrity, format!("{what}: {error}")));
            }
            Err(_) => passed_over += 1,
        }
    }
    if passed_over > 0 && !envelopes.is_empty() {
        let file = path.display();
        terminal::say(&match passed_over {
            1 => format!("1 line of {file} is something else"),
            several => format!("{several} lines of {file} are something else"),
        });
    }
    if envelopes.is_empty() {
        return Err(CommandError::user(format!("{} has no attestation in it", path.display()))
            .hint("srp audit --attest DIR writes such files"));
    }
    Ok(envelopes)
}

fn open(
    envelope: &Envelope,
    keys: &BTreeMap<KeyId, PublicKey>,
    place: &str,
) -> CommandResult<(Value, Vec<String>)> {
    let (payload, by) = envelope.open(IN_TOTO, keys).map_err(|error| {
        let message = format!("{place} is not to be believed: {error}");
        match error {
            EnvelopeError::Wrong { .. } => CommandError::new(ExitCode::Integrity, message),
            EnvelopeError::Untrusted => CommandError::user(message)
                .hint("srp key trust NAME:BASE64 trusts a key; --key names one for this once"),
            EnvelopeError::Type { .. } => CommandError::user(message),
        }
    })?;
    let statement: Value = serde_json::from_slice(payload).map_err(|error| {
        CommandError::user(format!("{place} holds no in-toto statement: {error}"))
    })?;
    Ok((statement, by.iter().map(ToString::to_string).collect()))
}

fn write(text: &mut String, file: &Path, statement: &Value, by: &[String]) {
    let field = |value: &Value| visible(value.as_str().unwrap_or("?"));
    let names: Vec<&str> = by.iter().filter_map(|key| key.split(':').next()).collect();
    let _ = write!(
        text,
        "{}: signed by {}: {}",
        file.display(),
        names.join(", "),
        field(&statement["predicateType"])
    );
    if let Some(verdict) = statement["predicate"]["verdict"].as_str() {
        let _ = write!(text, ": {}", visible(verdict));
    }
    text.push('\n');
    for subject in statement["subject"].as_array().into_iter().flatten() {
        let tree = field(&subject["digest"]["srpTree1"]);
        let _ = writeln!(text, "  {}  tree {tree}", field(&subject["name"]));
    }
}
