//! Which metrics a sidecar gives, and to whom.
//!
//! A sidecar asks applications on its own host only. An address elsewhere would be a way out of the mesh that no
//! permission and no egress sees, so it is left out and said.

use super::{Collectors, millis};
use crate::compile::port;
use meridian_core::kinds::dataplane::Networking;
use meridian_core::kinds::mesh_metric::{
    Application, Backend, Conf, OpenTelemetry as Collector, ProfileName, Selector, SelectorType, Sidecar,
    TlsMode,
};
use meridian_proxy_config::metrics::{
    ApplicationMetrics, MetricProfile, Metrics, NameMatch, OpenTelemetry, Prometheus, ScrapeTls,
    SidecarMetrics,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU64};

/// Between two messages to a collector: Kuma's.
const REFRESH_MILLIS: u64 = 60_000;
/// However often is asked for: a collector must not be flooded by a unit that was mistaken.
const SHORTEST_REFRESH_MILLIS: u64 = 1_000;
/// Kuma's.
const PATH: &str = "/metrics";

/// What of a policy can't be done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Problems {
    /// For nobody.
    pub(super) of_policy: Vec<String>,
    /// For this Dataplane.
    pub(super) of_dataplane: Vec<String>,
}

/// What a policy means to one sidecar; `None`: nobody takes its metrics.
pub(super) fn metrics(
    conf: &Conf,
    networking: &Networking,
    collectors: &Collectors,
) -> (Option<Metrics>, Problems) {
    let mut problems = Problems::default();
    let backends = conf.backends.iter().flatten();
    for mode in
        backends.clone().filter_map(|backend| backend.prometheus.as_ref()?.tls.as_ref()).map(|tls| &tls.mode)
    {
        if let TlsMode::Other(mode) = mode {
            problems.of_policy.push(format!("tls.mode {mode} is not known here: the port stays closed"));
        }
    }
    let prometheus: Vec<Prometheus> = backends.clone().filter_map(prometheus).collect();
    let mut open_telemetry = BTreeSet::new();
    for backend in backends.filter_map(|backend| backend.open_telemetry.as_ref()) {
        match collector(backend, collectors) {
            Ok(found) => open_telemetry.extend(found),
            Err(reason) => problems.of_policy.push(reason),
        }
    }
    if prometheus.is_empty() && open_telemetry.is_empty() {
        return (None, problems);
    }
    let mut applications = Vec::new();
    for application in conf.applications.iter().flatten() {
        match scraped(application, networking) {
            Ok(application) => applications.push(application),
            Err(reason) => problems.of_dataplane.push(reason),
        }
    }
    let metrics = Metrics {
        address: own_address(networking),
        prometheus,
        open_telemetry: open_telemetry.into_iter().collect(),
        sidecar: conf.sidecar.as_ref().map(sidecar).unwrap_or_default(),
        applications,
    };
    (Some(metrics), problems)
}

