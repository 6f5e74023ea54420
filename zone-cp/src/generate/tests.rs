use super::*;
use crate::compile::fixture::{dataplane, local, mesh, sidecar, strict};
use crate::picture::Options;
use serde_json::json;

const START: OffsetDateTime = time::macros::datetime!(2026-01-01 0:00 UTC);

fn zone() -> Picture {
    let mut picture = Picture::new("east", Options::default());
    picture.put(mesh(strict())).unwrap();
    picture
}

fn add(picture: &mut Picture, resource: Resource, age: i64) {
    picture.set_created(&resource.key, START + Duration::seconds(age));
    picture.put(resource).unwrap();
}

fn put(outcome: &Outcome) -> Resource {
    match &outcome.action {
        Action::Put(resource) => (**resource).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_comes_with_its_dataplane() {
    let mut picture = zone();
    add(&mut picture, dataplane("east", "web-1", "web", "10.0.0.1", 8080, "http"), 0);
    let made = put(&generate(&picture, "default", "web", None, START));
    assert_eq!(made.key, Key::new(MeshService::KIND, "default", "east", "web"));
    let spec: MeshService = made.parse().unwrap();
    assert_eq!((spec.ports.len(), spec.ports[0].port, spec.ports[0].protocol()), (1, 8080, "http"));
    assert_eq!(spec.state, State::Unavailable, "its proxy has not reported");
    assert!(is_generated(&made));
    // Written, nothing is left to do.
    picture.put(made).unwrap();
    assert_eq!(generate(&picture, "default", "web", None, START).action, Action::Nothing);
}

#[test]
fn of_two_that_contradict_each_other_the_older_wins_and_the_other_is_told() {
    let mut picture = zone();
    add(&mut picture, dataplane("east", "a-young", "web", "10.0.0.1", 8080, "tcp"), 60);
    add(&mut picture, dataplane("east", "z-old", "web", "10.0.0.2", 8080, "http"), 0);
    let outcome = generate(&picture, "default", "web", None, START);
    let spec: MeshService = put(&outcome).parse().unwrap();
    assert_eq!(spec.ports[0].protocol(), "http");
    let told: Vec<&Key> = outcome.conditions.iter().map(|(key, _)| key).collect();
    assert_eq!(told, [&sidecar("east", "a-young")]);
    // Another port is no contradiction.
    add(&mut picture, dataplane("east", "m", "web", "10.0.0.3", 9090, "tcp"), 90);
    let spec: MeshService = put(&generate(&picture, "default", "web", None, START)).parse().unwrap();
    assert_eq!(spec.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [8080, 9090]);
}

#[test]
fn an_unusable_tag_is_a_condition_and_no_service() {
    let mut picture = zone();
    add(&mut picture, dataplane("east", "web-1", "Web_App", "10.0.0.1", 8080, "http"), 0);
    let outcome = generate(&picture, "default", "Web_App", None, START);
    assert_eq!(outcome.action, Action::Nothing);
    assert_eq!(outcome.conditions.len(), 1);
}

#[test]
fn it_goes_an_hour_after_its_last_dataplane() {
    let mut picture = zone();
    add(&mut picture, dataplane("east", "web-1", "web", "10.0.0.1", 8080, "http"), 0);
    picture.put(put(&generate(&picture, "default", "web", None, START))).unwrap();
    picture.remove(&sidecar("east", "web-1"));
    let abandoned = generate(&picture, "default", "web", None, START);
    assert_eq!(abandoned.wake, Some(START + GRACE));
    picture.put(put(&abandoned)).unwrap();
    let almost = generate(&picture, "default", "web", None, START + GRACE - Duration::seconds(1));
    assert_eq!((almost.action, almost.wake), (Action::Nothing, Some(START + GRACE)));
    let over = generate(&picture, "default", "web", None, START + GRACE);
    assert!(matches!(over.action, Action::Delete(key) if key.name == "web"));
    // One that comes back in time keeps it, and the clock starts anew.
    add(&mut picture, dataplane("east", "web-2", "web", "10.0.0.2", 8080, "http"), 0);
    let kept = put(&generate(&picture, "default", "web", None, START + GRACE));
    assert!(!kept.labels.contains_key(labels::DELETION_GRACE_PERIOD_STARTED_AT));
}

#[test]
fn what_a_user_wrote_keeps_its_ports_and_is_never_removed() {
    let mut picture = zone();
    let spec = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": "web"}},
        "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}],
        "state": "Unavailable",
    });
    picture.put(local("east", "MeshService", "default", "web", spec)).unwrap();
    let dataplane = dataplane("east", "web-1", "web", "10.0.0.1", 8080, "http");
    picture.set_facts(&dataplane.key, Some(crate::compile::fixture::healthy(&dataplane)));
    add(&mut picture, dataplane, 0);
    let written = put(&generate(&picture, "default", "web", None, START));
    let spec: MeshService = written.parse().unwrap();
    assert_eq!((spec.ports.len(), spec.ports[0].port), (1, 80));
    assert_eq!((spec.state, spec.identities.len()), (State::Available, 1));
    assert!(!is_generated(&written));
    picture.put(written).unwrap();
    picture.remove(&sidecar("east", "web-1"));
    let outcome = generate(&picture, "default", "web", None, START + GRACE * 2);
    assert!(matches!(outcome.action, Action::Put(_)), "its status says that nobody is behind it");
    assert_eq!(outcome.wake, None);
}
