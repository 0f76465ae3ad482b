//! The cluster itself: identity, certificate authority, tokens and address pools.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{ClusterId, EdgeSettings, Meta};

/// The one object that says what cluster this is.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// For people.
    pub name: String,
    /// The root certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// Its private key, PKCS#8 DER. Never logged.
    pub ca_key: Vec<u8>,
    /// The join token of workers, whole: `RQTKN-1-<hash of the CA>-<secret>`. Never logged.
    pub worker_token: String,
    /// The join token of controllers.
    pub controller_token: String,
    /// Container addresses.
    pub container_pool: Ipv4Net,
    /// Virtual addresses of services.
    pub vip_pool: Ipv4Net,
    /// The highest Raft member id ever given.
    pub last_raft_id: u64,
    /// The HTTP edge.
    pub edge: EdgeSettings,
    /// What goes between nodes is encrypted.
    pub encrypt: bool,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Cluster").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClusterId {
    /// The cluster's IPv6 addresses: a range of RFC 4193, section 3.2, whose 40 random bits are those of the id.
    pub fn ipv6_range(&self) -> Ipv6Net {
        let digit = |byte: u8| u128::from(char::from(byte).to_digit(36).unwrap_or(0));
        let bits =
            self.as_str().bytes().fold(0_u128, |bits, byte| bits.wrapping_mul(36).wrapping_add(digit(byte)));
        let global_id = bits & 0xff_ffff_ffff;
        Ipv6Net::new_assert(Ipv6Addr::from_bits(0xfd << 120 | global_id << 80), 48)
    }

    /// The IPv6 address beside that of a container, a service or a node.
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_range().network().to_bits() | u128::from(address.to_bits()))
    }

    /// The same of a range.
    pub fn ipv6_of_range(&self, range: Ipv4Net) -> Ipv6Net {
        Ipv6Net::new_assert(self.ipv6_of(range.network()), 96 + range.prefix_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_a_private_range_of_its_own_in_which_each_address_has_one_beside_it() {
        let [one, other] = [0x1234_5e12_ab90_cd77_u128, 7].map(ClusterId::from_bits);
        assert_eq!(one.ipv6_range().to_string(), "fd12:ab90:cd77::/48");
        assert_ne!(one.ipv6_range(), other.ipv6_range());
        assert_eq!(one.ipv6_of(Ipv4Addr::new(10, 213, 0, 7)).to_string(), "fd12:ab90:cd77::ad5:7");
        let range = one.ipv6_of_range("10.213.0.64/26".parse().unwrap());
        assert_eq!(range.to_string(), "fd12:ab90:cd77::ad5:40/122");
    }
}
