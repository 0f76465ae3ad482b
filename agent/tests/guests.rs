//! Plain containers in networks of the cluster, with a leader that the test plays.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rorqual_proto::wire;
use support::leader::Leader;
use support::{inside, look, named, shell, wait};

/// The leader's view of a container of the agent's node.
fn view(leader: &Leader, id: &str, network: &str, up: bool) -> wire::ServiceEndpoints {
    let node_id = leader.membership.node_id.to_string();
    let endpoint = wire::ServiceEndpoint {
        task_id: id.to_owned(),
        name: "guest".into(),
        address: "10.213.0.9".into(),
        node_id: node_id.clone(),
        weight: 0,
    };
    wire::ServiceEndpoints {
        service_id: id.to_owned(),
        name: "guest".into(),
        network_id: format!("id-of-{network}"),
        network_name: network.to_owned(),
        endpoints: Some(endpoint).filter(|_| up).into_iter().collect(),
        guest_node_id: node_id,
        ..Default::default()
    }
}

fn set(number: u64, services: Vec<wire::ServiceEndpoints>) -> wire::Assignments {
    wire::Assignments {
        set: number,
        full: true,
        services,
        container_pool: "10.213.0.0/16".into(),
        vip_pool: "10.214.0.0/16".into(),
        ..Default::default()
    }
}

fn join(network: &str) -> wire::NetworkJoin {
    wire::NetworkJoin { network: network.to_owned(), ..Default::default() }
}

fn request(networks: &[&str], script: &str) -> wire::CreateContainerRequest {
    wire::CreateContainerRequest {
        spec: Some((&shell(script)).into()),
        networks: networks.iter().map(|name| join(name)).collect(),
        ..Default::default()
    }
}

#[test]
fn the_leader_is_told_of_guests_whatever_happens_to_them() {
    inside("the_leader_is_told_of_guests_whatever_happens_to_them", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let alone = engine.create_container(request(&["front"], "true")).await.unwrap_err();
        assert!(alone.message().contains("this node is in no cluster"), "{alone}");

        let mut leader = Leader::start().await;
        node.agent.join_cluster(leader.membership.clone()).await.unwrap();
        leader.hello().await;
        let refused = engine.create_container(request(&["nope"], "true")).await.unwrap_err();
        assert_eq!(refused.message(), "network `nope` does not exist");
        let none = engine.list_containers(wire::ListContainersRequest { all: true }).await.unwrap();
        assert_eq!(none.into_inner().containers, [], "what is refused leaves nothing");

        // Asked when it is made and when it starts; its end is told by itself.
        let script = "until [ -e /end ]; do sleep 0.02; done";
        let made = engine.create_container(request(&["front"], script)).await.unwrap().into_inner().id;
        leader.guest(&made, Some(false)).await;
        engine.start_container(named(&made)).await.unwrap();
        leader.guest(&made, Some(true)).await;
        let seen = look(engine, &made).await.unwrap();
        assert_eq!((seen.address.as_str(), seen.networks[0].network.as_str()), ("10.213.0.9", "front"));
        // One that nobody here knows is given back, as soon as the leader shows it.
        let stranger = "1".repeat(25);
        let shown = vec![view(&leader, &made, "front", true), view(&leader, &stranger, "front", true)];
        leader.assign(set(10, shown)).await;
        leader.guest(&stranger, None).await;
        leader.assign(set(11, vec![view(&leader, &made, "front", true)])).await;
        engine
            .stop_container(wire::StopContainerRequest { name: made.clone(), grace_ms: Some(0) })
            .await
            .unwrap();
        wait(engine, &made).await;
        leader.guest(&made, Some(false)).await;

        // Into a second network while it rests, and out of all of them.
        let request = wire::ConnectContainerRequest { name: made.clone(), network: Some(join("back")) };
        engine.connect_container(request.clone()).await.unwrap();
        leader.guest(&made, Some(false)).await;
        let again = engine.connect_container(request).await.unwrap_err();
        assert!(again.message().contains("is in network `back` already"), "{again}");
        for network in ["back", "front"] {
            let request =
                wire::DisconnectContainerRequest { name: made.clone(), network: network.to_owned() };
            engine.disconnect_container(request).await.unwrap();
        }
        leader.guest(&made, None).await;
        assert_eq!(look(engine, &made).await.unwrap().network_mode(), wire::NetworkMode::None);
    });
}

#[test]
fn a_container_that_has_its_addresses_starts_without_a_leader_and_outlives_the_membership() {
    let name = "a_container_that_has_its_addresses_starts_without_a_leader_and_outlives_the_membership";
    inside(name, |world| async move {
        let mut node = world.with_image().await;
        let mut leader = Leader::start().await;
        node.agent.join_cluster(leader.membership.clone()).await.unwrap();
        leader.hello().await;
        let engine = &mut node.engine;
        let made = engine.create_container(request(&["front"], "sleep 1000")).await.unwrap().into_inner().id;
        leader.guest(&made, Some(false)).await;
        leader.refuse_guests();
        engine.start_container(named(&made)).await.unwrap();
        assert_eq!(look(engine, &made).await.unwrap().address, "10.213.0.9");
        let other = engine.create_container(request(&["front"], "true")).await.unwrap_err();
        assert!(other.message().contains("no leader"), "{other}");
        // Out of the cluster it goes on, in the node's own network.
        node.agent.leave_cluster().await.unwrap();
        let seen = look(&mut node.engine, &made).await.unwrap();
        assert_eq!(seen.state(), wire::ContainerState::Running);
        assert!(seen.address.starts_with("10.215.0.") && seen.networks[0].network == "local", "{seen:?}");
    });
}
