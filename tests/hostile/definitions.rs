//! Definitions that want more memory, depth or time than they may have, or files that aren't theirs.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
