//! What one dimension came to in the audit of one derivation: a cell of the table.

use srp_builder::audit::{Audit, Dimension, Status};

/// A dimension's part in what came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<'a> {
    /// It was varied, and the same came out.
    Identical,
    /// What comes out differs because of it.
    Differs,
    /// It has a part in a difference, and does nothing alone.
    Together,
    /// Something differs whatever is varied, and nothing more because of this dimension: that it
    /// came out identical can't be said.
    Anyway,
    /// It could not be varied.
    NotApplicable(&'a str),
    /// Nobody asked for it.
    NotVaried,
}

impl<'a> Outcome<'a> {
    pub(super) const ALL: &'static [Outcome<'static>] = &[
        Outcome::Identical,
        Outcome::Differs,
        Outcome::Together,
        Outcome::Anyway,
        Outcome::NotApplicable(""),
        Outcome::NotVaried,
    ];

    pub(super) fn of(audit: &'a Audit, dimension: Dimension) -> Outcome<'a> {
        let Some(tried) = audit.dimensions.iter().find(|it| it.dimension == dimension) else {
            return Outcome::NotVaried;
        };
        if let Some(reason) = &tried.not_applicable {
            return Outcome::NotApplicable(reason);
        }
        let whens = || audit.differences.iter().map(|difference| difference.when.as_slice());
        if tried.variation.is_none() {
            Outcome::NotVaried
        } else if whens().any(|when| when == [dimension]) {
            Outcome::Differs
        } else if whens().any(|when| when.contains(&dimension)) {
            Outcome::Together
        } else if audit.status == Status::Identical || whens().all(|when| !when.is_empty()) {
            Outcome::Identical
        } else {
            Outcome::Anyway
        }
    }

    /// As short as can be: a table has a column for each dimension.
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Outcome::Identical => "=",
            Outcome::Differs => "≠",
            Outcome::Together => "≠+",
            Outcome::Anyway => "~",
            Outcome::NotApplicable(_) => "n/a",
            Outcome::NotVaried => "·",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Outcome::Identical => "identical",
            Outcome::Differs => "differs",
            Outcome::Together => "differs, only together with others",
            Outcome::Anyway => "no difference beyond those that appear with nothing varied",
            Outcome::NotApplicable(_) => "not applicable",
            Outcome::NotVaried => "not varied",
        }
    }

    /// The class that gives it its colour, beside what it says.
    pub(super) fn class(self) -> &'static str {
        match self {
            Outcome::Identical => "good",
            Outcome::Differs | Outcome::Together => "bad",
            Outcome::Anyway | Outcome::NotApplicable(_) | Outcome::NotVaried => "neither",
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use srp_builder::audit::{Difference, Tried, Variation};

    use super::*;

    pub(in crate::audit_pages) const REASON: &str = "it's <late>";

    fn difference(when: &[Dimension]) -> Difference {
        Difference {
            when: when.to_vec(),
            sometimes: false,
            steady_under: Vec::new(),
            recurs: false,
            failed: None,
            changes: Vec::new(),
            causes: Vec::new(),
            kept: None,
            diffoscope: Vec::new(),
        }
    }

    /// All that can be tried is varied, but for the clock, which can't, and the kernel.
    pub(in crate::audit_pages) fn audit(differences: &[&[Dimension]]) -> Audit {
        let variation = Variation { usual: "one".to_owned(), varied: "other".to_owned() };
        let tried = |dimension: &Dimension| match dimension {
            Dimension::Clock => Tried {
                dimension: *dimension,
                variation: None,
                not_applicable: Some(REASON.to_owned()),
            },
            _ => Tried {
                dimension: *dimension,
                variation: Some(variation.clone()),
                not_applicable: None,
            },
        };
        let dimensions = Dimension::ALL.iter().filter(|it| **it != Dimension::Kernel);
        Audit {
            derivation: "0".repeat(64).parse().expect("a hash"),
            name: "x".to_owned(),
            version: String::new(),
            status: if differences.is_empty() { Status::Identical } else { Status::Differs },
            audited_at: None,
            remembered: false,
            costs: None,
            claim: None,
            witness: None,
            dimensions: dimensions.map(tried).collect(),
            rounds: Vec::new(),
            differences: differences.iter().map(|when| difference(when)).collect(),
        }
    }

    #[test]
    fn nothing_is_called_identical_that_was_not_seen_to_be() {
        use Dimension::{Clock, Hostname, Kernel, Umask, User};
        let of = |audit: &Audit| {
            let of = |dimension| Outcome::of(audit, dimension).words();
            [Clock, Kernel, Hostname, User, Umask].map(of)
        };
        let [n_a, not, same, differs, together, anyway] = [
            Outcome::NotApplicable(REASON),
            Outcome::NotVaried,
            Outcome::Identical,
            Outcome::Differs,
            Outcome::Together,
            Outcome::Anyway,
        ]
        .map(Outcome::words);
        assert_eq!(of(&audit(&[])), [n_a, not, same, same, same]);
        assert_eq!(of(&audit(&[&[Hostname]])), [n_a, not, differs, same, same]);
        assert_eq!(of(&audit(&[&[User, Umask]])), [n_a, not, same, together, together]);
        assert_eq!(of(&audit(&[&[], &[User]])), [n_a, not, anyway, differs, anyway]);
        assert_eq!(Outcome::of(&audit(&[]), Clock), Outcome::NotApplicable(REASON));
    }
}
