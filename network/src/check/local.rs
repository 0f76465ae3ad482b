//! What is wrong on the node itself, from what is known of it.

use super::Finding;
use crate::error::Error;
use crate::host;
use crate::survey::Survey;

/// What is not as the fabric set it, and what others change again and again.
pub fn settings(survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    let disputed = survey.disputed.iter().map(|(what, times)| {
        Finding::new(
            "settings",
            format!("another program keeps changing what the node's network needs: {what} was put back {times} times"),
            "find the program (rorquald's log tells the times) and make it leave this alone; settings may stand in \
             /etc/sysctl.d",
        )
    });
    findings.extend(disputed);
    if !survey.encryption_problem.is_empty() {
        findings.push(Finding::new(
            "encryption",
            survey.encryption_problem.clone(),
            "a node tells its key as soon as it has a session with the leader (rctl node ls); a kernel without \
             WireGuard needs TUN devices (modprobe tun), and UDP port 7272 has to be free",
        ));
    }
    if !survey.forget_problem.is_empty() {
        findings.push(Finding::new(
            "settings",
            survey.forget_problem.clone(),
            "UDP clients stay with a replica that is gone until then; a kernel that can't list its connections needs a \
             module (modprobe nf_conntrack_netlink)",
        ));
    }
    for what in survey.wrong.iter().filter(|what| !survey.disputed.iter().any(|(known, _)| known == *what)) {
        findings.push(Finding::new(
            "settings",
            format!("the node's network lacks: {what}"),
            "rorquald puts it back by itself: if it is missing a minute later, its log says why it can't",
        ));
    }
    findings
}

/// Whether a connection that the kernel's table has lost goes on or is reset (nf_conntrack-sysctl.rst). The kernel's own word
/// is that it goes on; rules against floods of SYNs are often set up together with the other.
pub fn lost_connections() -> Option<Finding> {
    // A kernel that does not track connections has no such setting.
    if !host::get("net/netfilter/nf_conntrack_tcp_loose").is_ok_and(|value| value == 0) {
        return None;
    }
    let what = "net.netfilter.nf_conntrack_tcp_loose is 0: a connection to a container of this node through another node's \
                published port hangs once this node has forgotten it, because it was idle or its table was full";
    let remedy = "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1, and take the other value out of /etc/sysctl.conf and \
                  /etc/sysctl.d";
    Some(Finding::new("settings", what, remedy))
}

/// Routes of the machine's own into what the fabric routes.
pub fn routes_that_clash(survey: &Survey) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    for route in host::foreign_routes()? {
        let v6 = route.addr().is_ipv6();
        for (what, range) in &survey.ranges {
            // A machine may well have one to all private addresses (fd00::/8): the fabric's go before that.
            if !range.contains(&route) && (v6 || !route.contains(range)) {
                continue;
            }
            let remedy = if v6 {
                "take the route away (ip -6 route del); the cluster's IPv6 range follows from its id, a network's own can be \
                 another one (rctl network create --subnet)"
            } else {
                "take the route away (ip route del), or choose other ranges for the cluster (rctl cluster init \
                 --container-pool, --vip-pool) or the network (rctl network create --subnet)"
            };
            let what = format!("this machine has a route to {route}, which overlaps {what}, {range}");
            findings.push(Finding::new("subnets", what, remedy));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// In a network namespace of its own. Needs root.
    #[test]
    fn a_kernel_that_picks_up_no_connection_is_named() {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let set =
                |value| std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", value).unwrap();
            set("1");
            assert_eq!(lost_connections(), None);
            set("0");
            let found = lost_connections().unwrap();
            assert!(found.what.contains("nf_conntrack_tcp_loose is 0"), "{}", found.what);
        })
        .join()
        .unwrap();
    }
}
