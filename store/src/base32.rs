//! Base 32 of exactly 20 bytes, for object ids in file names.
//!
//! Crockford's alphabet in lower case (no `i`, `l`, `o`, `u`), most significant bit first, no
//! padding: 160 bits are 32 characters. One value has one spelling; this isn't a general codec.

use crate::digest::ObjectId;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The 32 characters of 20 bytes.
pub(crate) fn encode(bytes: &[u8; ObjectId::LENGTH]) -> String {
    let mut text = String::with_capacity(ObjectId::TEXT_LENGTH);
    for group in bytes.chunks_exact(5) {
        let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        for position in (0..8).rev() {
            text.push(char::from(ALPHABET[(bits >> (5 * position) & 31) as usize]));
        }
    }
    text
}

/// The 20 bytes of 32 characters, or nothing if that isn't what they are.
pub(crate) fn decode(text: &str) -> Option<[u8; ObjectId::LENGTH]> {
    if text.len() != ObjectId::TEXT_LENGTH {
        return None;
    }
    let mut bytes = [0; ObjectId::LENGTH];
    for (group, chunk) in text.as_bytes().chunks_exact(8).zip(bytes.chunks_exact_mut(5)) {
        let mut bits = 0u64;
        for character in group {
            bits = bits << 5 | ALPHABET.iter().position(|known| known == character)? as u64;
        }
        chunk.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    Some(bytes)
}
