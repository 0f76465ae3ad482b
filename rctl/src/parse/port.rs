//! Published ports: `8080:80`, `127.0.0.1:8080:80`, `[::1]:8080:80`, `53:53/udp`, `8000-8010:80-90`,
//! `published=8080,target=80,protocol=tcp,mode=host,address=10.0.0.5,allow=10.0.0.0/8`.

use rorqual_proto::wire::{PortSpec, Protocol};

/// The ports that one `--publish` names: more than one where it has ranges. A published port of 0, or none,
/// lets the cluster choose.
pub(crate) fn ports(text: &str) -> Result<Vec<PortSpec>, String> {
    let ports = if text.contains('=') { long_form(text) } else { short_form(text) };
    ports.map_err(|reason| format!("`{text}`: {reason}"))
}

fn short_form(text: &str) -> Result<Vec<PortSpec>, String> {
    let (ports, protocol_name) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol(protocol_name)?;
    let (ports, target) = match ports.rsplit_once(':') {
        Some((before, target)) => (Some(before), range(target, 1)?),
        None => (None, range(ports, 1)?),
    };
    let (bound, published) = match ports {
        None => (String::new(), None),
        Some(ports) => match ports.rsplit_once(':') {
            Some((bound, "")) => (bracketed(bound)?, None),
            Some((bound, published)) => (bracketed(bound)?, Some(range(published, 0)?)),
            None => (String::new(), Some(range(ports, 0)?)),
        },
    };
    let published = published.unwrap_or((0, 0));
    let count = target.1 - target.0;
    if published.0 != 0 && published.1 - published.0 != count {
        return Err(format!(
            "{} ports are published and {} are inside; the ranges need the same length",
            published.1 - published.0 + 1,
            count + 1
        ));
    }
    let one = |offset: u32| PortSpec {
        published: if published.0 == 0 { 0 } else { published.0 + offset },
        target: target.0 + offset,
        protocol: protocol.into(),
        address: bound.clone(),
        ..PortSpec::default()
    };
    Ok((0..=count).map(one).collect())
}

fn long_form(text: &str) -> Result<Vec<PortSpec>, String> {
    let mut port = PortSpec { protocol: Protocol::Tcp.into(), ..PortSpec::default() };
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=value"))?;
        match key {
            "published" => port.published = range(value, 0)?.0,
            "target" => port.target = range(value, 1)?.0,
            "protocol" => port.protocol = protocol(value)?.into(),
            "address" | "ip" => port.address = address(value),
            "allow" => port.allow.push(value.to_owned()),
            "mode" => port.local = is_local(value)?,
            _ => {
                return Err(format!(
                    "unknown key `{key}`: expected published, target, protocol, mode, address or allow"
                ));
            }
        }
        if matches!(key, "published" | "target") && value.contains('-') {
            return Err(format!("`{value}`: ranges need the short form, as 8000-8010:80-90"));
        }
    }
    if port.target == 0 {
        return Err("target, the port inside the container, is missing".to_owned());
    }
    Ok(vec![port])
}

/// An IPv6 address has colons of its own.
fn bracketed(text: &str) -> Result<String, String> {
    let inner = address(text);
    if inner.contains(':') && text != format!("[{inner}]") {
        return Err(format!("an IPv6 address stands in brackets, as [{inner}]"));
    }
    Ok(inner)
}

/// As the model takes it, which says what is wrong with it.
fn address(text: &str) -> String {
    text.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(format!("`{text}` is not a protocol: expected tcp, udp or sctp")),
    }
}

/// Docker's two words: every node leads to all replicas, or each to its own.
fn is_local(text: &str) -> Result<bool, String> {
    match text {
        "ingress" => Ok(false),
        "host" => Ok(true),
        _ => Err(format!("`{text}` is neither ingress nor host")),
    }
}

