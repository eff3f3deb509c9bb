//! Pages of HTML: what all that srp writes have in common.
//!
//! A page is one file that needs no other: no font, no image, nothing from the network, and its
//! policy forbids all of that. Templates are maud's, which escapes whatever isn't the template's own
//! text. Text of builds goes through [`foreign`] or [`visible`] as well, since what is escaped can
//! still deceive: it could end lines, or turn the direction of writing around.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use crate::visible::{is_unseen, spelled, visible};

const STYLE: &str = include_str!("html.css");

/// A page without its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) title: &'a str,
    /// What it looks like, beside what all pages look like.
    pub(crate) style: &'a str,
    /// What it does, if anything. The page has to be of use without.
    pub(crate) script: Option<&'a str>,
}

impl Document<'_> {
    /// The page with this in its body.
    pub(crate) fn with(&self, body: &Markup) -> String {
        let style = format!("{STYLE}{}", self.style);
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy(&style, self.script));
                    meta name="viewport" content="width=device-width";
                    meta name="generator" content={ "srp " (env!("CARGO_PKG_VERSION")) };
                    title { (visible(self.title)) }
                    style { (PreEscaped(&style)) }
                }
                body {
                    (body)
                    @if let Some(script) = self.script { script { (PreEscaped(script)) } }
                }
            }
        };
        page.into_string()
    }
}

/// What a browser may do with a page: use this style and run this script, and nothing else. An
/// attribute that is a script isn't run either.
fn policy(style: &str, script: Option<&str>) -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let script = script.map_or("'none'".to_owned(), hash);
    format!(
        "default-src 'none'; style-src {}; script-src {script}; base-uri 'none'; form-action 'none'",
        hash(style)
    )
}

/// Text that isn't srp's own, with what can't be seen set off by its colour.
pub(crate) fn foreign(text: &str) -> Markup {
    html! {
        @for piece in text.split_inclusive(is_unseen) {
            @if let Some(unseen) = piece.chars().next_back().filter(|char| is_unseen(*char)) {
                (piece.trim_end_matches(unseen)) span.odd { (spelled(unseen)) }
            } @else {
                (piece)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_text() {
        let hostile = "</script><a href='x' title=\"y\">&";
        let escaped = "&lt;/script&gt;&lt;a href='x' title=&quot;y&quot;&gt;&amp;";
        assert_eq!(foreign(hostile).into_string(), escaped);
        let attribute = html! { p title=(visible(hostile)) {} }.into_string();
        assert_eq!(attribute, format!("<p title=\"{escaped}\"></p>"));
    }

    #[test]
    fn what_cannot_be_seen_is_spelled() {
        let markup = foreign("<\u{202e}>\x08").into_string();
        assert_eq!(
            markup,
            "&lt;<span class=\"odd\">\\u{202e}</span>&gt;<span class=\"odd\">␈</span>"
        );
    }

    #[test]
    fn a_title_cannot_end_itself() {
        let document = Document { title: "</title><script>x</script>", style: "", script: None };
        let page = document.with(&html! {});
        assert!(page.contains("<title>&lt;/title&gt;&lt;script&gt;"), "{page}");
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn a_policy_names_what_the_page_has() {
        // printf 'let x' | openssl dgst -sha256 -binary | base64
        let policy = policy("", Some("let x"));
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        let empty = "style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='";
        assert!(policy.contains(empty), "{policy}");
        assert!(
            policy.contains("script-src 'sha256-dXKOHtfmzrnYeAHYBCbUmBpIqmNFRVEF6ulA+ucuqt0='"),
            "{policy}"
        );
        assert!(self::policy("", None).contains("script-src 'none'"));
    }
}
