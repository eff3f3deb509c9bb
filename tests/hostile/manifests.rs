//! Stage manifests by forgery.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
