//! What makes rebuilds differ, once one has: the bisection, and what is kept of it.
//!
//! A round without variation comes first: its differences have nothing to do with any dimension.
//! Then come halves of the dimensions, down to single ones, for whatever else differs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use srp_store::ingest::{self, Rules};

use super::auditor::{Auditor, Set};
use super::cause::{self, Seen};
use super::compare::{self, Point, Sign};
use super::dimension::Dimension;
use super::report::Difference;
use super::round::{self, Rebuilt};
use crate::build::Trees;
use crate::request::FailureCause;

impl Auditor<'_> {
    /// Finds out when it differs, and how. `sometimes`: the same round was identical before.
    pub(super) fn explain(
        &mut self,
        combined: Rebuilt,
        sometimes: bool,
    ) -> Result<Vec<Difference>, FailureCause> {
        let mut differences = Vec::new();
        let control = match self.control.take() {
            Some(points) => points,
            None => {
                let control = self.round(&Set::new())?;
                let points = control.points.clone();
                if !points.is_empty() {
                    differences.push(self.unsteady(control)?);
                }
                points
            }
        };
        let target: BTreeSet<Point> = combined.points.difference(&control).cloned().collect();
        self.control = Some(control);
        if !target.is_empty() {
            let effective: Set = combined.report.varied.iter().copied().collect();
            self.narrow(&effective, combined, &target, sometimes, &mut differences)?;
        }
        Ok(differences)
    }

    /// What makes a set differ at points of `target`: single dimensions where there are such.
    fn narrow(
        &mut self,
        set: &Set,
        rebuilt: Rebuilt,
        target: &BTreeSet<Point>,
        sometimes: bool,
        differences: &mut Vec<Difference>,
    ) -> Result<(), FailureCause> {
        let points: BTreeSet<Point> = rebuilt.points.intersection(target).cloned().collect();
        let all: Vec<Dimension> = set.iter().copied().collect();
        let hits = |rebuilt: &Rebuilt| rebuilt.points.intersection(target).next().is_some();
        if set.len() < 2 {
            // A race differs now and then: before a dimension is accused, it has to do it twice,
            // and nothing must have done it twice.
            let sure = hits(&self.round(set)?) && !hits(&self.round(&Set::new())?);
            let when: &[Dimension] = if sure { &all } else { &[] };
            differences.push(self.difference(when, rebuilt, &points, sometimes || !sure)?);
            return Ok(());
        }
        let (first, second) = all.split_at(all.len() / 2);
        let before = differences.len();
        for half in [first, second] {
            let half: Set = half.iter().copied().collect();
            let rebuilt = self.round(&half)?;
            if hits(&rebuilt) {
                self.narrow(&half, rebuilt, target, sometimes, differences)?;
            }
        }
        if differences.len() == before {
            // Neither half does it alone. Does the whole do it again?
            let sometimes = !hits(&self.round(set)?);
            let when: &[Dimension] = if sometimes { &[] } else { &all };
            differences.push(self.difference(when, rebuilt, &points, sometimes)?);
        }
        Ok(())
    }

    /// What differs although nothing is varied: looks for what makes it steady.
    ///
    /// The rounds that must differ from each other lie between those that must agree. So what
    /// changes slowly, such as the date, can't look as if it were made steady.
    fn unsteady(&mut self, control: Rebuilt) -> Result<Difference, FailureCause> {
        let points = control.points.clone();
        let candidates: Vec<Dimension> = [Dimension::Addresses, Dimension::Processors]
            .into_iter()
            .filter(|it| self.options.dimensions.contains(it))
            .filter(|it| self.tried.get(it).is_none_or(Result::is_ok))
            .collect();
        let single = |dimension: &Dimension| Set::from([*dimension]);
        let mut before = Vec::new();
        for dimension in &candidates {
            before.push(self.round(&single(dimension))?.trees);
        }
        let plain = [self.round(&Set::new())?.trees, self.round(&Set::new())?.trees];
        let agree = |one: &Trees, other: &Trees| {
            // A failure has no trees, and agrees with nothing.
            !one.is_empty() && !other.is_empty() && compare::points(one, other).is_disjoint(&points)
        };
        let recurs = agree(&plain[0], &plain[1]);
        let mut steady_under = Vec::new();
        for (dimension, before) in candidates.iter().zip(&before).rev() {
            let after = self.round(&single(dimension))?.trees;
            if !recurs && agree(before, &after) {
                steady_under.push(*dimension);
            }
        }
        let mut difference = self.difference(&[], control, &points, false)?;
        (difference.steady_under, difference.recurs) = (steady_under, recurs);
        difference.causes = self.causes(&difference);
        Ok(difference)
    }

    /// Describes what differs in a round, and keeps its outputs.
    fn difference(
        &self,
        when: &[Dimension],
        rebuilt: Rebuilt,
        points: &BTreeSet<Point>,
        sometimes: bool,
    ) -> Result<Difference, FailureCause> {
        let traces: Vec<(&str, Sign)> = rebuilt
            .report
            .varied
            .iter()
            .filter_map(|dimension| Some((dimension.trace()?, sign_of(*dimension)?)))
            .collect();
        let changes = compare::changes(&self.registered, &rebuilt.trees, points, &traces);
        let kept = self.keep(when, &rebuilt)?;
        let mut difference = Difference {
            when: when.to_vec(),
            sometimes,
            steady_under: Vec::new(),
            recurs: false,
            failed: rebuilt.failed,
            changes,
            causes: Vec::new(),
            kept: Some(kept),
            diffoscope: Vec::new(),
        };
        difference.causes = self.causes(&difference);
        Ok(difference)
    }

    fn causes(&self, difference: &Difference) -> Vec<cause::Cause> {
        if difference.failed.is_some() {
            return Vec::new();
        }
        cause::causes(&Seen {
            when: &difference.when,
            steady_under: &difference.steady_under,
            recurs: difference.recurs,
            changes: &difference.changes,
        })
    }

    /// Moves a round's outputs and log to where they are kept.
    fn keep(&self, when: &[Dimension], rebuilt: &Rebuilt) -> Result<PathBuf, FailureCause> {
        let names: Vec<&str> = when.iter().map(|dimension| dimension.name()).collect();
        let name = if names.is_empty() { "nothing-varied".to_owned() } else { names.join("+") };
        // A name that holds all dimensions is long, but no longer than a file system bears.
        let mut kept = self.keep.join(&name);
        let mut number = 1;
        while kept.exists() {
            number += 1;
            kept = self.keep.join(format!("{name}-{number}"));
        }
        let failed = |action: &str, path: &Path| {
            let action = format!("{action} {}", path.display());
            move |source| FailureCause::Io { action, source }
        };
        fs::create_dir_all(&kept).map_err(failed("create", &kept))?;
        let log = kept.join(round::LOG);
        fs::copy(rebuilt.scratch.path().join(round::LOG), &log).map_err(failed("write", &log))?;
        for (output, (tree, _)) in &rebuilt.trees {
            let place = kept.join(output.as_str());
            match fs::rename(tree, &place) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                    let rules = Rules { permissions: None, drop_shared: false };
                    ingest::copy(tree, &place, rules)?;
                }
                Err(error) => return Err(failed("keep", &place)(error)),
            }
        }
        Ok(kept)
    }
}

/// What it is a sign of that a dimension's text is in an output.
fn sign_of(dimension: Dimension) -> Option<Sign> {
    Some(match dimension {
        Dimension::Hostname => Sign::Hostname,
        Dimension::BuildPath => Sign::BuildPath,
        Dimension::User => Sign::User,
        Dimension::Locale => Sign::Locale,
        Dimension::TimeZone => Sign::TimeZone,
        Dimension::Environment => Sign::Environment,
        Dimension::Kernel => Sign::Kernel,
        Dimension::CpuModel => Sign::CpuModel,
        _ => return None,
    })
}
