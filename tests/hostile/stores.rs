//! Several srps, containers and deaths on one store.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
