//! Questions to a node's resolver.

use std::net::{Ipv4Addr, UdpSocket};

use rorqual_network::DNS;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, TYPE};

use super::{Ns, patience, received};

/// Code and addresses that the node's resolver gives.
pub fn ask(from: &Ns, name: &str, kind: TYPE) -> (RCODE, Vec<Ipv4Addr>) {
    let mut query = Packet::new_query(4711);
    let qname = Name::new(name).unwrap().into_owned();
    query.questions.push(Question::new(qname, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let query = query.build_bytes_vec().unwrap();
    let answer = from.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        socket.connect((DNS, 53)).unwrap();
        socket.send(&query).unwrap();
        let mut buffer = vec![0; 4096];
        let (length, _) = received(&socket, &mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    });
    let packet = Packet::parse(&answer).unwrap();
    assert_eq!(packet.id(), 4711);
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from(a.address)),
        _ => None,
    });
    let mut addresses: Vec<Ipv4Addr> = addresses.collect();
    addresses.sort_unstable();
    (packet.rcode(), addresses)
}
