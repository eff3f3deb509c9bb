//! Archives as they should be, and as attackers make them: headers are written byte by byte here,
//! because well-behaved libraries refuse to.

mod differential;
mod forms;
mod hostile;
mod sound;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// One tar entry.
#[derive(Clone)]
struct Raw {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    mode: u32,
    owner: u64,
    body: Vec<u8>,
    /// What the header says, if not the body's length.
    size: Option<u64>,
}

impl Raw {
    fn new(name: impl AsRef<[u8]>, kind: u8) -> Self {
        let name = name.as_ref().to_owned();
        Self { name, kind, link: vec![], mode: 0o644, owner: 0, body: vec![], size: None }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = [0u8; 512];
        assert!(self.name.len() <= 100 && self.link.len() <= 100, "use a long name");
        header[..self.name.len()].copy_from_slice(&self.name);
        header[100..108].copy_from_slice(format!("{:07o}\0", self.mode).as_bytes());
        header[108..116].copy_from_slice(format!("{:07o}\0", self.owner).as_bytes());
        header[116..124].copy_from_slice(format!("{:07o}\0", self.owner).as_bytes());
        let size = self.size.unwrap_or(self.body.len() as u64);
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = self.kind;
        header[157..157 + self.link.len()].copy_from_slice(&self.link);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = header.to_vec();
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn file(name: &str, body: &str) -> Raw {
    Raw { body: body.into(), ..Raw::new(name, b'0') }
}

fn program(name: &str, body: &str) -> Raw {
    Raw { mode: 0o755, ..file(name, body) }
}

fn directory(name: &str) -> Raw {
    Raw { mode: 0o755, ..Raw::new(name, b'5') }
}

fn symlink(name: &str, target: &str) -> Raw {
    Raw { link: target.into(), ..Raw::new(name, b'2') }
}

fn hard_link(name: &str, target: &str) -> Raw {
    Raw { link: target.into(), ..Raw::new(name, b'1') }
}

fn long_name(kind: u8, name: &[u8]) -> Raw {
    Raw { body: [name, b"\0"].concat(), ..Raw::new("././@LongLink", kind) }
}

fn tar(entries: &[Raw]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(Raw::bytes).collect();
    bytes.extend([0; 1024]);
    bytes
}

fn deb(entries: &[Raw]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    let data = xz(&tar(entries));
    for (name, body) in
        [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", b"odd"), ("data.tar.xz", &data)]
    {
        let length = body.len();
        bytes.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`\n", 0, 0, 0, 100644).bytes(),
        );
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
    }
    bytes
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).expect("encoded");
    encoder.finish().expect("encoded")
}

fn run_with(
    bytes: &[u8],
    format: Format,
    spec: &UnpackSpec,
) -> (Result<Unpacked, UnpackError>, TempDir) {
    let outer = tempfile::tempdir().expect("a directory");
    let archive = outer.path().join("archive");
    std::fs::write(&archive, bytes).expect("written");
    let into = outer.path().join("into");
    std::fs::create_dir(&into).expect("created");
    let result = unpack(&archive, format, spec, &into, &CancelToken::new().expect("a descriptor"));
    (result, outer)
}

fn run(entries: &[Raw]) -> (Result<Unpacked, UnpackError>, TempDir) {
    run_with(&tar(entries), Format::Tar, &UnpackSpec::default())
}

/// Everything below a directory: type, mode and content.
fn listing(outer: &TempDir) -> Vec<String> {
    fn walk(directory: &Path, prefix: &str, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            let name = format!("{prefix}{}", path.file_name().expect("named").to_string_lossy());
            let metadata = path.symlink_metadata().expect("there");
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                let target = std::fs::read_link(&path).expect("a link");
                lines.push(format!("{name} -> {}", target.display()));
            } else if metadata.is_dir() {
                assert_eq!(mode, 0o755, "{name}");
                lines.push(format!("{name}/"));
                walk(&path, &format!("{name}/"), lines);
            } else {
                let content = std::fs::read(&path).expect("readable");
                let content =
                    String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
                lines.push(format!("{name} {mode:o} {content}"));
            }
        }
    }
    let mut lines = Vec::new();
    walk(&outer.path().join("into"), "", &mut lines);
    lines.sort();
    lines
}

fn good() -> Vec<Raw> {
    vec![
        Raw {
            body: b"52 comment=0123456789012345678901234567890123456789\n".to_vec(),
            ..Raw::new("pax_global_header", b'g')
        },
        directory("top/"),
        file("top/read me", "hello"),
        program("top/bin/run", "#!/bin/sh"),
        symlink("top/link", "../anywhere"),
        hard_link("top/again", "top/bin/run"),
        directory("top/empty/"),
        Raw { body: vec![], ..Raw::new("top/old-style/", 0) },
    ]
}
