//! What srp inherits from whoever starts it: signals, descriptors, limits, masks, priorities.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
