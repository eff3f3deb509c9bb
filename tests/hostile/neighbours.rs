//! Builds at the same time that want to see, delay or starve each other.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
