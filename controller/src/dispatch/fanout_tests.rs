//! The fan-out and the writer of statuses over a member on a real disk, with a session that only listens.

use std::time::Duration;

use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{
    ContainerSpec, DesiredState, Meta, NetworkId, Service, ServiceId, ServiceMode, ServiceSpec, Task,
    TaskAddress, TaskState, TaskStatus, Vip,
};

use super::*;
use crate::dispatch::statuses;
use crate::founding::{Founding, found};
use crate::raft::Tuning;
use crate::raft::testing::{Hub, peer};

const SOON: Duration = Duration::from_secs(20);

fn service(network_id: NetworkId) -> Service {
    let spec = ServiceSpec {
        name: "web".to_owned(),
        labels: Default::default(),
        container: ContainerSpec { image: "web".to_owned(), ..Default::default() },
        mode: ServiceMode::Replicated { replicas: 2 },
        ports: Vec::new(),
        networks: Vec::new(),
        restart: Default::default(),
        placement: Default::default(),
        update_order: None,
        dnsrr: false,
        client_affinity: false,
        force_update: 0,
        routes: Vec::new(),
    };
    Service {
        id: ServiceId::from_bits(1),
        meta: Meta::default(),
        spec,
        spec_version: 1,
        vips: vec![Vip { network_id, address: [10, 214, 0, 1].into() }],
        ports: Vec::new(),
        removing: false,
        problem: None,
        previous_spec: None,
        sealed_auths: Vec::new(),
    }
}

fn status(healthy: bool, pid: u32) -> TaskStatus {
    TaskStatus { state: TaskState::Running, healthy, pid, ..TaskStatus::new(1) }
}

fn task(service: &Service, node: &NodeId, slot: u32) -> Task {
    let network_id = service.vips[0].network_id.clone();
    let address = TaskAddress { network_id, address: [10, 213, 0, slot as u8].into(), address6: None };
    Task {
        id: id(slot),
        meta: Meta::default(),
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        slot,
        spec_version: 1,
        container: service.spec.container.clone(),
        restart: service.spec.restart,
        placement: service.spec.placement.clone(),
        networks: vec!["default".to_owned()],
        node_id: Some(node.clone()),
        desired_state: DesiredState::Running,
        status: status(true, slot),
        addresses: vec![address],
    }
}

fn id(slot: u32) -> TaskId {
    TaskId::from_bits(u128::from(slot))
}

/// What a node is told: who is withdrawn, or who is an endpoint of a service that is named.
#[derive(Debug, PartialEq)]
enum Told {
    Withdrawn(Vec<String>),
    Endpoints(Vec<String>),
}

async fn next(messages: &mut mpsc::Receiver<Result<wire::ToAgent, Status>>) -> Told {
    loop {
        let message = tokio::time::timeout(SOON, messages.recv()).await.expect("nothing is told");
        match message.unwrap().unwrap().message {
            Some(to_agent::Message::Withdrawal(withdrawal)) => return Told::Withdrawn(withdrawal.task_ids),
            Some(to_agent::Message::Assignments(set)) if !set.services.is_empty() => {
                let endpoints = set.services.iter().flat_map(|view| &view.endpoints);
                return Told::Endpoints(endpoints.map(|endpoint| endpoint.task_id.clone()).collect());
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_replica_that_is_down_is_told_of_before_it_is_written() {
    let (hub, dir) = (Hub::default(), tempfile::tempdir().unwrap());
    let founding = Founding {
        hostname: "n1".to_owned(),
        address: "10.0.0.1:4780".parse().unwrap(),
        container_pool: "10.213.0.0/16".parse().unwrap(),
        vip_pool: "10.214.0.0/16".parse().unwrap(),
        encrypt: false,
    };
    let founded = found(&founding, 0).unwrap();
    let node = founded.node_id.clone();
    let member = hub.start(dir.path(), peer(1), Some(founded.actions), Tuning::default()).unwrap();
    let store = member.store.clone();
    store.leadership().wait_for(|now| now.is_leader).await.unwrap();
    let network = store.read(|state| state.networks().next().map(|network| network.id.clone()));
    let service = service(network.unwrap());
    let put = |slot| Action::new(ActionKind::PutTask(Box::new(task(&service, &node, slot))));
    let create = Action::new(ActionKind::PutService(Box::new(service.clone())));
    store.propose(vec![create, put(1), put(2)]).await.unwrap();

    let fanout = start(store.clone(), Auths::new(None));
    let statuses = statuses::start(store.clone(), fanout.clone());
    let (outbox, mut messages) = mpsc::channel(64);
    let _evicted = fanout.register(node.clone(), outbox).await.unwrap();
    let ids = |slots: &[u32]| slots.iter().map(|slot| id(*slot).to_string()).collect::<Vec<_>>();
    let all = Told::Endpoints(ids(&[1, 2]));
    assert_eq!(next(&mut messages).await, all);

    let report = |slot: u32, healthy| wire::ReportedStatus {
        task_id: id(slot).to_string(),
        status: Some((&status(healthy, slot)).into()),
    };
    statuses.report(&node, vec![report(1, false)]).await.unwrap();
    assert_eq!(next(&mut messages).await, Told::Withdrawn(ids(&[1])));
    assert_eq!(next(&mut messages).await, Told::Endpoints(ids(&[2])), "it is in the log");
    statuses.report(&node, vec![report(1, true)]).await.unwrap();
    assert_eq!(next(&mut messages).await, all);

    // Another node has nothing to say about it.
    statuses.report(&NodeId::from_bits(9), vec![report(2, false)]).await.unwrap();
    // While it is on its way into the log no set names it, and one that comes back with the same entry is named again.
    fanout.withdraw(vec![id(1)]).await;
    assert_eq!(next(&mut messages).await, Told::Withdrawn(ids(&[1])));
    statuses.report(&node, vec![report(2, false)]).await.unwrap();
    assert_eq!(next(&mut messages).await, Told::Withdrawn(ids(&[2])));
    assert_eq!(next(&mut messages).await, Told::Endpoints(vec![]));
    fanout.written(vec![id(1)]).await;
    assert_eq!(next(&mut messages).await, Told::Endpoints(ids(&[1])));
    member.shutdown().await;
}
