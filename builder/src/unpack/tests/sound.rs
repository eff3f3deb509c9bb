//! Archives as they should be: every compression, packages, selection, long names.

use super::*;

const GOOD: [&str; 8] = [
    "top/",
    "top/again 755 #!/bin/sh",
    "top/bin/",
    "top/bin/run 755 #!/bin/sh",
    "top/empty/",
    "top/link -> ../anywhere",
    "top/old-style/",
    "top/read me 644 hello",
];

#[test]
fn every_compression_gives_the_same_tree() {
    let plain = tar(&good());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("encoded");
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).expect("encoded");
    let compressed = [
        ("gzip", gzip.finish().expect("encoded")),
        ("bzip2", bzip2.finish().expect("encoded")),
        ("xz", xz(&plain)),
        ("zstd", zstd::encode_all(&plain[..], 1).expect("encoded")),
        // What tools that append make: two streams, with padding between.
        ("two xz streams", [xz(&plain[..1000]), vec![0; 8], xz(&plain[1000..])].concat()),
        ("plain", plain),
    ];
    for (name, bytes) in compressed {
        let (result, outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
        let unpacked = result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(listing(&outer), GOOD, "{name}");
        assert_eq!((unpacked.files, unpacked.bytes, unpacked.special), (4, 23, vec![]), "{name}");
    }
}

#[test]
fn large_xz_archives_are_decoded_by_threads() {
    // Incompressible, in many blocks, and above the size from which threads are used.
    let mut state = 7u64;
    let body: Vec<u8> = (0..5 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let plain = tar(&[Raw { body: body.clone(), ..Raw::new("big", b'0') }, file("after", "x")]);
    let stream = liblzma::stream::MtStreamBuilder::new()
        .threads(2)
        .block_size(1 << 20)
        .preset(0)
        .check(liblzma::stream::Check::Crc64)
        .encoder()
        .expect("an encoder");
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&plain).expect("encoded");
    let compressed = encoder.finish().expect("encoded");
    assert!(compressed.len() > 4 << 20);
    let (result, outer) = run_with(&compressed, Format::Tar, &UnpackSpec::default());
    assert_eq!(result.expect("unpacked").files, 2);
    assert_eq!(std::fs::read(outer.path().join("into/big")).expect("there"), body);

    // Cut anywhere, damaged anywhere: an error, and an end.
    let (result, _outer) =
        run_with(&compressed[..compressed.len() / 2], Format::Tar, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Decompress { compression: "xz", .. })), "{result:?}");
    let mut damaged = compressed.clone();
    damaged[3 << 20] ^= 1;
    let (result, _outer) = run_with(&damaged, Format::Tar, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Decompress { compression: "xz", .. })), "{result:?}");
    let (result, _outer) =
        run_with(&[&compressed[..], b"garbage!"].concat(), Format::Tar, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Decompress { .. })), "{result:?}");
}

#[test]
fn selection_applies_in_order() {
    let spec = UnpackSpec {
        strip: 1,
        only: vec!["bin".into(), "again".into(), "read*".into()],
        exclude: vec!["bin/secret".into()],
        rename: [("bin".to_owned(), "usr/bin".to_owned())].into(),
        ..UnpackSpec::default()
    };
    let mut entries = good();
    entries.push(file("top/bin/secret", "x"));
    let (result, outer) = run_with(&tar(&entries), Format::Tar, &spec);
    result.expect("unpacked");
    assert_eq!(
        listing(&outer),
        [
            "again 755 #!/bin/sh",
            "read me 644 hello",
            "usr/",
            "usr/bin/",
            "usr/bin/run 755 #!/bin/sh"
        ]
    );

    let spec = UnpackSpec { only: vec!["top/tpyo".into()], ..UnpackSpec::default() };
    let (result, _outer) = run_with(&tar(&good()), Format::Tar, &spec);
    let error = result.expect_err("nothing there");
    assert!(error.to_string().contains("tpyo"), "{error}");
}

