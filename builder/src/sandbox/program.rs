//! The launcher's program: a copy of srp in sealed memory.
//!
//! A sandbox begins as a clone of the launcher, so until its command is executed `/proc/self/exe`
//! in it is the launcher's program. Were that the file of srp on the host's disk, a build that gets
//! hold of it (CVE-2019-5736: a script that begins with `#!/proc/self/exe`) could change it. The
//! copy belongs to nobody else, its bytes can't be changed any more, and once it runs nothing can
//! execute it again.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};
use rustix::fs::{SealFlags, fcntl_add_seals};

use super::error::SandboxError;

/// A sealed copy of `exe`, to be executed by way of its descriptor.
pub(super) fn sealed_copy(exe: &Path) -> Result<OwnedFd, SandboxError> {
    let failed = |source| SandboxError::Launch { exe: exe.to_owned(), source };
    let mut program = File::open(exe).map_err(failed)?;
    let bytes = loaded_bytes(&program).map_err(failed)?;
    let copy = executable_memory().map_err(|source| match source {
        Errno::EACCES => SandboxError::NoExecutableMemory,
        source => failed(source.into()),
    })?;
    let mut copy = File::from(copy);
    match bytes {
        // Within the kernel: these bytes never come into srp's memory.
        Some(bytes) => io::copy(&mut program.take(bytes), &mut copy).map_err(failed)?,
        None => io::copy(&mut program, &mut copy).map_err(failed)?,
    };
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(copy.as_fd(), seals).map_err(|errno| failed(errno.into()))?;
    Ok(copy.into())
}

/// In the launcher, out of the copy: nobody can execute it from here on, not even by
/// `/proc/self/exe`. What runs goes on.
pub(super) fn forbid_execution() -> Result<(), Errno> {
    let io = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let own = fs::read_link("/proc/self/exe").map_err(io)?;
    // Fail closed: whoever starts a launcher otherwise would have the host's file changed.
    if !own.to_string_lossy().starts_with("/memfd:") {
        return Err(Errno::EINVAL);
    }
    fs::set_permissions("/proc/self/exe", Permissions::from_mode(0o000)).map_err(io)
}

fn executable_memory() -> Result<OwnedFd, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let executable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    match memfd_create("srp", flags | executable) {
        // Before Linux 6.3 all such files are executable.
        Err(Errno::EINVAL) => memfd_create("srp", flags),
        result => result,
    }
}

/// How much of a program is ever loaded: what comes after it (symbols, and in builds for debugging
/// most of the file) is not worth copying. `None`: that can't be told.
fn loaded_bytes(program: &File) -> io::Result<Option<u64>> {
    /// Program headers come right after the ELF header.
    const HEADERS_BYTES: u64 = 4096;
    let mut headers = Vec::new();
    program.try_clone()?.take(HEADERS_BYTES).read_to_end(&mut headers)?;
    io::Seek::rewind(&mut &*program)?;
    Ok(end_of_segments(&headers))
}

fn end_of_segments(headers: &[u8]) -> Option<u64> {
    let header = elf::FileHeader64::<Endianness>::parse(headers).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, headers).ok()?;
    let loaded = segments.iter().filter(|it| it.p_type(endian) == elf::PT_LOAD);
    loaded.map(|it| it.p_offset(endian).checked_add(it.p_filesz(endian))).max()?
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_copy_can_be_neither_changed_nor_unsealed() {
        let own = std::env::current_exe().expect("this program");
        let copy = File::from(sealed_copy(&own).expect("copied"));
        let refused = |result: io::Result<()>| {
            assert_eq!(result.expect_err("sealed").raw_os_error(), Some(libc::EPERM));
        };
        refused((&copy).write_all(b"x"));
        refused(copy.set_len(0));
        refused(copy.set_len(1 << 40));
        let more = fcntl_add_seals(copy.as_fd(), SealFlags::FUTURE_WRITE);
        assert_eq!(more, Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn what_is_never_loaded_is_not_copied() {
        let own = File::open(std::env::current_exe().expect("this program")).expect("opened");
        let bytes = loaded_bytes(&own).expect("read").expect("an ELF program");
        let all = own.metadata().expect("examined").len();
        assert!(bytes > 1 << 20 && bytes < all, "{bytes} of {all}");
        assert_eq!(end_of_segments(b"#!/bin/sh\n"), None);
    }
}
