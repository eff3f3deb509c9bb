//! What an ELF file was built for, and the directories in which loaders of that kind look.
//!
//! One table holds everything that depends on a processor, so that a new target is a row. Float
//! and other ABI flags are deliberately not compared: a root holds one ABI of each machine.

use std::fmt;

use object::elf;

/// Word size, from `EI_CLASS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// 32-bit.
    Elf32,
    /// 64-bit.
    Elf64,
}

/// Byte order, from `EI_DATA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endian {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// The three things that two ELF files must share to be loaded into one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElfIdent {
    /// Word size.
    pub class: Class,
    /// `e_machine`.
    pub machine: u16,
    /// Byte order.
    pub endian: Endian,
}

/// How many bytes [`ElfIdent::parse`] wants to see.
pub(super) const IDENT_BYTES: usize = 20;

impl ElfIdent {
    /// Reads the start of a file; `None` when it isn't ELF.
    pub fn parse(head: &[u8]) -> Option<ElfIdent> {
        let head: &[u8; IDENT_BYTES] = head.get(..IDENT_BYTES)?.try_into().ok()?;
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        let class = match head[4] {
            1 => Class::Elf32,
            2 => Class::Elf64,
            _ => return None,
        };
        let (endian, machine) = match head[5] {
            1 => (Endian::Little, u16::from_le_bytes([head[18], head[19]])),
            2 => (Endian::Big, u16::from_be_bytes([head[18], head[19]])),
            _ => return None,
        };
        Some(ElfIdent { class, machine, endian })
    }

    fn row(self) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.ident == self)
    }

    /// Names of `/etc/ld-musl-NAME.path`, musl's list of directories.
    pub(super) fn musl_names(self) -> &'static [&'static str] {
        self.row().map_or(&[], |row| row.musl)
    }

    /// What `$LIB` may stand for, and the directories of `/usr` in which glibc's loader looks, in
    /// its order: the multiarch directory of Debian's, the one of the word size, then `lib`.
    pub(super) fn library_directories(self) -> impl Iterator<Item = String> {
        let (triples, suffixed): (&[&str], &[&str]) =
            self.row().map_or((&[], &[]), |row| (row.triples, row.directories));
        triples
            .iter()
            .map(|triple| format!("lib/{triple}"))
            .chain(suffixed.iter().map(|&directory| directory.to_owned()))
            .chain(std::iter::once("lib".to_owned()))
    }
}

impl fmt::Display for ElfIdent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => formatter.write_str(row.name),
            None => write!(
                formatter,
                "machine {} ({}-bit, {} endian)",
                self.machine,
                if self.class == Class::Elf32 { 32 } else { 64 },
                if self.endian == Endian::Little { "little" } else { "big" },
            ),
        }
    }
}

/// Every multiarch directory name, for what isn't tied to a machine (pkg-config).
pub(super) fn multiarch_triples() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|row| row.triples.iter().copied())
}

struct Row {
    ident: ElfIdent,
    name: &'static str,
    triples: &'static [&'static str],
    musl: &'static [&'static str],
    directories: &'static [&'static str],
}

const fn ident(class: Class, machine: elf::Machine, endian: Endian) -> ElfIdent {
    ElfIdent { class, machine: machine.0, endian }
}

use Class::{Elf32, Elf64};
use Endian::{Big, Little};

const ROWS: &[Row] = &[
    Row {
        ident: ident(Elf64, elf::EM_X86_64, Little),
        name: "x86_64",
        triples: &["x86_64-linux-gnu"],
        musl: &["x86_64"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf32, elf::EM_X86_64, Little),
        name: "x86_64 (x32)",
        triples: &["x86_64-linux-gnux32"],
        musl: &["x32"],
        directories: &["libx32"],
    },
    Row {
        ident: ident(Elf32, elf::EM_386, Little),
        name: "i386",
        triples: &["i386-linux-gnu"],
        musl: &["i386"],
        directories: &["lib32"],
    },
    Row {
        ident: ident(Elf64, elf::EM_AARCH64, Little),
        name: "aarch64",
        triples: &["aarch64-linux-gnu"],
        musl: &["aarch64"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf64, elf::EM_AARCH64, Big),
        name: "aarch64_be",
        triples: &["aarch64_be-linux-gnu"],
        musl: &["aarch64_be"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf32, elf::EM_ARM, Little),
        name: "arm",
        triples: &["arm-linux-gnueabihf", "arm-linux-gnueabi"],
        musl: &["armhf", "arm"],
        directories: &["lib32"],
    },
    Row {
        ident: ident(Elf64, elf::EM_RISCV, Little),
        name: "riscv64",
        triples: &["riscv64-linux-gnu"],
        musl: &["riscv64", "riscv64-sp", "riscv64-sf"],
        directories: &["lib64/lp64d", "lib64"],
    },
    Row {
        ident: ident(Elf32, elf::EM_RISCV, Little),
        name: "riscv32",
        triples: &["riscv32-linux-gnu"],
        musl: &["riscv32", "riscv32-sp", "riscv32-sf"],
        directories: &["lib32/ilp32d", "lib32"],
    },
    Row {
        ident: ident(Elf64, elf::EM_PPC64, Little),
        name: "powerpc64le",
        triples: &["powerpc64le-linux-gnu"],
        musl: &["powerpc64le"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf64, elf::EM_PPC64, Big),
        name: "powerpc64",
        triples: &["powerpc64-linux-gnu"],
        musl: &["powerpc64"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf64, elf::EM_S390, Big),
        name: "s390x",
        triples: &["s390x-linux-gnu"],
        musl: &["s390x"],
        directories: &["lib64"],
    },
    Row {
        ident: ident(Elf64, elf::EM_LOONGARCH, Little),
        name: "loongarch64",
        triples: &["loongarch64-linux-gnu"],
        musl: &["loongarch64"],
        directories: &["lib64"],
    },
];
