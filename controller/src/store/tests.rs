//! Members of one process on real disks, connected by a hub that can be cut.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use rorqual_planner::{Action, ActionKind, Change};
use rorqual_proto::model::{Meta, Network, NetworkId, NetworkSpec};
use tempfile::TempDir;

use super::*;
use crate::raft::testing::{Hub, Member, peer};
use crate::raft::{StartError, Tuning};

const DEADLINE: Duration = Duration::from_secs(20);

fn network(number: u64) -> Network {
    Network {
        id: NetworkId::from_bits(u128::from(number)),
        meta: Meta::default(),
        spec: NetworkSpec { name: format!("net-{number}"), ..NetworkSpec::default() },
        blocks: Vec::new(),
    }
}

fn put(number: u64) -> Action {
    Action::new(ActionKind::PutNetwork(Box::new(network(number))))
}

fn numbers(store: &Store) -> BTreeSet<String> {
    store.read(|state| state.networks().map(|network| network.spec.name.clone()).collect())
}

/// Looks until `look` finds something.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Members of which some may be down.
struct Group {
    hub: Hub,
    dirs: Vec<TempDir>,
    members: Vec<Option<Member>>,
    tuning: Tuning,
}

impl Group {
    /// A group of one that has just been founded.
    async fn found(tuning: Tuning) -> Self {
        let (hub, dir) = (Hub::default(), TempDir::new().unwrap());
        let member = hub.start(dir.path(), peer(1), Some(vec![put(1000)]), tuning.clone()).unwrap();
        let group = Self { hub, dirs: vec![dir], members: vec![Some(member)], tuning };
        group.leader().await;
        group
    }

    async fn of(size: u64, tuning: Tuning) -> Self {
        let mut group = Self::found(tuning).await;
        for _ in 1..size {
            group.grow().await;
        }
        group
    }

    fn store(&self, raft_id: u64) -> &Store {
        &self.members[raft_id as usize - 1].as_ref().unwrap().store
    }

    fn alive(&self) -> impl Iterator<Item = &Store> {
        self.members.iter().flatten().map(|member| &member.store)
    }

    fn start(&mut self, raft_id: u64) {
        let place = raft_id as usize - 1;
        let dir = self.dirs[place].path();
        let member = self.hub.start(dir, peer(raft_id), None, self.tuning.clone()).unwrap();
        self.members[place] = Some(member);
    }

    /// Adds the next member and waits for its vote.
    async fn grow(&mut self) {
        let id = self.dirs.len() as u64 + 1;
        self.dirs.push(TempDir::new().unwrap());
        self.members.push(None);
        self.start(id);
        let leader = self.leader().await;
        self.store(leader).add_member(peer(id)).await.unwrap();
        self.voter(id).await;
    }

    async fn voter(&self, raft_id: u64) {
        until("the learner votes", async || {
            let leader = self.leader().await;
            let statuses = self.store(leader).member_statuses();
            statuses.iter().any(|status| status.peer.raft_id == raft_id && status.voter).then_some(())
        })
        .await;
    }

    async fn leader(&self) -> u64 {
        until("somebody leads", async || {
            let leads = |member: &&Member| member.store.leadership().borrow().is_leader;
            self.members.iter().flatten().find(leads).map(|member| member.raft_id)
        })
        .await
    }

