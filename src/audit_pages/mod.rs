//! An audit's report as pages: `srp audit --html DIR`.
//!
//! A table of all derivations, and a page for each that differs. They are made of the same plain data
//! as the JSON, and can be read from a directory, without a server, a network or a script. What
//! builds wrote is in them, and none of it is trusted: see [`html`](crate::html).

mod derivation;
mod index;
mod outcome;
mod place;
mod sides;

use std::path::PathBuf;
use std::time::SystemTime;

use maud::{Markup, html};
use srp_builder::audit::{Audit, Status};

use crate::error::CommandResult;
use crate::html::foreign;

pub(crate) use place::Place;

const INDEX: &str = "index.html";
const STYLE: &str = include_str!("style.css");

/// Writes the report; where it begins.
pub(crate) fn write(place: &Place, audits: &[Audit], command: &[String]) -> CommandResult<PathBuf> {
    let when = httpdate::fmt_http_date(SystemTime::now());
    let mut pages = vec![(INDEX.to_owned(), index::page(audits, &when, &shown(command)))];
    let differing = audits.iter().filter(|audit| audit.status == Status::Differs);
    pages.extend(differing.map(|audit| (page_name(audit), derivation::page(audit))));
    place.write(&pages)?;
    Ok(place.page(INDEX))
}

/// What the page of a derivation is called. Names have no characters that mean something in
/// addresses or paths; that none ever comes into a report is not left to that.
fn page_name(audit: &Audit) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "+-._".contains(char);
    let name: String =
        audit.name.chars().map(|char| if plain(char) { char } else { '_' }).collect();
    format!("{name}-{}.html", &audit.derivation.to_string()[..12])
}

/// A command as it can be typed again, without the passwords of addresses: reports are passed on.
fn shown(command: &[String]) -> String {
    let word = |word: &String| {
        let word = match word.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find('/').unwrap_or(rest.len());
                let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
                format!("{scheme}://{}", &rest[host..])
            }
            None => word.clone(),
        };
        let plain = |char: char| char.is_ascii_alphanumeric() || "+-._/=:,@%".contains(char);
        match !word.is_empty() && word.chars().all(plain) {
            true => word,
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    };
    command.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// A name, and a version if there is one.
fn title(audit: &Audit) -> String {
    format!("{} {}", audit.name, audit.version).trim_end().to_owned()
}

/// Text for those who don't see.
fn unseen(text: &str) -> Markup {
    html! { span.unseen { (text) } }
}

/// The first thing that a keyboard comes to.
fn skip_link(to: &str) -> Markup {
    html! { a.skip href="#main" { "Skip to " (to) } }
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.1}", milliseconds as f64 / 1000.0)
}

/// Several lines, as they are.
fn lines(text: &str) -> Markup {
    html! { @for line in text.lines() { (foreign(line)) br; } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_can_be_typed_again_and_tells_no_password() {
        let words = ["srp", "audit", "a b", "it's", "--html", "", "https://me:secret@h.test/x@y"];
        assert_eq!(
            shown(&command(&words)),
            r"srp audit 'a b' 'it'\''s' --html '' https://h.test/x@y"
        );
        assert_eq!(shown(&command(&["--x=http://srp:s@h:1"])), "--x=http://h:1");
    }
}
