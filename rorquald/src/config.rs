//! The daemon's settings: defaults, then the file, then the command line; read whole before anything is
//! bound or written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;
use ipnet::Ipv4Net;
use rorqual_agent::{ImageLimits, RegistrySettings};
use serde::{Deserialize, Serialize};

/// The TLS port of every node.
pub(crate) const DEFAULT_PORT: u16 = 4780;

/// The registry's port on every node.
const DEFAULT_REGISTRY_PORT: u16 = 4781;

const DEFAULT_FILE: &str = "/etc/rorqual/rorquald.toml";

/// Rorqual's node daemon: runs containers, and keeps the cluster's state where the node is a controller.
#[derive(Debug, Parser)]
#[command(name = "rorquald", version)]
pub(crate) struct Arguments {
    /// Settings file [default: /etc/rorqual/rorquald.toml where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept that has to survive a restart [default: /var/lib/rorqual]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where sockets and what lives no longer than the machine are kept [default: /run/rorqual]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The local API's socket [default: RUN_DIR/rorquald.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The address at which other nodes reach this one, with or without a port [default: the address of
    /// the default route, port 4780]
    #[arg(long, value_name = "IP[:PORT]")]
    advertise: Option<String>,
    /// The node's name [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The cgroup that all containers of this node live under [default: rorqual]
    #[arg(long, value_name = "NAME")]
    cgroup_parent: Option<String>,
    /// The container runtime [default: rorqual-runtime beside this program]
    #[arg(long, value_name = "PATH")]
    runtime_binary: Option<PathBuf>,
    /// A label of this node, for placement constraints; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// A registry that may be spoken to over plain HTTP; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    insecure_registries: Vec<String>,
    /// Remove images that nobody uses when the disk is so full; 100 for never [default: 85]
    #[arg(long, value_name = "PERCENT")]
    image_gc_high_percent: Option<u8>,
    /// Go on until the disk is so full [default: 80]
    #[arg(long, value_name = "PERCENT")]
    image_gc_low_percent: Option<u8>,
    /// The port of the cluster's registry, on loopback and at the node's address; 0 for none [default: 4781]
    #[arg(long, value_name = "PORT")]
    registry_port: Option<u16>,
    /// Print the settings as they come out, as TOML, and end
    #[arg(long)]
    pub(crate) dump_config: bool,
    /// Take away what the node has on this machine beside its data (its network, control groups, sockets), and end. Refused
    /// while the daemon or containers run
    #[arg(long, conflicts_with = "dump_config")]
    pub(crate) take_down: bool,
}

/// The settings file; every key may be absent, none may be unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    advertise: Option<String>,
    hostname: Option<String>,
    cgroup_parent: Option<String>,
    runtime_binary: Option<PathBuf>,
    #[serde(default)]
    labels: Vec<String>,
    registry_port: Option<u16>,
    #[serde(default)]
    insecure_registries: Vec<String>,
    image_limits: Option<ImageLimits>,
    image_gc_high_percent: Option<u8>,
    image_gc_low_percent: Option<u8>,
}

/// `registries.toml` beside the settings file: one table a registry.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistriesFile {
    #[serde(default)]
    registry: BTreeMap<String, RegistrySettings>,
}

/// The settings as they came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) socket: PathBuf,
    /// Absent: the machine has no default route, and `cluster init` has to be told.
    pub(crate) advertise: Option<SocketAddrV4>,
    pub(crate) hostname: String,
    pub(crate) cgroup_parent: String,
    pub(crate) runtime_binary: PathBuf,
    pub(crate) labels: BTreeMap<String, String>,
    /// 0: none.
    pub(crate) registry_port: u16,
    pub(crate) insecure_registries: Vec<String>,
    /// From `registries.toml`.
    pub(crate) registries: BTreeMap<String, RegistrySettings>,
    pub(crate) image_limits: ImageLimits,
    /// Per cent of the disk at which unused images are removed, and down to which.
    pub(crate) image_gc_high_percent: u8,
    pub(crate) image_gc_low_percent: u8,
    /// Node-local addresses of containers that belong to no service.
    pub(crate) local_pool: Ipv4Net,
}

impl Config {
    /// Where other nodes reach this one now, if the address that they know is no longer the machine's.
    pub(crate) fn moved_to(&self, known: SocketAddrV4) -> Option<SocketAddrV4> {
        if is_own(*known.ip()) {
            return None;
        }
        let given = self.advertise.map(|address| *address.ip()).filter(|ip| is_own(*ip));
        let ip = given.or_else(default_address).filter(|ip| is_own(*ip))?;
        Some(SocketAddrV4::new(ip, known.port()))
    }

