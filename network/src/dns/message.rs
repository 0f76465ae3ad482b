//! One question in, one answer out: what the resolver says to a message, without any I/O.

use std::net::{IpAddr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, OPT, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};

use super::names::{Asker, Names};
use super::ports::{self, Offer, Replica, Wanted};
use crate::random;

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

/// Decides on a message of a client. `over_tcp`: any length can be answered.
pub(crate) fn decide(names: &Names, asker: &Asker, message: &[u8], over_tcp: bool) -> Verdict {
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
    if let Some(address) = reversed(name) {
        return match names.name_of(asker, address) {
            Some(known) => point(&query, question, &known),
            None if asker.outside => Verdict::Forward,
            None => refuse(&query, RCODE::NameError),
        };
    }
    let limit = match query.opt() {
        _ if over_tcp => usize::from(u16::MAX),
        Some(opt) => usize::from(opt.udp_packet_size).clamp(SMALL_BYTES, LARGE_BYTES),
        None => SMALL_BYTES,
    };
    if let Some((wanted, service)) = ports::wanted(name)
        && let Some(offer) = names.offer(asker, service)
    {
        return serve(&query, question, &offer, wanted, limit);
    }
    let Some(addresses) = names.find(asker, name) else {
        let single_label = !name.contains('.');
        return if !asker.outside || (single_label && !name.is_empty()) {
            refuse(&query, RCODE::NameError)
        } else {
            Verdict::Forward
        };
    };
    let wanted = |address: &IpAddr| match question.qtype {
        QTYPE::ANY => true,
        QTYPE::TYPE(TYPE::A) => address.is_ipv4(),
        QTYPE::TYPE(TYPE::AAAA) => address.is_ipv6(),
        _ => false,
    };
    let mut addresses: Vec<IpAddr> = addresses.into_iter().filter(wanted).collect();
    // Many programs take the first one, so it is each one's turn.
    if let Some(turn) = random::bits().checked_rem(addresses.len() as u64) {
        addresses.rotate_left(turn as usize);
    }
    answer(&query, question.qname.clone(), &addresses, limit)
}

/// An error in reply to a message that could be read; empty if even the header is missing.
pub(crate) fn failure(message: &[u8]) -> Verdict {
    match Packet::parse(message) {
        Ok(query) => refuse(&query, RCODE::ServerFailure),
        Err(_) => malformed(message),
    }
}

/// The address that a name as `2.0.213.10.in-addr.arpa` asks for (RFC 1035, section 3.5), or one as
/// `2.0.0.0.d.f.ip6.arpa` with all 32 digits (RFC 3596, section 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".ip6.arpa") {
        let parts: Vec<&str> = digits.split('.').rev().collect();
        let whole = parts.len() == 32 && parts.iter().all(|part| part.len() == 1);
        let bits = whole.then(|| u128::from_str_radix(&parts.concat(), 16).ok())?;
        return bits.map(|bits| Ipv6Addr::from_bits(bits).into());
    }
    let parts: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').rev().collect();
    parts.join(".").parse().ok().map(IpAddr::V4)
}

/// The name of an address; whoever asks for something else of it learns that there is nothing.
fn point(query: &Packet, question: &Question, name: &str) -> Verdict {
    let mut reply = reply_to(query, RCODE::NoError);
    let Ok(target) = Name::new(name) else { return refuse(query, RCODE::ServerFailure) };
    if matches!(question.qtype, QTYPE::TYPE(TYPE::PTR) | QTYPE::ANY) {
        let data = RData::PTR(target.into());
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 0, data));
    }
    build(&reply)
}

fn answer(query: &Packet, name: Name, addresses: &[IpAddr], limit: usize) -> Verdict {
    let mut reply = reply_to(query, RCODE::NoError);
    for address in addresses {
        // TTL 0: an answer is as good as the state of now, and no better.
        let data = match address {
            IpAddr::V4(address) => RData::A(A { address: u32::from(*address) }),
            IpAddr::V6(address) => RData::AAAA(AAAA { address: u128::from(*address) }),
        };
        reply.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, 0, data));
    }
    fit(query, reply, limit)
}

/// Who serves a port: a record for each replica with its weight, and its address beside it (RFC 2782).
fn serve(query: &Packet, question: &Question, offer: &Offer, wanted: Wanted<'_>, limit: usize) -> Verdict {
    let Some(port) = offer.port(wanted) else { return refuse(query, RCODE::NameError) };
    let mut reply = reply_to(query, RCODE::NoError);
    if matches!(question.qtype, QTYPE::TYPE(TYPE::SRV) | QTYPE::ANY) {
        for Replica { name, address, weight } in &offer.replicas {
            let Ok(target) = Name::new(name) else { continue };
            let data = RData::SRV(SRV { priority: 0, weight: *weight, port, target: target.clone() });
            reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 0, data));
            let data = RData::A(A { address: u32::from(*address) });
            reply.additional_records.push(ResourceRecord::new(target, CLASS::IN, 0, data));
        }
    }
    fit(query, reply, limit)
}

