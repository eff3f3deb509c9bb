//! Clients that want to smuggle requests past `srp serve`, or to starve others.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
