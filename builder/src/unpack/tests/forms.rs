//! What archives may look like beyond the ordinary: links whose targets come later, holes, zip, and what
//! is refused by name.

use std::os::unix::fs::MetadataExt;

use super::*;

fn text(result: Result<Unpacked, UnpackError>) -> String {
    let error = result.expect_err("refused");
    let source = std::error::Error::source(&error).map(|it| format!(": {it}")).unwrap_or_default();
    format!("{error}{source}")
}

#[test]
fn hard_links_may_come_before_their_targets() {
    let (result, outer) = run(&[
        hard_link("one", "two"),
        hard_link("two", "three"),
        hard_link("again", "three"),
        program("three", "x"),
    ]);
    assert_eq!(result.expect("unpacked").files, 4);
    assert_eq!(listing(&outer), ["again 755 x", "one 755 x", "three 755 x", "two 755 x"]);
    // What comes later at the link's own place takes it.
    let (result, outer) = run(&[hard_link("one", "two"), file("one", "own"), file("two", "x")]);
    result.expect("unpacked");
    assert_eq!(listing(&outer), ["one 644 own", "two 644 x"]);
    // A target that isn't selected is none.
    let spec = UnpackSpec { only: vec!["one".into()], ..UnpackSpec::default() };
    let bytes = tar(&[hard_link("one", "two"), file("two", "x")]);
    let (result, _outer) = run_with(&bytes, Format::Tar, &spec);
    assert!(matches!(result, Err(UnpackError::HardLink { .. })), "{result:?}");
}

/// An old GNU sparse file of this apparent size: a block of `a` at its beginning, the rest a hole.
fn sparse(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Raw { body: vec![b'a'; 512], ..Raw::new(name, b'S') }.bytes();
    let octal = |value: u64| format!("{value:011o}\0").into_bytes();
    let fields = [(386, octal(0)), (398, octal(512)), (410, octal(size)), (422, octal(0))];
    for (at, value) in fields.into_iter().chain([(483, octal(size))]) {
        bytes[at..at + 12].copy_from_slice(&value);
    }
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn holes_stay_holes_and_count_in_full() {
    let large = 4 << 30;
    let bytes = [sparse("s", large), hard_link("t", "s").bytes(), vec![0; 1024]].concat();
    let spec = UnpackSpec { max_bytes: Some(large + 100), ..UnpackSpec::default() };
    let (result, _outer) = run_with(&bytes, Format::Tar, &spec);
    assert!(matches!(result, Err(UnpackError::TooLarge { .. })), "{result:?}");
    let small = 40 << 20;
    let bytes = [sparse("s", small), hard_link("t", "s").bytes(), vec![0; 1024]].concat();
    let (result, outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
    assert_eq!(result.expect("unpacked").bytes, 2 * small);
    for name in ["into/s", "into/t"] {
        let metadata = std::fs::metadata(outer.path().join(name)).expect("there");
        assert_eq!(metadata.len(), small);
        assert!(metadata.blocks() * 512 <= 1 << 20, "{name}: {} blocks", metadata.blocks());
    }
    // Many of them are more than a source may have, in a few KiB.
    let many = [sparse("s", 7 << 30), sparse("t", 7 << 30)].concat().repeat(5);
    let (result, _outer) = run_with(&many, Format::Tar, &UnpackSpec::default());
    assert!(text(result).contains("limit of 68719476736 bytes, holes included"));
}

#[test]
fn an_unpacking_that_leaves_nothing_is_an_error() {
    let flat = tar(&[file("README", "x"), file("main.c", "x")]);
    let spec = UnpackSpec { strip: 1, ..UnpackSpec::default() };
    let (result, _outer) = run_with(&flat, Format::Tar, &spec);
    let message = text(result);
    assert!(
        message.contains("strip = 1 leaves nothing") && message.contains("2 entries"),
        "{message}"
    );
    let spec = UnpackSpec { exclude: vec!["*".into()], ..UnpackSpec::default() };
    let (result, _outer) = run_with(&flat, Format::Tar, &spec);
    assert!(matches!(result, Err(UnpackError::Nothing { members: 2, .. })), "{result:?}");
    let (result, _outer) = run_with(&tar(&[]), Format::Tar, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Nothing { members: 0, .. })), "{result:?}");
}

