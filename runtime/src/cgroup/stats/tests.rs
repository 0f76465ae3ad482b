//! Tests of the figures: folders with the kernel's files, and the JSON that comes out.

use serde_json::{Value, json};

use super::super::Member;
use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn v2_is_told_in_runcs_words() {
    let dir = folder(&[
        (
            "cpu.stat",
            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 90\n",
        ),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.12 avg300=0.08 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.max", "4000\n"),
        ("memory.peak", "2000\n"),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n"),
        ("memory.stat", "anon 600\nfile 300\nkernel 100\n"),
        ("memory.swap.current", "50\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:1 \n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.events", "max 4\n"),
        ("hugetlb.2MB.rsvd.current", "0\n"),
        ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
    ]);
    let group = Group { unified: Some(dir.path().to_owned()), ..Group::default() };
    let told = serde_json::to_value(group.stats()).unwrap();
    assert_eq!(told["cpu"]["usage"], json!({"total": 5_000_000, "kernel": 2_000_000, "user": 3_000_000}));
    assert_eq!(
        told["cpu"]["throttling"],
        json!({"periods": 7, "throttledPeriods": 2, "throttledTime": 90_000})
    );
    assert_eq!(
        told["cpu"]["psi"]["some"],
        json!({"avg10": 1.5, "avg60": 0.12, "avg300": 0.08, "total": 1234})
    );
    assert_eq!(told["memory"]["usage"], json!({"limit": 4000, "usage": 1000, "max": 2000, "failcnt": 3}));
    assert_eq!(told["memory"]["swap"], json!({"limit": u64::MAX, "usage": 1050, "failcnt": 0}));
    assert_eq!(told["memory"]["cache"], 300);
    assert_eq!(told["memory"]["raw"]["anon"], 600);
    assert_eq!(told["memory"].get("psi"), None, "not counted here");
    assert_eq!(told["pids"], json!({"current": 3}));
    assert_eq!(
        told["blkio"]["ioServiceBytesRecursive"],
        json!([{"major": 8, "op": "Read", "value": 4096}, {"major": 8, "op": "Write"}])
    );
    assert_eq!(told["hugetlb"], json!({"2MB": {"usage": 2097152, "failcnt": 4}}));
    assert_eq!(told["rdma"], json!({"mlx4_0": {"hca_handles": 2, "hca_objects": 2000}}));
    assert_eq!(told["intel_rdt"], json!({}));
    assert_eq!(told["network_interfaces"], Value::Null);
}

#[test]
fn v1_is_told_in_runcs_words() {
    let dir = folder(&[
        ("cpuacct.usage", "5000\n"),
        ("cpuacct.usage_percpu", "2000 3000 \n"),
        ("cpuacct.stat", "user 3\nsystem 2\n"),
        ("cpuacct.usage_all", "cpu user system\n0 10 20\n1 30 40\n"),
        ("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 90\n"),
        ("memory.usage_in_bytes", "1000\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.failcnt", "1\n"),
        ("memory.stat", "cache 300\nhierarchical_memory_limit 9223372036854771712\n"),
        ("memory.memsw.usage_in_bytes", "1100\n"),
        ("cpuset.cpus", "0-1,3\n"),
        ("cpuset.mems", "0\n"),
        ("cpuset.sched_relax_domain_level", "-1\n"),
        ("blkio.bfq.io_serviced_recursive", "Total 0\n"),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Total 1\nTotal 1\n"),
        ("pids.current", "3\n"),
        ("pids.max", "100\n"),
        ("hugetlb.2MB.usage_in_bytes", "0\n"),
        ("hugetlb.2MB.failcnt", "4\n"),
    ]);
    let controllers =
        ["cpu", "cpuacct", "cpuset", "memory", "blkio", "pids", "hugetlb"].map(str::to_owned).to_vec();
    let group = Group { v1: vec![Member { controllers, dir: dir.path().to_owned() }], ..Group::default() };
    let told = serde_json::to_value(group.stats()).unwrap();
    assert_eq!(
        told["cpu"]["usage"],
        json!({"total": 5000, "percpu": [2000, 3000], "percpu_kernel": [20, 40], "percpu_user": [10, 30],
               "kernel": 20_000_000, "user": 30_000_000})
    );
    assert_eq!(told["cpu"]["throttling"], json!({"periods": 7, "throttledPeriods": 2, "throttledTime": 90}));
    assert_eq!(
        told["memory"]["usage"],
        json!({"limit": 9223372036854771712u64, "usage": 1000, "failcnt": 1})
    );
    assert_eq!(told["memory"]["swap"]["usage"], 1100);
    assert_eq!(
        (&told["cpuset"]["cpus"], &told["cpuset"]["sched_relax_domain_level"]),
        (&json!([0, 1, 3]), &json!(-1))
    );
    assert_eq!(
        told["blkio"]["ioServicedRecursive"],
        json!([{"major": 8, "op": "Read", "value": 1}, {"major": 8, "op": "Total", "value": 1}])
    );
    assert_eq!(told["pids"], json!({"current": 3, "limit": 100}));
    assert_eq!(told["hugetlb"], json!({"2MB": {"failcnt": 4}}));
}