/// `80` or `80-90`, both ends included.
fn range(text: &str, least: u32) -> Result<(u32, u32), String> {
    let number = |text: &str| match text.parse::<u32>() {
        Ok(port) if (least..=65_535).contains(&port) => Ok(port),
        _ => Err(format!("`{text}` is not a port: expected {least} to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        return Err(format!("`{text}` ends before it begins"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(published: u32, target: u32) -> PortSpec {
        PortSpec { published, target, protocol: Protocol::Tcp.into(), ..PortSpec::default() }
    }

    fn udp(published: u32, target: u32) -> PortSpec {
        PortSpec { published, target, protocol: Protocol::Udp.into(), ..PortSpec::default() }
    }

    #[test]
    fn short_forms() {
        assert_eq!(ports("8080:80"), Ok(vec![tcp(8080, 80)]));
        assert_eq!(ports("80"), Ok(vec![tcp(0, 80)]));
        assert_eq!(ports("0:80"), Ok(vec![tcp(0, 80)]));
        assert_eq!(ports("53:5353/udp"), Ok(vec![udp(53, 5353)]));
        assert_eq!(ports("8000-8001:80-81"), Ok(vec![tcp(8000, 80), tcp(8001, 81)]));
    }

    #[test]
    fn a_port_may_be_bound_to_an_address() {
        let at = |address: &str, port| PortSpec { address: address.into(), ..port };
        assert_eq!(ports("127.0.0.1:8080:80"), Ok(vec![at("127.0.0.1", tcp(8080, 80))]));
        assert_eq!(ports("10.0.0.5::53/udp"), Ok(vec![at("10.0.0.5", udp(0, 53))]));
        assert_eq!(ports("[::1]:8080:80"), Ok(vec![at("::1", tcp(8080, 80))]));
        assert_eq!(ports("[fd00::7]::53/udp"), Ok(vec![at("fd00::7", udp(0, 53))]));
        assert_eq!(ports("published=1,target=2,address=fd00::7"), Ok(vec![at("fd00::7", tcp(1, 2))]));
        let allow = vec!["10.0.0.0/8".to_owned(), "192.0.2.7".to_owned()];
        let port = PortSpec { allow, ..at("10.0.0.5", tcp(1, 2)) };
        let text = "published=1,target=2,address=10.0.0.5,allow=10.0.0.0/8,allow=192.0.2.7";
        assert_eq!(ports(text), Ok(vec![port]));
    }

    #[test]
    fn long_forms() {
        assert_eq!(ports("published=8080,target=80"), Ok(vec![tcp(8080, 80)]));
        assert_eq!(ports("target=53,protocol=udp"), Ok(vec![udp(0, 53)]));
        assert_eq!(ports("published=1,target=2,mode=ingress"), Ok(vec![tcp(1, 2)]));
        let local = PortSpec { local: true, ..tcp(1, 2) };
        assert_eq!(ports("published=1,target=2,mode=host"), Ok(vec![local]));
        let sctp = PortSpec { protocol: Protocol::Sctp.into(), ..tcp(9000, 9001) };
        assert_eq!(ports("published=9000,target=9001,protocol=sctp"), Ok(vec![sctp.clone()]));
        assert_eq!(ports("9000:9001/sctp"), Ok(vec![sctp]));
    }

    #[test]
    fn refusals_say_what_was_expected() {
        let cases = [
            ("", "is not a port"),
            ("8080:", "is not a port"),
            ("8080:0", "expected 1 to 65535"),
            ("70000:80", "70000"),
            ("80/dccp", "expected tcp, udp or sctp"),
            ("90-80:1-11", "ends before"),
            ("fd00::7:8080:80", "in brackets, as [fd00::7]"),
            ("80-90:80", "same length"),
            ("published=8080", "target"),
            ("target=80,mode=global", "neither ingress nor host"),
            ("target=80,name=x", "unknown key"),
            ("target=80-90", "short form"),
        ];
        for (text, reason) in cases {
            let refusal = ports(text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}
