//! Archives that want out of their destination, or too much of the machine.

use crate::harness::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![];
