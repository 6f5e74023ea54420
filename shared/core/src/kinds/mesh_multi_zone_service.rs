use super::mesh_service::LabelSelector;
use crate::registry::Standing::Warned;
use crate::validate::{INVALID_PORT, MUST_NOT_BE_EMPTY, PROTOCOLS, is_port};
use crate::{Context, Flow, Kind, KindInfo, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// MeshServices of several zones under one name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshMultiZoneService {
    pub selector: Selector,
    /// At least one. A MeshService that lacks a port has no part in it.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Selector {
    /// MeshServices of the mesh with all of these labels; at least one.
    pub mesh_service: LabelSelector,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Port {
    /// Unset: the port as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: u32,
    /// tcp, http, http2, grpc, kafka.
    pub app_protocol: String,
}

impl Default for Port {
    fn default() -> Self {
        Self { name: None, port: 0, app_protocol: "tcp".to_owned() }
    }
}

impl Port {
    pub fn section_name(&self) -> String {
        self.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| self.port.to_string())
    }
}

const NOT_YET: &str = "MeshMultiZoneServices have no name and no address yet; use each zone's MeshService";

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshmultizoneservices",
    short: "mzsvc",
    flow: Flow::DOWN,
    short_names: true,
    doc: "MeshServices of several zones under one name.",
    fields: &[("selector", Warned(NOT_YET)), ("ports", Warned(NOT_YET))],
    ..KindInfo::new::<MeshMultiZoneService>()
};

impl MeshMultiZoneService {
    pub const KIND: Kind = Kind::new("MeshMultiZoneService");
}

impl Spec for MeshMultiZoneService {
    const KIND: Kind = MeshMultiZoneService::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        if self.selector.mesh_service.match_labels.iter().all(|labels| labels.is_empty()) {
            out.push("spec.selector.meshService.matchLabels", MUST_NOT_BE_EMPTY);
        }
        if self.ports.is_empty() {
            out.push("spec.ports", MUST_NOT_BE_EMPTY);
        }
        let (mut ports, mut names) = (BTreeSet::new(), BTreeSet::new());
        for (i, port) in self.ports.iter().enumerate() {
            let path = format!("spec.ports[{i}]");
            port.check(&path, out);
            if !ports.insert(port.port) {
                out.push(format!("{path}.port"), format!("port {} is already defined", port.port));
            } else if !names.insert(port.section_name()) {
                out.push(
                    format!("{path}.name"),
                    format!("name {:?} is already defined", port.section_name()),
                );
            }
        }
    }
}

impl Port {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.name.as_ref().is_some_and(String::is_empty) {
            out.push(format!("{path}.name"), MUST_NOT_BE_EMPTY);
        }
        if !is_port(self.port) {
            out.push(format!("{path}.port"), INVALID_PORT);
        }
        if !PROTOCOLS.contains(&self.app_protocol.as_str()) {
            let protocols = PROTOCOLS.join(", ");
            out.push(format!("{path}.appProtocol"), format!("appProtocol must be one of: {protocols}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn of(spec: &str) -> String {
        format!("{{type: MeshMultiZoneService, name: db, mesh: m, spec: {{{spec}}}}}")
    }

    #[test]
    fn services_of_several_zones() {
        let all = of(
            "selector: {meshService: {matchLabels: {kuma.io/display-name: db}}}, ports: [{port: 5432}, {port: 80, name: admin, appProtocol: http}]",
        );
        right(&all);
        let warnings = warnings(&all);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings.iter().all(|warning| warning.contains("use each zone's MeshService")));
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(
            &of(""),
            &["spec.selector.meshService.matchLabels: must not be empty", "spec.ports: must not be empty"],
        );
        wrong(
            &of(
                "selector: {meshService: {matchLabels: {a: b}}}, ports: [{port: 0, name: ''}, {port: 80, appProtocol: udp}, {port: 80}, {port: 81, name: '80'}]",
            ),
            &[
                "spec.ports[0].name: must not be empty",
                "spec.ports[0].port: port must be a valid (1-65535)",
                "spec.ports[1].appProtocol: appProtocol must be one of: grpc, http, http2, kafka, tcp",
                "spec.ports[2].port: port 80 is already defined",
                "spec.ports[3].name: name \"80\" is already defined",
            ],
        );
    }
}
