//! The stall guard: notices when, second after second, too little arrives.

use std::time::Duration;

/// The least speed that a transfer may have, and for how long it may be slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LowSpeed {
    pub(crate) bytes_per_second: u64,
    pub(crate) seconds: u64,
}

impl Default for LowSpeed {
    fn default() -> Self {
        Self { bytes_per_second: 1024, seconds: 30 }
    }
}

/// How a transfer is getting on.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: LowSpeed,
    /// What was waited, and what came, since speed was last computed.
    waited: Duration,
    bytes: u64,
    /// For how long it has been too slow.
    slow: Duration,
}

impl Pace {
    pub(crate) fn new(limit: LowSpeed) -> Self {
        Self { limit, waited: Duration::ZERO, bytes: 0, slow: Duration::ZERO }
    }

    /// So many bytes came after so much waiting for them, time that the reader spent on other things not
    /// counted. Whether the transfer is to be given up.
    pub(crate) fn is_too_slow(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < Duration::from_secs(1) {
            return false;
        }
        let per_second = u128::from(self.bytes) * 1000 / self.waited.as_millis();
        let slow = per_second < u128::from(self.limit.bytes_per_second);
        self.slow = if slow { self.slow + self.waited } else { Duration::ZERO };
        self.waited = Duration::ZERO;
        self.bytes = 0;
        self.slow >= Duration::from_secs(self.limit.seconds.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_slow_only_after_slow_seconds_on_end() {
        let limit = LowSpeed { bytes_per_second: 100, seconds: 3 };
        let mut pace = Pace::new(limit);
        let tick = Duration::from_millis(500);
        let mut ticks = |count: usize, bytes: u64| {
            (0..count).map(|_| pace.is_too_slow(tick, bytes)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(5, 1), [false; 5]);
        // One fast second, and the count begins anew.
        assert_eq!(ticks(3, 100), [false; 3]);
        assert_eq!(ticks(4, 49), [false; 4]);
        assert_eq!(ticks(2, 49), [false, true]);
    }

    #[test]
    fn one_long_wait_counts_as_long_as_it_was() {
        let mut pace = Pace::new(LowSpeed { bytes_per_second: 100, seconds: 3 });
        assert!(pace.is_too_slow(Duration::from_secs(4), 399));
        assert!(!Pace::new(LowSpeed::default()).is_too_slow(Duration::from_secs(4), 5000));
    }
}
