//! The Debian mirrors that the machine's apt configuration names: a reader of `sources.list(5)` in both
//! its formats. It is no apt: releases, keys, architectures and authentication don't concern it; only
//! under which URIs Debian's own pool lies.

use std::io;
use std::path::Path;

/// One URI that apt's configuration names as a place of Debian's archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AptSource {
    /// The archive's root, without a trailing slash: `pool/` lies below it.
    pub uri: String,
    /// Whether nothing says that another key than Debian's signs it. Companies' package archives are
    /// often laid out like Debian's (suite `trixie`, component `main`) but have their own key.
    pub signed_by_debian: bool,
}

/// Releases of Debian by suite and code name. Anything else is somebody else's archive.
const SUITES: &[&str] = &[
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "sid",
    "experimental",
    "rc-buggy",
    "jessie",
    "stretch",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
];

/// What may follow a release's name. `-security` isn't among them: that archive has its own pool.
const SUITE_SUFFIXES: &[&str] =
    &["", "-updates", "-backports", "-backports-sloppy", "-proposed-updates"];

/// Reads `sources.list` and `sources.list.d/*.{list,sources}` below `directory` (`/etc/apt`), in apt's
/// order. Files that aren't there are no error; those that can't be read are left out, because another
/// file may name a mirror and the error for "none" says what to do.
pub fn read_apt_directory(directory: &Path) -> Vec<AptSource> {
    let mut sources = Vec::new();
    if let Ok(text) = read_text(&directory.join("sources.list")) {
        sources.extend(parse_one_line_list(&text));
    }
    let mut files: Vec<_> = std::fs::read_dir(directory.join("sources.list.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => {
                sources.extend(read_text(&file).iter().flat_map(|text| parse_one_line_list(text)));
            }
            Some("sources") => {
                sources.extend(read_text(&file).iter().flat_map(|text| parse_deb822(text)));
            }
            _ => {}
        }
    }
    usable(sources)
}

/// Parses the one-line format: `deb [option=value …] URI SUITE COMPONENT…`.
pub fn parse_one_line_list(text: &str) -> Vec<AptSource> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((kind, rest)) = line.split_once(char::is_whitespace) else { continue };
        if kind != "deb" && kind != "deb-src" {
            continue;
        }
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            // An unclosed bracket makes the whole line malformed, for apt too.
            Some(bracketed) => match bracketed.split_once(']') {
                Some((options, rest)) => (options, rest),
                None => continue,
            },
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let signed_by = options
            .split_whitespace()
            .filter_map(|option| option.split_once('='))
            .find(|(name, _)| name.eq_ignore_ascii_case("signed-by"))
            .map(|(_, value)| value);
        if is_debian_suite(suite) && words.any(|component| component == "main") {
            sources.push(AptSource {
                uri: uri.trim_end_matches('/').to_owned(),
                signed_by_debian: is_debian_key(signed_by),
            });
        }
    }
    usable(sources)
}

/// Parses the deb822 format: paragraphs of `Types:`, `URIs:`, `Suites:`, `Components:` ….
pub fn parse_deb822(text: &str) -> Vec<AptSource> {
    let mut sources = Vec::new();
    for paragraph in paragraphs(text) {
        let field = |wanted: &str| {
            paragraph
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.as_str())
        };
        let has = |wanted: &str, test: &dyn Fn(&str) -> bool| {
            field(wanted).unwrap_or_default().split_whitespace().any(test)
        };
        let disabled = field("Enabled").is_some_and(|value| {
            ["no", "false", "off", "0", "without", "disable"]
                .contains(&value.trim().to_ascii_lowercase().as_str())
        });
        if disabled
            || !has("Types", &|kind| kind == "deb" || kind == "deb-src")
            || !has("Suites", &is_debian_suite)
            || !has("Components", &|component| component == "main")
        {
            continue;
        }
        let signed_by_debian = is_debian_key(field("Signed-By"));
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            sources.push(AptSource { uri: uri.trim_end_matches('/').to_owned(), signed_by_debian });
        }
    }
    usable(sources)
}

/// Fields by paragraph. Continuation lines are joined by spaces; comment lines vanish wherever they
/// stand, also between a field and its continuation, as `deb822(5)` says.
fn paragraphs(text: &str) -> Vec<Vec<(String, String)>> {
    let mut paragraphs = vec![Vec::<(String, String)>::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            paragraphs.push(Vec::new());
            continue;
        }
        let fields = paragraphs.last_mut().expect("there is always a last paragraph");
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    paragraphs
}

