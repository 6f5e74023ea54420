//! Collectors in resources of their own, which policies refer to by labels.

use crate::compile::port;
use meridian_core::kinds::mesh_access_log::MeshAccessLog;
use meridian_core::kinds::mesh_metric::MeshMetric;
use meridian_core::kinds::mesh_open_telemetry_backend::MeshOpenTelemetryBackend;
use meridian_core::kinds::mesh_trace::MeshTrace;
use meridian_core::kinds::open_telemetry::BackendRef;
use meridian_core::{Key, ParseError, Resource};
use meridian_policy::{Parsed, Policy};
use meridian_proxy_config::Collector;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use time::OffsetDateTime;

/// Of OTLP over gRPC, where an endpoint names none.
const OTLP_PORT: u16 = 4317;

/// The MeshOpenTelemetryBackends of a mesh, the one that was there first before the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collectors(BTreeMap<(Option<OffsetDateTime>, Key), Arc<Parsed<MeshOpenTelemetryBackend>>>);

impl Collectors {
    pub(crate) fn put(
        &mut self,
        created: Option<OffsetDateTime>,
        resource: Resource,
    ) -> Result<(), ParseError> {
        let parsed = Arc::new(Parsed::new(resource)?);
        self.remove(&parsed.resource.key);
        self.0.insert((created, parsed.resource.key.clone()), parsed);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.0.retain(|(_, there), _| there != key);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a policy sends: to the endpoint that it names, or to what it refers to.
    ///
    /// # Errors
    /// It refers to nothing that is there.
    pub(super) fn find(
        &self,
        endpoint: Option<&str>,
        backend_ref: Option<&BackendRef>,
    ) -> Result<Collector, String> {
        if let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) {
            return Ok(Collector { endpoint: otlp(endpoint), http_path: None });
        }
        let wanted = backend_ref.and_then(|backend| backend.labels.as_ref()).filter(|it| !it.is_empty());
        let wanted = wanted.ok_or("neither endpoint nor backendRef say where data goes")?;
        let has = |it: &&Arc<Parsed<MeshOpenTelemetryBackend>>| {
            wanted.iter().all(|(name, value)| it.resource.labels.get(name) == Some(value))
        };
        match self.0.values().find(has) {
            Some(found) => Ok(collector(&found.spec)),
            None => {
                let labels: Vec<_> = wanted.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                Err(format!("no MeshOpenTelemetryBackend has the labels {{{}}}", labels.join(", ")))
            }
        }
    }
}

fn collector(backend: &MeshOpenTelemetryBackend) -> Collector {
    let (address, port) = (backend.address(), port(backend.port()));
    let endpoint = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    };
    Collector { endpoint, http_path: backend.http_path().map(str::to_owned) }
}

/// An endpoint with its port.
fn otlp(endpoint: &str) -> String {
    let has_port = endpoint.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { endpoint.to_owned() } else { format!("{endpoint}:{OTLP_PORT}") }
}

