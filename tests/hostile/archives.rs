//! Archives that want out of their destination, or too much of the machine.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Test, tests};
use crate::support::Place;
use crate::support::processes::eventually;
use crate::support::server::Server;

pub(crate) const TESTS: &[Test] = tests![
    an_ordinary_archive_is_unpacked,
    windows_of_gigabytes_are_refused_in_sources,
    windows_of_gigabytes_are_refused_in_outputs,
    holes_of_sparse_files_count,
    an_unpacking_is_interrupted_within_a_second,
    a_search_is_interrupted_within_a_second,
];

fn source(server: &Server, unpack: &str) -> String {
    format!(
        "fetch(name = \"source\", sha256 = \"{}\", urls = [\"{}\"], unpack = {unpack})",
        server.sha256(),
        server.url()
    )
}

/// One header of a tar archive, with the fields of GNU's sparse files if there is such a size.
fn header(name: &str, kind: u8, size: u64, sparse: Option<u64>) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    let mut number = |at: usize, value: u64| {
        block[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    };
    number(124, size);
    if let Some(real) = sparse {
        number(386, real);
        number(398, 0);
        number(483, real);
    }
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A zstd frame with a window of 2 GiB, and 120 kB of data that isn't compressed.
fn wide_frame() -> Vec<u8> {
    let mut frame = b"\x28\xb5\x2f\xfd\0\xa8".to_vec();
    frame.extend(&(120_000u32 << 3 | 1).to_le_bytes()[..3]);
    frame.extend([b'x'; 120_000]);
    frame
}

/// A gzip member that holds nothing.
const EMPTY: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0";

/// Without this, all that is refused here might be refused for another reason.
fn an_ordinary_archive_is_unpacked() {
    let mut bytes = header("a", b'0', 512, None).to_vec();
    bytes.extend([b'x'; 512]);
    let server = Server::of(bytes);
    let place = Place::new(&format!("return {{\"\": {}}}", source(&server, "\"tar\"")));
    assert_eq!(std::fs::read(place.realise("t.x").join("a")).unwrap(), [b'x'; 512]);
}

fn windows_of_gigabytes_are_refused_in_sources() {
    let server = Server::of(wide_frame());
    let place = Place::new(&format!("return {{\"\": {}}}", source(&server, "\"tar\"")));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["a zstd frame needs a window of 2048 MiB, above the limit of 128 MiB"]);
    place.assert_tidy();
}

fn windows_of_gigabytes_are_refused_in_outputs() {
    let server = Server::of(wide_frame());
    let place = Place::new(&format!(
        "file = {}\nreturn {{\"\": sh(\"wide\", \"cp /srp/source/source/source $out/usr/a; \
         cp $out/usr/a $out/usr/b\", sources = [file])}}",
        source(&server, "None")
    ));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["window of 2048 MiB, above the limit of 128 MiB", "allow_sandbox_paths = {\"usr/"]);
    place.assert_tidy();
}

fn holes_of_sparse_files_count() {
    let bytes: Vec<u8> =
        (0..20).flat_map(|at| header(&format!("hole{at}"), b'S', 0, Some(7 << 30))).collect();
    let server = Server::of(bytes);
    let place = Place::new(&format!("return {{\"\": {}}}", source(&server, "\"tar\"")));
    let run = place.srp(&["realise", "t.x"]).exited(3);
    run.says(&["would exceed the limit of 68719476736 bytes, holes included"]);
    place.assert_tidy();
}

/// Realises, interrupts once `ready` says so, and checks how long the end takes.
fn interrupted(place: &Place, ready: impl FnMut() -> bool) {
    let mut command = place.command(&["realise", "t.x"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(eventually(ready), "it never began");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    let asked = Instant::now();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(took < Duration::from_secs(1), "it went on for {took:?}");
}

/// Whether a file of this name lies anywhere below.
fn has(directory: &Path, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let found = entry.file_name().to_string_lossy().ends_with(name);
        found || entry.file_type().is_ok_and(|it| it.is_dir()) && has(&entry.path(), name)
    })
}

fn an_unpacking_is_interrupted_within_a_second() {
    let server = Server::of(EMPTY.repeat(4_000_000));
    let place = Place::new(&format!("return {{\"\": {}}}", source(&server, "\"tar\"")));
    let archived = place.store().join("sources").join(format!("{}-source", server.sha256()));
    interrupted(&place, || archived.is_file());
}

fn a_search_is_interrupted_within_a_second() {
    let server = Server::of(EMPTY.repeat(1000));
    let script = "cp /srp/source/source/source /tmp/a; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do \
                  cat /tmp/a /tmp/a > /tmp/b; mv /tmp/b /tmp/a; done; cp /tmp/a $out/usr/empty.gz; \
                  echo > $out/usr/the-last";
    let place = Place::new(&format!(
        "file = {}\nreturn {{\"\": sh(\"empty\", r'''{script}''', sources = [file])}}",
        source(&server, "None")
    ));
    let store = place.store().join("tmp");
    interrupted(&place, || has(&store, "the-last"));
}
