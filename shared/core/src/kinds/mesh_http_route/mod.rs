//! How requests to a service are routed: by path, method, headers and query; changed on the way, redirected, mirrored
//! or split among backends.

mod checks;
mod warnings;

use super::backend_ref::{BackendRef, NO_NAMESPACES};
use super::http_headers::{HeaderKeyValue, HeaderMatch};
use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::{
    Context, Flow, IntOrString, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How requests to a service are routed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshHttpRoute {
    /// The proxies that call. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
}

/// One service that is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct To {
    pub target_ref: TargetRef,
    /// Of builtin gateways only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// Requests that fit any of `matches` are handled by `default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub default: RuleConf,
}

/// All conditions given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Match {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<QueryParamsMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PathMatch {
    #[serde(rename = "type")]
    pub type_: PathMatchType,
    /// A PathPrefix ends at a segment: `/a` covers `/a` and `/a/b`, not `/ab`.
    pub value: String,
}

text_enum! {
    /// How a path is compared.
    PathMatchType, default PathMatchType::Other(String::new()), {
        Exact = "Exact",
        PathPrefix = "PathPrefix",
        RegularExpression = "RegularExpression",
    }
}

text_enum! {
    /// A request's method.
    Method, default Method::Other(String::new()), {
        Connect = "CONNECT",
        Delete = "DELETE",
        Get = "GET",
        Head = "HEAD",
        Options = "OPTIONS",
        Patch = "PATCH",
        Post = "POST",
        Put = "PUT",
        Trace = "TRACE",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct QueryParamsMatch {
    #[serde(rename = "type")]
    pub type_: QueryParamsMatchType,
    pub name: String,
    pub value: String,
}

text_enum! {
    /// How a query parameter is compared.
    QueryParamsMatchType, default QueryParamsMatchType::Other(String::new()), {
        Exact = "Exact",
        RegularExpression = "RegularExpression",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RuleConf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<Filter>>,
    /// Each request goes to one of these, by their weights. Unset: to the service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<BackendRef>>,
}

/// One change to a request or its response; the field that `type` names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Filter {
    #[serde(rename = "type")]
    pub type_: FilterType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    #[serde(rename = "urlRewrite", skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

text_enum! {
    /// What a filter does.
    FilterType, default FilterType::Other(String::new()), {
        RequestHeaderModifier = "RequestHeaderModifier",
        ResponseHeaderModifier = "ResponseHeaderModifier",
        RequestRedirect = "RequestRedirect",
        UrlRewrite = "URLRewrite",
        RequestMirror = "RequestMirror",
    }
}

/// At most 16 a list; a header is named once in all three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Replaces what is there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderKeyValue>,
    /// Beside what is there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderKeyValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// Unset: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Unset: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// 1 to 65535. Unset: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Unset: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308. Unset: 302.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u32>,
}

text_enum! {
    /// Of a redirect.
    Scheme, default Scheme::Other(String::new()), {
        Http = "http",
        Https = "https",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// The new host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Of builtin gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_to_backend_hostname: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// The field that `type` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PathRewrite {
    #[serde(rename = "type")]
    pub type_: PathRewriteType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// In place of the prefix that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

text_enum! {
    /// What of a path is replaced.
    PathRewriteType, default PathRewriteType::Other(String::new()), {
        ReplaceFullPath = "ReplaceFullPath",
        ReplacePrefixMatch = "ReplacePrefixMatch",
    }
}

/// A copy of the request, whose response is dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Of the requests, 0 to 100. Unset: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
    pub backend_ref: BackendRef,
}

const NO_GATEWAYS: &str = super::policy::NO_GATEWAYS;

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshhttproutes",
    short: "mhttpr",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: true, rules: false }),
    doc: "How requests to a service are routed, changed, redirected, mirrored or split among backends.",
    fields: &[
        ("targetRef", Executed),
        ("to", Executed),
        ("to[].hostnames", Warned(NO_GATEWAYS)),
        ("to[].rules[].default.filters[].urlRewrite.hostToBackendHostname", Warned(NO_GATEWAYS)),
        ("to[].rules[].default.backendRefs[].namespace", Warned(NO_NAMESPACES)),
        ("to[].rules[].default.filters[].requestMirror.backendRef.namespace", Warned(NO_NAMESPACES)),
    ],
    ..KindInfo::new::<MeshHttpRoute>()
};

impl MeshHttpRoute {
    pub const KIND: Kind = Kind::new("MeshHTTPRoute");

    /// Whether it is for builtin gateways.
    fn of_gateways(&self) -> bool {
        self.target_ref.as_ref().is_some_and(|target| target.kind == TargetKind::MeshGateway)
    }
}

impl Spec for MeshHttpRoute {
    const KIND: Kind = MeshHttpRoute::KIND;

    fn complete(&mut self, _context: &Context<'_>, _warnings: &mut Vec<String>) {
        for rule in self.to.iter_mut().flatten().flat_map(|to| &mut to.rules) {
            rule.default.backend_refs.iter_mut().flatten().for_each(BackendRef::complete);
            let filters = rule.default.filters.iter_mut().flatten();
            filters.filter_map(|it| it.request_mirror.as_mut()).for_each(|it| it.backend_ref.complete());
        }
    }

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        self.check(out);
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        self.warn(out);
    }
}

#[cfg(test)]
mod tests;
