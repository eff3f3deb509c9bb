//! Deltas: a file that makes a new file of an old one.
//!
//! ```text
//! "srp delta 1\n", method ("prefix" or "add"), length of the new file
//! prefix   a zstd frame whose prefix is the old file (`zstd --patch-from`)
//! add      five times a plain length and a zstd frame with its length:
//!          steps   add length, copy length, seek (three integers each)
//!          gaps    how many zeros come before each run (integers, see below)
//!          runs    how long each run is
//!          values  the bytes of the runs
//!          copies  bytes that are only in the new file
//! ```
//!
//! `add` is bsdiff's idea, for machine code: where code moved, its addresses all change by the
//! same small numbers, so the difference of the bytes is almost everywhere zero. A step takes `add
//! length` bytes of the old file at a position (0 at first), adds the differences, appends `copy
//! length` bytes of `copies`, and moves the position by `add length` and `seek` (two's complement).
//! All differences one after the other are zeros with runs of other bytes between; gaps and
//! lengths of runs are written in 7 bits a byte, the lowest first, the top bit meaning "more".
//! Suffix sorting is `bidiff`'s; only the encoding is ours. Applying never panics, never writes
//! more than the new file's length, and holds the old file and the delta in memory, no more.

use std::io::{Error, ErrorKind, Read, Result, Write};

use zstd::stream::raw::{CParameter, DParameter};

use crate::cache::limited::read_exactly;
use crate::encode::{DecodeError, Decoder, Encoder};

pub(crate) const MAGIC: &[u8] = b"srp delta 1\n";
/// Files beyond this get no delta: making one takes five times as much memory.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;
/// Files below this get no delta: a request costs as much as they do.
pub(crate) const MIN_FILE_BYTES: u64 = 1 << 20;
/// A delta must be at most so many percent of what it saves.
pub(crate) const WORTH_PERCENT: u64 = 75;
const PREFIX_LEVEL: i32 = 9;
const ADD_LEVEL: i32 = 15;
/// How much of a file is worked on at a time.
const CHUNK: usize = 256 << 10;

/// The smallest delta that makes `new` of `old`.
pub(crate) fn make(old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let add = by_adding(old, new)?;
    let prefix = by_prefix(old, new)?;
    Ok(if prefix.len() < add.len() { prefix } else { add })
}

fn begin(method: &str, length: usize) -> Encoder {
    let mut encoder = Encoder::default();
    encoder.raw(MAGIC);
    encoder.text(method);
    encoder.integer(length as u64);
    encoder
}

fn by_prefix(old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let mut packed = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), PREFIX_LEVEL, old)?;
    packed.set_parameter(CParameter::WindowLog(window_log(old.len(), new.len())))?;
    packed.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
    packed.set_pledged_src_size(Some(new.len() as u64))?;
    packed.write_all(new)?;
    let mut delta = begin("prefix", new.len());
    delta.raw(&packed.finish()?);
    Ok(delta.finish())
}

/// A window that reaches from the new file's end to the old one's beginning.
fn window_log(old: usize, new: usize) -> u32 {
    (old + new).next_power_of_two().trailing_zeros().clamp(20, 30)
}

fn by_adding(old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let mut streams = Streams::default();
    if old.is_empty() {
        // Suffix sorting can't do with nothing.
        streams.push(&bidiff::Control { add: &[], copy: new, seek: 0 })?;
        return streams.finish(new.len());
    }
    let mut on_control = |control: &bidiff::Control<'_>| streams.push(control);
    let mut translator = bidiff::Translator::new(old, new, &mut on_control);
    bidiff::diff(old, new, &bidiff::DiffParams::default(), |found| translator.translate(found))?;
    translator.close()?;
    streams.finish(new.len())
}

#[derive(Default)]
struct Streams {
    steps: Vec<u8>,
    gaps: Vec<u8>,
    runs: Vec<u8>,
    values: Vec<u8>,
    copies: Vec<u8>,
    /// Zeros since the last run.
    gap: u64,
    steps_made: usize,
}

