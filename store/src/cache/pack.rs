//! Packs: a tree's files in compressed blocks, and the index that says where each is.
//!
//! ```text
//! "srp pack 1\n"
//! blocks      zstd frames, one after the other; decompressed and put together they are the
//!             stream: every distinct file that isn't empty, once, in the index's order
//! index       a zstd frame: listing (bytes), order (bytes), blocks (list)
//!             order: for each file of the stream its number, 4 bytes, little endian; files are
//!                    numbered from 0 as the listing's walk first meets them
//!             block: packed length, plain length (integers), digest of the packed bytes
//! ```
//!
//! An index can say nothing that the listing doesn't bear out: files and their lengths are the
//! listing's, which hashes to the tree's digest; blocks must fill the pack and the stream exactly.
//! The order puts similar files side by side (by extension, then path), so that a block
//! compresses well; it is the writer's choice and no part of the format. Pure: no I/O, no panic.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::cache::closure::Location;
use crate::cache::limited::decompress;
use crate::digest::Digest;
use crate::encode::{Decoder, Encoder};
use crate::listing::Listing;
use crate::tree::Entry;

/// What a pack begins with.
pub(crate) const MAGIC: &[u8] = b"srp pack 1\n";
/// How much content a block holds at most when it is written here.
pub(crate) const BLOCK_BYTES: u64 = 1 << 20;
/// How much content a block may hold at most when it is read.
const MAX_BLOCK_BYTES: u64 = 8 << 20;
/// The longest index, decompressed: room for two million files.
const MAX_INDEX_BYTES: u64 = 512 << 20;
/// The most files, symlinks and directories of one tree.
const MAX_ENTRIES: u64 = 4_000_000;
/// The most content of one tree.
const MAX_TREE_BYTES: u64 = 1 << 40;

/// A pack's index.
#[derive(Clone, Debug)]
pub struct Index {
    /// The tree's directories.
    pub listing: Arc<Listing>,
    /// The files of the stream, in its order.
    pub files: Vec<PackedFile>,
    /// The blocks, in their order.
    pub blocks: Vec<Block>,
}

/// A file in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedFile {
    /// Its digest.
    pub digest: Digest,
    /// Its length, at least 1.
    pub size_bytes: u64,
    /// Where it begins in the stream.
    pub start: u64,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it begins in the pack.
    pub offset: u64,
    /// Its length in the pack.
    pub packed_bytes: u64,
    /// Where its content begins in the stream.
    pub start: u64,
    /// The length of its content.
    pub plain_bytes: u64,
    /// The digest of its bytes as they lie in the pack.
    pub digest: Digest,
}

