//! Fetching over real sockets, with each way in which servers, mirrors and disks disappoint.

mod git;
mod places;
mod server;
mod servers;
mod tls;
mod transfers;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::Digest;
use tempfile::TempDir;

use self::server::{TestServer, respond, serve, start};
use super::*;

struct Bench {
    directory: TempDir,
    config: FetcherConfig,
}

impl Bench {
    fn new() -> Self {
        let config = FetcherConfig {
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(2),
            low_speed_bytes_per_second: 1000,
            low_speed_seconds: 1,
            retries: 2,
            retry_delay: Duration::from_millis(20),
            ..FetcherConfig::default()
        };
        Self { directory: tempfile::tempdir().expect("a directory"), config }
    }

    fn sources(&self) -> PathBuf {
        self.directory.path().join("sources")
    }

    /// What an earlier transfer of the file left.
    fn leave_partial(&self, request: &FetchRequest, bytes: &[u8]) {
        std::fs::create_dir(self.sources()).expect("created");
        let partial = self.sources().join(format!(".partial-{}", request.sha256));
        std::fs::write(partial, bytes).expect("written");
    }

    fn fetch(self, request: &FetchRequest) -> (Result<Fetched, FetchError>, TempDir) {
        let sources = self.sources();
        let result = Fetcher::new(self.config).fetch(
            request,
            &sources,
            &(),
            &CancelToken::new().expect("a descriptor"),
        );
        (result, self.directory)
    }
}

fn content(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(step).collect()
}

fn digest(bytes: &[u8]) -> Sha256 {
    Sha256::from_bytes(sha2::Sha256::digest(bytes).into())
}

fn request(bytes: &[u8], urls: &[String]) -> FetchRequest {
    FetchRequest {
        name: "thing.tar".into(),
        sha256: digest(bytes),
        size_bytes: None,
        urls: urls.to_vec(),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn only_reason(error: FetchError) -> Reason {
    match error {
        FetchError::AllPlacesFailed { mut failures, .. } if failures.len() == 1 => {
            failures.remove(0).reason
        }
        error => panic!("one place should have failed, not: {error}"),
    }
}

/// Nobody listens there: the port was free a moment ago.
fn dead_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}/x", listener.local_addr().expect("bound"))
}

#[derive(Default)]
struct Failures(Mutex<Vec<String>>);

impl Progress for Failures {
    fn failed(&self, failure: &PlaceFailure) {
        self.0.lock().expect("no panic").push(failure.to_string());
    }
}
