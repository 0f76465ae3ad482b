//! Where a container stands in the network, and what its files say about that.

use std::fs;
use std::path::PathBuf;

use rorqual_network::Attachment;

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

    /// Its `/etc/resolv.conf`.
    pub(super) fn resolver(&self) -> String {
        match self {
            Place::Attached(attachment) => format!("nameserver {}\noptions ndots:0\n", attachment.dns),
            Place::Host => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            Place::Alone => String::new(),
        }
    }
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
        assert_eq!(place.resolver(), "nameserver 169.254.53.53\noptions ndots:0\n");
        assert!(place.netns().is_some() && !place.is_host());
        assert!(Place::Alone.hosts("a").contains("127.0.0.1\ta\n") && Place::Alone.resolver().is_empty());
    }
}
