//! Where an entry of an archive goes: pure functions from names to paths, no I/O.

use std::collections::BTreeMap;

use srp_store::MAX_DEPTH;
use thiserror::Error;

use super::{Format, UnpackSpec};

/// What Linux itself allows.
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;

/// The top-level directories that a merged `/usr` holds.
const MERGED: &[&[u8]] = &[b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32"];

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    /// It goes up.
    #[error("it contains `..`")]
    Parent,
    /// It starts at the root.
    #[error("it is absolute")]
    Absolute,
    /// It holds a byte that no path can hold.
    #[error("it contains a NUL byte")]
    Nul,
    /// It, or one of its names, is too long, or it is too deep.
    #[error("it is longer or deeper than is allowed (4095 bytes, 255 in a name, 256 names)")]
    TooLong,
    /// It names nothing.
    #[error("it is empty")]
    Empty,
}

/// A relative path of clean components: never `.`, `..` or empty ones; may have none at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CleanPath {
    components: Vec<Vec<u8>>,
}

impl CleanPath {
    pub(super) fn components(&self) -> &[Vec<u8>] {
        &self.components
    }

    pub(super) fn is_empty(&self) -> bool {
        self.components.is_empty()
    }

    pub(super) fn joined(&self) -> Vec<u8> {
        self.components.join(&b'/')
    }

    pub(super) fn display(&self) -> String {
        String::from_utf8_lossy(&self.joined()).into_owned()
    }
}

/// Takes an archive's name apart. `.` and empty components vanish.
pub(super) fn clean(name: &[u8]) -> Result<CleanPath, PathError> {
    if name.contains(&0) {
        return Err(PathError::Nul);
    }
    if name.first() == Some(&b'/') {
        return Err(PathError::Absolute);
    }
    if name.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(PathError::Parent),
            component if component.len() > MAX_NAME_BYTES => return Err(PathError::TooLong),
            component => components.push(component.to_owned()),
        }
    }
    if components.len() > MAX_DEPTH {
        return Err(PathError::TooLong);
    }
    Ok(CleanPath { components })
}

/// A compiled [`UnpackSpec`].
pub(super) struct Selection {
    strip: usize,
    merge: bool,
    only: Vec<Pattern>,
    exclude: Vec<Pattern>,
    rename: BTreeMap<Vec<Vec<u8>>, Vec<Vec<u8>>>,
}

struct Pattern {
    text: String,
    components: Vec<Vec<u8>>,
    matched: bool,
}

impl Selection {
    /// Compiles the specification; the error names the pattern.
    pub(super) fn new(spec: &UnpackSpec, format: Format) -> Result<Self, (String, PathError)> {
        let path = |text: &String| {
            let path = clean(text.as_bytes()).map_err(|error| (text.clone(), error))?;
            if path.is_empty() {
                return Err((text.clone(), PathError::Empty));
            }
            Ok(path.components)
        };
        let patterns = |texts: &[String]| {
            let compile = |text: &String| {
                Ok(Pattern { text: text.clone(), components: path(text)?, matched: false })
            };
            texts.iter().map(compile).collect::<Result<Vec<_>, _>>()
        };
        let rename = spec.rename.iter().map(|(from, to)| Ok((path(from)?, path(to)?)));
        Ok(Self {
            strip: spec.strip as usize,
            merge: format == Format::Deb,
            only: patterns(&spec.only)?,
            exclude: patterns(&spec.exclude)?,
            rename: rename.collect::<Result<_, _>>()?,
        })
    }

    /// Strips and merges: the path by which patterns know an entry. `None` if nothing is left.
    pub(super) fn place(&self, path: &CleanPath) -> Option<CleanPath> {
        if path.components.len() <= self.strip {
            return None;
        }
        let mut components = path.components[self.strip..].to_vec();
        if self.merge && is_merged(&components[0]) {
            components.insert(0, b"usr".to_vec());
        }
        Some(CleanPath { components })
    }

    /// Whether the entry at this place is wanted.
    pub(super) fn wants(&mut self, place: &CleanPath) -> bool {
        let matches = |patterns: &mut [Pattern]| {
            let mut any = false;
            for pattern in patterns {
                if pattern.matches(&place.components) {
                    pattern.matched = true;
                    any = true;
                }
            }
            any
        };
        (self.only.is_empty() || matches(&mut self.only)) && !matches(&mut self.exclude)
    }