/// A name can't be bound: its host knows which of its addresses that is.
fn own_address(networking: &Networking) -> IpAddr {
    networking.address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn prometheus(backend: &Backend) -> Option<Prometheus> {
    let prometheus = backend.prometheus.as_ref()?;
    let path = absolute(&prometheus.path);
    let path = path.split(['?', '#']).next().unwrap_or_default().to_owned();
    let tls = match prometheus.tls.as_ref().map_or(&TlsMode::Disabled, |tls| &tls.mode) {
        TlsMode::Disabled => ScrapeTls::Off,
        TlsMode::ProvidedTls => ScrapeTls::Provided,
        TlsMode::ActiveMtlsBackend => ScrapeTls::Mesh,
        TlsMode::Other(_) => return None,
    };
    Some(Prometheus { port: NonZeroU16::new(port(prometheus.port))?, path, tls })
}

/// # Errors
/// It refers to what is not there.
fn collector(backend: &Collector, collectors: &Collectors) -> Result<Option<OpenTelemetry>, String> {
    let collector = collectors.find(backend.endpoint.as_deref(), backend.backend_ref.as_ref())?;
    let interval = backend.refresh_interval.map_or(REFRESH_MILLIS, millis);
    let interval = NonZeroU64::new(interval.max(SHORTEST_REFRESH_MILLIS));
    Ok(interval.map(|interval_millis| OpenTelemetry { collector, interval_millis }))
}

fn sidecar(sidecar: &Sidecar) -> SidecarMetrics {
    let profiles = sidecar.profiles.clone().unwrap_or_default();
    let profile = profiles.append_profiles.iter().flatten().map(|profile| match profile.name {
        ProfileName::All | ProfileName::Other(_) => MetricProfile::All,
        ProfileName::Basic => MetricProfile::Basic,
        ProfileName::None => MetricProfile::None,
    });
    let names = |selectors: Option<Vec<Selector>>| selectors.into_iter().flatten().filter_map(name).collect();
    SidecarMetrics {
        include_unused: sidecar.include_unused.unwrap_or(false),
        // Each contains the one before: together they are the largest.
        profile: profile.max().unwrap_or_default(),
        exclude: names(profiles.exclude),
        include: names(profiles.include),
    }
}

fn name(selector: Selector) -> Option<NameMatch> {
    match selector.type_ {
        SelectorType::Exact => Some(NameMatch::Exact(selector.match_)),
        SelectorType::Prefix => Some(NameMatch::Prefix(selector.match_)),
        SelectorType::Contains => Some(NameMatch::Contains(selector.match_)),
        SelectorType::Regex => Some(NameMatch::Regex(selector.match_)),
        SelectorType::Other(_) => None,
    }
}

fn scraped(application: &Application, networking: &Networking) -> Result<ApplicationMetrics, String> {
    let port = port(application.port);
    let named = application.name.clone().filter(|name| !name.is_empty());
    let name = named.unwrap_or_else(|| port.to_string());
    let address = match application.address.as_deref().filter(|address| !address.is_empty()) {
        None => own_address(networking),
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(address) => {
            let address = address.parse().ok().filter(|address| is_own(*address, networking));
            address.ok_or_else(|| {
                format!(
                    "application {name} is not asked for metrics: its address is neither loopback nor the Dataplane's"
                )
            })?
        }
    };
    let address = if address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address };
    Ok(ApplicationMetrics {
        name,
        address: SocketAddr::new(address, port),
        path: absolute(&application.path),
    })
}

fn is_own(address: IpAddr, networking: &Networking) -> bool {
    let inbounds = networking.inbound.iter();
    let own = inbounds.flat_map(|inbound| [&inbound.address, &inbound.service_address]);
    let mut own = own.chain([&networking.address]);
    address.is_loopback() || own.any(|text| text.parse() == Ok(address))
}

