//! Runs a filter as the kernel does (seccomp(2), linux/filter.h): to tell what it would let through.

use super::compile::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN};
use super::{Action, Arch};
use crate::sys::Instruction;

/// What becomes of a call. A program that the kernel would not take lets nothing through.
pub(crate) fn run(program: &[Instruction], arch: Arch, number: u32, arguments: [u64; 6]) -> Action {
    const JUMP_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET) as u16;
    let mut data = [0u32; 16];
    data[0] = number;
    data[1] = arch.audit();
    for (index, value) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *value as u32;
        data[5 + 2 * index] = (*value >> 32) as u32;
    }
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let Some(instruction) = program.get(at) else { return Action::KILL_PROCESS };
        at += 1;
        let k = instruction.k;
        let taken = match instruction.code {
            LOAD => {
                accumulator = data.get((k / 4) as usize).copied().unwrap_or(0);
                continue;
            }
            AND => {
                accumulator &= k;
                continue;
            }
            RETURN => return Action(k),
            JUMP => {
                at += k as usize;
                continue;
            }
            JUMP_EQUAL => accumulator == k,
            JUMP_GREATER => accumulator > k,
            JUMP_GREATER_EQUAL => accumulator >= k,
            JUMP_ANY_BIT => accumulator & k != 0,
            other => {
                debug_assert!(false, "instruction {other}");
                return Action::KILL_PROCESS;
            }
        };
        at += usize::from(if taken { instruction.jt } else { instruction.jf });
    }
}
