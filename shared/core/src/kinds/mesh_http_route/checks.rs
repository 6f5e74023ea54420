//! What makes a MeshHTTPRoute valid.

use super::{
    Filter, FilterType, HeaderModifier, Match, MeshHttpRoute, Method, PathMatch, PathMatchType, PathRewrite,
    PathRewriteType, QueryParamsMatch, QueryParamsMatchType, RequestRedirect, Rule, Scheme, To, UrlRewrite,
};
use crate::kinds::{
    backend_ref,
    http_headers::{self, HeaderMatchType},
};
use crate::validate::{
    self, INVALID_PORT, MUST_BE_DEFINED, MUST_NOT_BE_DEFINED, MUST_NOT_BE_EMPTY, NUMBER_EXPECTED, is_port,
};
use crate::{TargetKind, Violations, names};
use std::collections::BTreeSet;

const TOP: [TargetKind; 6] = [
    TargetKind::Mesh,
    TargetKind::MeshSubset,
    TargetKind::MeshGateway,
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::Dataplane,
];
/// Services; behind a gateway there is only the mesh.
const TO: [TargetKind; 3] =
    [TargetKind::MeshService, TargetKind::MeshExternalService, TargetKind::MeshMultiZoneService];
const TO_OF_GATEWAY: [TargetKind; 1] = [TargetKind::Mesh];

/// Each may take 256 KiB in every proxy that calls.
const MAX_PATTERNS: usize = 64;

const REDIRECTS: [u32; 5] = [301, 302, 303, 307, 308];

impl MeshHttpRoute {
    pub(super) fn check(&self, out: &mut Violations) {
        if let Some(target) = &self.target_ref {
            target.check("spec.targetRef", &TOP, false, out);
        }
        let rules = self.to.iter().flatten().flat_map(|to| &to.rules);
        if rules.flat_map(|rule| &rule.matches).map(Match::patterns).sum::<usize>() > MAX_PATTERNS {
            out.push("spec.to", format!("must have at most {MAX_PATTERNS} regular expressions"));
        }
        for (i, to) in self.to.iter().flatten().enumerate() {
            to.check(&format!("spec.to[{i}]"), self.of_gateways(), out);
        }
    }
}

impl To {
    fn check(&self, path: &str, gateway: bool, out: &mut Violations) {
        let kinds: &[TargetKind] = if gateway { &TO_OF_GATEWAY } else { &TO };
        self.target_ref.check(&format!("{path}.targetRef"), kinds, false, out);
        if !gateway && !self.hostnames.is_empty() {
            out.push(format!("{path}.hostnames"), MUST_NOT_BE_DEFINED);
        }
        for (i, rule) in self.rules.iter().enumerate() {
            rule.check(&format!("{path}.rules[{i}]"), gateway, out);
        }
    }
}

impl Rule {
    fn check(&self, path: &str, gateway: bool, out: &mut Violations) {
        if self.matches.is_empty() {
            out.push(format!("{path}.matches"), MUST_NOT_BE_EMPTY);
        }
        for (i, matched) in self.matches.iter().enumerate() {
            matched.check(&format!("{path}.matches[{i}]"), out);
        }
        let by_prefix = self.matches.iter().all(Match::is_prefix);
        let filters = self.default.filters.as_deref().unwrap_or_default();
        for (i, filter) in filters.iter().enumerate() {
            filter.check(&format!("{path}.default.filters[{i}]"), gateway, by_prefix, out);
        }
        let path = format!("{path}.default.backendRefs");
        let backends = self.default.backend_refs.as_deref().unwrap_or_default();
        let redirects = filters.iter().any(|filter| filter.type_ == FilterType::RequestRedirect);
        if gateway && backends.is_empty() && !redirects {
            out.push(path.as_str(), MUST_NOT_BE_EMPTY);
        }
        backend_ref::check_all(&path, backends, out);
    }
}

impl Match {
    fn patterns(&self) -> usize {
        let path = self.path.as_ref().is_some_and(|it| it.type_ == PathMatchType::RegularExpression);
        let headers = self.headers.iter().filter(|it| it.type_ == Some(HeaderMatchType::RegularExpression));
        let query = self.query_params.iter().filter(|it| it.type_ == QueryParamsMatchType::RegularExpression);
        usize::from(path) + headers.count() + query.count()
    }

    fn is_prefix(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.type_ == PathMatchType::PathPrefix)
    }

    fn check(&self, path: &str, out: &mut Violations) {
        if let Some(matched) = &self.path {
            matched.check(&format!("{path}.path"), out);
        }
        if self.method.as_ref().is_some_and(|method| !method.is_known()) {
            out.push(format!("{path}.method"), validate::one_of("method", Method::VALUES));
        }
        let mut names = BTreeSet::new();
        for (i, param) in self.query_params.iter().enumerate() {
            let path = format!("{path}.queryParams[{i}]");
            if !names.insert(&param.name) {
                out.push(format!("{path}.name"), format!("multiple entries for name {}", param.name));
            }
            param.check(&path, out);
        }
        for (i, header) in self.headers.iter().enumerate() {
            header.check(&format!("{path}.headers[{i}]"), out);
        }
    }
}

