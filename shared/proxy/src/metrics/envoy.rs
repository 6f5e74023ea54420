//! What the proxy counts under the names that Envoy gives it: Kuma's dashboards ask by these.
//!
//! Only numbers that are counted here are given, so some panels stay empty; a zero that nobody counted would be a lie.
//! `docs/metrics.md` says of each name what is counted.

use super::{
    BOUNDS, Counter, Traffic, TrafficCell,
    exposition::{Exposition, Kind, Part, Sample},
};
use crate::snapshot::Snapshot;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// The process as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    pub draining: bool,
    pub uptime: Duration,
    /// To its control plane.
    pub connected: bool,
    /// Until the first certificate ends; `None`: it has none.
    pub certificate: Option<Duration>,
}

/// Name, help, and what is summed.
type Series = (&'static str, &'static str, fn(&Traffic) -> u64);

const CLUSTER: [Series; 10] = [
    ("upstream_rq_total", "Requests, and their repetitions.", |t| requests(t) + t.sum(|c| &c.retries)),
    ("upstream_rq_timeout", "Requests ended by a time limit.", |t| t.sum(|c| &c.timeouts)),
    ("upstream_rq_retry", "Requests sent once more.", |t| t.sum(|c| &c.retries)),
    ("upstream_rq_retry_overflow", "Repetitions that a limit did not allow.", |t| {
        t.sum(|c| &c.retries_over_budget)
    }),
    ("upstream_cx_connect_fail", "Connections that failed.", |t| t.sum(|c| &c.connect_failures)),
    ("upstream_cx_tx_bytes_total", "Bytes sent.", |t| t.sum(|c| &c.bytes_in)),
    ("upstream_cx_rx_bytes_total", "Bytes received.", |t| t.sum(|c| &c.bytes_out)),
    ("ssl_connection_error", "TLS sessions that failed.", |t| t.sum(|c| &c.tls_failures)),
    ("outlier_detection_ejections_enforced_total", "Endpoints left out, each time.", |t| {
        t.sum(|c| &c.ejections)
    }),
    ("upstream_cx_total", "Connections opened.", opened),
];

fn opened(traffic: &Traffic) -> u64 {
    traffic.sum(|cell| &cell.connections_opened)
}

fn requests(traffic: &Traffic) -> u64 {
    (0..6).map(|class| of_class(traffic, class)).sum()
}

fn of_class(traffic: &Traffic, class: usize) -> u64 {
    traffic.cells.iter().filter_map(|cell| cell.requests.get(class)).map(Counter::value).sum()
}

/// All of it, unused series included.
pub fn exposition(traffic: &[Arc<Traffic>], snapshot: &Snapshot, server: &Server) -> Exposition {
    let mut out = Exposition::default();
    self::server(server, snapshot, &mut out);
    let mut members = members(snapshot);
    for series in traffic {
        let Some(name) = cluster_name(series, snapshot) else { continue };
        cluster(series, &name, counts_connections(series, snapshot), &mut out);
        downstream(series, &name, &mut out);
        if let Some(endpoints) = members.remove(name.as_str()).filter(|_| series.direction == "outbound") {
            let sample = Sample::new(&[("envoy_cluster_name", &name)], endpoints as f64);
            let help = "Endpoints, whatever their health.";
            out.push("envoy_cluster_membership_total", Kind::Gauge, help, sample);
        }
    }
    out
}

fn server(server: &Server, snapshot: &Snapshot, out: &mut Exposition) {
    let mut gauge = |name: &str, help: &str, value: f64| {
        out.push(name, Kind::Gauge, help, Sample::new(&[], value));
    };
    let flag = |value: bool| f64::from(u8::from(value));
    gauge("envoy_server_live", "1 while it takes new connections.", flag(!server.draining));
    gauge("envoy_server_state", "0: live; 1: draining.", flag(server.draining));
    gauge("envoy_server_uptime", "Seconds since the start.", server.uptime.as_secs() as f64);
    gauge("envoy_control_plane_connected_state", "1 while connected.", flag(server.connected));
    let clusters = snapshot.clusters.len() as f64;
    gauge("envoy_cluster_manager_active_clusters", "Destinations.", clusters);
    if let Some(left) = server.certificate {
        let days = (left.as_secs() / (24 * 60 * 60)) as f64;
        gauge("envoy_server_days_until_first_cert_expiring", "Whole days.", days);
    }
}

