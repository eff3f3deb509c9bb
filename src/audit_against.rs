//! `srp audit --against`: what the signers of caches say of what is here, without building.

use std::sync::Arc;

use serde_json::json;
use srp_builder::audit::AuditError;
use srp_builder::audit::against::{Comparison, Hearing, Outcome};
use srp_builder::substitute::Upstream;
use srp_store::cache::Remote;
use srp_store::{StaticHash, Store};

use crate::audit_against_text;
use crate::building;
use crate::cache;
use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::goals::Graph;
use crate::interrupt;
use crate::keyring::Keyring;
use crate::terminal;

/// Compares `wanted` with what these caches say, and prints that.
pub(crate) fn run(
    context: &Context,
    store: &Store,
    graph: &Graph,
    wanted: &[StaticHash],
    caches: &[String],
    as_json: bool,
) -> CommandResult {
    let upstreams = caches.iter().map(|url| upstream(context, url));
    let upstreams = upstreams.collect::<CommandResult<Vec<Upstream>>>()?;
    let policy = Keyring::of(context)?.policy(context)?;
    let nobody = policy.trusted.is_empty() && upstreams.iter().all(|it| !it.trusted_outright);
    let cancel = interrupt::token()?;
    let urls: Vec<String> = upstreams.iter().map(|it| it.remote.url().to_owned()).collect();
    let hearing = Hearing::new(store, upstreams, policy, &cancel);
    let comparisons = hearing.compare(&graph.derivations, wanted)?;
    if cancel.is_cancelled() {
        return Err(AuditError::Cancelled.into());
    }
    if as_json {
        let unreachable = hearing.unreachable();
        terminal::answer_json(&json!({
            "format": 1,
            "against": urls,
            "unreachable": unreachable,
            "comparisons": comparisons,
        }))?;
    } else {
        terminal::answer(&audit_against_text::report(&comparisons))?;
    }
    verdict(&comparisons, nobody)
}

/// A cache as it is named on the command line. One that the configuration trusts outright is that
/// here, too.
fn upstream(context: &Context, url: &str) -> CommandResult<Upstream> {
    let remote: Arc<dyn Remote> = cache::remote(url)?;
    let connections = building::connections();
    let trusted_outright = context.config.caches.iter().any(|cache| {
        let same = |other: Arc<dyn Remote>| other.url() == remote.url();
        cache.trusted_unsigned && connections.open(&cache.url).is_ok_and(same)
    });
    Ok(Upstream { remote, priority: 0, trusted_outright })
}

/// The command's end. A disagreement is worse than a wrong signature, which somebody on the way
/// may have made; that something is unknown is only worth a failure if all of it is.
fn verdict(comparisons: &[Comparison], nobody_is_trusted: bool) -> CommandResult {
    let count = |wanted: fn(&Outcome) -> bool| {
        comparisons.iter().filter(|comparison| wanted(&comparison.outcome)).count()
    };
    let what = match count(|outcome| matches!(outcome, Outcome::Disagree)) {
        0 => None,
        1 => Some("1 derivation is not what others say".to_owned()),
        several => Some(format!("{several} derivations are not what others say")),
    };
    if let Some(what) = what {
        return Err(CommandError::new(ExitCode::Differs, what)
            .hint("srp audit without --against rebuilds it here, and says what it depends on"));
    }
    if comparisons.iter().any(Comparison::has_wrong_signature) {
        return Err(CommandError::new(ExitCode::Integrity, "signatures are wrong"));
    }
    if count(|outcome| matches!(outcome, Outcome::Agree)) == 0 {
        let error = CommandError::user("nothing could be compared");
        return Err(match nobody_is_trusted {
            true => error.hint("no key is trusted: srp key trust NAME:BASE64"),
            false => {
                error.hint("srp cache list CACHE shows what is published, in a directory or bucket")
            }
        });
    }
    Ok(())
}
