use crate::check::NOT_SUPPORTED;
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::{
    Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations, names, validate,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may call the selected proxies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshTrafficPermission {
    /// The proxies called. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Callers by tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<From>>,
    /// Callers by SPIFFE ID and server name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct From {
    pub target_ref: TargetRef,
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
}

text_enum! {
    /// What happens to a matching caller.
    Action, default Action::Deny, {
        Allow = "Allow",
        Deny = "Deny",
        AllowWithShadowDeny = "AllowWithShadowDeny",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rule {
    pub default: RuleConf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RuleConf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<RuleMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<RuleMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_with_shadow_deny: Option<Vec<RuleMatch>>,
}

/// All conditions given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RuleMatch {
    #[serde(rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeIdMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<SniMatch>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SpiffeIdMatch {
    #[serde(rename = "type")]
    pub type_: SpiffeIdMatchType,
    pub value: String,
}

text_enum! {
    /// How a SPIFFE ID is compared.
    SpiffeIdMatchType, default SpiffeIdMatchType::Other(String::new()), {
        Exact = "Exact",
        Prefix = "Prefix",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SniMatch {
    #[serde(rename = "type")]
    pub type_: SniMatchType,
    pub value: String,
}

text_enum! {
    /// How a server name is compared.
    SniMatchType, default SniMatchType::Other(String::new()), {
        Exact = "Exact",
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtrafficpermissions",
    short: "mtp",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: false, rules: true }),
    doc: "Who may call the selected proxies.",
    fields: &[("targetRef", Executed), ("from", Executed), ("rules", Executed)],
    ..KindInfo::new::<MeshTrafficPermission>()
};

/// What may be called: Kuma's kinds, and MeshExternalService, which is ours.
const TOP: [TargetKind; 6] = [
    TargetKind::Mesh,
    TargetKind::MeshSubset,
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::Dataplane,
    TargetKind::MeshExternalService,
];
const FROM: [TargetKind; 4] =
    [TargetKind::Mesh, TargetKind::MeshSubset, TargetKind::MeshService, TargetKind::MeshServiceSubset];

impl MeshTrafficPermission {
    pub const KIND: Kind = Kind::new("MeshTrafficPermission");
}

impl Spec for MeshTrafficPermission {
    const KIND: Kind = MeshTrafficPermission::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let (from, rules) =
            (self.from.as_deref().unwrap_or_default(), self.rules.as_deref().unwrap_or_default());
        if let Some(target) = &self.target_ref {
            target.check("spec.targetRef", &TOP, !from.is_empty() || !rules.is_empty(), out);
            check_service_ref("spec.targetRef", target, out);
        }
        match (from.is_empty(), rules.is_empty()) {
            (true, true) => out.push("spec", "at least one of 'from' or 'rules' has to be defined"),
            (false, false) => out.push("spec", "field 'from' must be empty when 'rules' is defined"),
            _ => {}
        }
        for (i, rule) in rules.iter().enumerate() {
            rule.default.check(&format!("spec.rules[{i}]"), out);
        }
        for (i, from) in from.iter().enumerate() {
            from.target_ref.check(&format!("spec.from[{i}].targetRef"), &FROM, false, out);
            check_service_ref(&format!("spec.from[{i}].targetRef"), &from.target_ref, out);
            let path = format!("spec.from[{i}].default.action");
            match &from.default.action {
                None => out.push(path, "must be defined"),
                Some(action) if action.as_str().is_empty() => out.push(path, "must be defined"),
                Some(action) if !action.is_known() => {
                    out.push(path, validate::one_of("action", Action::VALUES))
                }
                Some(_) => {}
            }
            if from.target_ref.has_proxy_types() {
                out.push(format!("spec.from[{i}].targetRef.proxyTypes"), NO_PROXY_TYPES);
            }
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        out.extend(self.target_ref.as_ref().and_then(TargetRef::name_warning));
    }
}

const NO_PROXY_TYPES: &str =
    "must not be set in 'from': a caller's certificate does not tell its sort of proxy";

/// A service is known by its name: in a certificate there is nothing else of it. A reference by other means would
/// match nobody, and so a deny would do nothing.
fn check_service_ref(path: &str, target: &TargetRef, out: &mut Violations) {
    if target.kind != TargetKind::MeshService {
        return;
    }
    let others = [
        ("labels", target.has_labels()),
        ("namespace", target.namespace().is_some()),
        ("sectionName", target.section_name().is_some()),
    ];
    for (name, given) in others {
        if given {
            out.push(format!("{path}.{name}"), format!("{NOT_SUPPORTED}: name the service with \"name\""));
        }
    }
}

impl RuleConf {
    fn check(&self, path: &str, out: &mut Violations) {
        let lists = [
            ("allow", &self.allow),
            ("allowWithShadowDeny", &self.allow_with_shadow_deny),
            ("deny", &self.deny),
        ];
        if lists.iter().all(|(_, list)| list.as_ref().is_none_or(Vec::is_empty)) {
            out.push(path, "at least one of 'allow', 'allowWithShadowDeny', 'deny' has to be defined");
        }
        for (name, list) in lists {
            for (i, matched) in list.iter().flatten().enumerate() {
                // Kuma leaves `default` out of these paths.
                matched.check(&format!("{path}.{name}[{i}]"), out);
            }
        }
    }
}

impl RuleMatch {
    pub(crate) fn check(&self, path: &str, out: &mut Violations) {
        if let Some(id) = &self.spiffe_id {
            if id.type_.as_str().is_empty() {
                out.push(format!("{path}.spiffeID.type"), "must be set");
            } else if !id.type_.is_known() {
                out.push(
                    format!("{path}.spiffeID.type"),
                    validate::one_of("type", SpiffeIdMatchType::VALUES),
                );
            }
            if let Some(reason) = invalid_spiffe_id(&id.value) {
                out.push(format!("{path}.spiffeID"), format!("must be a valid Spiffe ID: {reason}"));
            }
        }
        if let Some(sni) = &self.sni {
            if sni.type_.as_str().is_empty() {
                out.push(format!("{path}.sni.type"), "must be set");
            } else if !sni.type_.is_known() {
                out.push(format!("{path}.sni.type"), validate::one_of("type", SniMatchType::VALUES));
            }
            if sni.value.is_empty() {
                out.push(format!("{path}.sni.value"), "must be set");
            } else if !names::is_subdomain(&sni.value) {
                out.push(format!("{path}.sni.value"), names::NOT_KUBERNETES_SUBDOMAIN);
            }
        }
    }
}

/// The SPIFFE ID standard, in the words of Go's library, which Kuma uses.
fn invalid_spiffe_id(id: &str) -> Option<&'static str> {
    let Some(rest) = id.strip_prefix("spiffe://") else {
        return Some(if id.is_empty() { "cannot be empty" } else { "scheme is missing or invalid" });
    };
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let is_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
    let is_path = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if domain.is_empty() {
        return Some("trust domain is missing");
    }
    if !domain.bytes().all(is_domain) {
        return Some(
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        );
    }
    for segment in path?.split('/') {
        match segment {
            "" if path == Some("") || path.is_some_and(|path| path.ends_with('/')) => {
                return Some("path cannot have a trailing slash");
            }
            "" => return Some("path cannot contain empty segments"),
            "." | ".." => return Some("path cannot contain dot segments"),
            segment if !segment.bytes().all(is_path) => {
                return Some(
                    "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
                );
            }
            _ => {}
        }
    }
    None
}
