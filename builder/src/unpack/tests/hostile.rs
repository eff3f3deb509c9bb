//! Archives that attack, are damaged, or hold what a tree cannot.

use super::*;

#[test]
fn nothing_leaves_the_destination() {
    let refused: Vec<(&str, Vec<Raw>)> = vec![
        ("up", vec![file("../escaped", "x")]),
        ("up within", vec![file("a/../../escaped", "x")]),
        ("absolute", vec![file("/escaped", "x")]),
        ("through a link", vec![symlink("l", ".."), file("l/escaped", "x")]),
        ("through an absolute link", vec![symlink("l", "/tmp"), file("l/srp-escaped", "x")]),
        (
            "through two links",
            vec![directory("d"), symlink("d/l", "../.."), file("d/l/escaped", "x")],
        ),
        ("a directory through a link", vec![symlink("l", ".."), directory("l/escaped")]),
        ("a link through a link", vec![symlink("l", ".."), symlink("l/escaped", "x")]),
        ("through a file", vec![file("f", "x"), file("f/escaped", "x")]),
        ("link out", vec![hard_link("h", "../archive")]),
        ("absolute link out", vec![hard_link("h", "/etc/passwd")]),
        ("link through a link", vec![symlink("l", ".."), hard_link("h", "l/archive")]),
        ("link to nothing", vec![hard_link("h", "missing")]),
        ("link to itself", vec![hard_link("h", "h")]),
        ("link to a directory", vec![directory("d"), hard_link("h", "d")]),
        ("links in a circle", vec![hard_link("h", "i"), hard_link("i", "h")]),
        ("link forward to a directory", vec![hard_link("h", "later"), directory("later")]),
        (
            "nul",
            vec![
                Raw { body: b"17 path=a\0/../x\n\n".to_vec(), ..Raw::new("x", b'x') },
                file("x", "x"),
            ],
        ),
    ];
    for (name, entries) in refused {
        let (result, outer) = run(&entries);
        assert!(result.is_err(), "{name} was taken: {:?}", listing(&outer));
        let mut outside: Vec<_> = std::fs::read_dir(outer.path())
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        outside.sort();
        assert_eq!(outside, ["archive", "into"], "{name}");
        assert!(!Path::new("/tmp/srp-escaped").exists(), "{name}");
    }
}

#[test]
fn writing_over_a_link_replaces_the_link() {
    let outside = tempfile::tempdir().expect("a directory");
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "precious").expect("written");
    let target = victim.to_str().expect("UTF-8");
    assert!(target.len() <= 100);
    let (result, outer) = run(&[
        symlink("l", target),
        file("l", "replaced"),
        symlink("d", outside.path().to_str().expect("UTF-8")),
        directory("d"),
        file("d/victim", "inside"),
    ]);
    result.expect("unpacked");
    assert_eq!(std::fs::read(&victim).expect("there"), b"precious");
    assert_eq!(listing(&outer), ["d/", "d/victim 644 inside", "l 644 replaced"]);
}

#[test]
fn of_two_entries_the_last_wins() {
    let (result, outer) = run(&[
        file("a", "first and longer"),
        hard_link("h", "a"),
        program("a", "second"),
        file("b", "x"),
        symlink("b", "y"),
        directory("c"),
        directory("c"),
    ]);
    result.expect("unpacked");
    // The hard link was a copy: what is written later doesn't reach it.
    assert_eq!(listing(&outer), ["a 755 second", "b -> y", "c/", "h 644 first and longer"]);
    // An empty directory gives way, as it does for tar; one that holds something doesn't.
    let (result, outer) = run(&[directory("d"), file("d", "x"), directory("e"), symlink("e", "d")]);
    result.expect("unpacked");
    assert_eq!(listing(&outer), ["d 644 x", "e -> d"]);
    let (result, _outer) = run(&[file("d/x", "x"), symlink("d", "x")]);
    assert!(matches!(result, Err(UnpackError::ReplacesDirectory { .. })), "{result:?}");
}

#[test]
fn a_hard_link_to_a_link_is_that_link() {
    let (result, outer) = run(&[symlink("l", "/etc/passwd"), hard_link("h", "l")]);
    result.expect("unpacked");
    assert_eq!(listing(&outer), ["h -> /etc/passwd", "l -> /etc/passwd"]);
}

#[test]
fn what_a_tree_cannot_hold_is_refused_by_name() {
    for (kind, name) in [
        (b'3', "character device"),
        (b'4', "block device"),
        (b'6', "fifo"),
        (b'Z', "unknown"),
        (b'M', "volume"),
    ] {
        let (result, _outer) = run(&[Raw::new("dev/thing", kind)]);
        let text = result.expect_err("refused").to_string();
        assert!(text.contains("dev/thing") && text.contains(name), "{text}");
    }
    // Excluded, it harms nobody.
    let spec = UnpackSpec { exclude: vec!["dev".into()], ..UnpackSpec::default() };
    let (result, _outer) =
        run_with(&tar(&[Raw::new("dev/thing", b'3'), file("a", "x")]), Format::Tar, &spec);
    assert_eq!(result.expect("unpacked").files, 1);
}

