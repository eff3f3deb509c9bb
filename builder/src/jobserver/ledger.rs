//! Who has how many tokens, who should get and who should give: the job server without I/O.
//!
//! What a build wants can't be asked. That its FIFO is empty is the only sign, and a build that
//! knows no job server shows it too. So hunger is tested by a token: one that nobody takes is
//! taken back when others want it, and the next one is offered after a pause that doubles.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The pause after the first token that a build left lying, and the longest.
const PATIENCE: Duration = Duration::from_millis(50);
const PATIENCE_MAX: Duration = Duration::from_millis(800);

/// How long a token has to lie in a FIFO, at least, before it counts as not wanted there.
const SETTLE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Ledger {
    cores: usize,
    accounts: BTreeMap<u64, Account>,
}

#[derive(Debug)]
struct Account {
    reserved: usize,
    /// Tokens in its FIFO or used by it.
    handed: usize,
    /// Tokens (at most `handed`) that were in its FIFO when it was last looked at.
    idle: usize,
    /// The fewest that were in it since `low_since`.
    idle_low: usize,
    low_since: Instant,
    /// How many of those in it nobody took for [`SETTLE`].
    stale: usize,
    /// Its FIFO holds more than it was handed: it gets nothing until that is drained.
    flooded: bool,
    patience: Duration,
    next_offer: Instant,
}

impl Account {
    fn is_hungry(&self, now: Instant) -> bool {
        self.idle == 0 && !self.flooded && self.next_offer <= now
    }
}

impl Ledger {
    pub(super) fn new(cores: usize) -> Ledger {
        Ledger { cores, accounts: BTreeMap::new() }
    }

    pub(super) fn register(&mut self, id: u64, reserved: usize, now: Instant) {
        let account = Account {
            reserved,
            handed: 0,
            idle: 0,
            idle_low: 0,
            low_since: now,
            stale: 0,
            flooded: false,
            patience: PATIENCE,
            next_offer: now,
        };
        self.accounts.insert(id, account);
    }

    /// Forgets a build; how many tokens it had.
    pub(super) fn unregister(&mut self, id: u64) -> usize {
        self.accounts.remove(&id).map_or(0, |account| account.handed)
    }

    pub(super) fn handed_to(&self, id: u64) -> usize {
        self.accounts.get(&id).map_or(0, |account| account.handed)
    }

    pub(super) fn handed(&self) -> usize {
        self.accounts.values().map(|account| account.handed).sum()
    }

    /// How many tokens there may be.
    fn pool(&self) -> usize {
        let reserved = self.accounts.values().map(|account| account.reserved).sum();
        self.cores.saturating_sub(reserved)
    }

    pub(super) fn spare(&self) -> usize {
        let used: usize = self.accounts.values().map(|account| account.handed - account.idle).sum();
        self.pool().saturating_sub(used)
    }

    /// What every build may have when all want all; one at least, as long as there is one.
    fn share(&self) -> usize {
        (self.pool() / self.accounts.len().max(1)).max(1)
    }

    /// Notes that `waiting` bytes are in a build's FIFO.
    pub(super) fn observe(&mut self, id: u64, waiting: usize, now: Instant) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        account.flooded = waiting > account.handed;
        let idle_before = std::mem::replace(&mut account.idle, waiting.min(account.handed));
        account.idle_low = account.idle_low.min(account.idle);
        account.stale = 0;
        if now.duration_since(account.low_since) >= SETTLE {
            account.stale = account.idle_low;
            account.idle_low = account.idle;
            account.low_since = now;
        }
        if account.idle == 0 && idle_before > 0 {
            // It took what it was offered: it wants tokens after all.
            account.patience = PATIENCE;
            account.next_offer = now;
        }
    }

    /// The tokens to take back, most from whoever has most: what registering a build reserved,
    /// and, while others are hungry, what lies unused or is above a fair share.
    pub(super) fn reclaims(&self, now: Instant) -> Vec<(u64, usize)> {
        let pool = self.pool();
        let mut owed = self.handed().saturating_sub(pool);
        let free = pool.saturating_sub(self.handed());
        let share = self.share();
        let hungry: Vec<usize> = self
            .accounts
            .values()
            .filter(|account| account.is_hungry(now))
            .map(|account| account.handed)
            .collect();
        let wanted = pool > 0 && free == 0 && !hungry.is_empty();
        let below_share = wanted && hungry.iter().any(|&handed| handed < share);

        let mut accounts: Vec<(&u64, &Account)> =
            self.accounts.iter().filter(|(_, account)| account.idle > 0).collect();
        accounts.sort_by_key(|(_, account)| std::cmp::Reverse(account.handed));
        let mut reclaims = Vec::new();
        for (&id, account) in accounts {
            let stale = if wanted { account.stale } else { 0 };
            let above = if below_share { account.handed.saturating_sub(share) } else { 0 };
            let tokens = owed.max(stale).max(above).min(account.idle);
            owed = owed.saturating_sub(tokens);
            if tokens > 0 {
                reclaims.push((id, tokens));
            }
        }
        reclaims
    }

    /// Notes that `tokens` came back from a build's FIFO.
    pub(super) fn taken(&mut self, id: u64, tokens: usize, now: Instant) {
        let share = self.share();
        let Some(account) = self.accounts.get_mut(&id) else { return };
        account.handed -= tokens.min(account.handed);
        account.idle = account.idle.saturating_sub(tokens).min(account.handed);
        if account.stale > 0 && account.idle == 0 && account.handed < share {
            // Nobody took what it had: let it be offered another, but not at once.
            account.next_offer = now + account.patience;
            account.patience = (account.patience * 2).min(PATIENCE_MAX);
        }
        account.idle_low = account.idle_low.min(account.idle);
    }

    /// The tokens to hand out, one by one to whoever of the hungry has fewest. A build's tokens at
    /// most double in a round: builds that start together then start alike.
    pub(super) fn grants(&self, now: Instant) -> Vec<(u64, usize)> {
        let mut free = self.pool().saturating_sub(self.handed());
        // (what it will have, id, what it gets, what it may get)
        let mut hungry: Vec<(usize, u64, usize, usize)> = self
            .accounts
            .iter()
            .filter(|(_, account)| account.is_hungry(now))
            .map(|(&id, account)| (account.handed, id, 0, account.handed.max(1)))
            .collect();
        while free > 0 {
            let poorest = hungry.iter_mut().filter(|(_, _, gets, may)| gets < may).min();
            let Some((has, _, gets, _)) = poorest else { break };
            *has += 1;
            *gets += 1;
            free -= 1;
        }
        hungry.into_iter().filter(|grant| grant.2 > 0).map(|grant| (grant.1, grant.2)).collect()
    }

    /// Notes that `tokens` were put into a build's FIFO.
    pub(super) fn given(&mut self, id: u64, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&id) {
            account.handed += tokens;
            account.idle += tokens;
        }
    }

    /// The builds that use more than their share while another, hungry, has less than its own.
    /// Their FIFOs are empty, so that waiting for a byte in them is waiting.
    pub(super) fn contended(&self, now: Instant) -> Vec<u64> {
        let share = self.share();
        let starving = self.handed() >= self.pool()
            && self
                .accounts
                .values()
                .any(|a| a.is_hungry(now) && a.handed < share.min(self.pool()));
        let above = |account: &Account| account.handed > share && account.idle == 0;
        if !starving {
            return Vec::new();
        }
        self.accounts.iter().filter(|(_, a)| above(a)).map(|(&id, _)| id).collect()
    }
}
