//! How a command fails: an error chain, hints, and an exit code.
//!
//! The libraries' errors say what happened; what a user could do about it is added here, where it
//! is known which command was given. Nothing is printed here but by [`CommandError::print`].

use std::error::Error;
use std::fmt::Write as _;

use srp_builder::audit::AuditError;
use srp_builder::sandbox::SandboxError;
use srp_builder::{FailureCause, RealiseError};
use srp_eval::{Bound, DefinitionsError, EvalError};
use srp_store::StoreError;
use srp_store::cache::{CacheError, ExportError, ImportError, KeyError, Severity};

use crate::style::Style;
use crate::terminal::{self, indented};

/// The exit codes. A command that runs another program (`srp shell`) exits with that program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// What was asked for was done.
    Success = 0,
    /// Something that was given, or something about this machine, is not as it should be.
    User = 1,
    /// The command line is malformed. (clap's own code for it.)
    Usage = 2,
    /// A derivation could not be realised.
    Build = 3,
    /// Something in the store is not what its digest or checksum says.
    Integrity = 4,
    /// A rebuild in an audit is not what is registered.
    Differs = 5,
    /// A bug of srp.
    Internal = 70,
    /// A signal ended it.
    Interrupted = 130,
}

/// The exit codes as `srp --help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    something given, or about this machine, is not as it should be
  2    malformed command line
  3    a derivation could not be realised
  4    something in the store is not what its digest says
  5    an audit found a difference
  70   a bug of srp
  130  interrupted";

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) code: ExitCode,
    message: Message,
    hints: Vec<String>,
}

#[derive(Debug)]
enum Message {
    /// An error and its causes.
    Chain(Box<dyn Error + Send + Sync>),
    /// Text that is complete as it is.
    Text(String),
    /// It was all said already.
    Silent,
}

/// What a command comes to.
pub(crate) type CommandResult<T = ()> = Result<T, CommandError>;

impl CommandError {
    /// A user's error in one sentence.
    pub(crate) fn user(message: impl Into<String>) -> CommandError {
        CommandError::new(ExitCode::User, message)
    }

    /// Arguments that don't go together.
    pub(crate) fn usage(message: impl Into<String>) -> CommandError {
        CommandError::new(ExitCode::Usage, message)
    }

    /// A failure in one sentence.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> CommandError {
        CommandError { code, message: Message::Text(message.into()), hints: Vec::new() }
    }

    /// A failure with its causes.
    pub(crate) fn chain(
        code: ExitCode,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> CommandError {
        CommandError { code, message: Message::Chain(error.into()), hints: Vec::new() }
    }

    /// An end that needs no words: they were said, or nobody reads them.
    pub(crate) fn silent(code: ExitCode) -> CommandError {
        CommandError { code, message: Message::Silent, hints: Vec::new() }
    }

    /// Adds what the user could do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> CommandError {
        self.hints.push(hint.into());
        self
    }

    /// Prints the error, its causes and the hints on standard error.
    pub(crate) fn print(&self, style: Style) {
        let mut text = String::new();
        match &self.message {
            Message::Silent => {}
            Message::Text(message) => {
                text = format!("{} {}\n", style.error("error:"), indented(message));
            }
            Message::Chain(error) => {
                let message = indented(&error.to_string());
                text = format!("{} {message}\n", style.error("error:"));
                text += &causes(&**error);
            }
        }
        for hint in &self.hints {
            let _ = writeln!(text, "{} {}", style.hint("hint:"), indented(hint));
        }
        terminal::write(&text);
    }
}

