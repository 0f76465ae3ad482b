//! What the fabric is told, by what the feeder was told before.

use super::*;

fn feeder() -> Feeder {
    let own = OwnName { node_id: "id1".into(), fabric: "n1".into() };
    Feeder::new(Arc::default(), own, Edge::new(Default::default(), std::path::Path::new("/nonexistent")))
}

fn service(endpoints: &[(&str, &str)]) -> ServiceEndpoints {
    ServiceEndpoints {
        service_id: "s1".into(),
        name: "web".into(),
        network_id: "net".into(),
        vip: "10.214.0.1".into(),
        unready_aliases: vec!["all".into()],
        endpoints: endpoints
            .iter()
            .map(|(task, node)| wire::ServiceEndpoint {
                task_id: (*task).into(),
                name: format!("web.{task}"),
                address: "10.213.0.2".into(),
                node_id: (*node).into(),
                weight: 0,
            })
            .collect(),
        ..ServiceEndpoints::default()
    }
}

fn ids(change: &Change) -> Vec<&str> {
    change.services.iter().flat_map(|s| &s.endpoints).map(|e| e.id.as_str()).collect()
}

#[test]
fn an_own_task_that_is_down_leaves_the_balancer_at_once() {
    let mut feeder = feeder();
    let mut dirty = Dirty::default();
    let change = SetChange {
        full: true,
        services: vec![service(&[("a", "id1"), ("b", "id2")])],
        ..SetChange::default()
    };
    feeder.take(Event::Set(Box::new(change)), &mut dirty);
    let first = feeder.change(&dirty);
    assert!(first.full);
    assert_eq!(ids(&first), ["a", "b"]);
    assert_eq!(first.services[0].endpoints[0].node, "n1");
    assert_eq!(first.services[0].endpoints[1].node, "id2");

    let mut dirty = Dirty::default();
    feeder.take(Event::Health { task: "a".into(), up: false }, &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["b"]);
    let unready = feeder.change(&dirty).services[0].unready.clone();
    assert_eq!((unready.aliases.as_slice(), unready.tasks.len()), (&["all".to_owned()][..], 1));
    let mut dirty = Dirty::default();
    feeder.take(Event::Health { task: "a".into(), up: true }, &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a", "b"]);
}

#[test]
fn a_task_is_withdrawn_with_the_set_that_does_not_name_it_any_more() {
    let mut feeder = feeder();
    let mut dirty = Dirty::default();
    let (in_effect, _seen) = tokio::sync::watch::channel(0);
    let set = |number, endpoints: &[(&str, &str)]| {
        let services = vec![service(endpoints)];
        Event::Set(Box::new(SetChange { number, services, ..SetChange::default() }))
    };
    feeder.take(set(7, &[("a", "id1"), ("b", "id2")]), &mut dirty);
    let (reply, mut answer) = oneshot::channel();
    feeder.take(Event::Withdrawn { task: "a".into(), reply }, &mut dirty);
    feeder.settled().tell(&in_effect);
    assert_eq!(*in_effect.borrow(), 7);
    assert!(answer.try_recv().is_err(), "set 7 still names it");
    feeder.take(set(9, &[("b", "id2")]), &mut dirty);
    assert!(answer.try_recv().is_err(), "it is not in effect yet");
    feeder.settled().tell(&in_effect);
    assert_eq!(answer.try_recv(), Ok(9));
}

#[test]
fn the_health_of_a_task_that_no_service_names_changes_nothing() {
    let mut feeder = feeder();
    let mut dirty = Dirty::default();
    feeder.take(Event::Health { task: "x".into(), up: false }, &mut dirty);
    assert!(dirty.is_clean());
}

#[test]
fn what_comes_and_goes_in_one_batch_ends_as_it_is() {
    let mut feeder = feeder();
    let mut dirty = Dirty::default();
    let put = SetChange { services: vec![service(&[])], ..SetChange::default() };
    let remove = SetChange { removed_services: vec!["s1/net".into()], ..SetChange::default() };
    feeder.take(Event::Set(Box::new(put.clone())), &mut dirty);
    feeder.take(Event::Set(Box::new(remove)), &mut dirty);
    let change = feeder.change(&dirty);
    assert!(change.services.is_empty());
    assert_eq!(change.removed_services, ["s1.net"]);
    feeder.take(Event::Set(Box::new(put)), &mut dirty);
    let change = feeder.change(&dirty);
    assert_eq!(change.services.len(), 1);
    assert!(change.removed_services.is_empty());
}

#[test]
fn the_own_node_is_no_peer_and_an_unreadable_one_is_left_out() {
    let mut feeder = feeder();
    let peers = [("id1", "10.0.0.1:4780"), ("id2", "10.0.0.2:4780"), ("id3", "somewhere:4780")];
    let peers = peers.map(|(id, address)| NodePeer {
        node_id: id.into(),
        hostname: String::new(),
        address: address.into(),
        ipv6_addresses: vec!["2001:db8::2".into(), "nowhere".into()],
        other_addresses: vec!["192.0.2.2".into(), "nowhere".into()],
        ..NodePeer::default()
    });
    let mut dirty = Dirty::default();
    let change = SetChange { full: true, peers: peers.to_vec(), ..SetChange::default() };
    feeder.take(Event::Set(Box::new(change)), &mut dirty);
    let change = feeder.change(&dirty);
    let ipv6 = vec!["2001:db8::2".parse().unwrap()];
    let second = Ipv4Addr::new(10, 0, 0, 2);
    let expected = Peer {
        node: "id2".into(),
        underlay: second,
        others: vec![Ipv4Addr::new(192, 0, 2, 2)],
        ipv6,
        encrypted: false,
        key: None,
    };
    assert_eq!(change.peers, [expected]);
}

#[test]
fn what_the_leader_says_to_be_down_is_so_until_it_names_the_service() {
    let mut feeder = feeder();
    let set = |number, full, endpoints: &[(&str, &str)]| {
        let services = vec![service(endpoints)];
        let named_services = services.iter().map(view_key).collect();
        Event::Set(Box::new(SetChange { number, full, services, named_services, ..SetChange::default() }))
    };
    let all = [("a", "id1"), ("b", "id2")];
    feeder.take(set(7, true, &all), &mut Dirty::default());
    let mut dirty = Dirty::default();
    feeder.take(Event::Withdraw(vec!["b".into(), "nobody".into()]), &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a"]);
    assert_eq!(
        feeder.change(&dirty).services[0].unready.tasks.len(),
        1,
        "it keeps its names among the unready"
    );

    // A set of something else leaves it as it is.
    let mut dirty = Dirty::default();
    feeder.take(Event::Set(Box::new(SetChange { number: 8, ..SetChange::default() })), &mut dirty);
    assert!(dirty.is_clean());
    feeder.take(set(9, false, &all[..1]), &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a"]);
    let mut dirty = Dirty::default();
    feeder.take(set(10, false, &all), &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a", "b"], "it serves again");

    // It came back before the leader had written that it was down: the service is named, and is as it was.
    feeder.take(Event::Withdraw(vec!["b".into()]), &mut Dirty::default());
    let mut dirty = Dirty::default();
    let named_services = vec![view_key(&service(&[]))];
    let change = SetChange { number: 11, named_services, ..SetChange::default() };
    feeder.take(Event::Set(Box::new(change)), &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a", "b"]);

    // Another leader begins with the whole truth.
    feeder.take(Event::Withdraw(vec!["b".into()]), &mut Dirty::default());
    let mut dirty = Dirty::default();
    feeder
        .take(Event::Set(Box::new(SetChange { number: 12, full: true, ..SetChange::default() })), &mut dirty);
    assert_eq!(ids(&feeder.change(&dirty)), ["a", "b"]);
}

#[test]
fn a_network_has_its_ranges_by_family_and_is_left_out_without_one_of_them() {
    let network = |subnets: &[&str]| NodeNetwork {
        network_id: "n".into(),
        subnets: subnets.iter().map(|text| (*text).to_owned()).collect(),
        ..NodeNetwork::default()
    };
    let read = network_of(&network(&["10.20.0.0/24", "fd00:1::/64"])).unwrap();
    assert_eq!(read.subnets, ["10.20.0.0/24".parse().unwrap()]);
    assert_eq!(read.subnets6, ["fd00:1::/64".parse().unwrap()]);
    assert_eq!(network_of(&network(&["10.20.0.0/24", "elsewhere"])), None);
}
