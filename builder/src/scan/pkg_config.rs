//! Reads the modules that a pkg-config file requires.
//!
//! The grammar is pkgconf's: `name=value` and `Name: value` lines, `${name}` replaced by what was
//! defined above, `#` comments, a backslash joins lines. Versions are not compared: whether the
//! module found is new enough is pkg-config's business at the time of use.

use std::collections::BTreeMap;

use super::Need;

/// The most that replaced variables may grow a value to. Doubling definitions could otherwise
/// turn a hundred lines into more than any memory.
const VALUE_LIMIT_BYTES: usize = 64 << 10;

/// The most that all variables of a file may hold together; later ones are empty.
const VARIABLES_LIMIT_BYTES: usize = 4 << 20;

/// The modules that `text`, a `.pc` file, requires. One that is required publicly and privately
/// counts as public.
pub(super) fn needs(text: &str) -> Vec<Need> {
    let mut variables = BTreeMap::new();
    let mut variables_bytes = 0;
    let mut private_of: BTreeMap<String, bool> = BTreeMap::new();
    for line in joined_lines(text) {
        let name_end = line.find(|character: char| {
            !(character.is_ascii_alphanumeric() || "_.-".contains(character))
        });
        let Some((name, rest)) = name_end.map(|end| line.split_at(end)) else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            let mut value = expand(value.trim(), &variables);
            variables_bytes += value.len();
            if variables_bytes > VARIABLES_LIMIT_BYTES {
                value = String::new();
            }
            variables.insert(name.to_owned(), value);
        } else if let Some(value) = rest.strip_prefix(':') {
            let private = match name.to_ascii_lowercase().as_str() {
                "requires" => false,
                "requires.private" | "requires.internal" => true,
                _ => continue,
            };
            for module in modules(&expand(value.trim(), &variables)) {
                private_of.entry(module).and_modify(|known| *known &= private).or_insert(private);
            }
        }
    }
    private_of.into_iter().map(|(module, private)| Need::PkgConfig { module, private }).collect()
}

fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(start) => {
                pending.push_str(start);
                pending.push(' ');
            }
            None => {
                pending.push_str(line);
                lines.push(std::mem::take(&mut pending));
            }
        }
    }
    lines.push(pending);
    for line in &mut lines {
        if let Some(comment) = line.find('#') {
            line.truncate(comment);
        }
        *line = line.trim().to_owned();
    }
    lines
}

fn expand(value: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else { break };
        expanded.push_str(&rest[..start]);
        let replacement = variables.get(&rest[start + 2..start + length]);
        expanded.push_str(replacement.map_or("", String::as_str));
        rest = &rest[start + length + 1..];
        if expanded.len() > VALUE_LIMIT_BYTES {
            return String::new();
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Splits `a >= 1, b c=2` into `a`, `b`, `c`.
fn modules(list: &str) -> Vec<String> {
    let is_operator = |character: char| "<>=!".contains(character);
    let mut modules = Vec::new();
    let mut after_operator = false;
    for word in list.split(|character: char| character == ',' || character.is_whitespace()) {
        let mut rest = word;
        while !rest.is_empty() {
            if rest.starts_with(is_operator) {
                rest = rest.trim_start_matches(is_operator);
                after_operator = true;
                continue;
            }
            let end = rest.find(is_operator).unwrap_or(rest.len());
            if !std::mem::take(&mut after_operator) {
                modules.push(rest[..end].to_owned());
            }
            rest = &rest[end..];
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, bool)]) {
        let expected: Vec<Need> = expected
            .iter()
            .map(|&(module, private)| Need::PkgConfig { module: module.to_owned(), private })
            .collect();
        assert_eq!(needs(text), expected, "{text:?}");
    }

    #[test]
    fn versions_and_separators() {
        check(
            "Requires: a >= 1.2, b c=2 d>=3,e",
            &[("a", false), ("b", false), ("c", false), ("d", false), ("e", false)],
        );
        check("Requires:\nRequires.private: z = 1\n", &[("z", true)]);
        check("Name: x # Requires: a\n#Requires: b\nDescription: Requires: c\n", &[]);
    }

    #[test]
    fn public_wins_over_private() {
        check("Requires.private: a b\nRequires: a\n", &[("a", false), ("b", true)]);
    }

    #[test]
    fn variables_and_joined_lines() {
        check(
            "v=2\nRequires: gtk+-${v}.0 \\\n  glib-${v}.0 >= ${v} ${nothing}\n",
            &[("glib-2.0", false), ("gtk+-2.0", false)],
        );
    }

    #[test]
    fn doubling_definitions_stay_small() {
        let mut text = String::from("a0=xxxxxxxxxxxxxxxx\n");
        for index in 1..200 {
            text.push_str(&format!("a{index}=${{a{0}}}${{a{0}}}\n", index - 1));
        }
        text.push_str("Requires: m ${a199}\n");
        assert!(needs(&text).len() < 3);
    }
}
