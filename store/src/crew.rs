//! Crews: threads that work through a foreign tree, and that can touch nothing but that tree.
//!
//! What takes in outputs, searches them or writes them out resolves every name from a descriptor,
//! so no name leads elsewhere. A crew is the second barrier, which shares no code with the first:
//! its threads give up (by Landlock) every access to the file system but that beneath the
//! directories they were lent, and to the network, before they see a single name. So even a wrong
//! path can harm nothing. Landlock doesn't govern modes, owners and times: what crews run changes
//! those by descriptor only. On a kernel without Landlock the first barrier is the only one.
//!
//! A crew works from one list of tasks, last in, first out, and a task may add more: a tree of any
//! shape is walked without recursion, with few directories open at a time.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{Builder, Scope};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope as Reach, make_bitflags,
};

use crate::error::StoreError;
use crate::open_tree::OpenTree;

/// As many tasks may wait before another thread is worth its while.
const WAITING_TASKS: usize = 4;

/// Threads that can touch nothing but what they were lent. There is one at first, that which it is
/// given to ([`Crew::begin`]); as many more are started as there is work for.
#[derive(Debug)]
pub struct Crew {
    /// The most threads there are of it.
    most: usize,
}

/// The tasks of a crew at work.
#[derive(Debug)]
pub struct Tasks<'a, T> {
    state: &'a Mutex<State<T>>,
    changed: &'a Condvar,
}

#[derive(Debug)]
struct State<T> {
    waiting: Vec<T>,
    /// Threads that are at a task.
    busy: usize,
    /// Threads that wait for one.
    idle: usize,
    /// Somebody failed: nothing more is begun.
    stopped: bool,
}

/// Reading files and listing directories.
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// Everything that becomes of a tree, devices and the like excepted.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSym
        | Refer
});

impl Crew {
    /// Does `work` on a thread that may read what lies beneath `read`, and change what lies beneath
    /// `written`, and that can touch nothing else. Trees that one piece of work goes through more
    /// than once are lent once: a thread can't be freed again, so each crew is a new one.
    pub fn begin<R: Send>(
        read: &[&OpenTree],
        written: &[&OpenTree],
        work: impl FnOnce(&Crew) -> R + Send,
    ) -> Result<R, StoreError> {
        let ruleset = || -> Result<RulesetCreated, RulesetError> {
            // What this kernel doesn't know of it is left out.
            let known = ABI::V6;
            let mut ruleset = Ruleset::default()
                .handle_access(AccessFs::from_all(known))?
                .handle_access(AccessNet::from_all(known))?
                .scope(Reach::from_all(known))?
                .create()?;
            for (trees, access) in [(read, READ), (written, WRITE)] {
                for tree in trees {
                    ruleset = ruleset.add_rule(PathBeneath::new(tree.as_fd(), access))?;
                }
            }
            Ok(ruleset)
        };
        let place = read.iter().chain(written).map(|tree| tree.path()).next();
        let place = place.unwrap_or(Path::new("/"));
        let ruleset = ruleset().map_err(|error| not_confined(place, error))?;
        // Hashing a large file borrows rayon's threads. They mustn't be started from there, because
        // a thread is confined as the one that starts it is.
        let crew = Crew { most: rayon::current_num_threads() };
        let begin = move || match ruleset.restrict_self() {
            Ok(_) => Ok(work(&crew)),
            Err(error) => Err(not_confined(place, error)),
        };
        std::thread::scope(|scope| {
            let leader = Builder::new().name(NAME.to_owned()).spawn_scoped(scope, begin).map_err(
                |source| StoreError::Io { action: "start", path: "a thread".into(), source },
            )?;
            leader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Does `work` for each of `tasks`, and for each that it adds, on as many threads as there is
    /// work for. After a failure nothing more is begun; one failure is returned.
    pub fn run<T: Send, E: Send>(
        &self,
        tasks: Vec<T>,
        work: impl Fn(T, &Tasks<'_, T>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let state = State { waiting: tasks, busy: 0, idle: 0, stopped: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let tasks = Tasks { state: &state, changed: &changed };
        let failure = Mutex::new(None);
        let fail = |error: E| {
            failure.lock().expect("no holder panics").get_or_insert(error);
        };
        // Threads that are started by this one are confined as it is.
        std::thread::scope(|scope| tasks.work_off(scope, self.most - 1, &work, &fail));
        failure.into_inner().expect("no holder panics").map_or(Ok(()), Err)
    }
}

const NAME: &str = "srp-crew";

impl<T: Send> Tasks<'_, T> {
    /// Adds a task.
    pub fn add(&self, task: T) {
        let mut state = self.lock();
        state.waiting.push(task);
        if state.idle > 0 {
            self.changed.notify_one();
        }
    }

    /// Works until there is nothing left to do, with up to `more` threads beside this one.
    fn work_off<'scope, E: Send>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        mut more: usize,
        work: &'scope (impl Fn(T, &Tasks<'_, T>) -> Result<(), E> + Sync),
        fail: &'scope (impl Fn(E) + Sync),
    ) {
        while let Some((task, waiting)) = self.next() {
            let _busy = Busy(self);
            // The first thread alone starts others.
            while more > 0 && waiting >= WAITING_TASKS {
                more -= 1;
                let help = move || self.work_off(scope, 0, work, fail);
                // Those that are there do the work, too.
                let _ = Builder::new().name(NAME.to_owned()).spawn_scoped(scope, help);
            }
            if let Err(error) = work(task, self) {
                fail(error);
                self.lock().stopped = true;
            }
        }
    }

