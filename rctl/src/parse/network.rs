//! A network to join: `front`, `front,alias=db`, or `name=front,alias=db,alias=cache,ip=10.20.0.7`, as Docker has it
//! (`ip6=fd00:1::7` is an IPv6 address);
//! `publish-not-ready=NAME` is a name that stands for replicas before they are healthy, too.

use rorqual_proto::wire::NetworkJoin;

/// Reads one.
pub(crate) fn network(text: &str) -> Result<NetworkJoin, String> {
    if !text.contains('=') {
        if text.is_empty() || text.contains(',') {
            return Err(format!("`{text}` is not a network: give a name, or name=NETWORK,alias=NAME"));
        }
        return Ok(NetworkJoin { network: text.to_owned(), ..NetworkJoin::default() });
    }
    let mut join = NetworkJoin::default();
    for (at, field) in text.split(',').enumerate() {
        if at == 0 && !field.is_empty() && !field.contains('=') {
            field.clone_into(&mut join.network);
            continue;
        }
        let Some((key, value)) = field.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(format!("`{field}` is not KEY=VALUE, such as name=front or alias=db"));
        };
        match key {
            "name" if join.network.is_empty() => value.clone_into(&mut join.network),
            "name" => return Err("name stands there twice: give --network once for each network".to_owned()),
            "alias" => join.aliases.push(value.to_owned()),
            "publish-not-ready" => join.unready_aliases.push(value.to_owned()),
            "ip" => value.clone_into(&mut join.address),
            "ip6" => value.clone_into(&mut join.ipv6_address),
            _ => return Err(format!("`{key}` is not one of name, alias, publish-not-ready, ip and ip6")),
        }
    }
    if join.network.is_empty() {
        return Err(format!("`{text}` names no network: add name=NETWORK"));
    }
    Ok(join)
}

#[cfg(test)]
mod tests {
    use super::network;

    #[test]
    fn networks_are_names_or_lists_of_keys() {
        assert_eq!(network("front").unwrap().network, "front");
        let join = network("name=back,alias=db,alias=cache,ip=10.20.0.7").unwrap();
        assert_eq!((join.network.as_str(), join.address.as_str()), ("back", "10.20.0.7"));
        assert_eq!(join.aliases, ["db", "cache"]);
        assert_eq!(network("back,alias=db,alias=cache,ip=10.20.0.7"), Ok(join));
        let six = network("name=back,ip6=fd00:1::7").unwrap();
        assert_eq!((six.address.as_str(), six.ipv6_address.as_str()), ("", "fd00:1::7"));
        let peers = network("name=back,publish-not-ready=db-peers").unwrap();
        assert_eq!(peers.unready_aliases, ["db-peers"]);
        for (wrong, expected) in [
            ("", "is not a network"),
            ("a,b", "is not a network"),
            ("alias=db", "names no network"),
            ("name=a,name=b", "twice"),
            ("a,name=b", "twice"),
            ("name=a,db", "is not KEY=VALUE"),
            ("name=a,mac=x", "is not one of"),
        ] {
            assert!(network(wrong).unwrap_err().contains(expected), "{wrong}");
        }
    }
}