/// `None` for what Envoy has no cluster for, or what is counted once more where it leaves the host.
fn cluster_name(traffic: &Traffic, snapshot: &Snapshot) -> Option<String> {
    match traffic.direction {
        "outbound" | "external" => Some(traffic.name.clone()),
        "inbound" => {
            // Inbounds of one service share a series: its name has all of their ports.
            let own = snapshot.inbounds.values().filter(|inbound| inbound.config.service == traffic.name);
            let ports: BTreeSet<u16> = own.map(|inbound| inbound.config.application.port()).collect();
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            (!ports.is_empty()).then(|| format!("localhost_{}", ports.join("_")))
        }
        _ => None,
    }
}

/// Connections to applications that speak HTTP are not counted.
fn counts_connections(traffic: &Traffic, snapshot: &Snapshot) -> bool {
    let mut own = snapshot.inbounds.values().filter(|inbound| inbound.config.service == traffic.name);
    traffic.direction != "inbound" || !own.any(|inbound| inbound.config.protocol.is_http())
}

/// Endpoints by service, each once.
fn members(snapshot: &Snapshot) -> BTreeMap<&str, usize> {
    let mut members: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    for (key, cluster) in &snapshot.clusters {
        if key.starts_with("destination/") {
            let endpoints = cluster.tiers.iter().flatten();
            let endpoints = endpoints.map(|it| (&it.name, &it.host, it.port, it.replica));
            members.entry(&cluster.service).or_default().extend(endpoints);
        }
    }
    members.into_iter().map(|(service, endpoints)| (service, endpoints.len())).collect()
}

fn cluster(traffic: &Traffic, name: &str, connections: bool, out: &mut Exposition) {
    let labels = [("envoy_cluster_name", name)];
    for (series, help, read) in CLUSTER {
        if connections || series != "upstream_cx_total" {
            let sample = Sample::new(&labels, read(traffic) as f64);
            out.push(&format!("envoy_cluster_{series}"), Kind::Counter, help, sample);
        }
    }
    let total = opened(traffic);
    if connections && total > 0 {
        let open = total.saturating_sub(traffic.sum(|cell| &cell.connections_closed));
        let sample = Sample::new(&labels, open as f64);
        out.push("envoy_cluster_upstream_cx_active", Kind::Gauge, "Open connections.", sample);
    }
    for series in ["envoy_cluster_upstream_rq_xx", "envoy_cluster_external_upstream_rq_xx"] {
        classes(traffic, series, labels, out);
    }
    latency(traffic, name, out);
}

fn downstream(traffic: &Traffic, name: &str, out: &mut Exposition) {
    let labels = [("envoy_http_conn_manager_prefix", name)];
    let sample = Sample::new(&labels, requests(traffic) as f64);
    out.push("envoy_http_downstream_rq_total", Kind::Counter, "Requests.", sample);
    classes(traffic, "envoy_http_downstream_rq_xx", labels, out);
}

fn classes(traffic: &Traffic, series: &str, [label]: [(&str, &str); 1], out: &mut Exposition) {
    for class in 1..6 {
        let name = class.to_string();
        let labels = [label, ("envoy_response_code_class", name.as_str())];
        let sample = Sample::new(&labels, of_class(traffic, class) as f64);
        out.push(series, Kind::Counter, "Answers by class of status.", sample);
    }
}

