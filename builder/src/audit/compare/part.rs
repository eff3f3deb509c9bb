//! The parts of a file that differ, and what is recognised in them: collected within bounds.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::signs;

/// So many parts of a file are told.
const MOST_PARTS: usize = 24;
/// So many lines of a part.
const MOST_LINES: usize = 24;
/// So many characters of a line.
const MOST_CHARACTERS: usize = 240;

/// A part of a file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which: `section .comment`, `member a.o: modification time`, `line 3` …
    pub place: String,
    /// What is there: lines that begin with `-` (registered), `+` (rebuilt) or a space (both).
    pub lines: Vec<String>,
}

/// Something recognised in a part that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// A date or a time of day.
    Date,
    /// The path of the build directory.
    BuildPath,
    /// The host's name.
    Hostname,
    /// The user's name or number.
    User,
    /// The locale's name.
    Locale,
    /// The time zone's name.
    TimeZone,
    /// A variable of the environment.
    Environment,
    /// The kernel's release.
    Kernel,
    /// The processor's model.
    CpuModel,
    /// The same things in another order.
    Order,
    /// A mode, or whether a file is executable.
    Mode,
    /// The time of a member of an archive.
    MemberTime,
    /// The time of the source of compiled Python.
    BytecodeTime,
    /// The owner of a member of an archive.
    MemberOwner,
    /// The mode of a member of an archive.
    MemberMode,
    /// The time or name in a compressed file's header.
    CompressionHeader,
    /// The same content, compressed in another way.
    CompressionOnly,
    /// An ELF build id.
    BuildId,
    /// An ELF `.comment`: which compiler it was.
    Comment,
    /// ELF debug information.
    DebugInfo,
    /// Machine code.
    Code,
    /// Numbers that look like addresses.
    Address,
}

/// Collects what differs in one file.
pub(super) struct Looking<'a> {
    traces: &'a [(&'a str, Sign)],
    /// What we are in: `member a.o: section .text` and the like.
    within: Vec<String>,
    parts: Vec<Part>,
    left_out: usize,
    signs: BTreeSet<Sign>,
}

impl<'a> Looking<'a> {
    pub(super) fn new(traces: &'a [(&'a str, Sign)]) -> Looking<'a> {
        let (within, parts) = (Vec::new(), Vec::new());
        Looking { traces, within, parts, left_out: 0, signs: BTreeSet::new() }
    }

    /// What was found.
    pub(super) fn found(mut self) -> (Vec<Part>, BTreeSet<Sign>) {
        if self.left_out > 0 {
            let place = format!("and {} more", self.left_out);
            self.parts.push(Part { place, lines: Vec::new() });
        }
        (self.parts, self.signs)
    }

    /// Looks at something inside of what is being looked at.
    pub(super) fn inside(&mut self, place: &str, look: impl FnOnce(&mut Looking<'a>)) {
        self.within.push(place.to_owned());
        look(self);
        self.within.pop();
    }

    /// A part that differs, and what its two sides are.
    pub(super) fn sides(&mut self, place: &str, registered: &str, rebuilt: &str) {
        self.recognise(registered, rebuilt);
        self.part(place, vec![format!("-{registered}"), format!("+{rebuilt}")]);
    }

    /// As `sides`, of what has a meaning by itself.
    pub(super) fn sign(&mut self, sign: Sign, place: &str, registered: &str, rebuilt: &str) {
        self.signs.insert(sign);
        self.sides(place, registered, rebuilt);
    }

    /// A part that differs and has no two sides to be shown.
    pub(super) fn note(&mut self, place: &str, what: &str) {
        self.part(place, vec![format!(" {what}")]);
    }

    /// Remembers a meaning.
    pub(super) fn mark(&mut self, sign: Sign) {
        self.signs.insert(sign);
    }

    /// Finds out what two texts that differ have in them.
    pub(super) fn recognise(&mut self, registered: &str, rebuilt: &str) {
        self.recognise_among(registered, rebuilt, signs::Words::Text);
    }

    /// As `recognise`, in words that may be there by chance.
    pub(super) fn recognise_among(&mut self, registered: &str, rebuilt: &str, words: signs::Words) {
        let traces = self.traces.iter().filter(|(trace, _)| rebuilt.contains(trace));
        self.signs.extend(traces.map(|(_, sign)| *sign));
        self.signs.extend(signs::of(registered, rebuilt, words));
    }

    /// Lines of a part, each with its first character.
    pub(super) fn part(&mut self, place: &str, mut lines: Vec<String>) {
        if self.parts.len() >= MOST_PARTS {
            self.left_out += 1;
            return;
        }
        from_difference(&mut lines);
        let all = lines.len();
        shorten(&mut lines);
        let more = all - lines.len();
        for line in &mut lines {
            if let Some((end, _)) = line.char_indices().nth(MOST_CHARACTERS) {
                line.truncate(end);
                line.push('…');
            }
        }
        if more > 0 {
            lines.push(format!(" … and {more} lines more"));
        }
        let mut place = place.to_owned();
        if !self.within.is_empty() {
            let within = self.within.join(": ");
            place = if place.is_empty() { within } else { format!("{within}: {place}") };
        }
        self.parts.push(Part { place, lines });
    }
}

