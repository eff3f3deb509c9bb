//! The crowd: who is connected, who is answered, and who goes when there are too many.
//!
//! A connection that asks nothing yet costs a thread that sleeps and a descriptor, so there may be
//! many; an answer takes one of few slots. Both are shared out by address: no address has more
//! than three quarters of either, a slot goes to the address that has fewest, and whoever has to
//! go is taken from the address that has most: a head that doesn't come, a connection that is
//! idle, a client that takes next to nothing while others wait.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// How often somebody who waits for a slot looks whether one is held by a client that stalls.
const LOOK: Duration = Duration::from_millis(250);
/// While others wait, a client has to take so many bytes within so long.
const PRESSED_BYTES: u64 = 32 << 10;
const PRESSED: Duration = Duration::from_secs(3);
/// A head is on its way for so long before it is the first to go.
const PROMPT: Duration = Duration::from_secs(1);

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Crowd {
    /// How many may be connected.
    open: usize,
    /// How many may be answered at a time.
    slots: usize,
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug)]
struct State {
    next: u64,
    members: BTreeMap<u64, Member>,
    ending: bool,
    /// When somebody last looked for clients that stall.
    looked: Instant,
}

#[derive(Debug)]
struct Member {
    client: Client,
    socket: Arc<TcpStream>,
    taken: Arc<AtomicU64>,
    phase: Phase,
    since: Instant,
}

/// What a connection is doing.
#[derive(Clone, Debug)]
enum Phase {
    /// It was served, and asks nothing.
    Idle,
    /// Its first byte, a handshake or the rest of a head is awaited.
    Asking,
    /// Its request is there, and waits for a slot.
    Waiting(Thread),
    /// It has a slot, and what it asks for is being found.
    Preparing,
    /// It has a slot, and is being sent to: how much it had taken when it was last seen to go on.
    Sending { seen: Instant, taken: u64 },
    /// It was told to go, and its thread hasn't noticed yet; whether it has a slot.
    Leaving(bool),
}

/// Who is at the other end, as far as shares go: an address, or all that share an IPv6 network,
/// which is what one machine is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Client(IpAddr);

/// A connection's place in the crowd; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    taken: Arc<AtomicU64>,
}

impl Crowd {
    pub(super) fn new(open: usize, slots: usize) -> Crowd {
        let slots = slots.max(1);
        Crowd {
            open: open.max(slots),
            slots,
            state: Mutex::new(State {
                next: 0,
                members: BTreeMap::new(),
                ending: false,
                looked: Instant::now(),
            }),
            left: Condvar::new(),
        }
    }

    /// Takes a connection in; somebody may have to go for it. None if there is no place for it.
    pub(super) fn enter(
        self: &Arc<Crowd>,
        socket: &Arc<TcpStream>,
        address: IpAddr,
    ) -> Option<Place> {
        let client = Client::of(address);
        let mut state = self.state();
        let present = state.present(|_| true);
        let own = state.present(|member| member.client == client);
        if own >= share(self.open) {
            state.make_room(Some(client), own)?;
        } else if present >= self.open {
            state.make_room(None, own)?;
        }
        let (id, taken) = (state.next, Arc::<AtomicU64>::default());
        state.next += 1;
        let member = Member {
            client,
            socket: Arc::clone(socket),
            taken: Arc::clone(&taken),
            phase: Phase::Asking,
            since: Instant::now(),
        };
        state.members.insert(id, member);
        Some(Place { crowd: Arc::clone(self), id, taken })
    }

    /// Makes room where descriptors ran out before places did.
    pub(super) fn thin_out(&self) {
        let _ = self.state().make_room(None, 0);
    }

    /// Lets go of all that aren't being answered, gives the others so much time, and ends them.
    pub(super) fn end(&self, farewell: Duration) {
        let mut state = self.state();
        state.ending = true;
        for member in state.members.values_mut().filter(|member| !member.phase.has_slot()) {
            member.leave();
        }
        let busy = |state: &mut State| !state.members.is_empty();
        let waited = self.left.wait_timeout_while(state, farewell, busy);
        let mut state = waited.expect("no holder panics").0;
        state.members.values_mut().for_each(Member::leave);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl Place {
    /// How many bytes were taken, for whoever writes to count.
    pub(super) fn taken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }

    /// It was served, and may ask again; whether it is to stay.
    pub(super) fn idle(&self) -> bool {
        self.turn(Phase::Idle)
    }

    /// A head has begun; whether it is to stay.
    pub(super) fn asking(&self) -> bool {
        self.turn(Phase::Asking)
    }

    /// What was asked for is there, and is sent from here on.
    pub(super) fn sending(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        self.turn(Phase::Sending { seen: Instant::now(), taken })
    }

    /// Waits for a slot; false if it has to go.
    pub(super) fn wait(&self) -> bool {
        loop {
            let mut state = self.crowd.state();
            let ending = state.ending;
            let Some(member) = state.members.get_mut(&self.id) else { return false };
            match member.phase {
                Phase::Preparing => return true,
                Phase::Waiting(_) => {}
                Phase::Leaving(_) => return false,
                _ if ending => return false,
                _ => member.turn(Phase::Waiting(std::thread::current())),
            }
            state.grant(self.crowd.slots);
            if matches!(state.members[&self.id].phase, Phase::Preparing) {
                return true;
            }
            state.press(self.crowd.slots);
            drop(state);
            std::thread::park_timeout(LOOK);
        }
    }

    /// Goes over to another phase, unless it has to go. A slot that it had is free.
    fn turn(&self, phase: Phase) -> bool {
        let mut state = self.crowd.state();
        let ending = state.ending && !phase.has_slot();
        let Some(member) = state.members.get_mut(&self.id) else { return false };
        if ending || matches!(member.phase, Phase::Leaving(_)) {
            return false;
        }
        member.turn(phase);
        state.grant(self.crowd.slots);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.crowd.state();
        state.members.remove(&self.id);
        state.grant(self.crowd.slots);
        drop(state);
        self.crowd.left.notify_all();
    }
}

impl State {
    /// How many are there, but for those that are on their way out.
    fn present(&self, of: impl Fn(&Member) -> bool) -> usize {
        let present = |member: &&Member| !matches!(member.phase, Phase::Leaving(_)) && of(member);
        self.members.values().filter(present).count()
    }

