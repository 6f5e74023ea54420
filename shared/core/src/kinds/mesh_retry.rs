use super::http_headers::{HeaderMatch, check_header_name, check_matches};
use super::policy::{self, ONLY_MESH, Targeted};
use crate::duration::PolicyDuration;
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::validate::{
    MUST_BE_DEFINED, MUST_NOT_BE_EMPTY, not_negative, one_of, positive_count, positive_duration,
};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is tried once more when it fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshRetry {
    /// The proxies that try again. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that go out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
}

/// By the destination's protocol, one of them holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tcp {
    /// How often a connection is tried in all; more than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connect_attempt: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Http {
    /// Repetitions of one request. Unset: 1; zero: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// For each attempt; zero: no limit but the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<PolicyDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// What makes an attempt a failed one, methods that may be repeated, and statuses. Unset: GatewayError,
    /// ConnectFailure and RefusedStream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub retry_on: Option<Vec<HttpRetryOn>>,
    /// An answer that matches one of them is a failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_response_headers: Option<Vec<HeaderMatch>>,
    /// Only requests that match one of them are repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_request_headers: Option<Vec<HeaderMatch>>,
    /// Where a repetition does not go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection: Option<Vec<Predicate>>,
    /// How many further endpoints are looked at for one that `hostSelection` lets through. Unset or zero: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection_max_attempts: Option<i32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Grpc {
    /// Repetitions of one call. Unset: 1; zero: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// For each attempt; zero: no limit but the call's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<PolicyDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// gRPC statuses. Unset: Canceled, ResourceExhausted, Unavailable, and what comes of lost connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<GrpcRetryOn>>,
}

/// Waits between attempts, which double from one to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BackOff {
    /// Unset: 25 ms; more than zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<PolicyDuration>,
    /// Unset: ten times the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<PolicyDuration>,
}

/// An answer that says when to come again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RateLimitedBackOff {
    /// The first that can be read counts; must be defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_headers: Option<Vec<ResetHeader>>,
    /// A longer wait is not believed. Unset: 300 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<PolicyDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ResetHeader {
    /// In lower case.
    pub name: String,
    pub format: ResetFormat,
}

/// A reason to leave an endpoint out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Predicate {
    pub predicate: PredicateType,
    /// Of OmitHostsWithTags: an endpoint that has all of them is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Of OmitPreviousPriorities: after each so many attempts. Unset: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_frequency: Option<i32>,
}

text_enum! {
    /// What makes an attempt a failed one; or a method: if there are any, only those are repeated.
    HttpRetryOn, default HttpRetryOn::Other(String::new()), {
        ServerError = "5xx",
        GatewayError = "GatewayError",
        Reset = "Reset",
        Retriable4xx = "Retriable4xx",
        ConnectFailure = "ConnectFailure",
        EnvoyRatelimited = "EnvoyRatelimited",
        RefusedStream = "RefusedStream",
        Http3PostConnectFailure = "Http3PostConnectFailure",
        MethodConnect = "HttpMethodConnect",
        MethodDelete = "HttpMethodDelete",
        MethodGet = "HttpMethodGet",
        MethodHead = "HttpMethodHead",
        MethodOptions = "HttpMethodOptions",
        MethodPatch = "HttpMethodPatch",
        MethodPost = "HttpMethodPost",
        MethodPut = "HttpMethodPut",
        MethodTrace = "HttpMethodTrace",
    }
}

text_enum! {
    /// A status of gRPC.
    GrpcRetryOn, default GrpcRetryOn::Other(String::new()), {
        Canceled = "Canceled",
        DeadlineExceeded = "DeadlineExceeded",
        Internal = "Internal",
        ResourceExhausted = "ResourceExhausted",
        Unavailable = "Unavailable",
    }
}

text_enum! {
    /// What a header's number means.
    ResetFormat, default ResetFormat::Other(String::new()), {
        Seconds = "Seconds",
        UnixTimestamp = "UnixTimestamp",
    }
}

