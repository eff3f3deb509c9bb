//! The page for people that `srp serve` answers `/` with: what is here, and how to use it.
//!
//! One page, no script and nothing from elsewhere. What is the same on every page is in
//! [`html`](crate::html).

use std::collections::BTreeMap;

use indicatif::HumanBytes;
use maud::{Markup, html};
use srp_store::cache::{CacheError, OfferedRoot, Offering};
use srp_store::{Info, ObjectId};

use crate::html::{Document, foreign};

/// A root with all that it consists of.
type Whole = (OfferedRoot, Vec<(ObjectId, Info)>);

/// The page, for whoever reaches this server at `url`.
pub(crate) fn page(offering: &Offering, url: &str, has_token: bool) -> Result<String, CacheError> {
    let mut roots = Vec::new();
    for root in offering.roots()? {
        if let Some(closure) = offering.closure(&root)? {
            roots.push((root, closure));
        }
    }
    let key = offering.key().map(|key| key.public().to_string());
    let body = html! {
        main {
            h1 { "srp binary cache" }
            p {
                "This is the store of a machine that runs " code { "srp serve" } ". Other machines "
                "take from it what they would have to build."
            }
            h2 { "What is here" }
            @if roots.is_empty() {
                p {
                    "No root has a name yet. Objects that are in the store are served all the same."
                }
            } @else {
                (table(&roots))
            }
            h2 { "How to use it" }
            (how_to_use(&roots, url, key.as_deref(), has_token))
        }
    };
    Ok(Document { title: "srp binary cache", style: "", script: None }.with(&body))
}

fn table(roots: &[Whole]) -> Markup {
    let all: BTreeMap<ObjectId, u64> = roots
        .iter()
        .flat_map(|(_, closure)| closure.iter().map(|(id, info)| (*id, info.size_bytes)))
        .collect();
    let bytes = |closure: &[(ObjectId, Info)]| {
        HumanBytes(closure.iter().map(|(_, info)| info.size_bytes).sum())
    };
    html! {
        div.wide role="region" aria-label="Roots" tabindex="0" {
            table {
                caption {
                    (roots.len()) " roots of " (all.len()) " different objects, "
                    (HumanBytes(all.values().sum())) " before compression"
                }
                thead {
                    tr {
                        th scope="col" { "Root" }
                        th.number scope="col" { "Generation" }
                        th.number scope="col" { "Objects" }
                        th.number scope="col" { "Size" }
                        th scope="col" { "Store object" }
                    }
                }
                tbody {
                    @for (root, closure) in roots {
                        tr {
                            th scope="row" { (foreign(&root.name)) }
                            td.number { (root.generation) }
                            td.number { (closure.len()) }
                            td.number { (bytes(closure)) }
                            td { code { (foreign(&root.object.to_string())) } }
                        }
                    }
                }
            }
        }
    }
}

fn how_to_use(roots: &[Whole], url: &str, key: Option<&str>, has_token: bool) -> Markup {
    let url = match has_token {
        true => url.replacen("://", "://srp:TOKEN@", 1),
        false => url.to_owned(),
    };
    let name = roots.first().map_or("ATTR", |(root, _)| &root.name);
    html! {
        p { "On the other machine, in " code { "~/.config/srp/config.toml" } ":" }
        pre {
            code {
                "[[caches]]\nurl = \"" (foreign(&url)) "\"\n"
                @if key.is_none() { "trusted_unsigned = true\n" }
            }
        }
        @if let Some(key) = key {
            p {
                "Say that what this machine signs is to be believed. Compare the key with what "
                code { "srp key list" } " says there, not only with this page:"
            }
            pre { code { "srp key trust " (foreign(key)) } }
        } @else {
            p {
                "Nothing is signed: whoever trusts this cache believes whoever answers at its "
                "address. " code { "srp key generate" } " on the serving machine makes a key."
            }
        }
        p { "Then nothing that is here has to be built:" }
        pre { code { "srp realise " (foreign(name)) " --no-build" } }
    }
}
