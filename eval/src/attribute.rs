//! Attribute paths: `<stage>.<target>[.<component>]`.
//!
//! Names may contain dots (`stage2.5`, `libc6.deb`), so a path is read against the names that
//! exist: the longest stage that it begins with, then the longest target; what is left is the
//! component, whole. Nothing is evaluated here.

/// The longest of `names` that `path` begins with, and what follows its dot.
///
/// `None` for what follows means that the path ends with the name.
pub(crate) fn split<'p, 'n>(
    path: &'p str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<(&'n str, Option<&'p str>)> {
    names
        .into_iter()
        .filter_map(|name| match path.strip_prefix(name)? {
            "" => Some((name, None)),
            rest => rest.strip_prefix('.').map(|rest| (name, Some(rest))),
        })
        .max_by_key(|(name, _)| name.len())
}

/// Up to three of `names` that someone who wrote `wanted` may have meant, the likeliest first.
pub(crate) fn nearest<'n>(wanted: &str, names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    // A third of the characters may be wrong, but never all.
    let mistakes = (wanted.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> = names
        .into_iter()
        .filter(|name| !name.is_empty())
        .filter_map(|name| {
            let distance = strsim::damerau_levenshtein(wanted, name);
            let begun = wanted.len() >= 3 && name.starts_with(wanted);
            let close = distance <= mistakes && distance < name.chars().count();
            (close || begun).then_some((distance, name))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_wins_and_a_name_ends_at_a_dot() {
        let names = ["stage2", "stage2.5", "seed"];
        assert_eq!(split("stage2.5.x86_64.a.b", names), Some(("stage2.5", Some("x86_64.a.b"))));
        assert_eq!(split("stage2.x86_64", names), Some(("stage2", Some("x86_64"))));
        assert_eq!(split("stage2.5", names), Some(("stage2.5", None)));
        assert_eq!(split("stage2.", names), Some(("stage2", Some(""))));
        assert_eq!(split("stage25.x86_64", names), None);
        assert_eq!(split("", names), None);
    }

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_nonsense_is_not() {
        let names = ["aarch64-musl", "x86_64-musl", "riscv64-musl"];
        assert_eq!(nearest("aarch64-msul", names), ["aarch64-musl"]);
        assert_eq!(nearest("riscv", names), ["riscv64-musl"]);
        assert!(nearest("mips", names).is_empty());
        assert_eq!(nearest("m", ["m4", "mk"]), ["m4", "mk"]);
    }
}
