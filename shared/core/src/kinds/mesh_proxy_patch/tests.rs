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
    let none = "has no effect: the proxies are not Envoy: there is nothing that it would change";
    assert_eq!(
        warnings(&all),
        [
            format!("spec.default.appendModifications[0].cluster: /b (copy) {none}"),
            format!("spec.default.appendModifications[1].networkFilter {none}"),
            format!("spec.default.appendModifications[2].httpFilter {none}"),
            format!("spec.default.appendModifications[4].virtualHost {none}"),
        ]
    );
}

fn lua(fields: &str) -> String {
    let value = format!(
        "{{name: my-lua, typedConfig: {{'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, {fields}}}}}"
    );
    serde_json::to_string(&value).unwrap()
}

#[test]
fn scripts_are_read_in_all_their_spellings() {
    for fields in [
        "inlineCode: 'a = 1'",
        "inline_code: 'a = 1', statPrefix: x",
        "defaultSourceCode: {inlineString: 'a = 1'}",
        "default_source_code: {inline_string: 'a = 1'}",
        "defaultSourceCode: {inlineBytes: YSA9IDE=}",
    ] {
        let all = of(&format!(
            "{{httpFilter: {{operation: AddBefore, match: {{name: envoy.filters.http.router, origin: outbound, listenerTags: {{kuma.io/service: offers}}}}, value: {}}}}}",
            lua(fields)
        ));
        right(&all);
        assert_eq!(warnings(&all), [""; 0], "{fields}");
    }
}

#[test]
fn a_script_that_can_not_be_run_is_refused() {
    let refused = |fields: &str, reason: &str| {
        let change = format!("{{httpFilter: {{operation: AddFirst, value: {}}}}}", lua(fields));
        wrong(&of(&change), &[&format!("spec.default.appendModifications[0].httpFilter.value: {reason}")]);
    };
    refused(
        "inlineCode: 'function ('",
        "the script is none: line 1: Expected identifier when parsing function name, got '('",
    );
    refused(
        "sourceCodes: {a: {inlineString: 'a = 1'}}",
        "not supported yet: scripts for single routes (sourceCodes) are not run",
    );
    refused(
        "defaultSourceCode: {filename: /etc/passwd}",
        "not supported yet: a script is given as text: inlineString or inlineBytes",
    );
    refused(
        "statPrefix: x",
        "not supported yet: it has no script: give inlineCode or defaultSourceCode.inlineString",
    );
    refused(
        "inlineCode: 'a = 1', defaultSourceCode: {inlineString: 'a = 2'}",
        "not supported yet: it has two scripts: give inlineCode or defaultSourceCode",
    );
    refused("mystery: 1, inlineCode: 'a = 1'", "not supported yet: mystery is not understood");
    refused(
        "inlineCode: 'function envoy_on_request(h) if not h:verifySignature() then h:respond({}) end end'",
        "not supported yet: its script answers requests, and verifySignature is not there",
    );
}

#[test]
fn a_script_that_answers_is_run_or_refused() {
    let of = |matched: &str, code: &str| {
        let fields = format!("inlineCode: '{code}'");
        of(&format!("{{httpFilter: {{operation: AddLast, match: {{{matched}}}, value: {}}}}}", lua(&fields)))
    };
    let answers = "function envoy_on_request(h) h:respond({}) end";
    right(&of("origin: inbound", answers));
    right(&of("", answers));
    for (matched, why) in [
        ("origin: ingress", r#"origin "ingress" is none of inbound, outbound"#),
        ("origin: outbound, listenerName: 'outbound:240.0.0.1:80'", "listenerName selects inbounds only"),
        ("listenerTags: {kuma.io/protocol: tcp}", "tcp has no requests"),
    ] {
        let reason = format!(
            "spec.default.appendModifications[0].httpFilter.value: not supported yet: its script answers requests, and would not be run: {why}"
        );
        wrong(&of(matched, answers), &[&reason]);
        let harmless = of(matched, "a = 1");
        right(&harmless);
        assert_eq!(
            warnings(&harmless),
            [format!("spec.default.appendModifications[0].httpFilter has no effect: {why}")]
        );
    }
}

#[test]
fn settings_are_read_from_values_and_patches() {
    use super::effect::{Amount, Setting};
    use super::{ClusterMatch, Patch, ResourceOperation};
    use std::time::Duration;
    let settings = |text: &str| {
        let patch: Patch<ResourceOperation, ClusterMatch> =
            serde_json::from_value(crate::document::parse_text(text).unwrap()).unwrap();
        patch.cluster_settings()
    };
    let value = settings(
        "{operation: Patch, value: '{connect_timeout: 1.5s, circuitBreakers: {thresholds: [{priority: DEFAULT, max_requests: 7}]}, name: x}'}",
    );
    let time = |millis| Amount::Time(Some(Duration::from_millis(millis)));
    assert_eq!(
        value.set,
        [(Setting::MaxRequests, Amount::Count(Some(7))), (Setting::ConnectTimeout, time(1_500))]
    );
    assert_eq!((value.ignored, value.wrong.len()), (vec!["/name".to_owned()], 0));
    let patches = settings(
        "{operation: Patch, jsonPatches: [{op: replace, path: /connectTimeout, value: 2s}, {op: remove, path: /circuitBreakers}, {op: add, path: /x, value: 1}]}",
    );
    assert_eq!(patches.set.len(), 5);
    assert_eq!(patches.set[0], (Setting::ConnectTimeout, time(2_000)));
    assert!(patches.set[1..].iter().all(|(_, amount)| *amount == Amount::Count(None)));
    assert_eq!(patches.ignored, ["/x"]);
    wrong(
        &of("{cluster: {operation: Patch, value: 'connectTimeout: soon'}}"),
        &["spec.default.appendModifications[0].cluster: native Envoy resource is not valid: /connectTimeout"],
    );
    wrong(
        &of(
            "{networkFilter: {operation: Patch, match: {name: envoy.filters.network.tcp_proxy}, value: 'typedConfig: {idleTimeout: -1s}'}}",
        ),
        &[
            "spec.default.appendModifications[0].networkFilter: native Envoy resource is not valid: /idleTimeout",
        ],
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
        "networkFilter: {operation: AddLast, value: \"name: envoy.filters.http.lua\\ninlineCode: 'handle:respond({}, 1)'\"}",
        "networkFilter: not supported yet: what its script answers itself would be let through",
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
    refused(
        "httpFilter: {operation: AddLast, value: \"name: envoy.filters.http.lua\\ninlineCode: 'handle:headers()'\"}",
        "httpFilter.value: not supported yet: its typedConfig is no envoy.extensions.filters.http.lua.v3.Lua",
    );
}
