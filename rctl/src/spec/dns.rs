//! Flags of how a container asks for names, as `run` and `service create` have them, and `service update`.

use clap::Args;
use rorqual_proto::wire::DnsSpec;

/// Docker's flags.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DnsArgs {
    /// Resolver to ask in place of the node's for names that are not the cluster's; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Domain to try behind a name; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver, as in resolv.conf(5): ndots:2; may be repeated
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
}

impl DnsArgs {
    /// None where nothing was said.
    pub(crate) fn spec(self) -> Option<DnsSpec> {
        let spec = DnsSpec { servers: self.dns, search: self.dns_search, options: self.dns_option };
        (spec != DnsSpec::default()).then_some(spec)
    }
}

/// What of it changes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DnsChangeArgs {
    /// Ask a further resolver, after those before
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<String>,
    /// Don't ask a resolver any more
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<String>,
    /// Try a further domain behind a name
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Don't try a domain any more
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Set an option of the resolver
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Take an option of the resolver away
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
}

impl DnsChangeArgs {
    /// The flags' names, as groups know them.
    pub(crate) const NAMES: [&str; 6] =
        ["dns_add", "dns_rm", "dns_search_add", "dns_search_rm", "dns_option_add", "dns_option_rm"];

    /// Removals first. Of an option of a name with a value (`ndots:2`) the last one counts.
    pub(crate) fn apply(&self, spec: &mut Option<DnsSpec>) {
        let mut dns = spec.take().unwrap_or_default();
        let change = |list: &mut Vec<String>, add: &[String], remove: &[String]| {
            list.retain(|text| !remove.contains(text) && !add.contains(text));
            list.extend(add.iter().cloned());
        };
        let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
        let replaced: Vec<String> = self.dns_option_add.iter().map(|option| name(option)).collect();
        dns.options.retain(|option| !replaced.contains(&name(option)));
        change(&mut dns.servers, &self.dns_add, &self.dns_rm);
        change(&mut dns.search, &self.dns_search_add, &self.dns_search_rm);
        change(&mut dns.options, &self.dns_option_add, &self.dns_option_rm);
        *spec = (dns != DnsSpec::default()).then_some(dns);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Given {
        #[command(flatten)]
        args: DnsArgs,
    }

    #[derive(Parser)]
    struct Changed {
        #[command(flatten)]
        args: DnsChangeArgs,
    }

    fn words(line: &str) -> Vec<String> {
        crate::parse::words(&format!("x {line}")).unwrap()
    }

    #[test]
    fn what_is_given_is_changed_one_by_one() {
        assert_eq!(Given::parse_from(words("")).args.spec(), None);
        let line = "--dns 10.0.0.53 --dns-search corp.example --dns-opt ndots:2 --dns-option rotate";
        let mut spec = Given::parse_from(words(line)).args.spec();
        let change =
            |line: &str, spec: &mut Option<DnsSpec>| Changed::parse_from(words(line)).args.apply(spec);
        change("--dns-add 10.0.0.54 --dns-option-add ndots:3 --dns-search-rm corp.example", &mut spec);
        let changed = spec.clone().unwrap();
        assert_eq!(changed.servers, ["10.0.0.53", "10.0.0.54"]);
        assert_eq!((changed.search.len(), changed.options), (0, vec!["rotate".into(), "ndots:3".into()]));
        change(
            "--dns-rm 10.0.0.53 --dns-rm 10.0.0.54 --dns-option-rm rotate --dns-option-rm ndots:3",
            &mut spec,
        );
        assert_eq!(spec, None);
    }
}