/// Whether a change of collectors may change what a policy means.
pub(crate) fn refers_to_collectors(policy: &Policy) -> bool {
    fn refers(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.iter().any(|(name, value)| name == "backendRef" || refers(value)),
            Value::Array(items) => items.iter().any(refers),
            _ => false,
        }
    }
    [MeshAccessLog::KIND, MeshMetric::KIND, MeshTrace::KIND].contains(&policy.key().kind)
        && refers(&policy.resource.spec)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compile::fixture::{World, global, sidecar, world};
    use serde_json::json;

    /// With these labels, created so many seconds after the first.
    pub(in super::super) fn collectors(all: &[(&str, i64, Value, Value)]) -> Collectors {
        let mut collectors = Collectors::default();
        for (name, age, labels, spec) in all {
            let key = Key::new(MeshOpenTelemetryBackend::KIND, "default", "", *name);
            let labels = serde_json::from_value(labels.clone()).unwrap();
            let resource = Resource { key, labels, spec: spec.clone(), status: None };
            let created = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(*age);
            collectors.put(Some(created), resource).unwrap();
        }
        collectors
    }

    fn reference(labels: Value) -> BackendRef {
        serde_json::from_value(json!({"kind": "MeshOpenTelemetryBackend", "labels": labels})).unwrap()
    }

    #[test]
    fn the_oldest_with_all_labels_is_meant() {
        let both = json!({"team": "a", "stage": "production"});
        let all = collectors(&[
            ("a", 3, both.clone(), json!({"endpoint": {"address": "young.example"}})),
            ("b", 2, both.clone(), json!({"endpoint": {"address": "fd00::1", "port": 1}})),
            ("c", 1, json!({"team": "a"}), json!({"endpoint": {"path": "/base/"}, "protocol": "http"})),
        ]);
        let find = |labels: Value| all.find(None, Some(&reference(labels)));
        let grpc = |endpoint: &str| Collector { endpoint: endpoint.to_owned(), http_path: None };
        assert_eq!(find(both.clone()), Ok(grpc("[fd00::1]:1")));
        let http = Collector { endpoint: "127.0.0.1:4317".to_owned(), http_path: Some("/base".to_owned()) };
        assert_eq!(find(json!({"team": "a"})), Ok(http));
        let missing = find(json!({"team": "b", "stage": "x"})).unwrap_err();
        assert_eq!(missing, "no MeshOpenTelemetryBackend has the labels {stage: x, team: b}");
        assert!(find(json!({})).is_err(), "no labels are no reference");
        assert_eq!(all.find(Some("otel"), None), Ok(grpc("otel:4317")));
        assert_eq!(all.find(Some("[::1]:9"), None), Ok(grpc("[::1]:9")));
    }

    #[test]
    fn sidecars_are_told_of_the_collector_that_is_there() {
        let (east, _) = world();
        let mut world = World::new(east);
        let backend = json!({"type": "OpenTelemetry", "openTelemetry": {
            "backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"kuma.io/display-name": "main"}}}});
        let conf = json!({"backends": [backend]});
        let whole = json!({"targetRef": {"kind": "Mesh"}, "default": conf.clone()});
        for kind in ["MeshTrace", "MeshMetric"] {
            world.put(global(kind, "default", "a-all", whole.clone()));
        }
        let calls = json!([{"targetRef": {"kind": "Mesh"}, "default": conf}]);
        let logs = json!({"targetRef": {"kind": "Mesh"}, "from": calls.clone()});
        world.put(global("MeshAccessLog", "default", "a-in", logs));
        let logs = json!({"targetRef": {"kind": "Mesh"}, "to": calls});
        world.put(global("MeshAccessLog", "default", "a-out", logs));
        let told = |world: &World| {
            let all = world.shown(&sidecar("east", "web-1"));
            let text = serde_json::to_string(&all).unwrap();
            ["Trace", "Metrics", "Inbound", "Policies"].map(|kind| {
                let of_kind =
                    all.get(kind).map(|all| serde_json::to_string(all).unwrap()).unwrap_or_default();
                (of_kind.contains("otel.example:4317"), text.contains("other.example:1"))
            })
        };
        assert_eq!(told(&world), [(false, false); 4]);
        let missing = "no MeshOpenTelemetryBackend has the labels {kuma.io/display-name: main}";
        let said = |world: &World| -> Vec<String> {
            let problems = world.audiences.problems();
            let missed = problems.iter().filter(|(_, reason)| reason.contains(missing));
            missed.map(|(key, _)| key.name.clone()).collect()
        };
        let all = said(&world);
        assert_eq!(all, ["a-in", "a-out", "a-all", "a-all"], "of each kind its policy");
        let main = |address: &str, port: u32| {
            let spec = json!({"endpoint": {"address": address, "port": port}});
            let mut resource = global("MeshOpenTelemetryBackend", "default", "main", spec);
            resource.labels.insert("kuma.io/display-name".to_owned(), "main".to_owned());
            resource
        };
        world.put(main("otel.example", 4317));
        assert_eq!(told(&world), [(true, false); 4]);
        assert_eq!(said(&world), [""; 0]);
        world.put(main("other.example", 1));
        assert_eq!(told(&world), [(false, true); 4]);
        world.remove(&main("other.example", 1).key);
        assert_eq!(told(&world), [(false, false); 4]);
    }
}
