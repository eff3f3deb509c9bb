//! What makes rebuilds differ, once one has: the bisection, and what is kept of it.
//!
//! A round without variation comes first: its differences have nothing to do with any dimension.
//! Then come halves of the dimensions, down to single ones, for whatever else differs. So far these
//! are suspicions: what differs by chance differs under something, too. A suspicion becomes an
//! accusation if all rounds of the audit bear it out, path by path: those under its dimensions
//! differ there, those under nobody's don't. If they are few, there are more of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use srp_store::ingest::{self, Rules};

use super::auditor::{Auditor, Set};
use super::cause::{self, Seen};
use super::compare::{self, Point, Sign};
use super::dimension::Dimension;
use super::report::Difference;
use super::round::{self, Rebuilt};
use crate::build::Trees;
use crate::request::FailureCause;

/// Some dimensions, under which a rebuild differs at these points.
struct Suspicion {
    when: Set,
    rebuilt: Rc<Rebuilt>,
    points: BTreeSet<Point>,
}

/// How many rounds on either side bear a suspicion out: a build that comes out in one of two ways
/// by chance does so once in 2 to the power of nearly twice that. Long builds get fewer.
fn enough(milliseconds: u64) -> usize {
    match milliseconds {
        ..1_000 => 10,
        1_000..30_000 => 5,
        30_000..600_000 => 3,
        _ => 2,
    }
}

