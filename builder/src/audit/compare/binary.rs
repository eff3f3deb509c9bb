//! Bytes of no known format: where they first differ, and which strings only one side has.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::part::Looking;
use super::signs::Words;
use super::text;

/// Shorter runs of printable characters are no strings.
const SHORTEST_STRING: usize = 4;
/// More strings than these may be any.
const MOST_TELLING: usize = 64;
/// Strings are sought in so many bytes.
const SEARCHED_BYTES: usize = 64 << 20;

/// Tells how two byte strings differ.
pub(super) fn compare(looking: &mut Looking<'_>, place: &str, before: &[u8], after: &[u8]) {
    let label = |what: &str| match place {
        "" => what.to_owned(),
        place => format!("{place}: {what}"),
    };
    strings(looking, &label("strings"), before, after);
    let Some(at) = first_difference(before, after) else { return };
    let place = label(&format!("byte {at}"));
    if before.len() != after.len() {
        let sizes = [before, after].map(|side| format!("{} bytes", side.len()));
        looking.sides(&label("length"), &sizes[0], &sizes[1]);
    }
    looking.sides(&place, &hexadecimal(before, at), &hexadecimal(after, at));
}

/// The strings that only one side has; false if there are none.
pub(super) fn strings(looking: &mut Looking<'_>, place: &str, before: &[u8], after: &[u8]) -> bool {
    let (one, other) = (strings_of(before), strings_of(after));
    if text::is_reordered(one.iter().copied(), other.iter().copied()) {
        looking.mark(super::part::Sign::Order);
    }
    let sets: [BTreeSet<&str>; 2] = [one, other].map(|list| list.into_iter().collect());
    let only = |side: usize| sets[side].difference(&sets[1 - side]).copied().collect::<Vec<_>>();
    let (removed, added) = (only(0), only(1));
    if removed.is_empty() && added.is_empty() {
        return false;
    }
    // Among so many there is one of everything, if it is short enough.
    let words = match removed.len() + added.len() {
        ..=MOST_TELLING => Words::Text,
        _ => Words::Many,
    };
    looking.recognise_among(&removed.join("\n"), &added.join("\n"), words);
    let lines = removed.iter().map(|line| format!("-{line}"));
    looking.part(place, lines.chain(added.iter().map(|line| format!("+{line}"))).collect());
    true
}

fn strings_of(bytes: &[u8]) -> Vec<&str> {
    let bytes = &bytes[..bytes.len().min(SEARCHED_BYTES)];
    bytes
        .split(|byte| !(b' '..=b'~').contains(byte))
        .filter(|run| run.len() >= SHORTEST_STRING)
        .filter_map(|run| std::str::from_utf8(run).ok())
        .collect()
}

/// The first byte that differs; none if they are equal.
pub(super) fn first_difference(before: &[u8], after: &[u8]) -> Option<usize> {
    let same = before.iter().zip(after).take_while(|(one, other)| one == other).count();
    (same < before.len().max(after.len())).then_some(same)
}

/// A few bytes from there on, as hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8], at: usize) -> String {
    const SHOWN: usize = 16;
    let shown = &bytes[at.min(bytes.len())..bytes.len().min(at + SHOWN)];
    if shown.is_empty() {
        return "(ends)".to_owned();
    }
    let mut text = String::new();
    for byte in shown {
        let _ = write!(text, "{byte:02x} ");
    }
    text.trim_end().to_owned()
}