/// A part of a file that is in one block: indices into [`Index::files`], and bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Index {
    /// The index that `packed` is, of the tree with the digest `tree`; or what is wrong with it.
    pub fn decode(packed: &[u8], location: &Location, tree: &Digest) -> Result<Index, String> {
        if location.index_plain_bytes > MAX_INDEX_BYTES {
            return Err("its index is larger than any may be".to_owned());
        }
        let plain = decompress(packed, location.index_plain_bytes)
            .map_err(|error| format!("its index can't be decompressed: {error}"))?;
        let text = |error: crate::encode::DecodeError| format!("of its index, {error}");
        let mut decoder = Decoder::new(&plain);
        let listing = decoder.bytes().map_err(text)?;
        let listing = Listing::decode(listing, *tree, Path::new("the listing"))
            .map_err(|error| error.to_string())?;
        let order = decoder.bytes().map_err(text)?;
        let files = files(&listing, order)?;
        let blocks_begin = MAGIC.len() as u64;
        let blocks_end = location
            .pack_bytes
            .checked_sub(location.index_bytes)
            .filter(|end| *end >= blocks_begin)
            .ok_or("its index is longer than the pack")?;
        let mut blocks = Vec::new();
        let (mut offset, mut start) = (blocks_begin, 0u64);
        for _ in 0..decoder.integer().map_err(text)? {
            let packed_bytes = decoder.integer().map_err(text)?;
            let plain_bytes = decoder.integer().map_err(text)?;
            let digest = Digest::from_bytes(decoder.array().map_err(text)?);
            if !(1..=MAX_BLOCK_BYTES).contains(&plain_bytes)
                || !(1..=2 * MAX_BLOCK_BYTES).contains(&packed_bytes)
            {
                return Err(format!("block {} has an impossible length", blocks.len()));
            }
            blocks.push(Block { offset, packed_bytes, start, plain_bytes, digest });
            // No overflow: the list is no longer than the index, and each length is bounded.
            offset += packed_bytes;
            start += plain_bytes;
        }
        if !decoder.rest().is_empty() {
            return Err("its index goes on after its end".to_owned());
        }
        let index = Index { listing: Arc::new(listing), files, blocks };
        if offset != blocks_end || start != index.stream_bytes() {
            return Err("its blocks are not what its files and length come to".to_owned());
        }
        Ok(index)
    }

    /// The index of a pack that has been written, as it lies in the pack, and its plain length.
    pub(crate) fn encode(
        listing: &Listing,
        order: &[u32],
        blocks: &[Block],
    ) -> std::io::Result<(Vec<u8>, u64)> {
        let mut encoder = Encoder::default();
        encoder.bytes(&listing.encode());
        let order: Vec<u8> = order.iter().flat_map(|number| number.to_le_bytes()).collect();
        encoder.bytes(&order);
        encoder.integer(blocks.len() as u64);
        for block in blocks {
            encoder.integer(block.packed_bytes);
            encoder.integer(block.plain_bytes);
            encoder.raw(block.digest.as_bytes());
        }
        let plain = encoder.finish();
        Ok((zstd::bulk::compress(&plain, 9)?, plain.len() as u64))
    }

    /// How many bytes of content are packed.
    pub fn stream_bytes(&self) -> u64 {
        self.files.last().map_or(0, |file| file.start + file.size_bytes)
    }

    /// The blocks that hold a file, as a range of their numbers.
    pub fn blocks_of(&self, file: &PackedFile) -> std::ops::Range<usize> {
        let end = file.start + file.size_bytes;
        let first =
            self.blocks.partition_point(|block| block.start + block.plain_bytes <= file.start);
        let last = self.blocks.partition_point(|block| block.start < end);
        first..last
    }

    /// What a file takes of the pack, counting a part of each block that it shares.
    pub fn share_bytes(&self, file: &PackedFile) -> u64 {
        let end = file.start + file.size_bytes;
        let share = |block: &Block| {
            let from = block.start.max(file.start);
            let to = (block.start + block.plain_bytes).min(end);
            block.packed_bytes * to.saturating_sub(from) / block.plain_bytes.max(1)
        };
        self.blocks[self.blocks_of(file)].iter().map(share).sum()
    }

    /// The parts of files that a block holds, in order.
    pub(crate) fn segments(&self, block: &Block) -> impl Iterator<Item = Segment> {
        let (from, to) = (block.start, block.start + block.plain_bytes);
        let first = self.files.partition_point(|file| file.start + file.size_bytes <= from);
        let begins_before = move |file: &&PackedFile| file.start < to;
        self.files[first..].iter().take_while(begins_before).enumerate().map(
            move |(index, file)| {
                let begin = file.start.max(from);
                let end = (file.start + file.size_bytes).min(to);
                Segment { file: first + index, offset: begin - file.start, length: end - begin }
            },
        )
    }
}

