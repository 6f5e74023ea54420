use super::{MeshHttpRoute, PathMatchType};
use crate::kinds::tests::{right, warnings, wrong};

fn of(to: &str) -> String {
    format!("{{type: MeshHTTPRoute, name: r, spec: {{targetRef: {{kind: Mesh}}, to: [{to}]}}}}")
}

/// One rule for calls of the service `web`.
fn rule(matches: &str, default: &str) -> String {
    of(&format!(
        "{{targetRef: {{kind: MeshService, name: web}}, rules: [{{matches: [{matches}], default: {{{default}}}}}]}}"
    ))
}

const PREFIX: &str = "{path: {type: PathPrefix, value: /shop}}";

#[test]
fn each_match_and_filter() {
    let all = rule(
        "{path: {type: RegularExpression, value: '/v[0-9]+/.*'}, method: GET, queryParams: [{type: RegularExpression, name: q, value: 'a|b'}], headers: [{name: x-user, type: Present}, {name: x-group, value: admins}]}, {path: {type: Exact, value: /}}, {path: {type: PathPrefix, value: /}}",
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: '1'}], add: [{name: x-b, value: '2'}], remove: [x-c]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}, {type: RequestMirror, requestMirror: {percentage: '12.5', backendRef: {kind: MeshService, name: audit, port: 80}}}, {type: RequestRedirect, requestRedirect: {scheme: https, hostname: www.example.com, port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /moved}, statusCode: 308}}, {type: URLRewrite, urlRewrite: {hostname: inner.example.com}}], backendRefs: [{kind: MeshService, labels: {app: web}, port: 80, weight: 1}, {kind: MeshMultiZoneService, name: web, port: 80, weight: 3}]",
    );
    right(&all);
    assert!(warnings(&all).is_empty());
}

#[test]
fn what_is_not_done_is_said() {
    let route = of(
        "{targetRef: {kind: MeshService, name: web}, rules: [{matches: [{method: GET}], default: {filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: a}, {name: x, value: b}], remove: [te]}}, {type: RequestMirror, requestMirror: {backendRef: {kind: MeshExternalService, name: audit}}}], backendRefs: [{kind: MeshServiceSubset, name: web, tags: {version: v2}}]}}]}, {targetRef: {kind: MeshExternalService, name: out}, rules: []}",
    );
    let modifier = "spec.to[0].rules[0].default.filters[0].requestHeaderModifier leaves";
    assert_eq!(
        warnings(&route),
        [
            format!("{modifier} host as it is: it belongs to the connection, the body or the host"),
            format!("{modifier} te as it is: it belongs to the connection, the body or the host"),
        ]
    );
}

#[test]
fn patterns_are_whole_and_few() {
    let comment = "{path: {type: RegularExpression, value: '(?x)/a #'}}";
    wrong(&rule(comment, ""), &["spec.to[0].rules[0].matches[0].path.value: invalid regex"]);
    let many = vec!["{path: {type: RegularExpression, value: '/a.*'}}"; 65].join(", ");
    wrong(&rule(&many, ""), &["spec.to: must have at most 64 regular expressions"]);
}

#[test]
fn a_parsed_route_keeps_its_texts() {
    let document = crate::document::parse_text(&rule(PREFIX, "")).unwrap();
    let route: MeshHttpRoute = crate::document::check(&document, None).unwrap().resource.parse().unwrap();
    let path = route.to.unwrap()[0].rules[0].matches[0].path.clone().unwrap();
    assert_eq!((path.type_, path.value.as_str()), (PathMatchType::PathPrefix, "/shop"));
}

#[test]
fn wrong_matches() {
    wrong(
        &rule(
            "{path: {type: Suffix, value: a}, method: BREW, queryParams: [{type: Prefix, name: '', value: a}], headers: [{name: X-User, type: Similar}, {name: x, type: RegularExpression, value: '('}]}, {path: {type: RegularExpression, value: '[a'}}",
            "",
        ),
        &[
            "spec.to[0].rules[0].matches[0].headers[0].name: must be a header's name in lower case, of at most 256 characters",
            "spec.to[0].rules[0].matches[0].headers[0].type: \"type\" must be one of [\"Exact\", \"Present\", \"RegularExpression\", \"Absent\", \"Prefix\"]",
            "spec.to[0].rules[0].matches[0].headers[1].value: invalid regex",
            "spec.to[0].rules[0].matches[0].method: \"method\" must be one of [\"CONNECT\", \"DELETE\", \"GET\", \"HEAD\", \"OPTIONS\", \"PATCH\", \"POST\", \"PUT\", \"TRACE\"]",
            "spec.to[0].rules[0].matches[0].path.type: \"type\" must be one of [\"Exact\", \"PathPrefix\", \"RegularExpression\"]",
            "spec.to[0].rules[0].matches[0].queryParams[0].name: must not be empty",
            "spec.to[0].rules[0].matches[0].queryParams[0].type: \"type\" must be one of [\"Exact\", \"RegularExpression\"]",
            "spec.to[0].rules[0].matches[1].path.value: invalid regex",
        ],
    );
    wrong(&rule("", ""), &["spec.to[0].rules[0].matches: must not be empty"]);
}

