//! Transactions of nf_tables (linux/netfilter/nf_tables.h, nfnetlink.h): messages between a beginning and an end, of
//! which all take effect at once or none does. What is built here is what `nft` sends for the same, so that
//! `nft list` shows it as its own.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{SockProtocol, setsockopt};

use super::{BUFFER_BYTES, CREATE, NLM_F_ACK, NLMSG_ERROR, Netlink, Request, messages, u32_at};
use crate::error::Error;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const DELETE_SET: u16 = SUBSYSTEM << 8 | 11;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
/// For new rules: behind those that are there.
const APPEND: u16 = 0x800;

/// `struct nfgenmsg` for the family `inet`.
const INET: [u8; 4] = [1, 0, 0, 0];
/// `struct nfgenmsg` around a batch: the subsystem that it is for.
const AROUND: [u8; 4] = [0, 0, 0, SUBSYSTEM as u8];

/// `struct nlattr` names of a list's elements and of what an expression is made of.
const LIST_ELEMENT: u16 = 1;
/// NFT_SET_MAP
const MAP: u32 = 0x08;
/// How `nft` calls data types in what it stores with a set: an integer, an IPv4 address, an IPv6 address.
const TYPE_INTEGER: u32 = 4;
const TYPE_ADDRESS: u32 = 7;
const TYPE_ADDRESS6: u32 = 8;

/// What `nft` keeps with a map that was declared as `typeof numgen inc mod 2 : ip daddr` (`ip6` with `v6`), so that it is
/// listed as that: orders of bytes, and the two expressions (libnftnl, `udata.h`; nft, `proto.h`).
fn user_data(v6: bool) -> Vec<u8> {
    const HOST_ORDER: u32 = 1;
    const NETWORK_ORDER: u32 = 2;
    const NUMGEN: u32 = 23;
    const PAYLOAD: u32 = 7;
    let value = |kind: u8, value: u32| [&[kind, 4][..], &value.to_ne_bytes()].concat();
    let nest = |kind: u8, parts: &[Vec<u8>]| {
        let body = parts.concat();
        [&[kind, body.len() as u8][..], &body].concat()
    };
    let (header, field) = if v6 { (0x0d, 0x09) } else { (0x0c, 0x0c) };
    let counted = nest(1, &[value(0, 0), value(1, 2), value(2, 0)]);
    let address = nest(1, &[value(0, header), value(1, field)]);
    [
        value(0, HOST_ORDER),
        value(1, NETWORK_ORDER),
        nest(3, &[value(0, NUMGEN), counted]),
        nest(4, &[value(0, PAYLOAD), address]),
        value(6, 0),
    ]
    .concat()
}

/// The two registers that rules use.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const VERDICT_GOTO: i32 = -4;

/// Elements in one message: a list of them is an attribute, and has less than 64 KiB.
const ELEMENTS: usize = 256;

/// What a map has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Bytes(Vec<u8>),
    Goto(String),
}

/// A step of a rule. Values are in the first register; a port is in the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// The packet's transport protocol.
    LoadProtocol,
    /// The packet's address family.
    LoadFamily,
    /// The packet's source.
    LoadSource {
        v6: bool,
    },
    /// What the register has of these bits.
    Mask(Vec<u8>),
    /// The rule goes on if the register holds this.
    Equals(Vec<u8>),
    /// The next of 0, 1, … below a bound.
    Count(u32),
    /// The packet's source, in the second register.
    LoadSourceApart {
        v6: bool,
    },
    /// A number below a bound, made from the second register.
    Hash {
        bound: u32,
        seed: u32,
        v6: bool,
    },
    /// What a map has for the register.
    LookUp(String),
    LoadAddress(IpAddr),
    LoadPort(u16),
    /// The connection's new destination; with `port`, also its port.
    Translate {
        port: bool,
        v6: bool,
    },
    /// The packet goes on in a chain.
    Goto(String),
    /// Answers with a TCP reset.
    Reset,
    /// Answers that the port can't be reached.
    Refuse,
}

