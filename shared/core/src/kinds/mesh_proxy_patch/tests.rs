use crate::kinds::policy_tests::wrong;
use crate::kinds::tests::{right, warnings};

fn of(modifications: &str) -> String {
    format!(
        "{{type: MeshProxyPatch, name: tune, mesh: m, spec: {{default: {{appendModifications: [{modifications}]}}}}}}"
    )
}

#[test]
fn changes_are_kept() {
    let all = of(
        "{cluster: {operation: Patch, match: {origin: outbound}, jsonPatches: [{op: replace, path: /connectTimeout, value: 2s}, {op: copy, from: /a, path: /b}]}}, {networkFilter: {operation: AddFirst, value: 'name: envoy.filters.network.tcp_proxy'}}, {httpFilter: {operation: AddAfter, match: {name: envoy.filters.http.router, listenerTags: {a: b}}, value: '{\"name\": \"envoy.filters.http.gzip\"}'}}, {httpFilter: {operation: Remove}}, {virtualHost: {operation: Add, match: {routeConfigurationName: inbound, origin: inbound}, value: 'name: more'}}",
    );
    right(&all);
    assert_eq!(
        warnings(&all),
        ["spec.default has no effect: the proxies are not Envoy: there is nothing that it would change"]
    );
}

#[test]
fn one_change_at_a_time() {
    wrong(&of(""), &["spec.default.appendModifications: must not be empty"]);
    wrong(
        &of("{}, {cluster: {operation: Remove}, listener: {operation: Remove}}"),
        &[
            "spec.default.appendModifications[0]: exactly one modification can be defined at a time. Currently, 0 modifications are defined",
            "spec.default.appendModifications[1]: exactly one modification can be defined at a time. Currently, 2 modifications are defined",
        ],
    );
}

/// One change of each sort, and all that is wrong with it.
#[test]
fn all_that_is_wrong_is_said() {
    const EOF: &str = "native Envoy resource is not valid: unexpected EOF";
    const FILTERS: &str = "invalid operation. Available operations: \"AddFirst\", \"AddLast\", \"AddBefore\", \"AddAfter\", \"Patch\", \"Remove\"";
    let cases: [(&str, &[(&str, &str)]); 17] = [
        (
            "cluster: {operation: AddFirst}",
            &[(
                "cluster.operation",
                "invalid operation. Available operations: \"Add\", \"Patch\", \"Remove\"",
            )],
        ),
        ("cluster: {operation: Add, value: '{'}", &[("cluster.value", EOF)]),
        (
            "cluster: {operation: Add, value: words}",
            &[("cluster.value", "native Envoy resource is not valid: it is no object")],
        ),
        (
            "listener: {operation: Add, match: {}, value: 'name: l'}",
            &[("listener.match", "must not be defined")],
        ),
        ("listener: {operation: Add}", &[("listener.value", "must be defined")]),
        ("listener: {operation: Remove, value: 'name: l'}", &[("listener.value", "must not be defined")]),
        (
            "cluster: {operation: Remove, jsonPatches: [{op: remove, path: /a}]}",
            &[("cluster.jsonPatches", "must not be defined")],
        ),
        (
            "cluster: {operation: Patch}",
            &[("cluster", "cluster must have exactly one defined: value, jsonPatches")],
        ),
        (
            "virtualHost: {operation: Patch, value: '{}', jsonPatches: [{op: remove, path: ''}]}",
            &[("virtualHost", "virtualHost must have only one type defined: value, jsonPatches")],
        ),
        (
            "virtualHost: {operation: Add, match: {name: v}, value: 'name: v'}",
            &[("virtualHost.match.name", "must not be defined")],
        ),
        (
            "cluster: {operation: Patch, jsonPatches: [{op: swap, path: a}, {op: move, path: /a}]}",
            &[
                (
                    "cluster.jsonPatches[0].op",
                    "\"op\" must be one of [\"add\", \"remove\", \"replace\", \"move\", \"copy\"]",
                ),
                ("cluster.jsonPatches[0].path", "must be a JSON pointer, like /connectTimeout"),
                ("cluster.jsonPatches[1].from", "must be defined"),
            ],
        ),
        ("networkFilter: {operation: Add}", &[("networkFilter.operation", FILTERS)]),
        ("httpFilter: {operation: AddLast}", &[("httpFilter.value", "must be defined")]),
        (
            "httpFilter: {operation: AddBefore, value: '{'}",
            &[
                (
                    "httpFilter.match.name",
                    "must be defined. You need to pick a filter before which this one will be added",
                ),
                ("httpFilter.value", EOF),
            ],
        ),
        (
            "networkFilter: {operation: AddAfter, match: {origin: inbound}, value: 'name: f'}",
            &[(
                "networkFilter.match.name",
                "must be defined. You need to pick a filter after which this one will be added",
            )],
        ),
        (
            "networkFilter: {operation: Patch}",
            &[
                ("networkFilter.match.name", "must be defined"),
                ("networkFilter", "networkFilter must have exactly one defined: value, jsonPatches"),
            ],
        ),
        ("httpFilter: {operation: Remove, value: a}", &[("httpFilter.value", "must not be defined")]),
    ];
    for (change, expected) in cases {
        let expected: Vec<String> = expected
            .iter()
            .map(|(field, reason)| format!("spec.default.appendModifications[0].{field}: {reason}"))
            .collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        wrong(&of(&format!("{{{change}}}")), &expected);
    }
}

