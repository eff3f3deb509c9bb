//! `mirror://NAME/PATH` → the URLs it may stand for. No registry's host name is written anywhere in
//! srp: they come from the configuration or, for `debian`, from the machine's apt.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::apt::read_apt_directory;
use super::error::MirrorError;

/// The mirrors that are configured, and where to look for Debian's otherwise.
#[derive(Debug, Default)]
pub struct Mirrors {
    named: BTreeMap<String, Vec<String>>,
    apt_directory: Option<PathBuf>,
    // Read when first needed: most runs fetch nothing.
    apt: OnceLock<Vec<String>>,
}

impl Mirrors {
    /// Mirrors by name, each with the base URLs to try in order. `debian` is the URL under which
    /// `pool/` lies; `debian-snapshot` likewise for superseded versions, tried after everything else.
    pub fn new(named: BTreeMap<String, Vec<String>>) -> Self {
        Self { named, ..Self::default() }
    }

    /// Where apt's configuration lies (`/etc/apt`), asked when no `debian` mirror is configured.
    pub fn with_apt_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.apt_directory = Some(directory.into());
        self
    }

    /// Splits a value such as `SRP_MIRROR_DEBIAN`'s: URLs separated by white space.
    pub fn split_urls(value: &str) -> Vec<String> {
        value.split_whitespace().map(str::to_owned).collect()
    }

    /// The URLs that a `mirror:` URL stands for, in the order to try them; never an empty list.
    pub fn resolve(&self, url: &str) -> Result<Vec<String>, MirrorError> {
        let (name, path) = split(url)?;
        let bases = self.bases(name)?;
        Ok(bases.iter().map(|base| join(base, path)).collect())
    }

    /// The URLs to try after every other place failed: for `debian`, the snapshot archive's.
    pub fn fallbacks(&self, url: &str) -> Vec<String> {
        let Ok((name, path)) = split(url) else { return Vec::new() };
        let snapshot = self.named.get(&format!("{name}-snapshot"));
        snapshot.into_iter().flatten().map(|base| join(base, path)).collect()
    }

    fn bases(&self, name: &str) -> Result<&[String], MirrorError> {
        if let Some(bases) = self.named.get(name).filter(|bases| !bases.is_empty()) {
            return Ok(bases);
        }
        if name != "debian" {
            return Err(MirrorError::Unknown { name: name.to_owned() });
        }
        let from_apt = self.apt.get_or_init(|| match &self.apt_directory {
            Some(directory) => {
                read_apt_directory(directory).into_iter().map(|source| source.uri).collect()
            }
            None => Vec::new(),
        });
        if from_apt.is_empty() {
            return Err(MirrorError::NoDebian { apt_directory: self.apt_directory.clone() });
        }
        Ok(from_apt)
    }
}

fn split(url: &str) -> Result<(&str, &str), MirrorError> {
    let rest = url
        .split_at_checked("mirror://".len())
        .and_then(|(scheme, rest)| scheme.eq_ignore_ascii_case("mirror://").then_some(rest))
        .ok_or(MirrorError::Malformed)?;
    let (name, path) = rest.split_once('/').ok_or(MirrorError::Malformed)?;
    let sound_name = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
    let sound_path = !path.is_empty() && !path.split('/').any(|part| part == ".." || part == ".");
    if sound_name && sound_path { Ok((name, path)) } else { Err(MirrorError::Malformed) }
}

fn join(base: &str, path: &str) -> String {
    format!("{}/{path}", base.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(named: &[(&str, &str)]) -> Mirrors {
        let named = named.iter().map(|(name, urls)| ((*name).into(), Mirrors::split_urls(urls)));
        Mirrors::new(named.collect())
    }

    #[test]
    fn configured_mirrors_are_used_in_order() {
        let mirrors = mirrors(&[
            ("debian", "http://a.test/debian/ https://b.test/d"),
            ("gnu", "https://g.test"),
            ("debian-snapshot", "http://s.test/20260101T000000Z"),
        ]);
        assert_eq!(
            mirrors.resolve("mirror://debian/pool/x"),
            Ok(vec!["http://a.test/debian/pool/x".into(), "https://b.test/d/pool/x".into()])
        );
        assert_eq!(mirrors.resolve("Mirror://gnu/m4"), mirrors.resolve("mirror://gnu/m4"));
        assert_eq!(mirrors.resolve("mirror://gnu/m4"), Ok(vec!["https://g.test/m4".into()]));
        assert_eq!(
            mirrors.fallbacks("mirror://debian/pool/x"),
            ["http://s.test/20260101T000000Z/pool/x"]
        );
        assert!(mirrors.fallbacks("mirror://gnu/m4").is_empty());
        assert_eq!(
            mirrors.resolve("mirror://cpan/x"),
            Err(MirrorError::Unknown { name: "cpan".into() })
        );
    }

    #[test]
    fn apt_is_asked_only_without_configuration() {
        let directory = tempfile::tempdir().expect("a directory");
        let list = directory.path().join("sources.list");
        std::fs::write(list, "deb http://apt.test/debian trixie main\n").expect("written");
        let from_apt = mirrors(&[]).with_apt_directory(directory.path());
        assert_eq!(
            from_apt.resolve("mirror://debian/pool/x"),
            Ok(vec!["http://apt.test/debian/pool/x".into()])
        );
        let configured =
            mirrors(&[("debian", "http://own.test")]).with_apt_directory(directory.path());
        assert_eq!(
            configured.resolve("mirror://debian/pool/x"),
            Ok(vec!["http://own.test/pool/x".into()])
        );
    }

    #[test]
    fn no_debian_mirror_says_how_to_set_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = mirrors(&[])
            .with_apt_directory(directory.path())
            .resolve("mirror://debian/pool/x")
            .expect_err("there is none");
        assert!(error.to_string().contains("SRP_MIRROR_DEBIAN"), "{error}");
    }

    #[test]
    fn malformed_mirror_urls_are_refused() {
        let mirrors = mirrors(&[("debian", "http://a.test")]);
        for url in [
            "mirror://",
            "mirror://debian",
            "mirror://debian/",
            "mirror:///x",
            "mirror://debian/a/../../b",
            "mirror://de bian/x",
        ] {
            assert_eq!(mirrors.resolve(url), Err(MirrorError::Malformed), "{url}");
        }
    }
}
