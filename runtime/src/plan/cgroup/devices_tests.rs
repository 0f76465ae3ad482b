//! Tests of device rules: the list of v1, and the program run as the kernel would.

use oci_spec::runtime::LinuxDeviceCgroupBuilder;

use super::*;

fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> Rule {
    let kind = Some(kind).filter(|kind| *kind != 'a');
    Rule { allow, devices: Devices { kind, major, minor }, access: super::access(access, "").unwrap() }
}

/// Runs a device program as the kernel would.
fn decide(program: &[u64], kind: char, major: u32, minor: u32, access: u8) -> bool {
    let mut registers = [0u64; 11];
    let context = [u32::from(access) << 16 | if kind == 'b' { 1 } else { 2 }, major, minor];
    let mut at = 0usize;
    loop {
        let instruction = program[at];
        at += 1;
        let (dst, src) = ((instruction >> 8 & 15) as usize, (instruction >> 12 & 15) as usize);
        let (off, imm) = ((instruction >> 16) as i16, (instruction >> 32) as u32 as u64);
        let jump = match instruction as u8 {
            0x61 => {
                registers[dst] = u64::from(context[(off / 4) as usize]);
                false
            }
            0xbf => {
                registers[dst] = registers[src];
                false
            }
            0x57 => {
                registers[dst] &= imm;
                false
            }
            0x77 => {
                registers[dst] >>= imm;
                false
            }
            0xb7 => {
                registers[dst] = imm;
                false
            }
            0x55 => registers[dst] != imm,
            0x15 => registers[dst] == imm,
            0x5d => registers[dst] != registers[src],
            0x95 => return registers[0] != 0,
            other => panic!("instruction {other:x}"),
        };
        if jump {
            at = (at as i64 + i64::from(off)) as usize;
        }
    }
}

/// What the rules mean, said as plainly as it can be: the last one that fits counts, for each kind of access.
fn meaning(rules: &[Rule], kind: char, major: u32, minor: u32, access: u8) -> bool {
    let device = Devices { kind: Some(kind), major: Some(major), minor: Some(minor) };
    [READ, WRITE, MKNOD].iter().filter(|bit| access & **bit != 0).all(|bit| {
        let last = rules.iter().rev().find(|rule| rule.devices.covers(device) && rule.access & bit != 0);
        last.is_some_and(|rule| rule.allow)
    })
}

#[test]
fn devices_are_denied_unless_listed() {
    let program = program(&rules(&[]).unwrap());
    assert!(decide(&program, 'c', 1, 3, READ | WRITE));
    assert!(decide(&program, 'c', 136, 7, READ | WRITE));
    assert!(decide(&program, 'c', 10, 200, MKNOD));
    assert!(!decide(&program, 'c', 10, 200, READ));
    assert!(!decide(&program, 'c', 10, 200, MKNOD | READ));
    assert!(decide(&program, 'b', 8, 0, MKNOD));
    assert!(!decide(&program, 'b', 8, 0, READ));
    assert!(!decide(&program, 'c', 1, 1, READ), "memory");
}

#[test]
fn the_last_device_rule_that_fits_counts() {
    let block = |allow, access: &str| rule(allow, 'b', Some(8), None, access);
    for program in [program, compile] {
        let program = program(&[block(true, "rwm"), block(false, "w")]);
        assert!(decide(&program, 'b', 8, 1, READ));
        assert!(!decide(&program, 'b', 8, 1, WRITE));
        assert!(!decide(&program, 'b', 8, 1, READ | WRITE));
        assert!(!decide(&program, 'b', 9, 1, READ));
    }
    let again = program(&[block(true, "rwm"), block(false, "rwm"), block(true, "rwm")]);
    assert!(decide(&again, 'b', 8, 1, WRITE), "allowed again");
    let two = program(&[block(true, "r"), block(true, "w")]);
    assert!(decide(&two, 'b', 8, 1, READ | WRITE), "each by a rule of its own");
}

