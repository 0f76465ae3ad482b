//! How a container asks for names: what its `resolv.conf` can say.

use super::InvalidField;
use crate::model::DnsSpec;

/// As many as resolv.conf(5) has of each.
const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 32;
const MAX_OPTIONS: usize = 16;

/// The longest name (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

pub(super) fn dns(dns: &DnsSpec) -> Result<(), InvalidField> {
    for (path, count, most) in [
        ("servers", dns.servers.len(), MAX_SERVERS),
        ("search", dns.search.len(), MAX_SEARCH),
        ("options", dns.options.len(), MAX_OPTIONS),
    ] {
        if count > most {
            return Err(InvalidField::new(path, format!("{count} are too many: at most {most}")));
        }
    }
    let unusable = |server: &std::net::IpAddr| server.is_unspecified() || server.is_multicast();
    if let Some(index) = dns.servers.iter().position(unusable) {
        let problem = format!("{} is no resolver's address", dns.servers[index]);
        return Err(InvalidField::new(format!("servers[{index}]"), problem));
    }
    for (index, domain) in dns.search.iter().enumerate() {
        if !is_domain(domain) {
            let problem = format!("`{domain}` is not the name of a domain");
            return Err(InvalidField::new(format!("search[{index}]"), problem)
                .remedy("write it as corp.example, of letters, digits, `-`, `_` and dots"));
        }
    }
    for (index, option) in dns.options.iter().enumerate() {
        if option.is_empty() || !option.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = format!("`{option}` is not an option of a resolver");
            return Err(InvalidField::new(format!("options[{index}]"), problem)
                .remedy("write it as resolv.conf(5) has it: ndots:2, timeout:1, rotate"));
        }
    }
    Ok(())
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= MAX_NAME && text.trim_end_matches('.').split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resolv_conf_could_not_say_is_refused() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let check = |servers: &[&str], search: &[&str], options: &[&str]| {
            let servers = servers.iter().map(|text| text.parse().unwrap()).collect();
            let spec = DnsSpec { servers, search: texts(search), options: texts(options) };
            dns(&spec).map_or_else(|error| error.path, |()| String::new())
        };
        assert_eq!(check(&["10.0.0.53", "fd00::53"], &["corp.example", "_tcp.example."], &["ndots:2"]), "");
        assert_eq!(check(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"], &[], &[]), "servers");
        assert_eq!(check(&["0.0.0.0"], &[], &[]), "servers[0]");
        for bad in ["", "a..b", "a b", "corp\nnameserver", "."] {
            assert_eq!(check(&[], &["ok", bad], &[]), "search[1]", "{bad:?}");
        }
        for bad in ["", "ndots: 2", "a\nb"] {
            assert_eq!(check(&[], &[], &[bad]), "options[0]", "{bad:?}");
        }
    }
}
