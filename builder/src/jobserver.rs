//! Shares the machine's cores between builds: GNU make jobservers, one FIFO per sandbox.
//!
//! Every build owns the cores that the scheduler reserved for it (its implicit token). The cores
//! that no build reserved are tokens, single bytes, which one thread moves between the builds'
//! FIFOs: to those that emptied theirs, from those in which bytes lie unused. One FIFO for all
//! would be simpler, and a channel between builds.
//!
//! A build can read and write its FIFO as it likes; that is the protocol. So nothing here trusts
//! what is in there. What is guaranteed, whatever builds do:
//!
//! 1. *Tokens handed out and cores reserved never exceed the cores*, but where more builds run than
//!    there are cores (each has one reserved, and then there is no token), and for the moments after
//!    a build was registered while others still used what is now reserved; until that many tokens
//!    came back, none is handed out ([`Broker::spare`] tells the scheduler beforehand).
//! 2. Jobs of builds that keep to the protocol are never more than that sum.
//! 3. A build that *hoards* keeps what it was given, which is no more than its fair share while
//!    others want tokens; they go on with their implicit tokens at least.
//! 4. A build that *forges* bytes runs more jobs of its own, at most as many as it forged: no
//!    forged byte ever reaches another build, and surplus bytes are drained and counted.
//! 5. A build that *leaks* or is killed loses tokens to nobody: at its end all are back.
//!
//! This is no scheduler and enforces no limit: a build that ignores the protocol uses what cores
//! the kernel gives it.

mod ledger;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;

use ledger::Ledger;

/// How often FIFOs are looked at while there are any.
const TICK: Duration = Duration::from_millis(25);

/// The least time between two rounds that a build's own reads and writes bring about, so that no
/// build can keep the broker busy.
const PAUSE: Duration = Duration::from_millis(1);

/// The most that one round drains from one FIFO; a flood is drained over several.
const DRAIN_LIMIT_BYTES: usize = 64 << 10;

/// The name of the FIFO in the directory given to [`Broker::register`].
const FIFO_NAME: &str = "jobserver";

/// Why the job server could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobserverError {
    /// The FIFO could not be made or opened.
    #[error("cannot create the job server's FIFO {}", path.display())]
    Fifo {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The broker's thread, or what wakes it, could not be made.
    #[error("cannot start the job server")]
    Start {
        /// What the system said.
        source: io::Error,
    },
}

/// The one that moves the tokens. Builds registered with it may outlive it; they then keep what
/// they have.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts brokering `cores` cores.
    pub fn new(cores: usize) -> Result<Broker, JobserverError> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| JobserverError::Start { source: errno.into() })?;
        let state = State {
            ledger: Ledger::new(cores),
            fifos: BTreeMap::new(),
            next_id: 0,
            stats: BrokerStats { cores, ..BrokerStats::default() },
            stop: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake });
        let thread = thread::Builder::new()
            .name("jobserver".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })
            .map_err(|source| JobserverError::Start { source })?;
        Ok(Broker { shared, thread: Some(thread) })
    }

    /// Makes a FIFO in `directory`, for one build that has one core reserved.
    pub fn register(&self, directory: &Path) -> Result<Client, JobserverError> {
        self.register_reserving(directory, 1)
    }

    /// Makes a FIFO in `directory` (which no build may write to), for one build that the scheduler
    /// counts `reserved` cores for. It is readable and writable for the caller's uid alone; who
    /// builds as another uid changes its owner.
    pub fn register_reserving(
        &self,
        directory: &Path,
        reserved: usize,
    ) -> Result<Client, JobserverError> {
        let path = directory.join(FIFO_NAME);
        let fifo = Fifo::create(&path)
            .map_err(|source| JobserverError::Fifo { path: path.clone(), source })?;
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.fifos.insert(id, Watched { fifo: Arc::new(fifo), stats: ClientStats::default() });
        state.ledger.register(id, reserved, Instant::now());
        // At once, so that what lies idle elsewhere is not in use when the build begins.
        state.round(Instant::now());
        drop(state);
        self.shared.wake();
        Ok(Client { shared: Arc::clone(&self.shared), id, path })
    }

    /// How many cores are neither reserved nor used through a token: what a scheduler that wants
    /// guarantee 1 without exception admits builds by.
    pub fn spare(&self) -> usize {
        self.shared.lock().ledger.spare()
    }

    /// What happened so far.
    pub fn stats(&self) -> BrokerStats {
        let state = self.shared.lock();
        BrokerStats {
            clients: state.fifos.len(),
            handed: state.ledger.handed(),
            ..state.stats.clone()
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // It panics only if one of its own invariants is broken, and has then said so.
            let _ = thread.join();
        }
    }
}

/// What a [`Broker`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStats {
    /// The cores that it shares out.
    pub cores: usize,
    /// The builds that are registered.
    pub clients: usize,
    /// The tokens that are in FIFOs or used by builds.
    pub handed: usize,
    /// The surplus bytes that were drained, of all builds.
    pub forged: u64,
    /// The tokens that builds had not given back at their end, of all builds.
    pub leaked: u64,
    /// The tokens that were taken back from running builds.
    pub reclaimed: u64,
    /// How often the FIFOs were looked at.
    pub rounds: u64,
}

/// What one build did with its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// The most tokens that it had at once.
    pub handed_most: usize,
    /// The surplus bytes that were drained from its FIFO.
    pub forged: u64,
    /// The tokens that it had not given back at its end.
    pub leaked: u64,
}