text_enum! {
    /// Which endpoints are left out.
    PredicateType, default PredicateType::Other(String::new()), {
        OmitPreviousHosts = "OmitPreviousHosts",
        OmitHostsWithTags = "OmitHostsWithTags",
        OmitPreviousPriorities = "OmitPreviousPriorities",
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshretries",
    short: "mr",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: true, rules: false }),
    doc: "What is tried once more when it fails.",
    fields: &[("targetRef", Executed), ("to", Executed)],
    ..KindInfo::new::<MeshRetry>()
};

impl MeshRetry {
    pub const KIND: Kind = Kind::new("MeshRetry");
}

impl Spec for MeshRetry {
    const KIND: Kind = MeshRetry::KIND;

    fn complete(&mut self, _context: &Context<'_>, _warnings: &mut Vec<String>) {
        let http = self.to.iter_mut().flatten().filter_map(|item| item.default.http.as_mut());
        for predicate in http.flat_map(|http| http.host_selection.iter_mut().flatten()) {
            // Kuma's schema fills it in, of whatever type.
            predicate.update_frequency.get_or_insert(UPDATE_FREQUENCY);
        }
    }

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let top = self.target_ref.as_ref();
        policy::check_top(top, &policy::TOP_OR_ROUTE, false, out);
        if self.to.as_ref().is_none_or(Vec::is_empty) {
            out.push("spec.to", "needs at least one item");
        }
        let of_gateway = matches!(policy::top_kind(top), TargetKind::MeshGateway | TargetKind::MeshHttpRoute);
        let kinds: &[TargetKind] = if of_gateway { &ONLY_MESH } else { &policy::TO_OR_ROUTE };
        policy::check_targets("to", self.to.as_ref(), kinds, out, |conf, path, out| {
            // Kuma's path has `conf` in it, which no document has.
            conf.check(&format!("{path}.conf"), out);
        });
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        out.extend(self.target_ref.as_ref().and_then(TargetRef::name_warning));
        for (i, item) in self.to.iter().flatten().enumerate() {
            if item.target_ref.kind == TargetKind::MeshHttpRoute {
                policy::warn_of_connections(i, &[("tcp", item.default.tcp.is_some())], out);
            }
        }
        let selects = |conf: &Conf| conf.http.as_ref().is_some_and(|http| http.host_selection.is_some());
        policy::warn_of_outside(self.to.as_ref(), "http.hostSelection", selects, out);
    }
}

/// Default of [`Predicate::update_frequency`].
const UPDATE_FREQUENCY: i32 = 2;

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            out.push(path, "at least one of the 'tcp', 'http', 'grpc' must be specified");
        }
        if let Some(tcp) = &self.tcp {
            let path = format!("{path}.tcp");
            match tcp.max_connect_attempt {
                None => out.push(path, MUST_NOT_BE_EMPTY),
                attempts => positive_count(&format!("{path}.maxConnectAttempt"), attempts, out),
            }
        }
        if let Some(http) = &self.http {
            http.check(&format!("{path}.http"), out);
        }
        if let Some(grpc) = &self.grpc {
            grpc.check(&format!("{path}.grpc"), out);
        }
    }
}

impl Http {
    fn check(&self, path: &str, out: &mut Violations) {
        if (Self { host_selection_max_attempts: None, ..self.clone() }) == Self::default() {
            out.push(path, MUST_NOT_BE_EMPTY);
        }
        check_waits(path, self.per_try_timeout, self.back_off.as_ref(), out);
        if let Some(limited) = &self.rate_limited_back_off {
            limited.check(&format!("{path}.rateLimitedBackOff"), out);
        }
        for (i, on) in self.retry_on.iter().flatten().enumerate() {
            if !on.is_known() && on.status().is_none() {
                out.push(format!("{path}.retryOn[{i}]"), format!("unknown item '{on}'"));
            }
        }
        let headers = [
            ("retriableResponseHeaders", &self.retriable_response_headers),
            ("retriableRequestHeaders", &self.retriable_request_headers),
        ];
        for (name, matches) in headers {
            check_matches(&format!("{path}.{name}"), matches.as_deref().unwrap_or_default(), out);
        }
        let mut by_tier = false;
        for (i, predicate) in self.host_selection.iter().flatten().enumerate() {
            predicate.check(&format!("{path}.hostSelection[{i}]"), by_tier, out);
            by_tier |= predicate.predicate == PredicateType::OmitPreviousPriorities;
        }
    }
}

