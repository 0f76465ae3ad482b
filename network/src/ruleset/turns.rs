//! Whose turn it is: which endpoint gets which of the numbers that the kernel counts or draws.
//!
//! Pure. The kernel knows no weights: an endpoint with twice the weight of another has twice as many numbers
//! (`adr/0070`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::random;

/// An address, and how many new connections it gets beside the others; at least 1.
pub(super) type Weighed = (Ipv4Addr, u32);

/// The fewest and the most places over which clients are spread where each has its own endpoint.
const FEWEST_PLACES: usize = 512;
const MOST_PLACES: usize = 8192;

/// So many places for each endpoint, or up to twice that.
const PLACES_EACH: usize = 8;

/// More turns than this a round has only where there are more endpoints.
const MOST_TURNS: u64 = 512;

/// Who comes first. The kernel begins to count anew with every change, on every node: if it always began with the
/// lowest address, that one would get more than its share. The same endpoints give the same order.
pub(super) fn shift(addresses: &mut [Weighed], node: &str) {
    if addresses.is_empty() {
        return;
    }
    let by = random::hash(&format!("{node} {addresses:?}")) % addresses.len() as u64;
    addresses.rotate_left(by as usize);
}

/// A round of turns in which each address has as many as its weight says, as far apart as can be. Each has one at least.
pub(super) fn turns(addresses: &[Weighed]) -> Vec<Ipv4Addr> {
    let weights = || addresses.iter().map(|(_, weight)| u64::from(*weight));
    let divisor = weights().fold(0, greatest_common_divisor).max(1);
    let total: u64 = weights().map(|weight| weight / divisor).sum();
    let most = MOST_TURNS.max(addresses.len() as u64);
    let count = |weight: u32| match u64::from(weight) / divisor {
        exact if total <= most => exact,
        exact => ((exact * most + total / 2) / total).max(1),
    };
    let mut at: Vec<(u64, usize)> = Vec::new();
    for (place, (_, weight)) in addresses.iter().enumerate() {
        let count = count(*weight);
        // The middles of equal parts of the round.
        at.extend((0..count).map(|turn| (((2 * turn + 1) << 32) / (2 * count), place)));
    }
    at.sort_unstable();
    at.into_iter().filter_map(|(_, place)| addresses.get(place)).map(|(address, _)| *address).collect()
}

fn greatest_common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { greatest_common_divisor(other, one % other) }
}

/// Who has each place: the address that draws the highest number for it. So one that goes leaves its own places to the
/// others, one that comes takes its share from all, and everything else stays as it was, unless the number of places
/// doubles. Up to [`MOST_PLACES`] endpoints each has one at least. The larger the weight, the
/// higher the numbers: by -w/ln(u) the shares are as the weights (Schindelhauer and Schomaker, "Weighted Distributed Hash
/// Tables", 2005).
pub(super) fn places(addresses: &[Weighed]) -> Vec<Ipv4Addr> {
    let draw =
        |place: u32, address: Ipv4Addr| random::mixed(u64::from(place) << 32 | u64::from(address.to_bits()));
    let even =
        addresses.iter().all(|(_, weight)| addresses.first().is_some_and(|(_, first)| first == weight));
    let rank = |place: u32, (address, weight): Weighed| {
        let drawn = draw(place, address);
        if even {
            return drawn;
        }
        let part = (drawn as f64 + 1.0) / (u64::MAX as f64 + 2.0);
        // What is positive is ordered as its bits are.
        (-f64::from(weight) / part.ln()).to_bits()
    };
    let best = |place: u32| addresses.iter().copied().max_by_key(|one| (rank(place, *one), one.0));
    let count = (PLACES_EACH * addresses.len()).next_power_of_two().clamp(FEWEST_PLACES, MOST_PLACES);
    let mut places: Vec<Ipv4Addr> = (0..count as u32).filter_map(best).map(|(address, _)| address).collect();
    let mut held = BTreeMap::<Ipv4Addr, usize>::new();
    places.iter().for_each(|address| *held.entry(*address).or_default() += 1);
    // Who has drawn none gets the place for which its number is the highest, of those whose holder has others.
    for one in addresses.iter().filter(|(address, _)| !held.contains_key(address)).collect::<Vec<_>>() {
        let spare =
            places.iter().zip(0..).filter(|(holder, _)| held.get(*holder).is_some_and(|count| *count > 1));
        let Some((_, at)) = spare.max_by_key(|(_, at)| rank(*at, *one)) else { break };
        let before = std::mem::replace(&mut places[at as usize], one.0);
        held.entry(before).and_modify(|count| *count -= 1);
        held.insert(one.0, 1);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, 0, last)
    }

    fn weighed(weights: &[u32]) -> Vec<Weighed> {
        weights.iter().zip(1..).map(|(weight, last)| (address(last), *weight)).collect()
    }

    fn counted(turns: &[Ipv4Addr]) -> Vec<usize> {
        let mut counts = BTreeMap::<Ipv4Addr, usize>::new();
        turns.iter().for_each(|address| *counts.entry(*address).or_default() += 1);
        counts.into_values().collect()
    }

    #[test]
    fn equal_weights_give_one_turn_each_in_their_order() {
        for weight in [1, 100] {
            assert_eq!(turns(&weighed(&[weight; 3])), [address(1), address(2), address(3)]);
        }
        assert!(turns(&[]).is_empty());
    }

    #[test]
    fn turns_are_as_the_weights_and_apart_from_each_other() {
        assert_eq!(turns(&weighed(&[200, 100])), [address(1), address(2), address(1)]);
        assert_eq!(counted(&turns(&weighed(&[100, 25, 300]))), [4, 1, 12]);
        let round = turns(&weighed(&[400, 100, 100]));
        let doubled = round.windows(3).any(|three| three.iter().all(|one| *one == address(2)));
        assert!(!doubled && round.len() == 6, "{round:?}");
    }

    #[test]
    fn a_round_is_no_longer_than_it_has_to_be_and_leaves_nobody_out() {
        let round = turns(&weighed(&[1000, 999, 1]));
        let counts = counted(&round);
        assert!((510..=514).contains(&round.len()), "{}", round.len());
        assert_eq!((counts[0], counts[2]), (256, 1));
        let many: Vec<Weighed> = (0..600_u32).map(|i| (Ipv4Addr::from_bits(i), 1 + i % 2)).collect();
        assert_eq!(counted(&turns(&many)).len(), 600);
    }

    #[test]
    fn places_are_as_the_weights_and_stay_where_they_were() {
        let counts = counted(&places(&weighed(&[300, 100, 100])));
        assert!((256..=358).contains(&counts[0]), "three fifths of 512: {counts:?}");
        let (before, after) = (places(&weighed(&[300, 100, 100])), places(&weighed(&[300, 100])));
        for (had, has) in before.iter().zip(&after) {
            assert!(*had == address(3) || had == has, "only what the third had moves");
        }
        for count in [33, 600, 1000] {
            let many: Vec<Weighed> =
                (0..count).map(|i| (Ipv4Addr::from_bits(0x0ad5_0000 + i), 100)).collect();
            assert_eq!(counted(&places(&many)).len(), count as usize, "each has a place");
        }
        let light: Vec<Weighed> =
            (0..200).map(|i| (Ipv4Addr::from_bits(i), if i < 100 { 1 } else { 1000 })).collect();
        assert_eq!(counted(&places(&light)).len(), 200);
        // The same whatever all weigh.
        assert_eq!(places(&weighed(&[100; 4])), places(&weighed(&[1; 4])));
    }
}
