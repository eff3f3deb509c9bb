//! Tests of the search for forbidden names, against archives that the usual tools make: those
//! of Rust's crates here, `cc` and `ar` where only they will do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::LazyLock;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::scan::searching::Searching;

const NEEDLES: &[&str] = &["/srp/build", "/srp/out", "/srp/sysroot", "/srp/source"];
const NAME: &[u8] = b"x = '/srp/build/x';";

fn never() -> CancelToken {
    CancelToken::new().expect("a descriptor")
}

fn everywhere(tree: &std::path::Path, needles: &[&str]) -> Result<Vec<Occurrence>, ScanError> {
    searched(&OpenTree::open(tree).unwrap(), needles, &|_| false, &never())
}

fn searched(
    tree: &OpenTree,
    needles: &[&str],
    allowed: &(dyn Fn(&str) -> bool + Sync),
    cancel: &CancelToken,
) -> Result<Vec<Occurrence>, ScanError> {
    Crew::begin(&[tree], &[], |crew| forbidden(crew, tree, needles, allowed, cancel))?
}

/// What is found in one file of these bytes, as messages.
fn found(bytes: &[u8]) -> Vec<String> {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("f"), bytes).unwrap();
    let occurrences = everywhere(tree.path(), NEEDLES).unwrap();
    occurrences.iter().map(Occurrence::to_string).collect()
}

fn check(bytes: &[u8], inside: &str) {
    let expected = format!("f contains /srp/build at byte 5 of its {inside}");
    let found = found(bytes);
    // So short a content may well be stored as it is, and then be in the file's own bytes too.
    assert!(found.contains(&expected), "{found:?} instead of {expected}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut packed).unwrap();
    packed
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let level = ::bzip2::Compression::best();
    ::bzip2::read::BzEncoder::new(bytes, level).read_to_end(&mut packed).unwrap();
    packed
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 19).unwrap()
}

/// An archive with another member before the one called `m`.
fn tar(bytes: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in [("other", &b"nothing"[..]), ("m", bytes)] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn ar(bytes: &[u8]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in [("other", &b"odd"[..]), ("m", bytes)] {
        let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, bytes.len());
        archive.extend(header.as_bytes());
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(2), b'\n');
    }
    archive
}

/// A local header for `m`; sizes zero and flag 8 when `streamed`, as Java and pipes write it.
fn zip(method: u16, packed: &[u8], streamed: bool) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, method, packed) in [("other", 0, &b"nothing"[..]), ("m", method, packed)] {
        let size = if streamed { 0 } else { u32::try_from(packed.len()).unwrap() };
        archive.extend(b"PK\x03\x04\x14\0");
        archive.extend(if streamed { 8_u16 } else { 0 }.to_le_bytes());
        archive.extend(method.to_le_bytes());
        archive.extend([0; 8]);
        archive.extend(size.to_le_bytes());
        archive.extend([0; 4]);
        archive.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        archive.extend([0; 2]);
        archive.extend(name.as_bytes());
        archive.extend(packed);
        if streamed {
            archive.extend(b"PK\x07\x08PPPPPKPPPPP\x03");
        }
    }
    archive.extend(b"PK\x01\x02");
    archive
}

#[test]
fn plain_bytes_and_symlinks() {
    let tree = TempDir::new().unwrap();
    fs::create_dir(tree.path().join("d")).unwrap();
    fs::write(tree.path().join("d/f"), "/srp/outer /srp/out /srp/buil /srp/sources").unwrap();
    fs::write(tree.path().join("clean"), "/srp /srp/ /srpbuild").unwrap();
    symlink("../../srp/sysroot/usr", tree.path().join("d/link")).unwrap();
    symlink("/dev/stdin", tree.path().join("not-followed")).unwrap();
    let found = everywhere(tree.path(), NEEDLES).unwrap();
    let found: Vec<String> = found.iter().map(Occurrence::to_string).collect();
    assert_eq!(
        found,
        [
            "d/f contains /srp/out at byte 0",
            "d/f contains /srp/source at byte 30",
            "d/link contains /srp/sysroot at byte 5",
        ]
    );
    assert_eq!(everywhere(tree.path(), &[]).unwrap(), []);
}