impl Auditor<'_> {
    /// Finds out when it differs, and how, from rounds that do.
    pub(super) fn explain(
        &mut self,
        differing: Vec<Rebuilt>,
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
        let mut suspicions = Vec::new();
        for rebuilt in differing {
            let target: BTreeSet<Point> = rebuilt.points.difference(&control).cloned().collect();
            if target.is_empty() {
                continue;
            }
            let set: Set = rebuilt.report.varied.iter().copied().collect();
            let (rebuilt, before) = (Rc::new(rebuilt), suspicions.len());
            self.suspect(set.clone(), Rc::clone(&rebuilt), &target, &mut suspicions)?;
            // What none of the parts does, the whole does.
            let explained = suspicions[before..].iter().flat_map(|it| &it.points).cloned();
            let explained: BTreeSet<Point> = explained.collect();
            let points: BTreeSet<Point> = target.difference(&explained).cloned().collect();
            if !points.is_empty() {
                suspicions.push(Suspicion { when: set, rebuilt, points });
            }
        }
        self.control = Some(control);
        let chance = self.try_suspicions(&mut suspicions)?;
        if let Some(chance) = chance {
            let Suspicion { rebuilt, points, .. } = chance;
            differences.push(self.difference(&[], rebuilt, &points, true)?);
        }
        for Suspicion { when, rebuilt, points } in suspicions {
            let when: Vec<Dimension> = when.into_iter().collect();
            differences.push(self.difference(&when, rebuilt, &points, false)?);
        }
        Ok(differences)
    }

    /// What makes a set differ at points of `target`: single dimensions where there are such.
    fn suspect(
        &mut self,
        set: Set,
        rebuilt: Rc<Rebuilt>,
        target: &BTreeSet<Point>,
        suspicions: &mut Vec<Suspicion>,
    ) -> Result<(), FailureCause> {
        let before = suspicions.len();
        let all: Vec<Dimension> = set.iter().copied().collect();
        if let (first @ [_, ..], second) = all.split_at(all.len() / 2) {
            for half in [first, second] {
                let half: Set = half.iter().copied().collect();
                let rebuilt = self.round(&half)?;
                if !rebuilt.points.is_disjoint(target) {
                    self.suspect(half, Rc::new(rebuilt), target, suspicions)?;
                }
            }
        }
        if suspicions.len() == before {
            let points = rebuilt.points.intersection(target).cloned().collect();
            suspicions.push(Suspicion { when: set, rebuilt, points });
        }
        Ok(())
    }

    /// Rebuilds until there is enough to go by, and leaves those suspicions, and those of their
    /// points, that all rounds bear out. Returns what differs by chance instead, if anything does.
    fn try_suspicions(
        &mut self,
        suspicions: &mut Vec<Suspicion>,
    ) -> Result<Option<Suspicion>, FailureCause> {
        for at in 0..suspicions.len() {
            let enough = enough(suspicions[at].rebuilt.report.milliseconds);
            let enough = enough.max(self.options.rounds);
            // More are never needed; what can't be varied now and then would be tried for ever.
            for _ in 0..2 * enough {
                let Suspicion { when, points, .. } = &suspicions[at];
                if !points.iter().any(|point| self.bear_out(suspicions, when, point)) {
                    break;
                }
                let with = self.seen.iter().filter(|(set, _)| set.is_superset(when)).count();
                let is_nobodys = |set: &Set| suspicions.iter().all(|it| !set.is_superset(&it.when));
                let without = self.seen.iter().filter(|(set, _)| is_nobodys(set)).count();
                let next = match with <= without {
                    true if with < enough => when.clone(),
                    _ if without < enough => Set::new(),
                    _ if with < enough => when.clone(),
                    _ => break,
                };
                self.round(&next)?;
            }
        }
        let mut chance: Option<Suspicion> = None;
        let mut sure = Vec::new();
        for Suspicion { when, rebuilt, points } in suspicions.iter() {
            let is_sure = |point: &Point| self.bear_out(suspicions, when, point);
            let (kept, others): (BTreeSet<Point>, BTreeSet<Point>) =
                points.iter().cloned().partition(is_sure);
            sure.push(kept);
            let most = chance.as_ref().map_or(0, |it| it.points.len());
            if others.len() > most {
                let (when, rebuilt) = (Set::new(), Rc::clone(rebuilt));
                chance = Some(Suspicion { when, rebuilt, points: others });
            }
        }
        for (suspicion, points) in suspicions.iter_mut().zip(sure) {
            suspicion.points = points;
        }
        suspicions.retain(|it| !it.points.is_empty());
        Ok(chance)
    }

    /// Whether all rounds of this audit say of a point what they should if these dimensions make it
    /// differ.
    fn bear_out(&self, suspicions: &[Suspicion], when: &Set, point: &Point) -> bool {
        self.seen.iter().all(|(set, points)| {
            // A round that failed has no paths, and says nothing about them.
            if points.contains(&Point::Failure) && *point != Point::Failure {
                return true;
            }
            let somebodys =
                suspicions.iter().any(|it| it.points.contains(point) && set.is_superset(&it.when));
            match set.is_superset(when) {
                true => points.contains(point),
                false => somebodys || !points.contains(point),
            }
        })
    }

    /// What differs although nothing is varied: looks for what makes it steady.
    ///
    /// The rounds that must differ from each other lie between those that must agree. So what
    /// changes slowly, such as the date, can't look as if it were made steady.
    fn unsteady(&mut self, control: Rebuilt) -> Result<Difference, FailureCause> {
        let points = control.points.clone();
        let enough = enough(control.report.milliseconds);
        let can_be_varied = |auditor: &Self, it: &Dimension| {
            auditor.options.dimensions.contains(it)
                && auditor.tried.get(it).is_none_or(Result::is_ok)
        };
        let mut candidates = vec![Dimension::Addresses, Dimension::Processors];
        candidates.retain(|it| can_be_varied(self, it));
        let mut under = vec![Vec::new(); candidates.len()];
        for (dimension, trees) in candidates.iter().zip(&mut under) {
            for _ in 0..enough.div_ceil(2) {
                trees.push(self.round(&Set::from([*dimension]))?.trees);
            }
        }
        let mut plain = vec![control.trees.clone()];
        for _ in 0..enough {
            plain.push(self.round(&Set::new())?.trees);
        }
        let agree = |all: &[Trees]| {
            // A failure has no trees, and agrees with nothing.
            let same = |pair: &[Trees]| compare::points(&pair[0], &pair[1]).is_disjoint(&points);
            all.iter().all(|trees| !trees.is_empty()) && all.windows(2).all(same)
        };
        let recurs = agree(&plain);
        let mut steady_under = Vec::new();
        for (dimension, mut trees) in candidates.into_iter().zip(under).rev() {
            // First as many as before; then as many again, if it looks steady.
            for more in [enough / 2, enough] {
                for _ in 0..more {
                    if recurs || !agree(&trees) {
                        break;
                    }
                    trees.push(self.round(&Set::from([dimension]))?.trees);
                }
            }
            if !recurs && agree(&trees) {
                steady_under.push(dimension);
            }
        }
        let when: &[Dimension] = if recurs
            && can_be_varied(self, &Dimension::Clock)
            && self.is_clocks(&points, enough)?
        {
            &[Dimension::Clock]
        } else {
            &[]
        };
        let mut difference = self.difference(when, Rc::new(control), &points, false)?;
        (difference.steady_under, difference.recurs) = (steady_under, recurs);
        difference.causes = self.causes(&difference);
        Ok(difference)
    }

    /// Whether rebuilds that agree with each other don't if the clock is another one: then what is
    /// registered differs because it is of another day.
    fn is_clocks(&mut self, points: &BTreeSet<Point>, enough: usize) -> Result<bool, FailureCause> {
        let mut usual = self.round(&Set::new())?.trees;
        for _ in 0..enough.div_ceil(2) {
            let varied = self.round(&Set::from([Dimension::Clock]))?.trees;
            let again = self.round(&Set::new())?.trees;
            let differs = |one: &Trees| !compare::points(one, &again).is_disjoint(points);
            if [&usual, &varied, &again].iter().any(|it| it.is_empty())
                || !differs(&varied)
                || differs(&usual)
            {
                return Ok(false);
            }
            usual = again;
        }
        Ok(true)
    }

    /// Describes what differs in a round, and keeps its outputs.
    fn difference(
        &self,
        when: &[Dimension],
        rebuilt: Rc<Rebuilt>,
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
            failed: rebuilt.failed.clone(),
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
            return cause::of_failure(&difference.when);
        }
        cause::causes(&Seen {
            when: &difference.when,
            steady_under: &difference.steady_under,
            recurs: difference.recurs,
            changes: &difference.changes,
        })
    }

    /// Takes a round's outputs and log to where they are kept.
    fn keep(&self, when: &[Dimension], rebuilt: &Rc<Rebuilt>) -> Result<PathBuf, FailureCause> {
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
        // Another difference may still need it.
        let is_last = Rc::strong_count(rebuilt) == 1;
        for (output, (tree, _)) in &rebuilt.trees {
            let place = kept.join(output.as_str());
            let moved = match is_last {
                true => fs::rename(tree, &place),
                false => Err(std::io::ErrorKind::CrossesDevices.into()),
            };
            match moved {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                    ingest::copy(tree, &place, Rules::default())?;
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
