//! The fixed part of the table: hooks, empty maps, and the rules that never change.
//!
//! Every packet of a connection meets the rules of the filter hooks; those of the nat hooks only the first one. So what lets
//! most packets pass stands first, and in a rule what costs least: comparing a number costs a tenth of looking into a set,
//! and the name of an interface is copied for each comparison. tests/bench/balance shows what the order costs.

use ipnet::{IpNet, Ipv4Net};

use crate::fabric::{DNS, GATEWAY};
use crate::model::LOCAL_NETWORK;
use crate::ruleset::parts;
use crate::ruleset::rule::joined;
use crate::twins::{GATEWAY6, Twins};

/// Bits of the packet's and the connection's mark that say through which peer a reply has to go.
pub(crate) const MARK_MASK: u32 = 0x0fff_0000;
/// Position of a peer's number in the mark.
pub(crate) const MARK_SHIFT: u32 = 16;

/// What the fixed part depends on.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) table: String,
    /// Names of the node's veths begin with this.
    pub(crate) veth_prefix: String,
    /// The tunnel's interface.
    pub(crate) tunnel: String,
    /// UDP port of the tunnel.
    pub(crate) tunnel_port: u16,
    /// The interface that encrypts; `Some`: nothing else leads to other nodes' containers.
    pub(crate) sealed: Option<String>,
    /// TCP ports of the node that containers may not reach.
    pub(crate) guarded_ports: Vec<u16>,
    pub(crate) cluster_pool: Ipv4Net,
    pub(crate) vip_pool: Ipv4Net,
    pub(crate) local_pool: Ipv4Net,
    pub(crate) twins: Twins,
}

/// A list of elements in a set's declaration; sets without any have none.
fn elements<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let list = joined(items);
    if list.is_empty() { list } else { format!("elements = {{ {list} }}") }
}

