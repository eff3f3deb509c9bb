//! Text: by lines.

use std::time::Duration;

use similar::{Algorithm, TextDiff};

use super::part::{Looking, Sign};

/// Longer texts are told by their first difference.
const LONGEST_BYTES: usize = 8 << 20;
/// A diff that takes longer is told more coarsely.
const PATIENCE: Duration = Duration::from_secs(2);

/// Compares two texts; false if they aren't both text.
pub(super) fn compare(looking: &mut Looking<'_>, before: &[u8], after: &[u8]) -> bool {
    if before.len().max(after.len()) > LONGEST_BYTES {
        return false;
    }
    let (Some(before), Some(after)) = (text(before), text(after)) else { return false };
    lines(looking, before, after);
    true
}

/// The hunks in which two texts differ.
fn lines(looking: &mut Looking<'_>, before: &str, after: &str) {
    if is_reordered(before.lines(), after.lines())
        || is_reordered(before.split_whitespace(), after.split_whitespace())
    {
        looking.mark(Sign::Order);
    }
    let diff = TextDiff::configure()
        .algorithm(Algorithm::Myers)
        .timeout(PATIENCE)
        .diff_lines(before, after);
    for hunk in diff.unified_diff().context_radius(1).iter_hunks() {
        let changes: Vec<_> = hunk.iter_changes().collect();
        let first = changes.iter().find(|it| it.tag() != similar::ChangeTag::Equal);
        let number = first.and_then(|it| it.old_index().or(it.new_index())).unwrap_or(0) + 1;
        let side = |tag| {
            let lines = changes.iter().filter(|it| it.tag() == tag).map(|it| it.value());
            lines.collect::<String>()
        };
        let (old, new) = (side(similar::ChangeTag::Delete), side(similar::ChangeTag::Insert));
        looking.recognise(&old, &new);
        let shown = changes.iter().map(|it| match it.value().strip_suffix('\n') {
            Some(line) => format!("{}{line}", it.tag()),
            None => format!("{}{} (no end of the line)", it.tag(), it.value()),
        });
        looking.part(&format!("line {number}"), shown.collect());
    }
}

/// Text without control characters that no text has.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    let odd = |byte: &u8| *byte < b' ' && !b"\n\r\t\x0c\x1b\x08".contains(byte);
    (!bytes.iter().any(odd)).then(|| std::str::from_utf8(bytes).ok()).flatten()
}

/// Whether two sequences that differ have the same things in them, more than one.
pub(super) fn is_reordered<'t>(
    before: impl Iterator<Item = &'t str>,
    after: impl Iterator<Item = &'t str>,
) -> bool {
    let (mut before, mut after): (Vec<_>, Vec<_>) = (before.collect(), after.collect());
    if before.len() < 2 || before.len() != after.len() || before == after {
        return false;
    }
    before.sort_unstable();
    after.sort_unstable();
    before == after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks_are_lines_with_their_signs() {
        let mut looking = Looking::new(&[("audit-host", Sign::Hostname)]);
        assert!(compare(&mut looking, b"a\nhost srp\nb\n", b"a\nhost audit-host\nb\n"));
        let (parts, signs) = looking.found();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].place, "line 2");
        assert_eq!(parts[0].lines, [" a", "-host srp", "+host audit-host", " b"]);
        assert_eq!(signs.into_iter().collect::<Vec<_>>(), [Sign::Hostname]);
    }

    #[test]
    fn another_order_is_told() {
        let mut looking = Looking::new(&[]);
        assert!(compare(&mut looking, b"b\na\n", b"a\nb\n"));
        assert!(looking.found().1.contains(&Sign::Order));
        assert!(!compare(&mut Looking::new(&[]), b"\0", b"\x01"));
    }
}
