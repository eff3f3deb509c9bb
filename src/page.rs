//! The page for people that `srp serve` answers `/` with: what is here, and how to use it.
//!
//! One page, no script and nothing from elsewhere. Whatever isn't this file's own text is escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use indicatif::HumanBytes;
use srp_store::cache::{CacheError, OfferedRoot, Offering};
use srp_store::{Info, ObjectId};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}\
caption{text-align:left;padding:.3rem 0}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8888;vertical-align:top}\
td.number,th.number{text-align:right;white-space:nowrap}\
code,pre{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}\
pre{padding:.6rem;border:1px solid #8888;overflow-x:auto}\
.wide{overflow-x:auto}";

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
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>srp binary cache</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>srp binary cache</h1>\n"
    );
    page += "<p>This is the store of a machine that runs <code>srp serve</code>. Other machines \
             take from it what they would have to build.</p>\n";
    write_roots(&mut page, &roots);
    write_use(&mut page, &roots, url, key.as_deref(), has_token);
    page += "</main>\n</body>\n</html>\n";
    Ok(page)
}

fn write_roots(page: &mut String, roots: &[Whole]) {
    *page += "<h2>What is here</h2>\n";
    if roots.is_empty() {
        *page += "<p>No root has a name yet. Objects that are in the store are served all the \
                  same.</p>\n";
        return;
    }
    let mut all = BTreeMap::new();
    let mut rows = String::new();
    for (root, closure) in roots {
        let bytes: u64 = closure.iter().map(|(_, info)| info.size_bytes).sum();
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td><td><code>{}</code></td></tr>",
            escape(&root.name),
            root.generation,
            closure.len(),
            HumanBytes(bytes),
            escape(&root.object.to_string())
        );
        all.extend(closure.iter().map(|(id, info)| (*id, info.size_bytes)));
    }
    let _ = write!(
        page,
        "<div class=\"wide\" role=\"region\" aria-label=\"Roots\" tabindex=\"0\">\n<table>\n\
         <caption>{} roots of {} different objects, {} before compression</caption>\n\
         <thead><tr><th scope=\"col\">Root</th><th scope=\"col\" class=\"number\">Generation</th>\
         <th scope=\"col\" class=\"number\">Objects</th>\
         <th scope=\"col\" class=\"number\">Size</th><th scope=\"col\">Store object</th></tr>\
         </thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        roots.len(),
        all.len(),
        HumanBytes(all.values().sum()),
    );
}

fn write_use(page: &mut String, roots: &[Whole], url: &str, key: Option<&str>, has_token: bool) {
    let with_token = url.replacen("://", "://srp:TOKEN@", 1);
    let url = escape(if has_token { &with_token } else { url });
    *page += "<h2>How to use it</h2>\n<p>On the other machine, in \
              <code>~/.config/srp/config.toml</code>:</p>\n";
    let trusted = if key.is_none() { "trusted_unsigned = true\n" } else { "" };
    let _ = writeln!(page, "<pre><code>[[caches]]\nurl = \"{url}\"\n{trusted}</code></pre>");
    match key {
        Some(key) => {
            *page += "<p>Say that what this machine signs is to be believed. Compare the key with \
                      what <code>srp key list</code> says there, not only with this page:</p>\n";
            let _ = writeln!(page, "<pre><code>srp key trust {}</code></pre>", escape(key));
        }
        None => {
            *page += "<p>Nothing is signed: whoever trusts this cache believes whoever answers at \
                      its address. <code>srp key generate</code> on the serving machine makes a \
                      key.</p>\n";
        }
    }
    let name = roots.first().map_or("ATTR", |(root, _)| &root.name);
    let _ = writeln!(
        page,
        "<p>Then nothing that is here has to be built:</p>\n\
         <pre><code>srp realise {} --no-build</code></pre>",
        escape(name)
    );
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            char if char.is_control() => {}
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_text() {
        assert_eq!(escape("<a href='x'>&\"\n"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