    /// How many leading components are removed.
    pub(super) fn strip(&self) -> usize {
        self.strip
    }

    /// Where a wanted entry goes in the end.
    pub(super) fn rename(&self, place: CleanPath) -> CleanPath {
        if self.rename.is_empty() {
            return place;
        }
        for length in (1..=place.components.len()).rev() {
            if let Some(to) = self.rename.get(&place.components[..length]) {
                let rest = &place.components[length..];
                return CleanPath { components: [to, rest].concat() };
            }
        }
        place
    }

    /// The patterns of `only` that nothing matched.
    pub(super) fn unmatched(&self) -> Vec<String> {
        let unmatched = self.only.iter().filter(|pattern| !pattern.matched);
        unmatched.map(|pattern| pattern.text.clone()).collect()
    }

    /// What becomes of a symlink of a package that merging moves, or that stands in merging's way.
    pub(super) fn merged_link(&self, path: &CleanPath, target: &[u8]) -> MergedLink {
        let components = path.components.get(self.strip..).unwrap_or_default();
        if !self.merge || !components.first().is_some_and(|first| is_merged(first)) {
            return MergedLink::Keep;
        }
        if components.len() > 1 {
            return moved_link(components, target);
        }
        // `/lib -> usr/lib` is what composing makes of a merged tree anyway.
        let target = target.strip_prefix(b"/").unwrap_or(target);
        let target = target.strip_suffix(b"/").unwrap_or(target);
        if target.strip_prefix(b"usr/") == Some(components[0].as_slice()) {
            MergedLink::Drop
        } else if is_merged(target) {
            // `/lib64 -> lib`: beside each other here and there.
            MergedLink::Keep
        } else {
            MergedLink::Refuse
        }
    }
}

/// See [`Selection::merged_link`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MergedLink {
    Keep,
    Drop,
    Refuse,
    Retarget(Vec<u8>),
}

/// A relative link that climbs to the top level from `/lib/…` must climb one step more, or lead
/// there by another way, once it lies in `/usr/lib/…`.
fn moved_link(components: &[Vec<u8>], target: &[u8]) -> MergedLink {
    if target.first() == Some(&b'/') {
        return MergedLink::Keep;
    }
    let mut resolved: Vec<&[u8]> =
        components[..components.len() - 1].iter().map(Vec::as_slice).collect();
    let mut left_top = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                resolved.pop();
                left_top |= resolved.is_empty();
            }
            component => resolved.push(component),
        }
    }
    if !left_top {
        return MergedLink::Keep;
    }
    if resolved.first().is_some_and(|first| is_merged(first)) {
        resolved.insert(0, b"usr");
    }
    // From /usr/<components without the last>.
    let mut text: Vec<&[u8]> = vec![b".."; components.len()];
    text.extend(resolved);
    MergedLink::Retarget(text.join(&b'/'))
}

impl Pattern {
    /// Whether a path lies at or below the pattern.
    fn matches(&self, path: &[Vec<u8>]) -> bool {
        path.len() >= self.components.len()
            && self.components.iter().zip(path).all(|(pattern, name)| glob(pattern, name))
    }
}

fn is_merged(name: &[u8]) -> bool {
    MERGED.contains(&name)
}

