//! Reads the `#!` line of an executable, and what it asks of `env`.
//!
//! It reads what the kernel would: the first 256 bytes, one interpreter, the rest of the line one
//! argument. A relative interpreter (`#!perl`, `#!@SHELL@`) is looked up from the working
//! directory of whoever runs it, so no package can provide it, and it is no need.

use super::Need;

/// The needs of a script whose first bytes are `head`: none, the interpreter, or `env` and what
/// `env` is to run.
pub(super) fn needs(head: &[u8]) -> Vec<Need> {
    let Some((interpreter, argument)) = parse(head) else {
        return Vec::new();
    };
    if !interpreter.starts_with('/') {
        return Vec::new();
    }
    let through_env = interpreter.rsplit('/').next().is_some_and(|name| name == "env");
    let program = if through_env { env_program(argument) } else { None };
    let mut needs = vec![Need::Script { interpreter: interpreter.to_owned() }];
    match program {
        Some(program) if program.starts_with('/') => {
            needs.push(Need::Script { interpreter: program });
        }
        // `env ./program` means the working directory, as above.
        Some(program) if program.contains('/') => {}
        Some(name) => needs.push(Need::Program { name }),
        None => {}
    }
    needs
}

/// The interpreter and its one argument, or `None` when the kernel would not run this.
fn parse(head: &[u8]) -> Option<(&str, &str)> {
    let rest = head.strip_prefix(b"#!")?;
    let line = match rest.iter().position(|&byte| byte == b'\n' || byte == 0) {
        Some(end) => &rest[..end],
        // The line goes on beyond what the kernel reads. It accepts that only when the
        // interpreter's own name is seen to end.
        None if head.len() < super::SCRIPT_HEAD_BYTES => rest,
        None => {
            let name = rest.trim_ascii_start();
            name.iter().position(|&byte| byte == b' ' || byte == b'\t')?;
            rest
        }
    };
    let line = match std::str::from_utf8(line) {
        Ok(line) => line,
        // Cut within a character, or an argument in another encoding: keep what is text.
        Err(error) => std::str::from_utf8(&line[..error.valid_up_to()]).ok()?,
    };
    let blank = |character| character == ' ' || character == '\t';
    let line = line.trim_matches(blank).trim_end_matches('\r');
    let (interpreter, argument) = line.split_once(blank).unwrap_or((line, ""));
    (!interpreter.is_empty()).then_some((interpreter, argument.trim_matches(blank)))
}

/// The program that `env ARGUMENT` runs, where the kernel passes one argument only.
///
/// Without `-S` the whole argument would be the program's name; that a name has blanks in it is
/// always a mistake for `-S`, so its first word counts as what was meant.
fn env_program(argument: &str) -> Option<String> {
    let mut words = split_words(argument).into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            return words.find(|word| !is_assignment(word));
        }
        if let Some(long) = word.strip_prefix("--") {
            if let Some(split) = long.strip_prefix("split-string=") {
                let rest: Vec<String> = words.collect();
                return env_program(&format!("{split} {}", rest.join(" ")));
            }
            if matches!(long, "unset" | "chdir" | "argv0") {
                words.next();
            }
            continue;
        }
        if word.len() > 1 && word.starts_with('-') {
            let options = &word[1..];
            // In a cluster of short options the first that takes a value takes the rest of it.
            if let Some(at) = options.find(['S', 'u', 'C', 'a']) {
                let value = &options[at + 1..];
                if options[at..].starts_with('S') {
                    let rest: Vec<String> = words.collect();
                    return env_program(&format!("{value} {}", rest.join(" ")));
                }
                if value.is_empty() {
                    words.next();
                }
            }
            continue;
        }
        if word == "-" || is_assignment(&word) {
            continue;
        }
        return Some(word);
    }
    None
}

fn is_assignment(word: &str) -> bool {
    word.find('=').is_some_and(|at| at > 0)
}

/// Splits as `env -S` does, as far as names of programs are concerned: blanks separate, quotes
/// keep together, a backslash takes the next character as it is (`\_` is a blank).
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None | Some('"'), '\\') => match (quote, characters.next()) {
                (None, Some('_')) => words.extend(word.take()),
                (_, Some(escaped)) => {
                    word.get_or_insert_default().push(if escaped == '_' { ' ' } else { escaped });
                }
                (_, None) => {}
            },
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &[&str]) {
        let needs = needs(line.as_bytes());
        let names: Vec<String> = needs
            .iter()
            .map(|need| match need {
                Need::Program { name } => format!("?{name}"),
                other => other.name().to_owned(),
            })
            .collect();
        assert_eq!(names, expected, "{line:?}");
    }

    #[test]
    fn interpreters() {
        check("#!/bin/sh\n", &["/bin/sh"]);
        check("#! \t/bin/sh -e \necho", &["/bin/sh"]);
        check("#!/bin/sh\r\n", &["/bin/sh"]);
        check("#!/bin/sh", &["/bin/sh"]);
        check("#!\n/bin/sh\n", &[]);
        check("#!perl -w\n", &[]);
        check("#!@SHELL@\n", &[]);
        check("#!/usr/bin/perl\0rest", &["/usr/bin/perl"]);
    }

    #[test]
    fn programs_through_env() {
        check("#!/usr/bin/env python3\n", &["/usr/bin/env", "?python3"]);
        check("#!/usr/bin/env -S python3 -u\n", &["/usr/bin/env", "?python3"]);
        check("#!/usr/bin/env -Spython3 -u\n", &["/usr/bin/env", "?python3"]);
        check("#!/usr/bin/env -S A=1 B=2 make -f\n", &["/usr/bin/env", "?make"]);
        check("#!/usr/bin/env -iS -u HOME 'perl' -w\n", &["/usr/bin/env", "?perl"]);
        check("#!/usr/bin/env --split-string=awk -f\n", &["/usr/bin/env", "?awk"]);
        check("#!/usr/bin/env -S -- X=1 sed -f\n", &["/usr/bin/env", "?sed"]);
        check("#!/usr/bin/env -S\\_gawk\\_-f\n", &["/usr/bin/env", "?gawk"]);
        check("#!/usr/bin/env /usr/bin/python3\n", &["/usr/bin/env", "/usr/bin/python3"]);
        check("#!/usr/bin/env ./here\n", &["/usr/bin/env"]);
        check("#!/usr/bin/env\n", &["/usr/bin/env"]);
    }

    #[test]
    fn a_line_longer_than_the_kernel_reads() {
        let long = format!("#!/{}", "x".repeat(300));
        check(&long[..super::super::SCRIPT_HEAD_BYTES], &[]);
        let long = format!("#!/bin/sh {}", "x".repeat(300));
        check(&long[..super::super::SCRIPT_HEAD_BYTES], &["/bin/sh"]);
    }
}
