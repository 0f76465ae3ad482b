//! Where a container stands in the network, and what its files say about that.

use std::fs;
use std::path::PathBuf;

use rorqual_network::Attachment;
use rorqual_proto::model::DnsSpec;

const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// A container's place, once it is made.
#[derive(Debug)]
pub(crate) enum Place {
    Attached(Attachment),
    Host,
    Alone,
}

impl Place {
    /// The namespace to join; none where it has one of its own making, or none at all.
    pub(super) fn netns(&self) -> Option<PathBuf> {
        match self {
            Place::Attached(attachment) => Some(attachment.netns.clone()),
            Place::Host | Place::Alone => None,
        }
    }

    pub(super) fn is_host(&self) -> bool {
        matches!(self, Place::Host)
    }

    /// Its `/etc/hosts`. One in the node's network sees what the node does.
    pub(super) fn hosts(&self, hostname: &str) -> String {
        let mut hosts = LOOPBACK.to_owned();
        match self {
            Place::Attached(attachment) => {
                for interface in &attachment.interfaces {
                    hosts.push_str(&format!("{}\t{hostname}\n", interface.address));
                }
            }
            Place::Host => return fs::read_to_string("/etc/hosts").unwrap_or(hosts),
            Place::Alone => hosts.push_str(&format!("127.0.0.1\t{hostname}\n")),
        }
        hosts
    }

    /// Its `/etc/resolv.conf`. The node's resolver knows whom else to ask; in the node's network the container asks
    /// by itself.
    pub(super) fn resolver(&self, dns: &DnsSpec) -> String {
        match self {
            Place::Attached(attachment) => {
                // A name without a dot may be one of the container's networks.
                let ndots = dns.options.iter().all(|option| !option.starts_with("ndots:"));
                let usual = ndots.then(|| "ndots:0".to_owned());
                let mut text = format!("nameserver {}\n", attachment.dns);
                add(&mut text, "search", &dns.search);
                add(&mut text, "options", &usual.into_iter().chain(dns.options.clone()).collect::<Vec<_>>());
                text
            }
            Place::Host => of_the_node(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), dns),
            Place::Alone => String::new(),
        }
    }
}

fn add(text: &mut String, keyword: &str, words: &[String]) {
    if !words.is_empty() {
        text.push_str(&format!("{keyword} {}\n", words.join(" ")));
    }
}

/// The node's own, but for what is said otherwise.
fn of_the_node(own: &str, dns: &DnsSpec) -> String {
    let said = [
        (!dns.servers.is_empty(), &["nameserver"][..]),
        (!dns.search.is_empty(), &["search", "domain"]),
        (!dns.options.is_empty(), &["options"]),
    ];
    let replaced: Vec<&str> =
        said.iter().filter(|(said, _)| *said).flat_map(|(_, keywords)| keywords.iter().copied()).collect();
    let kept = |line: &&str| !line.split_whitespace().next().is_some_and(|word| replaced.contains(&word));
    let mut text: String = own.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    add(&mut text, "search", &dns.search);
    add(&mut text, "options", &dns.options);
    text
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rorqual_network::Interface;

    use super::*;

    #[test]
    fn each_address_leads_to_the_container_itself() {
        let interface = |name: &str, last| Interface {
            name: name.into(),
            network: "n".into(),
            address: Ipv4Addr::new(10, 213, 0, last),
            address6: (last == 6).then(|| "fd5e::ad5:6".parse().unwrap()),
        };
        let place = Place::Attached(Attachment {
            id: "c".into(),
            name: "web.3".into(),
            netns: "/run/netns/c".into(),
            interfaces: vec![interface("eth0", 5), interface("eth1", 6)],
            gateway: rorqual_network::GATEWAY,
            dns: rorqual_network::DNS,
        });
        assert!(place.hosts("web-3").ends_with("10.213.0.5\tweb-3\n10.213.0.6\tweb-3\n"));
        let plain = DnsSpec::default();
        assert_eq!(place.resolver(&plain), "nameserver 169.254.53.53\noptions ndots:0\n");
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let dns = DnsSpec {
            servers: vec![[10, 0, 0, 53].into()],
            search: texts(&["corp.example", "example"]),
            options: texts(&["timeout:1"]),
        };
        assert_eq!(
            place.resolver(&dns),
            "nameserver 169.254.53.53\nsearch corp.example example\noptions ndots:0 timeout:1\n"
        );
        let dotted = DnsSpec { options: texts(&["ndots:2"]), ..plain.clone() };
        assert!(place.resolver(&dotted).ends_with("\noptions ndots:2\n"));
        let own = "# x\nnameserver 10.9.9.9\ndomain old\noptions rotate\n";
        assert_eq!(of_the_node(own, &plain), own);
        assert_eq!(
            of_the_node(own, &DnsSpec { options: vec![], ..dns }),
            "# x\noptions rotate\nnameserver 10.0.0.53\nsearch corp.example example\n"
        );
        assert!(place.netns().is_some() && !place.is_host());
        assert!(
            Place::Alone.hosts("a").contains("127.0.0.1\ta\n") && Place::Alone.resolver(&plain).is_empty()
        );
    }
}