#[test]
fn packages_get_a_merged_usr() {
    let entries = [
        directory("./"),
        directory("./lib/"),
        directory("./lib/x/"),
        file("./lib/x/libc.so.6", "elf"),
        symlink("./lib/x/libc.so", "libc.so.6"),
        symlink("./lib/x/data", "../../usr/share/data"),
        symlink("./lib64", "usr/lib64"),
        symlink("./bin", "/usr/bin"),
        hard_link("./usr/bin/c", "./lib/x/libc.so.6"),
        symlink("./etc/alternative", "/usr/bin/c"),
        Raw { mode: 0o4755, ..program("./usr/bin/su", "su") },
        Raw { owner: 42, ..file("./etc/shadow", "s") },
    ];
    let (result, outer) = run_with(&deb(&entries), Format::Deb, &UnpackSpec::default());
    let unpacked = result.expect("unpacked");
    assert_eq!(
        listing(&outer),
        [
            "etc/",
            "etc/alternative -> /usr/bin/c",
            "etc/shadow 644 s",
            "usr/",
            "usr/bin/",
            "usr/bin/c 644 elf",
            "usr/bin/su 755 su",
            "usr/lib/",
            "usr/lib/x/",
            "usr/lib/x/data -> ../../../usr/share/data",
            "usr/lib/x/libc.so -> libc.so.6",
            "usr/lib/x/libc.so.6 644 elf",
        ]
    );
    assert_eq!(
        unpacked.special,
        [
            Special { path: "etc/shadow".into(), mode: 0o644, uid: 42, gid: 42 },
            Special { path: "usr/bin/su".into(), mode: 0o4755, uid: 0, gid: 0 },
        ]
    );
    let (result, _outer) =
        run_with(&deb(&[symlink("./bin", "/etc/bin")]), Format::Deb, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Unmergeable { .. })), "{result:?}");
    let (result, _outer) = run_with(&tar(&good()), Format::Deb, &UnpackSpec::default());
    assert!(matches!(result, Err(UnpackError::Ar { .. })), "{result:?}");
}

#[test]
fn a_file_is_taken_as_it_is() {
    let outer = tempfile::tempdir().expect("a directory");
    let name = format!("{}-patch.diff", "ab".repeat(32));
    let source = outer.path().join(&name);
    std::fs::write(&source, "diff").expect("written");
    for (spec_name, expected) in [(None, "patch.diff"), (Some("other"), "other")] {
        let into = outer.path().join("into");
        std::fs::create_dir(&into).expect("created");
        let spec = UnpackSpec { file_name: spec_name.map(str::to_owned), ..UnpackSpec::default() };
        let unpacked =
            unpack(&source, Format::File, &spec, &into, &CancelToken::new().expect("a descriptor"))
                .expect("copied");
        assert_eq!((unpacked.files, unpacked.bytes), (1, 4));
        assert_eq!(listing(&outer), [format!("{expected} 644 diff")]);
        std::fs::remove_dir_all(into).expect("removed");
    }
}

#[test]
fn long_names_and_pax_are_read() {
    let long = format!("top/{}/{}", "d".repeat(120), "f".repeat(120));
    let link = "t".repeat(150);
    let pax_path = format!("top/{}", "ü".repeat(60));
    let record = format!("path={pax_path}\n");
    // The length counts itself: three digits and a blank.
    let record = format!("{} {record}", record.len() + 4);
    let entries = [
        long_name(b'L', long.as_bytes()),
        file("short", "1"),
        long_name(b'K', link.as_bytes()),
        symlink("link", "short"),
        Raw { body: record.into(), ..Raw::new("PaxHeaders/x", b'x') },
        file("x", "2"),
    ];
    let (result, outer) = run(&entries);
    result.expect("unpacked");
    let into = outer.path().join("into");
    assert_eq!(std::fs::read(into.join(&long)).expect("there"), b"1");
    assert_eq!(std::fs::read(into.join(&pax_path)).expect("there"), b"2");
    assert_eq!(std::fs::read_link(into.join("link")).expect("there"), PathBuf::from(link));
}

#[test]
fn a_cancelled_unpacking_says_so() {
    let outer = tempfile::tempdir().expect("a directory");
    let archive = outer.path().join("archive");
    std::fs::write(&archive, tar(&good())).expect("written");
    let into = outer.path().join("into");
    std::fs::create_dir(&into).expect("created");
    let cancel = CancelToken::new().expect("a descriptor");
    cancel.cancel();
    let result = unpack(&archive, Format::Tar, &UnpackSpec::default(), &into, &cancel);
    assert!(matches!(result, Err(UnpackError::Cancelled)), "{result:?}");
}

#[test]
fn a_gnu_sparse_file_has_its_holes() {
    // Two pieces of 512 bytes at 0 and 4096, the file 8192 long: as GNU tar writes it.
    let mut entry =
        Raw { body: [vec![b'a'; 512], vec![b'b'; 512]].concat(), ..Raw::new("s", b'S') };
    entry.mode = 0o644;
    let mut bytes = entry.bytes();
    let octal = |value: u64| format!("{value:011o}\0").into_bytes();
    for (at, value) in [(386, 0), (398, 512), (410, 4096), (422, 512), (434, 8192), (446, 0)] {
        bytes[at..at + 12].copy_from_slice(&octal(value));
    }
    bytes[483..495].copy_from_slice(&octal(8192));
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend([0; 1024]);
    let (result, outer) = run_with(&bytes, Format::Tar, &UnpackSpec::default());
    result.expect("unpacked");
    let content = std::fs::read(outer.path().join("into/s")).expect("there");
    let expected = [vec![b'a'; 512], vec![0; 3584], vec![b'b'; 512], vec![0; 3584]].concat();
    assert_eq!(content, expected);
}
