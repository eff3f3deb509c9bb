//! The page of a derivation that differs: when, why, and what.

use maud::{Markup, html};
use srp_builder::audit::{Audit, Cause, Change, Difference, Failed};

use super::outcome::Outcome;
use super::{INDEX, STYLE, seconds, sides, skip_link, title};
use crate::audit_text::{described, how, place, when};
use crate::html::{Document, foreign};

const SCRIPT: &str = include_str!("derivation.js");
/// So many paths of a difference are listed.
const MOST_PATHS: usize = 1000;
/// So many are unfolded from the start.
const UNFOLDED: usize = 3;

/// The page.
pub(super) fn page(audit: &Audit) -> String {
    let name = title(audit);
    let body = html! {
        (skip_link("the differences"))
        header {
            nav aria-label="Breadcrumb" {
                ol.breadcrumb {
                    li { a href=(INDEX) { "Audit" } }
                    li { span aria-current="page" { (foreign(&name)) } }
                }
            }
            h1 { (foreign(&name)) " is not reproducible" }
            p { "Derivation " code { (audit.derivation) } }
        }
        main #main tabindex="-1" {
            @if audit.differences.len() > 1 {
                nav aria-label="Differences" {
                    ol {
                        @for (number, difference) in (1..).zip(&audit.differences) {
                            li {
                                a href={ "#difference-" (number) } {
                                    (foreign(&when(audit, difference)))
                                }
                            }
                        }
                    }
                }
            }
            @for (number, difference) in (1..).zip(&audit.differences) {
                (self::difference(audit, difference, number))
            }
            (dimensions(audit))
            (rounds(audit))
        }
    };
    let title = format!("{name} differs – Audit");
    Document { title: &title, style: STYLE, script: Some(SCRIPT) }.with(&body)
}

fn difference(audit: &Audit, difference: &Difference, number: usize) -> Markup {
    let id = format!("difference-{number}");
    let steady = difference.steady_under.iter().map(|it| described(audit, *it));
    let steady = steady.collect::<Vec<_>>().join(", ");
    html! {
        section aria-labelledby=(id) {
            h2 #(id) { (foreign(&when(audit, difference))) }
            @if !steady.is_empty() { p { "Steady when: " (foreign(&steady)) } }
            @if difference.recurs {
                p { "Rebuilds agree with each other, but not with what is registered." }
            }
            (causes(&difference.causes))
            @if let Some(failed) = &difference.failed { (self::failed(failed, number)) }
            (changes(&difference.changes, number))
            @if let Some(kept) = &difference.kept {
                p { "The rebuild is kept in " code { (foreign(&kept.to_string_lossy())) } }
            }
            @for report in &difference.diffoscope {
                p { "Diffoscope’s report: " code { (foreign(&report.to_string_lossy())) } }
            }
        }
    }
}

fn causes(causes: &[Cause]) -> Markup {
    html! {
        @if !causes.is_empty() {
            h3 { "Likely causes" }
            ol.causes {
                @for cause in causes {
                    li {
                        p { strong { (cause.what) } " [" (cause.pattern) "]" }
                        p { "What helps: " (cause.advice) }
                    }
                }
            }
        }
    }
}

fn failed(failed: &Failed, number: usize) -> Markup {
    let id = format!("failure-{number}");
    html! {
        h3 #(id) { "The rebuild fails" }
        p { (foreign(&failed.how)) }
        @if !failed.log_tail.is_empty() {
            p { "The end of its log:" }
            pre.log role="region" aria-labelledby=(id) tabindex="0" {
                @for line in &failed.log_tail { (foreign(line)) "\n" }
            }
        }
    }
}

/// What was looked into comes first, and can be folded; the others are a table.
fn changes(changes: &[Change], number: usize) -> Markup {
    let explained = changes.iter().filter(|change| !change.parts.is_empty());
    let others: Vec<&Change> = changes.iter().filter(|change| change.parts.is_empty()).collect();
    html! {
        @if !changes.is_empty() {
            h3 #{ "paths-" (number) } {
                @if changes.len() == 1 { "1 path differs" } @else { (changes.len()) " paths differ" }
            }
        }
        @for (at, change) in explained.enumerate() {
            details open[at < UNFOLDED] {
                summary {
                    h4 { code { (foreign(&place(change))) } }
                    " " (foreign(&how(&change.kind)))
                }
                @for part in &change.parts { (sides::part(part)) }
            }
        }
        @if !others.is_empty() {
            div.wide role="region" aria-labelledby={ "paths-" (number) } tabindex="0" {
                table {
                    caption { "Paths that weren't looked into" }
                    thead { tr { th scope="col" { "Path" } th scope="col" { "How it differs" } } }
                    tbody {
                        @for change in others.iter().take(MOST_PATHS) {
                            tr {
                                th scope="row" { code { (foreign(&place(change))) } }
                                td { (foreign(&how(&change.kind))) }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(more @ 1..) = others.len().checked_sub(MOST_PATHS) {
            p { "And " (more) " paths more: " code { "srp audit --json" } " lists all of them." }
        }
    }
}

fn dimensions(audit: &Audit) -> Markup {
    html! {
        section aria-labelledby="dimensions" {
            h2 #dimensions { "What was varied" }
            div.wide role="region" aria-labelledby="dimensions" tabindex="0" {
                table {
                    caption { "Each dimension, and what it came to" }
                    thead {
                        tr {
                            th scope="col" { "Dimension" }
                            th scope="col" { "Usual" }
                            th scope="col" { "Varied" }
                            th scope="col" { "Came to" }
                        }
                    }
                    tbody { @for tried in &audit.dimensions { (dimension(audit, tried)) } }
                }
            }
        }
    }
}

fn dimension(audit: &Audit, tried: &srp_builder::audit::Tried) -> Markup {
    let outcome = Outcome::of(audit, tried.dimension);
    let (usual, varied) = match &tried.variation {
        Some(variation) => (variation.usual.as_str(), variation.varied.as_str()),
        None => ("", ""),
    };
    html! {
        tr {
            th scope="row" { (tried.dimension.name()) }
            td { (foreign(usual)) }
            td { (foreign(varied)) }
            td.(outcome.class()) {
                span.symbol aria-hidden="true" { (outcome.symbol()) } " " (outcome.words())
                @if let Outcome::NotApplicable(reason) = outcome { ": " (foreign(reason)) }
            }
        }
    }
}

fn rounds(audit: &Audit) -> Markup {
    html! {
        section aria-labelledby="rounds" {
            h2 #rounds { "Rounds" }
            div.wide role="region" aria-labelledby="rounds" tabindex="0" {
                table {
                    caption { "Every rebuild, in order" }
                    thead {
                        tr {
                            th.number scope="col" { "Round" }
                            th scope="col" { "Varied" }
                            th scope="col" { "Came out" }
                            th.number scope="col" { "Seconds" }
                        }
                    }
                    tbody {
                        @for (number, round) in (1..).zip(&audit.rounds) {
                            tr {
                                th.number scope="row" { (number) }
                                td { (names(&round.varied)) }
                                td { @if round.identical { "identical" } @else { "different" } }
                                td.number { (seconds(round.milliseconds)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn names(dimensions: &[srp_builder::audit::Dimension]) -> String {
    if dimensions.is_empty() {
        return "nothing".to_owned();
    }
    dimensions.iter().map(|dimension| dimension.name()).collect::<Vec<_>>().join(", ")
}
