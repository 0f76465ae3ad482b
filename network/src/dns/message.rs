//! One question in, one answer out: what the resolver says to a message, without any I/O.

use std::net::Ipv4Addr;

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::names::Names;

/// What a client without EDNS takes over UDP (RFC 1035, section 4.2.1).
const SMALL_BYTES: usize = 512;
/// More than this is not sent over UDP whatever the client says, so that it is not fragmented (RFC 9715).
const LARGE_BYTES: usize = 1232;

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// The name is not ours: ask the resolvers of the host.
    Forward,
    /// Not a question; saying anything could start a loop.
    Ignore,
}

/// Decides on a message of a client in a network. `over_tcp`: any length can be answered.
pub(crate) fn decide(names: &Names, network: &str, message: &[u8], over_tcp: bool) -> Verdict {
    let Ok(query) = Packet::parse(message) else { return malformed(message) };
    if query.has_flags(PacketFlag::RESPONSE) {
        return Verdict::Ignore;
    }
    if query.opcode() != simple_dns::OPCODE::StandardQuery {
        return refuse(&query, RCODE::NotImplemented);
    }
    let [question] = query.questions.as_slice() else { return refuse(&query, RCODE::FormatError) };
    let name = question.qname.to_string().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let Some(addresses) = names.find(network, name) else {
        let single_label = !name.contains('.');
        return if single_label && !name.is_empty() {
            refuse(&query, RCODE::NameError)
        } else {
            Verdict::Forward
        };
    };
    let wants_addresses = matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY);
    let addresses = if wants_addresses { addresses } else { Vec::new() };
    let limit = match query.opt() {
        _ if over_tcp => usize::from(u16::MAX),
        Some(opt) => usize::from(opt.udp_packet_size).clamp(SMALL_BYTES, LARGE_BYTES),
        None => SMALL_BYTES,
    };
    answer(&query, question.qname.clone(), &addresses, limit)
}

/// An error in reply to a message that could be read; empty if even the header is missing.
pub(crate) fn failure(message: &[u8]) -> Verdict {
    match Packet::parse(message) {
        Ok(query) => refuse(&query, RCODE::ServerFailure),
        Err(_) => malformed(message),
    }
}

fn answer(query: &Packet, name: Name, addresses: &[Ipv4Addr], limit: usize) -> Verdict {
    let mut reply = reply_to(query, RCODE::NoError);
    for address in addresses {
        // TTL 0: an answer is as good as the state of now, and no better.
        let data = RData::A(A { address: u32::from(*address) });
        reply.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 0, data));
    }
    match reply.build_bytes_vec_compressed() {
        Ok(bytes) if bytes.len() <= limit => Verdict::Answer(bytes),
        Ok(_) => {
            reply.answers.clear();
            reply.set_flags(PacketFlag::TRUNCATION);
            build(&reply)
        }
        Err(_) => refuse(query, RCODE::ServerFailure),
    }
}

fn refuse(query: &Packet, code: RCODE) -> Verdict {
    build(&reply_to(query, code))
}

fn reply_to<'a>(query: &Packet<'a>, code: RCODE) -> Packet<'a> {
    let mut reply = Packet::new_reply(query.id());
    reply.questions.clone_from(&query.questions);
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.rcode_mut() = code;
    reply
}

fn build(reply: &Packet) -> Verdict {
    reply.build_bytes_vec_compressed().map_or(Verdict::Ignore, Verdict::Answer)
}

fn malformed(message: &[u8]) -> Verdict {
    let (Some(id), Some(flags)) = (message.get(..2), message.get(2)) else { return Verdict::Ignore };
    if message.len() < 12 || flags & 0x80 != 0 {
        return Verdict::Ignore;
    }
    let mut reply = Packet::new_reply(u16::from_be_bytes([id[0], id[1]]));
    *reply.rcode_mut() = RCODE::FormatError;
    build(&reply)
}

#[cfg(test)]
mod tests {
    use simple_dns::{QCLASS, Question};

    use super::super::names::{Entry, Owner};
    use super::*;

    fn names(addresses: usize) -> Names {
        let names = Names::default();
        let addresses = (1..=addresses).map(|i| Ipv4Addr::from(0x0ad5_0000 + i as u32)).collect();
        names.set(Owner::Service("s".into()), "default", vec![Entry { name: "web".into(), addresses }]);
        names
    }

    fn question(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(77);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    fn ask(names: &Names, network: &str, name: &str, kind: TYPE) -> (RCODE, usize) {
        match decide(names, network, &question(name, kind), false) {
            Verdict::Answer(bytes) => {
                let packet = Packet::parse(&bytes).unwrap();
                assert_eq!(packet.id(), 77);
                assert!(packet.answers.iter().all(|a| a.ttl == 0));
                (packet.rcode(), packet.answers.len())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_names_are_answered_in_their_network_only() {
        let names = names(2);
        assert_eq!(ask(&names, "default", "WEB", TYPE::A), (RCODE::NoError, 2));
        assert_eq!(ask(&names, "default", "web", TYPE::AAAA), (RCODE::NoError, 0));
        assert_eq!(ask(&names, "default", "nobody", TYPE::A), (RCODE::NameError, 0));
        assert_eq!(ask(&names, "other", "web", TYPE::A), (RCODE::NameError, 0));
    }

    #[test]
    fn other_names_are_forwarded() {
        let message = question("example.com", TYPE::A);
        assert_eq!(decide(&names(1), "default", &message, false), Verdict::Forward);
    }

    #[test]
    fn a_long_answer_is_truncated_over_udp_only() {
        let names = names(200);
        let message = question("web", TYPE::A);
        let read = |over_tcp| match decide(&names, "default", &message, over_tcp) {
            Verdict::Answer(bytes) => bytes,
            other => panic!("{other:?}"),
        };
        let short = read(false);
        let short = Packet::parse(&short).unwrap();
        assert!(short.has_flags(PacketFlag::TRUNCATION) && short.answers.is_empty());
        let long = read(true);
        assert_eq!(Packet::parse(&long).unwrap().answers.len(), 200);
    }

    #[test]
    fn nonsense_neither_panics_nor_is_echoed() {
        let names = names(1);
        let good = question("web", TYPE::A);
        for length in 0..good.len() {
            decide(&names, "default", &good[..length], false);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x3f, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                decide(&names, "default", &bad, false);
            }
        }
        let mut reply = good.clone();
        reply[2] |= 0x80;
        assert_eq!(decide(&names, "default", &reply, false), Verdict::Ignore);
    }
}