/// One registered build. Its end gives everything back; end it when the last process of the build
/// is gone.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    id: u64,
    path: PathBuf,
}

impl Client {
    /// The FIFO, to be bind-mounted into the sandbox.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes everything back, removes the FIFO, and tells what the build did.
    pub fn finish(self) -> ClientStats {
        // What is left for the drop is to remove the FIFO.
        self.shared.unregister(self.id)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.unregister(self.id);
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the FIFO went before its build");
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    fn wake(&self) {
        match self.wake.write(1) {
            // A counter that is full wakes just as well.
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => tracing::error!(%errno, "cannot wake the job server"),
        }
    }

    /// The broker's thread: a round, then sleep until something can have changed.
    fn run(&self) {
        loop {
            let (contended, timeout) = {
                let mut state = self.lock();
                if state.stop {
                    return;
                }
                let contended = state.round(Instant::now());
                let timeout = if state.fifos.is_empty() {
                    PollTimeout::NONE
                } else {
                    PollTimeout::try_from(TICK).expect("the tick is a few milliseconds")
                };
                (contended, timeout)
            };
            let mut events: Vec<PollFd<'_>> = contended
                .iter()
                .map(|fifo| PollFd::new(fifo.0.as_fd(), PollFlags::POLLIN))
                .collect();
            events.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
            match poll(&mut events, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "the job server cannot wait; it looks every tick");
                    thread::sleep(TICK);
                }
            }
            let token_came_back =
                events[..contended.len()].iter().any(|event| event.any().unwrap_or(true));
            // Counts are of no interest, only that it no longer wakes.
            let _ = self.wake.read();
            if token_came_back {
                // It is wanted elsewhere: take it before its own build does, and only then rest.
                let mut state = self.lock();
                if !state.stop {
                    state.round(Instant::now());
                }
                drop(state);
                thread::sleep(PAUSE);
            }
        }
    }

    fn unregister(&self, id: u64) -> ClientStats {
        let mut state = self.lock();
        let Some(watched) = state.fifos.remove(&id) else {
            return ClientStats::default();
        };
        let mut stats = watched.stats;
        let handed = state.ledger.unregister(id);
        let left = watched.fifo.waiting();
        let surplus = left.saturating_sub(handed) as u64;
        stats.forged += surplus;
        stats.leaked = handed.saturating_sub(left) as u64;
        state.stats.forged += surplus;
        state.stats.leaked += stats.leaked;
        drop(state);
        self.wake();
        stats
    }
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    fifos: BTreeMap<u64, Watched>,
    next_id: u64,
    stats: BrokerStats,
    stop: bool,
}

#[derive(Debug)]
struct Watched {
    fifo: Arc<Fifo>,
    stats: ClientStats,
}

impl State {
    /// Looks at every FIFO, takes back, hands out. Returns the FIFOs into which the next token
    /// that comes back is wanted elsewhere.
    fn round(&mut self, now: Instant) -> Vec<Arc<Fifo>> {
        self.stats.rounds += 1;
        for (&id, watched) in &mut self.fifos {
            let handed = self.ledger.handed_to(id);
            let mut waiting = watched.fifo.waiting();
            let surplus = waiting.saturating_sub(handed);
            if surplus > 0 {
                let drained = watched.fifo.take(surplus.min(DRAIN_LIMIT_BYTES));
                watched.stats.forged += drained as u64;
                self.stats.forged += drained as u64;
                waiting -= drained;
            }
            self.ledger.observe(id, waiting, now);
        }
        for (id, wanted) in self.ledger.reclaims(now) {
            let taken = self.fifos.get(&id).map_or(0, |watched| watched.fifo.take(wanted));
            self.ledger.taken(id, taken, now);
            self.stats.reclaimed += taken as u64;
        }
        for (id, tokens) in self.ledger.grants(now) {
            if let Some(watched) = self.fifos.get_mut(&id) {
                let given = watched.fifo.give(tokens);
                self.ledger.given(id, given);
                watched.stats.handed_most =
                    watched.stats.handed_most.max(self.ledger.handed_to(id));
            }
        }
        let contended = self.ledger.contended(now);
        contended
            .into_iter()
            .filter_map(|id| self.fifos.get(&id).map(|watched| Arc::clone(&watched.fifo)))
            .collect()
    }
}

/// Both ends of a FIFO, never blocking. Errors count as an empty or a full one: the only ones
/// possible are of the kernel's running out of memory, and the next round tries again.
#[derive(Debug)]
struct Fifo(File);

impl Fifo {
    fn create(path: &Path) -> io::Result<Fifo> {
        nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Open for both, so that it neither ends nor breaks when the build closes its side.
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)?;
        if !file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        Ok(Fifo(file))
    }

    /// How many bytes lie in it.
    fn waiting(&self) -> usize {
        let bytes = rustix::io::ioctl_fionread(&self.0).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Takes up to `count` bytes out; how many it got. A build may have taken them first.
    fn take(&self, count: usize) -> usize {
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while taken < count {
            let wanted = buffer.len().min(count - taken);
            match (&self.0).read(&mut buffer[..wanted]) {
                Ok(0) | Err(_) => break,
                Ok(length) => taken += length,
            }
        }
        taken
    }

    /// Puts up to `count` tokens in; how many fitted.
    fn give(&self, count: usize) -> usize {
        let tokens = [b'+'; 1024];
        (&self.0).write(&tokens[..count.min(tokens.len())]).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