/// `*` stands for any bytes. Greedy with one point of return, so linear for one star and never worse
/// than the product of the lengths.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((star_at, star_from)) => {
                    star = Some((star_at, star_from + 1));
                    at = star_at + 1;
                    from = star_from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CleanPath {
        clean(text.as_bytes()).expect("clean")
    }

    fn selection(format: Format, change: impl FnOnce(&mut UnpackSpec)) -> Selection {
        let mut spec = UnpackSpec::default();
        change(&mut spec);
        Selection::new(&spec, format).expect("sound")
    }

    #[test]
    fn names_are_cleaned_or_refused() {
        assert_eq!(path("./a//b/./c/").display(), "a/b/c");
        assert!(path("./").is_empty());
        for (name, error) in [
            (b"../a".to_vec(), PathError::Parent),
            (b"a/../b".to_vec(), PathError::Parent),
            (b"a/..".to_vec(), PathError::Parent),
            (b"/etc/passwd".to_vec(), PathError::Absolute),
            (b"a\0b".to_vec(), PathError::Nul),
            (vec![b'a'; 256], PathError::TooLong),
            (b"a/".repeat(257), PathError::TooLong),
            (b"abcdefgh/".repeat(456), PathError::TooLong),
        ] {
            assert_eq!(clean(&name), Err(error), "{}", String::from_utf8_lossy(&name));
        }
        assert_eq!(path("a/..b/c..").components().len(), 3);
    }

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*.so*", "libc.so.6", true),
            ("**a**", "bab", true),
            ("a*b*c", "aXbYbZc", true),
            ("", "a", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        // Exponential matchers never return from this.
        assert!(glob(&b"a*".repeat(40), &b"a".repeat(5000)));
        assert!(!glob(&[&b"a*".repeat(40)[..], b"b"].concat(), &b"a".repeat(5000)));
    }

    #[test]
    fn only_and_exclude_are_prefixes_of_components() {
        let mut selection = selection(Format::Tar, |spec| {
            spec.only = vec!["compiler-rt".into(), "cmake/*/x".into(), "absent".into()];
            spec.exclude = vec!["compiler-rt/test".into()];
        });
        for (text, expected) in [
            ("compiler-rt", true),
            ("compiler-rt/lib/x.c", true),
            ("compiler-rt-2/x", false),
            ("compiler-rt/test/x", false),
            ("compiler-rt/tests/x", true),
            ("cmake", false),
            ("cmake/a/x/y", true),
            ("cmake/a/y", false),
        ] {
            assert_eq!(selection.wants(&path(text)), expected, "{text}");
        }
        assert_eq!(selection.unmatched(), ["absent"]);
    }

    #[test]
    fn stripping_and_renaming() {
        let selection = selection(Format::Tar, |spec| {
            spec.strip = 1;
            spec.rename = [("a".into(), "x/y".into()), ("a/b".into(), "z".into())].into();
        });
        assert_eq!(selection.place(&path("top")), None);
        let renamed =
            |text| selection.rename(selection.place(&path(text)).expect("kept")).display();
        assert_eq!(renamed("top/a/c"), "x/y/c");
        assert_eq!(renamed("top/a/b/c"), "z/c");
        assert_eq!(renamed("top/ab"), "ab");
    }

    #[test]
    fn packages_are_merged_into_usr() {
        let selection = selection(Format::Deb, |_| {});
        let placed = |text| selection.place(&path(text)).expect("kept").display();
        assert_eq!(placed("./bin/sh"), "usr/bin/sh");
        assert_eq!(placed("./lib64"), "usr/lib64");
        assert_eq!(placed("./etc/passwd"), "etc/passwd");
        assert_eq!(placed("./library/x"), "library/x");
        assert_eq!(placed("./usr/lib/x"), "usr/lib/x");
        let link = |text, target: &str| selection.merged_link(&path(text), target.as_bytes());
        assert_eq!(link("bin", "usr/bin"), MergedLink::Drop);
        assert_eq!(link("lib", "/usr/lib/"), MergedLink::Drop);
        assert_eq!(link("lib64", "lib"), MergedLink::Keep);
        assert_eq!(link("bin", "/etc/alternatives/bin"), MergedLink::Refuse);
        assert_eq!(link("lib/x/a.so", "../y/a.so.1"), MergedLink::Keep);
        assert_eq!(link("lib/x/a.so", "/lib/y"), MergedLink::Keep);
        assert_eq!(link("usr/lib/x", "../../lib/y"), MergedLink::Keep);
        assert_eq!(
            link("lib/x/a.so", "../../usr/share/a"),
            MergedLink::Retarget(b"../../../usr/share/a".to_vec())
        );
        assert_eq!(
            link("lib/a.so", "../lib64/a"),
            MergedLink::Retarget(b"../../usr/lib64/a".to_vec())
        );
    }

    #[test]
    fn patterns_must_be_sound() {
        for bad in ["", ".", "/abs", "../x"] {
            let spec = UnpackSpec { only: vec![bad.into()], ..UnpackSpec::default() };
            assert!(Selection::new(&spec, Format::Tar).is_err(), "{bad:?}");
        }
    }
}
