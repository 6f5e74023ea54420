//! Port 5680: whether the process is there, whether it serves, and numbers.

use crate::audiences::Counters;
use crate::link::Link;
use crate::reports::Reports;
use arc_swap::ArcSwap;
use axum::Router;
use axum::routing::get;
use http::StatusCode;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

/// What the numbers are read from.
#[derive(Clone)]
pub(crate) struct Diagnostics {
    pub(crate) counters: Arc<ArcSwap<Counters>>,
    pub(crate) reports: Reports,
    pub(crate) link: Option<Link>,
}

impl Diagnostics {
    /// The routes: served from the moment on which the zone serves, so that answering is being ready.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthy", get(|| async { StatusCode::OK }))
            .route("/ready", get(|| async { StatusCode::OK }))
            .route("/metrics", get(move || async move { self.metrics() }))
    }

    fn metrics(&self) -> String {
        let Counters { units, views, memberships } = **self.counters.load();
        let overviews = self.reports.overviews();
        let online = overviews.iter().filter(|proxy| proxy.online).count();
        let behind = overviews.iter().map(|proxy| proxy.behind_millis).max().unwrap_or(0);
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        metric("meridian_zone_units_compiled_total", "counter", "Parts of configuration compiled.", units);
        metric(
            "meridian_zone_views_changed_total",
            "counter",
            "Times that a proxy was given something new.",
            views,
        );
        metric(
            "meridian_zone_memberships_total",
            "counter",
            "Times that a proxy's parts were worked out.",
            memberships,
        );
        metric("meridian_zone_proxies", "gauge", "Registered proxies.", count(overviews.len()));
        metric("meridian_zone_proxies_online", "gauge", "Proxies with a live stream.", count(online));
        metric(
            "meridian_zone_proxies_behind_milliseconds",
            "gauge",
            "How far the slowest proxy is behind.",
            behind,
        );
        metric(
            "meridian_zone_rejects",
            "gauge",
            "Resources that can't be acted on.",
            count(self.reports.all_rejects().len()),
        );
        if let Some(link) = &self.link {
            let state = link.pull_peer().state();
            metric(
                "meridian_zone_global_connected",
                "gauge",
                "Whether global is connected.",
                u64::from(state.connected),
            );
            let behind = state.behind_millis(Instant::now()).unwrap_or(u64::MAX);
            metric(
                "meridian_zone_global_behind_milliseconds",
                "gauge",
                "How far the zone is behind global.",
                behind,
            );
            let counters = state.counters;
            metric(
                "meridian_zone_global_resources_total",
                "counter",
                "Resources received.",
                counters.resources,
            );
            metric(
                "meridian_zone_global_received_bytes_total",
                "counter",
                "Bytes of resources received.",
                counters.bytes,
            );
        }
        out
    }
}
