//! What policies say of a sidecar as a whole, whoever calls and whoever is called: its traces and its metrics.

use super::blame;
use super::kinds::WHOLE;
use crate::compile::Compiled;
use crate::picture::{MeshPicture, subject};
use meridian_core::Kind;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_metric::MeshMetric;
use meridian_core::kinds::mesh_trace::MeshTrace;
use meridian_policy::{Merged, Parsed, Policy, Routes, Section, proxy_conf};
use meridian_proxy_config::Trace;
use meridian_proxy_config::metrics::Metrics;
use serde::de::Error;

/// Whether a policy says something of a sidecar as a whole.
pub(crate) fn selects_whole(policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    let is_here = WHOLE.contains(&policy.key().kind);
    is_here && policy.selects(&Routes::default(), &subject(dataplane), Section::Whole)
}

/// What policies of one kind add up to for a sidecar as a whole.
fn whole(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>, kind: Kind) -> Option<Merged> {
    let subject = subject(dataplane);
    proxy_conf(&mesh.policies.selecting(kind, &Routes::default(), &subject, Section::Whole))
}

/// What a sidecar traces.
pub(crate) fn trace(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>, out: &mut Compiled) -> Option<Trace> {
    let merged = whole(mesh, dataplane, MeshTrace::KIND)?;
    let conf = merged
        .conf()
        .and_then(|conf| super::trace::trace(&conf, &mesh.collectors).map_err(serde_json::Error::custom));
    conf.unwrap_or_else(|error| {
        blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
        None
    })
}

/// Which metrics a sidecar gives, and to whom. Policies that can't be read open no port.
pub(crate) fn metrics(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    out: &mut Compiled,
) -> Option<Metrics> {
    let merged = whole(mesh, dataplane, MeshMetric::KIND)?;
    match merged.conf() {
        Ok(conf) => {
            let networking = dataplane.spec.networking.as_ref()?;
            let (metrics, problems) = super::metric::metrics(&conf, networking, &mesh.collectors);
            for problem in problems.of_policy {
                let error = serde_json::Error::custom(problem);
                blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
            }
            for problem in problems.of_dataplane {
                out.problem(&dataplane.resource.key, format!("MeshMetric: {problem}"));
            }
            metrics
        }
        Err(error) => {
            blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
            None
        }
    }
}