/// Every list of three rules out of a small world, against the plain meaning. Where v1's form can say the rules, form
/// and program agree with it for every device and access.
#[test]
fn lists_and_programs_mean_what_the_rules_say() {
    let mut world = Vec::new();
    for allow in [true, false] {
        for (kind, major, minor) in [
            ('a', None, None),
            ('b', None, None),
            ('b', Some(8), None),
            ('b', Some(8), Some(1)),
            ('c', Some(8), Some(1)),
        ] {
            for access in if kind == 'a' { &["rwm"][..] } else { &["rwm", "r", "wm"] } {
                world.push(rule(allow, kind, major, minor, access));
            }
        }
    }
    let (mut said, mut unsaid) = (0, 0);
    for one in &world {
        for two in &world {
            for three in &world {
                let rules = [*one, *two, *three];
                let Ok(list) = List::of(&rules) else {
                    unsaid += 1;
                    continue;
                };
                said += 1;
                let program = program(&rules);
                for (kind, major, minor) in [('b', 8, 1), ('b', 8, 2), ('b', 9, 1), ('c', 8, 1), ('c', 9, 9)]
                {
                    for access in 1..=EVERYTHING {
                        let expected = meaning(&rules, kind, major, minor, access);
                        // A single exception has to cover a request, for the kernel: unions are for the same numbers.
                        let got = decide(&program, kind, major, minor, access);
                        let single = access.count_ones() == 1;
                        assert!(
                            got == expected || (!single && !got && !list.allow_by_default),
                            "{rules:?}: {kind} {major}:{minor} {access}: {got}"
                        );
                    }
                }
            }
        }
    }
    assert!(said > 3 * unsaid && unsaid > 0, "{said} said, {unsaid} not");
}

#[test]
fn v1_gets_a_default_and_exceptions() {
    let list =
        List::of(&[rule(false, 'a', None, None, "rwm"), rule(true, 'c', Some(1), Some(3), "rw")]).unwrap();
    let lines = |writes: Vec<(&'static str, String)>| -> Vec<String> {
        writes.into_iter().map(|(file, line)| format!("{file} {line}")).collect()
    };
    assert_eq!(lines(list.writes(None)), ["devices.deny a", "devices.allow c 1:3 rw"]);
    // An update touches only what changes.
    let other = List::parse("c 1:3 rw\nb 8:* r\n");
    assert_eq!(lines(list.writes(Some(&other))), ["devices.deny b 8:* r"]);
    assert_eq!(lines(other.writes(Some(&list))), ["devices.allow b 8:* r"]);
    let everything = List::parse("a *:* rwm\n");
    assert!(everything.allow_by_default);
    assert_eq!(lines(list.writes(Some(&everything)))[0], "devices.deny a");
    assert_eq!(lines(everything.writes(Some(&list))), ["devices.allow a"]);
    // A hole in an exception cannot be said.
    let hole = [rule(true, 'c', Some(5), None, "rw"), rule(false, 'c', Some(5), Some(1), "rw")];
    assert_eq!(List::of(&hole), Err(hole[1]));
    assert!(!decide(&program(&hole), 'c', 5, 1, READ), "a program can say it");
    assert!(decide(&program(&hole), 'c', 5, 2, READ));
}

#[test]
fn wrong_rules_are_named() {
    let spec = |major: i64, access: &str| {
        vec![LinuxDeviceCgroupBuilder::default().allow(true).major(major).access(access).build().unwrap()]
    };
    assert_eq!(rules(&spec(-2, "r")).unwrap_err().field, "linux.resources.devices[0].major");
    assert_eq!(rules(&spec(1, "rx")).unwrap_err().field, "linux.resources.devices[0].access");
    // Everything of major 1: said for both kinds, since v1 reads "a" as all there is.
    let both = rules(&spec(1, "r")).unwrap();
    assert_eq!((both[1].devices.kind, both[2].devices.kind), (Some('b'), Some('c')));
}
