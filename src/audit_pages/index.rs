//! The first page: what was audited, and a table of what each dimension came to.

use maud::{Markup, html};
use srp_builder::audit::{Audit, Dimension, Status};

use super::outcome::Outcome;
use super::{STYLE, lines, page_name, seconds, skip_link, title, unseen};
use crate::audit_text::word;
use crate::html::{Document, foreign};
use crate::visible::visible;

const SCRIPT: &str = include_str!("index.js");

/// The page.
pub(super) fn page(audits: &[Audit], when: &str, command: &str) -> String {
    let reasons = Reasons::of(audits);
    let body = html! {
        (skip_link("the derivations"))
        header { h1 { "Audit" } }
        main {
            (summary(audits, when, command))
            h2 #main tabindex="-1" { "Derivations" }
            (filter(audits))
            div.wide role="region" aria-label="Derivations" tabindex="0" { (table(audits, &reasons)) }
            (legend(&reasons))
        }
    };
    Document { title: "Audit", style: STYLE, script: Some(SCRIPT) }.with(&body)
}

/// The statuses, what matters most first.
const STATUSES: &[&str] = &["differs", "unknown", "identical", "not audited"];

fn rank(audit: &Audit) -> usize {
    let word = word(&audit.status);
    STATUSES.iter().position(|status| *status == word).unwrap_or(STATUSES.len())
}

fn count(audits: &[Audit], status: &str) -> usize {
    audits.iter().filter(|audit| word(&audit.status) == status).count()
}

fn symbol(status: &Status) -> (&'static str, &'static str) {
    match status {
        Status::Identical => ("=", "good"),
        Status::Differs => ("≠", "bad"),
        Status::Unknown { .. } => ("?", "bad"),
        Status::NotAudited { .. } => ("·", "neither"),
    }
}

fn summary(audits: &[Audit], when: &str, command: &str) -> Markup {
    let varied = |dimension: &Dimension| {
        let mut tried = audits.iter().flat_map(|audit| &audit.dimensions);
        tried.any(|tried| tried.dimension == *dimension && tried.variation.is_some())
    };
    let varied: Vec<&str> =
        Dimension::ALL.iter().copied().filter(varied).map(Dimension::name).collect();
    html! {
        ul.counts aria-label="Summary" {
            @for status in STATUSES {
                @let word = if *status == "differs" { "differing" } else { status };
                li data-status=(status) { strong { (count(audits, status)) } " " (word) }
            }
        }
        dl {
            dt { "When" }
            dd { (when) }
            dt { "Command" }
            dd { code { (foreign(command)) } }
            dt { "Varied" }
            dd { @if varied.is_empty() { "nothing" } @else { (varied.join(", ")) } }
        }
    }
}

/// What chooses rows. Without a script it can't, and isn't there.
fn filter(audits: &[Audit]) -> Markup {
    let choice = |value: &str, label: &str, count: usize| {
        html! {
            label {
                input type="radio" name="status" value=(value) checked[value.is_empty()];
                " " (label) " (" (count) ")"
            }
        }
    };
    html! {
        form #filter hidden {
            fieldset {
                legend { "Status" }
                (choice("", "all", audits.len()))
                @for status in STATUSES { (choice(status, status, count(audits, status))) }
            }
            label { "Name contains " input type="search" name="name" autocomplete="off"; }
            p #shown role="status" {}
        }
    }
}

fn table(audits: &[Audit], reasons: &Reasons<'_>) -> Markup {
    let mut rows: Vec<&Audit> = audits.iter().collect();
    rows.sort_by_key(|audit| (rank(audit), &audit.name, &audit.version));
    html! {
        table #derivations {
            caption { "Result by derivation and dimension" }
            thead {
                tr {
                    th scope="col" data-column="name" { "Derivation" }
                    th scope="col" data-column="status" aria-sort="ascending" { "Status" }
                    @for dimension in Dimension::ALL {
                        th.dimension scope="col" { span { (dimension.name()) } }
                    }
                    th.number scope="col" data-column="rounds" { "Rounds" }
                    th.number scope="col" data-column="seconds" { "Seconds" }
                }
            }
            tbody { @for audit in rows { (row(audit, reasons)) } }
        }
    }
}