#[test]
fn filters_must_hold_what_their_type_names() {
    let types = ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite"];
    let filters: Vec<String> =
        types.iter().chain(&["RequestMirror", "Teapot"]).map(|kind| format!("{{type: {kind}}}")).collect();
    wrong(
        &rule(PREFIX, &format!("filters: [{}]", filters.join(", "))),
        &[
            "spec.to[0].rules[0].default.filters[0].requestHeaderModifier: must be defined",
            "spec.to[0].rules[0].default.filters[1].responseHeaderModifier: must be defined",
            "spec.to[0].rules[0].default.filters[2].requestRedirect: must be defined",
            "spec.to[0].rules[0].default.filters[3].urlRewrite: must be defined",
            "spec.to[0].rules[0].default.filters[4].requestMirror: must be defined",
            "spec.to[0].rules[0].default.filters[5].type: \"type\" must be one of [\"RequestHeaderModifier\", \"ResponseHeaderModifier\", \"RequestRedirect\", \"URLRewrite\", \"RequestMirror\"]",
        ],
    );
}

#[test]
fn wrong_filters() {
    wrong(
        &rule(
            "{path: {type: Exact, value: /a}}",
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: '1'}], add: [{name: x-a, value: '2'}], remove: ['x a']}}, {type: RequestRedirect, requestRedirect: {scheme: ftp, hostname: '-', port: 0, statusCode: 200, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}, {type: RequestMirror, requestMirror: {percentage: 101, backendRef: {kind: MeshService}}}, {type: RequestMirror, requestMirror: {percentage: most, backendRef: {kind: MeshService, name: a}}}, {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}]",
        ),
        &[
            "spec.to[0].rules[0].default.filters[0].requestHeaderModifier.add[0].name: duplicate header name",
            "spec.to[0].rules[0].default.filters[0].requestHeaderModifier.remove[0]: must be a header's name in lower case, of at most 256 characters",
            "spec.to[0].rules[0].default.filters[1].requestRedirect.hostname: invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            "spec.to[0].rules[0].default.filters[1].requestRedirect.path.replacePrefixMatch: can only appear if all matches match a path prefix",
            "spec.to[0].rules[0].default.filters[1].requestRedirect.port: port must be a valid (1-65535)",
            "spec.to[0].rules[0].default.filters[1].requestRedirect.scheme: \"scheme\" must be one of [\"http\", \"https\"]",
            "spec.to[0].rules[0].default.filters[1].requestRedirect.statusCode: must be one of 301, 302, 303, 307, 308",
            "spec.to[0].rules[0].default.filters[2].requestMirror.backendRef.name: must be set when kind is MeshService",
            "spec.to[0].rules[0].default.filters[2].requestMirror.percentage: must be in inclusive range [0.0, 100.0]",
            "spec.to[0].rules[0].default.filters[3].requestMirror.percentage: string must be a valid number",
            "spec.to[0].rules[0].default.filters[4].urlRewrite.path.replaceFullPath: must be defined",
        ],
    );
}

#[test]
fn a_gateways_route_needs_backends_unless_it_redirects() {
    let of = |default: &str| {
        format!(
            "{{type: MeshHTTPRoute, name: r, spec: {{targetRef: {{kind: MeshGateway, name: edge}}, to: [{{targetRef: {{kind: Mesh}}, hostnames: [shop.example.com], rules: [{{matches: [{PREFIX}], default: {{{default}}}}}]}}]}}}}"
        )
    };
    let redirect = of("filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]");
    right(&redirect);
    assert!(
        warnings(&redirect).iter().any(|warning| warning.contains("no builtin gateways")),
        "{:?}",
        warnings(&redirect)
    );
    wrong(&of(""), &["spec.to[0].rules[0].default.backendRefs: must not be empty"]);
}
