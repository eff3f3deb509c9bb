//! Progress of a realisation: a live display on a terminal, plain lines elsewhere.
//!
//! Events only change a [`State`]; one thread draws it ten times a second, so that builds never
//! wait for a terminal. What is worth keeping (a finished build, a failure) is written as a line
//! above the display. Nothing here decides anything.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use srp_builder::{Activity, CancelToken, Event, Observer, Task};
use srp_store::StaticHash;

use crate::context::Context;
use crate::options;
use crate::style::Style;
use crate::terminal::{self, printable};

const REDRAW: Duration = Duration::from_millis(100);
/// So many things that run are shown; the rest are counted.
const MOST_ROWS: usize = 12;

/// Shows what happens.
pub(crate) struct Progress {
    quiet: bool,
    verbose: bool,
    style: Style,
    cancel: CancelToken,
    state: Arc<Mutex<State>>,
    live: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What is going on.
#[derive(Debug)]
struct State {
    began: Instant,
    rows: Vec<Row>,
    planned: usize,
    done: usize,
    failed: usize,
    fetched_bytes: HashMap<StaticHash, u64>,
    /// The beginning of a line of a log whose end has not come yet.
    unfinished: HashMap<StaticHash, Vec<u8>>,
}

/// Something that is being done.
#[derive(Debug)]
struct Row {
    hash: StaticHash,
    name: String,
    activity: Activity,
    began: Instant,
    bytes: u64,
    total_bytes: Option<u64>,
}

/// How something ended.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Well,
    Badly,
}

impl Progress {
    /// Progress as the options ask for it. What fails once `cancel` is cancelled fails because of
    /// that, and is no news.
    pub(crate) fn new(context: &Context, cancel: &CancelToken) -> Progress {
        let options = &context.options;
        let live = match options.progress {
            options::ProgressStyle::Auto => console::Term::stderr().is_term(),
            options::ProgressStyle::Live => true,
            options::ProgressStyle::Plain => false,
        };
        let state = Arc::new(Mutex::new(State::new(Instant::now())));
        Progress {
            quiet: options.quiet,
            verbose: options.verbose > 0,
            style: context.style,
            cancel: cancel.clone(),
            live: (live && !options.quiet)
                .then(|| draw(Arc::clone(&state), context.style))
                .flatten(),
            state,
        }
    }

    /// A source was fetched that becomes no object.
    pub(crate) fn saved(&self, task: Task<'_>, elapsed: Duration) {
        if self.quiet {
            return;
        }
        let line = {
            let mut state = self.state();
            let line = state.finished(task, Activity::Fetching, elapsed, self.style);
            state.end(task, Ended::Well);
            line
        };
        if self.live.is_none() {
            terminal::say(&line);
        }
    }

