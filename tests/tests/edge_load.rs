//! No request is lost through the HTTP edge while a service is scaled, updated and moved, and while replicas are killed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rorqual_tests::load::{Kind, Load, Plan, failures};
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, figures, images, wait_until};

const SOON: Duration = Duration::from_secs(60);
const EDGE: u16 = 80;

/// Clients' connections: a new one for each request, one that is kept to the end, and one of HTTP/2.
struct Loads(Vec<Load>);

impl Loads {
    fn start(node: &Node) -> Self {
        let kinds = [Kind::New, Kind::Kept(Duration::MAX), Kind::Http2];
        let plan = |kind| Plan { address: node.port(EDGE), kind, workers: 6, per_second: 60 };
        Self(kinds.map(|kind| Load::start(plan(kind))).into())
    }

    /// Until each of them has asked so often from now on.
    #[track_caller]
    fn go_on(&self, requests: usize) {
        for load in &self.0 {
            let until = load.count() + requests;
            wait_until("requests are answered", SOON, || {
                hold(load.count() >= until, || format!("{} of {until}", load.count()))
            });
        }
    }
}

/// What is done to a service under load; ends when nothing of it is left to do.
#[track_caller]
fn nothing_is_lost(node: &Node, what: &str, act: impl FnOnce(&Loads)) {
    let loads = Loads::start(node);
    loads.go_on(20);
    act(&loads);
    loads.go_on(30);
    let samples: Vec<_> = loads.0.into_iter().flat_map(Load::end).collect();
    let lost = failures(&samples);
    assert!(lost.is_empty(), "{what}: {} of {} requests failed: {lost:?}", lost.len(), samples.len());
    figures::tell(&format!("edge: {what}, lost"), format!("0 of {}", samples.len()), "");
}

#[track_caller]
fn running(node: &Node, count: usize, wanted: impl Fn(&rorqual_tests::view::Task) -> bool) {
    wait_until(&format!("{count} replicas and no more"), SOON, || {
        let tasks = node.tasks("web")?;
        let live: Vec<_> = tasks.iter().filter(|task| task.state == "running").collect();
        hold(live.len() == count && live.iter().all(|task| wanted(task)), || format!("{tasks:?}"))
    });
}

fn signal<'a>(name: &str, pids: impl IntoIterator<Item = &'a str>) {
    command::run(std::process::Command::new("kill").arg(name).args(pids), SOON).ok();
}

#[test]
fn no_request_is_lost_through_the_edge() {
    let lab = Lab::cluster("elod", 3);
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    n1.load(&images::archive("nginx"));
    n2.rctl(&["cluster", "update", "--edge-http", "80"]).ok();
    let create = ["service", "create", "--name", "web", "--replicas", "3", "--route", "Host(web)/"];
    n1.rctl(
        &[&create[..], &["--health-http", "80/health", "--health-interval", "1s", images::NGINX]].concat(),
    )
    .ok();
    wait_until("the edge leads to the service", SOON, || {
        let answer =
            rorqual_tests::http::ask(n1.port(EDGE), "web", "/").map_err(|error| error.to_string())?;
        hold(answer.0 == 200, || format!("{answer:?}"))
    });

    nothing_is_lost(n1, "scaled from 3 to 6 and back to 3", |_| {
        n2.rctl(&["service", "scale", "web=6"]).ok();
        n2.rctl(&["service", "scale", "web=3"]).ok();
        running(n2, 3, |_| true);
    });
    nothing_is_lost(n1, "updated", |_| {
        n2.rctl(&["service", "update", "--env-add", "A=2", "web"]).ok();
        running(n2, 3, |_| true);
    });
    nothing_is_lost(n1, "a replica killed", |loads| {
        let task = n1.running("web").unwrap().into_iter().find(|task| task.node == "n2").expect("none on n2");
        let pid = lab.node(2).task_pid(&task.id).unwrap();
        // Those who serve take requests and do not answer them any more, so that some are there as it ends.
        let workers = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        signal("-STOP", workers.split_whitespace());
        loads.go_on(10);
        signal("-KILL", [pid.to_string().as_str()]);
        wait_until("it runs again", SOON, || {
            let tasks = n1.running("web")?;
            let again = tasks.iter().any(|one| one.id == task.id && one.restarts == 1);
            hold(again && tasks.len() == 3, || format!("{tasks:?}"))
        });
    });
    // The node whose edge is called may be the one.
    nothing_is_lost(n3, "the node that is called drained", |_| {
        n2.rctl(&["node", "update", "--availability", "drain", "n3"]).ok();
        running(n2, 3, |task| task.node != "n3");
        wait_until("nothing runs on the node", SOON, || {
            let here = n3.containers()?;
            hold(here.iter().all(|one| one.state != "running"), || format!("{here:?}"))
        });
    });
    n1.rctl(&["service", "rm", "web"]).ok();
    lab.finish();
}
