//! Programs of a few system calls, made byte by byte: for calls that no tool makes, and without
//! needing a compiler.

use std::path::Path;

/// Up to six arguments; a pointer into the program's data is [`DATA`] plus an offset.
pub(crate) type Call = (i32, [i32; 6]);

/// Where the data is in memory.
pub(crate) const DATA: i32 = 0x40_0800;

/// How the calls enter the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Native,
    /// `int 0x80`: the 32-bit interface, open to 64-bit programs, too.
    Interrupt80,
}

/// Writes an executable that makes the calls in turn, and exits with the last one's errno, or 0.
pub(crate) fn write_program(path: &Path, calls: &[Call], data: &[u8], entry: Entry) {
    let mut code = Vec::new();
    for (number, arguments) in calls {
        let registers: [&[u8]; 6] = [
            &[0x48, 0xc7, 0xc7], // rdi
            &[0x48, 0xc7, 0xc6], // rsi
            &[0x48, 0xc7, 0xc2], // rdx
            &[0x49, 0xc7, 0xc2], // r10
            &[0x49, 0xc7, 0xc0], // r8
            &[0x49, 0xc7, 0xc1], // r9
        ];
        for (register, argument) in registers.iter().zip(arguments) {
            code.extend_from_slice(register);
            code.extend(argument.to_le_bytes());
        }
        code.extend([0x48, 0xc7, 0xc0]); // rax
        code.extend(number.to_le_bytes());
        code.extend(if entry == Entry::Native { [0x0f, 0x05] } else { [0xcd, 0x80] });
    }
    code.extend([0xf7, 0xd8]); // neg eax: an errno becomes positive
    code.extend([0x79, 0x02, 0x31, 0xc0]); // jns over; xor eax, eax: any other result becomes 0
    code.extend([0x89, 0xc7]); // mov edi, eax
    code.extend([0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]); // exit(edi)
    let base: u64 = 0x40_0000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.extend([0; 8]);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend((base + 120).to_le_bytes()); // entry
    file.extend(64u64.to_le_bytes()); // program headers
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // load, rwx
    for value in [0, base, base, 0x1000, 0x1000, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(code);
    assert!(file.len() <= 0x800, "the program is too long");
    file.resize(0x800, 0);
    file.extend(data);
    file.resize(0x1000, 0);
    std::fs::write(path, file).unwrap();
    super::make_executable(path);
}