    /// Reads and checks everything.
    pub(crate) fn read(arguments: &Arguments) -> anyhow::Result<Self> {
        let file = read_file(arguments.config.as_deref())?;
        let pick = |argument: &Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            argument.clone().or(file).unwrap_or_else(|| PathBuf::from(default))
        };
        let run_dir = pick(&arguments.run_dir, file.run_dir, "/run/rorqual");
        let socket =
            arguments.socket.clone().or(file.socket).unwrap_or_else(|| run_dir.join("rorquald.sock"));
        let hostname = match arguments.hostname.clone().or(file.hostname) {
            Some(name) => name,
            None => machine_name()?,
        };
        check_name("hostname", &hostname)?;
        let cgroup_parent =
            arguments.cgroup_parent.clone().or(file.cgroup_parent).unwrap_or_else(|| "rorqual".to_owned());
        check_name("cgroup_parent", &cgroup_parent)?;
        let runtime_binary = match arguments.runtime_binary.clone().or(file.runtime_binary) {
            Some(path) => path,
            None => beside_this_program("rorqual-runtime")?,
        };
        if !runtime_binary.is_file() {
            bail!(
                "runtime_binary: {} does not exist: install rorqual-runtime or name it with \
                 --runtime-binary",
                runtime_binary.display()
            );
        }
        let labels = if arguments.labels.is_empty() { &file.labels } else { &arguments.labels };
        let labels = labels
            .iter()
            .map(|label| match label.split_once('=') {
                Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                _ => bail!("labels: `{label}` is not KEY=VALUE"),
            })
            .collect::<anyhow::Result<_>>()?;
        let (high, low) = gc_percents(
            arguments.image_gc_high_percent.or(file.image_gc_high_percent),
            arguments.image_gc_low_percent.or(file.image_gc_low_percent),
        )?;
        let mut insecure_registries = file.insecure_registries;
        insecure_registries.extend(arguments.insecure_registries.iter().cloned());
        Ok(Self {
            data_dir: pick(&arguments.data_dir, file.data_dir, "/var/lib/rorqual"),
            run_dir,
            socket,
            advertise: match arguments.advertise.clone().or(file.advertise) {
                Some(text) => Some(parse_address("advertise", &text)?),
                None => default_address().map(|ip| SocketAddrV4::new(ip, DEFAULT_PORT)),
            },
            local_pool: rorqual_agent::DEFAULT_LOCAL_POOL
                .parse()
                .context("the default pool of node-local addresses")?,
            hostname,
            cgroup_parent,
            runtime_binary,
            labels,
            registry_port: arguments.registry_port.or(file.registry_port).unwrap_or(DEFAULT_REGISTRY_PORT),
            insecure_registries,
            registries: read_registries(arguments.config.as_deref())?,
            image_limits: file.image_limits.unwrap_or_default(),
            image_gc_high_percent: high,
            image_gc_low_percent: low,
        })
    }
}

/// Both thresholds; a low one that is not given lies five below the high one.
fn gc_percents(high: Option<u8>, low: Option<u8>) -> anyhow::Result<(u8, u8)> {
    let high = high.unwrap_or(rorqual_agent::GcThresholds::default().high_percent);
    let low = low.unwrap_or(high.saturating_sub(5));
    if high == 0 || high > 100 {
        bail!("image_gc_high_percent: {high} is not 1 to 100");
    }
    if low >= high {
        bail!("image_gc_low_percent: {low} has to be less than image_gc_high_percent, which is {high}");
    }
    Ok((high, low))
}

fn read_file(named: Option<&Path>) -> anyhow::Result<File> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File::default());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
}

/// What is special about registries, from the file beside the settings.
fn read_registries(settings: Option<&Path>) -> anyhow::Result<BTreeMap<String, RegistrySettings>> {
    let path = settings.unwrap_or(Path::new(DEFAULT_FILE)).with_file_name("registries.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    parse_registries(&text).with_context(|| format!("{} is not valid", path.display()))
}

fn parse_registries(text: &str) -> anyhow::Result<BTreeMap<String, RegistrySettings>> {
    let RegistriesFile { registry } = toml::from_str(text)?;
    for (name, settings) in &registry {
        if name.is_empty() || name.contains(['/', '@', ' ']) {
            bail!("registry.\"{name}\": expected HOST or HOST:PORT, as it stands in references");
        }
        if settings.plain_http && (!settings.ca.is_empty() || settings.skip_verify) {
            bail!("registry.\"{name}\": plain_http goes with neither ca nor skip_verify");
        }
        for mirror in &settings.mirrors {
            let host = mirror.split_once("://").map_or(mirror.as_str(), |(_, rest)| rest);
            let is_web = !mirror.contains("://") || mirror.starts_with("http");
            if host.is_empty() || host.contains(['@', ' ', '?', '#']) || !is_web {
                bail!("registry.\"{name}\".mirrors: `{mirror}` is not [http[s]://]HOST[:PORT][/PREFIX]");
            }
        }
        if let Some(file) = settings.ca.iter().find(|file| !file.is_absolute()) {
            bail!("registry.\"{name}\".ca: {} is not an absolute path", file.display());
        }
    }
    Ok(registry)
}

/// Reads `IP` or `IP:PORT`; IPv4 for now, as the fabric is.
pub(crate) fn parse_address(field: &str, text: &str) -> anyhow::Result<SocketAddrV4> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => match text.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, DEFAULT_PORT),
            Err(_) => bail!("{field}: `{text}` is not IP or IP:PORT, such as 192.0.2.10:{DEFAULT_PORT}"),
        },
    };
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        bail!("{field}: `{text}` is no address at which other nodes can reach this one");
    }
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("{field}: `{text}` is an IPv6 address; nodes reach each other over IPv4"),
    }
}

