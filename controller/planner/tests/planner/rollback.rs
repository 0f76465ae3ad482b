//! What an update leaves behind to go back to.

use rorqual_planner::prepare::{self, Refusal};
use rorqual_proto::model::ServiceMode;

use crate::world::{World, spec};

#[test]
fn a_rollback_brings_the_previous_spec_back_and_a_second_one_the_other() {
    let mut world = World::new(2);
    let mut first = spec("web", 2);
    first.container.image = "docker.io/library/web:1".to_owned();
    let web = world.create(first);
    let refusal = prepare::rollback(&world.state, &web).unwrap_err();
    assert!(matches!(refusal, Refusal::NoPrevious(_)), "{refusal}");
    world.run_until_whole();
    world.update(&web, |spec| spec.container.image = "docker.io/library/web:2".to_owned());
    world.run_until_whole();
    let image = |world: &World| world.service(&web).spec.container.image.clone();
    let version = world.service(&web).spec_version;
    world.rollback(&web);
    assert_eq!(image(&world), "docker.io/library/web:1");
    assert_eq!(world.service(&web).spec_version, version + 1, "a version never comes back");
    world.run_until_whole();
    assert!(world.live_tasks(&web).iter().all(|task| task.container.image.ends_with(":1")));
    world.rollback(&web);
    assert_eq!(image(&world), "docker.io/library/web:2");
}

#[test]
fn what_changes_nothing_is_nothing_to_go_back_from() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.seal(&web, b"other");
    world.update(&web, |_| {});
    assert!(world.service(&web).previous_spec.is_none());
    world.update(&web, |spec| spec.force_update += 1);
    let previous = world.service(&web).previous_spec.clone();
    assert!(previous.is_some());
    world.update(&web, |_| {});
    assert_eq!(world.service(&web).previous_spec, previous);
}

#[test]
fn a_rollback_leaves_a_later_number_of_replicas_as_it_is() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.update(&web, |spec| spec.force_update += 1);
    world.scale(&web, 7);
    world.rollback(&web);
    let service = world.service(&web);
    assert_eq!((service.spec.mode, service.spec.force_update), (ServiceMode::Replicated { replicas: 7 }, 0));
    // One that came with an update goes with it.
    world.update(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 9 });
    world.rollback(&web);
    assert_eq!(world.service(&web).spec.mode, ServiceMode::Replicated { replicas: 7 });
}