impl PathMatch {
    fn check(&self, path: &str, out: &mut Violations) {
        let value = format!("{path}.value");
        match self.type_ {
            PathMatchType::RegularExpression => return validate::whole_regex(&value, &self.value, out),
            PathMatchType::PathPrefix if self.value != "/" && self.value.ends_with('/') => out.push(
                value.as_str(),
                "does not need a trailing slash because only a `/`-separated prefix or an entire path is matched",
            ),
            PathMatchType::Exact | PathMatchType::PathPrefix => {}
            PathMatchType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", PathMatchType::VALUES));
            }
        }
        if !self.value.starts_with('/') {
            out.push(value, NOT_ABSOLUTE);
        }
    }
}

const NOT_ABSOLUTE: &str = "must be an absolute path";

impl QueryParamsMatch {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.name.is_empty() {
            out.push(format!("{path}.name"), MUST_NOT_BE_EMPTY);
        }
        match self.type_ {
            QueryParamsMatchType::Exact => {}
            QueryParamsMatchType::RegularExpression => {
                validate::whole_regex(&format!("{path}.value"), &self.value, out);
            }
            QueryParamsMatchType::Other(_) => {
                out.push(format!("{path}.type"), validate::one_of("type", QueryParamsMatchType::VALUES));
            }
        }
    }
}

impl Filter {
    /// `by_prefix`: all matches of the rule are path prefixes.
    fn check(&self, path: &str, gateway: bool, by_prefix: bool, out: &mut Violations) {
        let field = |name: &str| format!("{path}.{name}");
        match self.type_ {
            FilterType::RequestHeaderModifier => {
                let path = field("requestHeaderModifier");
                required(&self.request_header_modifier, path, out, HeaderModifier::check);
            }
            FilterType::ResponseHeaderModifier => {
                let path = field("responseHeaderModifier");
                required(&self.response_header_modifier, path, out, HeaderModifier::check);
            }
            FilterType::RequestRedirect => {
                required(&self.request_redirect, field("requestRedirect"), out, |redirect, path, out| {
                    redirect.check(path, by_prefix, out);
                });
            }
            FilterType::UrlRewrite => {
                required(&self.url_rewrite, field("urlRewrite"), out, |rewrite, path, out| {
                    rewrite.check(path, gateway, by_prefix, out);
                });
            }
            FilterType::RequestMirror => {
                required(&self.request_mirror, field("requestMirror"), out, |mirror, path, out| {
                    if let Some(share) = &mirror.percentage {
                        validate::percentage(&format!("{path}.percentage"), share, NUMBER_EXPECTED, out);
                    }
                    mirror.backend_ref.check(&format!("{path}.backendRef"), out);
                });
            }
            FilterType::Other(_) => {
                out.push(field("type"), validate::one_of("type", FilterType::VALUES));
            }
        }
    }
}

/// What a filter's type names must be there.
fn required<T>(
    value: &Option<T>,
    path: String,
    out: &mut Violations,
    check: impl Fn(&T, &str, &mut Violations),
) {
    match value {
        Some(value) => check(value, &path, out),
        None => out.push(path, MUST_BE_DEFINED),
    }
}

impl HeaderModifier {
    fn check(&self, path: &str, out: &mut Violations) {
        http_headers::check_modifier(path, &[("set", &self.set), ("add", &self.add)], &self.remove, out);
    }
}

impl RequestRedirect {
    fn check(&self, path: &str, by_prefix: bool, out: &mut Violations) {
        if self.scheme.as_ref().is_some_and(|scheme| !scheme.is_known()) {
            out.push(format!("{path}.scheme"), validate::one_of("scheme", Scheme::VALUES));
        }
        check_hostname(path, self.hostname.as_deref(), out);
        if self.port.is_some_and(|port| !is_port(port)) {
            out.push(format!("{path}.port"), INVALID_PORT);
        }
        if self.status_code.is_some_and(|code| !REDIRECTS.contains(&code)) {
            out.push(format!("{path}.statusCode"), "must be one of 301, 302, 303, 307, 308");
        }
        if let Some(rewrite) = &self.path {
            rewrite.check(&format!("{path}.path"), by_prefix, out);
        }
    }
}

impl UrlRewrite {
    fn check(&self, path: &str, gateway: bool, by_prefix: bool, out: &mut Violations) {
        check_hostname(path, self.hostname.as_deref(), out);
        if !gateway && self.host_to_backend_hostname == Some(true) {
            out.push(format!("{path}.hostToBackendHostname"), "can only be set with MeshGateway");
        }
        if let Some(rewrite) = &self.path {
            rewrite.check(&format!("{path}.path"), by_prefix, out);
        }
    }
}

impl PathRewrite {
    fn check(&self, path: &str, by_prefix: bool, out: &mut Violations) {
        let replaced = match self.type_ {
            PathRewriteType::ReplaceFullPath => ("replaceFullPath", &self.replace_full_path),
            PathRewriteType::ReplacePrefixMatch => ("replacePrefixMatch", &self.replace_prefix_match),
            PathRewriteType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", PathRewriteType::VALUES));
            }
        };
        if replaced.1.is_none() {
            out.push(format!("{path}.{}", replaced.0), MUST_BE_DEFINED);
        }
        if self.replace_prefix_match.is_some() && !by_prefix {
            out.push(
                format!("{path}.replacePrefixMatch"),
                "can only appear if all matches match a path prefix",
            );
        }
    }
}

fn check_hostname(path: &str, hostname: Option<&str>, out: &mut Violations) {
    if hostname.is_some_and(|name| !names::is_subdomain(name)) {
        out.push(format!("{path}.hostname"), names::NOT_A_SUBDOMAIN);
    }
}
