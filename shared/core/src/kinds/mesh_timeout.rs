use super::policy::{self, Lists, NOT_BY_CALLER, ONLY_MESH, Rule, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{not_negative, positive_duration};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long connections and requests may take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshTimeout {
    /// The proxies that keep the times. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    /// For calls that go out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
    /// For calls that come in, by caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// Until a connection is made; more than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_timeout: Option<PolicyDuration>,
    /// Without a byte on a connection; zero: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<PolicyDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

/// Times of requests; zero switches one off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Http {
    /// Of a request and its response, retries included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<PolicyDuration>,
    /// Without a byte in a request or its response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<PolicyDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<PolicyDuration>,
    /// After which a connection is drained, however busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<PolicyDuration>,
    /// From a request's first byte to the end of its headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_headers_timeout: Option<PolicyDuration>,
}

const NOT_YET: &str = "timeouts come later";

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtimeouts",
    short: "mt",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "How long connections and requests may take.",
    fields: &[
        ("targetRef", Executed),
        ("from", Executed),
        ("from[].default", Warned(NOT_YET)),
        ("to", Executed),
        ("to[].default", Warned(NOT_YET)),
        ("rules", Executed),
        ("rules[].default", Warned(NOT_YET)),
    ],
    ..KindInfo::new::<MeshTimeout>()
};

impl MeshTimeout {
    pub const KIND: Kind = Kind::new("MeshTimeout");
}

impl Spec for MeshTimeout {
    const KIND: Kind = MeshTimeout::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let lists = Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref());
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP_OR_ROUTE, lists.inbound(), out);
        lists.check(out);
        policy::check_targets("from", self.from.as_ref(), &ONLY_MESH, out, |item, path, out| {
            item.default.check(path, out);
        });
        let of_route = policy::top_kind(top) == TargetKind::MeshHttpRoute;
        let kinds: &[TargetKind] = if of_route { &ONLY_MESH } else { &policy::TO_OR_ROUTE };
        policy::check_targets("to", self.to.as_ref(), kinds, out, |item, path, out| {
            item.default.check(path, out);
            if of_route {
                item.default.refuse_of_connections(path, NOT_BY_ROUTE, out);
            }
        });
        policy::check_rules(self.rules.as_ref(), out, |rule, path, out| {
            rule.default.check(path, out);
            if rule.asks_for_caller() {
                rule.default.refuse_of_connections(path, NOT_BY_CALLER, out);
            }
        });
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
    }
}

const NOT_BY_ROUTE: &str = "can't be specified when top-level TargetRef is referencing MeshHTTPRoute";

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            return out.push(path, "at least one timeout should be configured");
        }
        positive_duration(&format!("{path}.connectionTimeout"), self.connection_timeout, out);
        not_negative(&format!("{path}.idleTimeout"), self.idle_timeout, out);
        if let Some(http) = &self.http {
            http.check(&format!("{path}.http"), out);
        }
    }

    /// Times of a connection, which hold before and beyond a single request.
    fn refuse_of_connections(&self, path: &str, reason: &str, out: &mut Violations) {
        let http = self.http.clone().unwrap_or_default();
        let fields = [
            ("connectionTimeout", self.connection_timeout),
            ("idleTimeout", self.idle_timeout),
            ("http.maxStreamDuration", http.max_stream_duration),
            ("http.maxConnectionDuration", http.max_connection_duration),
            ("http.requestHeadersTimeout", http.request_headers_timeout),
        ];
        for (name, value) in fields {
            if value.is_some() {
                out.push(format!("{path}.{name}"), reason);
            }
        }
    }
}

impl Http {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            return out.push(path, "at least one timeout in this section should be configured");
        }
        let fields = [
            ("requestTimeout", self.request_timeout),
            ("streamIdleTimeout", self.stream_idle_timeout),
            ("maxStreamDuration", self.max_stream_duration),
            ("maxConnectionDuration", self.max_connection_duration),
            ("requestHeadersTimeout", self.request_headers_timeout),
        ];
        for (name, value) in fields {
            not_negative(&format!("{path}.{name}"), value, out);
        }
    }
}
