//! Which address stands at which place of a service's map.
//!
//! A rule that balances counts through places, and the service's map has the address for each. So a change costs what it
//! changes: who stays keeps its place, but for the last ones, who fill the places of those that went. How far rules
//! count ([`Round::size`]) stays as it was where that can be, because a rule that changes has the kernel look through all
//! rules of the table: some places may be free then. What is decided here depends on what was decided before; after
//! a start the kernel's table says that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter;
use std::net::IpAddr;

use crate::random;

/// Fewer places than this are never too many, nor are up to so many for each that is to have one.
const FEW: usize = 16;
const MOST_EACH: usize = 8;

/// A map of places, and how far the rules that use it count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Who stands at 0, 1, …: without a gap, and more than half of the size where anybody does.
    pub(crate) places: Vec<IpAddr>,
    /// Rules count below this; 0: there are none.
    pub(crate) size: u32,
}

/// A round in which every address has as many places. The kernel begins to count anew with every other size, on every
/// node: who comes first then is drawn, so that nobody gets more than its share.
pub(super) fn in_turn(before: &Round, wanted: &BTreeSet<IpAddr>, node: &str) -> Round {
    let size = size(before, wanted.len());
    let each = size.checked_div(wanted.len()).unwrap_or_default();
    let mut missing: BTreeMap<IpAddr, usize> = wanted.iter().map(|address| (*address, each)).collect();
    let mut keep = |address: &IpAddr| {
        let missing = missing.get_mut(address).filter(|missing| **missing > 0)?;
        *missing -= 1;
        Some(*address)
    };
    let mut kept: VecDeque<Option<IpAddr>> = before.places.iter().map(&mut keep).collect();
    let is_first = kept.iter().all(Option::is_none);
    let lacks = |turn| missing.iter().filter(move |(_, missing)| **missing > turn);
    let mut coming = (0..each).flat_map(lacks).map(|(address, _)| *address);
    let mut places = Vec::with_capacity(size);
    while let Some(place) = kept.pop_front() {
        // A place that is free goes to one that comes, else to the last one.
        let next = place.or_else(|| coming.next());
        places.extend(next.or_else(|| iter::from_fn(|| kept.pop_back()).flatten().next()));
    }
    places.extend(coming);
    if size != before.size as usize && !places.is_empty() {
        let first = wanted.iter().fold(random::hash(node), |hash, one| random::mixed(hash ^ bits(*one)));
        let first = first as usize % places.len();
        if is_first { places.rotate_left(first) } else { places.swap(0, first) }
    }
    Round { places, size: u32::try_from(size).unwrap_or(u32::MAX) }
}

/// The same with turns that were laid out: as often as there is room for all of them.
pub(super) fn laid_out(before: &Round, turns: &[IpAddr]) -> Round {
    let size = size(before, turns.len());
    let times = size.checked_div(turns.len()).unwrap_or_default();
    Round { places: turns.repeat(times), size: u32::try_from(size).unwrap_or(u32::MAX) }
}

/// How far to count for so many. With more of them comes some room for others.
fn size(before: &Round, count: usize) -> usize {
    let known = before.size as usize;
    match count {
        0 => known,
        _ if count <= known && (known <= FEW || known <= MOST_EACH * count) => known,
        _ if count < known || before.places.is_empty() => count,
        _ => count + count / 4,
    }
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

    fn differences(one: &Round, other: &Round) -> usize {
        let same = one.places.iter().zip(&other.places).filter(|(one, other)| one == other).count();
        one.places.len().max(other.places.len()) - same
    }

    /// All that is wanted stands there equally often, and more than half of the places have somebody.
    fn check(round: &Round, wanted: &BTreeSet<IpAddr>) {
        let mut held = BTreeMap::<IpAddr, usize>::new();
        round.places.iter().for_each(|address| *held.entry(*address).or_default() += 1);
        assert_eq!(held.keys().copied().collect::<BTreeSet<_>>(), *wanted);
        assert_eq!(held.values().collect::<BTreeSet<_>>().len(), usize::from(!wanted.is_empty()), "{held:?}");
        assert!(round.places.len() <= round.size as usize);
        assert!(wanted.is_empty() || round.places.len() > round.size as usize / 2, "{round:?}");
    }

    #[test]
    fn a_change_moves_a_handful_and_every_address_stands_once() {
        let all = addresses(0..1000);
        let mut round = in_turn(&Round::default(), &all, "n1");
        let elsewhere = in_turn(&Round::default(), &all, "n2");
        assert_ne!(round.places[0], elsewhere.places[0], "another node begins with another one");
        assert_eq!(in_turn(&round, &all, "n1"), round);
        for gone in [0, 999, 500, 3] {
            let fewer = addresses((0..1000).filter(|number| *number != gone));
            let next = in_turn(&round, &fewer, "n1");
            check(&next, &fewer);
            assert_eq!((next.places.len(), next.size), (999, 1000), "the rules count on as they did");
            assert!(differences(&round, &next) <= 2, "{}", differences(&round, &next));
            round = in_turn(&next, &all, "n1");
            check(&round, &all);
            assert!(differences(&round, &next) <= 1);
        }
        for few in [addresses([7]), addresses([]), addresses(2000..2010)] {
            check(&in_turn(&round, &few, "n1"), &few);
        }
    }

    #[test]
    fn rules_count_on_as_they_did_unless_there_are_more_or_far_fewer() {
        let mut round = Round::default();
        let mut sizes = Vec::new();
        for count in [0, 10, 9, 5, 1, 0, 10, 11, 12, 13, 14, 1, 100, 13, 12] {
            let wanted = addresses(0..count);
            round = in_turn(&round, &wanted, "n1");
            check(&round, &wanted);
            sizes.push(round.size);
        }
        assert_eq!(sizes, [0, 10, 10, 10, 10, 10, 10, 13, 13, 13, 17, 1, 125, 13, 13]);
    }

    #[test]
    fn turns_stand_as_often_as_there_is_room() {
        let turns: Vec<IpAddr> = [1, 2, 1].map(|last| Ipv4Addr::from(0x0ad5_0000 + last).into()).to_vec();
        let round = laid_out(&Round::default(), &turns);
        assert_eq!((round.places.as_slice(), round.size), (&turns[..], 3));
        let round = laid_out(&Round { size: 7, ..round }, &turns);
        assert_eq!((round.places, round.size), (turns.repeat(2), 7));
        assert_eq!(laid_out(&Round { places: vec![], size: 7 }, &[]).size, 7);
    }
}
