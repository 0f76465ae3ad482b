//! Tasks of a cluster, with a leader that the test plays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rorqual_proto::model::{
    DesiredState, NetworkId, RestartPolicy, ServiceId, Task, TaskAddress, TaskId, TaskState, TaskStatus,
};
use rorqual_proto::wire;
use support::leader::{Leader, Told};
use support::{IMAGE, eventually, inside, lives, look, shell};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn task(number: u128, leader: &Leader, script: &str) -> Task {
    let mut status = TaskStatus::new(1);
    status.state = TaskState::Assigned;
    Task {
        id: TaskId::from_bits(number),
        meta: Default::default(),
        service_id: ServiceId::from_bits(1),
        service_name: "web".into(),
        slot: u32::try_from(number).unwrap(),
        spec_version: 1,
        container: shell(script),
        restart: RestartPolicy::default(),
        placement: Default::default(),
        networks: Vec::new(),
        node_id: Some(leader.membership.node_id.clone()),
        desired_state: DesiredState::Running,
        status,
        addresses: vec![TaskAddress {
            network_id: NetworkId::from_bits(1),
            address: Ipv4Addr::new(10, 213, 0, u8::try_from(number).unwrap()),
            address6: None,
        }],
    }
}

fn full(set: u64, tasks: &[&Task]) -> wire::Assignments {
    wire::Assignments {
        set,
        full: true,
        tasks: tasks.iter().map(|task| (*task).into()).collect(),
        container_pool: "10.213.0.0/16".into(),
        vip_pool: "10.214.0.0/16".into(),
        ..Default::default()
    }
}

fn change(base: u64, set: u64, task: &Task) -> wire::Assignments {
    wire::Assignments { set, base, tasks: vec![task.into()], ..Default::default() }
}

fn endpoints(tasks: &[&Task]) -> wire::ServiceEndpoints {
    wire::ServiceEndpoints {
        aliases: Vec::new(),
        client_affinity: false,
        service_id: ServiceId::from_bits(1).to_string(),
        name: "web".into(),
        network_id: NetworkId::from_bits(1).to_string(),
        network_name: "default".into(),
        vip: "10.214.0.1".into(),
        ports: vec![wire::PortSpec {
            published: 8080,
            target: 80,
            protocol: wire::Protocol::Tcp.into(),
            ..Default::default()
        }],
        endpoints: tasks
            .iter()
            .map(|task| wire::ServiceEndpoint {
                task_id: task.id.to_string(),
                name: task.name(),
                address: task.addresses[0].address.to_string(),
                node_id: task.node_id.as_ref().unwrap().to_string(),
                weight: 0,
            })
            .collect(),
        routes: Vec::new(),
        guest_node_id: String::new(),
        unready_aliases: Vec::new(),
        unready: Vec::new(),
    }
}

fn is_up(status: &wire::TaskStatus) -> bool {
    status.state() == wire::TaskState::Running && status.healthy
}

/// The page behind the published port.
fn page() -> Option<String> {
    let address = SocketAddr::from((support::UNDERLAY, 8080));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split("\r\n\r\n").nth(1).map(str::to_owned)
}

const SERVE: &str = "hostname > /www/index.html; httpd -f -p 80 -h /www";

