//! Roots that change the host when they are materialised or removed.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