#[test]
fn what_is_not_read_is_called_by_its_name() {
    let padded = |start: &[u8]| [start, &[7; 2000]].concat();
    let plain = tar(&good());
    let zip = zip_of(&[("a", 0o100_644, b"x")]);
    for (bytes, words) in [
        (padded(b"\x1f\x9d\x90"), "compress (.Z)"),
        (padded(b"7z\xbc\xaf\x27\x1c"), "7-Zip"),
        (padded(b"\x04\x22\x4d\x18"), "lz4"),
        (padded(b"070701"), "cpio"),
        (padded(b"<html>"), "HTML page; is it the right URL?"),
        (padded(b"\x7fELF"), "ELF"),
        (zip.clone(), "unpack = \"zip\""),
        (deb(&good()), "unpack = \"deb\""),
        (xz(&xz(&plain)), "compressed by xz"),
        (xz(b"not an archive at all"), "nothing that is known"),
        ([xz(&plain), b"garbage".to_vec()].concat(), "something else follows the xz data"),
        (xz(&plain)[..100].to_vec(), "ends early"),
    ] {
        let (result, _outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
        let message = text(result);
        assert!(message.contains(words), "{message:?} doesn't say {words:?}");
    }
    let (result, _outer) = run_with(&plain, Format::Zip, &UnpackSpec::default());
    let message = text(result);
    assert!(
        message.contains("no zip archive: it is a tar archive") && message.contains("\"tar\""),
        "{message}"
    );
}

#[test]
fn windows_above_the_limit_are_refused_before_they_are_there() {
    // 2 GiB, in a file of 30 bytes.
    let mut zstd = b"\x28\xb5\x2f\xfd\0\xa8\x01\0\0".to_vec();
    zstd.extend([0; 40]);
    // 1.5 GiB.
    let mut lzma = b"]\0\0\0\x60".to_vec();
    lzma.extend([0xff; 8]);
    lzma.extend([0; 40]);
    for bytes in [zstd, lzma] {
        let (result, _outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
        assert!(matches!(result, Err(UnpackError::Limit { .. })), "{result:?}");
    }
}

/// A zip archive of files with these modes.
fn zip_of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut archive = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, mode, content) in files {
        // The crate writes the type itself; other types and modes are put into the directory below.
        archive.start_file(*name, ::zip::write::SimpleFileOptions::default()).expect("begun");
        archive.write_all(content).expect("written");
        let _ = mode;
    }
    let mut bytes = archive.finish().expect("finished").into_inner();
    let mut at = 0;
    for (_, mode, _) in files {
        let entry = bytes[at..].windows(4).position(|it| it == b"PK\x01\x02").expect("an entry");
        at += entry;
        bytes[at + 5] = 3;
        bytes[at + 38..at + 42].copy_from_slice(&(mode << 16).to_le_bytes());
        at += 4;
    }
    bytes
}

#[test]
fn zip_has_modes_links_and_nothing_that_leads_out() {
    let bytes = zip_of(&[
        ("top/a", 0o100_644, b"x"),
        ("top/run", 0o100_755, b"#!/bin/sh"),
        ("top/link", 0o120_777, b"../anywhere"),
        ("top/su", 0o104_755, b"s"),
    ]);
    let spec = UnpackSpec { strip: 1, ..UnpackSpec::default() };
    let (result, outer) = run_with(&bytes, Format::Zip, &spec);
    assert_eq!(result.expect("unpacked").special.len(), 1);
    assert_eq!(
        listing(&outer),
        ["a 644 x", "link -> ../anywhere", "run 755 #!/bin/sh", "su 755 s"]
    );
    for name in ["../escaped", "/escaped", "a/../../escaped"] {
        let (result, outer) =
            run_with(&zip_of(&[(name, 0o100_644, b"x")]), Format::Zip, &UnpackSpec::default());
        assert!(matches!(result, Err(UnpackError::Path { .. })), "{name}: {result:?}");
        assert!(!outer.path().join("escaped").exists());
    }
    let through = zip_of(&[("l", 0o120_777, b".."), ("l/escaped", 0o100_644, b"x")]);
    let (result, outer) = run_with(&through, Format::Zip, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Through { .. })), "{result:?}");
    assert!(!outer.path().join("escaped").exists());
    let device = zip_of(&[("null", 0o020_666, b"")]);
    let (result, _outer) = run_with(&device, Format::Zip, &UnpackSpec::default());
    assert!(text(result).contains("character device"));
}