#[test]
fn what_keeps_callers_out_is_refused() {
    let refused = |change: &str, reason: &str| {
        wrong(&of(&format!("{{{change}}}")), &[&format!("spec.default.appendModifications[0].{reason}")]);
    };
    refused(
        "httpFilter: {operation: AddFirst, value: \"typedConfig: {'@type': envoy.extensions.filters.http.ext_authz.v3.ExtAuthz}\"}",
        "httpFilter: not supported yet: what its ext_authz filter forbids would be let through; use MeshTrafficPermission",
    );
    refused(
        "networkFilter: {operation: Patch, match: {name: envoy.filters.network.rbac}, jsonPatches: [{op: remove, path: /rules}]}",
        "networkFilter: not supported yet: what its rbac filter forbids would be let through; use MeshTrafficPermission",
    );
    refused(
        "httpFilter: {operation: AddLast, value: \"name: envoy.filters.http.lua\\ninlineCode: 'handle:respond({}, 1)'\"}",
        "httpFilter: not supported yet: what its script answers itself would be let through",
    );
    refused(
        r#"httpFilter: {operation: AddLast, value: 'name: "envoy.filters.http.r\x62ac"'}"#,
        "httpFilter: not supported yet: what its rbac filter forbids would be let through; use MeshTrafficPermission",
    );
    refused(
        "networkFilter: {operation: AddFirst, value: 'name: envoy.filters.network.direct_response'}",
        "networkFilter: not supported yet: what its direct_response filter forbids would be let through; use MeshTrafficPermission",
    );
    refused(
        "listener: {operation: Patch, jsonPatches: [{op: add, path: /filterChains/0/transportSocket/typedConfig/requireClientCertificate, value: true}]}",
        "listener: not supported yet: what its requireclientcertificate keeps out would be let through",
    );
    refused(
        "virtualHost: {operation: Patch, value: 'routes: [{direct_response: {status: 403}}]'}",
        "virtualHost: not supported yet: what its directresponse keeps out would be let through",
    );
    refused(
        "cluster: {operation: Remove, match: {name: passthrough}}",
        "cluster: not supported yet: what it takes away would stay open",
    );
    right(&of(
        "{httpFilter: {operation: AddBefore, match: {name: envoy.filters.http.rbac}, value: 'name: envoy.filters.http.gzip'}}",
    ));
    right(&of("{httpFilter: {operation: Remove, match: {name: envoy.filters.http.rbac}}}"));
    right(&of(
        "{httpFilter: {operation: AddLast, value: \"name: envoy.filters.http.lua\\ninlineCode: 'handle:headers()'\"}}",
    ));
}