/// In milliseconds, as Envoy has it.
fn latency(traffic: &Traffic, name: &str, out: &mut Exposition) {
    const SERIES: &str = "envoy_cluster_upstream_rq_time";
    let count = |index: usize| -> u64 {
        let cells = traffic.cells.iter();
        cells.filter_map(|cell: &TrafficCell| cell.latency.buckets.get(index)).map(Counter::value).sum()
    };
    let total: u64 = (0..=BOUNDS.len()).map(count).sum();
    if total == 0 {
        return;
    }
    let mut push = |part: Part, le: Option<&str>, value: f64| {
        let mut sample = Sample::new(&[("envoy_cluster_name", name)], value);
        sample.labels.extend(le.map(|le| ("le".to_owned(), le.to_owned())));
        sample.part = part;
        out.push(SERIES, Kind::Histogram, "Milliseconds from a request's head to its answer's.", sample);
    };
    let mut below = 0;
    for (index, bound) in BOUNDS.iter().enumerate() {
        below += count(index);
        push(Part::Bucket, Some(&(*bound as f64 / 1e3).to_string()), below as f64);
    }
    push(Part::Bucket, Some("+Inf"), total as f64);
    push(Part::Sum, None, traffic.sum(|cell| &cell.latency.sum_micros) as f64 / 1e3);
    push(Part::Count, None, total as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const SERVER: Server = Server {
        draining: false,
        uptime: Duration::from_millis(90_500),
        connected: true,
        certificate: Some(Duration::from_secs(90_000)),
    };

    #[test]
    fn what_is_counted_has_envoys_names() {
        let metrics = Metrics::new(2);
        let backend = metrics.traffic("outbound", "backend");
        backend.cell(0).request(200, Duration::from_micros(300));
        backend.cell(1).request(503, Duration::from_millis(3));
        backend.cell(1).retries.inc();
        backend.cell(0).connections_opened.add(3);
        backend.cell(1).connections_closed.inc();
        backend.cell(0).bytes_in.add(10);
        // Counted once more, as `external`.
        metrics.traffic("egress", "entry").cell(0).request(200, Duration::ZERO);
        let page = exposition(&metrics.all(), &Snapshot::default(), &SERVER).text();
        for line in [
            "envoy_server_live 1",
            "envoy_server_uptime 90",
            "envoy_server_days_until_first_cert_expiring 1",
            "envoy_control_plane_connected_state 1",
            r#"envoy_cluster_upstream_rq_total{envoy_cluster_name="backend"} 3"#,
            r#"envoy_cluster_upstream_rq_xx{envoy_cluster_name="backend",envoy_response_code_class="2"} 1"#,
            r#"envoy_cluster_external_upstream_rq_xx{envoy_cluster_name="backend",envoy_response_code_class="5"} 1"#,
            r#"envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="backend",le="0.5"} 1"#,
            r#"envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="backend",le="+Inf"} 2"#,
            r#"envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="backend"} 3.3"#,
            r#"envoy_cluster_upstream_cx_active{envoy_cluster_name="backend"} 2"#,
            r#"envoy_cluster_upstream_cx_tx_bytes_total{envoy_cluster_name="backend"} 10"#,
            r#"envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="backend"} 2"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(!page.contains("entry"), "{page}");
    }

    /// `docs/metrics.md` names each of them, and no other.
    #[test]
    fn the_page_has_all_of_them() {
        let metrics = Metrics::new(1);
        let cell = metrics.traffic("outbound", "backend");
        cell.cell(0).request(200, Duration::ZERO);
        cell.cell(0).connections_opened.inc();
        let mut named: BTreeSet<String> =
            exposition(&metrics.all(), &Snapshot::default(), &SERVER).families.into_keys().collect();
        // Of destinations in a configuration.
        named.insert("envoy_cluster_membership_total".to_owned());
        let page = include_str!("../../../../docs/metrics.md");
        let told: BTreeSet<String> =
            page.split('`').filter(|word| word.starts_with("envoy_")).map(str::to_owned).collect();
        assert_eq!(told, named);
    }
}