impl Fixed {
    /// Where traffic between nodes has to be encrypted, none of it comes or leaves by another way, whatever routes
    /// say: as rules of packets that come in from outside, a chain for those of the node itself, and rules of those that are
    /// passed on and of those for the node.
    fn sealed(&self) -> [String; 4] {
        let Some(sealed) = &self.sealed else { return Default::default() };
        let Fixed { veth_prefix, tunnel, tunnel_port, .. } = self;
        [
            format!(
                r#"ip daddr @pools iifname != "{tunnel}" drop
    ip6 daddr @pools6 iifname != "{tunnel}" drop"#
            ),
            format!(
                r#"
  chain sealed {{
    type filter hook output priority filter; policy accept;
    ip daddr @pools oifname != "lo" oifname != "{veth_prefix}*" oifname != "{tunnel}" drop
    ip6 daddr @pools6 oifname != "lo" oifname != "{veth_prefix}*" oifname != "{tunnel}" drop
    udp dport {tunnel_port} oifname != "{sealed}" drop
  }}
"#
            ),
            format!(
                r#"ip daddr @pools oifname != "{veth_prefix}*" oifname != "{tunnel}" drop
    ip6 daddr @pools6 oifname != "{veth_prefix}*" oifname != "{tunnel}" drop
    meta mark and {MARK_MASK:#x} != 0 oifname != "{veth_prefix}*" oifname != "{tunnel}" drop"#
            ),
            format!(r#"udp dport {tunnel_port} iifname != "{sealed}" fib daddr type local drop"#),
        ]
    }

    /// The table with its sets and hooks, and the local network, which always exists.
    pub(crate) fn script(&self) -> String {
        let Fixed { table, veth_prefix, tunnel, tunnel_port, cluster_pool, vip_pool, local_pool, .. } = self;
        let guard = match self.guarded_ports.as_slice() {
            [] => String::new(),
            ports => format!("tcp dport {{ {} }} reject with tcp reset", joined(ports)),
        };
        let [sealed_raw, sealed_out, sealed_forward, sealed_in] = self.sealed();
        let (local_chain, local_set) =
            (parts::network_chain(LOCAL_NETWORK), parts::network_set(LOCAL_NETWORK));
        let local_set6 = parts::network_set6(LOCAL_NETWORK);
        let twin = |range: Ipv4Net| self.twins.of_range(range);
        let pools6 = elements([*cluster_pool, *vip_pool, *local_pool].into_iter().filter_map(twin));
        let local6 = elements(twin(*local_pool));
        let networks6 = elements(twin(*local_pool).map(|pool| format!("{pool} : goto {local_chain}")));
        // A range that is in use nowhere, where there is no IPv6.
        let nowhere = IpNet::from(std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED));
        let range6 = |range: Ipv4Net| twin(range).map_or(nowhere, IpNet::from);
        let (vip_pool6, local_pool6) = (range6(*vip_pool), range6(*local_pool));
        format!(
            r#"table inet {table} {{
  # VIP → chain of its service
  map vips {{ type ipv4_addr : verdict; }}
  map vips6 {{ type ipv6_addr : verdict; }}
  # published port → chain of its service
  map published {{ type inet_proto . inet_service : verdict; }}
  # the same, on one address of the nodes
  map published_at {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map published_at6 {{ type ipv6_addr . inet_proto . inet_service : verdict; }}
  # published port of one container of this node, on all addresses or on one
  map hostports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map hostports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map hostports_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map hostports_at6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  # Ethernet address of a peer → its mark
  map peers {{ type ether_addr : mark; }}
  set peer_addresses {{ type ipv4_addr; }}
  set peer_addresses6 {{ type ipv6_addr; }}
  # further addresses of peers' machines
  set peer_others {{ type ipv4_addr; }}
  # address of a peer → its mark
  map peer_marks {{ type ipv4_addr : mark; }}
  map peer_marks6 {{ type ipv6_addr : mark; }}
  # published ports of services, as a set
  set open_ports {{ type inet_proto . inet_service; }}
  set open_at {{ type ipv4_addr . inet_proto . inet_service; }}
  set open_at6 {{ type ipv6_addr . inet_proto . inet_service; }}
  # what published ports of services lead to on this node
  set targets {{ type ipv4_addr . inet_proto . inet_service; }}
  set targets6 {{ type ipv6_addr . inet_proto . inet_service; }}
  # all addresses of containers and services
  set pools {{ type ipv4_addr; flags interval; elements = {{ {cluster_pool}, {vip_pool}, {local_pool} }} }}
  set pools6 {{ type ipv6_addr; flags interval; {pools6} }}
  # the local network, as one of several of a container
  set {local_set} {{ type ipv4_addr; flags interval; elements = {{ {local_pool} }} }}
  set {local_set6} {{ type ipv6_addr; flags interval; {local6} }}
  # blocks of networks without a way out, and of those that may reach link-local addresses
  set closed {{ type ipv4_addr; flags interval; }}
  set closed6 {{ type ipv6_addr; flags interval; }}
  set metadata {{ type ipv4_addr; flags interval; }}
  set metadata6 {{ type ipv6_addr; flags interval; }}
  # containers in such a network that have a way out by another one
  set freed {{ type ipv4_addr; }}
  set freed6 {{ type ipv6_addr; }}
  # first address of a container in several networks → what else it reaches, and as whom
  map several {{ type ipv4_addr : verdict; }}
  map several6 {{ type ipv6_addr : verdict; }}
  map poses {{ type ipv4_addr : verdict; }}
  map poses6 {{ type ipv6_addr : verdict; }}
  # containers that may be balanced to themselves
  set hairpin {{ type ipv4_addr . ipv4_addr; }}
  set hairpin6 {{ type ipv6_addr . ipv6_addr; }}
  # a peer's address and a block of its own
  set own_blocks {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set own_blocks6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
  # interface of a container and an address of its own
  set proven {{ typeof iif . ip saddr; flags dynamic,timeout; timeout 10s; gc-interval 10s; size 65535; }}
  set proven6 {{ typeof iif . ip6 saddr; flags dynamic,timeout; timeout 10s; gc-interval 10s; size 65535; }}
  # replicas beside whom there is nobody else to ask
  set alone {{ type ipv4_addr; }}
  set alone6 {{ type ipv6_addr; }}
  # address and port of who was refused and will ask once more
  set asking {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout 10s; gc-interval 10s; size 65535; }}
  set asking6 {{ type ipv6_addr . inet_service; flags dynamic,timeout; timeout 10s; gc-interval 10s; size 65535; }}
  # source → chain of its network
  map networks {{ type ipv4_addr : verdict; flags interval; elements = {{ {local_pool} : goto {local_chain} }} }}
  map networks6 {{ type ipv6_addr : verdict; flags interval; {networks6} }}

  # A reset ends a connection attempt at once. An ICMP answer that comes back while the caller still is in connect(2),
  # as it does across a veth, is kept for later, and the caller waits for a second.
  chain barred {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}

  chain {local_chain} {{
    ip daddr {local_pool} accept
    ip6 daddr {local_pool6} accept
    ip daddr @pools goto barred
    ip6 daddr @pools6 goto barred
  }}

  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    iif . ip saddr @proven accept
    iif . ip6 saddr @proven6 accept
    iifname "{veth_prefix}*" goto guard_container
    iif "lo" accept
    # route_localnet is on for our links, so the kernel no longer refuses these itself
    ip daddr 127.0.0.0/8 drop
    ip saddr 127.0.0.0/8 drop
    {sealed_raw}
  }}

  # A container sends from its own addresses only, and from no link-local one: it needs no neighbour discovery. To look
  # for the way back costs more than everything else here; who was found to have an address is believed for a while (adr 79), and
  # asked before anybody's name is compared. No interface gives an address away to another, and none has the number of one that
  # was.
  chain guard_container {{
    ip daddr 127.0.0.0/8 drop
    ip6 saddr {{ ::, fe80::/10 }} drop
    fib saddr . iif oif missing drop
    add @proven {{ iif . ip saddr }}
    add @proven6 {{ iif . ip6 saddr }}
  }}
{sealed_out}

  chain steer {{
    type filter hook prerouting priority mangle; policy accept;
    ct direction reply goto steer_reply
    iif "lo" goto steer_looped
    iifname "{veth_prefix}*" goto steer_container
    # what comes from elsewhere, each packet of it
    udp dport {tunnel_port} ip saddr != @peer_addresses fib daddr type local drop
    {sealed_in}
    # the first comparison costs less than the one that decides
    ip daddr 169.254.0.0/16 ip daddr {{ {DNS}, {GATEWAY} }} drop
    ip6 daddr {GATEWAY6} drop
    ct state new ip daddr @pools ct mark set ether saddr map @peers
    ct state new ip6 daddr @pools6 ct mark set ether saddr map @peers
  }}

  chain steer_reply {{
    # the reply of a container goes back through the node that balanced the request
    ct mark and {MARK_MASK:#x} != 0 iifname "{veth_prefix}*" meta mark set ct mark and {MARK_MASK:#x}
    # the kernel forgets a connection whose first answer is a reset before it comes here; with ACK it answers a SYN
    ct status dying ct status dnat tcp flags & (rst | ack) == rst | ack goto refused
  }}

  # A replica that has just ended refuses those who are led to it until this node knows. Who is not told so asks again by
  # itself a second later, as for any packet that was lost, and is led to another one. Once: what nobody listens to is
  # refused then.
  chain refused {{
    ip saddr @alone accept
    ip6 saddr @alone6 accept
    ip daddr . tcp dport @asking accept
    ip6 daddr . tcp dport @asking6 accept
    add @asking {{ ip daddr . tcp dport }} drop
    add @asking6 {{ ip6 daddr . tcp dport }} drop
  }}

  # a packet of this node itself to an address that nobody has
  chain steer_looped {{
    ip daddr @pools goto nobody
    ip6 daddr @pools6 goto nobody
  }}

  # a container that calls a peer's published port, under its own address: as it goes to that peer's containers
  chain steer_container {{
    # also of those who are believed
    ip daddr 127.0.0.0/8 drop
    # chain protect sees the first packets of connections, so nothing else; nobody ever tracks neighbour discovery
    meta l4proto != icmpv6 ct state invalid,untracked fib daddr type local goto from_container
    ip daddr @peer_addresses meta l4proto . th dport @open_ports meta mark set ip daddr map @peer_marks
    ip daddr @peer_addresses ip daddr . meta l4proto . th dport @open_at meta mark set ip daddr map @peer_marks
    ip6 daddr @peer_addresses6 meta l4proto . th dport @open_ports meta mark set ip6 daddr map @peer_marks6
    ip6 daddr @peer_addresses6 ip6 daddr . meta l4proto . th dport @open_at6 meta mark set ip6 daddr map @peer_marks6
  }}

  chain steer_own {{
    type route hook output priority mangle; policy accept;
    # resets that this node sends in a container's name
    ct direction reply ct mark and {MARK_MASK:#x} != 0 meta mark set ct mark and {MARK_MASK:#x}
  }}

  # Who publishes on all addresses has the port alone, so the one that is most often asked for may stand first.
  chain ports {{
    meta nfproto ipv6 goto ports6
    ip daddr {DNS} return
    meta l4proto . th dport vmap @published
    ip daddr . meta l4proto . th dport vmap @published_at
    meta l4proto {{ tcp, udp, sctp }} dnat ip to ip daddr . meta l4proto . th dport map @hostports_at
    meta l4proto {{ tcp, udp, sctp }} dnat ip to meta l4proto . th dport map @hostports
  }}

  chain ports6 {{
    ip6 daddr {{ fe80::/10, {GATEWAY6} }} return
    # what leads nowhere in IPv6 is the node's to refuse (chain protect)
    ip6 daddr @pools6 return
    meta l4proto . th dport vmap @published
    ip6 daddr . meta l4proto . th dport vmap @published_at6
    meta l4proto {{ tcp, udp, sctp }} dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostports_at6
    meta l4proto {{ tcp, udp, sctp }} dnat ip6 to meta l4proto . th dport map @hostports6
  }}

  chain balance {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{veth_prefix}*" ip daddr vmap @vips
    iifname "{veth_prefix}*" ip6 daddr vmap @vips6
    fib daddr type local goto ports
  }}

  chain balance_own {{
    type nat hook output priority -100; policy accept;
    # the kernel is not asked whose addresses these are
    ip daddr 127.0.0.0/8 goto ports
    ip6 daddr ::1 goto ports6
    ip daddr vmap @vips
    ip6 daddr vmap @vips6
    fib daddr type local goto ports
  }}

  chain nobody {{
    meta l4proto tcp reject with tcp reset
    reject
  }}

  chain inward {{
    ip saddr vmap @several
    ip6 saddr vmap @several6
    ip saddr vmap @networks
    ip6 saddr vmap @networks6
    goto barred
  }}

  chain isolate {{
    type filter hook forward priority filter; policy accept;
    # the pools lead to lo where there is no container: answer instead of letting the client wait
    oif "lo" goto nobody
    {sealed_forward}
    tcp flags syn oifname "{tunnel}" tcp option maxseg size set rt mtu
    ct state established,related accept
    # what lies around the node is not for containers: metadata of a cloud, other nodes beyond what they publish
    iifname "{veth_prefix}*" ip daddr 169.254.0.0/16 ip saddr != @metadata goto barred
    iifname "{veth_prefix}*" ip daddr @peer_addresses meta l4proto . th dport != @open_ports ip daddr . meta l4proto . th dport != @open_at goto barred
    iifname "{veth_prefix}*" ip6 daddr {{ fd00:ec2::/32, fd20:ce::/32 }} ip6 saddr != @metadata6 goto barred
    iifname "{veth_prefix}*" ip6 daddr @peer_addresses6 meta l4proto . th dport != @open_ports ip6 daddr . meta l4proto . th dport != @open_at6 goto barred
    iifname "{veth_prefix}*" ip daddr @peer_others meta l4proto . th dport != @open_ports ip daddr . meta l4proto . th dport != @open_at goto barred
    # a published port is no way out of a network that has none
    iifname "{veth_prefix}*" ip saddr @closed ip saddr != @freed goto inward
    iifname "{veth_prefix}*" ip6 saddr @closed6 ip6 saddr != @freed6 goto inward
    ct status dnat ct original ip daddr != {vip_pool} accept
    ct status dnat ct original ip6 daddr != {vip_pool6} accept
    # a container of another node that called a published port there or at a third node: the network does not matter
    iifname != "{veth_prefix}*" ip saddr @pools ct mark and {MARK_MASK:#x} != 0 ip daddr . meta l4proto . th dport @targets accept
    iifname != "{veth_prefix}*" ip6 saddr @pools6 ct mark and {MARK_MASK:#x} != 0 ip6 daddr . meta l4proto . th dport @targets6 accept
    ip saddr vmap @several
    ip6 saddr vmap @several6
    ip saddr vmap @networks
    ip6 saddr vmap @networks6
    # an address whose network is not known yet
    iifname "{veth_prefix}*" goto barred
    ip saddr @pools ip daddr @pools goto barred
    ip6 saddr @pools6 ip6 daddr @pools6 goto barred
    # containers are reached through published ports, here or at a peer
    ip daddr @pools ct mark and {MARK_MASK:#x} == 0 goto barred
    ip6 daddr @pools6 ct mark and {MARK_MASK:#x} == 0 goto barred
  }}

  # What comes to the node itself. The kernel asks such a chain about the first packet of a connection alone; of all such
  # chains, of whomever they are, ours comes first. What comes from this node has been translated as it left.
  chain protect {{
    type nat hook input priority -150; policy accept;
    # an address of containers or services that nobody has
    ip6 daddr @pools6 goto nobody
    iifname "{veth_prefix}*" goto from_container
    # a container of another node that called a published port which is none here: a program has it, or nobody
    ip saddr @pools goto barred
    ip6 saddr @pools6 goto barred
  }}

  chain from_container {{
    udp dport {tunnel_port} drop
    ip daddr {DNS} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip saddr @closed ip saddr != @freed goto barred
    ip6 saddr @closed6 ip6 saddr != @freed6 goto barred
    {guard}
  }}

  chain translate {{
    type nat hook postrouting priority srcnat; policy accept;
    # the node's own programs: none of the sets has them
    ip saddr 127.0.0.0/8 oifname "{veth_prefix}*" snat ip to {GATEWAY}
    ip6 saddr ::1 oifname "{veth_prefix}*" snat ip6 to {GATEWAY6}
    # a container that was balanced to itself would answer itself directly
    ip saddr . ip daddr @hairpin snat ip to {GATEWAY}
    ip6 saddr . ip6 daddr @hairpin6 snat ip6 to {GATEWAY6}
    ip saddr vmap @poses
    ip6 saddr vmap @poses6
    # a peer that was balanced to itself would take its own address for a forgery
    ip saddr . ip daddr @own_blocks masquerade
    ip6 saddr . ip6 daddr @own_blocks6 masquerade
    oifname "{veth_prefix}*" accept
    oifname != "lo" ip saddr 127.0.0.0/8 masquerade
    oifname != "lo" ip6 saddr ::1 masquerade
    ip saddr {local_pool} masquerade
    ip6 saddr {local_pool6} masquerade
    # at a peer's published ports a container is who it is: that peer knows the way back to it
    ip saddr @pools ip daddr @peer_addresses meta l4proto . th dport @open_ports accept
    ip saddr @pools ip daddr @peer_addresses ip daddr . meta l4proto . th dport @open_at accept
    ip saddr @pools ip daddr != @pools masquerade
    ip6 saddr @pools6 ip6 daddr @peer_addresses6 meta l4proto . th dport @open_ports accept
    ip6 saddr @pools6 ip6 daddr @peer_addresses6 ip6 daddr . meta l4proto . th dport @open_at6 accept
    ip6 saddr @pools6 ip6 daddr != @pools6 masquerade
  }}
}}
"#
        )
    }
}
