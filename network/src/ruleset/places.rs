//! Which address stands at which place of a service's map.
//!
//! A rule that balances names a place, and the service's map has the address for it. So a change costs what it changes:
//! who stays keeps its place, but for the last ones, who fill the places of those that went. What is decided here
//! depends on what was decided before; after a start the kernel's maps say that.

use std::collections::{BTreeSet, VecDeque};
use std::iter;
use std::net::IpAddr;

use crate::random;

/// Places in which every address stands once, without a gap. The kernel begins to count anew with every other number of
/// places, on every node: who comes first is drawn, so that nobody gets more than its share.
pub(super) fn in_turn(before: &[IpAddr], wanted: &BTreeSet<IpAddr>, node: &str) -> Vec<IpAddr> {
    let mut coming = wanted.clone();
    let kept: Vec<Option<IpAddr>> =
        before.iter().map(|address| coming.remove(address).then_some(*address)).collect();
    if coming.is_empty() && kept.len() == wanted.len() {
        return before.to_vec();
    }
    let is_first = kept.iter().all(Option::is_none);
    let mut coming = coming.into_iter();
    let mut places = Vec::with_capacity(wanted.len());
    let mut kept = VecDeque::from(kept);
    while let Some(place) = kept.pop_front() {
        // A place that is free goes to one that comes, else to the last one.
        let next = place.or_else(|| coming.next());
        places.extend(next.or_else(|| iter::from_fn(|| kept.pop_back()).flatten().next()));
    }
    places.extend(coming);
    let draw =
        wanted.iter().fold(random::hash(node), |hash, address| random::mixed(hash ^ bits(*address))) as usize;
    match places.len() {
        0 => {}
        count if is_first => places.rotate_left(draw % count),
        count => places.swap(0, draw % count),
    }
    places
}

fn bits(address: IpAddr) -> u64 {
    u64::from(match address {
        IpAddr::V4(address) => address.to_bits(),
        // The part in which the addresses of a service differ.
        IpAddr::V6(address) => address.to_bits() as u32,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn addresses(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<IpAddr> {
        numbers.into_iter().map(|number| Ipv4Addr::from(0x0ad5_0000 + number).into()).collect()
    }

    fn differences(one: &[IpAddr], other: &[IpAddr]) -> usize {
        let same = one.iter().zip(other).filter(|(one, other)| one == other).count();
        one.len().max(other.len()) - same
    }

    #[test]
    fn a_change_moves_a_handful_and_every_address_stands_once() {
        let all = addresses(0..1000);
        let mut places = in_turn(&[], &all, "n1");
        assert_ne!(places[0], in_turn(&[], &all, "n2")[0], "another node begins with another one");
        assert_eq!(in_turn(&places, &all, "n1"), places);
        for gone in [0, 999, 500, 3] {
            let fewer = addresses((0..1000).filter(|number| *number != gone));
            let next = in_turn(&places, &fewer, "n1");
            assert_eq!(next.iter().copied().collect::<BTreeSet<_>>(), fewer);
            assert_eq!(next.len(), fewer.len());
            assert!(differences(&places, &next) <= 4, "{}", differences(&places, &next));
            places = in_turn(&next, &all, "n1");
            assert_eq!(places.len(), 1000);
            assert!(differences(&places, &next) <= 4);
        }
        assert_eq!(in_turn(&places, &addresses([7]), "n1"), addresses([7]).into_iter().collect::<Vec<_>>());
        assert!(in_turn(&places, &addresses([]), "n1").is_empty());
        let others = addresses(2000..2010);
        let replaced = in_turn(&places, &others, "n1");
        assert_eq!((replaced.len(), replaced.iter().copied().collect()), (10, others));
    }
}
