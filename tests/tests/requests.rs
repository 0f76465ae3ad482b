//! No request is lost while a service is scaled, updated and moved; of a replica that is killed, only what it had.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use rorqual_tests::load::{Kind, Load, Plan, Sample, failures};
use rorqual_tests::wait::{hold, patient};
use rorqual_tests::{Lab, Node, command, figures, http, images, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Shorter than connections are waited for.
const LIFE: Duration = Duration::from_secs(1);

/// A request that takes so long is one that nobody answers.
const STUCK: Duration = Duration::from_millis(200);

/// A system that is not answered, or not told that it is refused, asks once more after a second (RFC 6298, section 2).
const ASKED_AGAIN: Duration = Duration::from_millis(900);

/// What it says if it is told so.
const REFUSED: &str = "connecting: Connection refused";

/// All nodes know by then that a replica has ended.
const KNOWN: Duration = Duration::from_secs(1);

/// Both kinds of load, through one node's port.
struct Loads(Vec<Load>);

impl Loads {
    fn start(node: &Node) -> Self {
        let plan = |kind| Plan { address: node.port(8080), kind, workers: 8, per_second: 100 };
        Self(vec![Load::start(plan(Kind::New)), Load::start(plan(Kind::Kept(LIFE)))])
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

#[track_caller]
fn nothing_lost(what: &str, samples: &[Sample]) {
    let lost = failures(samples);
    assert!(lost.is_empty(), "{what}: {} of {} requests failed: {lost:?}", lost.len(), samples.len());
    figures::tell(&format!("requests: {what}, lost"), format!("0 of {}", samples.len()), "");
}

/// What is done to a service under load; ends when nothing of it is left to do.
#[track_caller]
fn under_load(node: &Node, what: &str, act: impl FnOnce()) {
    let loads = Loads::start(node);
    loads.go_on(20);
    act();
    loads.go_on(50);
    let samples = loads.0.into_iter().flat_map(Load::end).collect::<Vec<_>>();
    nothing_lost(what, &samples);
}

#[track_caller]
fn running(node: &Node, count: usize, wanted: impl Fn(&rorqual_tests::view::Task) -> bool) {
    wait_until(&format!("{count} replicas"), SOON, || {
        let tasks = node.running("web")?;
        hold(tasks.len() == count && tasks.iter().all(&wanted), || format!("{tasks:?}"))
    });
}

#[test]
fn no_request_is_lost() {
    let lab = Lab::cluster("load", 3);
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    n1.load(&images::archive("nginx"));
    let service = ["service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:80"];
    let check =
        ["--health-http", "80/health", "--health-interval", "1s", "--drain-timeout", "20s", images::NGINX];
    n1.rctl(&[&service[..], &check].concat()).ok();

    // The command waits for the replicas; that the node leads to them may come a moment later.
    wait_until("the node's port leads to both replicas", SOON, || {
        let tally = http::tally(n1.port(8080), 6).map_err(|error| error.to_string())?;
        hold(tally.len() == 2, || format!("{tally:?}"))
    });

    under_load(n1, "scaled from 2 to 5 and back to 2", || {
        n2.rctl(&["service", "scale", "web=5"]).ok();
        n2.rctl(&["service", "scale", "web=2"]).ok();
        // Its replicas go on for as long as they have connections.
        wait_until("those that are to go are gone", SOON, || {
            let tasks = n2.tasks("web")?;
            hold(tasks.iter().filter(|task| task.state == "running").count() == 2, || format!("{tasks:?}"))
        });
    });
    under_load(n1, "updated", || {
        n2.rctl(&["service", "update", "--env-add", "A=2", "web"]).ok();
    });
    n2.rctl(&["service", "scale", "web=3"]).ok();
    assert_eq!(n2.running("web").unwrap().iter().filter(|task| task.node == "n3").count(), 1);
    under_load(n1, "one node drained", || {
        n2.rctl(&["node", "update", "--availability", "drain", "n3"]).ok();
        wait_until("nothing runs on the node", SOON, || {
            let here = n3.containers()?;
            hold(here.iter().all(|one| one.state != "running"), || format!("{here:?}"))
        });
        running(n2, 3, |task| task.node != "n3");
    });
    // A single replica is replaced by one that serves already.
    n2.rctl(&["service", "scale", "web=1"]).ok();
    under_load(n1, "a single replica updated", || {
        n2.rctl(&["service", "update", "--env-add", "A=3", "web"]).ok();
    });
    n2.rctl(&["service", "scale", "web=3"]).ok();
    what_is_killed_loses_what_it_had(&lab);
    a_client_keeps_its_replica(&lab);
    n1.rctl(&["service", "rm", "web"]).ok();
    lab.finish();
}

/// Whichever node it calls.
fn a_client_keeps_its_replica(lab: &Lab) {
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    assert_eq!(http::tally(n1.port(8080), 12).unwrap().len(), 3);
    n1.rctl(&["service", "update", "--affinity", "client-ip", "web"]).ok();
    wait_until("one replica answers on both nodes", SOON, || {
        let [one, other] =
            [n1, n2].map(|node| http::tally(node.port(8080), 12).map_err(|error| error.to_string()));
        let (one, other) = (one?, other?);
        hold(one.len() == 1 && one == other, || format!("{one:?} {other:?}"))
    });
}

fn signal<'a>(name: &str, pids: impl IntoIterator<Item = &'a str>) {
    command::run(std::process::Command::new("kill").arg(name).args(pids), SOON).ok();
}

/// Only what was on its way to it is lost. Who is refused by it before the nodes know asks once more.
fn what_is_killed_loses_what_it_had(lab: &Lab) {
    let n1 = lab.node(1);
    running(n1, 3, |_| true);
    let task = n1.running("web").unwrap().into_iter().find(|task| task.node == "n2").expect("none on n2");
    let pid = lab.node(2).task_pid(&task.id).unwrap();
    let loads = Loads::start(n1);
    loads.go_on(20);
    // Those who serve take requests and do not answer them any more, so that some are there as it ends.
    let workers = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    signal("-STOP", workers.split_whitespace());
    for load in &loads.0 {
        wait_until("a request is on its way", SOON, || hold(load.waiting(STUCK) > 0, || "none".to_owned()));
    }
    let killed = Instant::now();
    signal("-KILL", [pid.to_string().as_str()]);
    wait_until("it runs again", SOON, || {
        let tasks = n1.running("web")?;
        let again = tasks.iter().any(|one| one.id == task.id && one.restarts == 1);
        hold(again && tasks.len() == 3, || format!("{tasks:?}"))
    });
    loads.go_on(50);
    let samples = loads.0.into_iter().map(Load::end).collect::<Vec<_>>();
    for (kind, samples) in ["new", "kept"].into_iter().zip(&samples) {
        let lost = failures(samples);
        let ended_before = lost.iter().filter(|one| one.sent + one.took < killed).count();
        let sent_after = lost.iter().filter(|one| one.sent > killed + patient(KNOWN)).count();
        let had = lost.iter().filter(|one| one.sent < killed).count();
        // One that is reset while it connects had been taken: the replica listens until the end of its last process.
        let refused_at_once = |one: &&&Sample| {
            matches!(&one.outcome, Err(error) if error.starts_with(REFUSED)) && one.took < ASKED_AGAIN
        };
        let at_once = lost.iter().filter(refused_at_once).count();
        assert_eq!((ended_before, sent_after, at_once), (0, 0, 0), "{kind}: {lost:?}");
        assert!(had > 0, "{kind}: nothing was on its way to it, so nothing is shown");
        let what = format!("requests: a replica killed, lost of those with {kind} connections");
        let told = format!("{} of {}, {had} of them on their way", lost.len(), samples.len());
        figures::tell(&what, told, "");
    }
}
