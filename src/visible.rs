//! Foreign text in reports, so that two texts that differ look different, and none can deceive.

use std::fmt::Write as _;

/// Text that isn't srp's own, with what can't be seen spelled out.
pub(crate) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for char in text.chars() {
        match is_unseen(char) {
            true => visible += &spelled(char),
            false => visible.push(char),
        }
    }
    visible
}

/// Characters that show nothing of themselves, and change what is around them or look like nothing
/// at all: two names that differ have to look different.
pub(crate) fn is_unseen(char: char) -> bool {
    match char {
        '\t' => false,
        '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{1680}' => true,
        '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200a}' => true,
        '\u{202f}' | '\u{205f}' | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{ffa0}' => true,
        '\u{feff}' | '\u{fe00}'..='\u{fe0f}' => true,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}' => true,
        char => char.is_control(),
    }
}

/// `␛` for escape, `\u{202e}` for what has no picture.
pub(crate) fn spelled(char: char) -> String {
    let mut text = String::new();
    match u32::from(char) {
        number @ 0..0x20 => text.extend(char::from_u32(0x2400 + number)),
        0x7f => text.push('␡'),
        number => drop(write!(text, "\\u{{{number:x}}}")),
    }
    text
}

/// As [`visible`], and no longer than so many characters: for a field of a line.
pub(crate) fn field(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", visible(&text[..end])),
        None => visible(text),
    }
}

/// A line of a log: colours and emphasis (SGR) are as the builder wanted them, and end with the
/// line; whatever else is no text is spelled out.
pub(crate) fn log_line(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let (mut rest, mut coloured) = (line, false);
    while let Some(char) = rest.chars().next() {
        let sequence = sgr(rest);
        coloured |= sequence > 0;
        match is_unseen(char) {
            _ if sequence > 0 => text.push_str(&rest[..sequence]),
            true => text += &spelled(char),
            false => text.push(char),
        }
        rest = &rest[sequence.max(char.len_utf8())..];
    }
    if coloured { text + "\x1b[0m" } else { text }
}

/// The length of the SGR sequence that a text begins with; 0 if it begins with none.
fn sgr(text: &str) -> usize {
    const MOST_BYTES: usize = 64;
    let Some(parameters) = text.strip_prefix("\x1b[") else { return 0 };
    let end = parameters
        .bytes()
        .take(MOST_BYTES)
        .position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'));
    match end {
        Some(end) if parameters.as_bytes()[end] == b'm' => "\x1b[".len() + end + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_spelled() {
        assert_eq!(visible("a\x1b[31mb\r\n\tc\x7f\u{9b}"), "a␛[31mb␍␊\tc␡\\u{9b}");
        assert_eq!(visible("\0cod\u{202e}exe.txt\u{200b}"), "␀cod\\u{202e}exe.txt\\u{200b}");
        assert_eq!(visible("naïve ﷺ 文 \u{fffd}"), "naïve ﷺ 文 \u{fffd}");
        assert_eq!(field("ab\u{202e}cd", 3), "ab\\u{202e}…");
        assert_eq!(field("文文", 2), "文文");
    }

    #[test]
    fn logs_keep_their_colours_and_nothing_else() {
        assert_eq!(log_line("\t\x1b[1;38:5:9mred\x1b[m x"), "\t\x1b[1;38:5:9mred\x1b[m x\x1b[0m");
        assert_eq!(log_line("\x1b[2Ja\x1b]0;title\x07\x1b[5"), "␛[2Ja␛]0;title␇␛[5");
        assert_eq!(log_line("50%\r\u{9b}31m\u{202e}文"), "50%␍\\u{9b}31m\\u{202e}文");
        let long = format!("\x1b[{}m", "1;".repeat(100));
        assert!(log_line(&long).starts_with("␛["));
    }
}