    /// The next task, and how many wait after it; none if there is nothing left to do.
    fn next(&self) -> Option<(T, usize)> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(task) = state.waiting.pop() {
                state.busy += 1;
                return Some((task, state.waiting.len()));
            }
            if state.busy == 0 {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).expect("no holder panics");
            state.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder panics")
    }
}

/// A thread that is at a task. When the last one is through, those that wait go home; they must
/// also if it panics.
struct Busy<'a, T: Send>(&'a Tasks<'a, T>);

impl<T: Send> Drop for Busy<'_, T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.busy -= 1;
        state.stopped |= std::thread::panicking();
        if state.stopped || state.busy == 0 {
            self.0.changed.notify_all();
        }
    }
}

fn not_confined(path: &Path, error: RulesetError) -> StoreError {
    let source = std::io::Error::other(error);
    StoreError::Io { action: "confine the threads that work on", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn tree(directory: &tempfile::TempDir, name: &str) -> OpenTree {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("created");
        fs::write(path.join("file"), "data").expect("written");
        OpenTree::open(&path).expect("opened")
    }

    /// Whether this kernel has Landlock; says so loudly where it hasn't.
    fn is_confined() -> bool {
        let status = std::thread::spawn(|| {
            let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V1));
            let status = ruleset.and_then(|it| it.create()).and_then(|it| it.restrict_self());
            status.expect("asked").ruleset
        });
        let confined = status.join().expect("no panic") != landlock::RulesetStatus::NotEnforced;
        if !confined {
            eprintln!("SKIPPED: this kernel has no Landlock, so there is no second barrier");
        }
        confined
    }

    #[test]
    fn a_wrong_path_leads_nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let (read, written) = (tree(&directory, "read"), tree(&directory, "written"));
        let other = tree(&directory, "other");
        symlink(other.path().join("file"), written.path().join("link")).expect("linked");
        if !is_confined() {
            return;
        }
        let denied = |result: std::io::Result<()>| {
            let kind = result.expect_err("it leads out").kind();
            assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
        };
        let ran = AtomicUsize::new(0);
        let work = |(), _: &Tasks<'_, ()>| -> Result<(), StoreError> {
            // By path, by a link that is followed, and upwards from a descriptor.
            denied(fs::read(other.path().join("file")).map(drop));
            denied(fs::read("/etc/passwd").map(drop));
            denied(fs::read(written.path().join("link")).map(drop));
            denied(fs::write(other.path().join("file"), "changed"));
            denied(fs::write(read.path().join("file"), "changed"));
            denied(fs::remove_file(other.path().join("file")));
            denied(fs::create_dir(other.path().join("new")));
            let up = rustix::fs::openat(
                &written,
                "../other/file",
                rustix::fs::OFlags::RDONLY,
                rustix::fs::Mode::empty(),
            );
            denied(up.map(drop).map_err(Into::into));
            // What it was lent, it has; and so have threads that it starts, and no more.
            fs::read(read.path().join("file")).expect("read");
            fs::write(written.path().join("file"), "changed").expect("written");
            fs::create_dir(written.path().join("new")).expect("created");
            std::thread::scope(|scope| {
                scope.spawn(|| denied(fs::read("/etc/passwd").map(drop)));
            });
            ran.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let ran_by = Crew::begin(&[&read], &[&written], |crew| crew.run(vec![()], work));
        ran_by.expect("a crew").expect("ran");
        assert_eq!(ran.into_inner(), 1);
        // Nobody else is confined, nor are threads that a crew borrows.
        fs::read("/etc/passwd").expect("read");
        rayon::join(|| fs::read("/etc/passwd").expect("read"), || ());
    }

    #[test]
    fn tasks_are_all_done_and_a_failure_ends_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = tree(&directory, "tree");
        let done = AtomicUsize::new(0);
        Crew::begin(&[&tree], &[], |crew| {
            crew.run::<_, StoreError>(vec![10_u32], |left, tasks| {
                done.fetch_add(1, Ordering::Relaxed);
                (0..2).filter(|_| left > 0).for_each(|_| tasks.add(left - 1));
                Ok(())
            })
            .expect("done");
            assert_eq!(done.load(Ordering::Relaxed), 2047);
            // What is done next has nothing to do with what was done before.
            for _ in 0..2 {
                let failed = crew.run(vec![0], |number: u32, tasks| {
                    tasks.add(number + 1);
                    if number < 100 { Ok(()) } else { Err(StoreError::Cancelled) }
                });
                assert!(matches!(failed, Err(StoreError::Cancelled)));
            }
        })
        .expect("a crew");
    }

    #[test]
    fn a_panic_hangs_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = tree(&directory, "tree");
        let ended = std::panic::catch_unwind(|| {
            Crew::begin(&[&tree], &[], |crew| {
                crew.run::<_, StoreError>((0..100).collect(), |number, _| match number {
                    50 => panic!("on purpose"),
                    _ => Ok(()),
                })
            })
        });
        assert!(ended.is_err());
    }

    /// Landlock governs neither modes nor owners nor times: what crews run must not change them,
    /// or open anything, by a path.
    #[test]
    fn what_crews_run_acts_by_descriptor() {
        let sources = [
            ("ingest.rs", include_str!("ingest.rs"), 1),
            ("content.rs", include_str!("content.rs"), 0),
            ("open_tree.rs", include_str!("open_tree.rs"), 0),
            ("verification.rs", include_str!("verification.rs"), 0),
            ("visit.rs", include_str!("visit.rs"), 0),
        ];
        for (name, source, directories_made) in sources {
            let code = source.split("#[cfg(test)]").next().unwrap_or_default();
            for by_path in [
                "set_permissions(",
                "utimensat(rustix::fs::CWD",
                "lchown(",
                "::chown(",
                "File::open(",
                "OpenOptions",
                "fs::read_dir(",
                "fs::rename(",
                "fs::remove",
                "fs::copy(",
                "fs::write(",
                "AT_FDCWD",
                "FollowSymlink)",
                "chmodat(rustix",
            ] {
                // `FchmodatFlags::NoFollowSymlink` is the one that follows nothing.
                let code = code.replace("NoFollowSymlink", "");
                assert!(!code.contains(by_path), "{name} acts by a path: {by_path}");
            }
            assert_eq!(code.matches("fs::create_dir(").count(), directories_made, "{name}");
        }
    }
}
