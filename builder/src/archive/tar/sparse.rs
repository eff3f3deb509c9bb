//! Where the pieces of sparse files lie: the old GNU format's maps in headers, pax's three in records or
//! before the content.

use std::io::Read;

use super::TarError;
use super::extended::MAX_EXTENTS;
use super::header::{BLOCK, number};
use crate::archive::Extent;

/// Pairs of offset and length at the beginning of `bytes`, `count` at most, as old GNU headers have
/// them; blank ones end the list.
pub(super) fn old_extents(
    bytes: &[u8],
    count: usize,
    extents: &mut Vec<Extent>,
) -> Result<(), TarError> {
    for pair in bytes.chunks_exact(24).take(count) {
        let value = |field: &[u8]| match number(field) {
            Ok(None) => Ok(None),
            Ok(Some(value)) => u64::try_from(value).map(Some).map_err(|_| TarError::SparseMap),
            Err(_) => Err(TarError::SparseMap),
        };
        let (Some(offset), Some(length)) = (value(&pair[..12])?, value(&pair[12..])?) else {
            return Ok(());
        };
        if extents.len() >= MAX_EXTENTS {
            return Err(TarError::SparseMap);
        }
        extents.push(Extent { offset, length });
    }
    Ok(())
}

/// Pairs of numbers.
pub(super) fn paired(numbers: &[u64]) -> Result<Vec<Extent>, TarError> {
    if !numbers.len().is_multiple_of(2) || numbers.len() > 2 * MAX_EXTENTS {
        return Err(TarError::SparseMap);
    }
    let extent = |pair: &[u64]| Extent { offset: pair[0], length: pair[1] };
    Ok(numbers.chunks_exact(2).map(extent).collect())
}

/// Reads the map that stands before the content in format 1.0: decimal numbers, a line each, filled up to
/// a block. Also returns how many bytes it takes.
pub(super) fn read_map(reader: &mut dyn Read) -> Result<(Vec<Extent>, u64), TarError> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut blocks = 0;
    let mut current: Option<u64> = None;
    loop {
        let mut block = [0; BLOCK];
        reader.read_exact(&mut block).map_err(TarError::reading)?;
        blocks += 1;
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let sum = current.unwrap_or(0).checked_mul(10);
                    let sum = sum.and_then(|sum| sum.checked_add(digit));
                    current = Some(sum.ok_or(TarError::SparseMap)?);
                }
                b'\n' => numbers.push(current.take().ok_or(TarError::SparseMap)?),
                _ => return Err(TarError::SparseMap),
            }
            let expected = match numbers.first() {
                None => continue,
                Some(count) if *count > MAX_EXTENTS as u64 => return Err(TarError::SparseMap),
                Some(count) => 1 + 2 * *count as usize,
            };
            if numbers.len() == expected {
                return Ok((paired(&numbers[1..])?, blocks * BLOCK as u64));
            }
        }
    }
}

/// Checks that pieces are in order, within the file, and as long in all as what is stored.
pub(super) fn check(extents: &[Extent], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut sum = 0;
    for extent in extents {
        if extent.offset < end {
            return Err(TarError::SparseMap);
        }
        end = extent.offset.checked_add(extent.length).ok_or(TarError::SparseMap)?;
        sum += extent.length;
    }
    if end > size || sum != stored { Err(TarError::SparseMap) } else { Ok(()) }
}
