use super::hostname_generator::{Condition, HostnameGeneratorStatus};
use super::mesh_service::{Address, LabelSelector, Vip};
use crate::registry::Standing::Executed;
use crate::validate::{INVALID_PORT, MUST_NOT_BE_EMPTY, PROTOCOLS, is_port};
use crate::{Context, Flow, Kind, KindInfo, Resource, Spec, Violations, labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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
    /// tcp, http, http2, grpc, kafka. tcp, which is also what is meant where nothing is said, leaves it to the
    /// MeshServices.
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

impl Selector {
    /// Whether a MeshService with these labels is meant. An empty selector, which no check lets pass, means none.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let given = self.mesh_service.match_labels.as_ref().is_some_and(|labels| !labels.is_empty());
        given && self.mesh_service.matches(labels)
    }
}

/// What a control plane finds out about a MeshMultiZoneService: global which MeshServices it means, a zone that and its
/// own address and names for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Status {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mesh_services: Vec<MatchedMeshService>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One of the MeshServices that are meant, by its name at home.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MatchedMeshService {
    pub mesh: String,
    pub name: String,
    /// Empty outside of Kubernetes.
    pub namespace: String,
    pub zone: String,
}

impl From<&Resource> for MatchedMeshService {
    fn from(service: &Resource) -> Self {
        let label = |key: &str| service.labels.get(key);
        Self {
            mesh: service.key.mesh.clone(),
            name: label(labels::DISPLAY_NAME).unwrap_or(&service.key.name).clone(),
            namespace: label(labels::NAMESPACE).cloned().unwrap_or_default(),
            zone: service.key.zone.clone(),
        }
    }
}

impl Status {
    /// Which MeshServices there are for it, with the condition that says whether there are any.
    pub fn matching(mut matched: Vec<MatchedMeshService>) -> Self {
        matched.sort();
        let (status, reason, message) = match matched.len() {
            0 => ("False", "NoMatchesFound", "Selector does not match any MeshService".to_owned()),
            count => ("True", "MatchesFound", format!("Matched {count} MeshService(s)")),
        };
        let condition = Condition::new("MeshServicesMatched", status, reason, message);
        Self { mesh_services: matched, conditions: vec![condition], ..Self::default() }
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshmultizoneservices",
    short: "mzsvc",
    flow: Flow::DOWN,
    short_names: true,
    doc: "MeshServices of several zones under one name.",
    fields: &[("selector", Executed), ("ports", Executed)],
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
    use super::*;
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
        assert_eq!(warnings(&all), Vec::<String>::new());
    }

    #[test]
    fn a_selector_means_services_with_all_of_its_labels_and_an_empty_one_none() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let selector = |wanted: &[(&str, &str)]| Selector {
            mesh_service: LabelSelector { match_labels: Some(labels(wanted)) },
        };
        let service = labels(&[("app", "db"), ("tier", "gold")]);
        assert!(selector(&[("app", "db")]).matches(&service));
        assert!(selector(&[("app", "db"), ("tier", "gold")]).matches(&service));
        assert!(!selector(&[("app", "db"), ("tier", "iron")]).matches(&service));
        assert!(!selector(&[]).matches(&service) && !Selector::default().matches(&service));
    }

    #[test]
    fn the_status_says_whether_anything_is_meant() {
        let condition = |matched| Status::matching(matched).conditions.remove(0);
        assert_eq!(condition(vec![]).reason, "NoMatchesFound");
        let found = condition(vec![MatchedMeshService::default()]);
        assert_eq!((found.status.as_str(), found.message.as_str()), ("True", "Matched 1 MeshService(s)"));
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
