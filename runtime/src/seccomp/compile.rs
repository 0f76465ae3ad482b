//! Makes the kernel's program (classic BPF) of a [`Profile`].
//!
//! Layout: check the architecture; for each one, load the number and search a balanced tree of number ranges; a leaf
//! either returns its action, or checks arguments rule by rule and then returns the default.

use super::calls::{CARRIERS, Carrier, X32_BIT};
use super::tables::NEWEST;
use super::{Action, Arch, Call, Condition, Profile, Test};
use crate::sys::Instruction;

pub(super) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const RETURN: u16 = libc::BPF_RET as u16;
pub(super) const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub(super) const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ) as u16;
pub(super) const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT) as u16;
pub(super) const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE) as u16;
pub(super) const AND: u16 = (libc::BPF_ALU | libc::BPF_AND) as u16;

/// Offsets in struct seccomp_data.
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// The last number of x32's own, and with it of x32.
const NEWEST_X32: u32 = X32_BIT | 547;

/// What is done with one call: the actions with conditions in their order, then what counts if none holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    conditional: Vec<(Vec<Condition>, Action)>,
    otherwise: Action,
    /// Whether only the lower halves of arguments are compared.
    narrow: bool,
}

impl Leaf {
    fn plain(action: Action) -> Leaf {
        Leaf { conditional: Vec::new(), otherwise: action, narrow: false }
    }

    /// What counts where conditions cannot be checked.
    fn strictest(&self) -> Action {
        self.conditional.iter().fold(self.otherwise, |action, (_, other)| action.stricter(*other))
    }
}

/// The program for a profile.
pub(crate) fn compile(profile: &Profile) -> Vec<Instruction> {
    let calls = by_call(profile);
    let mut program = vec![statement(LOAD, ARCH_OFFSET)];
    // x32 is in the same tree as x86_64: to the kernel it is the same architecture.
    for arch in profile.arches.iter().filter(|arch| **arch != Arch::X32) {
        program.push(jump(JUMP_EQUAL, arch.audit(), 1, 0));
        let skip = program.len();
        program.push(statement(JUMP, 0));
        program.push(statement(LOAD, NUMBER_OFFSET));
        emit_tree(&ranges(profile, &calls, *arch), &mut program);
        program[skip].k = (program.len() - skip - 1) as u32;
    }
    program.push(statement(RETURN, Action::KILL_PROCESS.0));
    program
}

/// What the rules say of each call that they name, ordered by call.
fn by_call(profile: &Profile) -> Vec<(Call, Leaf)> {
    let rules = profile.rules.iter().enumerate();
    let mut named: Vec<(Call, usize)> =
        rules.flat_map(|(index, rule)| rule.calls.iter().map(move |call| (*call, index))).collect();
    named.sort_unstable();
    let mut leaves: Vec<(Call, Leaf)> = Vec::with_capacity(named.len());
    // Whether a rule without conditions has spoken of the last call.
    let mut decided = false;
    for (call, index) in named {
        let rule = &profile.rules[index];
        if leaves.last().is_none_or(|(last, _)| *last != call) {
            leaves.push((call, Leaf::plain(profile.default)));
            decided = false;
        }
        let Some((_, leaf)) = leaves.last_mut().filter(|_| !decided) else { continue };
        if rule.conditions.is_empty() {
            *leaf = Leaf::plain(rule.action);
            decided = true;
        } else {
            leaf.conditional.push((rule.conditions.clone(), rule.action));
        }
    }
    leaves
}

