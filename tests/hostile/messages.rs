//! Foreign bytes that want to control the terminal, or to forge lines of srp.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