    /// Ends the display and leaves the terminal clean.
    pub(crate) fn finish(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.live.take() {
            drop(stop);
            // A display that panicked is not worth failing for.
            drop(thread.join());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn log(&self, task: Task<'_>, bytes: &[u8]) {
        let mut state = self.state();
        let unfinished = state.unfinished.entry(task.hash).or_default();
        unfinished.extend_from_slice(bytes);
        let Some(end) = unfinished.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines: Vec<u8> = unfinished.drain(..=end).collect();
        drop(state);
        self.log_lines(task, &lines);
    }

    fn log_lines(&self, task: Task<'_>, lines: &[u8]) {
        let prefix = self.style.faint(&format!("{}>", task.name));
        let mut text = String::new();
        for line in String::from_utf8_lossy(lines).lines() {
            let _ = writeln!(text, "{prefix} {}", printable(line));
        }
        terminal::write(&text);
    }

    /// The rest of a log whose builder has ended without ending its line.
    fn end_log(&self, task: Task<'_>) {
        let rest = self.state().unfinished.remove(&task.hash).unwrap_or_default();
        if !rest.is_empty() {
            self.log_lines(task, &rest);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        if self.quiet {
            return;
        }
        if matches!(event, Event::Failed { .. }) && self.cancel.is_cancelled() {
            return;
        }
        if let Event::Log { task, bytes } = event {
            if self.verbose {
                self.log(task, bytes);
            }
            return;
        }
        if let Event::Finished { task, .. } | Event::Failed { task, .. } = event
            && self.verbose
        {
            self.end_log(task);
        }
        let line = {
            let mut state = self.state();
            let news = state.news(&event, self.live.is_some(), self.style);
            state.apply(&event, Instant::now());
            news
        };
        if let Some(line) = line {
            terminal::say(&line);
        }
    }
}

impl State {
    fn new(began: Instant) -> State {
        State {
            began,
            rows: Vec::new(),
            planned: 0,
            done: 0,
            failed: 0,
            fetched_bytes: HashMap::new(),
            unfinished: HashMap::new(),
        }
    }

    /// The line that an event is worth, if it is worth one. A live display shows what has begun.
    fn news(&self, event: &Event<'_>, live: bool, style: Style) -> Option<String> {
        match *event {
            Event::Planned { fetches, builds, substitutions: 0, .. } if !live => {
                Some(format!("at most {fetches} to fetch and {builds} to build"))
            }
            Event::Planned { fetches, builds, substitutions, substitution_bytes } if !live => {
                Some(format!(
                    "{substitutions} to substitute ({}), at most {fetches} to fetch and {builds} to build",
                    HumanBytes(substitution_bytes)
                ))
            }
            Event::Started { task, activity } if !live => {
                let known =
                    self.rows.iter().any(|row| row.hash == task.hash && row.activity == activity);
                let verb = doing(activity);
                (!known && activity != Activity::Composing).then(|| format!("{verb} {}", task.name))
            }
            Event::Finished { task, activity, elapsed, .. } => {
                let told = !live || activity == Activity::Building;
                told.then(|| self.finished(task, activity, elapsed, style))
            }
            Event::Round { task, varied } if !live => {
                Some(format!("rebuilding {}, {varied}", task.name))
            }
            Event::Reused { task, .. } if !live => {
                Some(format!("{} {}", style.done("unchanged"), task.name))
            }
            Event::Failed { task, reason } => {
                let reason = reason.lines().next().unwrap_or_default().trim_end_matches(':');
                Some(format!("{} {}: {}", style.error("failed"), task.name, printable(reason)))
            }
            _ => None,
        }
    }

    fn apply(&mut self, event: &Event<'_>, now: Instant) {
        match *event {
            Event::Planned { fetches, builds, substitutions, .. } => {
                self.planned += fetches + builds + substitutions;
            }
            Event::Started { task, activity } => {
                match self.rows.iter_mut().find(|row| row.hash == task.hash) {
                    Some(row) if row.activity == activity => {}
                    Some(row) => (row.activity, row.began) = (activity, now),
                    None => self.rows.push(Row {
                        hash: task.hash,
                        name: task.name.to_owned(),
                        activity,
                        began: now,
                        bytes: 0,
                        total_bytes: None,
                    }),
                }
            }
            Event::Fetched { task, bytes, total } => {
                self.fetched_bytes.insert(task.hash, bytes);
                if let Some(row) = self.rows.iter_mut().find(|row| row.hash == task.hash) {
                    (row.bytes, row.total_bytes) = (bytes, total);
                }
            }
            Event::Verified { task, bytes, total } => {
                if let Some(row) = self.rows.iter_mut().find(|row| row.hash == task.hash) {
                    (row.bytes, row.total_bytes) = (bytes, Some(total));
                }
            }
            Event::Finished { task, .. } | Event::Reused { task, .. } => {
                self.end(task, Ended::Well)
            }
            Event::Failed { task, .. } => self.end(task, Ended::Badly),
            Event::Log { .. } | Event::Round { .. } => {}
        }
    }

    fn end(&mut self, task: Task<'_>, how: Ended) {
        self.rows.retain(|row| row.hash != task.hash);
        match how {
            Ended::Well => self.done += 1,
            Ended::Badly => self.failed += 1,
        }
    }

    fn finished(
        &self,
        task: Task<'_>,
        activity: Activity,
        elapsed: Duration,
        style: Style,
    ) -> String {
        let mut line = format!("{} {}", style.done(done(activity)), task.name);
        if let Some(bytes) = self.fetched_bytes.get(&task.hash) {
            let _ = write!(line, ", {}", HumanBytes(*bytes));
        }
        let _ = write!(line, ", {}", seconds(elapsed));
        line
    }

    /// The display: what runs, longest first, and a summary.
    fn lines(&self, now: Instant, style: Style) -> Vec<String> {
        let mut lines: Vec<String> =
            self.rows.iter().take(MOST_ROWS).map(|row| row.line(now)).collect();
        if self.rows.len() > MOST_ROWS {
            lines.push(format!("  … and {} more", self.rows.len() - MOST_ROWS));
        }
        let mut summary = style.done(&format!("{}/{}", self.done, self.planned.max(self.done)));
        if self.failed > 0 {
            let _ = write!(summary, " {}", style.error(&format!("{} failed", self.failed)));
        }
        for (activity, word) in [
            (Activity::Building, "building"),
            (Activity::Substituting, "substituting"),
            (Activity::Fetching, "fetching"),
            (Activity::Waiting, "waiting"),
            (Activity::Auditing, "auditing"),
            (Activity::Verifying, "verifying inputs"),
        ] {
            let count = self.rows.iter().filter(|row| row.activity == activity).count();
            if count > 0 {
                let _ = write!(summary, ", {count} {word}");
            }
        }
        let bytes: u64 = self.fetched_bytes.values().sum();
        if bytes > 0 {
            let _ = write!(summary, ", {} fetched", HumanBytes(bytes));
        }
        let _ = write!(summary, ", {}", clock(now.saturating_duration_since(self.began)));
        lines.push(summary);
        lines
    }
}

impl Row {
    fn line(&self, now: Instant) -> String {
        let mut line = format!("  {:<9} {}", doing(self.activity), self.name);
        match (self.activity, self.total_bytes) {
            (Activity::Fetching | Activity::Substituting | Activity::Verifying, Some(total))
                if self.bytes > 0 =>
            {
                let _ = write!(line, "  {} of {}", HumanBytes(self.bytes), HumanBytes(total));
            }
            (Activity::Fetching | Activity::Substituting, _) if self.bytes > 0 => {
                let _ = write!(line, "  {}", HumanBytes(self.bytes));
            }
            _ => {}
        }
        let _ = write!(line, "  {}", clock(now.saturating_duration_since(self.began)));
        line
    }
}

/// Starts drawing; dropping the sender ends it. None if there can't be a thread for that.
fn draw(state: Arc<Mutex<State>>, style: Style) -> Option<(Sender<()>, JoinHandle<()>)> {
    let display = MultiProgress::with_draw_target(crate::display::target());
    let shown = display.clone();
    let (stop, stopped) = mpsc::channel();
    let thread = std::thread::Builder::new().name("srp-display".to_owned()).spawn(move || {
        let template = ProgressStyle::with_template("{wide_msg}").expect("a valid template");
        let mut bars: Vec<ProgressBar> = Vec::new();
        let mut drawn = Vec::new();
        while stopped.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
            let lines = state.lock().expect("no holder panics").lines(Instant::now(), style);
            if lines == drawn {
                continue;
            }
            while bars.len() > lines.len() {
                if let Some(bar) = bars.pop() {
                    bar.finish_and_clear();
                    display.remove(&bar);
                }
            }
            while bars.len() < lines.len() {
                bars.push(display.add(ProgressBar::no_length().with_style(template.clone())));
            }
            for (bar, line) in bars.iter().zip(&lines) {
                bar.set_message(terminal::row(line));
            }
            drawn = lines;
        }
        bars.iter().for_each(ProgressBar::finish_and_clear);
        // Clearing a display that nothing was drawn on is no failure.
        drop(display.clear());
    });
    let thread = thread.ok()?;
    terminal::set_live(&shown);
    Some((stop, thread))
}

fn doing(activity: Activity) -> &'static str {
    match activity {
        Activity::Substituting => "substituting",
        Activity::Fetching => "fetching",
        Activity::Building => "building",
        Activity::Composing => "composing",
        Activity::Waiting => "waiting for another srp:",
        Activity::Auditing => "auditing",
        Activity::Verifying => "verifying inputs of",
    }
}

fn done(activity: Activity) -> &'static str {
    match activity {
        Activity::Substituting => "substituted",
        Activity::Fetching => "fetched",
        Activity::Building | Activity::Waiting | Activity::Verifying => "built",
        Activity::Composing => "composed",
        Activity::Auditing => "audited",
    }
}

