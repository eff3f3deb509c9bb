//! Reading what may never end: foreign bytes, within a limit of size and patience.

use std::io::{Error, ErrorKind, Read, Result};
use std::time::{Duration, Instant};

/// How slow a transfer may be: after `grace`, an average of `bytes_per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For so long nothing is expected.
    pub grace: Duration,
    /// What is expected then, on average since the beginning.
    pub bytes_per_second: u64,
}

impl Default for Patience {
    /// A minute, then 2 KiB/s: any line that can be worked with is far above.
    fn default() -> Patience {
        Patience { grace: Duration::from_secs(60), bytes_per_second: 2 << 10 }
    }
}

/// Less came than is expected.
#[derive(Debug, thiserror::Error)]
#[error("only {bytes} bytes came in {seconds} seconds")]
pub(crate) struct TooSlow {
    bytes: u64,
    seconds: u64,
}

/// A reader that gives up on a source that trickles.
///
/// It looks at the clock between reads; that one read returns at all is the transport's duty.
pub(crate) struct Patient<R> {
    from: R,
    patience: Patience,
    began: Instant,
    total: u64,
}

impl<R: Read> Patient<R> {
    pub(crate) fn new(from: R, patience: Patience) -> Patient<R> {
        Patient { from, patience, began: Instant::now(), total: 0 }
    }
}

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.from.read(buffer)?;
        self.total += count as u64;
        let elapsed = self.began.elapsed();
        let expected = self.patience.bytes_per_second.saturating_mul(elapsed.as_secs());
        if count > 0 && elapsed > self.patience.grace && self.total < expected {
            let slow = TooSlow { bytes: self.total, seconds: elapsed.as_secs() };
            return Err(Error::new(ErrorKind::TimedOut, slow));
        }
        Ok(count)
    }
}

/// Reads exactly `length` bytes, without allocating them before they are there.
pub(crate) fn read_exactly(from: &mut dyn Read, length: u64) -> Result<Vec<u8>> {
    // A length may be a lie: memory grows with what has really come.
    let mut bytes = Vec::with_capacity(length.min(4 << 20) as usize);
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(Error::new(ErrorKind::UnexpectedEof, format!("it ends after {} bytes", bytes.len())))
    }
}

/// Decompresses one zstd frame that must be all of `packed` and come to exactly `length` bytes.
pub(crate) fn decompress(packed: &[u8], length: u64) -> Result<Vec<u8>> {
    let invalid = |reason: &str| Error::new(ErrorKind::InvalidData, reason.to_owned());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?.single_frame();
    let plain = read_exactly(&mut decoder, length)?;
    if decoder.read(&mut [0])? != 0 {
        return Err(invalid("it is longer than it says"));
    }
    if !decoder.finish().is_empty() {
        return Err(invalid("it goes on after its end"));
    }
    Ok(plain)
}

/// As [`decompress`], for short frames and faster: what comes out is allocated at once.
pub(crate) fn decompress_block(packed: &[u8], length: u64) -> Result<Vec<u8>> {
    let capacity = usize::try_from(length).map_err(|_| Error::from(ErrorKind::OutOfMemory))?;
    let plain = zstd::bulk::decompress(packed, capacity)?;
    if plain.len() == capacity {
        Ok(plain)
    } else {
        Err(Error::new(ErrorKind::InvalidData, "it is shorter than it says"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_exactly_as_long_as_it_says() {
        let packed = zstd::bulk::compress(&[7; 100_000], 3).expect("compressed");
        assert_eq!(decompress(&packed, 100_000).expect("exact"), [7; 100_000]);
        for length in [0, 1, 99_999, 100_001, u64::MAX] {
            assert!(decompress(&packed, length).is_err(), "{length}");
        }
        assert!(decompress(&[&packed[..], b"x"].concat(), 100_000).is_err());
        assert!(decompress(&packed[..packed.len() - 1], 100_000).is_err());
    }

    #[test]
    fn what_trickles_is_given_up() {
        struct Trickle;
        impl Read for Trickle {
            fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
                std::thread::sleep(Duration::from_millis(100));
                buffer[0] = 0;
                Ok(1)
            }
        }
        let patience = Patience { grace: Duration::from_millis(500), bytes_per_second: 100 };
        let mut patient = Patient::new(Trickle, patience);
        let error = read_exactly(&mut patient, 1 << 30).expect_err("given up");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