#[test]
fn a_task_runs_is_restarted_and_goes() {
    inside("a_task_runs_is_restarted_and_goes", |world| async move {
        let mut node = world.with_image().await;
        let agent = node.agent.clone();
        let mut leader = Leader::start().await;
        agent.join_cluster(leader.membership.clone()).await.unwrap();
        let hello = leader.hello().await;
        let description = hello.description.unwrap();
        assert_eq!((hello.set, description.hostname.as_str()), (0, "n1"));
        assert_eq!(description.labels.get("disk").map(String::as_str), Some("ssd"));
        assert!(description.nano_cpus > 0 && description.memory_bytes > 0);
        assert_eq!(hello.images.unwrap().images[0].reference, IMAGE);

        // One task: on disk, acknowledged, running, and behind the published port.
        let mut web = task(1, &leader, SERVE);
        let id = web.id.to_string();
        let began = Instant::now();
        leader.assign(full(10, &[&web])).await;
        let mut seen = Vec::new();
        let up = leader.status_until(&id, &mut seen, is_up).await;
        println!("assigned to running: {:?}", began.elapsed());
        assert!(lives(up.pid));
        assert!(seen.windows(2).all(|pair| pair[0].state <= pair[1].state), "{seen:?}");
        let set = wire::Assignments { services: vec![endpoints(&[&web])], ..change(10, 11, &web) };
        leader.assign(set).await;
        leader.acknowledged(11).await;
        let text = eventually("the page", || async { page() }).await;
        assert_eq!(text, "web-1\n");
        assert_eq!(look(&mut node.engine, "web.1").await.unwrap().service_name, "web");

        // kill -9: told as down at once, and up again soon, without a word of the leader.
        let began = Instant::now();
        assert!(
            std::process::Command::new("kill").args(["-9", &up.pid.to_string()]).status().unwrap().success()
        );
        let mut seen = Vec::new();
        let back = leader.status_until(&id, &mut seen, |status| is_up(status) && status.restarts == 1).await;
        println!("killed to running: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_ne!(back.pid, up.pid);
        assert_eq!(back.exit_code, Some(137));
        assert_eq!(eventually("the page", || async { page() }).await, "web-1\n");

        // Out of the balancers first, then the stop signal, then the end.
        web.desired_state = DesiredState::Shutdown;
        let set = wire::Assignments { services: vec![endpoints(&[])], ..change(11, 12, &web) };
        let began = Instant::now();
        leader.assign(set).await;
        let mut seen = Vec::new();
        leader.status_until(&id, &mut seen, |s| s.state() == wire::TaskState::Shutdown).await;
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
        assert!(seen[0].state() == wire::TaskState::Running && !seen[0].healthy, "{seen:?}");
        assert!(page().is_none());

        // It leaves the set, and its folder goes.
        let folder = world.data().join("containers").join(&id);
        assert!(folder.exists());
        leader
            .assign(wire::Assignments {
                set: 13,
                base: 12,
                removed_tasks: vec![id.clone()],
                ..Default::default()
            })
            .await;
        leader.acknowledged(13).await;
        eventually("the folder is gone", || {
            let gone = !folder.exists();
            async move { gone.then_some(()) }
        })
        .await;
    });
}

/// A registry that has nothing. One that does not answer would be asked again and again.
async fn empty_registry() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[test]
fn what_can_not_run_is_rejected_with_its_reason() {
    inside("what_can_not_run_is_rejected_with_its_reason", |world| async move {
        let node = world.with_image().await;
        let agent = &node.agent;
        let mut leader = Leader::start().await;
        agent.join_cluster(leader.membership.clone()).await.unwrap();
        leader.hello().await;
        let mut unknown = task(2, &leader, "");
        unknown.container.args = vec!["/no/such".into()];
        let mut missing = task(3, &leader, "true");
        let name = format!("{}/nope:1", empty_registry().await);
        missing.container.image = name.clone();
        let fine = task(4, &leader, "sleep 1000");
        let mut crowded = task(5, &leader, "true");
        crowded.addresses.push(crowded.addresses[0].clone());
        leader.assign(full(20, &[&unknown, &missing, &fine, &crowded])).await;
        let mut told = std::collections::BTreeMap::new();
        while told.len() < 4 {
            if let Told::Status(id, status) = leader.next().await
                && (status.state() == wire::TaskState::Rejected || is_up(&status))
            {
                told.insert(id, status);
            }
        }
        let status = &told[unknown.id.as_str()];
        assert_eq!((status.state(), status.exit_code), (wire::TaskState::Rejected, Some(127)));
        assert!(status.message.contains("/no/such"), "{}", status.message);
        let status = &told[missing.id.as_str()];
        assert_eq!(status.state(), wire::TaskState::Rejected);
        assert!(status.message.contains(&name), "{}", status.message);
        assert!(status.message.contains("rctl image load"), "{}", status.message);
        assert!(is_up(&told[fine.id.as_str()]));
        let message = &told[crowded.id.as_str()].message;
        assert!(message.contains("named twice"), "{message}");

        // Whoever leads next is told again.
        leader.assign(full(19, &[])).await;
        let hello = leader.hello().await;
        for task in [&unknown, &missing, &crowded] {
            let report = hello.statuses.iter().find(|report| report.task_id == task.id.as_str()).unwrap();
            assert_eq!(report.status.as_ref().unwrap().state(), wire::TaskState::Rejected);
        }
    });
}

#[test]
fn sets_are_kept_in_order_and_outlive_the_agent() {
    inside("sets_are_kept_in_order_and_outlive_the_agent", |world| async move {
        let node = world.with_image().await;
        let agent = node.agent.clone();
        let mut leader = Leader::start().await;
        agent.join_cluster(leader.membership.clone()).await.unwrap();
        leader.hello().await;
        let web = task(5, &leader, "sleep 1000");
        let brief = Task {
            restart: RestartPolicy {
                condition: rorqual_proto::model::RestartCondition::None,
                ..RestartPolicy::default()
            },
            ..task(6, &leader, "exit 3")
        };
        leader.assign(full(30, &[&web, &brief])).await;
        let up = leader.status(web.id.as_str(), is_up).await;
        let hello = loop {
            // Older, and on another base: each ends the session, and the next Hello names what is on disk.
            leader.assign(full(29, &[])).await;
            let hello = leader.hello().await;
            assert_eq!(hello.set, 30);
            leader.assign(change(29, 31, &web)).await;
            let hello = leader.hello().await;
            assert_eq!(hello.set, 30);
            let failed = |report: &wire::ReportedStatus| {
                report.status.as_ref().unwrap().state() == wire::TaskState::Failed
            };
            if hello.statuses.iter().any(failed) {
                break hello;
            }
        };
        assert_eq!(hello.statuses.len(), 2);
        assert!(lives(up.pid));

        // A new agent on the same folders: nothing restarts, and everything is told again.
        drop(agent);
        node.end().await;
        let node = world.start().await;
        let agent = &node.agent;
        agent.join_cluster(leader.membership.clone()).await.unwrap();
        let hello = leader.hello().await;
        assert_eq!(hello.set, 30);
        let told = |id: &TaskId| {
            let report = hello.statuses.iter().find(|report| report.task_id == id.as_str()).unwrap();
            report.status.clone().unwrap()
        };
        let failed = told(&brief.id);
        assert_eq!((failed.state(), failed.exit_code), (wire::TaskState::Failed, Some(3)));
        // The driver tells it in a moment, if not in the Hello already.
        let web_status = told(&web.id);
        assert_eq!((web_status.state(), web_status.restarts), (wire::TaskState::Running, 0));
        assert!(lives(up.pid));

        // A node that leaves ends what the cluster ran on it, and nothing else.
        agent.leave_cluster().await.unwrap();
        assert!(!lives(up.pid));
        assert_eq!(agent.session_status().state, "none");
        let left = std::fs::read_dir(world.data().join("containers")).unwrap().count();
        assert_eq!(left, 0);
    });
}

#[test]
fn a_launch_that_was_cut_off_is_begun_again() {
    inside("a_launch_that_was_cut_off_is_begun_again", |world| async move {
        let node = world.with_image().await;
        let mut leader = Leader::start().await;
        node.agent.join_cluster(leader.membership.clone()).await.unwrap();
        leader.hello().await;
        // A container of the task's id, of which nothing else knows.
        let web = task(7, &leader, "sleep 1000");
        let left = world.stray(web.id.as_str());
        assert!(lives(left));
        leader.assign(full(40, &[&web])).await;
        let up = leader.status(web.id.as_str(), is_up).await;
        assert!(up.pid != left && lives(up.pid) && !lives(left));
    });
}

#[test]
fn what_nobody_wants_is_taken_away_at_the_start() {
    inside("what_nobody_wants_is_taken_away_at_the_start", |world| async move {
        world.with_image().await.end().await;
        let left = world.stray("stray");
        let mut node = world.start().await;
        assert!(!lives(left));
        assert!(look(&mut node.engine, "stray").await.is_none());
        assert!(!world.data().join("containers/stray").exists());
    });
}