impl Streams {
    fn push(&mut self, control: &bidiff::Control<'_>) -> Result<()> {
        if control.add.is_empty() && control.copy.is_empty() && self.steps_made > 0 {
            // Steps that do nothing are refused by the reader: they could go on forever.
            let at = self.steps.len() - 8;
            let mut seek = [0; 8];
            seek.copy_from_slice(&self.steps[at..]);
            let seek = i64::from_le_bytes(seek) + control.seek;
            self.steps[at..].copy_from_slice(&seek.to_le_bytes());
            return Ok(());
        }
        for number in [control.add.len() as u64, control.copy.len() as u64] {
            self.steps.extend_from_slice(&number.to_le_bytes());
        }
        self.steps.extend_from_slice(&control.seek.to_le_bytes());
        self.steps_made += 1;
        self.copies.extend_from_slice(control.copy);
        let mut rest = control.add;
        while let Some(zeros) = rest.iter().position(|byte| *byte != 0) {
            let run = &rest[zeros..];
            let length = run.iter().position(|byte| *byte == 0).unwrap_or(run.len());
            put_number(&mut self.gaps, self.gap + zeros as u64);
            put_number(&mut self.runs, length as u64);
            self.values.extend_from_slice(&run[..length]);
            self.gap = 0;
            rest = &run[length..];
        }
        self.gap += rest.len() as u64;
        Ok(())
    }

    fn finish(self, length: usize) -> Result<Vec<u8>> {
        let mut delta = begin("add", length);
        for stream in [self.steps, self.gaps, self.runs, self.values, self.copies] {
            delta.integer(stream.len() as u64);
            delta.bytes(&zstd::bulk::compress(&stream, ADD_LEVEL)?);
        }
        Ok(delta.finish())
    }
}

fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Makes the new file of the old one; `length` is what it must come to.
pub(crate) fn apply(old: &[u8], delta: &[u8], length: u64, to: &mut dyn Write) -> Result<()> {
    let rest = delta.strip_prefix(MAGIC).ok_or_else(|| invalid("it is no delta"))?;
    let mut decoder = Decoder::new(rest);
    let method = decoder.text().map_err(malformed)?;
    if decoder.integer().map_err(malformed)? != length || length > MAX_FILE_BYTES {
        return Err(invalid("it makes a file of another length"));
    }
    match method {
        "prefix" => apply_prefix(old, decoder.rest(), length, to),
        "add" => apply_adding(old, &mut decoder, length, to),
        _ => Err(invalid("its method is unknown")),
    }
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidData, reason.to_owned())
}

fn malformed(error: DecodeError) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

fn apply_prefix(old: &[u8], packed: &[u8], length: u64, to: &mut dyn Write) -> Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(packed, old)?;
    let window = window_log(old.len(), length as usize);
    decoder.set_parameter(DParameter::WindowLogMax(window))?;
    let mut left = length;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = decoder.read(&mut buffer)?;
        if count == 0 {
            return if left == 0 { Ok(()) } else { Err(invalid("it ends early")) };
        }
        left = left.checked_sub(count as u64).ok_or_else(|| invalid("it goes on too long"))?;
        to.write_all(&buffer[..count])?;
    }
}

type Stream<'a> = std::io::BufReader<zstd::stream::read::Decoder<'a, &'a [u8]>>;

fn apply_adding(
    old: &[u8],
    decoder: &mut Decoder<'_>,
    length: u64,
    to: &mut dyn Write,
) -> Result<()> {
    let mut stream = || {
        // The plain length is for people: what is read is bounded by the new file's length.
        decoder.integer().map_err(malformed)?;
        let packed = decoder.bytes().map_err(malformed)?;
        let stream = zstd::stream::read::Decoder::with_buffer(packed)?;
        Ok::<_, Error>(std::io::BufReader::new(stream))
    };
    let (mut steps, gaps, runs) = (stream()?, stream()?, stream()?);
    let (values, mut copies) = (stream()?, stream()?);
    let mut differences = Differences { gaps, runs, values, gap: None, run: 0 };
    let mut left = length;
    let (mut position, mut first) = (0i64, true);
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let mut integer = || {
            let mut bytes = [0; 8];
            steps.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        let (add, copy, seek) = (integer()?, integer()?, integer()? as i64);
        // A step that does nothing is possible at the beginning only, to get to a position.
        left = (add > 0 || copy > 0 || std::mem::take(&mut first))
            .then(|| left.checked_sub(add)?.checked_sub(copy))
            .flatten()
            .ok_or_else(|| invalid("a step is longer than what is to be made"))?;
        let from = usize::try_from(position).ok().and_then(|from| {
            let end = from.checked_add(usize::try_from(add).ok()?)?;
            old.get(from..end)
        });
        let from = from.ok_or_else(|| invalid("a step leaves the old file"))?;
        for part in from.chunks(CHUNK) {
            let made = &mut buffer[..part.len()];
            made.copy_from_slice(part);
            differences.add_to(made)?;
            to.write_all(made)?;
        }
        let mut rest = copy;
        while rest > 0 {
            let part = &mut buffer[..rest.min(CHUNK as u64) as usize];
            copies.read_exact(part)?;
            to.write_all(part)?;
            rest -= part.len() as u64;
        }
        position = position
            .checked_add_unsigned(add)
            .and_then(|position| position.checked_add(seek))
            .ok_or_else(|| invalid("a step leaves the old file"))?;
    }
    Ok(())
}