/// Messages about one table of the family `inet`.
pub(crate) struct Batch<'a> {
    table: &'a str,
    requests: Vec<Request>,
    maps: u32,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(table: &'a str) -> Batch<'a> {
        Batch { table, requests: Vec::new(), maps: 0 }
    }

    /// What [`transact`] takes.
    pub(crate) fn finish(self) -> Vec<Request> {
        self.requests
    }

    /// A chain that is there stays as it is.
    pub(crate) fn add_chain(&mut self, name: &str) {
        let request = self.request(NEW_CHAIN, CREATE, format!("add chain {name}"));
        self.requests.push(request.attr_str(3, name));
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        let request = self.request(DELETE_RULE, 0, format!("flush chain {name}"));
        self.requests.push(request.attr_str(2, name));
    }

    pub(crate) fn delete_chain(&mut self, name: &str) {
        let request = self.request(DELETE_CHAIN, 0, format!("delete chain {name}"));
        self.requests.push(request.attr_str(3, name));
    }

    /// A rule behind those of the chain.
    pub(crate) fn add_rule(&mut self, chain: &str, expressions: &[Expression]) {
        let request = self.request(NEW_RULE, CREATE | APPEND, format!("add a rule to chain {chain}"));
        let fill = |list| expressions.iter().fold(list, |list, expression| expression.put(list));
        self.requests.push(request.attr_str(2, chain).nest(4, fill));
    }

    /// A map from 0, 1, … to addresses. One that is there stays as it is.
    pub(crate) fn add_numbered(&mut self, name: &str, v6: bool) {
        let (kind, bytes) = if v6 { (TYPE_ADDRESS6, 16) } else { (TYPE_ADDRESS, 4) };
        self.maps += 1;
        let request = self.request(NEW_SET, CREATE, format!("add map {name}")).attr_str(2, name);
        let request = number(number(number(request, 3, MAP), 4, TYPE_INTEGER), 5, 4);
        let request = number(number(number(request, 6, kind), 7, bytes), 10, self.maps);
        self.requests.push(request.attr(13, &user_data(v6)));
    }

    pub(crate) fn delete_set(&mut self, name: &str) {
        let request = self.request(DELETE_SET, 0, format!("delete map {name}"));
        self.requests.push(request.attr_str(2, name));
    }

    /// An element that is there with the same value is fine.
    pub(crate) fn add_elements(&mut self, set: &str, elements: &[(Vec<u8>, Option<Data>)]) {
        self.elements(NEW_ELEMENTS, set, elements);
    }

    pub(crate) fn delete_elements(&mut self, set: &str, keys: &[(Vec<u8>, Option<Data>)]) {
        self.elements(DELETE_ELEMENTS, set, keys);
    }

    fn elements(&mut self, kind: u16, set: &str, elements: &[(Vec<u8>, Option<Data>)]) {
        let (flags, verb) = if kind == NEW_ELEMENTS { (CREATE, "add") } else { (0, "delete") };
        for some in elements.chunks(ELEMENTS) {
            let request = self.request(kind, flags, format!("{verb} elements of {set}")).attr_str(2, set);
            self.requests.push(request.nest(3, |list| some.iter().fold(list, put_element)));
        }
    }

    fn request(&self, kind: u16, flags: u16, operation: String) -> Request {
        let operation = format!("{operation} in table {}", self.table);
        Request::new(kind, flags, operation).put(&INET).attr_str(1, self.table)
    }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An attribute of 32 bits in network order, as all of nf_tables' are.
fn number(request: Request, kind: u16, value: u32) -> Request {
    request.attr(kind, &value.to_be_bytes())
}

/// `NFTA_DATA_VALUE` in a nest.
fn value(request: Request, kind: u16, bytes: &[u8]) -> Request {
    request.nest(kind, |r| r.attr(1, bytes))
}

/// Attribute 2 of an element and of an immediate alike: data that is a verdict.
fn verdict(request: Request, chain: &str) -> Request {
    request.nest(2, |data| data.nest(2, |r| r.attr(1, &VERDICT_GOTO.to_be_bytes()).attr_str(2, chain)))
}

fn put_element(list: Request, (key, data): &(Vec<u8>, Option<Data>)) -> Request {
    list.nest(LIST_ELEMENT, |element| {
        let element = value(element, 1, key);
        match data {
            None => element,
            Some(Data::Bytes(bytes)) => value(element, 2, bytes),
            Some(Data::Goto(chain)) => verdict(element, chain),
        }
    })
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Expression::LoadProtocol | Expression::LoadFamily => "meta",
            Expression::LoadSource { .. } | Expression::LoadSourceApart { .. } => "payload",
            Expression::Hash { .. } => "hash",
            Expression::Mask(_) => "bitwise",
            Expression::Equals(_) => "cmp",
            Expression::Count(_) => "numgen",
            Expression::LookUp(_) => "lookup",
            Expression::LoadAddress(_) | Expression::LoadPort(_) | Expression::Goto(_) => "immediate",
            Expression::Translate { .. } => "nat",
            Expression::Reset | Expression::Refuse => "reject",
        }
    }

    fn put(&self, list: Request) -> Request {
        list.nest(LIST_ELEMENT, |r| r.attr_str(1, self.name()).nest(2, |r| self.put_attributes(r)))
    }

    fn put_attributes(&self, r: Request) -> Request {
        const NFPROTO: u32 = 15;
        const L4PROTO: u32 = 16;
        const NETWORK_HEADER: u32 = 1;
        const SOURCE_AT: u32 = 12;
        const SOURCE6_AT: u32 = 8;
        const VERDICT_REGISTER: u32 = 0;
        const DNAT: u32 = 1;
        const IPV4: u32 = 2;
        const IPV6: u32 = 10;
        const PORT_IS_GIVEN: u32 = 2;
        const TCP_RESET: u32 = 1;
        const ICMPX: u32 = 2;
        const PORT_UNREACHABLE: u8 = 1;
        const JENKINS: u32 = 0;
        match self {
            Expression::LoadProtocol => number(number(r, 2, L4PROTO), 1, FIRST),
            Expression::LoadFamily => number(number(r, 2, NFPROTO), 1, FIRST),
            Expression::LoadSource { v6 } | Expression::LoadSourceApart { v6 } => {
                let register = if matches!(self, Expression::LoadSource { .. }) { FIRST } else { SECOND };
                let (at, bytes) = if *v6 { (SOURCE6_AT, 16) } else { (SOURCE_AT, 4) };
                number(number(number(number(r, 1, register), 2, NETWORK_HEADER), 3, at), 4, bytes)
            }
            Expression::Hash { bound, seed, v6 } => {
                let bytes = if *v6 { 16 } else { 4 };
                let r = number(number(number(number(r, 1, SECOND), 2, FIRST), 3, bytes), 4, *bound);
                number(number(r, 5, *seed), 7, JENKINS)
            }
            Expression::Mask(bits) => {
                let length = u32::try_from(bits.len()).unwrap_or(u32::MAX);
                let r = number(number(number(r, 1, FIRST), 2, FIRST), 3, length);
                value(value(r, 4, bits), 5, &vec![0; bits.len()])
            }
            Expression::Goto(chain) => verdict(number(r, 1, VERDICT_REGISTER), chain),
            Expression::Equals(bytes) => value(number(number(r, 1, FIRST), 2, 0), 3, bytes),
            Expression::Count(bound) => number(number(number(number(r, 1, FIRST), 2, *bound), 3, 0), 4, 0),
            Expression::LookUp(map) => number(number(r, 2, FIRST), 3, FIRST).attr_str(1, map),
            Expression::LoadAddress(address) => value(number(r, 1, FIRST), 2, &octets(*address)),
            Expression::LoadPort(port) => value(number(r, 1, SECOND), 2, &port.to_be_bytes()),
            Expression::Translate { port, v6 } => {
                let family = if *v6 { IPV6 } else { IPV4 };
                let r = number(number(number(r, 1, DNAT), 2, family), 3, FIRST);
                if *port { number(number(r, 5, SECOND), 7, PORT_IS_GIVEN) } else { r }
            }
            Expression::Reset => number(r, 1, TCP_RESET).attr(2, &[0]),
            Expression::Refuse => number(r, 1, ICMPX).attr(2, &[PORT_UNREACHABLE]),
        }
    }
}

