//! How policies of one kind add up: lists that grow, lists that are replaced, and destinations of every kind.

use super::*;
use crate::{Destinations, Policy, ResourceRules, proxy_conf, sort};
use meridian_core::kinds::{mesh_access_log, mesh_load_balancing_strategy, mesh_metric, mesh_proxy_patch};
use std::sync::Arc;

/// Two policies of a kind: one for the mesh, and a stronger one for a sort of Dataplanes.
fn two(kind: &str, weak: &str, strong: &str) -> Vec<Arc<Policy>> {
    let policy = |name: &str, target: &str, spec: &str| {
        let yaml = format!(
            "{{type: {kind}, mesh: default, name: {name}, spec: {{targetRef: {{{target}}}, {spec}}}}}"
        );
        Arc::new(Policy::new(Arc::new(resource(&yaml))).unwrap())
    };
    let (weak, strong) =
        (policy("b", "kind: Mesh", weak), policy("a", "kind: Dataplane, labels: {app: web}", strong));
    sort(vec![strong, weak])
}

#[test]
fn modifications_and_profiles_add_up() {
    let patch = |name: &str| {
        format!(
            "default: {{appendModifications: [{{httpFilter: {{operation: Remove, match: {{name: {name}}}}}}}]}}"
        )
    };
    let merged = proxy_conf(&two("MeshProxyPatch", &patch("first"), &patch("second"))).unwrap();
    let conf: mesh_proxy_patch::Conf = merged.conf().unwrap();
    let name = |modification: mesh_proxy_patch::Modification| modification.http_filter?.match_?.name;
    let names: Vec<_> = conf.append_modifications.unwrap().into_iter().filter_map(name).collect();
    assert_eq!(names, ["first", "second"]);

    let weak = "default: {sidecar: {profiles: {appendProfiles: [{name: Basic}], exclude: [{type: Prefix, match: a}]}}, applications: [{port: 80}]}";
    let strong = "default: {sidecar: {profiles: {appendProfiles: [{name: None}], exclude: [{type: Prefix, match: b}]}}, applications: [{port: 81}]}";
    let merged = proxy_conf(&two("MeshMetric", weak, strong)).unwrap();
    let conf: mesh_metric::Conf = merged.conf().unwrap();
    let profiles = conf.sidecar.unwrap().profiles.unwrap();
    let names: Vec<String> =
        profiles.append_profiles.unwrap().iter().map(|profile| profile.name.to_string()).collect();
    assert_eq!(names, ["Basic", "None"]);
    assert_eq!(profiles.exclude.unwrap().len(), 1);
    assert_eq!(conf.applications.unwrap().iter().map(|it| it.port).collect::<Vec<_>>(), [81]);
}

/// The Mesh's conf of a destination, and more for the MeshMultiZoneService that has the label.
#[test]
fn a_mesh_multi_zone_service_is_a_destination() {
    let mesh = Arc::new(resource("{type: Mesh, name: default}"));
    let service = Arc::new(resource(
        "{type: MeshMultiZoneService, mesh: default, name: db, labels: {team: data}, spec: {selector: {meshService: {matchLabels: {app: db}}}, ports: [{port: 5432}, {port: 80, name: admin}]}}",
    ));
    let destinations = Destinations::new([&mesh, &service]);
    let policies = two(
        "MeshLoadBalancingStrategy",
        "to: [{targetRef: {kind: Mesh}, default: {loadBalancer: {type: Random}}}]",
        "to: [{targetRef: {kind: MeshMultiZoneService, labels: {team: data}}, default: {localityAwareness: {disabled: true}}}, {targetRef: {kind: MeshMultiZoneService, name: db, sectionName: admin}, default: {loadBalancer: {type: RoundRobin}}}]",
    );
    let rules = ResourceRules::new(&policies, &destinations);
    let conf = |section: &str| -> mesh_load_balancing_strategy::Conf {
        rules.conf(&service.key, section, None).unwrap().merged.conf().unwrap()
    };
    for (section, balancer) in [("5432", "Random"), ("admin", "RoundRobin")] {
        let conf = conf(section);
        assert_eq!(conf.locality_awareness.unwrap().disabled, Some(true), "{section}");
        assert_eq!(conf.load_balancer.unwrap().type_.as_str(), balancer, "{section}");
    }
}

#[test]
fn a_stronger_list_of_backends_takes_the_place_of_a_weaker_one() {
    let mesh = Arc::new(resource("{type: Mesh, name: default}"));
    let to =
        |backends: &str| format!("to: [{{targetRef: {{kind: Mesh}}, default: {{backends: [{backends}]}}}}]");
    let policies = two("MeshAccessLog", &to("{type: File, file: {path: /dev/stdout}}"), &to(""));
    let rules = ResourceRules::new(&policies, &Destinations::new([&mesh]));
    let conf: mesh_access_log::Conf = rules.of_mesh("default").unwrap().merged.conf().unwrap();
    assert_eq!(conf.backends, Some(Vec::new()));
}