/// The differences, as one stream of bytes that are mostly zero.
struct Differences<'a> {
    gaps: Stream<'a>,
    runs: Stream<'a>,
    values: Stream<'a>,
    /// Zeros before the next run; none if it has not been read.
    gap: Option<u64>,
    /// What is left of the run.
    run: u64,
}

impl Differences<'_> {
    fn add_to(&mut self, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.run > 0 {
                let count = self.run.min(bytes.len() as u64) as usize;
                for (byte, difference) in
                    bytes[..count].iter_mut().zip(read_exactly(&mut self.values, count as u64)?)
                {
                    *byte = byte.wrapping_add(difference);
                }
                self.run -= count as u64;
                bytes = &mut bytes[count..];
                continue;
            }
            let gap = match self.gap {
                Some(gap) => gap,
                // After the last run everything is zero.
                None => number(&mut self.gaps)?.unwrap_or(u64::MAX),
            };
            let count = gap.min(bytes.len() as u64) as usize;
            bytes = &mut bytes[count..];
            let gap = if gap == u64::MAX { gap } else { gap - count as u64 };
            self.gap = Some(gap);
            if gap == 0 {
                let run = number(&mut self.runs)?.filter(|run| *run > 0);
                self.run = run.ok_or_else(|| invalid("a run is missing"))?;
                self.gap = None;
            }
        }
        Ok(())
    }
}

/// A number of at most 63 bits, or none at the end.
fn number(from: &mut impl Read) -> Result<Option<u64>> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let mut byte = [0];
        if from.read(&mut byte)? == 0 {
            return if shift == 0 { Ok(None) } else { Err(invalid("a number is cut off")) };
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    Err(invalid("a number is too long"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(old: &[u8], delta: &[u8], length: usize) -> Result<Vec<u8>> {
        let mut made = Vec::new();
        apply(old, delta, length as u64, &mut made).map(|()| made)
    }

    /// Bytes like code: addresses of things that move by `shift`.
    fn code(shift: u32) -> Vec<u8> {
        let mut bytes = vec![0x90; shift as usize];
        let mut state = 1u32;
        for _ in 0..20_000 {
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bytes.extend_from_slice(&state.to_be_bytes());
            }
            bytes.extend_from_slice(&((state >> 7) % 100_000 * 8 + shift).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn both_methods_make_the_new_file_and_code_prefers_adding() {
        let (old, new) = (code(0), code(64));
        for delta in [by_prefix(&old, &new), by_adding(&old, &new), make(&old, &new)] {
            assert_eq!(applied(&old, &delta.expect("made"), new.len()).expect("applied"), new);
        }
        let sizes =
            [by_prefix(&old, &new), by_adding(&old, &new)].map(|it| it.expect("made").len());
        assert!(sizes[1] * 3 < sizes[0], "{sizes:?}");
    }

    #[test]
    fn lies_are_errors() {
        let (old, new) = (code(0), code(8));
        for delta in [by_prefix(&old, &new), by_adding(&old, &new)].map(|it| it.expect("made")) {
            assert!(applied(&old, &delta, new.len() + 1).is_err());
            assert!(applied(&old, &delta[..delta.len() / 2], new.len()).is_err());
            for index in (0..delta.len()).step_by(delta.len() / 200 + 1) {
                let mut flipped = delta.clone();
                flipped[index] ^= 0x55;
                // An error, or another file that its digest gives away; and never more than it may.
                if let Ok(made) = applied(&old, &flipped, new.len()) {
                    assert_eq!(made.len(), new.len());
                }
                assert!(
                    applied(&old[..10], &flipped, new.len()).map_or(0, |it| it.len()) <= new.len()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_the_files_are(old: Vec<u8>, new: Vec<u8>) {
            for delta in [by_prefix(&old, &new), by_adding(&old, &new)] {
                let delta = delta.expect("made");
                prop_assert_eq!(applied(&old, &delta, new.len()).expect("applied"), &new[..]);
            }
        }
    }
}