fn row(audit: &Audit, reasons: &Reasons<'_>) -> Markup {
    let milliseconds: u64 = audit.rounds.iter().map(|round| round.milliseconds).sum();
    let (symbol, class) = symbol(&audit.status);
    let name = title(audit);
    html! {
        tr data-status=(word(&audit.status)) data-name=(visible(&name.to_lowercase())) {
            th scope="row" data-column="name" {
                @if audit.status == Status::Differs {
                    a href=(page_name(audit)) { (foreign(&name)) }
                } @else {
                    (foreign(&name))
                }
            }
            td.status.(class) data-column="status" data-key=(rank(audit)) {
                span.symbol aria-hidden="true" { (symbol) } " " (word(&audit.status))
            }
            @match &audit.status {
                Status::Unknown { reason } | Status::NotAudited { reason } => {
                    td.reason colspan=(Dimension::ALL.len()) { (lines(reason)) }
                }
                Status::Identical | Status::Differs => {
                    @for dimension in Dimension::ALL { (cell(audit, *dimension, reasons)) }
                }
            }
            td.number data-column="rounds" { (audit.rounds.len()) }
            td.number data-column="seconds" data-key=(milliseconds) { (seconds(milliseconds)) }
        }
    }
}

fn cell(audit: &Audit, dimension: Dimension, reasons: &Reasons<'_>) -> Markup {
    let outcome = Outcome::of(audit, dimension);
    html! {
        @match outcome {
            Outcome::NotApplicable(reason) => {
                td.outcome.(outcome.class()) title=(visible(reason)) {
                    span aria-hidden="true" { (outcome.symbol()) sup { (reasons.number(reason)) } }
                    (unseen(outcome.words())) span.unseen { ": " (foreign(reason)) }
                }
            }
            _ => td.outcome.(outcome.class()) title=(outcome.words()) {
                span aria-hidden="true" { (outcome.symbol()) }
                (unseen(outcome.words()))
            }
        }
    }
}

fn legend(reasons: &Reasons<'_>) -> Markup {
    html! {
        h2 { "Legend" }
        dl.signs {
            @for outcome in Outcome::ALL {
                dt.(outcome.class()) { (outcome.symbol()) }
                dd { (outcome.words()) }
            }
        }
        @if !reasons.0.is_empty() {
            h3 { "Not applicable, because" }
            ol { @for reason in &reasons.0 { li { (foreign(reason)) } } }
        }
    }
}

/// Why dimensions aren't applicable: said once below the table, and by number in it. Derivations
/// have them in common.
struct Reasons<'a>(Vec<&'a str>);

impl<'a> Reasons<'a> {
    fn of(audits: &'a [Audit]) -> Reasons<'a> {
        let mut reasons = Vec::new();
        let tried = audits.iter().flat_map(|audit| &audit.dimensions);
        for reason in tried.filter_map(|tried| tried.not_applicable.as_deref()) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        Reasons(reasons)
    }

    fn number(&self, reason: &str) -> usize {
        self.0.iter().take_while(|other| **other != reason).count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{REASON, audit};
    use super::*;

    #[test]
    fn why_something_is_not_applicable_is_said_once_and_to_everybody() {
        let audits = [audit(&[]), audit(&[&[]])];
        let page = page(&audits, "now", "srp audit <x>");
        let reason = REASON.replace('<', "&lt;").replace('>', "&gt;");
        assert!(!page.contains("<late>") && !page.contains("<x>"), "{page}");
        assert_eq!(page.matches(&format!("<li>{reason}</li>")).count(), 1, "{page}");
        assert_eq!(page.matches("n/a<sup>1</sup>").count(), 2, "{page}");
        assert_eq!(page.matches(&format!(": {reason}</span>")).count(), 2, "{page}");
        let links = page.matches("<a href=\"x-000000000000.html\">").count();
        assert_eq!(links, 1, "only what differs has a page: {page}");
    }
}