#[test]
fn every_compression() {
    check(&gzip(NAME), "gzip");
    check(&xz(NAME), "xz");
    check(&bzip2(NAME), "bzip2");
    check(&zstd(NAME), "zstd");
    // Several streams in one file are one content.
    let two = [gzip(b"x = '/srp"), gzip(b"/build/x'")].concat();
    check(&two, "gzip");
    check(&[xz(b"x = '/srp"), xz(b"/build/x'")].concat(), "xz");
    check(&[bzip2(b"x = '/srp"), bzip2(b"/build/x'")].concat(), "bzip2");
    check(&[zstd(b"x = '/srp"), zstd(b"/build/x'")].concat(), "zstd");
    // A skippable frame, as parallel compressors put first.
    check(&[&b"\x50\x2a\x4d\x18\x04\0\0\0abcd"[..], &zstd(NAME)].concat(), "zstd");
    // One member of NAME, put together by hand: no crate here writes the format.
    let lzip =
        b"LZIP\x01\x0c\x00\x3c\x08\x03\xa2\x10\xf1\xd7\x2d\x9a\xff\xd6\xff\x1d\x95\x87\x36\xd0\
        \x39\xf2\x48\x1c\x57\x09\x2b\xff\xfe\xec\x70\x00\xac\xba\xaf\x9f\x13\0\0\0\0\0\0\0\
        \x38\0\0\0\0\0\0\0";
    check(lzip, "lzip");
}

#[test]
fn members_and_nesting() {
    check(&tar(&gzip(NAME)), "tar member m > gzip");
    check(&ar(&xz(NAME)), "ar member m > xz");
    check(&xz(&tar(&zstd(NAME))), "xz > tar member m > zstd");
    check(&ar(&xz(&tar(&bzip2(NAME)))), "ar member m > xz > tar member m > bzip2");
    assert_eq!(found(&tar(NAME)).len(), 1, "members' plain bytes are the archive's");
    let outside = format!("f contains /srp/build at byte {} of its zstd", 512 + 512 + 512 + 5);
    assert_eq!(found(&zstd(&tar(NAME))), [outside]);
}

#[test]
fn zip_members_of_every_method() {
    for streamed in [false, true] {
        check(&zip(8, &deflate(NAME), streamed), "zip member m");
        check(&zip(12, &bzip2(NAME), streamed), "zip member m");
        check(&zip(93, &zstd(NAME), streamed), "zip member m");
        check(&zip(95, &xz(NAME), streamed), "zip member m");
        check(&zip(8, &deflate(&gzip(NAME)), streamed), "zip member m > gzip");
    }
    check(&zip(0, &gzip(NAME), false), "zip member m > gzip");
    let mut application = b"#!/usr/bin/env python3\n".to_vec();
    application.extend(zip(8, &deflate(NAME), false));
    check(&application, "zip member m");
}

#[test]
fn compressed_debugging_sections() {
    let tree = TempDir::new().unwrap();
    let directory = tree.path().join("srp/build");
    fs::create_dir_all(&directory).unwrap();
    // Enough names that compressing them is worth it: sections that would grow are left as is.
    let fields: String = (0..200).map(|at| format!("int a_field_with_number_{at};")).collect();
    let source =
        format!("struct s {{ {fields} }} s; int main(void) {{ return s.a_field_with_number_7; }}");
    fs::write(directory.join("input.c"), source).unwrap();
    let out = TempDir::new().unwrap();
    let cc = |arguments: &[&str], file: &str| {
        let mut cc = Command::new("cc");
        cc.args(arguments).arg("-o").arg(out.path().join(file)).arg(directory.join("input.c"));
        assert!(cc.status().expect("the tests need a C compiler called cc").success());
    };
    cc(&["-gdwarf-4", "-gz=zlib"], "program");
    cc(&["-gdwarf-4", "-gz=zlib", "-c"], "input.o");
    let mut ar = Command::new("ar");
    ar.arg("rc").arg(out.path().join("libx.a")).arg(out.path().join("input.o"));
    assert!(ar.status().expect("ar comes with the compiler").success());
    let mut inside: Vec<_> = everywhere(out.path(), NEEDLES)
        .unwrap()
        .into_iter()
        .filter(|occurrence| occurrence.inside.is_some())
        .map(|occurrence| (occurrence.file, occurrence.inside.unwrap()))
        .collect();
    inside.dedup_by(|a, b| a.0 == b.0);
    let files: Vec<&str> = inside.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(files, ["input.o", "libx.a", "program"]);
    assert!(inside[1].1.starts_with("ar member input.o > section .debug"), "{inside:?}");
}

