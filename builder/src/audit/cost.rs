//! What each dimension costs: how much longer a rebuild takes when it alone is varied.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::auditor::Auditor;
use super::dimension::Dimension;
use super::round::Rebuilt;
use crate::request::FailureCause;

/// What varying costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// Wall time of a build with nothing varied, without comparing: the mean of two, one before the
    /// others and one after them.
    pub nothing_varied_milliseconds: u64,
    /// The same of each dimension that could be varied.
    pub dimensions: Vec<Cost>,
}

/// What one dimension costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Which.
    pub dimension: Dimension,
    /// Wall time of a build in which it alone is varied, without comparing.
    pub milliseconds: u64,
    /// That in hundredths of the time with nothing varied.
    pub percent: u64,
}

impl Auditor<'_> {
    /// Rebuilds with nothing varied, with each dimension alone, and with nothing varied again; also
    /// those of these rebuilds that differ.
    pub(super) fn costs(&mut self) -> Result<(Costs, Vec<Rebuilt>), FailureCause> {
        let mut differing = Vec::new();
        let mut measure = |auditor: &mut Self, dimensions: &BTreeSet<Dimension>| {
            let rebuilt = auditor.round(dimensions)?;
            let report = &rebuilt.report;
            let took = report.milliseconds.saturating_sub(report.compare_milliseconds);
            let varied = report.varied.len() == dimensions.len() && rebuilt.failed.is_none();
            if !rebuilt.points.is_empty() {
                differing.push(rebuilt);
            }
            Ok::<_, FailureCause>(varied.then_some(took))
        };
        let nothing = BTreeSet::new();
        let before = measure(self, &nothing)?;
        let mut took = Vec::new();
        for dimension in self.options.dimensions.clone() {
            let known = self.tried.get(&dimension).is_none_or(Result::is_ok);
            if known && let Some(milliseconds) = measure(self, &BTreeSet::from([dimension]))? {
                took.push((dimension, milliseconds));
            }
        }
        let after = measure(self, &nothing)?;
        let usual = (before.unwrap_or(0) + after.unwrap_or(0)) / 2;
        let cost = |(dimension, milliseconds)| Cost {
            dimension,
            milliseconds,
            percent: milliseconds * 100 / usual.max(1),
        };
        let dimensions = took.into_iter().map(cost).collect();
        Ok((Costs { nothing_varied_milliseconds: usual, dimensions }, differing))
    }
}