/// Every distinct file that isn't empty, in the order in which a walk first meets it, with the
/// path where it does; or why the listing can't be written out.
pub(crate) fn distinct_files(listing: &Listing) -> Result<Vec<(Digest, u64, Vec<u8>)>, String> {
    let extent = listing.extent();
    if extent.entries > MAX_ENTRIES
        || extent.size_bytes > MAX_TREE_BYTES
        || extent.path_bytes > crate::ingest::MAX_PATH_BYTES as u64
    {
        return Err("its listing stands for a tree that is larger than any may be".to_owned());
    }
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    let mut files = Vec::new();
    let mut lie = None;
    let empty = Digest::of_file(b"");
    listing.walk(&mut |path, entry| {
        let Entry::File { digest, size_bytes, .. } = entry else { return };
        match sizes.insert(*digest, *size_bytes) {
            None if *size_bytes == 0 && *digest == empty => {}
            None if *size_bytes > 0 && *digest != empty => {
                files.push((*digest, *size_bytes, path.to_vec()));
            }
            Some(before) if before == *size_bytes => {}
            _ => lie = Some(*digest),
        }
    });
    match lie {
        Some(digest) => Err(format!("its listing gives the file {digest} a wrong length")),
        None => Ok(files),
    }
}

fn files(listing: &Listing, order: &[u8]) -> Result<Vec<PackedFile>, String> {
    let known = distinct_files(listing)?;
    let mut left: Vec<Option<(Digest, u64)>> =
        known.into_iter().map(|(digest, size_bytes, _)| Some((digest, size_bytes))).collect();
    let (numbers, rest) = order.as_chunks::<4>();
    if numbers.len() != left.len() || !rest.is_empty() {
        return Err("its index names other files than its listing".to_owned());
    }
    let mut start = 0;
    let mut files = Vec::with_capacity(numbers.len());
    for number in numbers {
        let (digest, size_bytes) = left
            .get_mut(u32::from_le_bytes(*number) as usize)
            .and_then(Option::take)
            .ok_or("its index names a file twice, or one that isn't there")?;
        files.push(PackedFile { digest, size_bytes, start });
        start += size_bytes;
    }
    Ok(files)
}

/// The order in which a pack is written: files of one kind side by side.
pub(crate) fn order(files: &[(Digest, u64, Vec<u8>)]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..files.len() as u32).collect();
    let path = |number: &u32| files[*number as usize].2.as_slice();
    order.sort_by(|a, b| (extension(path(a)), path(a)).cmp(&(extension(path(b)), path(b))));
    order
}

/// The last part of the name after a dot that is no number: `so` of `libc.so.6`; empty if none.
fn extension(path: &[u8]) -> &[u8] {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let mut rest = name;
    while let Some(dot) = rest.iter().rposition(|byte| *byte == b'.') {
        let part = &rest[dot + 1..];
        if !part.iter().all(u8::is_ascii_digit) {
            return part;
        }
        rest = &rest[..dot];
    }
    b""
}

/// How the stream of files with these lengths is cut into blocks: the length of each.
///
/// Large files begin a block of their own, so that one that didn't change is cut as before; small
/// ones share a block and are not cut.
pub(crate) fn cut(sizes: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut blocks = Vec::new();
    let mut open = 0;
    for size in sizes {
        if open > 0 && open + size > BLOCK_BYTES {
            blocks.push(open);
            open = 0;
        }
        open += size;
        while open >= BLOCK_BYTES {
            blocks.push(BLOCK_BYTES);
            open -= BLOCK_BYTES;
        }
    }
    blocks.extend((open > 0).then_some(open));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_filled_and_large_files_begin_one() {
        let block = BLOCK_BYTES;
        let cuts = |sizes: &[u64]| cut(sizes.iter().copied());
        assert_eq!(cuts(&[]), [0u64; 0]);
        assert_eq!(cuts(&[1, 2]), [3]);
        assert_eq!(cuts(&[10, block, 10]), [10, block, 10]);
        assert_eq!(cuts(&[10, 2 * block + 5, 7]), [10, block, block, 12]);
        assert_eq!(cuts(&[block - 1, 2]), [block - 1, 2]);
    }

    #[test]
    fn extensions_ignore_versions() {
        let of = |path: &str| String::from_utf8_lossy(extension(path.as_bytes())).into_owned();
        let all = ["usr/lib/libc.so.6", "a/x.tar.gz", "bin.d/tool", "a/x.1", "a.c"].map(of);
        assert_eq!(all, ["so", "gz", "", "", "c"]);
    }
}
