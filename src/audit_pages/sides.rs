//! A part of a file that differs, as a table: registered on the left, rebuilt on the right.

use maud::{Markup, html};
use srp_builder::audit::Part;

use super::unseen;
use crate::html::foreign;

/// A row: what both have, or what each has instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row<'a> {
    Both(&'a str),
    Sides(Option<&'a str>, Option<&'a str>),
}

/// The table of a part, or what there is to be said of it.
pub(super) fn part(part: &Part) -> Markup {
    let rows = rows(&part.lines);
    if rows.iter().all(|row| matches!(row, Row::Both(_))) {
        return html! {
            p.note {
                strong { (foreign(&part.place)) }
                @for line in &part.lines { ": " (foreign(line.trim_start())) }
            }
        };
    }
    html! {
        table.sides {
            caption { (foreign(&part.place)) }
            thead { tr { th scope="col" { "Registered" } th scope="col" { "Rebuilt" } } }
            tbody {
                @for row in rows {
                    tr {
                        @match row {
                            Row::Both(line) => { td { (foreign(line)) } td { (foreign(line)) } }
                            Row::Sides(registered, rebuilt) => {
                                (one_side(registered, rebuilt, Side::Registered))
                                (one_side(rebuilt, registered, Side::Rebuilt))
                            }
                        }
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Registered,
    Rebuilt,
}

fn one_side(line: Option<&str>, other: Option<&str>, side: Side) -> Markup {
    let Some(line) = line else { return html! { td.absent { (unseen("no line")) } } };
    let [before, marked, after] = other.map_or(["", line, ""], |other| unlike(line, other));
    let text = html! {
        @if marked.len() < line.len() {
            (foreign(before)) mark { (foreign(marked)) } (foreign(after))
        } @else {
            (foreign(line))
        }
    };
    html! {
        @match side {
            Side::Registered => td.registered { (unseen("only registered: ")) del { (text) } },
            Side::Rebuilt => td.rebuilt { (unseen("only rebuilt: ")) ins { (text) } },
        }
    }
}

/// What two lines have in common at their ends, and between that where the first differs. Lines
/// that have little in common differ as a whole.
fn unlike<'a>(line: &'a str, other: &str) -> [&'a str; 3] {
    let same = |(one, other): &(char, char)| one == other;
    let ahead = line.chars().zip(other.chars()).take_while(same);
    let start: usize = ahead.map(|(char, _)| char.len_utf8()).sum();
    // The same in both, so a boundary of both.
    let (rest, other_rest) = (&line[start..], &other[start..]);
    let behind = rest.chars().rev().zip(other_rest.chars().rev()).take_while(same);
    let end: usize = behind.map(|(char, _)| char.len_utf8()).sum();
    if 2 * (start + end) < line.len().min(other.len()) {
        return ["", line, ""];
    }
    [&line[..start], &rest[..rest.len() - end], &rest[rest.len() - end..]]
}

/// Puts beside each other what is there instead of each other: what is only registered comes before
/// what is only rebuilt.
fn rows(lines: &[String]) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let (mut registered, mut rebuilt) = (Vec::new(), Vec::new());
    let pair = |rows: &mut Vec<_>, registered: &mut Vec<_>, rebuilt: &mut Vec<_>| {
        let length = registered.len().max(rebuilt.len());
        let row = |at| Row::Sides(registered.get(at).copied(), rebuilt.get(at).copied());
        rows.extend((0..length).map(row));
        registered.clear();
        rebuilt.clear();
    };
    for line in lines {
        if let Some(line) = line.strip_prefix('-') {
            if !rebuilt.is_empty() {
                pair(&mut rows, &mut registered, &mut rebuilt);
            }
            registered.push(line);
        } else if let Some(line) = line.strip_prefix('+') {
            rebuilt.push(line);
        } else {
            pair(&mut rows, &mut registered, &mut rebuilt);
            rows.push(Row::Both(line.strip_prefix(' ').unwrap_or(line)));
        }
    }
    pair(&mut rows, &mut registered, &mut rebuilt);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(place: &str, lines: &[&str]) -> String {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        part(&Part { place: place.to_owned(), lines }).into_string()
    }

    #[test]
    fn lines_stand_beside_what_is_there_instead() {
        let lines = [" a", "-b", "-c", "+d", " e", "+f", "-g"].map(str::to_owned);
        let sides = |one, other| Row::Sides(one, other);
        assert_eq!(
            rows(&lines),
            [
                Row::Both("a"),
                sides(Some("b"), Some("d")),
                sides(Some("c"), None),
                Row::Both("e"),
                sides(None, Some("f")),
                sides(Some("g"), None),
            ]
        );
    }

    #[test]
    fn only_what_differs_in_a_line_is_marked() {
        assert_eq!(unlike("host srp!", "host audit!"), ["host ", "srp", "!"]);
        assert_eq!(unlike("aa", "aaa"), ["aa", "", ""]);
        assert_eq!(unlike("grün", "grau"), ["gr", "ün", ""]);
        assert_eq!(unlike("çé", "çè"), ["ç", "é", ""]);
        assert_eq!(unlike("quite another", "line"), ["", "quite another", ""]);
        let html = of("line 1", &["-host srp", "+host audit"]);
        assert!(html.contains("<del>host <mark>srp</mark></del>"), "{html}");
        assert!(html.contains("<ins>host <mark>audit</mark></ins>"), "{html}");
    }

    #[test]
    fn what_a_build_wrote_is_text() {
        let html = of("<b>", &["-</td><script>x</script>", "+\u{202e}\x1b[1m", " <i>"]);
        for tag in ["<b>", "<script", "<i>"] {
            assert!(!html.contains(tag), "{html}");
        }
        assert!(html.contains("&lt;/td&gt;&lt;script&gt;x"), "{html}");
        assert!(!html.contains(['\u{202e}', '\x1b']), "{html}");
        assert!(of("<b>", &[" <i>"]).contains("&lt;b&gt;</strong>: &lt;i&gt;"));
    }
}