/// Number ranges of an architecture by their first number, neighbours with the same leaf joined; the first starts at 0.
fn ranges(profile: &Profile, calls: &[(Call, Leaf)], arch: Arch) -> Vec<(u32, Leaf)> {
    let with_x32 = arch == Arch::X86_64 && profile.arches.contains(&Arch::X32);
    let mut numbered = numbered(calls, arch);
    if with_x32 {
        // They have a bit set, so they are greater than all others.
        numbered.extend(self::numbered(calls, Arch::X32));
    }
    if arch == Arch::I386 {
        CARRIERS.iter().for_each(|carrier| carry(carrier, calls, profile.default, &mut numbered));
    }
    let unnamed = unnamed(profile.default, arch, with_x32);
    let mut ranges: Vec<(u32, Leaf)> = Vec::with_capacity(numbered.len());
    let mut push = |start: u32, leaf: Leaf| {
        if ranges.last().is_none_or(|(_, last)| *last != leaf) {
            ranges.push((start, leaf));
        }
    };
    let mut next = 0u32;
    let gap = |from: u32, to: u64, push: &mut dyn FnMut(u32, Leaf)| {
        for (index, (start, action)) in unnamed.iter().enumerate() {
            let end = unnamed.get(index + 1).map_or(1 << 32, |(start, _)| u64::from(*start));
            if u64::from(from.max(*start)) < to.min(end) {
                push(from.max(*start), Leaf::plain(*action));
            }
        }
    };
    for (number, leaf) in numbered {
        gap(next, number.into(), &mut push);
        push(number, leaf);
        next = number + 1;
    }
    gap(next, 1 << 32, &mut push);
    ranges
}

fn numbered(calls: &[(Call, Leaf)], arch: Arch) -> Vec<(u32, Leaf)> {
    let number = |(call, leaf): &(Call, Leaf)| {
        let narrow = arch.is_narrow() && !leaf.conditional.is_empty();
        Some((call.number(arch)?, Leaf { narrow, ..leaf.clone() }))
    };
    let mut numbered: Vec<(u32, Leaf)> = calls.iter().filter_map(number).collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered
}

/// What happens to numbers that no rule names, by the first number of each range.
fn unnamed(default: Action, arch: Arch, with_x32: bool) -> Vec<(u32, Action)> {
    // "Not there" makes programs fall back to older calls, "not permitted" would not.
    let absent = Action::errno(libc::ENOSYS);
    let newer = if default == Action::errno(libc::EPERM) { absent } else { default };
    let mut ranges = vec![(0, default), (NEWEST + 1, newer)];
    match arch {
        Arch::X86_64 if with_x32 => ranges.extend([(X32_BIT, default), (NEWEST_X32 + 1, newer)]),
        Arch::X86_64 if newer == absent => {}
        // All bits set is what a tracer leaves of a call that it has taken away (seccomp(2)).
        Arch::X86_64 => ranges.extend([(X32_BIT, Action::KILL_PROCESS), (u32::MAX, default)]),
        _ => {}
    }
    ranges
}

/// Gives a carrier call the rules of the calls that it carries, unless it has a rule of its own for all of them.
fn carry(carrier: &Carrier, calls: &[(Call, Leaf)], default: Action, numbered: &mut Vec<(u32, Leaf)>) {
    let leaf_of = |name: &str| {
        let call = Call::named(name)?;
        calls.binary_search_by_key(&call, |(call, _)| *call).ok().map(|index| &calls[index].1)
    };
    let Some(number) = Call::named(carrier.name).and_then(|call| call.number(Arch::I386)) else { return };
    let place = numbered.binary_search_by_key(&number, |(number, _)| *number);
    let mut leaf = match place {
        Ok(at) if numbered[at].1.conditional.is_empty() => return,
        Ok(at) => numbered[at].1.clone(),
        Err(_) => Leaf::plain(default),
    };
    leaf.narrow = true;
    for (name, function) in carrier.carried {
        let Some(action) = leaf_of(name).map(Leaf::strictest).filter(|action| *action != default) else {
            continue;
        };
        let test = Test::MaskedEqual(carrier.mask.into(), (*function).into());
        leaf.conditional.push((vec![Condition { argument: 0, test }], action));
    }
    if leaf.conditional.is_empty() {
        return;
    }
    match place {
        Ok(at) => numbered[at].1 = leaf,
        Err(at) => numbered.insert(at, (number, leaf)),
    }
}