/// Opens a socket for transactions in this thread's namespace.
pub(crate) fn open() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}

/// Runs the requests as one transaction. After an error the table is as it was, unless the answer itself was lost.
pub(crate) fn transact(netlink: &mut Netlink, requests: Vec<Request>) -> Result<(), Error> {
    let refused = |operation: &str, errno: &dyn std::fmt::Display| Error::Nft {
        reason: format!("{operation}: {errno}"),
    };
    let first = netlink.sequence.wrapping_add(1);
    let last = requests.len();
    let around = |kind| Request::new(kind, 0, "run the transaction").put(&AROUND);
    let mut all = vec![around(BATCH_BEGIN)];
    all.extend(requests);
    all.push(around(BATCH_END));
    let mut bytes = Vec::new();
    for (at, request) in all.iter_mut().enumerate() {
        netlink.sequence = netlink.sequence.wrapping_add(1);
        request.finish(netlink.sequence, 0);
        // The kernel tells of every error; that the last request was heard says that there is no more to come.
        if at != last {
            let flags = request.flags() & !NLM_F_ACK;
            request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        bytes.extend_from_slice(&request.bytes);
    }
    let unheard = |error: std::io::Error| refused("netlink", &error);
    make_room(netlink, bytes.len()).and_then(|()| netlink.send(&bytes)).map_err(unheard)?;
    let mut outcome = Ok(());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = netlink.receive(&mut buffer).map_err(unheard)?;
        for message in messages(&buffer[..length]) {
            let at = message.sequence.wrapping_sub(first) as usize;
            // An answer to an earlier transaction.
            let (Some(request), true) = (all.get(at), message.kind == NLMSG_ERROR) else { continue };
            let code = i32::from_ne_bytes(u32_at(message.payload, 0).unwrap_or(0).to_ne_bytes());
            if code != 0 && outcome.is_ok() {
                outcome = Err(refused(&request.operation, &Errno::from_raw(-code).desc()));
            }
            // What is said of the beginning is said of the whole, and is the last word where it is an error.
            if at == last || at == 0 {
                return outcome;
            }
        }
    }
}

/// A transaction has to be sent in one piece.
fn make_room(netlink: &Netlink, bytes: usize) -> std::io::Result<()> {
    if bytes > super::BATCH_BYTES {
        setsockopt(&netlink.socket, SndBufForce, &(2 * bytes))?;
    }
    Ok(())
}
