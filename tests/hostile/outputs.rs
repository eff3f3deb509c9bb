//! Outputs that lead srp elsewhere, or that have no end.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