    /// Gives free slots to those who wait: to who has fewest, and of them to who came first.
    fn grant(&mut self, slots: usize) {
        let mut held: BTreeMap<Client, usize> = BTreeMap::new();
        let holders = self.members.values().filter(|member| member.phase.has_slot());
        holders.for_each(|member| *held.entry(member.client).or_default() += 1);
        let mut free = slots.saturating_sub(held.values().sum());
        while free > 0 && !self.ending {
            let waiting = self.members.iter_mut().filter(|(_, member)| member.phase.is_waiting());
            let of = |client: Client| held.get(&client).copied().unwrap_or_default();
            let next = waiting
                .map(|(id, member)| (of(member.client), member.since, *id, member))
                .filter(|(held, ..)| *held < share(slots))
                .min_by_key(|(held, since, id, _)| (*held, *since, *id));
            let Some((.., member)) = next else { return };
            if let Phase::Waiting(thread) = &member.phase {
                thread.unpark();
            }
            member.turn(Phase::Preparing);
            *held.entry(member.client).or_default() += 1;
            free -= 1;
        }
    }

    /// Ends what is sent to clients that take next to nothing, as far as others wait for it.
    fn press(&mut self, slots: usize) {
        let now = Instant::now();
        let since = now.duration_since(self.looked);
        if since < LOOK {
            return;
        }
        // How fast it went while nobody waited is nobody's matter.
        let afresh = since > 4 * LOOK;
        self.looked = now;
        let full = self.members.values().filter(|it| it.phase.has_slot()).count() >= slots;
        let waiting = self.members.values().filter(|member| member.phase.is_waiting());
        let waiting: Vec<Client> = waiting.map(|member| member.client).collect();
        let mut stalled = Vec::new();
        for (id, member) in &mut self.members {
            let Phase::Sending { seen, taken } = &mut member.phase else { continue };
            let total = member.taken.load(Ordering::Relaxed);
            if afresh || total - *taken >= PRESSED_BYTES {
                (*seen, *taken) = (now, total);
            } else if now.duration_since(*seen) >= PRESSED
                && (full || waiting.contains(&member.client))
            {
                stalled.push((*seen, *id));
            }
        }
        stalled.sort_unstable();
        for (_, id) in stalled.into_iter().take(waiting.len()) {
            if let Some(member) = self.members.get_mut(&id) {
                tracing::debug!(client = %member.client.0, "too slow while others wait");
                member.leave();
            }
        }
    }

    /// Lets somebody go: of one client, or of that which has most. `own` is how many the newcomer's
    /// address has: for it nobody goes whose address has no more.
    fn make_room(&mut self, of: Option<Client>, own: usize) -> Option<()> {
        let now = Instant::now();
        let rank = |member: &Member| match member.phase {
            Phase::Asking if now.duration_since(member.since) > PROMPT => Some(0),
            Phase::Idle => Some(1),
            Phase::Asking => Some(2),
            _ => None,
        };
        let counts = self.members.values().fold(BTreeMap::new(), |mut counts, member| {
            *counts.entry(member.client).or_insert(0) += 1;
            counts
        });
        let among = |member: &Member| of.is_none_or(|of| member.client == of);
        let idle = self.members.iter().filter(|(_, member)| among(member));
        let idle = idle.filter_map(|(id, member)| {
            Some((std::cmp::Reverse(counts[&member.client]), rank(member)?, member.since, *id))
        });
        let mut victim = idle.min().map(|(.., id)| id);
        if victim.is_none() && of.is_none() {
            let waiting = self.members.iter().filter(|(_, member)| {
                member.phase.is_waiting() && counts[&member.client] > own + 1
            });
            victim = waiting
                .max_by_key(|(_, member)| (counts[&member.client], member.since))
                .map(|(id, _)| *id);
        }
        self.members.get_mut(&victim?)?.leave();
        Some(())
    }
}

impl Member {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// Tells its thread to end, wherever it waits, and forgets what wasn't sent.
    fn leave(&mut self) {
        if let Phase::Waiting(thread) = &self.phase {
            thread.unpark();
        }
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = setsockopt(&self.socket, sockopt::Linger, &linger);
        let _ = self.socket.shutdown(Shutdown::Both);
        self.turn(Phase::Leaving(self.phase.has_slot()));
    }
}

impl Phase {
    fn has_slot(&self) -> bool {
        matches!(self, Phase::Preparing | Phase::Sending { .. } | Phase::Leaving(true))
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Phase::Waiting(_))
    }
}

impl Client {
    fn of(address: IpAddr) -> Client {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Client(IpAddr::V6(Ipv6Addr::from(network)))
            }
            address => Client(address),
        }
    }
}

/// What one address may have of so many.
fn share(of: usize) -> usize {
    (of * 3 / 4).max(1)
}
