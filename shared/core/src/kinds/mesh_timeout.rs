use super::policy::{self, Lists, NOT_BY_CALLER, ONLY_MESH, Rule, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::Executed;
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

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtimeouts",
    short: "mt",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "How long connections and requests may take.",
    fields: &[("targetRef", Executed), ("from", Executed), ("to", Executed), ("rules", Executed)],
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
        policy::check_targets("from", self.from.as_ref(), &ONLY_MESH, out, Conf::check);
        let of_route = policy::top_kind(top) == TargetKind::MeshHttpRoute;
        let kinds: &[TargetKind] = if of_route { &ONLY_MESH } else { &policy::TO_OR_ROUTE };
        policy::check_targets("to", self.to.as_ref(), kinds, out, |conf, path, out| {
            conf.check(path, out);
            if of_route {
                conf.refuse_of_connections(path, NOT_BY_ROUTE, out);
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
        let top = self.target_ref.as_ref();
        if Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref()).inbound() {
            policy::warn_of_top(top, out);
        } else {
            // Routes are about calls that go out.
            out.extend(top.and_then(TargetRef::name_warning));
        }
        for (i, item) in self.to.iter().flatten().enumerate() {
            if item.target_ref.kind == TargetKind::MeshHttpRoute {
                item.default.warn_of_route(i, out);
            }
        }
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            if !rule.is_for_some() {
                continue;
            }
            // That of a stream is kept even so.
            let late = rule.default.of_connections().into_iter().filter(|(name, _)| *name != STREAM);
            for (name, _) in late.filter(|(_, value)| value.is_some()) {
                out.push(format!("spec.rules[{i}].default.{name} has no effect: {TOO_LATE}"));
            }
        }
    }
}

const STREAM: &str = "http.maxStreamDuration";
const TOO_LATE: &str = "it acts before it is known who calls";
const NOT_BY_ROUTE: &str = "can't be specified when top-level TargetRef is referencing MeshHTTPRoute";

impl Conf {
    fn warn_of_route(&self, i: usize, out: &mut Vec<String>) {
        // That of a stream is kept even so.
        let fields = self.of_connections().map(|(field, value)| (field, value.is_some() && field != STREAM));
        policy::warn_of_connections(i, &fields, out);
    }

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

    /// Times that Kuma keeps by connection; they hold before and beyond a single request.
    fn of_connections(&self) -> [(&'static str, Option<PolicyDuration>); 5] {
        let http = self.http.clone().unwrap_or_default();
        [
            ("connectionTimeout", self.connection_timeout),
            ("idleTimeout", self.idle_timeout),
            (STREAM, http.max_stream_duration),
            ("http.maxConnectionDuration", http.max_connection_duration),
            ("http.requestHeadersTimeout", http.request_headers_timeout),
        ]
    }

    fn refuse_of_connections(&self, path: &str, reason: &str, out: &mut Violations) {
        for (name, value) in self.of_connections() {
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
