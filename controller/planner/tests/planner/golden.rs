//! Plans as people read them, compared with files. `RORQUAL_GOLDEN=write cargo test` writes them anew.

use std::fmt::Write as _;
use std::path::Path;

use rorqual_planner::{ActionKind, Plan};
use rorqual_proto::model::{Availability, NodeState};

use crate::world::{World, memory, port, spec};

struct Story {
    world: World,
    text: String,
}

impl Story {
    fn new(nodes: usize) -> Self {
        Self { world: World::new(nodes), text: String::new() }
    }

    /// One event and the plans that follow, until there is nothing left to do.
    fn event(&mut self, title: &str, event: impl FnOnce(&mut World)) {
        writeln!(self.text, "# {title}").unwrap();
        event(&mut self.world);
        for _ in 0..20 {
            let plan = self.world.plan();
            let done = plan.actions.is_empty() && plan.idle;
            self.render(&plan);
            self.world.write(plan.actions);
            if done {
                break;
            }
        }
        self.text.push('\n');
    }

    fn render(&mut self, plan: &Plan) {
        let state = &self.world.state;
        let name = |id| state.task(id).map_or_else(String::new, |task| task.name());
        if plan.actions.is_empty() {
            let wake =
                plan.wake_at_ms.map(|at_ms| format!(", look again in {} ms", at_ms - self.world.now_ms));
            writeln!(self.text, "nothing to do{}", wake.unwrap_or_default()).unwrap();
            return;
        }
        for action in &plan.actions {
            let line = match &action.kind {
                ActionKind::PutTask(task) => format!(
                    "task {} spec {} on {} at {}: {:?} {}",
                    task.name(),
                    task.spec_version,
                    self.world.hostname(task.node_id.as_ref()),
                    task.addresses.first().map_or("–".into(), |given| given.address.to_string()),
                    task.status.state,
                    task.status.message
                ),
                ActionKind::PutNetwork(network) => format!(
                    "network {}: blocks {}",
                    network.spec.name,
                    network
                        .blocks
                        .iter()
                        .map(|lease| format!("{}={}", self.world.hostname(Some(&lease.node_id)), lease.block))
                        .collect::<Vec<_>>()
                        .join(" ")
                ),
                ActionKind::PutService(service) => {
                    format!("service {}: problem {:?}", service.spec.name, service.problem)
                }
                ActionKind::RemoveTask(id) => format!("forget {}", name(id)),
                ActionKind::RemoveService(id) => {
                    format!("forget service {}", state.service(id).unwrap().spec.name)
                }
                ActionKind::TaskDesired { task_id, desired_state } => {
                    format!("{} is to be {desired_state:?}", name(task_id))
                }
                ActionKind::TaskStatus { task_id, status } => {
                    format!("{} is {:?}: {}", name(task_id), status.state, status.message)
                }
                other => format!("{other:?}"),
            };
            writeln!(self.text, "{}", line.trim_end()).unwrap();
        }
        writeln!(self.text, "--").unwrap();
    }

    fn compare(&self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/planner/plans").join(file);
        if std::env::var("RORQUAL_GOLDEN").as_deref() == Ok("write") {
            std::fs::write(&path, &self.text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            expected == self.text,
            "{file} differs; `RORQUAL_GOLDEN=write cargo test -p rorqual-planner golden` writes it anew. Now:\n{}",
            self.text
        );
    }
}

fn start(world: &mut World) {
    for _ in 0..8 {
        world.agents();
    }
    world.now_ms += 1_000;
}

#[test]
fn a_service_from_creation_to_removal() {
    let mut story = Story::new(3);
    let mut web = None;
    story.event("create web with 3 replicas and a port", |world| {
        let mut spec = spec("web", 3);
        spec.ports = vec![port(0, 80)];
        web = Some(world.create(spec));
    });
    let web = web.unwrap();
    story.event("they run", start);
    story.event("scale to 5", |world| world.scale(&web, 5));
    story.event("they run", start);
    story.event("another image", |world| world.update(&web, |spec| spec.container.image = "better".into()));
    story.event("the first has stopped", |world| {
        world.agents();
    });
    story.event("its replacement runs", |world| (0..8).for_each(|_| world.agents()));
    story.event("and has settled", |world| world.now_ms += 3_000);
    story.event("scale to 2", |world| world.scale(&web, 2));
    story.event("they have stopped", |world| world.agents());
    story.event("remove", |world| world.remove(&web));
    story.event("they have stopped", |world| world.agents());
    story.compare("service.txt");
}

#[test]
fn nodes_that_fail_drain_and_leave() {
    let mut story = Story::new(3);
    let mut web = None;
    story.event("create web with 4 replicas that reserve 3 GiB", |world| {
        let mut spec = spec("web", 4);
        spec.container.reservations = memory(3 << 30);
        web = Some(world.create(spec));
    });
    let web = web.unwrap();
    story.event("they run", start);
    story.event("n1 is silent", |world| {
        let n1 = world.node_named("n1");
        world.set_node(&n1, NodeState::Suspect);
    });
    story.event("n1 is down", |world| {
        let n1 = world.node_named("n1");
        world.set_node(&n1, NodeState::Down);
    });
    story.event("n2 is drained", |world| {
        let n2 = world.node_named("n2");
        world.set_availability(&n2, Availability::Drain);
    });
    story.event("scale to 5", |world| world.scale(&web, 5));
    story.event("n1 is back", |world| {
        let n1 = world.node_named("n1");
        world.set_node(&n1, NodeState::Ready);
    });
    story.event("n1 has stopped what was replaced", start);
    story.event("n3 is removed", |world| {
        let n3 = world.node_named("n3");
        world.remove_node(&n3);
    });
    story.compare("nodes.txt");
}
