//! What has to be done so that what is there becomes what is wanted, and how often the same may be tried. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::object::Object;

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In an order in which it can be set.
    pub(crate) put: Vec<Object>,
    pub(crate) remove: Vec<Object>,
}

/// The difference. What is there and nobody wants goes where it is known to be ours.
pub(crate) fn plan(wanted: &BTreeSet<Object>, seen: &BTreeSet<Object>) -> Plan {
    let put: Vec<Object> = wanted.difference(seen).cloned().collect();
    let goes = |object: &&Object| object.remove().is_some() && !put.iter().any(|new| new.replaces(object));
    let remove = seen.difference(wanted).filter(goes).cloned().collect();
    Plan { put, remove }
}

/// So long after a change, others that belong to it have been made as well.
const SETTLE: Duration = Duration::from_millis(100);
/// Looks are so far apart at least.
const APART: Duration = Duration::from_millis(500);
/// Without any news there is a look so often: not all settings tell of their changes.
const ALWAYS: Duration = Duration::from_secs(60);

/// When to look at everything.
#[derive(Debug)]
pub(crate) struct Rounds {
    last: Instant,
    next: Instant,
}

impl Rounds {
    pub(crate) fn new(now: Instant) -> Rounds {
        Rounds { last: now, next: now + ALWAYS }
    }

    /// Something was changed.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.next = self.next.min((now + SETTLE).max(self.last + APART));
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Everything was looked at; `again` is when something that waits may be put back.
    pub(crate) fn done(&mut self, now: Instant, again: Option<Instant>) {
        let always = now + ALWAYS;
        self.last = now;
        self.next = again.map_or(always, |again| again.max(now + APART).min(always));
    }
}

/// So often something is put back at once. After that somebody does not want it there.
const AT_ONCE: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// Something that stayed for so long has its patience back.
const CALM: Duration = Duration::from_secs(120);

/// How often something was put back lately, by its name: what is taken away again and again is put back ever more
/// rarely, and nothing else waits for it.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    tries: BTreeMap<String, (u32, Instant)>,
}

impl Patience {
    /// Whether it may be put back now; else when.
    pub(crate) fn check(&self, what: &str, now: Instant) -> Result<(), Instant> {
        match self.tries.get(what) {
            Some((times, last)) if now < *last + pause(*times) => Err(*last + pause(*times)),
            _ => Ok(()),
        }
    }

    /// What was put back so often lately that somebody does not want it, and how often.
    pub(crate) fn disputed(&self, now: Instant) -> Vec<(String, u32)> {
        let lately = self.tries.iter().filter(|(_, (times, last))| *times >= AT_ONCE && now < *last + CALM);
        lately.map(|(what, (times, _))| (what.clone(), *times)).collect()
    }

    /// Notes that it was put back, and says how long it will wait if it goes away once more.
    pub(crate) fn note(&mut self, what: &str, now: Instant) -> Duration {
        self.tries.retain(|_, (_, last)| now < *last + CALM);
        let (times, last) = self.tries.entry(what.to_owned()).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
        pause(*times)
    }
}

fn pause(times: u32) -> Duration {
    match times.checked_sub(AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => (PAUSE * 2_u32.saturating_pow(more.min(6))).min(PAUSE_MOST),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::netlink::route::{Route, Rule, RuleAction};

    fn route(to: &str, interface: u32) -> Object {
        Object::Route(Route { to: to.parse().unwrap(), table: 254, interface, via: None, source: None })
    }

    fn rule(priority: u32) -> Object {
        Object::Rule(Rule {
            priority,
            v6: false,
            from: None,
            sent_to: None,
            mark: 0,
            mask: 0,
            action: RuleAction::Nothing,
        })
    }

    fn neighbour(mac: u8) -> Object {
        Object::Neighbour { interface: 7, address: Ipv4Addr::new(10, 0, 0, 1).into(), mac: [mac; 6] }
    }

    fn set(objects: &[Object]) -> BTreeSet<Object> {
        objects.iter().cloned().collect()
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let all = set(&[route("10.0.0.0/26", 3), rule(11_000), neighbour(1)]);
        assert_eq!(plan(&all, &all), Plan::default());
    }

    #[test]
    fn what_is_missing_comes_and_what_is_too_much_goes() {
        let plan = plan(&set(&[route("10.0.0.0/26", 3)]), &set(&[rule(11_000), route("10.0.1.0/26", 3)]));
        assert_eq!(plan.put, [route("10.0.0.0/26", 3)]);
        assert_eq!(plan.remove, [route("10.0.1.0/26", 3), rule(11_000)]);
    }

    #[test]
    fn what_is_replaced_is_not_removed_as_well() {
        let plan = plan(
            &set(&[route("10.0.0.0/26", 3), neighbour(1)]),
            &set(&[route("10.0.0.0/26", 4), neighbour(2)]),
        );
        assert_eq!(plan.put, [neighbour(1), route("10.0.0.0/26", 3)]);
        assert_eq!(plan.remove, []);
    }

    #[test]
    fn a_burst_of_changes_is_one_look_and_looks_are_apart() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rounds = Rounds::new(start);
        rounds.changed(at(1000));
        rounds.changed(at(1050));
        assert!(!rounds.is_due(at(1099)) && rounds.is_due(at(1100)));
        rounds.done(at(1100), None);
        rounds.changed(at(1101));
        assert_eq!(rounds.next(), at(1600));
        rounds.done(at(1600), Some(at(1601)));
        assert_eq!(rounds.next(), at(2100));
        rounds.done(at(2100), None);
        assert_eq!(rounds.next(), at(2100) + ALWAYS);
    }

    #[test]
    fn what_goes_away_again_and_again_waits_and_nothing_else_does() {
        let mut patience = Patience::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            while let Err(later) = patience.check("route", now) {
                assert!(later > now);
                now = later;
            }
            pauses.push(patience.note("route", now).as_secs());
        }
        assert_eq!(pauses, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(patience.check("rule", now), Ok(()));
        now += CALM;
        assert_eq!(patience.note("rule", now), Duration::ZERO);
        assert_eq!(patience.note("route", now), Duration::ZERO);
    }
}
