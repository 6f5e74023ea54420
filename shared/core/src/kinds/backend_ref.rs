use crate::validate::{INVALID_PORT, MUST_BE_DEFINED, is_port};
use crate::{ProxyType, TargetKind, TargetRef, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a route sends traffic: a reference to a service, with its port and its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BackendRef {
    /// MeshService, MeshExternalService, MeshMultiZoneService or MeshServiceSubset.
    pub kind: TargetKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of MeshServiceSubset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// As an alternative to `name`; of several services that have them, the oldest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// A port by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Kuma reserves it; no kind takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Of no kind of service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_types: Vec<ProxyType>,
    /// 1 to 65535; a MeshMultiZoneService's must be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Its share beside those of the others; 0 sends it nothing. Unset: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Why a reference's `namespace` has no effect.
pub(crate) const NO_NAMESPACES: &str = "outside of Kubernetes there are no namespaces";

/// What may be sent to.
const KINDS: [TargetKind; 4] = [
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::MeshExternalService,
    TargetKind::MeshMultiZoneService,
];

impl BackendRef {
    /// Without port and weight.
    pub fn target(&self) -> TargetRef {
        let Self { kind, name, namespace, tags, labels, section_name, mesh, proxy_types, port: _, weight: _ } =
            self.clone();
        TargetRef { kind, name, namespace, tags, labels, section_name, mesh, proxy_types }
    }

    /// The share is stored, so that readers see what counts.
    pub(crate) fn complete(&mut self) {
        self.weight.get_or_insert(1);
    }

    pub(crate) fn check(&self, path: &str, out: &mut Violations) {
        let mut target = self.target();
        if KINDS.contains(&self.kind) && target.name().is_none() && !target.has_labels() {
            out.push(format!("{path}.name"), format!("must be set when kind is {}", self.kind));
            // Said in the words for backends; a reference has others for the same.
            target.name = Some("unnamed".to_owned());
        }
        target.check(path, &KINDS, false, out);
        match self.port {
            None if self.kind == TargetKind::MeshMultiZoneService => {
                out.push(format!("{path}.port"), MUST_BE_DEFINED);
            }
            Some(port) if !is_port(port) => out.push(format!("{path}.port"), INVALID_PORT),
            _ => {}
        }
    }
}

/// Checks a list of them.
pub(crate) fn check_all(path: &str, backends: &[BackendRef], out: &mut Violations) {
    for (i, backend) in backends.iter().enumerate() {
        backend.check(&format!("{path}[{i}]"), out);
    }
}
