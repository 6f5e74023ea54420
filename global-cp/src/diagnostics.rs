//! Port 5680: whether the process serves, and numbers for Prometheus. Nothing here is secret, and nothing here reads the
//! database.

use crate::state::Global;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::StatusCode;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub(crate) fn router(global: Arc<Global>) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/healthy", get(|| async { (StatusCode::OK, "healthy\n") }))
        .route("/metrics", get(metrics))
        .with_state(global)
}

async fn ready(State(global): State<Arc<Global>>) -> (StatusCode, &'static str) {
    if global.store.feed().borrow().known {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the store is out of reach\n")
    }
}

/// One value of one metric.
struct Sample {
    name: &'static str,
    zone: Option<String>,
    direction: Option<&'static str>,
    value: u64,
}

async fn metrics(State(global): State<Arc<Global>>) -> String {
    let mut samples = vec![
        own("meridian_store_revision", global.store.feed().borrow().revision.0),
        own("meridian_store_known", u64::from(global.store.feed().borrow().known)),
        own("meridian_world_revision", global.world().revision().0),
    ];
    for link in global.zones.all() {
        let connected = u64::from(link.shown().connected);
        samples.push(of(&link.zone, None, "meridian_zone_connected", connected));
        let taken = link.taken.load(Ordering::Relaxed);
        samples.push(of(&link.zone, None, "meridian_zone_resources_total", taken));
        for (direction, peer) in [("down", &link.down), ("up", &link.up)] {
            let state = peer.state();
            let mut add = |name, value| samples.push(of(&link.zone, Some(direction), name, value));
            add("meridian_sync_behind_milliseconds", state.behind_millis(Instant::now()).unwrap_or(0));
            add("meridian_sync_rejected", state.rejected.len() as u64);
            add("meridian_sync_streams_total", state.counters.streams);
            add("meridian_sync_resources_total", state.counters.resources);
            add("meridian_sync_removals_total", state.counters.removals);
            add("meridian_sync_bytes_total", state.counters.bytes);
        }
    }
    render(samples)
}

fn own(name: &'static str, value: u64) -> Sample {
    Sample { name, zone: None, direction: None, value }
}

fn of(zone: &str, direction: Option<&'static str>, name: &'static str, value: u64) -> Sample {
    Sample { name, zone: Some(zone.to_owned()), direction, value }
}

/// The text format: the samples of one metric stand together under its type.
fn render(mut samples: Vec<Sample>) -> String {
    samples.sort_by_key(|sample| sample.name);
    let mut out = String::new();
    let mut last = "";
    for Sample { name, zone, direction, value } in samples {
        if name != last {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            let _ = writeln!(out, "# TYPE {name} {kind}");
            last = name;
        }
        // Zone names are DNS labels: nothing to escape.
        let labels: Vec<String> = zone
            .map(|zone| format!("zone=\"{zone}\""))
            .into_iter()
            .chain(direction.map(|direction| format!("direction=\"{direction}\"")))
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(out, "{name}{labels} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_stand_together() {
        let text = render(vec![
            of("west", Some("up"), "meridian_sync_bytes_total", 2),
            own("meridian_store_known", 1),
            of("east", Some("up"), "meridian_sync_bytes_total", 3),
        ]);
        insta::assert_snapshot!(text, @r#"
        # TYPE meridian_store_known gauge
        meridian_store_known 1
        # TYPE meridian_sync_bytes_total counter
        meridian_sync_bytes_total{zone="west",direction="up"} 2
        meridian_sync_bytes_total{zone="east",direction="up"} 3
        "#);
    }
}
