//! Runs `nft`: one script, one transaction. And asks it what a table holds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use crate::error::Error;
use crate::ruleset::Round;

/// A transaction takes milliseconds, also a large one less than a second.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More of what `nft` has to say is not kept.
const REASON_BYTES: usize = 4096;

/// Runs a script. Either all of it takes effect or nothing.
pub(crate) fn run(script: &str) -> Result<(), Error> {
    run_known(script, |_| {})
}

/// The same; `started` gets to know the process before it does anything.
pub(crate) fn run_known(script: &str, started: impl FnOnce(u32)) -> Result<(), Error> {
    talk(&["-f", "-"], script, started).map(|_| ())
}

/// Whether the table is there.
pub(crate) fn has_table(table: &str) -> Result<bool, Error> {
    match talk(&["list", "chain", "inet", table, "balance"], "", |_| {}) {
        Ok(_) => Ok(true),
        Err(Error::Nft { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Whether the table is what the script would make of it: that is asked of the kernel, in a namespace of its own.
pub(crate) fn is_made_by(script: &str, table: &str) -> Result<bool, Error> {
    let Some(here) = list(table)? else { return Ok(false) };
    let (script, name) = (script.to_owned(), table.to_owned());
    let elsewhere = move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::Namespace {
            operation: "make one to compare tables".to_owned(),
            source: e.into(),
        })?;
        run(&script)?;
        list(&name)
    };
    let thread = std::thread::Builder::new().name("rorqual-compare".to_owned()).spawn(elsewhere);
    let thread = thread.map_err(|source| Error::Namespace {
        operation: "start a thread to compare tables".to_owned(),
        source,
    })?;
    let there = thread.join().unwrap_or(Err(Error::Stopped))?.unwrap_or_default();
    Ok(parts(&here) == parts(&there))
}

/// How the names of maps of places begin.
const PLACES: [&str; 4] = ["to_", "to6_", "here_", "here6_"];

/// What stands in the table's maps of places, in the order of the places, and how far rules count through them.
pub(crate) fn places(table: &str) -> Result<BTreeMap<String, Round>, Error> {
    let listing = list(table)?.unwrap_or_default();
    let parts = parts(&listing);
    let mut rounds: BTreeMap<String, Round> = BTreeMap::new();
    for (name, places) in parts.iter().filter_map(|part| places_of(part)) {
        rounds.entry(name).or_default().places = places;
    }
    for (name, size) in parts.iter().filter(|part| part.starts_with("chain ")).flat_map(|part| sizes_of(part))
    {
        let round = rounds.entry(name).or_default();
        round.size = round.size.max(size);
    }
    // A map that no rule asks is made anew.
    rounds.retain(|_, round| round.size > 0);
    Ok(rounds)
}

/// `numgen inc mod 12 map @to_web:80`, `jhash ip saddr mod 512 seed 0x1 map @to_web`
fn sizes_of(chain: &str) -> Vec<(String, u32)> {
    let mut sizes = Vec::new();
    let mut size = None;
    let mut words = chain.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "mod" => size = words.next().and_then(|number| number.parse().ok()),
            "map" => {
                // A port may follow without a space.
                let name = words.next().and_then(|name| name.strip_prefix('@')?.split(':').next());
                sizes.extend(name.map(str::to_owned).zip(size.take()));
            }
            _ => {}
        }
    }
    sizes
}

fn places_of(part: &str) -> Option<(String, Vec<IpAddr>)> {
    let (head, elements) = part.strip_prefix("map ")?.split_once("elements = {")?;
    let name = head.split(' ').next().filter(|name| PLACES.iter().any(|word| name.starts_with(word)))?;
    let element = |text: &str| {
        let (place, address) = text.trim().split_once(" : ")?;
        Some((place.parse::<u32>().ok()?, address.parse::<IpAddr>().ok()?))
    };
    let places: BTreeMap<u32, IpAddr> =
        elements.trim_end_matches([' ', '}']).split(',').filter_map(element).collect();
    Some((name.to_owned(), places.into_values().collect()))
}

/// Everything that nftables holds, as JSON.
pub(crate) fn list_all() -> Result<String, Error> {
    talk(&["-j", "-n", "list", "ruleset"], "", |_| {})
}

