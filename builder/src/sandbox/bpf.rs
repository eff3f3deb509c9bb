//! Classic BPF as data: the instructions that a seccomp filter is made of, and an assembler that
//! resolves jumps between them.
//!
//! It knows the machine, not the policy (that is `seccomp`). The interpreter at the end exists for
//! tests only: a filter is checked by running it, not by looking at it.

/// One instruction, as `struct sock_filter` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) value: u32,
}

/// What of `struct seccomp_data` is loaded. System calls take 32-bit arguments in the low word,
/// and the kernel ignores the high one wherever this filter looks, so only low words are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Number,
    Architecture,
    /// Low 32 bits of argument 0 to 5 (little-endian machines; srp builds on no other).
    Argument(u8),
    /// Their high 32 bits, for pointers.
    HighArgument(u8),
}

impl Field {
    fn offset(self) -> u32 {
        match self {
            Field::Number => 0,
            Field::Architecture => 4,
            Field::Argument(n) => 16 + 8 * u32::from(n),
            Field::HighArgument(n) => 20 + 8 * u32::from(n),
        }
    }
}

/// A comparison of the loaded word with a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u32),
    AtLeast(u32),
    AnyBitOf(u32),
}

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Assembles a program; every construct falls through to what comes next.
#[derive(Debug, Default)]
pub(super) struct Program(Vec<Instruction>);

impl Program {
    pub(super) fn load(&mut self, field: Field) -> &mut Self {
        self.push(LOAD_WORD, field.offset())
    }

    pub(super) fn and(&mut self, mask: u32) -> &mut Self {
        self.push(AND, mask)
    }

    /// Ends the program with a seccomp action.
    pub(super) fn answer(&mut self, action: u32) {
        self.push(RETURN, action);
    }

    /// Runs `body` when the loaded word passes `test`, else skips it. A long body gets an
    /// unconditional jump, because a conditional one reaches 255 instructions only.
    pub(super) fn when(&mut self, test: Test, body: impl FnOnce(&mut Program)) -> &mut Self {
        let mut inner = Program::default();
        body(&mut inner);
        let (code, value) = match test {
            Test::Equal(value) => (JUMP_EQUAL, value),
            Test::AtLeast(value) => (JUMP_AT_LEAST, value),
            Test::AnyBitOf(value) => (JUMP_ANY_BIT, value),
        };
        match u8::try_from(inner.0.len()) {
            Ok(length) => {
                self.0.push(Instruction { code, jump_true: 0, jump_false: length, value });
            }
            Err(_) => {
                self.0.push(Instruction { code, jump_true: 1, jump_false: 0, value });
                let length = u32::try_from(inner.0.len()).expect("filters have few instructions");
                self.push(JUMP_ALWAYS, length);
            }
        }
        self.0.append(&mut inner.0);
        self
    }

    /// Runs `body` when the loaded word fails `test`.
    pub(super) fn unless(&mut self, test: Test, body: impl FnOnce(&mut Program)) -> &mut Self {
        let before = self.0.len();
        self.when(test, body);
        let jump = &mut self.0[before];
        (jump.jump_true, jump.jump_false) = match (jump.jump_true, jump.jump_false) {
            (0, length) => (length, 0),
            _ => (0, 1), // past the unconditional jump over a long body
        };
        self
    }

    pub(super) fn finish(self) -> Vec<Instruction> {
        self.0
    }

    fn push(&mut self, code: u16, value: u32) -> &mut Self {
        self.0.push(Instruction { code, jump_true: 0, jump_false: 0, value });
        self
    }
}

/// What the kernel would do with a system call, by interpreting the program as it does.
#[cfg(test)]
pub(super) fn interpret(
    program: &[Instruction],
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
) -> u32 {
    let mut data = [0u32; 16];
    data[0] = number;
    data[1] = architecture;
    for (n, argument) in arguments.iter().enumerate() {
        data[4 + 2 * n] = *argument as u32;
        data[5 + 2 * n] = (*argument >> 32) as u32;
    }
    let (mut at, mut word) = (0usize, 0u32);
    loop {
        let i = program[at];
        let jump = |taken: bool| usize::from(if taken { i.jump_true } else { i.jump_false });
        at += 1;
        match i.code {
            LOAD_WORD => word = data[i.value as usize / 4],
            AND => word &= i.value,
            JUMP_ALWAYS => at += i.value as usize,
            JUMP_EQUAL => at += jump(word == i.value),
            JUMP_AT_LEAST => at += jump(word >= i.value),
            JUMP_ANY_BIT => at += jump(word & i.value != 0),
            RETURN => return i.value,
            code => panic!("the filter uses instruction {code:#x}, which seccomp may refuse"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bodies_jump_over_the_255_instruction_limit() {
        for (unless, number, expected) in [(false, 7, 1), (false, 8, 2), (true, 7, 2), (true, 8, 1)]
        {
            let mut program = Program::default();
            program.load(Field::Number);
            let body = |p: &mut Program| {
                for _ in 0..300 {
                    p.and(u32::MAX);
                }
                p.answer(1);
            };
            if unless {
                program.unless(Test::Equal(7), body);
            } else {
                program.when(Test::Equal(7), body);
            }
            program.answer(2);
            assert_eq!(interpret(&program.finish(), 0, number, [0; 6]), expected);
        }
    }
}