/// Appends a search for the number (which is in the accumulator) among the ranges.
fn emit_tree(ranges: &[(u32, Leaf)], program: &mut Vec<Instruction>) {
    let [.., (_, leaf)] = ranges else { return };
    if ranges.len() == 1 {
        emit_leaf(leaf, program);
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let at = program.len();
    program.push(jump(JUMP_GREATER_EQUAL, high[0].0, 0, 0));
    emit_tree(low, program);
    let below = program.len() - at - 1;
    match u8::try_from(below) {
        Ok(distance) => program[at].jt = distance,
        Err(_) => {
            // Further than a conditional jump reaches. What lies between only jumps within itself, so it can be moved.
            program[at].jf = 1;
            program.insert(at + 1, statement(JUMP, below as u32));
        }
    }
    emit_tree(high, program);
}

fn emit_leaf(leaf: &Leaf, program: &mut Vec<Instruction>) {
    for (conditions, action) in &leaf.conditional {
        // Six conditions of six instructions at most, so every jump out of one of them reaches.
        let mut blocks: Vec<Vec<Instruction>> = vec![vec![statement(RETURN, action.0)]];
        let mut behind = 1;
        for condition in conditions.iter().rev() {
            let check = emit_condition(*condition, behind, leaf.narrow);
            behind += check.len() as u8;
            blocks.push(check);
        }
        program.extend(blocks.into_iter().rev().flatten());
    }
    program.push(statement(RETURN, leaf.otherwise.0));
}

/// A check that goes on behind itself if the condition holds, and else skips `skip` further instructions.
fn emit_condition(condition: Condition, skip: u8, narrow: bool) -> Vec<Instruction> {
    let low_offset = ARGUMENTS_OFFSET + 8 * u32::from(condition.argument);
    let (load_low, load_high) = (statement(LOAD, low_offset), statement(LOAD, low_offset + 4));
    let halves = |value: u64| (value as u32, (value >> 32) as u32);
    let ordered = |value: u64, low_jump, wanted| {
        let (low, high) = halves(value);
        let (greater, smaller) = if wanted { (0, skip) } else { (skip, 0) };
        let last = [load_low, jump(low_jump, low, greater, smaller)];
        if narrow {
            return last.to_vec();
        }
        // The upper halves decide unless they are equal.
        let first =
            [load_high, jump(JUMP_GREATER, high, greater + 3, 0), jump(JUMP_EQUAL, high, 0, smaller + 2)];
        [&first[..], &last[..]].concat()
    };
    match condition.test {
        Test::Equal(value) => {
            let (low, high) = halves(value);
            let last = [load_low, jump(JUMP_EQUAL, low, 0, skip)];
            if narrow {
                return last.to_vec();
            }
            [&[load_high, jump(JUMP_EQUAL, high, 0, skip + 2)], &last[..]].concat()
        }
        Test::NotEqual(value) => {
            let (low, high) = halves(value);
            let last = [load_low, jump(JUMP_EQUAL, low, skip, 0)];
            if narrow {
                return last.to_vec();
            }
            [&[load_high, jump(JUMP_EQUAL, high, 0, 2)], &last[..]].concat()
        }
        Test::MaskedEqual(mask, value) => {
            // Bits of the value that the mask takes away count for nothing, as in libseccomp.
            let ((mask_low, mask_high), (low, high)) = (halves(mask), halves(mask & value));
            let last = [load_low, statement(AND, mask_low), jump(JUMP_EQUAL, low, 0, skip)];
            if narrow {
                return last.to_vec();
            }
            let first = [load_high, statement(AND, mask_high), jump(JUMP_EQUAL, high, 0, skip + 3)];
            [first, last].concat()
        }
        Test::Greater(value) => ordered(value, JUMP_GREATER, true),
        Test::GreaterOrEqual(value) => ordered(value, JUMP_GREATER_EQUAL, true),
        Test::LessOrEqual(value) => ordered(value, JUMP_GREATER, false),
        Test::Less(value) => ordered(value, JUMP_GREATER_EQUAL, false),
    }
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
    use crate::seccomp::Rule;
    use crate::seccomp::simulator::run;

    fn rule(names: &[&str], action: Action, conditions: &[Condition]) -> Rule {
        let calls = names.iter().map(|name| Call::named(name).unwrap()).collect();
        Rule { calls, action, conditions: conditions.to_vec() }
    }

    fn is(argument: u8, value: u64) -> Condition {
        Condition { argument, test: Test::Equal(value) }
    }

    const ONE: Action = Action::errno(1001);
    const TWO: Action = Action::errno(1002);

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
                Test::MaskedEqual(0xff_0000_00ff, value),
            ] {
                let arches = vec![Arch::X86_64, Arch::I386];
                let rules = vec![rule(&["read"], ONE, &[Condition { argument: 2, test }])];
                let program = compile(&Profile { default: Action::ALLOW, arches, rules });
                for given in values {
                    let holds = |bits: u64| {
                        let given = given & bits;
                        match test {
                            Test::Equal(value) => given == value & bits,
                            Test::NotEqual(value) => given != value & bits,
                            Test::Less(value) => given < value & bits,
                            Test::LessOrEqual(value) => given <= value & bits,
                            Test::Greater(value) => given > value & bits,
                            Test::GreaterOrEqual(value) => given >= value & bits,
                            Test::MaskedEqual(mask, value) => given & mask == value & mask & bits,
                        }
                    };
                    let action = |holds| if holds { ONE } else { Action::ALLOW };
                    let arguments = [0, 0, given, 0, 0, 0];
                    let wide = run(&program, Arch::X86_64, 0, arguments);
                    assert_eq!(wide, action(holds(u64::MAX)), "{given:x} {test:?}");
                    let narrow = run(&program, Arch::I386, 3, [0, 0, given & 0xffff_ffff, 0, 0, 0]);
                    assert_eq!(narrow, action(holds(0xffff_ffff)), "{given:x} {test:?}, 32 bits");
                }
            }
        }
    }

    #[test]
    fn a_rule_without_conditions_outweighs_those_with() {
        let with = rule(&["read"], ONE, &[is(0, 3)]);
        let without = rule(&["read"], TWO, &[]);
        for rules in [vec![with.clone(), without.clone()], vec![without, with]] {
            let program = compile(&Profile { default: Action::ALLOW, arches: vec![Arch::X86_64], rules });
            assert_eq!(run(&program, Arch::X86_64, 0, [3, 0, 0, 0, 0, 0]), TWO);
        }
    }

    #[test]
    fn all_conditions_of_a_rule_and_any_rule() {
        let rules = vec![rule(&["read"], ONE, &[is(0, 3), is(1, 4)]), rule(&["read"], TWO, &[is(2, 5)])];
        let program = compile(&Profile { default: Action::ALLOW, arches: vec![Arch::X86_64], rules });
        let run = |a, b, c| run(&program, Arch::X86_64, 0, [a, b, c, 0, 0, 0]);
        assert_eq!(run(3, 4, 0), ONE);
        assert_eq!(run(3, 0, 5), TWO);
        assert_eq!(run(3, 0, 0), Action::ALLOW);
    }

    #[test]
    fn carried_calls_follow_their_rules_and_fail_closed() {
        let i386 =
            |rules, default| compile(&Profile { default, arches: vec![Arch::X86_64, Arch::I386], rules });
        let carrier = |program: &[Instruction], name, function| {
            let number = Call::named(name).unwrap().number(Arch::I386).unwrap();
            run(program, Arch::I386, number, [function, 0, 0, 0, 0, 0])
        };
        let denied = Action::errno(libc::EPERM);
        let rules = vec![
            rule(&["bind", "shmat", "accept"], Action::ALLOW, &[]),
            rule(&["socket"], Action::ALLOW, &[is(0, 2)]),
        ];
        let program = i386(rules, denied);
        assert_eq!(carrier(&program, "socketcall", 2), Action::ALLOW);
        assert_eq!(carrier(&program, "socketcall", 5), Action::ALLOW);
        assert_eq!(carrier(&program, "socketcall", 1), denied, "which socket cannot be seen");
        assert_eq!(carrier(&program, "socketcall", 3), denied);
        assert_eq!(carrier(&program, "ipc", 21), Action::ALLOW);
        assert_eq!(carrier(&program, "ipc", 0x1_0015), Action::ALLOW, "a version in the upper half");
        assert_eq!(carrier(&program, "ipc", 23), denied);
        // The other way round: what is forbidden only sometimes is forbidden here.
        let rules = vec![rule(&["socket"], ONE, &[is(0, 38)]), rule(&["shmget"], TWO, &[])];
        let program = i386(rules.clone(), Action::ALLOW);
        assert_eq!(carrier(&program, "socketcall", 1), ONE);
        assert_eq!(carrier(&program, "ipc", 0x1_0017), TWO);
        assert_eq!(carrier(&program, "ipc", 21), Action::ALLOW);
        // A rule of its own for the whole carrier counts alone.
        let rules = [rules, vec![rule(&["socketcall"], Action::KILL_PROCESS, &[])]].concat();
        assert_eq!(carrier(&i386(rules, Action::ALLOW), "socketcall", 1), Action::KILL_PROCESS);
    }

    #[test]
    fn x32_is_killed_unless_it_is_named() {
        let rules = vec![rule(&["ioctl"], ONE, &[])];
        let mut profile = Profile { default: Action::ALLOW, arches: vec![Arch::X86_64], rules };
        let program = compile(&profile);
        let call = |program: &[Instruction], number| run(program, Arch::X86_64, number, [0; 6]);
        assert_eq!(call(&program, 16), ONE);
        assert_eq!(call(&program, X32_BIT | 514), Action::KILL_PROCESS);
        assert_eq!(call(&program, X32_BIT), Action::KILL_PROCESS);
        assert_eq!(call(&program, u32::MAX), Action::ALLOW);
        profile.arches.push(Arch::X32);
        let program = compile(&profile);
        assert_eq!(call(&program, 16), ONE);
        assert_eq!(call(&program, X32_BIT | 514), ONE);
        assert_eq!(call(&program, X32_BIT | 16), Action::ALLOW, "not the number of a call of x32");
    }

    #[test]
    fn programs_of_any_size_jump_where_they_should() {
        // Each call another action, so that nothing can be joined: the tree is as large as it gets.
        let calls: Vec<Call> =
            super::super::tables::CALLS.iter().filter_map(|(name, _)| Call::named(name)).collect();
        let rules = calls.iter().enumerate().map(|(index, call)| Rule {
            calls: vec![*call],
            action: Action::errno(index as i32 + 1),
            conditions: vec![is(1, 7), is(5, u64::MAX)],
        });
        let arches = vec![Arch::X86_64, Arch::I386, Arch::X32];
        let program =
            compile(&Profile { default: Action::ALLOW, arches: arches.clone(), rules: rules.collect() });
        for arch in arches {
            for (index, call) in calls.iter().enumerate() {
                let Some(number) = call.number(arch) else { continue };
                let expected = Action::errno(index as i32 + 1);
                assert_eq!(
                    run(&program, arch, number, [0, 7, 0, 0, 0, u64::MAX]),
                    expected,
                    "{}",
                    call.name()
                );
                assert_eq!(run(&program, arch, number, [0, 7, 0, 0, 0, 0]), Action::ALLOW, "{}", call.name());
            }
        }
    }
}
