//! The memory of a process of the sandbox, as init reads and writes it to answer a system call.
//!
//! It is read and written as the kernel itself would for that call: within the pages' protections,
//! which `/proc/<pid>/mem` passes over. A caller that hands over a pointer to what it may not write
//! gets EFAULT and keeps its page as it is.

use std::io::{IoSlice, IoSliceMut};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// The memory of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(Pid);

impl Memory {
    /// That of a process or thread; nothing is looked at yet.
    pub(super) fn of(process: Pid) -> Memory {
        Memory(process)
    }

    /// Whether this process may look into it: EACCES if not, or if it is gone.
    pub(super) fn check_access(&self) -> Result<(), Errno> {
        // Nothing lies there in any process; what isn't allowed is refused before that is seen.
        match self.read(0, &mut [0]) {
            Ok(()) | Err(Errno::EFAULT) => Ok(()),
            Err(_) => Err(Errno::EACCES),
        }
    }

    /// Fills `bytes` with what lies at an address. EFAULT: not all of it can be read.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let wanted = bytes.len();
        complete(self.read_some(address, bytes), wanted)
    }

    /// As [`read`](Self::read), as far as there is something; how many bytes.
    pub(super) fn read_some(&self, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let place = RemoteIoVec { base: pointer(address)?, len: bytes.len() };
        process_vm_readv(self.0, &mut [IoSliceMut::new(bytes)], &[place])
    }

    /// Writes `bytes` to an address. EFAULT: not all of it can be written.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let len = bytes.len();
        let place = RemoteIoVec { base: pointer(address)?, len };
        complete(process_vm_writev(self.0, &[IoSlice::new(bytes)], &[place]), len)
    }
}

fn pointer(address: u64) -> Result<usize, Errno> {
    usize::try_from(address).map_err(|_| Errno::EFAULT)
}

/// The kernel stops at the first page that it can't use.
fn complete(moved: Result<usize, Errno>, wanted: usize) -> Result<(), Errno> {
    match moved {
        Ok(moved) if moved == wanted => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_hold() {
        let memory = Memory::of(nix::unistd::getpid());
        let mut room = [1u8; 4];
        let place = room.as_mut_ptr() as u64;
        memory.write(place, &[2, 3]).expect("written");
        let mut found = [0; 4];
        memory.read(place, &mut found).expect("read");
        assert_eq!(found, [2, 3, 1, 1]);
        // A constant lies in a page that can only be read.
        static CONSTANT: [u8; 4] = *b"read";
        let place = CONSTANT.as_ptr() as u64;
        assert_eq!(memory.write(place, b"W"), Err(Errno::EFAULT));
        memory.read(place, &mut found).expect("read");
        assert_eq!(&found, b"read");
        assert_eq!(memory.read(8, &mut found), Err(Errno::EFAULT));
        assert_eq!(memory.check_access(), Ok(()));
    }
}
