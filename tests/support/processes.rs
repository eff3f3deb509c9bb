//! The host's processes, for the tests of more than one package.

use std::fs;
use std::time::{Duration, Instant};

/// Host processes whose command line contains `text`.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let own = std::process::id();
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

/// Waits for something to become true, for up to twenty seconds.
pub(crate) fn eventually(mut what: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