#[test]
fn corrupt_archives_are_searched_as_far_as_they_go() {
    let mut packed = gzip(&[NAME, &vec![7; 100_000]].concat());
    packed.truncate(packed.len() - 20);
    check(&packed, "gzip");
    assert_eq!(found(b"\x1f\x8b\x08 not gzip /srp/build"), ["f contains /srp/build at byte 13"]);
    let trailing = [gzip(b"nothing"), NAME.to_vec()].concat();
    assert_eq!(found(&trailing).len(), 1);
}

#[test]
fn more_than_is_searched_is_an_error() {
    let bomb = gzip(&gzip(&vec![0; 1 << 20]));
    let needles = Needles::new(NEEDLES);
    let search = |bytes: &[u8], limit| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let cancel = never();
        let search = Search::new(&needles, Budget::new(&cancel, MEMORY_LIMIT_BYTES, limit));
        containers::search_file(&search, file, bytes.len() as u64).unwrap();
        let exceeded = search.exceeded.borrow().clone();
        (exceeded == Some(Exceeded::Bytes { limit_bytes: limit }), search.too_deep.get())
    };
    assert_eq!(search(&bomb, 2 << 20), (false, false));
    assert_eq!(search(&bomb, 1 << 20), (true, false));

    let mut nested = NAME.to_vec();
    for _ in 0..containers::DEPTH_LIMIT {
        nested = gzip(&nested);
    }
    assert_eq!(search(&nested, 1 << 20), (false, false));
    assert_eq!(found(&nested).len(), 1);
    nested = gzip(&nested);
    assert_eq!(search(&nested, 1 << 20), (false, true));
    let mut nested = NAME.to_vec();
    for _ in 0..=containers::DEPTH_LIMIT {
        nested = zip(8, &deflate(&nested), true);
    }
    assert_eq!(search(&nested, 1 << 20), (false, true));

    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("f"), &nested).unwrap();
    let error = everywhere(tree.path(), NEEDLES).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f nests archives more than 12 deep, which is as deep as is searched"
    );
}

#[test]
fn what_decoders_may_hold_is_bounded() {
    // A window of 2 GiB, and a dictionary of 1.5 GiB, in files of a few bytes.
    let mut zstd = b"\x28\xb5\x2f\xfd\0\xa8\x99\0\0".to_vec();
    zstd.extend(NAME);
    let mut lzip = b"LZIP\x01\x1d".to_vec();
    lzip.extend([0; 40]);
    let mut lzma = b"]\0\0\0\x60".to_vec();
    lzma.extend([0xff; 8]);
    lzma.extend([0; 40]);
    for (name, bytes) in [("zstd", zstd), ("lzma", lzma)] {
        let tree = TempDir::new().unwrap();
        fs::write(tree.path().join("f"), &bytes).unwrap();
        let error = everywhere(tree.path(), NEEDLES).unwrap_err();
        assert!(matches!(error, ScanError::Limit { .. }), "{name}: {error}");
        assert!(error.hints()[0].contains("allow_sandbox_paths = {\"f\": "), "{name}: {error}");
        // And by the file's name it is let alone.
        let open = OpenTree::open(tree.path()).unwrap();
        assert_eq!(searched(&open, NEEDLES, &|file| file == "f", &never()).unwrap(), []);
    }
    // lzip's largest is what its tool takes.
    assert_eq!(found(&lzip), [""; 0]);
}