/// Leaves so many lines as there is room for, and of both sides some.
fn shorten(lines: &mut Vec<String>) {
    if lines.len() <= MOST_LINES {
        return;
    }
    let of = |side: char| lines.iter().filter(|line| line.starts_with(side)).count();
    let (removed, added) = (of('-'), of('+'));
    let half = MOST_LINES / 2;
    let (mut removed, mut added) = (
        removed.min(half.max(MOST_LINES.saturating_sub(added))),
        added.min(half.max(MOST_LINES.saturating_sub(removed))),
    );
    let mut both = MOST_LINES.saturating_sub(removed + added);
    lines.retain(|line| {
        let room = match line.as_bytes().first() {
            Some(b'-') => &mut removed,
            Some(b'+') => &mut added,
            _ => &mut both,
        };
        let fits = *room > 0;
        *room = room.saturating_sub(1);
        fits
    });
}

/// Of a long line that became another, what is shown begins shortly before they differ.
fn from_difference(lines: &mut [String]) {
    const BEFORE: usize = 40;
    let changed: Vec<usize> = (0..lines.len()).filter(|at| !lines[*at].starts_with(' ')).collect();
    let [one, other] = changed[..] else { return };
    let same = lines[one].chars().zip(lines[other].chars()).skip(1).take_while(|(a, b)| a == b);
    let Some(skipped) =
        same.count().checked_sub(BEFORE).filter(|it| *it + BEFORE > MOST_CHARACTERS / 2)
    else {
        return;
    };
    for at in [one, other] {
        let side: String = lines[at].chars().take(1).collect();
        lines[at] = side + "…" + &lines[at].chars().skip(1 + skipped).collect::<String>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: Vec<String>) -> Vec<String> {
        let mut looking = Looking::new(&[]);
        looking.part("", lines);
        looking.found().0.remove(0).lines
    }

    #[test]
    fn both_sides_have_room() {
        let side =
            |side: &str, count: usize| (0..count).map(|n| format!("{side}{n}")).collect::<Vec<_>>();
        let count =
            |lines: &[String], side: char| lines.iter().filter(|it| it.starts_with(side)).count();
        for (removed, added, expected) in
            [(30, 30, (12, 12)), (30, 2, (22, 2)), (3, 90, (3, 21)), (4, 4, (4, 4))]
        {
            let lines = shown([side("-", removed), side("+", added)].concat());
            assert_eq!((count(&lines, '-'), count(&lines, '+')), expected);
            let more = removed + added - expected.0 - expected.1;
            let last = lines.last().expect("there are some");
            assert_eq!(last.contains(&format!("{more} lines more")), more > 0, "{last}");
        }
    }

    #[test]
    fn long_lines_are_shown_where_they_differ() {
        let long = "x".repeat(1000);
        let lines = shown(vec![format!("-{long}one"), format!("+{long}two")]);
        assert!(lines[0].starts_with("-…x") && lines[0].ends_with("xone"), "{lines:?}");
        assert!(lines[1].starts_with("+…x") && lines[1].ends_with("xtwo"), "{lines:?}");
        assert_eq!(shown(vec!["-a".into(), "+b".into()]), ["-a", "+b"]);
    }
}
