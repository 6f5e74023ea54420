use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::validate::{self, is_port};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations, names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Which destinations outside of the mesh the selected Dataplanes may reach directly by name or address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshPassthrough {
    /// Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// Unset: Matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passthrough_mode: Option<PassthroughMode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub append_match: Vec<Match>,
}

text_enum! {
    /// What may leave.
    PassthroughMode, default PassthroughMode::Matched, {
        All = "All",
        Matched = "Matched",
        None = "None",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Match {
    #[serde(rename = "type")]
    pub type_: MatchType,
    /// A name (`*.` before it: every name below it; `*`: every name), an address, or a range of addresses.
    pub value: String,
    /// Unset: every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    pub protocol: Protocol,
}

text_enum! {
    /// What a match's value is.
    MatchType, default MatchType::Other(String::new()), {
        Domain = "Domain",
        Ip = "IP",
        Cidr = "CIDR",
    }
}

text_enum! {
    /// What is spoken to the destination.
    Protocol, default Protocol::Tcp, {
        Tcp = "tcp",
        Tls = "tls",
        Grpc = "grpc",
        Http = "http",
        Http2 = "http2",
        Mysql = "mysql",
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshpassthroughs",
    short: "mp",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: false, rules: false }),
    doc: "Which destinations outside of the mesh the selected Dataplanes may reach by name or address.",
    fields: &[("targetRef", Executed), ("default", Executed)],
    ..KindInfo::new::<MeshPassthrough>()
};

/// Of these, two can't share a port: a proxy could not tell which one a connection speaks.
const HTTP: [Protocol; 3] = [Protocol::Grpc, Protocol::Http, Protocol::Http2];

impl MeshPassthrough {
    pub const KIND: Kind = Kind::new("MeshPassthrough");
}

impl Spec for MeshPassthrough {
    const KIND: Kind = MeshPassthrough::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            target.check("spec.targetRef", &[TargetKind::Mesh, TargetKind::Dataplane], false, out);
        }
        if let Some(PassthroughMode::Other(_)) = &self.default.passthrough_mode {
            out.push(
                "spec.default.passthroughMode",
                validate::one_of("passthroughMode", PassthroughMode::VALUES),
            );
        }
        let (mut by_port, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for (i, matched) in self.default.append_match.iter().enumerate() {
            let path = format!("spec.default.appendMatch[{i}]");
            let mut found = Violations::default();
            matched.check_port(&path, &mut by_port, &mut seen, &mut found);
            matched.check(&path, &mut found);
            out.extend(found);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        out.extend(self.target_ref.as_ref().and_then(TargetRef::name_warning));
        if self.default.passthrough_mode == Some(PassthroughMode::All) {
            out.push(
                "spec.default.passthroughMode: All lets the selected proxies reach every public address"
                    .into(),
            );
        }
        for (i, matched) in self.default.append_match.iter().enumerate() {
            if let Some(warning) = matched.warning() {
                out.push(format!("spec.default.appendMatch[{i}].value: {warning}"));
            }
        }
    }
}

impl Match {
    fn check_port<'a>(
        &'a self,
        path: &str,
        by_port: &mut BTreeMap<u32, &'a Protocol>,
        seen: &mut BTreeSet<(u32, &'a Protocol, &'a str)>,
        out: &mut Violations,
    ) {
        let path = format!("{path}.port");
        let Some(port) = self.port else {
            if self.protocol == Protocol::Mysql {
                out.push(path, "port must be defined for Mysql protocol");
            }
            return;
        };
        if !is_port(port) {
            out.push(path.as_str(), "port must be a valid (1-65535)");
        }
        let other = by_port.get(&port).is_some_and(|protocol| **protocol != self.protocol);
        if other && HTTP.contains(&self.protocol) {
            out.push(
                path.as_str(),
                "using the same port in multiple matches requires the same protocol for the following protocols: [grpc http http2]",
            );
        } else {
            by_port.insert(port, &self.protocol);
        }
        if !seen.insert((port, &self.protocol, &self.value)) {
            // Kuma's spelling.
            let reason = format!("value {} is already defiend for this port and protocol", self.value);
            out.push(path.replace(".port", ".value"), reason);
        }
    }

    fn check(&self, path: &str, out: &mut Violations) {
        if !self.protocol.is_known() {
            out.push(format!("{path}.protocol"), validate::one_of("protocol", Protocol::VALUES));
        }
        let value_path = format!("{path}.value");
        match &self.type_ {
            MatchType::Cidr if self.value.parse::<ipnet::IpNet>().is_err() => {
                out.push(value_path, "provided CIDR has incorrect value");
            }
            MatchType::Ip if self.value.parse::<IpAddr>().is_err() => {
                out.push(value_path, "provided IP has incorrect value");
            }
            MatchType::Cidr | MatchType::Ip => {}
            MatchType::Domain => self.check_domain(path, out),
            MatchType::Other(kind) => out.push(
                format!("{path}.type"),
                format!("provided type {kind} is not supported, one of Domain, IP, or CIDR is supported"),
            ),
        }
    }

    fn check_domain(&self, path: &str, out: &mut Violations) {
        if matches!(self.protocol, Protocol::Tcp | Protocol::Mysql) {
            let reason = format!("protocol {} is not supported for a domain", self.protocol);
            out.push(format!("{path}.protocol"), reason);
        }
        let wildcard = self.value.strip_prefix('*');
        let partial = wildcard.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('.'));
        if partial {
            let reason = "provided DNS has incorrect value, partial wildcard is currently not supported";
            out.push(format!("{path}.value"), reason);
        }
        if wildcard.is_some() && self.port.is_none() && HTTP.contains(&self.protocol) {
            out.push(
                format!("{path}.port"),
                "wildcard domains doesn't work for all ports and layer 7 protocol",
            );
        }
        let name = self.value.strip_prefix("*.").unwrap_or(&self.value);
        if !partial && self.value != "*" && !names::is_hostname(name) {
            out.push(format!("{path}.value"), "provided DNS has incorrect value");
        }
    }

    /// What is easily written and opens more than was meant.
    fn warning(&self) -> Option<&'static str> {
        match &self.type_ {
            MatchType::Domain if self.value == "*" => Some("* lets the selected proxies reach every name"),
            MatchType::Domain if self.value.strip_prefix("*.").is_some_and(|rest| !rest.contains('.')) => {
                Some(
                    "a wildcard below a top-level domain lets the selected proxies reach names that anybody may register",
                )
            }
            MatchType::Cidr if self.value.parse::<ipnet::IpNet>().is_ok_and(|net| net.prefix_len() == 0) => {
                Some("this range is every address, private ones too")
            }
            _ => None,
        }
    }
}