/// What does not fit is asked for once more over TCP. What stands beside an answer may be left out (RFC 2181, 9).
fn fit(query: &Packet, mut reply: Packet, limit: usize) -> Verdict {
    for attempt in 0..2 {
        match reply.build_bytes_vec_compressed() {
            Ok(bytes) if bytes.len() <= limit => return Verdict::Answer(bytes),
            Ok(_) if attempt == 0 => reply.additional_records.clear(),
            Ok(_) => break,
            Err(_) => return refuse(query, RCODE::ServerFailure),
        }
    }
    reply.answers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    build(&reply)
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
    // Who speaks EDNS is answered in it (RFC 6891, section 6.1.1).
    *reply.opt_mut() =
        query.opt().map(|_| OPT { opt_codes: Vec::new(), udp_packet_size: LARGE_BYTES as u16, version: 0 });
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
    use std::net::Ipv4Addr;

    use simple_dns::QCLASS;

    use super::super::names::{Entry, Owner};
    use super::*;

    fn names(addresses: usize) -> Names {
        let names = Names::default();
        let addresses = (1..=addresses).map(|i| Ipv4Addr::from(0x0ad5_0000 + i as u32).into()).collect();
        let entry = Entry { network: "default".into(), name: "web".into(), addresses };
        names.set(Owner::Service("s".into()), vec![entry]);
        names
    }

    fn asker(network: &str, outside: bool) -> Asker {
        Asker { networks: vec![network.to_owned()], outside, resolvers: vec![] }
    }

    fn question(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(77);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    fn ask(names: &Names, network: &str, name: &str, kind: TYPE) -> (RCODE, usize) {
        match decide(names, &asker(network, true), &question(name, kind), false) {
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
        assert_eq!(decide(&names(1), &asker("default", true), &message, false), Verdict::Forward);
    }

    #[test]
    fn an_address_leads_back_to_its_name_in_a_shared_network_only() {
        let names = names(1);
        let message = question("1.0.213.10.in-addr.arpa", TYPE::PTR);
        let Verdict::Answer(bytes) = decide(&names, &asker("default", true), &message, false) else {
            panic!("no answer");
        };
        let packet = Packet::parse(&bytes).unwrap();
        let RData::PTR(target) = &packet.answers[0].rdata else { panic!("{packet:?}") };
        assert_eq!(target.0.to_string(), "web");
        assert_eq!(decide(&names, &asker("other", true), &message, false), Verdict::Forward);
        assert_eq!(ask(&names, "default", "1.0.213.10.in-addr.arpa", TYPE::A), (RCODE::NoError, 0));
    }

    #[test]
    fn a_port_of_a_service_leads_to_each_replica_by_name() {
        let names = names(0);
        let replica = |i: u8| Replica {
            name: format!("web.{i}"),
            address: Ipv4Addr::new(10, 213, 0, i),
            weight: u16::from(i) * 100,
        };
        let replicas = |count: u8| (1..=count).map(replica).collect();
        let offer = |count| Offer { ports: vec![], replicas: replicas(count) };
        let owner = Owner::Service("s".into());
        names.set_offer(&owner, "default", &["Web"], offer(2));
        let message = question("_http._tcp.WEB", TYPE::SRV);
        let Verdict::Answer(bytes) = decide(&names, &asker("default", true), &message, false) else {
            panic!("no answer");
        };
        let packet = Packet::parse(&bytes).unwrap();
        let found: Vec<_> = packet
            .answers
            .iter()
            .map(|record| match &record.rdata {
                RData::SRV(srv) => (srv.target.to_string(), srv.port, srv.weight, record.ttl),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, [("web.1".to_owned(), 80, 100, 0), ("web.2".to_owned(), 80, 200, 0)]);
        assert_eq!(packet.additional_records.len(), 2);
        assert_eq!(ask(&names, "default", "_http._tcp.web", TYPE::A), (RCODE::NoError, 0));
        assert_eq!(ask(&names, "default", "_what._tcp.web", TYPE::SRV), (RCODE::NameError, 0));
        let elsewhere = decide(&names, &asker("other", true), &message, false);
        assert_eq!(elsewhere, Verdict::Forward, "another network's");

        // Too long for a datagram with the addresses, then altogether.
        names.set_offer(&owner, "default", &["web"], offer(12));
        assert_eq!(ask(&names, "default", "_http._tcp.web", TYPE::SRV), (RCODE::NoError, 12));
        names.set_offer(&owner, "default", &["web"], offer(100));
        let Verdict::Answer(bytes) = decide(&names, &asker("default", true), &message, false) else {
            panic!("no answer");
        };
        assert!(Packet::parse(&bytes).unwrap().has_flags(PacketFlag::TRUNCATION));
        names.remove(&owner);
        assert_eq!(decide(&names, &asker("default", true), &message, false), Verdict::Forward);
    }

    #[test]
    fn a_name_with_addresses_of_both_families_answers_with_those_that_are_asked_for() {
        let names = Names::default();
        let addresses: Vec<IpAddr> = vec!["10.213.0.1".parse().unwrap(), "fd5e::ad5:1".parse().unwrap()];
        let entry = Entry { network: "default".into(), name: "web".into(), addresses };
        names.set(Owner::Service("s".into()), vec![entry]);
        assert_eq!(ask(&names, "default", "web", TYPE::AAAA), (RCODE::NoError, 0), "nobody asked for it");
        names.set_ipv6("default", true);
        assert_eq!(ask(&names, "default", "web", TYPE::A), (RCODE::NoError, 1));
        assert_eq!(ask(&names, "default", "web", TYPE::AAAA), (RCODE::NoError, 1));
        assert_eq!(ask(&names, "default", "web", TYPE::MX), (RCODE::NoError, 0));
        let digits = "1.0.0.0.5.d.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.5.d.f";
        let reverse = format!("{digits}.ip6.arpa");
        assert_eq!(ask(&names, "default", &reverse, TYPE::PTR), (RCODE::NoError, 1));
        for other in [&reverse[2..], &format!("0{reverse}"), "x.ip6.arpa"] {
            let message = question(other, TYPE::PTR);
            assert_eq!(decide(&names, &asker("default", true), &message, false), Verdict::Forward, "{other}");
        }
    }

    #[test]
    fn nothing_leaves_an_internal_network_not_even_a_question() {
        let names = names(1);
        for name in ["secret.example.com", "9.9.9.9.in-addr.arpa"] {
            let message = question(name, TYPE::A);
            let Verdict::Answer(bytes) = decide(&names, &asker("default", false), &message, false) else {
                panic!("{name} went out");
            };
            assert_eq!(Packet::parse(&bytes).unwrap().rcode(), RCODE::NameError);
        }
    }

    #[test]
    fn a_long_answer_is_truncated_over_udp_only() {
        let names = names(200);
        let message = question("web", TYPE::A);
        let read = |over_tcp| match decide(&names, &asker("default", true), &message, over_tcp) {
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
    fn it_is_each_addresss_turn_to_come_first() {
        let names = names(3);
        let first = || match decide(&names, &asker("default", true), &question("web", TYPE::A), false) {
            Verdict::Answer(bytes) => match Packet::parse(&bytes).unwrap().answers[0].rdata {
                RData::A(A { address }) => address,
                ref other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        // By chance one of them does not once in 10^17 times.
        let seen: std::collections::BTreeSet<u32> = (0..100).map(|_| first()).collect();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn who_speaks_edns_is_answered_in_it_and_takes_more() {
        let names = names(60);
        let asked = |size: u16| {
            let mut packet = Packet::new_query(77);
            let name = Name::new("web").unwrap();
            let qtype = QTYPE::TYPE(TYPE::A);
            packet.questions.push(Question::new(name, qtype, QCLASS::CLASS(CLASS::IN), false));
            *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: size, version: 0 });
            let message = packet.build_bytes_vec().unwrap();
            match decide(&names, &asker("default", true), &message, false) {
                Verdict::Answer(bytes) => bytes,
                other => panic!("{other:?}"),
            }
        };
        let long = asked(4096);
        let long = Packet::parse(&long).unwrap();
        assert_eq!((long.answers.len(), long.has_flags(PacketFlag::TRUNCATION)), (60, false));
        assert_eq!(long.opt().map(|opt| (opt.udp_packet_size, opt.version)), Some((1232, 0)));
        // Less than everybody takes is no size.
        let short = asked(100);
        let short = Packet::parse(&short).unwrap();
        assert!(short.has_flags(PacketFlag::TRUNCATION) && short.opt().is_some());
        let plain = question("web", TYPE::A);
        let Verdict::Answer(plain) = decide(&names, &asker("default", true), &plain, false) else { panic!() };
        let plain = Packet::parse(&plain).unwrap();
        assert!(plain.has_flags(PacketFlag::TRUNCATION) && plain.opt().is_none());
    }

    #[test]
    fn nonsense_neither_panics_nor_is_echoed() {
        let names = names(1);
        let good = question("web", TYPE::A);
        for length in 0..good.len() {
            decide(&names, &asker("default", true), &good[..length], false);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x3f, 0xc0, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                decide(&names, &asker("default", true), &bad, false);
            }
        }
        let mut reply = good.clone();
        reply[2] |= 0x80;
        assert_eq!(decide(&names, &asker("default", true), &reply, false), Verdict::Ignore);
    }
}
