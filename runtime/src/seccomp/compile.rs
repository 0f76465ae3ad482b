//! Makes the kernel's program (classic BPF) of a [`Profile`].
//!
//! Layout: check the architecture; for each one, load the number and search a balanced tree of number ranges; a leaf
//! either returns its action, or checks arguments rule by rule and then returns the default.

use std::collections::BTreeMap;

use super::{Action, Arch, Condition, Profile, Test, newest, numbers};
use crate::sys::Instruction;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = libc::BPF_RET as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT) as u16;
const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND) as u16;

/// Offsets in struct seccomp_data.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// What is done with one number: the actions with conditions in their order, then what counts if none holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    conditional: Vec<(Vec<Condition>, Action)>,
    otherwise: Action,
}

/// The program for a profile.
pub(crate) fn compile(profile: &Profile) -> Vec<Instruction> {
    // From the back: programs of the later architectures, so that each check knows how far it has to jump.
    let mut rest = vec![statement(RETURN, foreign(profile.default).0)];
    for arch in profile.arches.iter().rev() {
        let ranges = ranges(profile, *arch);
        let mut body = vec![statement(LOAD, NUMBER_OFFSET)];
        emit_tree(&ranges, &mut body);
        let mut program = vec![jump(JUMP_EQUAL, arch.audit(), 1, 0), statement(JUMP, body.len() as u32)];
        program.append(&mut body);
        program.append(&mut rest);
        rest = program;
    }
    let mut program = vec![statement(LOAD, ARCH_OFFSET)];
    program.append(&mut rest);
    program
}

/// The action for programs of an architecture that the profile does not know: a profile that lets unknown calls through
/// does the same here, every other one ends the program, since nothing is known about what it asks for.
fn foreign(default: Action) -> Action {
    if default == Action::ALLOW { default } else { Action::KILL_PROCESS }
}

/// Number ranges by their first number, neighbours with the same leaf joined; the first starts at 0.
fn ranges(profile: &Profile, arch: Arch) -> Vec<(u32, Leaf)> {
    let nothing = Leaf { conditional: Vec::new(), otherwise: profile.default };
    let mut leaves: BTreeMap<u32, (Leaf, bool)> = BTreeMap::new();
    for rule in &profile.rules {
        for number in numbers(rule, arch) {
            let (leaf, decided) = leaves.entry(number).or_insert_with(|| (nothing.clone(), false));
            if *decided {
                continue;
            }
            if rule.conditions.is_empty() {
                leaf.otherwise = rule.action;
                *decided = true;
            } else {
                leaf.conditional.push((rule.conditions.clone(), rule.action));
            }
        }
    }
    let mut ranges: Vec<(u32, Leaf)> = Vec::new();
    let mut push = |start: u32, leaf: Leaf| {
        if ranges.last().is_none_or(|(_, last)| *last != leaf) {
            ranges.push((start, leaf));
        }
    };
    let mut next = 0;
    for (number, (leaf, _)) in leaves {
        if number > next {
            push(next, nothing.clone());
        }
        push(number, leaf);
        next = number + 1;
    }
    push(next, nothing.clone());
    // Calls that are newer than this program: "not there" makes programs fall back, "not permitted" would not.
    if nothing.otherwise == Action::errno(libc::EPERM) {
        let unknown = newest(arch) + 1;
        ranges.push((
            unknown.max(next),
            Leaf { conditional: Vec::new(), otherwise: Action::errno(libc::ENOSYS) },
        ));
    }
    ranges
}