#[test]
fn a_search_that_is_cancelled_ends_at_once() {
    // Nothing comes out of a million empty members, for minutes.
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("f"), gzip(b"").repeat(3_000_000)).unwrap();
    let cancel = never();
    let error = std::thread::scope(|scope| {
        let search = scope.spawn(|| {
            let began = std::time::Instant::now();
            let tree = OpenTree::open(tree.path()).unwrap();
            (searched(&tree, NEEDLES, &|_| false, &cancel), began.elapsed())
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let cancelled = std::time::Instant::now();
        cancel.cancel();
        let (result, took) = search.join().unwrap();
        assert!(cancelled.elapsed() < std::time::Duration::from_secs(1), "{took:?}");
        result.unwrap_err()
    });
    assert!(matches!(error, ScanError::Store(StoreError::Cancelled)), "{error}");
}

#[test]
fn needles_that_start_differently() {
    let mut found = [Some(7), None, None, None];
    Needles::new(&["a", "b", "ab", "x"]).find(b"cabab", 100, &mut found);
    assert_eq!(found, [Some(7), Some(102), Some(101), None]);
    let mut found = [None, None];
    Needles::new(&["/srp/b", "/srp/"]).find(b"/srp//srp/b", 0, &mut found);
    assert_eq!(found, [Some(5), Some(0)]);
}

/// Yields its bytes a few at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.1.min(out.len());
        self.0.read(&mut out[..length])
    }
}

#[test]
fn needles_across_every_border_of_the_buffer_are_found() {
    let needles = Needles::new(NEEDLES);
    let border = 64 << 10;
    let cancel = never();
    for at in border - 40..border + 5 {
        let mut bytes = vec![b'/'; 3 * border];
        bytes[at..at + 10].copy_from_slice(b"/srp/build");
        bytes[2 * at..2 * at + 12].copy_from_slice(b"/srp/sysroot");
        let search = Search::new(&needles, Budget::new(&cancel, MEMORY_LIMIT_BYTES, u64::MAX));
        Searching::unpacked(&search, Dribble(&bytes, 1000)).finish(&[]).unwrap();
        let hits = search.hits.take();
        let hits: Vec<_> = hits.iter().map(|hit| (hit.needle, hit.offset)).collect();
        assert_eq!(hits, [(0, at as u64), (2, 2 * at as u64)]);
    }
}

static ARCHIVES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        gzip(&tar(&gzip(NAME))),
        tar(&ar(&zip(8, &deflate(NAME), true))),
        ar(&zip(8, &deflate(NAME), false)),
        zip(93, &zstd(NAME), false),
        zip(95, &xz(NAME), true),
        zip(12, &bzip2(NAME), false),
        zip(0, &tar(NAME), false),
        xz(&tar(&xz(NAME))),
        zstd(&ar(&zstd(NAME))),
        bzip2(&gzip(NAME)),
        tar(&tar(NAME)),
        ar(&[b"\x7fELF\x02\x01\x01".as_slice(), &[1; 300]].concat()),
    ]
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn broken_archives_never_panic(
        kind in 0..ARCHIVES.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = ARCHIVES[kind].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() * 4).min(bytes.len()));
        let needles = Needles::new(NEEDLES);
        let cancel = never();
        let search = Search::new(&needles, Budget::new(&cancel, MEMORY_LIMIT_BYTES, 1 << 22));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        containers::search_file(&search, file, bytes.len() as u64).unwrap();
        let mut level = Searching::unpacked(&search, Cursor::new(&bytes));
        let mut out = Vec::new();
        level.read_to_end(&mut out).unwrap();
        prop_assert_eq!(out, bytes);
    }
}

#[test]
fn links_at_the_top_are_searched_as_they_were_before_they_were_made_relative() {
    let tree = TempDir::new().unwrap();
    fs::create_dir(tree.path().join("usr")).unwrap();
    symlink("srp/build/x", tree.path().join("top")).unwrap();
    symlink("../srp/out/y", tree.path().join("usr/below")).unwrap();
    symlink("usr/srp-build", tree.path().join("other")).unwrap();
    symlink("srp/build/z", tree.path().join("usr/own")).unwrap();
    let found = everywhere(tree.path(), NEEDLES).unwrap();
    let found: Vec<_> = found.iter().map(Occurrence::to_string).collect();
    assert_eq!(
        found,
        ["top contains /srp/build at byte 0", "usr/below contains /srp/out at byte 2"]
    );
}
