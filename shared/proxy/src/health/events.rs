//! MeshHealthCheck's `eventLogPath`: a line of JSON for each change, with the fields that Envoy's has.
//!
//! Lines wait in the bounded queue of the file's own task, as access logs' do: a disk that is slow costs lines, which are
//! counted, and no check its time.

use crate::{
    policy::health::{Ask, Finding, HealthPlan},
    snapshot::{Cluster, Endpoint},
    telemetry::{LineKey, Sender},
    worker::Worker,
};
use meridian_proxy_config::Host;
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Where one endpoint's changes are written. Started by the first.
#[derive(Default)]
pub(super) struct Events(Option<Arc<Sender<Vec<u8>>>>);

impl Events {
    /// `change`: the state that `finding` brought about, if it is another.
    pub(super) fn tell(
        &mut self,
        worker: &Worker,
        plan: &HealthPlan,
        (cluster, endpoint): (&Cluster, &Endpoint),
        finding: &Finding,
        change: Option<bool>,
    ) {
        let Some(path) = &plan.config.event_log_path else { return };
        let Some((event, about)) = event(plan, finding, change) else { return };
        if self.0.is_none() {
            self.0 = worker.shared.sinks.lines(&LineKey::File(PathBuf::from(path)));
        }
        let Some(sender) = &self.0 else { return };
        let address = match &endpoint.host {
            Host::Ip(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        };
        let asked = match &plan.ask {
            Ask::Tcp { .. } => "TCP",
            Ask::Http { .. } => "HTTP",
            Ask::Grpc { .. } => "GRPC",
        };
        let line = json!({
            "timestamp": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            "health_checker_type": asked,
            "host": {"socket_address": {"address": address, "port_value": endpoint.port}},
            "cluster_name": cluster.service,
            "endpoint": endpoint.name,
            event: about,
        });
        let line = format!("{line}\n").into_bytes();
        let bytes = line.len();
        sender.offer(line, bytes);
    }
}

/// What is to be said of a check, if anything.
fn event(plan: &HealthPlan, finding: &Finding, change: Option<bool>) -> Option<(&'static str, Value)> {
    let failure = match finding {
        Finding::Well => return change.map(|_| ("add_healthy_event", json!({}))),
        Finding::Unwell(why) => json!({"failure_type": "ACTIVE", "reason": why}),
        Finding::Silent(why) => json!({"failure_type": "NETWORK", "reason": why}),
    };
    match change {
        Some(_) => Some(("eject_unhealthy_event", failure)),
        None => plan.log_failures.then_some(("health_check_failure_event", failure)),
    }
}
