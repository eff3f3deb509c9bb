//! Recognises dates, times and addresses in text that differs.
//!
//! Only what is in one side and not in the other counts: a year that both have is no reason.

use std::collections::BTreeSet;

use super::part::Sign;

const MONTHS: &[&str] =
    &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Where words come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Somebody wrote them.
    Text,
    /// They may be there by chance: what is short says nothing.
    Many,
}

/// What one text has that the other hasn't.
pub(super) fn of(registered: &str, rebuilt: &str, from: Words) -> BTreeSet<Sign> {
    let mut signs = BTreeSet::new();
    let (one, other) = (words(registered), words(rebuilt));
    let differ: Vec<(&&str, bool)> = one
        .difference(&other)
        .map(|word| (word, is_month_near(registered, word)))
        .chain(other.difference(&one).map(|word| (word, is_month_near(rebuilt, word))))
        .collect();
    for (word, beside_month) in differ {
        let telling = from == Words::Text || word.len() >= 8;
        if telling && (is_date(word) || beside_month && from == Words::Text) {
            signs.insert(Sign::Date);
        }
        if is_address(word) {
            signs.insert(Sign::Address);
        }
    }
    signs
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| c.is_whitespace() || "\"'()[]<>,;=".contains(c))
        .filter(|word| !word.is_empty())
        .collect()
}

/// `2026-11-22`, `20261122`, `20261122101112`, `2026-11-22T10:11:12Z`, `10:11:12`, `10:11+0000`,
/// seconds or parts of seconds since 1970 of this century's first half.
fn is_date(word: &str) -> bool {
    let word = word.strip_prefix("D:").unwrap_or(word); // as PDF marks it
    let bytes = word.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        let part = bytes.get(range)?;
        part.iter()
            .all(u8::is_ascii_digit)
            .then(|| part.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0')))
    };
    let year = digits(0..4).is_some_and(|year| (1970..2100).contains(&year));
    let separated = |at: usize| bytes.get(at).is_some_and(|byte| b"-/.".contains(byte));
    if year && separated(4) && separated(7) {
        let month = digits(5..7).is_some_and(|month| (1..=12).contains(&month));
        return month && digits(8..10).is_some_and(|day| (1..=31).contains(&day));
    }
    let time_follows = matches!(bytes.get(8), Some(b'T')) || digits(8..12).is_some();
    if (bytes.len() == 8 || time_follows) && year && digits(4..8).is_some() {
        let (month, day) = (digits(4..6).unwrap_or(0), digits(6..8).unwrap_or(0));
        return (1..=12).contains(&month) && (1..=31).contains(&day);
    }
    let time = word.split(['+', 'Z']).next().unwrap_or(word).len();
    if (time == 8 || time == 5) && bytes.get(2) == Some(&b':') {
        let seconds = time == 5 || (bytes[5] == b':' && digits(6..8).is_some());
        let hour = digits(0..2).is_some_and(|hour| hour < 24);
        return hour && digits(3..5).is_some_and(|minute| minute < 60) && seconds;
    }
    // Between 2001 and 2065, also with fractions of a second, or counted in them.
    let whole = word.split('.').next().unwrap_or(word);
    [10, 13, 16, 19].contains(&whole.len())
        && whole.bytes().all(|byte| byte.is_ascii_digit())
        && whole[..10]
            .parse::<u64>()
            .is_ok_and(|number| (1_000_000_000..3_000_000_000).contains(&number))
}

/// Whether a word is a month or day of the week, or a number in a text that names one: `Nov 22 2026`.
fn is_month_near(text: &str, word: &str) -> bool {
    let named = |word: &str, names: &[&str]| {
        let word = word.to_ascii_lowercase();
        word.len() >= 3 && word.get(..3).is_some_and(|start| names.contains(&start))
    };
    if named(word, MONTHS) && word.len() <= 9 {
        // `mar` and `may` begin other words, too: a date has a number.
        return words(text).iter().any(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    }
    if named(word, DAYS) && word.len() == 3 {
        return true;
    }
    word.len() <= 4
        && word.bytes().all(|byte| byte.is_ascii_digit())
        && words(text).iter().any(|word| word.len() == 3 && named(word, MONTHS))
}

/// `0x7ffd…`: as long as addresses of a 64-bit process are.
fn is_address(word: &str) -> bool {
    let hexadecimal = word.trim_start_matches("0x");
    (8..=16).contains(&hexadecimal.len())
        && hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (hexadecimal.len() < word.len() || hexadecimal.len() == 12)
        && hexadecimal.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_recognised_where_they_differ() {
        let both = |one, other| of(one, other, Words::Text).contains(&Sign::Date);
        assert!(both("built 2026-11-22", "built 2027-01-01"));
        assert!(both("at 10:11:12 sharp", "at 10:11:13 sharp"));
        assert!(both("(Nov 22 2026, gcc)", "(Jan  1 2030, gcc)"));
        assert!(both("epoch 1763806301", "epoch 1763806302"));
        assert!(both("Sun Nov 22 10:00:00 UTC 2026", "Mon Nov 23 10:00:00 UTC 2026"));
        assert!(both("1763806301123456789", "1763806302123456789"));
        assert!(both("/CreationDate (D:20261122195027)", "/CreationDate (D:20261122195028)"));
        assert!(both("2026-11-22 19:50+0000", "2026-11-22 19:51+0000"));
        assert!(both("20261122T101112Z", "20261123T101112Z"));
        assert!(!both("20261122x", "20261123y"));
        assert!(!both("2026-11-22 a", "2026-11-22 b"));
        assert!(!both("jobs 4", "jobs 8"));
        assert!(!both("1.2.3", "1.2.4"));
        assert!(!both("sundry 7", "monday-ish 9"));
    }

    #[test]
    fn addresses_are_recognised() {
        let both = |one, other| of(one, other, Words::Text).contains(&Sign::Address);
        assert!(both("at 0x7ffd12345678", "at 0x7ffe00345678"));
        assert!(!both("at 12345678", "at 22345678"));
    }

    #[test]
    fn chance_has_no_dates() {
        let of = |one, other| of(one, other, Words::Many);
        assert!(!of("sat 10:11 nov 7", "mon 10:12 dec 8").contains(&Sign::Date));
        assert!(of("10:11:12", "10:11:13").contains(&Sign::Date));
    }
}
