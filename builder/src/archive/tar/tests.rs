//! Headers as odd programs write them, byte by byte; what the usual programs write is in the tests of
//! unpacking.

use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::archive::Extent;

/// A header of the POSIX kind with these fields.
fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    summed(block, false)
}

/// The same with the checksum that it should have.
fn summed(mut block: [u8; BLOCK], signed: bool) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: i64 = block
        .iter()
        .map(|byte| if signed { i64::from(*byte as i8) } else { i64::from(*byte) })
        .sum();
    block[148..156].copy_from_slice(format!("{:06o}\0 ", sum.max(0)).as_bytes());
    block
}

fn body(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Every member and its content.
fn read(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(TarError::reading)?;
        members.push((member, content));
    }
    Ok(members)
}

fn names(bytes: &[u8]) -> Vec<String> {
    let members = read(bytes).expect("sound");
    members.iter().map(|(it, _)| String::from_utf8_lossy(&it.name).into_owned()).collect()
}

#[test]
fn fields_that_mean_nothing_fail_nothing() {
    for (range, junk) in [
        (108..116, &b"        "[..]),
        (108..116, b"\0\0\0\0\0\0\0\0"),
        (108..116, b"nobody!!"),
        (108..116, b"\xff\xff\xff\xff\xff\xff\xff\xfe"),
        (116..124, b"99999999"),
        (136..148, b"yesterday   "),
        (329..337, b"\xffdevice\xff"),
        (265..297, b"\xff\xfe a user's name in no encoding "),
        (100..108, b"\0\0\0\0\0\0\0\0"),
    ] {
        let mut block = header("a", b'0', 1);
        block[range].copy_from_slice(junk);
        let bytes = [&summed(block, false)[..], &body(b"x")].concat();
        let members = read(&bytes).unwrap_or_else(|error| panic!("{junk:?}: {error}"));
        assert_eq!((members.len(), &members[0].1[..]), (1, &b"x"[..]), "{junk:?}");
    }
    let mut block = header("a", b'0', 1);
    block[124..136].copy_from_slice(b"twelve bytes");
    assert!(matches!(read(&summed(block, false)), Err(TarError::Number { field: "size" })));
    block[124..136].copy_from_slice(&[0xff; 12]);
    assert!(matches!(read(&summed(block, false)), Err(TarError::Number { field: "size" })));
}

#[test]
fn either_checksum_is_right_and_others_are_not() {
    let mut block = header("caf\u{e9}\u{e9}\u{e9}", b'0', 0);
    assert_eq!(names(&summed(block, false)).len(), 1);
    assert_eq!(names(&summed(block, true)).len(), 1);
    assert!(begins(&summed(block, true)));
    block[0] ^= 1;
    assert!(matches!(read(&block), Err(TarError::Checksum { offset: 0 })));
    assert!(!begins(&block) && !begins(&[0; 600]) && !begins(b"short"));
}

#[test]
fn a_header_without_magic_is_of_the_seventh_edition() {
    let mut block = header("dir/", 0, 0);
    block[257..500].fill(0);
    // What stands where POSIX has the prefix isn't one.
    block[345..350].copy_from_slice(b"other");
    let members = read(&summed(block, false)).expect("sound");
    assert_eq!((&members[0].0.name[..], &members[0].0.kind), (&b"dir/"[..], &Kind::Directory));
}

#[test]
fn prefixes_are_posixs_and_not_gnus() {
    let mut block = header("name", b'0', 0);
    block[345..351].copy_from_slice(b"prefix");
    assert_eq!(names(&summed(block, false)), ["prefix/name"]);
    block[257..265].copy_from_slice(b"ustar  \0");
    assert_eq!(names(&summed(block, false)), ["name"]);
}

#[test]
fn links_and_directories_have_no_content_whatever_their_size_says() {
    for kind in [b'1', b'2', b'5'] {
        let bytes = [header("first", kind, 512), header("second", b'0', 0)].concat();
        assert_eq!(names(&bytes), ["first", "second"], "{}", char::from(kind));
    }
}

#[test]
fn the_first_block_of_zeros_is_the_end() {
    let bytes = [&header("a", b'0', 0)[..], &[0; BLOCK], &header("b", b'0', 0)].concat();
    assert_eq!(names(&bytes), ["a"]);
    assert_eq!(names(&header("a", b'0', 0)), ["a"]);
    assert_eq!(names(b""), [""; 0]);
    // A name was promised.
    let bytes = [&header("x", b'L', 2)[..], &body(b"b\0"), &[0; 1024]].concat();
    assert!(matches!(read(&bytes), Err(TarError::Truncated)));
    for length in [1, 511, 513, 1023] {
        let bytes = [&header("a", b'0', 512)[..], &[1; 512]].concat();
        assert!(matches!(read(&bytes[..length]), Err(TarError::Truncated)), "{length}");
    }
}

