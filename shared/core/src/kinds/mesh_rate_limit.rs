use super::http_headers::{self, HeadersToAdd};
use super::policy::{self, Lists, NOT_BY_CALLER, ONLY_MESH, Rule, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{self, MUST_BE_DEFINED, MUST_NOT_BE_DEFINED, positive_count};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much the selected proxies let in, each for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshRateLimit {
    /// The proxies that hold to it. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    /// Of builtin gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
    /// For calls that come in, by caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
}

/// Limits that a proxy holds to by itself, without asking others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Local {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<LocalHttp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<LocalTcp>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LocalHttp {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_rate_limit: Option<OnRateLimit>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LocalTcp {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// New connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_rate: Option<Rate>,
}

/// `num` at once, and as many again in each `interval`, evenly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rate {
    pub num: u32,
    /// More than 50 ms.
    pub interval: PolicyDuration,
}

/// What is answered beyond the rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OnRateLimit {
    /// Unset, or below 400: 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersToAdd>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshratelimits",
    short: "mrl",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "How much the selected proxies let in, each for itself.",
    fields: &[
        ("targetRef", Executed),
        ("from", Executed),
        ("to", Warned(policy::NO_GATEWAYS)),
        ("rules", Executed),
    ],
    ..KindInfo::new::<MeshRateLimit>()
};

impl MeshRateLimit {
    pub const KIND: Kind = Kind::new("MeshRateLimit");
}

impl Spec for MeshRateLimit {
    const KIND: Kind = MeshRateLimit::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let lists = Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref());
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP_OR_ROUTE, lists.inbound(), out);
        lists.check_exclusive(out);
        if policy::includes_gateways(top) && lists.rules {
            out.push("spec.rules", MUST_NOT_BE_DEFINED);
        } else {
            policy::check_rules(self.rules.as_ref(), out, |rule, path, out| {
                rule.default.check(path, out);
                if rule.asks_for_caller() && rule.default.tcp().is_some() {
                    out.push(format!("{path}.local.tcp"), NOT_BY_CALLER);
                }
            });
        }
        policy::check_sides(top, (self.from.as_ref(), &ONLY_MESH), self.to.as_ref(), out, Conf::check);
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            if rule.is_for_some() && rule.default.tcp().is_some() {
                out.push(format!(
                    "spec.rules[{i}].default.local.tcp has no effect at sidecars: a connection is held there to the \
                     rule for every caller, without matches"
                ));
            }
        }
    }
}

impl Conf {
    fn tcp(&self) -> Option<&LocalTcp> {
        self.local.as_ref().and_then(|local| local.tcp.as_ref())
    }

    fn check(&self, path: &str, out: &mut Violations) {
        let path = format!("{path}.local");
        let Some(local) = &self.local else { return out.push(path, MUST_BE_DEFINED) };
        if local.http.is_none() && local.tcp.is_none() {
            out.push(path.clone(), validate::at_least_one(&["tcp", "http"]));
        }
        if let Some(http) = &local.http {
            http.check(&format!("{path}.http"), out);
        }
        if let Some(tcp) = &local.tcp {
            tcp.check(&format!("{path}.tcp"), out);
        }
    }
}

impl LocalHttp {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            let fields = ["disabled", "requestRate", "onRateLimit"];
            return out.push(path, validate::at_least_one(&fields));
        }
        if let Some(rate) = &self.request_rate {
            rate.check(&format!("{path}.requestRate"), out);
        }
        if let Some(answer) = &self.on_rate_limit {
            answer.check(&format!("{path}.onRateLimit"), out);
        }
    }
}

impl LocalTcp {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            return out.push(path, validate::at_least_one(&["disabled", "connectionRate"]));
        }
        if let Some(rate) = &self.connection_rate {
            rate.check(&format!("{path}.connectionRate"), out);
        }
    }
}

impl Rate {
    /// Below, a rate says little: a proxy's time has no such resolution under load (Kuma's bound).
    const SHORTEST: Duration = Duration::from_millis(50);

    fn check(&self, path: &str, out: &mut Violations) {
        positive_count(&format!("{path}.num"), Some(self.num), out);
        if self.interval.get() <= Self::SHORTEST {
            out.push(format!("{path}.interval"), "must be greater than: 50ms");
        }
    }
}

impl OnRateLimit {
    fn check(&self, path: &str, out: &mut Violations) {
        positive_count(&format!("{path}.status"), self.status, out);
        let Some(headers) = &self.headers else { return };
        let path = format!("{path}.headers");
        for (list, headers) in [("set", &headers.set), ("add", &headers.add)] {
            let headers = headers.as_deref().unwrap_or_default();
            // One list at a time: what is set may be added to.
            http_headers::check_modifier(&path, &[(list, headers)], &[], out);
        }
    }
}
