//! Submodules: which repository the commit at a path is from. `.gitmodules` is read by git, and believed in
//! nothing but URLs.

use std::collections::BTreeMap;

use super::command::Git;
use super::{Broken, url};
use crate::fetch::error::Reason;

/// No list of submodules is longer.
const MAX_BYTES: u64 = 1 << 20;

/// What `.gitmodules` says of one submodule.
#[derive(Debug, Default)]
pub(super) struct Module {
    path: Vec<u8>,
    url: String,
}

/// Reads the blob that is a tree's `.gitmodules`.
pub(super) fn read(git: &Git<'_>, object: &str) -> Result<Vec<Module>, Broken> {
    let wanted = r"^submodule\..*\.(path|url)$";
    let arguments = ["config", "--blob", object, "--no-includes", "-z", "--get-regexp", wanted];
    let read = git.run(&arguments, None, MAX_BYTES)?;
    // It is no error to git if nothing matches, nor to us: then a submodule has no URL.
    if !read.success && !read.message.is_empty() {
        return Err(Reason::Git { detail: format!(".gitmodules: {}", read.message) }.into());
    }
    Ok(modules(&read.output))
}

fn modules(output: &[u8]) -> Vec<Module> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for setting in output.split(|byte| *byte == 0) {
        let text = String::from_utf8_lossy(setting);
        let Some((key, value)) = text.split_once('\n') else { continue };
        let Some((name, what)) = key.rsplit_once('.') else { continue };
        let module = modules.entry(name.to_owned()).or_default();
        match what {
            "path" => module.path = value.trim_end_matches('/').as_bytes().to_vec(),
            _ => module.url = value.to_owned(),
        }
    }
    modules.into_values().collect()
}

/// The URL of the submodule at a path, which may be relative to its parent's.
pub(super) fn url(modules: &[Module], parent: &str, path: &[u8]) -> Result<String, Broken> {
    let refused = |detail: String| {
        let path = String::from_utf8_lossy(path);
        Broken::from(Reason::Git { detail: format!("its submodule {path:?} {detail}") })
    };
    let module = modules.iter().find(|module| module.path == path && !module.url.is_empty());
    let Some(module) = module else {
        return Err(refused("has no URL in .gitmodules".into()));
    };
    let text = &module.url;
    if text.chars().any(char::is_control) {
        return Err(refused("has a URL with a control character".into()));
    }
    if text.starts_with("./") || text.starts_with("../") {
        return resolve(parent, text)
            .ok_or_else(|| refused(format!("has the URL {text:?}, which leads nowhere")));
    }
    let local = url::scheme(parent).as_deref() == Some("file");
    match url::scheme(text).as_deref() {
        Some("https" | "http") if url::parse(text).is_ok() => Ok(text.clone()),
        // A repository of this machine may have others of this machine; one from the network may not.
        Some("file") if local && url::file_path(text).is_some() => Ok(text.clone()),
        _ => Err(refused(format!(
            "has the URL {:?}: only https:// and http:// are fetched",
            url::redact(text)
        ))),
    }
}

/// As git resolves it: below the parent's URL, which is taken as a directory.
fn resolve(parent: &str, relative: &str) -> Option<String> {
    let (scheme, rest) = parent.trim_end_matches('/').split_once("://")?;
    let (authority, path) = rest.split_once('/')?;
    let mut parts: Vec<&str> = path.split('/').collect();
    for part in relative.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("{scheme}://{authority}/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_urls_are_below_the_parents() {
        let parent = "https://me@h.test/group/parent.git";
        for (relative, expected) in [
            ("../other.git", Some("https://me@h.test/group/other.git")),
            ("./inner/", Some("https://me@h.test/group/parent.git/inner")),
            ("../../else/x", Some("https://me@h.test/else/x")),
            ("../../../../x", None),
            ("../..", None),
        ] {
            assert_eq!(resolve(parent, relative).as_deref(), expected, "{relative}");
        }
    }

    #[test]
    fn urls_that_are_no_web_servers_are_refused_by_name() {
        let module = |url: &str| {
            let modules = [Module { path: b"m".to_vec(), url: url.to_owned() }];
            match super::url(&modules, "https://h.test/p", b"m") {
                Ok(url) => url,
                Err(Broken::Place(reason)) => reason.to_string(),
                Err(_) => unreachable!("only the place can be at fault"),
            }
        };
        assert_eq!(module("https://h.test/q"), "https://h.test/q");
        for bad in [
            "-u./payload",
            "--upload-pack=x",
            "ext::sh -c x",
            "file:///etc",
            "/etc",
            "git@h.test:x",
            "ssh://-oProxyCommand=x/y",
            "git://h.test/x",
            "https://",
            "https://h.test/\nx",
            "../../..",
        ] {
            let said = module(bad);
            assert!(said.contains("its submodule \"m\" has "), "{bad}: {said}");
        }
        assert!(super::url(&[], "https://h.test/p", b"m").is_err());
    }

    #[test]
    fn modules_are_read_from_gits_own_words() {
        let output = b"submodule.a.b.path\nx/y/\0submodule.a.b.url\nhttps://h.test/\0submodule.c.url\n../c\0";
        let modules = modules(output);
        assert_eq!((&modules[0].path[..], &modules[0].url[..]), (&b"x/y"[..], "https://h.test/"));
        assert_eq!(modules[1].url, "../c");
    }
}