/// Keeps what srp can fetch from, each URI once, those with Debian's key first.
fn usable(sources: Vec<AptSource>) -> Vec<AptSource> {
    let mut kept: Vec<AptSource> = Vec::new();
    for source in sources {
        // `mirror+file:`, `cdrom:`, `copy:`, `tor+https:` … need apt's own methods.
        let fetchable = ["https://", "http://", "file:/"]
            .iter()
            .any(|prefix| source.uri.to_ascii_lowercase().starts_with(prefix));
        if !fetchable || source.uri.contains("$(") {
            continue;
        }
        match kept.iter_mut().find(|other| other.uri == source.uri) {
            Some(other) => other.signed_by_debian |= source.signed_by_debian,
            None => kept.push(source),
        }
    }
    kept.sort_by_key(|source| !source.signed_by_debian);
    kept
}

fn is_debian_suite(suite: &str) -> bool {
    SUITES.iter().any(|release| {
        suite.strip_prefix(release).is_some_and(|suffix| SUITE_SUFFIXES.contains(&suffix))
    })
}

/// An absent key is apt's own keyring. An embedded key block names nobody; it gets the benefit.
fn is_debian_key(signed_by: Option<&str>) -> bool {
    signed_by.is_none_or(|key| key.contains("debian-archive") || key.contains("BEGIN PGP"))
}

fn read_text(path: &Path) -> io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(sources: Vec<AptSource>) -> Vec<String> {
        sources.into_iter().map(|source| source.uri).collect()
    }

    #[test]
    fn one_line_format() {
        let text = "\
# deb http://commented.test/debian trixie main
deb cdrom:[Debian GNU/Linux 13 _Trixie_]/ trixie main
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]   http://a.test/debian/ trixie main # here
deb-src http://a.test/debian trixie-updates contrib main
deb http://security.test/debian-security trixie-security main
deb http://old-security.test/ bookworm/updates main
deb http://vendor.test/linux/debian bookworm stable
deb http://llvm.test/trixie/ llvm-toolchain-trixie main
deb [signed-by=/etc/apt/keyrings/company.gpg] http://company.test/prod bookworm main
deb http://flat.test/debian ./
deb http://broken.test/debian
deb [arch=amd64 http://unclosed.test/debian trixie main
deb mirror+file:/etc/apt/mirrors.txt trixie main
deb http://$(ARCH).test/debian trixie main
deb\thttps://b.test/debian\tsid\tmain
";
        assert_eq!(
            uris(parse_one_line_list(text)),
            ["http://a.test/debian", "https://b.test/debian", "http://company.test/prod"]
        );
    }

    #[test]
    fn deb822_format() {
        let text = "\
Types: deb
# http://a comment that mentions: a URI
URIs: http://a.test/debian
# between a field and its continuation
  https://b.test/debian/ cdrom:x
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.test/debian-security
Suites: trixie-security
Components: main


Enabled: no
Types: deb
URIs: http://disabled.test/debian
Suites: trixie
Components: main

types: deb-src
uris: mirror+file:/etc/apt/mirrors/debian.list http://c.test/debian
suites: sid
components: contrib main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 xxxx

Types: deb
URIs: https://vendor.test/node
Suites: nodistro
Components: main
";
        assert_eq!(
            uris(parse_deb822(text)),
            ["http://a.test/debian", "https://b.test/debian", "http://c.test/debian"]
        );
    }

    #[test]
    fn a_directory_is_read_as_apt_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let parts = directory.path().join("sources.list.d");
        std::fs::create_dir(&parts).expect("created");
        assert_eq!(read_apt_directory(directory.path()), []);
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("written");
        };
        write("sources.list", "deb http://first.test/debian trixie main\n");
        write("sources.list.d/b.list", "deb http://b.test/debian trixie main\n");
        write(
            "sources.list.d/a.sources",
            "Types: deb\nURIs: http://a.test/d\nSuites: sid\nComponents: main\n",
        );
        write("sources.list.d/c.list.save", "deb http://saved.test/debian trixie main\n");
        assert_eq!(
            uris(read_apt_directory(directory.path())),
            ["http://first.test/debian", "http://a.test/d", "http://b.test/debian"]
        );
    }
}