fn absolute(path: &str) -> String {
    match path {
        "" => PATH.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::fixture::{World, global, sidecar, world};
    use crate::compile::policies::collectors::tests::collectors;
    use serde_json::{Value, json};

    fn told(conf: Value) -> (Value, Problems) {
        let networking =
            json!({"address": "192.0.2.7", "inbound": [{"port": 80, "serviceAddress": "10.9.9.9"}]});
        let networking: Networking = serde_json::from_value(networking).unwrap();
        let collectors = collectors(&[("main", 0, json!({"a": "b"}), json!({"protocol": "http"}))]);
        let conf = serde_json::from_value(conf).unwrap();
        let (metrics, problems) = metrics(&conf, &networking, &collectors);
        (serde_json::to_value(metrics).unwrap(), problems)
    }

    #[test]
    fn without_a_backend_nothing_is_said() {
        let (metrics, problems) = told(json!({"sidecar": {"includeUnused": true}, "backends": []}));
        assert_eq!((metrics, problems.of_policy, problems.of_dataplane), (Value::Null, vec![], vec![]));
        let elsewhere = json!({"type": "OpenTelemetry", "openTelemetry": {
            "backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"a": "c"}}}});
        let missing = "no MeshOpenTelemetryBackend has the labels {a: c}".to_owned();
        assert_eq!(
            told(json!({"backends": [elsewhere]})),
            (Value::Null, Problems { of_policy: vec![missing], ..Problems::default() })
        );
    }

    #[test]
    fn backends_have_kumas_defaults() {
        let (metrics, _) = told(json!({"backends": [
            {"type": "Prometheus", "prometheus": {}},
            {"type": "Prometheus", "prometheus": {"port": 9, "path": "x?y", "tls": {"mode": "Disabled"}}},
            {"type": "Prometheus", "prometheus": {"port": 10, "tls": {"mode": "ProvidedTLS"}}},
            {"type": "Prometheus", "prometheus": {"port": 11, "tls": {"mode": "ActiveMTLSBackend"}}},
            {"type": "OpenTelemetry", "openTelemetry": {"endpoint": "otel.example"}},
            {"type": "OpenTelemetry", "openTelemetry": {"endpoint": "[::1]:99", "refreshInterval": "1ms"}},
            {"type": "OpenTelemetry", "openTelemetry": {"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"a": "b"}}}},
        ]}));
        assert_eq!(
            metrics,
            json!({
                "address": "192.0.2.7",
                "prometheus": [
                    {"port": 5670, "path": "/metrics"}, {"port": 9, "path": "/x"},
                    {"port": 10, "path": "/metrics", "tls": "provided"}, {"port": 11, "path": "/metrics", "tls": "mesh"},
                ],
                "openTelemetry": [
                    {"collector": {"endpoint": "127.0.0.1:4317", "httpPath": ""}, "intervalMillis": 60000},
                    {"collector": {"endpoint": "[::1]:99"}, "intervalMillis": 1000},
                    {"collector": {"endpoint": "otel.example:4317"}, "intervalMillis": 60000},
                ],
            })
        );
    }

    #[test]
    fn profiles_add_up_to_the_largest() {
        let of = |profiles: Value| {
            let sidecar = json!({"profiles": {"appendProfiles": profiles, "exclude": [{"type": "Regex", "match": "a"}]}});
            told(json!({"sidecar": sidecar, "backends": [{"type": "Prometheus", "prometheus": {}}]})).0["sidecar"].clone()
        };
        assert_eq!(of(json!([{"name": "None"}, {"name": "Basic"}]))["profile"], "basic");
        assert_eq!(of(json!([{"name": "None"}, {"name": "All"}]))["profile"], "all");
        assert_eq!(of(json!([{"name": "None"}]))["profile"], "none");
        assert_eq!(of(json!([])), json!({"profile": "all", "exclude": [{"regex": "a"}]}));
    }

    #[test]
    fn only_applications_of_the_host_are_asked() {
        let (metrics, problems) = told(json!({
            "backends": [{"type": "Prometheus", "prometheus": {}}],
            "applications": [
                {"port": 1}, {"name": "a", "port": 2, "address": "127.0.0.1", "path": "m"},
                {"port": 3, "address": "10.9.9.9"}, {"port": 4, "address": "localhost"},
                {"name": "cloud", "port": 80, "address": "169.254.169.254"}, {"port": 5, "address": "db.example"},
            ],
        }));
        let addresses: Vec<&Value> =
            metrics["applications"].as_array().unwrap().iter().map(|it| &it["address"]).collect();
        assert_eq!(addresses, ["192.0.2.7:1", "127.0.0.1:2", "10.9.9.9:3", "127.0.0.1:4"]);
        assert_eq!(metrics["applications"][1], json!({"name": "a", "address": "127.0.0.1:2", "path": "/m"}));
        let problems = problems.of_dataplane;
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("application cloud is not asked"), "{problems:?}");
    }

    #[test]
    fn a_sidecar_is_told_what_its_policies_add_up_to_while_they_are_there() {
        let (east, _) = world();
        let mut world = World::new(east);
        let told = |world: &World, zone: &str, name: &str| {
            world.shown(&sidecar(zone, name)).get("Metrics").map(|all| all["self"].clone())
        };
        assert_eq!(told(&world, "east", "web-1"), None);
        let everybody =
            json!({"default": {"backends": [{"type": "Prometheus", "prometheus": {"port": 1234}}]}});
        let everybody = global("MeshMetric", "default", "everybody", everybody);
        world.put(everybody.clone());
        let web = json!({
            "targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}},
            "default": {
                "applications": [{"port": 8080}, {"port": 80, "address": "192.0.2.99"}],
                "sidecar": {"profiles": {"appendProfiles": [{"name": "Basic"}]}},
            },
        });
        let web = global("MeshMetric", "default", "of-web", web);
        world.put(web.clone());
        let metrics = told(&world, "east", "web-1").unwrap();
        assert_eq!(metrics["prometheus"], json!([{"port": 1234, "path": "/metrics"}]));
        assert_eq!(metrics["sidecar"], json!({"profile": "basic"}));
        assert_eq!(metrics["applications"].as_array().unwrap().len(), 1);
        let problems = world.audiences.problems();
        assert!(
            problems.iter().any(|(key, reason)| key.name == "web-1" && reason.contains("application 80"))
        );
        world.remove(&everybody.key);
        assert_eq!(told(&world, "east", "web-1"), None, "nobody takes them");
        world.put(everybody);
        world.remove(&web.key);
        assert_eq!(told(&world, "east", "web-1").unwrap().get("applications"), None);
    }
}
