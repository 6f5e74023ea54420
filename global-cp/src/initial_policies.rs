//! The policies that every new mesh begins with: Kuma's, under Kuma's names (`<policy>-<mesh>`). They are ordinary
//! resources: an operator changes or deletes them, and what was deleted does not come back.

use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_circuit_breaker::MeshCircuitBreaker;
use meridian_core::kinds::mesh_retry::MeshRetry;
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::{Key, Kind, Resource, labels};
use meridian_store::{Change, Expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// In `skipCreatingInitialPolicies`: none at all.
const ALL: &str = "*";

/// What is written together with a new mesh. Of a mesh of that name before there is none: they went with it.
pub(crate) fn of_mesh(name: &str, mesh: &Mesh) -> Vec<Change> {
    let skipped = &mesh.skip_creating_initial_policies;
    let is_skipped = |kind: Kind| skipped.iter().any(|it| it == ALL || it == kind.as_str());
    let wanted = policies(name).into_iter().filter(|policy| !is_skipped(policy.key.kind));
    wanted.map(|resource| Change::Put { resource, expect: Expect::Any }).collect()
}

fn policies(mesh: &str) -> Vec<Resource> {
    let all = json!({"kind": "Mesh"});
    let to_all = |default: Value| json!({"targetRef": &all, "to": [{"targetRef": &all, "default": default}]});
    let timeouts_in = json!({"targetRef": &all, "rules": [{"default": {
        "connectionTimeout": "10s", "idleTimeout": "2h0m0s",
        "http": {"requestTimeout": "0s", "streamIdleTimeout": "1h0m0s", "maxStreamDuration": "0s"},
    }}]});
    let timeouts_out = to_all(json!({
        "connectionTimeout": "5s", "idleTimeout": "1h0m0s",
        "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m0s"},
    }));
    let limits = to_all(json!({"connectionLimits": {
        "maxConnections": 1024, "maxPendingRequests": 1024, "maxRequests": 1024, "maxRetries": 3,
    }}));
    let requests = json!({
        "numRetries": 5, "perTryTimeout": "16s", "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"},
    });
    let retries =
        to_all(json!({"tcp": {"maxConnectAttempt": 5}, "http": requests.clone(), "grpc": requests}));
    [
        (MeshTimeout::KIND, "mesh-timeout-all", timeouts_in),
        (MeshTimeout::KIND, "mesh-timeout-to-all", timeouts_out),
        (MeshCircuitBreaker::KIND, "mesh-circuit-breaker-all", limits),
        (MeshRetry::KIND, "mesh-retry-all", retries),
    ]
    .map(|(kind, name, spec)| {
        let key = Key::global(kind, mesh, format!("{name}-{mesh}"));
        let labels = labels::computed(&key, "", &BTreeMap::new());
        Resource { key, labels, spec, status: None }
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_policies_are_valid_and_as_stored() {
        for resource in policies("default") {
            let checked = meridian_core::document::check_resource(&resource);
            assert_eq!(checked.map(|checked| checked.spec), Ok(resource.spec.clone()), "{}", resource.key);
        }
    }

    #[test]
    fn a_mesh_says_which_it_wants() {
        let made = |skipped: &[&str]| {
            let skip_creating_initial_policies = skipped.iter().map(|it| (*it).to_owned()).collect();
            of_mesh("m", &Mesh { skip_creating_initial_policies, ..Mesh::default() }).len()
        };
        assert_eq!((made(&[]), made(&["MeshTimeout"]), made(&["*"])), (4, 2, 0));
    }
}
