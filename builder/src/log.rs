//! Build logs: plain files, read from their end.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The last lines of a log. That it can't be read is no lines: the log explains a failure and is
/// never the cause of one.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    const MOST_BYTES: u64 = 64 << 10;
    let read = || {
        let mut file = srp_store::open_plain(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let text: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&path, text).expect("written");
        assert_eq!(tail(&path, 2), ["line 19998", "line 19999"]);
        assert!(tail(&directory.path().join("none"), 2).is_empty());
    }
}
