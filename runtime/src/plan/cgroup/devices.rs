//! Which devices a container may use: the rules of a specification, made into v1's list or into a BPF program.
//!
//! In a specification the last rule that fits counts. v1 knows a default and exceptions of it only, so the rules are
//! played through first ([`List`]); what cannot be said that way is refused there, and a program says it on v2.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::super::{Result, invalid};

const READ: u8 = 2;
const WRITE: u8 = 4;
const MKNOD: u8 = 1;
const EVERYTHING: u8 = READ | WRITE | MKNOD;

/// One rule. Without kind, major or minor it fits all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) devices: Devices,
    /// As the kernel's BPF_DEVCG_ACC_*.
    pub(crate) access: u8,
}

/// Devices that a rule is about; `None`: any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Devices {
    /// `b` or `c`.
    pub(crate) kind: Option<char>,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
}

impl Devices {
    const ALL: Devices = Devices { kind: None, major: None, minor: None };

    fn covers(self, other: Devices) -> bool {
        let covers = |mine: Option<u32>, theirs| mine.is_none() || mine == theirs;
        (self.kind.is_none() || self.kind == other.kind)
            && covers(self.major, other.major)
            && covers(self.minor, other.minor)
    }

    fn overlaps(self, other: Devices) -> bool {
        let meets =
            |mine: Option<u32>, theirs: Option<u32>| mine.is_none() || theirs.is_none() || mine == theirs;
        (self.kind.is_none() || other.kind.is_none() || self.kind == other.kind)
            && meets(self.major, other.major)
            && meets(self.minor, other.minor)
    }
}

/// What every container may use, whatever its list says: the devices that the specification promises it, and making
/// nodes of any kind (but not opening them).
const ALWAYS: [(char, Option<u32>, Option<u32>, u8); 10] = [
    ('c', None, None, MKNOD),
    ('b', None, None, MKNOD),
    ('c', Some(1), Some(3), EVERYTHING),
    ('c', Some(1), Some(5), EVERYTHING),
    ('c', Some(1), Some(7), EVERYTHING),
    ('c', Some(1), Some(8), EVERYTHING),
    ('c', Some(1), Some(9), EVERYTHING),
    ('c', Some(5), Some(0), EVERYTHING),
    ('c', Some(5), Some(2), EVERYTHING),
    ('c', Some(136), None, EVERYTHING),
];

/// The rules of a specification, with a denial of everything before them and what is always allowed behind.
pub(super) fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = vec![Rule { allow: false, devices: Devices::ALL, access: EVERYTHING }];
    for (index, rule) in spec.iter().enumerate() {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some('b'),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some('c'),
            Some(LinuxDeviceType::P) => {
                return Err(invalid(
                    &field("type"),
                    "is p, a FIFO, which nobody has to allow: use a, b or c",
                ));
            }
        };
        let number = |name: &str, number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number).map(Some).map_err(|_| {
                invalid(&field(name), &format!("{number} is no device number: use 0 and more, or -1 for all"))
            }),
        };
        let access = access(rule.access().as_deref().unwrap_or(""), &field("access"))?;
        let devices =
            Devices { kind, major: number("major", rule.major())?, minor: number("minor", rule.minor())? };
        let rule = Rule { allow: rule.allow(), devices, access };
        if kind.is_none() && (devices, access) != (Devices::ALL, EVERYTHING) {
            // "a" means everything to v1, whatever numbers stand behind it; so it is said for both kinds.
            rules.extend(
                ['b', 'c'].map(|kind| Rule { devices: Devices { kind: Some(kind), ..devices }, ..rule }),
            );
        } else {
            rules.push(rule);
        }
    }
    rules.extend(ALWAYS.map(|(kind, major, minor, access)| Rule {
        allow: true,
        devices: Devices { kind: Some(kind), major, minor },
        access,
    }));
    Ok(rules)
}

fn access(text: &str, field: &str) -> Result<u8> {
    let bit = |letter| match letter {
        'r' => Ok(READ),
        'w' => Ok(WRITE),
        'm' => Ok(MKNOD),
        other => Err(invalid(field, &format!("{other:?} is no access: use letters of r, w and m"))),
    };
    match text.chars().try_fold(0, |bits, letter| Ok(bits | bit(letter)?))? {
        0 => Ok(EVERYTHING),
        bits => Ok(bits),
    }
}

pub(crate) fn letters(access: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .map(|(_, letter)| letter)
        .collect()
}

/// The kernel's form on v1: a default, and exceptions of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) allow_by_default: bool,
    pub(crate) exceptions: BTreeMap<Devices, u8>,
}

impl List {
    /// Plays the rules through; the index of the first one that cannot be said.
    pub(super) fn of(rules: &[Rule]) -> std::result::Result<List, Rule> {
        let mut list = List::default();
        for rule in rules {
            if rule.devices == Devices::ALL {
                list = List { allow_by_default: rule.allow, exceptions: BTreeMap::new() };
            } else if rule.allow != list.allow_by_default {
                *list.exceptions.entry(rule.devices).or_default() |= rule.access;
            } else {
                list.take_back(rule)?;
            }
        }
        Ok(list)
    }