/// The table in the words of `nft`; `None`: there is none.
fn list(table: &str) -> Result<Option<String>, Error> {
    match talk(&["-s", "-n", "list", "table", "inet", table], "", |_| {}) {
        Ok(listing) => Ok(Some(listing)),
        Err(Error::Nft { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The chains, sets and maps of a listing, whose order means nothing, as that of their elements. What packets add to
/// a set is not compared.
fn parts(listing: &str) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    let mut lines = Vec::new();
    for line in listing.lines() {
        match line.strip_prefix('\t') {
            Some("}") => {
                parts.insert(part(&lines.join(" ")));
                lines.clear();
            }
            Some(line) => lines.push(line.trim()),
            None => {}
        }
    }
    parts
}

fn part(text: &str) -> String {
    let Some((head, elements)) = text.split_once("elements = {") else { return text.to_owned() };
    if head.contains("dynamic") || head.contains("timeout") {
        return head.trim().to_owned();
    }
    let mut elements: Vec<&str> = elements.trim_end_matches([' ', '}']).split(',').map(str::trim).collect();
    elements.sort_unstable();
    format!("{head}elements = {{ {} }}", elements.join(", "))
}

/// Runs `nft`, with something to read, and returns what it says.
fn talk(arguments: &[&str], script: &str, started: impl FnOnce(u32)) -> Result<String, Error> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::NftMissing { source })?;
    started(child.id());
    // If it ends early it says why on stderr, so a broken pipe is not the message to show.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let (mut said, mut reason) = (Vec::new(), Vec::new());
    let heard = match (child.stdout.take(), child.stderr.take()) {
        (Some(mut stdout), Some(mut stderr)) => read_both(&mut stdout, &mut said, &mut stderr, &mut reason),
        _ => Ok(()),
    };
    if let Err(error) = heard {
        let killed = child.kill();
        tracing::error!(%error, ?killed, "nft does not end");
    }
    let status = child.wait().map_err(|source| Error::NftMissing { source })?;
    if status.success() && written.is_ok() {
        return Ok(String::from_utf8_lossy(&said).into_owned());
    }
    let text = String::from_utf8_lossy(&reason);
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(4).collect();
    let ended = status.to_string();
    if lines.is_empty() {
        lines.push(&ended);
    }
    Err(Error::Nft { reason: lines.join(" | ") })
}

/// Reads both until their ends; of the second only the beginning is kept.
fn read_both(
    stdout: &mut (impl Read + AsFd),
    said: &mut Vec<u8>,
    stderr: &mut (impl Read + AsFd),
    reason: &mut Vec<u8>,
) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut buffer = [0; 16 * 1024];
    let mut open = [true, true];
    while open != [false, false] {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let events = |open: bool| if open { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut pipes =
            [PollFd::new(stdout.as_fd(), events(open[0])), PollFd::new(stderr.as_fd(), events(open[1]))];
        match poll(&mut pipes, timeout) {
            // A signal of somebody else's, as when a child of the daemon ends.
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        let ready = pipes.map(|pipe| pipe.any() == Some(true));
        if open[0] && ready[0] {
            let length = stdout.read(&mut buffer)?;
            open[0] = length > 0;
            said.extend_from_slice(&buffer[..length]);
        }
        if open[1] && ready[1] {
            let length = stderr.read(&mut buffer)?;
            open[1] = length > 0;
            if reason.len() < REASON_BYTES {
                reason.extend_from_slice(&buffer[..length]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "table inet t {\n\tmap vips {\n\t\ttype ipv4_addr : verdict\n\t\telements = { 10.0.0.1 : goto a,\n\t\t\t     10.0.0.2 : goto b }\n\t}\n\n\tchain a {\n\t\taccept\n\t\tdrop\n\t}\n}\n";

    #[test]
    fn the_order_of_chains_and_elements_means_nothing_and_that_of_rules_does() {
        let other = "table inet t {\n\tchain a {\n\t\taccept\n\t\tdrop\n\t}\n\n\tmap vips {\n\t\ttype ipv4_addr : verdict\n\t\telements = { 10.0.0.2 : goto b, 10.0.0.1 : goto a }\n\t}\n}\n";
        assert_eq!(parts(ONE), parts(other));
        assert_ne!(parts(ONE), parts(&other.replace("accept\n\t\tdrop", "drop\n\t\taccept")));
        assert_ne!(parts(ONE), parts(&other.replace("goto b,", "goto a,")));
        assert_ne!(parts(ONE), parts(&other.replace("10.0.0.2 : goto b, ", "")));
    }

    #[test]
    fn maps_of_places_are_read() {
        let table = ONE.replace(
            "chain a",
            "map to_a {\n\t\ttypeof numgen inc mod 2 : ip daddr\n\t\telements = { 10 : 10.0.0.3, 0 : 10.0.0.9,\n\t\t\t     2 : 10.0.0.1 }\n\t}\n\n\tchain a",
        );
        let found: Vec<_> = parts(&table).iter().filter_map(|part| places_of(part)).collect();
        let expected = [[10, 0, 0, 9], [10, 0, 0, 1], [10, 0, 0, 3]].map(IpAddr::from).to_vec();
        assert_eq!(found, [("to_a".to_owned(), expected)]);
        let chain = "chain vip_a { dnat ip to numgen inc mod 12 map @to_a dnat ip to jhash ip saddr mod 512 seed 0x52717271 map @to_b:80 }";
        assert_eq!(sizes_of(chain), [("to_a".to_owned(), 12), ("to_b".to_owned(), 512)]);
    }

    #[test]
    fn what_packets_add_is_not_compared() {
        let set = |elements: &str| {
            parts(&format!("table inet t {{\n\tset s {{\n\t\tflags dynamic,timeout\n{elements}\t}}\n}}\n"))
        };
        assert_eq!(set(""), set("\t\telements = { 10.0.0.1 }\n"));
    }
}
