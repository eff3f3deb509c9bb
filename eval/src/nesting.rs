//! A guard before parsing: text nested so deeply that it would overflow the parser's stack.
//!
//! The parser and compiler recurse once per level of an expression and have no limit of their own;
//! a stack that overflows ends the process. This isn't a parser: it counts, for every point of the
//! text, the tokens that could have opened a level there (all since the last comma, in each open
//! bracket, or since the last line outside brackets). Ordinary code stays below a hundred.

/// How many levels a point of the text may have at most. The stack takes 20,000.
pub(crate) const LIMIT: usize = 2_000;

/// The byte at which `text` may be nested more than [`LIMIT`] deep, if there is one.
pub(crate) fn too_deep(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    // Tokens since the last comma: in the innermost open bracket, in those around it, in all.
    let mut here = 0;
    let mut around: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut position = 0;
    while position < bytes.len() {
        let start = position;
        position += match bytes[position] {
            b'#' => bytes[start..].iter().take_while(|byte| **byte != b'\n').count(),
            b'"' | b'\'' => string(&bytes[start..]),
            byte if is_word(byte) => bytes[start..].iter().take_while(|it| is_word(**it)).count(),
            // A line goes on after a backslash.
            b'\\' => 2,
            _ => 1,
        };
        match bytes[start] {
            b'\n' if around.is_empty() => depth -= std::mem::take(&mut here),
            b',' | b';' => depth -= std::mem::take(&mut here),
            b')' | b']' | b'}' if !around.is_empty() => {
                depth -= here;
                here = around.pop().unwrap_or_default();
            }
            b'#' | b'\\' => {}
            byte if byte.is_ascii_whitespace() => {}
            byte => {
                here += 1;
                depth += 1;
                if b"([{".contains(&byte) {
                    around.push(std::mem::take(&mut here));
                }
            }
        }
        if depth > LIMIT {
            return Some(start);
        }
    }
    None
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The length of the string literal that `bytes` begin with; all of it if it isn't closed.
fn string(bytes: &[u8]) -> usize {
    let quote = bytes[0];
    let long = bytes.starts_with(&[quote; 3]);
    let mut position = if long { 3 } else { 1 };
    while position < bytes.len() {
        match bytes[position] {
            // In raw strings too, a quote after a backslash doesn't close.
            b'\\' => position += 1,
            b'\n' if !long => return position,
            byte if byte == quote && !long => return position + 1,
            byte if byte == quote && bytes[position..].starts_with(&[quote; 3]) => {
                return position + 3;
            }
            _ => {}
        }
        position += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_is_not_deep() {
        let list = format!("x = [\n{}]\n", "    \"item\",\n".repeat(10_000));
        let lines = "def f(x):\n    return x.a(1)[2] + 3 # (((\n".repeat(10_000);
        let script =
            format!("x = '''\n{}'''\ny = r\"a\\\"(\"\n", "((( + ' \\''' \"\n".repeat(10_000));
        for text in [&list, &lines, &script, "", "\\", "'", "'''", ")]}"] {
            assert_eq!(too_deep(text), None, "{:.40}", text);
        }
    }

    #[test]
    fn whatever_opens_a_level_is_counted() {
        for token in
            ["(", "[", "{1: ", "-", "+1", "not ", "lambda: ", ".a", "f(", "()", "[1", "a if "]
        {
            let deep = format!("x = y{}", token.repeat(10_000));
            assert!(too_deep(&deep).is_some_and(|at| at < deep.len() / 2), "{token}");
        }
        assert!(too_deep(&"[1, [2, ".repeat(3_000)).is_some());
        assert!(too_deep(&format!("x = 1{}", " + \\\n1".repeat(10_000))).is_some());
        assert!(too_deep(&format!("x = (1{})", " +\n1".repeat(10_000))).is_some());
    }
}
