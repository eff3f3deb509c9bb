//! Looks at a sandbox's processes from outside, through the sandbox's own `/proc`.
//!
//! This is the watchdog where no cgroup is delegated. Private and shared memory is summed over the
//! processes, of mapped files only the largest process's share counts (compilers of one build map
//! the same libraries), and what lies in the sandbox's memory file system is added. Pages that a
//! fork shares are counted twice by that, so a sum beyond the limit is checked by proportional
//! shares before anybody is killed. Memory without a mapping (pipes, memory files that are written
//! and not mapped) escapes it; a cgroup counts that, too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;

/// A sandbox's `/proc` and its memory file system, opened by its init.
#[derive(Debug)]
pub(super) struct Watch {
    proc: OwnedFd,
    staging: OwnedFd,
}

/// What a sandbox used at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processes and threads, without init.
    pub(super) tasks: u64,
    /// An upper estimate of memory.
    pub(super) memory_bytes: u64,
}

impl Watch {
    /// The sandbox's `/proc`.
    pub(super) fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    pub(super) fn new(proc: OwnedFd, staging: OwnedFd) -> Self {
        Watch { proc, staging }
    }

    /// Sums over the processes.
    pub(super) fn usage(&self) -> Result<Usage, Errno> {
        let mut usage = Usage::default();
        let mut largest_mapping = 0;
        let mut buffer = vec![0; 8192];
        self.for_each_process(|watch, pid| {
            let Some(text) = watch.read(&format!("{pid}/status"), &mut buffer)? else {
                return Ok(());
            };
            let status = parse_status(text);
            usage.tasks += status.threads;
            usage.memory_bytes += status.private_bytes + status.shared_bytes;
            largest_mapping = largest_mapping.max(status.file_bytes);
            Ok(())
        })?;
        usage.memory_bytes += largest_mapping + self.scratch_bytes()?;
        Ok(usage)
    }

    /// The processes' proportional shares of memory: exact and expensive.
    pub(super) fn proportional_bytes(&self) -> Result<u64, Errno> {
        let mut sum = self.scratch_bytes()?;
        let mut buffer = vec![0; 8192];
        self.for_each_process(|watch, pid| {
            let name = format!("{pid}/smaps_rollup");
            if let Some(text) = watch.read(&name, &mut buffer)? {
                sum += field(text, "Pss:").unwrap_or(0) * 1024;
            }
            Ok(())
        })?;
        Ok(sum)
    }

    fn for_each_process(
        &self,
        mut visit: impl FnMut(&Self, &str) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.proc, ".", flags, Mode::empty())?;
        for entry in dir.iter() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name != "1" && name.bytes().all(|byte| byte.is_ascii_digit()) {
                visit(self, name)?;
            }
        }
        Ok(())
    }

    /// Reads a small file of `/proc`; `None` if its process is gone.
    fn read<'b>(&self, path: &str, buffer: &'b mut [u8]) -> Result<Option<&'b str>, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = match openat(self.proc.as_fd(), path, flags, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
            file => file?,
        };
        match nix::unistd::read(&file, buffer) {
            Err(Errno::ESRCH) => Ok(None),
            length => Ok(std::str::from_utf8(&buffer[..length?]).ok()),
        }
    }

    fn scratch_bytes(&self) -> Result<u64, Errno> {
        let used = fstatvfs(&self.staging)?;
        Ok((used.blocks() - used.blocks_free()) * used.fragment_size())
    }
}

/// What a process's `status` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ProcessStatus {
    threads: u64,
    private_bytes: u64,
    shared_bytes: u64,
    file_bytes: u64,
}

fn parse_status(text: &str) -> ProcessStatus {
    // A name may contain anything but a line break, and comes first, so it can't forge a field.
    ProcessStatus {
        threads: field(text, "Threads:").unwrap_or(0),
        private_bytes: field(text, "RssAnon:").unwrap_or(0) * 1024,
        shared_bytes: field(text, "RssShmem:").unwrap_or(0) * 1024,
        file_bytes: field(text, "RssFile:").unwrap_or(0) * 1024,
    }
}

/// The number at the start of the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_by_field() {
        let text = "Name:\tThreads: 99\nUmask:\t0022\nVmRSS:\t    900 kB\nRssAnon:\t     128 kB\n\
                    RssFile:\t     640 kB\nRssShmem:\t       4 kB\nThreads:\t3\n";
        let expected = ProcessStatus {
            threads: 3,
            private_bytes: 128 << 10,
            shared_bytes: 4 << 10,
            file_bytes: 640 << 10,
        };
        assert_eq!(parse_status(text), expected);
        // A zombie has no memory lines.
        let zombie = parse_status("Name:\tsh\nState:\tZ (zombie)\nThreads:\t1\n");
        assert_eq!(zombie, ProcessStatus { threads: 1, ..Default::default() });
    }
}
