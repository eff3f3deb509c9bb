//! binfmt_misc handlers: by what bytes the kernel recognises a foreign program, and what runs it.
//!
//! Only the table and the line that is written to `register`; the instance of binfmt_misc that it
//! is written to belongs to the sandbox's user namespace and is made by `apply`. Choosing an
//! emulator, its CPU model and its `uname` is the caller's.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One handler: programs whose first bytes match `magic` under `mask` run by `emulator`.
///
/// It is registered with the flags `O`, `C`, `P` and `F`: the kernel opens the emulator when the
/// handler is registered, so that the emulator needn't be visible in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinfmtHandler {
    /// The handler's name; it also appears as the first argument of emulated processes.
    pub name: String,
    /// Bytes at the start of the program.
    pub magic: Vec<u8>,
    /// Which bits of them count.
    pub mask: Vec<u8>,
    /// A statically linked emulator on the host, usually in a store object.
    pub emulator: PathBuf,
}

/// The last of a program's identifying bytes, which pad: neither the kernel nor an emulator looks
/// at it, but a handler does.
const LAST_OF_PADDING: u64 = 15;

/// Copies an emulator to where nothing is, so that a handler for this machine's own architecture
/// takes all programs but this one: the emulator is such a program itself, and would be run by
/// itself without end.
///
/// # Errors
/// It can't be read, or the copy can't be written.
pub(crate) fn copy_apart(emulator: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut File::open(emulator)?, &mut File::create_new(to)?)?;
    File::options().write(true).open(to)?.write_all_at(&[1], LAST_OF_PADDING)?;
    fs::set_permissions(to, Permissions::from_mode(0o555))
}

/// ELF class and machine number of an architecture whose programs can be emulated.
const ARCHITECTURES: &[(&str, Class, u8)] = &[
    ("x86_64", Class::Bits64, 62),
    ("i386", Class::Bits32, 3),
    ("aarch64", Class::Bits64, 183),
    ("arm", Class::Bits32, 40),
    ("riscv64", Class::Bits64, 243),
];

#[derive(Clone, Copy, Debug)]
enum Class {
    Bits32 = 1,
    Bits64 = 2,
}

impl BinfmtHandler {
    /// The handler of an architecture's ELF programs; `None` for an architecture that isn't known.
    ///
    /// Those are all little-endian.
    #[must_use]
    pub fn for_arch(arch: &str, emulator: impl Into<PathBuf>) -> Option<BinfmtHandler> {
        let (name, class, machine) = ARCHITECTURES.iter().find(|(name, ..)| *name == arch)?;
        let mut magic = vec![0x7f, b'E', b'L', b'F', *class as u8, 1, 1, 0];
        magic.extend([0; 8]);
        magic.extend([2, 0, *machine, 0]); // ET_EXEC
        // As QEMU's own table: the OS ABI byte doesn't count, and 0xfe lets ET_EXEC stand for
        // ET_DYN, too. x86 also lets its version bytes' last bits differ, for old tool chains.
        let mut mask = vec![0xff; 20];
        mask[7] = 0;
        mask[16] = 0xfe;
        if matches!(*name, "x86_64" | "i386") {
            mask[5] = 0xfe;
            mask[6] = 0xfe;
        }
        let name = format!("qemu-{name}");
        Some(BinfmtHandler { name, magic, mask, emulator: emulator.into() })
    }

    /// The architectures that have one, as `for_arch` names them.
    pub fn known() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|(name, ..)| *name)
    }

    /// The line for `register`, with the emulator found at `interpreter`. The kernel itself reads
    /// the `\x` escapes, which keep NUL and `:` out of the line.
    pub(super) fn registration(&self, interpreter: &str) -> String {
        let escaped =
            |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
        let (magic, mask) = (escaped(&self.magic), escaped(&self.mask));
        format!(":{}:M::{magic}:{mask}:{interpreter}:OCPF", self.name)
    }

    /// Whether the name can stand in a registration and name a file in the staging directory.
    pub(super) fn is_valid(&self) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let named = !self.name.is_empty() && self.name.bytes().all(plain);
        let reserved = [".", "..", "status", "register"].contains(&self.name.as_str());
        named && !reserved && self.magic.len() == self.mask.len() && !self.magic.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aarch64_registers_with_literal_escapes() {
        let handler = BinfmtHandler::for_arch("aarch64", "/store/qemu").expect("known");
        assert!(handler.is_valid());
        assert_eq!(
            handler.registration("run/qemu-aarch64"),
            concat!(
                r":qemu-aarch64:M::",
                r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:",
                r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:",
                r"run/qemu-aarch64:OCPF"
            )
        );
    }

    #[test]
    fn every_architecture_matches_its_own_programs_only() {
        for (arch, class, machine) in ARCHITECTURES {
            for kind in [2u8, 3] {
                let mut program = vec![0x7f, b'E', b'L', b'F', *class as u8, 1, 1, 3];
                program.extend([0; 8]);
                program.extend([kind, 0, *machine, 0]);
                for (other, ..) in ARCHITECTURES {
                    let handler = BinfmtHandler::for_arch(other, "/q").expect("known");
                    let matches = (0..20).all(|at| {
                        program[at] & handler.mask[at] == handler.magic[at] & handler.mask[at]
                    });
                    assert_eq!(matches, arch == other, "{arch} program, {other} handler");
                }
            }
        }
        assert_eq!(BinfmtHandler::for_arch("vax", "/q"), None);
    }

    #[test]
    fn a_copy_apart_is_the_one_program_that_is_not_matched() {
        let place = tempfile::tempdir().expect("a directory");
        let (emulator, copy) = (place.path().join("emulator"), place.path().join("copy"));
        let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 3];
        program.extend([0; 8]);
        program.extend([3, 0, 62, 0]);
        fs::write(&emulator, &program).expect("it can be written");
        copy_apart(&emulator, &copy).expect("it can be copied");
        let handler = BinfmtHandler::for_arch("x86_64", &copy).expect("known");
        let matches = |path: &Path| {
            let bytes = fs::read(path).expect("it is there");
            (0..20).all(|at| bytes[at] & handler.mask[at] == handler.magic[at] & handler.mask[at])
        };
        assert_eq!((matches(&emulator), matches(&copy)), (true, false));
        let mode = fs::metadata(&copy).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
        assert!(copy_apart(&emulator, &copy).is_err(), "nothing is written over");
    }

    #[test]
    fn names_cannot_smuggle_fields() {
        let mut handler = BinfmtHandler::for_arch("arm", "/q").expect("known");
        for bad in ["", "a:b", "../x", "register", "a/b", ".."] {
            handler.name = bad.to_owned();
            assert!(!handler.is_valid(), "{bad:?}");
        }
    }
}