#[test]
fn special_modes_are_reported_and_not_applied() {
    let (result, outer) = run(&[
        Raw { mode: 0o6755, ..file("su", "x") },
        Raw { mode: 0o1777, ..directory("tmp") },
        Raw { owner: 1000, mode: 0o600, ..file("private", "x") },
    ]);
    let special = result.expect("unpacked").special;
    let modes: Vec<_> = special
        .iter()
        .map(|special| (special.path.to_str().expect("UTF-8"), special.mode))
        .collect();
    assert_eq!(modes, [("su", 0o6755), ("tmp", 0o1777)]);
    assert_eq!(listing(&outer), ["private 644 x", "su 755 x", "tmp/"]);
}

#[test]
fn damaged_archives_are_errors() {
    let whole = tar(&good());
    let is_tar = |result: &Result<Unpacked, UnpackError>| {
        use UnpackError::{NotTar, Nothing, Tar};
        matches!(result, Err(Tar { .. } | NotTar { .. } | Nothing { members: 0, .. }))
    };
    for (name, bytes) in [
        ("empty", vec![]),
        ("garbage", b"<html>404</html>".repeat(100)),
        ("zeros", vec![0; 4096]),
        ("cut in a header", whole[..700].to_vec()),
        ("cut in a body", tar(&[file("f", &"x".repeat(5000))])[..2000].to_vec()),
        (
            "cut in a skipped body",
            tar(&[Raw { body: vec![b'x'; 5000], ..Raw::new(".", b'0') }])[..2000].to_vec(),
        ),
        ("a checksum", {
            let mut bytes = whole.clone();
            bytes[1024] ^= 1;
            bytes
        }),
        ("a size without end", tar(&[Raw { size: Some(0o77777777777), ..file("f", "x") }])),
    ] {
        let (result, _outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
        assert!(is_tar(&result), "{name}: {result:?}");
    }
    let packed = xz(&whole);
    for length in [5, 20, packed.len() / 2, packed.len() - 1] {
        let (result, _outer) = run_with(&packed[..length], Format::Tar, &UnpackSpec::default());
        assert!(result.is_err(), "cut to {length}: {result:?}");
    }
    let mut corrupt = packed;
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0x55;
    let (result, _outer) = run_with(&corrupt, Format::Tar, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Decompress { .. })), "{result:?}");
}

#[test]
fn malformed_extended_headers_are_refused() {
    let malformed = Raw { body: b"9 path=../../x\n".to_vec(), ..Raw::new("x", b'x') };
    let (result, _outer) = run(&[malformed, file("x", "x")]);
    assert!(matches!(result, Err(UnpackError::Tar { .. })), "{result:?}");
}

#[test]
fn lengths_are_bounded() {
    let (result, _outer) = run(&[long_name(b'L', &[b'a'; 300]), file("x", "x")]);
    assert!(
        matches!(result, Err(UnpackError::Path { source: PathError::TooLong, .. })),
        "{result:?}"
    );
    let (result, _outer) = run(&[long_name(b'L', &b"a/".repeat(2100)), file("x", "x")]);
    assert!(
        matches!(result, Err(UnpackError::Path { source: PathError::TooLong, .. })),
        "{result:?}"
    );
    // A name of 7 GB in a few bytes of xz must not be read into memory.
    let endless = Raw { size: Some(7 << 30), ..Raw::new("././@LongLink", b'L') };
    let mut bytes = endless.bytes();
    bytes.resize(3 << 20, b'a');
    let (result, _outer) = run_with(&xz(&bytes), Format::Tar, &UnpackSpec::default());
    let error = result.expect_err("refused");
    assert!(
        matches!(&error, UnpackError::Tar { source, .. } if source.to_string().contains("too long")),
        "{error:?}"
    );
}

#[test]
fn bombs_end_at_the_limit() {
    let bomb = Raw { body: vec![0; 20 << 20], ..Raw::new("zeros", b'0') };
    let packed = xz(&tar(&[file("a", "x"), bomb.clone()]));
    assert!(packed.len() < 100_000);
    let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
    let (result, outer) = run_with(&packed, Format::Tar, &spec);
    assert!(
        matches!(result, Err(UnpackError::TooLarge { max_bytes: 1_048_576, .. })),
        "{result:?}"
    );
    let written = std::fs::metadata(outer.path().join("into/zeros")).map_or(0, |file| file.len());
    assert!(written <= 2 << 20, "{written}");
    // By copies as well.
    let copies = [Raw { body: vec![0; 600 << 10], ..Raw::new("z", b'0') }, hard_link("y", "z")];
    let (result, _outer) = run_with(&xz(&tar(&copies)), Format::Tar, &spec);
    assert!(
        matches!(result, Err(UnpackError::TooLarge { max_bytes: 1_048_576, .. })),
        "{result:?}"
    );
    // What isn't selected counts for nothing.
    let spec = UnpackSpec { only: vec!["a".into()], ..spec };
    let (result, _outer) = run_with(&packed, Format::Tar, &spec);
    assert_eq!(result.expect("unpacked").bytes, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is damaged, unpacking ends without a panic and without a trace outside.
    #[test]
    fn damaged_bytes_stay_inside(damage in proptest::collection::vec((0usize..8192, any::<u8>()), 1..8)) {
        let mut bytes = tar(&good());
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let spec = UnpackSpec { max_bytes: Some(1 << 20), ..UnpackSpec::default() };
        let (_, outer) = run_with(&bytes, Format::Tar, &spec);
        prop_assert_eq!(std::fs::read_dir(outer.path()).expect("readable").count(), 2);
    }
}