/// Appends a search for the number (which is in the accumulator) among the ranges.
fn emit_tree(ranges: &[(u32, Leaf)], program: &mut Vec<Instruction>) {
    let [.., (_, leaf)] = ranges else { return };
    if ranges.len() == 1 {
        emit_leaf(leaf, program);
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let mut below = Vec::new();
    emit_tree(low, &mut below);
    match u8::try_from(below.len()) {
        Ok(distance) => program.push(jump(JUMP_GREATER_EQUAL, high[0].0, distance, 0)),
        Err(_) => {
            // Further than a conditional jump reaches.
            program.push(jump(JUMP_GREATER_EQUAL, high[0].0, 0, 1));
            program.push(statement(JUMP, below.len() as u32));
        }
    }
    program.append(&mut below);
    emit_tree(high, program);
}

fn emit_leaf(leaf: &Leaf, program: &mut Vec<Instruction>) {
    for (conditions, action) in &leaf.conditional {
        let mut block = vec![statement(RETURN, action.0)];
        for condition in conditions.iter().rev() {
            let mut check = emit_condition(*condition, block.len() as u8);
            check.append(&mut block);
            block = check;
        }
        program.append(&mut block);
    }
    program.push(statement(RETURN, leaf.otherwise.0));
}

/// A check that goes on behind itself if the condition holds, and else skips `skip` further instructions.
fn emit_condition(condition: Condition, skip: u8) -> Vec<Instruction> {
    let low_offset = ARGUMENTS_OFFSET + 8 * u32::from(condition.argument);
    let (load_low, load_high) = (statement(LOAD, low_offset), statement(LOAD, low_offset + 4));
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    match condition.test {
        Test::IntNotEqual(value) => vec![load_low, jump(JUMP_EQUAL, value, skip, 0)],
        Test::Equal(value) => {
            let (low, high) = halves(value);
            vec![load_high, jump(JUMP_EQUAL, high, 0, skip + 2), load_low, jump(JUMP_EQUAL, low, 0, skip)]
        }
        Test::NotEqual(value) => {
            let (low, high) = halves(value);
            vec![load_high, jump(JUMP_EQUAL, high, 0, 2), load_low, jump(JUMP_EQUAL, low, skip, 0)]
        }
        Test::MaskedEqual(mask, value) => {
            let ((mask_low, mask_high), (low, high)) = (halves(mask), halves(value));
            vec![
                load_high,
                statement(AND, mask_high),
                jump(JUMP_EQUAL, high, 0, skip + 3),
                load_low,
                statement(AND, mask_low),
                jump(JUMP_EQUAL, low, 0, skip),
            ]
        }
        Test::Greater(value) => ordered(value, JUMP_GREATER, true, skip, load_low, load_high),
        Test::GreaterOrEqual(value) => ordered(value, JUMP_GREATER_EQUAL, true, skip, load_low, load_high),
        Test::LessOrEqual(value) => ordered(value, JUMP_GREATER, false, skip, load_low, load_high),
        Test::Less(value) => ordered(value, JUMP_GREATER_EQUAL, false, skip, load_low, load_high),
    }
}

/// Compares 64 bits by their halves: the upper ones decide unless they are equal. `wanted`: whether being greater is
/// what the condition asks for.
fn ordered(
    value: u64,
    low_jump: u16,
    wanted: bool,
    skip: u8,
    load_low: Instruction,
    load_high: Instruction,
) -> Vec<Instruction> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    let (greater, smaller) = if wanted { (0, skip) } else { (skip, 0) };
    vec![
        load_high,
        jump(JUMP_GREATER, high, greater + 3, 0),
        jump(JUMP_EQUAL, high, 0, smaller + 2),
        load_low,
        jump(low_jump, low, greater, smaller),
    ]
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Rule, default_profile};

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], arch: Arch, number: u32, arguments: [u64; 6]) -> Action {
        let mut data = [0u32; 16];
        data[0] = number;
        data[1] = arch.audit();
        for (index, value) in arguments.iter().enumerate() {
            data[4 + 2 * index] = *value as u32;
            data[5 + 2 * index] = (*value >> 32) as u32;
        }
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let instruction = &program[at];
            at += 1;
            let k = instruction.k;
            let taken = match instruction.code {
                LOAD => {
                    accumulator = data[(k / 4) as usize];
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
                other => panic!("instruction {other}"),
            };
            at += usize::from(if taken { instruction.jt } else { instruction.jf });
        }
    }

    fn number(arch: Arch, name: &str) -> u32 {
        arch.number(name).unwrap()
    }

    #[test]
    fn default_profile_decides_as_documented() {
        let program = compile(&default_profile(0));
        let call = |arch, name, first| run(&program, arch, number(arch, name), [first, 0, 0, 0, 0, 0]);
        let denied = Action::errno(libc::EPERM);
        for arch in [Arch::X86_64, Arch::I386] {
            assert_eq!(call(arch, "read", 0), Action::ALLOW);
            assert_eq!(call(arch, "mount", 0), denied);
            assert_eq!(call(arch, "unshare", 0), denied);
            assert_eq!(call(arch, "keyctl", 0), denied);
            assert_eq!(call(arch, "clone3", 0), Action::errno(libc::ENOSYS));
            assert_eq!(call(arch, "clone", 0x0110_0011), Action::ALLOW);
            assert_eq!(call(arch, "clone", 0x1000_0011), denied);
            assert_eq!(call(arch, "socket", 2), Action::ALLOW);
            assert_eq!(call(arch, "socket", 38), denied);
            assert_eq!(call(arch, "socket", 0x1_0000_0026), denied);
            assert_eq!(call(arch, "socket", 40), denied);
            assert_eq!(call(arch, "personality", 0x2_0008), Action::ALLOW);
            assert_eq!(call(arch, "personality", 0x4_0000), denied);
            assert_eq!(run(&program, arch, 0x4000_0000, [0; 6]), Action::errno(libc::ENOSYS));
            assert_eq!(run(&program, arch, 4000, [0; 6]), Action::errno(libc::ENOSYS));
        }
        assert_eq!(call(Arch::I386, "socketcall", 1), Action::errno(libc::ENOSYS));
        assert_eq!(run(&program, Arch::Aarch64, 0, [0; 6]), Action::KILL_PROCESS);
    }

    #[test]
    fn capabilities_open_their_calls() {
        let program = compile(&default_profile(1 << 21));
        let call =
            |name| run(&program, Arch::X86_64, number(Arch::X86_64, name), [0x1000_0000, 0, 0, 0, 0, 0]);
        assert_eq!(call("mount"), Action::ALLOW);
        assert_eq!(call("clone"), Action::ALLOW);
        assert_eq!(call("clone3"), Action::ALLOW);
        assert_eq!(call("reboot"), Action::errno(libc::EPERM));
    }

    #[test]
    fn every_known_number_gets_what_a_plain_lookup_gives() {
        let profile = default_profile(0);
        let program = compile(&profile);
        for arch in [Arch::X86_64, Arch::I386] {
            for (name, number) in arch.table() {
                let plain = profile
                    .rules
                    .iter()
                    .filter(|rule| rule.only.is_none_or(|only| only == arch) && rule.conditions.is_empty())
                    .find(|rule| rule.names.iter().any(|known| known == name))
                    .map_or(profile.default, |rule| rule.action);
                let conditional = ["socket", "clone", "personality"].contains(name);
                if !conditional {
                    assert_eq!(run(&program, arch, *number, [0; 6]), plain, "{name}");
                }
            }
        }
        assert!(program.len() < 700, "{} instructions", program.len());
    }

    #[test]
    fn comparisons_look_at_all_64_bits() {
        let values = [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x5_0000_0001, u64::MAX];
        for value in values {
            for test in [
                Test::Equal(value),
                Test::NotEqual(value),
                Test::Less(value),
                Test::LessOrEqual(value),
                Test::Greater(value),
                Test::GreaterOrEqual(value),
                Test::MaskedEqual(0xff_0000_00ff, value & 0xff_0000_00ff),
            ] {
                let rule = Rule {
                    names: vec!["read".to_owned()],
                    action: Action::errno(7),
                    conditions: vec![Condition { argument: 2, test }],
                    only: None,
                };
                let program = compile(&Profile {
                    default: Action::ALLOW,
                    arches: vec![Arch::X86_64],
                    rules: vec![rule],
                });
                for given in values {
                    let holds = match test {
                        Test::Equal(value) => given == value,
                        Test::NotEqual(value) => given != value,
                        Test::Less(value) => given < value,
                        Test::LessOrEqual(value) => given <= value,
                        Test::Greater(value) => given > value,
                        Test::GreaterOrEqual(value) => given >= value,
                        Test::MaskedEqual(mask, value) => given & mask == value,
                        Test::IntNotEqual(value) => given as u32 != value,
                    };
                    let expected = if holds { Action::errno(7) } else { Action::ALLOW };
                    assert_eq!(
                        run(&program, Arch::X86_64, 0, [0, 0, given, 0, 0, 0]),
                        expected,
                        "{given:x} {test:?}"
                    );
                }
            }
        }
    }
}
