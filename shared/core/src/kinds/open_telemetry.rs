//! Where OpenTelemetry data goes: the same in MeshAccessLog, MeshTrace and MeshMetric.

use crate::Violations;
use crate::enums::text_enum;
use crate::url::host_and_port;
use crate::validate::{exactly_one, only_one};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A backend that stands in a resource of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BackendRef {
    pub kind: BackendKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

text_enum! {
    /// What a backend's reference names.
    BackendKind, default BackendKind::Other(String::new()), {
        MeshOpenTelemetryBackend = "MeshOpenTelemetryBackend",
    }
}

/// Where data goes, said in one of two ways.
pub(crate) struct Destination<'a> {
    /// `HOST` or `HOST:PORT`
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) backend_ref: Option<&'a BackendRef>,
}

const WAYS: [&str; 2] = ["endpoint", "backendRef"];

impl Destination<'_> {
    /// `path` ends in `openTelemetry`.
    pub(crate) fn check(&self, path: &str, out: &mut Violations) {
        let endpoint = self.endpoint.filter(|endpoint| !endpoint.is_empty());
        match (endpoint, self.backend_ref) {
            (None, None) => out.push(path, exactly_one("openTelemetry", &WAYS)),
            (Some(_), Some(_)) => out.push(path, only_one("openTelemetry", &WAYS)),
            (Some(endpoint), None) if host_and_port(endpoint).is_none() => {
                out.push(format!("{path}.endpoint"), "must be in host:port format, not a URL");
            }
            (Some(_), None) => {}
            (None, Some(backend)) => backend.check(&format!("{path}.backendRef"), out),
        }
    }
}

impl BackendRef {
    fn check(&self, path: &str, out: &mut Violations) {
        if !self.kind.is_known() {
            out.push(format!("{path}.kind"), format!("value '{}' is not supported", self.kind));
        }
        if self.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            out.push(path, exactly_one("backendRef", &["labels"]));
        }
    }
}