fn check_name(field: &str, name: &str) -> anyhow::Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let plain = !name.starts_with(['.', '-']) && !name.is_empty() && name.len() <= 63;
    if plain && name.bytes().all(allowed) {
        return Ok(());
    }
    bail!("{field}: `{name}` is not 1 to 63 letters, digits, `-`, `_` or `.`")
}

fn machine_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the machine's host name")?;
    Ok(name.to_string_lossy().into_owned())
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(own.with_file_name(name))
}

/// The source address of the default route. Connecting a UDP socket sends nothing.
/// Whether this machine has an address.
pub(crate) fn is_own(address: Ipv4Addr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

fn default_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_port() {
        let default = parse_address("advertise", "10.0.0.1").unwrap();
        assert_eq!(default, "10.0.0.1:4780".parse().unwrap());
        assert_eq!(parse_address("advertise", "10.0.0.1:9").unwrap().port(), 9);
        for bad in ["", "host", "0.0.0.0", "10.0.0.1:0", "::1", "10.0.0.1:x", "224.0.0.1"] {
            let error = parse_address("advertise", bad).unwrap_err().to_string();
            assert!(error.starts_with("advertise: "), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<File>("data_dri = \"/x\"").is_err());
        assert!(toml::from_str::<File>("data_dir = \"/x\"").is_ok());
    }

    #[test]
    fn registries_are_read_and_what_makes_no_sense_is_named() {
        let text = "[registry.\"docker.io\"]\nmirrors = [\"https://mirror.lan:5000/hub\"]\n\
                    [registry.\"r.lan:5000\"]\nca = [\"/etc/rorqual/lan.pem\"]\n";
        let read = parse_registries(text).unwrap();
        assert_eq!(read["docker.io"].mirrors, ["https://mirror.lan:5000/hub"]);
        assert_eq!(read["r.lan:5000"].ca, [PathBuf::from("/etc/rorqual/lan.pem")]);
        for (bad, part) in [
            ("[registry.\"https://x/\"]\n", "HOST:PORT"),
            ("[registry.\"x\"]\nmirror = []\n", "mirror"),
            ("[registry.\"x\"]\nmirrors = [\"ftp://x\"]\n", "mirrors"),
            ("[registry.\"x\"]\nca = [\"x.pem\"]\n", "absolute"),
            ("[registry.\"x\"]\nplain_http = true\nskip_verify = true\n", "plain_http"),
        ] {
            let error = format!("{:#}", parse_registries(bad).unwrap_err());
            assert!(error.contains(part), "{bad}: {error}");
        }
        let limits: File = toml::from_str("[image_limits]\nentries = 5\n").unwrap();
        assert_eq!(limits.image_limits.unwrap().entries, 5);
        assert!(toml::from_str::<File>("[image_limits]\nentry = 5\n").is_err());
    }

    #[test]
    fn the_thresholds_of_the_disk_are_in_order() {
        assert_eq!(gc_percents(None, None).unwrap(), (85, 80));
        assert_eq!(gc_percents(Some(50), None).unwrap(), (50, 45));
        assert_eq!(gc_percents(Some(100), Some(1)).unwrap(), (100, 1));
        for (high, low) in [(Some(0), None), (Some(101), None), (None, Some(85)), (Some(10), Some(20))] {
            assert!(gc_percents(high, low).unwrap_err().to_string().starts_with("image_gc_"));
        }
    }

    #[test]
    fn names_can_be_folders_and_cgroups() {
        assert!(check_name("hostname", "n1.lan").is_ok());
        for bad in ["", "..", "a/b", "-a", "a b"] {
            assert!(check_name("hostname", bad).is_err(), "{bad}");
        }
    }
}