/// The causes of an error, one a line.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !last.ends_with(&message) {
            let _ = writeln!(text, "  because: {}", indented(&message));
        }
        last = message;
        cause = error.source();
    }
    text
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> CommandError {
        let code = match &error {
            error if error.is_damage() => ExitCode::Integrity,
            StoreError::Cancelled => ExitCode::Interrupted,
            _ => ExitCode::User,
        };
        let hint = match &error {
            StoreError::Missing { .. } => {
                Some("a store is made by the first command that writes to it, such as srp realise")
            }
            StoreError::Owner { .. } => {
                Some("name a store of your own: --store DIR, or SRP_ROOT in the environment")
            }
            StoreError::Damaged { .. } => {
                Some("remove that file: what is missing then is made again by srp realise")
            }
            StoreError::Unsound { .. } => Some(
                "srp realise makes it anew, from caches or by building: realise what it belongs to again",
            ),
            StoreError::NotAStore { .. } => Some("name an empty or new directory: --store DIR"),
            StoreError::NotEmpty { .. } => {
                Some("name a directory that does not exist yet, or is empty")
            }
            StoreError::Conflict(_) => Some(
                "one root can't have both: leave one of the two out, or put them into different roles",
            ),
            _ => None,
        };
        let error = CommandError::chain(code, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl From<CacheError> for CommandError {
    fn from(error: CacheError) -> CommandError {
        let code = match error.severity() {
            Severity::Integrity => ExitCode::Integrity,
            Severity::Miss | Severity::Local => ExitCode::User,
        };
        let hint = match error {
            CacheError::Store(error) => return error.into(),
            CacheError::NotACache { .. } => Some("srp cache create makes one there"),
            CacheError::Unsupported { .. } => Some(
                "do that where the cache's files lie, or let the server list them as JSON (nginx: autoindex)",
            ),
            CacheError::NotRealised { .. } => Some("srp realise it first"),
            CacheError::UnknownRoots { .. } => {
                Some("srp cache list CACHE shows all that there are")
            }
            CacheError::Transport { ref url, ref source, .. } if url.starts_with("s3://") => {
                bucket_hint(source.kind())
            }
            _ => None,
        };
        let error = CommandError::chain(code, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What a user could do about a bucket that can't be used.
fn bucket_hint(kind: std::io::ErrorKind) -> Option<&'static str> {
    use std::io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NotFound, PermissionDenied, TimedOut,
    };
    match kind {
        PermissionDenied => Some(
            "credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile's (AWS_PROFILE); \
             they need s3:ListBucket and s3:GetObject to read, s3:PutObject to publish, \
             s3:DeleteObject to collect garbage",
        ),
        NotFound => Some(
            "srp makes no buckets: make it, or see that AWS_ENDPOINT_URL and AWS_REGION are right",
        ),
        ConnectionRefused | HostUnreachable | TimedOut => {
            Some("AWS_ENDPOINT_URL says where buckets are that aren't Amazon's")
        }
        _ => None,
    }
}

impl From<ExportError> for CommandError {
    fn from(error: ExportError) -> CommandError {
        match error {
            ExportError::Cache(error) => error.into(),
            error => CommandError::chain(ExitCode::User, error),
        }
    }
}

impl From<ImportError> for CommandError {
    fn from(error: ImportError) -> CommandError {
        let (code, hint) = match error {
            ImportError::Cache(error) => {
                let hint = match error.severity() {
                    Severity::Local => "what had come whole is kept: import again for the rest",
                    _ => "what had come whole before is kept; import a sound copy",
                };
                return CommandError::from(error).hint(hint);
            }
            ImportError::Damaged { .. } => {
                (ExitCode::Integrity, "what had come whole before is kept; import a sound copy")
            }
            ImportError::NotAnExport { .. } => (ExitCode::User, "srp export writes exports"),
            ImportError::Truncated { .. } | ImportError::Read { .. } => {
                (ExitCode::User, "import the whole of it: what is here is passed over")
            }
        };
        CommandError::chain(code, error).hint(hint)
    }
}

impl From<KeyError> for CommandError {
    fn from(error: KeyError) -> CommandError {
        let hint = match &error {
            KeyError::Exists { .. } => {
                Some("srp key list shows all; give the new one another name")
            }
            KeyError::Malformed { kind: "secret", .. } => {
                Some("remove that file, and make another key: srp key generate NAME")
            }
            _ => None,
        };
        let error = CommandError::chain(ExitCode::User, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl From<EvalError> for CommandError {
    fn from(error: EvalError) -> CommandError {
        let (code, hint) = match &error {
            EvalError::Cancelled => (ExitCode::Interrupted, None),
            EvalError::Crashed { .. } | EvalError::Answer { .. } => (ExitCode::Internal, None),
            EvalError::Process { .. } => (ExitCode::User, Some("is /proc mounted?")),
            EvalError::UnknownStage { .. }
            | EvalError::UnknownTarget { .. }
            | EvalError::UnknownComponent { .. }
            | EvalError::NoTarget { .. } => {
                (ExitCode::User, Some("srp list shows every attribute"))
            }
            EvalError::Exhausted { bound, .. } => (ExitCode::User, bound_hint(bound)),
            _ => (ExitCode::User, None),
        };
        let error = match &error {
            EvalError::Process { .. } | EvalError::Answer { .. } => {
                CommandError::chain(code, error)
            }
            _ => CommandError::new(code, error.rendered().trim_end()),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What a user could do about an evaluation that takes too much.
fn bound_hint(bound: &Bound) -> Option<&'static str> {
    match bound {
        Bound::Memory { .. } => {
            Some("if the definitions need that much: memory_mib of [evaluation] in config.toml")
        }
        Bound::CpuTime { .. } | Bound::Time { .. } => {
            Some("if the definitions need that long: seconds of [evaluation] in config.toml")
        }
        Bound::Depth => {
            Some("make the value flatter: a list of its parts instead of lists in lists")
        }
        Bound::Killed => None,
    }
}

impl From<DefinitionsError> for CommandError {
    fn from(error: DefinitionsError) -> CommandError {
        CommandError::chain(ExitCode::User, error)
    }
}

impl From<RealiseError> for CommandError {
    fn from(error: RealiseError) -> CommandError {
        match error {
            RealiseError::Cancelled => CommandError::chain(ExitCode::Interrupted, error),
            RealiseError::Store(error) => error.into(),
            RealiseError::Cycle { .. } => CommandError::chain(ExitCode::User, error),
            RealiseError::Incomplete { .. } => CommandError::chain(ExitCode::Internal, error),
            RealiseError::Failed { .. } => CommandError::chain(ExitCode::Build, error),
            RealiseError::Threads { .. } => CommandError::chain(ExitCode::User, error).hint(
                "this user or container may have no more processes: see ulimit -u, or its limit of pids",
            ),
            RealiseError::NoBuild { .. } => CommandError::chain(ExitCode::Build, error)
                .hint("leave --no-build out to have them built"),
        }
    }
}

impl From<SandboxError> for CommandError {
    fn from(error: SandboxError) -> CommandError {
        let hint = sandbox_hint(&error);
        let error = CommandError::chain(ExitCode::User, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What a user could do about a sandbox that didn't do its work.
fn sandbox_hint(error: &SandboxError) -> Option<&'static str> {
    match error {
        // These have nothing to do with the machine, or say themselves what to do.
        SandboxError::Command { .. }
        | SandboxError::NoExecutableMemory
        | SandboxError::Relay { .. } => None,
        SandboxError::DirectoryStream { .. } => {
            Some("let the directory appear in the sandbox: --bind DIR")
        }
        _ => Some("srp doctor shows what sandboxes need of this machine"),
    }
}

/// What a user could do about a derivation's failure.
pub(crate) fn failure_hints(cause: &FailureCause) -> Vec<String> {
    match cause {
        FailureCause::Fetch(error) => error.hints(),
        FailureCause::Scan(error) => error.hints(),
        FailureCause::References { hints, .. } => hints.clone(),
        FailureCause::Sandbox(error) => {
            sandbox_hint(error).map(str::to_owned).into_iter().collect()
        }
        FailureCause::OutOfMemory { .. } => vec![
            "let fewer builds run at once (--jobs 1), or say in its definition what it needs (memory_mib)"
                .to_owned(),
        ],
        FailureCause::NoRunner { .. } => vec![
            "build on a machine of that architecture, or add an emulator to `runners` in main.star"
                .to_owned(),
        ],
        FailureCause::Store(StoreError::Conflict(_)) => vec![
            "one root can't have both: leave one of the two inputs out, or give it another role"
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

impl From<AuditError> for CommandError {
    fn from(error: AuditError) -> CommandError {
        let code = match &error {
            AuditError::Cancelled => ExitCode::Interrupted,
            AuditError::NoDerivation { .. } => ExitCode::Internal,
            AuditError::Failed { .. } => ExitCode::User,
        };
        CommandError::chain(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_printed_once_each() {
        let inner = std::io::Error::other("no space left");
        let error = StoreError::Io { action: "write", path: "/x".into(), source: inner };
        assert_eq!(causes(&error), "  because: no space left\n");
        #[derive(Debug, thiserror::Error)]
        #[error("can't go on: {source}")]
        struct Repeating {
            source: StoreError,
        }
        let error = Repeating { source: error };
        assert_eq!(causes(&error), "  because: no space left\n");
    }

    #[test]
    fn the_table_of_exit_codes_is_complete() {
        for code in [
            ExitCode::Success,
            ExitCode::User,
            ExitCode::Usage,
            ExitCode::Build,
            ExitCode::Integrity,
            ExitCode::Differs,
            ExitCode::Internal,
            ExitCode::Interrupted,
        ] {
            let number = code as u8;
            let listed = EXIT_CODES
                .lines()
                .any(|line| line.split_whitespace().next() == Some(number.to_string().as_str()));
            assert!(listed, "{code:?}");
        }
    }
}