impl Grpc {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            out.push(path, MUST_NOT_BE_EMPTY);
        }
        check_waits(path, self.per_try_timeout, self.back_off.as_ref(), out);
        if let Some(limited) = &self.rate_limited_back_off {
            limited.check(&format!("{path}.rateLimitedBackOff"), out);
        }
        for (i, on) in self.retry_on.iter().flatten().enumerate() {
            if !on.is_known() {
                out.push(format!("{path}.retryOn[{i}]"), format!("unknown item '{on}'"));
            }
        }
    }
}

fn check_waits(
    path: &str,
    per_try: Option<PolicyDuration>,
    back_off: Option<&BackOff>,
    out: &mut Violations,
) {
    not_negative(&format!("{path}.perTryTimeout"), per_try, out);
    let Some(back_off) = back_off else { return };
    let path = format!("{path}.backOff");
    if *back_off == BackOff::default() {
        return out.push(path, MUST_NOT_BE_EMPTY);
    }
    positive_duration(&format!("{path}.baseInterval"), back_off.base_interval, out);
    positive_duration(&format!("{path}.maxInterval"), back_off.max_interval, out);
}

impl RateLimitedBackOff {
    fn check(&self, path: &str, out: &mut Violations) {
        positive_duration(&format!("{path}.maxInterval"), self.max_interval, out);
        let path = format!("{path}.resetHeaders");
        let Some(headers) = &self.reset_headers else { return out.push(path, MUST_BE_DEFINED) };
        for (i, header) in headers.iter().enumerate() {
            check_header_name(&format!("{path}[{i}].name"), &header.name, out);
            if !header.format.is_known() {
                out.push(format!("{path}[{i}].format"), one_of("format", ResetFormat::VALUES));
            }
        }
    }
}

impl Predicate {
    /// `again`: there was a predicate about priorities before.
    fn check(&self, path: &str, again: bool, out: &mut Violations) {
        match &self.predicate {
            PredicateType::OmitPreviousHosts => {}
            PredicateType::OmitHostsWithTags if self.tags.is_none() => {
                out.push(format!("{path}.tags"), MUST_BE_DEFINED);
            }
            PredicateType::OmitHostsWithTags => {}
            PredicateType::OmitPreviousPriorities => {
                if again {
                    let reason = format!("{} must only be specified once", self.predicate);
                    out.push(format!("{path}.predicate"), reason);
                }
                if self.update_frequency.is_some_and(|attempts| attempts <= 0) {
                    out.push(format!("{path}.updateFrequency"), "must be defined and greater than zero");
                }
            }
            PredicateType::Other(text) => {
                out.push(format!("{path}.predicate"), format!("unknown predicate type '{text}'"));
            }
        }
    }
}

impl HttpRetryOn {
    /// An HTTP status: one of those that have a name in Go's `net/http`, which Kuma asks.
    pub fn status(&self) -> Option<u16> {
        let Self::Other(text) = self else { return None };
        let status = text.parse().ok()?;
        NAMED_STATUSES.iter().any(|range| range.contains(&status)).then_some(status)
    }
}

const NAMED_STATUSES: [std::ops::RangeInclusive<u16>; 12] = [
    100..=103,
    200..=208,
    226..=226,
    300..=305,
    307..=308,
    400..=418,
    421..=426,
    428..=429,
    431..=431,
    451..=451,
    500..=508,
    510..=511,
];