/// A measured time: `0.3 s`, `72 s`, `1 h 02 min`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    let whole = elapsed.as_secs();
    match whole {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        10..600 => format!("{whole} s"),
        600..3600 => format!("{} min", whole / 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A running time: `0:07`, `1:02:03`.
fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match hours {
        0 => format!("{minutes}:{:02}", seconds % 60),
        _ => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::Color;

    fn task(number: u8, name: &str) -> Task<'_> {
        Task { hash: StaticHash::from_bytes([number; 32]), name }
    }

    #[test]
    fn the_display_says_what_runs_and_what_is_done() {
        let began = Instant::now();
        let style = Style::new(Color::Never, false);
        let mut state = State::new(began);
        let object = "66jd5qsvdcrc37jp7h0de4wt72eet9w3-musl-1.2.5".parse().expect("an object");
        let (musl, llvm, linux) = (task(1, "musl"), task(2, "llvm"), task(3, "linux"));
        for event in [
            Event::Planned { fetches: 1, builds: 3, substitutions: 0, substitution_bytes: 0 },
            Event::Started { task: linux, activity: Activity::Fetching },
            Event::Fetched { task: linux, bytes: 1 << 20, total: Some(4 << 20) },
            Event::Started { task: musl, activity: Activity::Building },
            Event::Started { task: llvm, activity: Activity::Waiting },
            Event::Started { task: llvm, activity: Activity::Waiting },
        ] {
            state.apply(&event, began);
        }
        let later = began + Duration::from_secs(67);
        assert_eq!(
            state.lines(later, style),
            [
                "  fetching  linux  1.00 MiB of 4.00 MiB  1:07",
                "  building  musl  1:07",
                "  waiting for another srp: llvm  1:07",
                "0/4, 1 building, 1 fetching, 1 waiting, 1.00 MiB fetched, 1:07",
            ]
        );
        let elapsed = Duration::from_millis(2345);
        let activity = Activity::Building;
        let finished = Event::Finished { task: musl, activity, object: &object, elapsed };
        assert_eq!(state.news(&finished, true, style).as_deref(), Some("built musl, 2.3 s"));
        state.apply(&finished, later);
        state.apply(&Event::Failed { task: llvm, reason: "no\nmore" }, later);
        state.apply(&Event::Started { task: musl, activity: Activity::Building }, later);
        assert_eq!(
            state.lines(later, style).last().map(String::as_str),
            Some("1/4 1 failed, 1 building, 1 fetching, 1.00 MiB fetched, 1:07")
        );
    }

    #[test]
    fn bytes_from_caches_are_shown_as_they_come() {
        let style = Style::new(Color::Never, false);
        let began = Instant::now();
        let mut state = State::new(began);
        let llvm = task(1, "llvm");
        state.apply(&Event::Started { task: llvm, activity: Activity::Substituting }, began);
        let lines = [1u64, 3].map(|mebibytes| {
            let (bytes, total) = (mebibytes << 20, Some(4 << 20));
            state.apply(&Event::Fetched { task: llvm, bytes, total }, began);
            state.lines(began, style).swap_remove(0)
        });
        assert_eq!(
            lines,
            [
                "  substituting llvm  1.00 MiB of 4.00 MiB  0:00",
                "  substituting llvm  3.00 MiB of 4.00 MiB  0:00",
            ]
        );
    }

    #[test]
    fn waiting_is_said_once() {
        let style = Style::new(Color::Never, false);
        let mut state = State::new(Instant::now());
        let event = Event::Started { task: task(1, "musl"), activity: Activity::Waiting };
        assert!(state.news(&event, false, style).is_some());
        state.apply(&event, Instant::now());
        assert!(state.news(&event, false, style).is_none());
    }

    #[test]
    fn times_are_short() {
        let text = |seconds_: u64| seconds(Duration::from_secs(seconds_));
        assert_eq!(
            [text(9), text(72), text(700), text(3720)],
            ["9.0 s", "72 s", "11 min", "1 h 02 min"]
        );
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