    fn take_back(&mut self, rule: &Rule) -> std::result::Result<(), Rule> {
        for (devices, access) in &mut self.exceptions {
            if *access & rule.access == 0 || !rule.devices.overlaps(*devices) {
                continue;
            }
            if !rule.devices.covers(*devices) {
                return Err(*rule);
            }
            *access &= !rule.access;
        }
        self.exceptions.retain(|_, access| *access != 0);
        Ok(())
    }

    /// As in v1's `devices.list`.
    pub(crate) fn parse(text: &str) -> List {
        let mut list = List::default();
        for line in text.lines() {
            let mut words = line.split([' ', ':']);
            let (kind, major, minor, access) = (words.next(), words.next(), words.next(), words.next());
            if kind == Some("a") {
                return List { allow_by_default: true, exceptions: BTreeMap::new() };
            }
            let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
            let devices = Devices {
                kind: kind.and_then(|kind| kind.chars().next()),
                major: number(major),
                minor: number(minor),
            };
            if let Ok(bits) = access_of(access) {
                list.exceptions.insert(devices, bits);
            }
        }
        list
    }

    /// What has to be written to get here from `current` (`None`: from anything): file and line. No device that is
    /// allowed before and after is denied meanwhile.
    pub(super) fn writes(&self, current: Option<&List>) -> Vec<(&'static str, String)> {
        let (of_default, of_exception) = if self.allow_by_default {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let line = |devices: &Devices, access: u8| {
            let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
            let kind = devices.kind.unwrap_or('a');
            format!("{kind} {}:{} {}", number(devices.major), number(devices.minor), letters(access))
        };
        let mut writes = Vec::new();
        let known = match current {
            // A list that allows by default does not tell its exceptions.
            Some(current) if !current.allow_by_default && !self.allow_by_default => {
                for (devices, access) in &current.exceptions {
                    let gone = access & !self.exceptions.get(devices).copied().unwrap_or(0);
                    if gone != 0 {
                        writes.push((of_default, line(devices, gone)));
                    }
                }
                current.exceptions.clone()
            }
            _ => {
                writes.push((of_default, "a".to_owned()));
                BTreeMap::new()
            }
        };
        for (devices, access) in &self.exceptions {
            let new = access & !known.get(devices).copied().unwrap_or(0);
            if new != 0 {
                writes.push((of_exception, line(devices, new)));
            }
        }
        writes
    }
}

fn access_of(word: Option<&str>) -> Result<u8> {
    access(word.unwrap_or(""), "devices.list")
}

/// The rules as an eBPF program (kernel: struct bpf_cgroup_dev_ctx). The shortest form of them where there is one.
pub(super) fn program(rules: &[Rule]) -> Vec<u64> {
    match List::of(rules) {
        Ok(list) => {
            let mut short =
                vec![Rule { allow: list.allow_by_default, devices: Devices::ALL, access: EVERYTHING }];
            short.extend(list.exceptions.into_iter().map(|(devices, access)| Rule {
                allow: !list.allow_by_default,
                devices,
                access,
            }));
            compile(&short)
        }
        Err(_) => compile(rules),
    }
}

/// The last rule that fits counts.
fn compile(rules: &[Rule]) -> Vec<u64> {
    fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
        u64::from(code)
            | u64::from(dst) << 8
            | u64::from(src) << 12
            | u64::from(off as u16) << 16
            | u64::from(imm as u32) << 32
    }
    let load = |dst, off| instruction(0x61, dst, 1, off, 0);
    let exit = |allow: bool| [instruction(0xb7, 0, 0, 0, i32::from(allow)), instruction(0x95, 0, 0, 0, 0)];
    // r2: kind, r3: access, r4: major, r5: minor.
    let mut program = vec![
        load(2, 0),
        instruction(0xbf, 3, 2, 0, 0),
        instruction(0x57, 2, 0, 0, 0xffff),
        instruction(0x77, 3, 0, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        // Each check jumps behind the rule if it fails; (instruction without its offset).
        let mut checks: Vec<u64> = Vec::new();
        if let Some(kind) = rule.devices.kind {
            checks.push(instruction(0x55, 2, 0, 0, if kind == 'b' { 1 } else { 2 }));
        }
        if rule.access != EVERYTHING {
            checks.push(instruction(0xbf, 1, 3, 0, 0));
            checks.push(instruction(0x57, 1, 0, 0, rule.access.into()));
            // Allowed if all that is asked for is in the rule, denied if any of it is.
            checks.push(if rule.allow {
                instruction(0x5d, 1, 3, 0, 0)
            } else {
                instruction(0x15, 1, 0, 0, 0)
            });
        }
        for (register, number) in [(4, rule.devices.major), (5, rule.devices.minor)] {
            checks.extend(number.map(|number| instruction(0x55, register, 0, 0, number as i32)));
        }
        let length = checks.len();
        for (index, check) in checks.into_iter().enumerate() {
            let jumps = check & 7 == 5;
            let distance = if jumps { (length - index - 1 + 2) as u64 } else { 0 };
            program.push(check | distance << 16);
        }
        program.extend(exit(rule.allow));
        if rule.devices == Devices::ALL && rule.access == EVERYTHING {
            return program; // fits always: nothing before it can count
        }
    }
    program.extend(exit(false));
    program
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
