//! Specifications that somebody has tampered with: planning them has to end in a plan or in an error, never in a panic.
//! Mutations of honest ones, by a generator whose seed is printed.

use serde_json::{Value, json};

use super::tests::plan_of;
use crate::spec::{ContainerSettings, default_spec};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % limit.max(1) as u64) as usize
    }
}

fn honest() -> Value {
    let settings = ContainerSettings { args: vec!["nginx".to_owned()], ..ContainerSettings::default() };
    let mut spec = serde_json::to_value(default_spec(&settings).unwrap()).unwrap();
    let condition = json!({ "index": 1, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" });
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "listenerPath": "/run/agent", "listenerMetadata": "x",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            { "names": ["read", "socket"], "action": "SCMP_ACT_ALLOW", "args": [condition] },
            { "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" },
        ],
    });
    spec["linux"]["sysctl"] = json!({ "net.core.somaxconn": "1" });
    spec["linux"]["devices"] = json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }]);
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }]);
    spec
}

/// Changes one value somewhere, or takes it away, or doubles it.
fn mutate(value: &mut Value, random: &mut Random) {
    let strange = [
        json!(null),
        json!(-1),
        json!(0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(""),
        json!("/"),
        json!("../.."),
        json!("/proc/self/fd/7"),
        json!("a\u{0}b"),
        json!("ä=="),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!(true),
        json!(["", null]),
        json!("rbind"),
        json!("SCMP_ACT_NOTIFY"),
        json!(4096),
    ];
    match value {
        Value::Object(map) if !map.is_empty() && random.below(8) != 0 => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            if random.below(12) == 0 {
                map.remove(&key);
            } else if let Some(inner) = map.get_mut(&key) {
                mutate(inner, random);
            }
        }
        Value::Array(list) if !list.is_empty() && random.below(8) != 0 => {
            let at = random.below(list.len());
            match random.below(12) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => mutate(&mut list[at], random),
            }
        }
        other => *other = strange[random.below(strange.len())].clone(),
    }
}

#[test]
fn a_hostile_specification_is_planned_or_refused() {
    let honest = honest();
    let (mut planned, mut refused, mut unread) = (0u32, 0u32, 0u32);
    for seed in 0..6000 {
        let mut random = Random(seed);
        let mut spec = honest.clone();
        for _ in 0..1 + random.below(3) {
            // From the top everything deep down would be rare.
            let top = ["", "/linux", "/linux/seccomp", "/linux/seccomp/syscalls/0", "/process", "/mounts"];
            let part = spec.pointer_mut(top[random.below(top.len())]);
            if let Some(part) = part {
                mutate(part, &mut random);
            }
        }
        let text = spec.to_string();
        let outcome = std::panic::catch_unwind(|| {
            let spec = serde_json::from_str(&text).ok()?;
            Some(plan_of(&spec, seed % 2 == 0))
        });
        match outcome {
            Ok(None) => unread += 1,
            Ok(Some(Ok(_))) => planned += 1,
            Ok(Some(Err(wrong))) => {
                assert!(!wrong.field.is_empty() && !wrong.reason.is_empty(), "seed {seed}: {wrong:?}");
                refused += 1;
            }
            Err(_) => panic!("seed {seed} panics: {text}"),
        }
    }
    assert!(planned > 200 && refused > 200 && unread > 200, "{planned} {refused} {unread}");
}