#[test]
fn zip_that_lies_is_refused() {
    let sound = zip_of(&[("a", 0o100_644, &[b'x'; 5000])]);
    let directory = sound.windows(4).position(|it| it == b"PK\x01\x02").expect("there");
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = sound.clone();
        bytes[directory + at..directory + at + to.len()].copy_from_slice(to);
        bytes
    };
    for (bytes, words) in [
        (changed(16, b"abcd"), "checksum"),
        (changed(24, &10u32.to_le_bytes()), "as long as"),
        (changed(24, &6000u32.to_le_bytes()), "as long as"),
        (changed(8, &[1, 0]), "encrypted"),
        (changed(10, &[9, 0]), "method"),
        (sound[..sound.len() - 30].to_vec(), "no sound zip archive"),
    ] {
        let (result, _outer) = run_with(&bytes, Format::Zip, &UnpackSpec::default());
        let message = text(result);
        assert!(message.contains(words), "{message:?} doesn't say {words:?}");
    }
    let bomb = zip_of(&[("zeros", 0o100_644, &vec![0; 20 << 20])]);
    assert!(bomb.len() < 100_000);
    let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
    let (result, _outer) = run_with(&bomb, Format::Zip, &spec);
    assert!(matches!(result, Err(UnpackError::TooLarge { .. })), "{result:?}");
    // Two entries of the directory for one file's bytes.
    let two = zip_of(&[("a", 0o100_644, b"xy"), ("b", 0o100_644, b"xy")]);
    let first = two.windows(4).position(|it| it == b"PK\x01\x02").expect("there");
    let second =
        first + 4 + two[first + 4..].windows(4).position(|it| it == b"PK\x01\x02").expect("there");
    let mut shared = two.clone();
    shared[second + 42..second + 46].copy_from_slice(&two[first + 42..first + 46]);
    let (result, _outer) = run_with(&shared, Format::Zip, &UnpackSpec::default());
    assert!(text(result).contains("share bytes"));
}

#[test]
fn unpacking_ends_soon_after_it_is_cancelled() {
    let empty = {
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.finish().expect("encoded")
    };
    let zeros = tar(&[Raw { body: vec![0; 256 << 20], ..Raw::new("zeros", b'0') }]);
    // Members that hold nothing, and blocks that are all zeros: much work for few bytes.
    for (name, bytes) in [("empty members", empty.repeat(3_000_000)), ("zeros", xz(&zeros))] {
        let outer = tempfile::tempdir().expect("a directory");
        let (archive, into) = (outer.path().join("archive"), outer.path().join("into"));
        std::fs::write(&archive, bytes).expect("written");
        std::fs::create_dir(&into).expect("created");
        let cancel = CancelToken::new().expect("a descriptor");
        let spec = UnpackSpec::default();
        std::thread::scope(|scope| {
            let work =
                scope.spawn(|| unpack(&archive, Format::Tar, &spec, &into, &cancel).map(drop));
            std::thread::sleep(std::time::Duration::from_millis(50));
            let before = std::time::Instant::now();
            cancel.cancel();
            let result = work.join().expect("no panic");
            assert!(before.elapsed().as_secs_f32() < 1.0, "{name}: {:?}", before.elapsed());
            assert!(matches!(result, Err(UnpackError::Cancelled)), "{name}: {result:?}");
        });
    }
}