    /// Writes wherever there is a leader, until it is certain that it is done.
    async fn write(&self, number: u64) -> u64 {
        until("a write is accepted", async || {
            for store in self.alive() {
                if let Ok(index) = store.propose(vec![put(number)]).await {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    async fn everywhere(&self, number: u64) {
        let name = format!("net-{number}");
        until("everybody has it", async || {
            self.alive().all(|store| numbers(store).contains(&name)).then_some(())
        })
        .await;
    }

    async fn kill(&mut self, raft_id: u64) {
        self.members[raft_id as usize - 1].take().unwrap().kill().await;
    }

    async fn stop(mut self) {
        for member in self.members.drain(..).flatten() {
            member.shutdown().await;
        }
    }
}

fn quick_snapshots() -> Tuning {
    Tuning { snapshot_entries: 50, margin_entries: 10, ..Tuning::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_is_there_whole_at_once_and_after_a_restart() {
    let mut group = Group::found(Tuning::default()).await;
    let store = group.store(1);
    assert_eq!(store.read(|state| state.network_by_name("net-1000").unwrap().meta.version), 1);
    let index = store.propose(vec![put(1), put(2)]).await.unwrap();
    assert!(store.barrier().await.unwrap() >= index);
    assert_eq!(store.read(|state| state.network_by_name("net-2").unwrap().meta.version), index);
    assert_eq!(store.members(), [peer(1)]);

    group.kill(1).await;
    group.start(1);
    group.leader().await;
    assert_eq!(numbers(group.store(1)).len(), 3);
    let error = group.hub.start(group.dirs[0].path(), peer(2), None, Tuning::default()).map(drop);
    assert!(error.is_err(), "the folder is another member's");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_cluster_is_not_founded_over_the_first() {
    let group = Group::found(Tuning::default()).await;
    let dir = group.dirs[0].path().to_owned();
    let hub = group.hub.clone();
    let Group { dirs, mut members, .. } = group;
    members.remove(0).unwrap().shutdown().await;
    let error = hub.start(&dir, peer(1), Some(vec![put(1)]), Tuning::default()).map(drop).unwrap_err();
    assert!(matches!(error, StartError::Occupied { .. }), "{error}");
    assert!(error.to_string().contains("holds a cluster already"), "{error}");
    drop(dirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_refuses_the_whole_batch_and_names_the_action() {
    let group = Group::found(Tuning::default()).await;
    let store = group.store(1);
    let mut watch = store.watch();
    let first = store.propose(vec![put(1)]).await.unwrap();
    let applied = watch.recv().await.unwrap();
    assert_eq!((applied.index, applied.changes.len()), (first, 1));
    assert_eq!(applied.changes[0], Change::Network(network(1).id));

    let stale = Action::expecting(ActionKind::PutNetwork(Box::new(network(1))), first + 100);
    let error = store.propose(vec![put(2), stale]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Conflict { action: 1, .. }), "{error:?}");
    assert!(!numbers(store).contains("net-2"), "nothing of the batch was applied");
    assert!(watch.try_recv().is_none(), "a refused batch is no change");
    let second = store.propose(vec![put(3)]).await.unwrap();
    assert!(second > first + 1, "the refused batch has its place in the log");
    assert_eq!(watch.recv().await.unwrap().index, second);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_refused_with_the_limit() {
    let group = Group::found(Tuning { entry_bytes: 2000, ..Tuning::default() }).await;
    let error = group.store(1).propose((0..200).map(put).collect()).await.unwrap_err();
    assert!(matches!(error, ProposeError::TooLarge { limit_bytes: 2000, .. }), "{error:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_get_an_answer_each_and_share_the_disk() {
    let group = Group::found(quick_snapshots()).await;
    let writers = (0..64_u64).map(|writer| {
        let store = group.store(1).clone();
        tokio::spawn(async move {
            let mut indices = Vec::new();
            for round in 0..10 {
                indices.push(store.propose(vec![put(writer * 10 + round)]).await.unwrap());
            }
            indices
        })
    });
    let mut indices = BTreeSet::new();
    for writer in writers.collect::<Vec<_>>() {
        let own = writer.await.unwrap();
        assert!(own.is_sorted());
        indices.extend(own);
    }
    assert_eq!(indices.len(), 640, "each batch has its own place");
    assert_eq!(numbers(group.store(1)).len(), 640 + 1);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_to_three_and_shrinks_to_one() {
    let mut group = Group::of(3, Tuning::default()).await;
    group.write(1).await;
    group.everywhere(1).await;
    let leader = group.leader().await;
    for follower in (1..=3).filter(|id| *id != leader) {
        let error = group.store(follower).propose(vec![put(2)]).await.unwrap_err();
        assert!(
            matches!(&error, ProposeError::NotLeader { leader: Some(known) } if *known == peer(leader)),
            "{error:?}"
        );
        assert!(group.store(follower).leadership().borrow().is_member);
    }

    let store = group.store(leader).clone();
    let error = store.add_member(RaftPeer { raft_id: 3, ..peer(9) }).await.unwrap_err();
    assert!(error.to_string().contains("was used before"), "{error}");
    store.add_member(peer(2)).await.unwrap();

    for gone in (1..=3).filter(|id| *id != leader) {
        store.remove_member(gone).await.unwrap();
        store.remove_member(gone).await.unwrap();
        group.kill(gone).await;
        store.propose(vec![put(10 + gone)]).await.unwrap();
    }
    assert_eq!(store.members(), [peer(leader)]);
    let error = store.remove_member(leader).await.unwrap_err();
    assert!(error.to_string().contains("only controller"), "{error}");
    let error = store.add_member(peer(2)).await.unwrap_err();
    assert!(error.to_string().contains("was used before"), "{error}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut group = Group::of(3, Tuning::default()).await;
    let old = group.leader().await;
    let error = group.store(old).remove_member(old).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotLeader { .. }), "{error:?}");
    until("another one removes it", async || {
        let leader = group.leader().await;
        group.store(leader).remove_member(old).await.ok()
    })
    .await;
    assert_ne!(group.leader().await, old);
    group.kill(old).await;
    group.write(5).await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_end_the_majority_is_refused() {
    let mut group = Group::of(3, Tuning::default()).await;
    let leader = group.leader().await;
    let (dead, live) = match leader {
        1 => (2, 3),
        2 => (1, 3),
        _ => (1, 2),
    };
    group.kill(dead).await;
    let store = group.store(leader).clone();
    until("the leader notices", async || {
        let statuses = store.member_statuses();
        statuses.iter().any(|status| status.peer.raft_id == dead && !status.reachable).then_some(())
    })
    .await;
    let error = store.remove_member(live).await.unwrap_err();
    assert!(error.to_string().contains("no majority"), "{error}");
    store.remove_member(dead).await.unwrap();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_succeeds_within_two_seconds_of_the_leaders_death() {
    let mut group = Group::of(3, Tuning::default()).await;
    group.write(1).await;
    group.everywhere(1).await;
    let leader = group.leader().await;
    group.hub.isolate(leader, true);
    group.hub.hang_up(leader);
    let cut = Instant::now();
    let old = group.members[leader as usize - 1].take().unwrap();
    group.write(2).await;
    let took = cut.elapsed();
    assert!(took < Duration::from_millis(2500), "{took:?}: two seconds and some for a busy machine");
    let lost = old.store.propose(vec![put(3)]).await.unwrap_err();
    assert!(
        matches!(lost, ProposeError::Lost | ProposeError::NotLeader { .. } | ProposeError::Timeout),
        "{lost:?}"
    );
    // It comes back as a follower, and the write that nobody confirmed is gone.
    group.hub.isolate(leader, false);
    group.members[leader as usize - 1] = Some(old);
    group.write(4).await;
    group.everywhere(4).await;
    assert!(group.alive().all(|store| !numbers(store).contains("net-3")));
    group.stop().await;
}

/// The pump looks at the answers to its heartbeats before it asks who has answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_nothing_to_do_goes_on_leading() {
    let group = Group::of(3, Tuning::default()).await;
    let lasting = async || loop {
        let store = group.store(group.leader().await);
        let (mut pulse, term) = (store.pulse(), store.leadership().borrow().term);
        // Two and a half times as long as a leader leads without answers.
        for _ in 0..5 {
            let leading = store.leadership().borrow().is_leader;
            if !leading || tokio::time::timeout(DEADLINE, pulse.changed()).await.is_err() {
                break;
            }
        }
        let now = store.leadership().borrow().clone();
        if now.is_leader && now.term == term {
            return;
        }
    };
    tokio::time::timeout(DEADLINE, lasting()).await.expect("it steps down again and again");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_in_flight_ends_soon_when_the_majority_is_gone() {
    let group = Group::of(3, Tuning::default()).await;
    let leader = group.leader().await;
    let store = group.store(leader).clone();
    let mut leadership = store.leadership();
    group.hub.isolate(leader, true);
    let started = Instant::now();
    let (write, barrier) = tokio::join!(store.propose(vec![put(1)]), store.barrier());
    assert!(matches!(write, Err(ProposeError::Lost)), "{write:?}");
    assert!(matches!(barrier, Err(ProposeError::NotLeader { .. })), "{barrier:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    leadership.wait_for(|now| !now.is_leader).await.unwrap();
    group.hub.isolate(leader, false);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_missed_too_much_gets_a_snapshot() {
    let mut group = Group::of(3, quick_snapshots()).await;
    let leader = group.leader().await;
    let late = if leader == 3 { 2 } else { 3 };
    group.kill(late).await;
    for number in 0..200 {
        group.write(number).await;
    }
    group.start(late);
    let mut watch = group.store(late).watch();
    group.write(500).await;
    group.everywhere(500).await;
    assert_eq!(numbers(group.store(late)), numbers(group.store(group.leader().await)));
    let mut replaced = false;
    while let Some(item) = watch.try_recv() {
        replaced |= item.is_err_and(|error| error == WatchError::Lagged);
    }
    assert!(replaced, "a watcher is told that the whole state changed");
    // And it starts from that snapshot.
    group.kill(late).await;
    group.start(late);
    group.write(501).await;
    group.everywhere(501).await;
    assert_eq!(numbers(group.store(late)).len(), 203);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_killing_everybody() {
    let mut group = Group::of(3, quick_snapshots()).await;
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        for number in 0..40 {
            let number = round * 100 + number;
            group.write(number).await;
            acknowledged.insert(format!("net-{number}"));
        }
        for id in 1..=3 {
            group.kill(id).await;
        }
        for id in 1..=3 {
            group.start(id);
        }
        let leader = group.leader().await;
        group.store(leader).barrier().await.unwrap();
        assert!(acknowledged.is_subset(&numbers(group.store(leader))), "round {round}");
    }
    let leader = group.leader().await;
    assert_eq!(group.store(leader).members().len(), 3);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_joins_again_under_a_new_id() {
    let mut group = Group::of(3, quick_snapshots()).await;
    group.write(1).await;
    let leader = group.leader().await;
    let wiped = if leader == 2 { 3 } else { 2 };
    group.kill(wiped).await;
    group.write(2).await;
    let store = group.store(leader).clone();
    store.remove_member(wiped).await.unwrap();
    group.grow().await;
    group.everywhere(2).await;
    assert_eq!(group.store(4).members().len(), 3);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_learns_a_members_new_address() {
    let mut group = Group::of(3, Tuning::default()).await;
    let leader = group.leader().await;
    let moved = if leader == 3 { 2 } else { 3 };
    group.kill(moved).await;
    let own = RaftPeer { address: "10.9.9.9:4780".to_owned(), ..peer(moved) };
    let place = moved as usize - 1;
    let member = group.hub.start(group.dirs[place].path(), own.clone(), None, Tuning::default()).unwrap();
    group.members[place] = Some(member);
    until("everybody knows the new address", async || {
        let knows = |store: &Store| store.members().contains(&own);
        group.alive().all(knows).then_some(())
    })
    .await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_the_leader_down_hands_over_at_once() {
    let mut group = Group::of(3, Tuning::default()).await;
    group.write(1).await;
    group.everywhere(1).await;
    let old = group.leader().await;
    let member = group.members[old as usize - 1].take().unwrap();
    let store = member.store.clone();
    let started = Instant::now();
    member.shutdown().await;
    group.write(2).await;
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}: no election timeout", started.elapsed());
    let error = store.propose(vec![put(3)]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped { .. }), "{error:?}");
    assert!(store.leadership().borrow().stopped.is_some());
    assert_eq!(store.watch().recv().await.unwrap_err(), WatchError::Closed);
    group.stop().await;
}