#[test]
fn labels_of_volumes_are_passed_over() {
    let bytes = [header("label", b'V', 0), header("a", b'0', 0)].concat();
    assert_eq!(names(&bytes), ["a"]);
}

#[test]
fn extended_headers_give_names_of_any_form() {
    let records = b"15 path=a\nb/\xff\xfe\n20 linkpath=x\ny=\nz\n\n18 SCHILY.xattr=\n\n";
    let bytes =
        [&header("x", b'x', records.len() as u64)[..], &body(records), &header("n", b'2', 0)]
            .concat();
    let members = read(&bytes).expect("sound");
    assert_eq!(members[0].0.name, b"a\nb/\xff\xfe");
    assert_eq!(members[0].0.kind, Kind::Symlink(b"x\ny=\nz\n".to_vec()));
    // They hold for one member.
    let bytes = [&bytes[..], &header("later", b'0', 0)].concat();
    assert_eq!(names(&bytes)[1], "later");
    let huge = header("x", b'x', 1 << 32);
    assert!(matches!(read(&huge), Err(TarError::HeaderTooLong)));
}

fn sparse(records: &str, name: &str, stored: &[u8]) -> Vec<u8> {
    let mut bytes = header("x", b'x', records.len() as u64).to_vec();
    bytes.extend(body(records.as_bytes()));
    bytes.extend(header(name, b'0', stored.len() as u64));
    bytes.extend(body(stored));
    bytes
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let length = (1..).find(|length| length.to_string().len() + rest.len() == *length);
    format!("{}{rest}", length.expect("some number"))
}

#[test]
fn sparse_files_of_paxs_three_formats() {
    let expected = Kind::Sparse(vec![
        Extent { offset: 10, length: 2 },
        Extent { offset: 20, length: 3 },
        Extent { offset: 50, length: 0 },
    ]);
    let size = record("GNU.sparse.size", "50") + &record("GNU.sparse.numblocks", "3");
    let pairs: String = [("10", "2"), ("20", "3"), ("50", "0")]
        .map(|(offset, length)| {
            record("GNU.sparse.offset", offset) + &record("GNU.sparse.numbytes", length)
        })
        .concat();
    let name = record("GNU.sparse.name", "real");
    let list = record("GNU.sparse.map", "10,2,20,3,50,0");
    let major = record("GNU.sparse.major", "1") + &record("GNU.sparse.minor", "0");
    let real = record("GNU.sparse.realsize", "50");
    let map = [&body(b"3\n10\n2\n20\n3\n50\n0\n")[..], b"abcde"].concat();
    for bytes in [
        sparse(&(size.clone() + &pairs), "real", b"abcde"),
        sparse(&(size.clone() + &name + &list), "GNUSparseFile.1/real", b"abcde"),
        sparse(&(major.clone() + &name + &real), "GNUSparseFile.1/real", &map),
    ] {
        let members = read(&bytes).expect("sound");
        assert_eq!(members[0].0.name, b"real");
        assert_eq!((&members[0].0.kind, members[0].0.size_bytes), (&expected, 50));
        assert_eq!(members[0].1, b"abcde");
    }
    for (records, stored) in [
        (size.clone() + &record("GNU.sparse.map", "10,2,11,3"), &b"abcde"[..]),
        (size.clone() + &record("GNU.sparse.map", "10,2,48,3"), b"abcde"),
        (size.clone() + &record("GNU.sparse.map", "10,2,20"), b"ab"),
        (size.clone() + &record("GNU.sparse.map", "10,2"), b"abcde"),
        (record("GNU.sparse.map", "10,2"), b"ab"),
        (major.clone() + &real, b"99999999999999999999999\n"),
        (major + &real, b"4000000\n"),
        (record("GNU.sparse.major", "2") + &real, b""),
        (record("GNU.sparse.other", "2") + &real, b""),
    ] {
        let result = read(&sparse(&records, "n", stored));
        assert!(result.is_err(), "{records:?}: {result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the bytes are: an end, and no panic.
    #[test]
    fn any_bytes_are_read_to_an_end(
        kinds in proptest::collection::vec((any::<u8>(), any::<u16>()), 1..6),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        content in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut bytes = Vec::new();
        for (kind, size) in kinds {
            let mut block = header("name", kind, u64::from(size) % 700);
            block[386..500].fill(kind);
            for (at, byte) in &damage {
                block[at.index(BLOCK)] = *byte;
            }
            bytes.extend(summed(block, false));
            bytes.extend(body(&content));
        }
        let _ = read(&bytes);
    }
}
