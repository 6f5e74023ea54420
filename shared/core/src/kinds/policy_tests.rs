//! Policies in good and bad forms.

use super::tests::{right, violations, warnings};
use crate::document;

/// A document of `kind` with this spec, in YAML's flow style.
fn of(kind: &str, spec: &str) -> String {
    format!("{{type: {kind}, name: p, mesh: m, spec: {{{spec}}}}}")
}

/// All that is wrong, in any order.
#[track_caller]
pub(super) fn wrong(yaml: &str, expected: &[&str]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(violations(yaml), expected, "{yaml}");
}

const BY_CALLER: &str = "can't be specified when matches contain spiffeID because this field cannot be conditioned on source identity";

#[test]
fn mesh_timeouts() {
    let of = |spec| of("MeshTimeout", spec);
    right(&of("to: [{targetRef: {kind: MeshService, name: db}, default: {idleTimeout: 0s}}]"));
    right(&of("from: [{targetRef: {kind: Mesh}, default: {http: {requestHeadersTimeout: 1.5s}}}]"));
    right(&of(
        "rules: [{matches: [{sni: {type: Exact, value: db.mesh}}], default: {connectionTimeout: 1m}}]",
    ));
    wrong(&of(""), &["spec: at least one of 'from', 'to' or 'rules' has to be defined"]);
    wrong(
        &of(
            "to: [{targetRef: {kind: MeshServiceSubset, name: db}, default: {http: {}}}, {targetRef: {kind: Mesh}, default: {connectionTimeout: 0s, idleTimeout: -1s, http: {requestTimeout: -1h, streamIdleTimeout: 10d}}}]",
        ),
        &[
            "spec.to[1].default.http.streamIdleTimeout: must be a duration, like 1h30m or 500ms",
            "spec.to[0].targetRef.kind: value 'MeshServiceSubset' is not supported",
            "spec.to[0].default.http: at least one timeout in this section should be configured",
            "spec.to[1].default.connectionTimeout: must be greater than zero when defined",
            "spec.to[1].default.idleTimeout: must not be negative when defined",
            "spec.to[1].default.http.requestTimeout: must not be negative when defined",
        ],
    );
    wrong(
        &of(
            "rules: [{matches: [{}, {spiffeID: {type: Prefix, value: 'spiffe://m/a'}}], default: {idleTimeout: 1s, http: {requestTimeout: 1s, maxConnectionDuration: 1s}}}]",
        ),
        &[
            "spec.rules[0].matches[0]: at least one of 'spiffeID' or 'sni' has to be defined",
            &format!("spec.rules[0].default.idleTimeout: {BY_CALLER}"),
            &format!("spec.rules[0].default.http.maxConnectionDuration: {BY_CALLER}"),
        ],
    );
    wrong(
        &of(
            "targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: MeshService, name: db}, default: {connectionTimeout: 1s}}]",
        ),
        &[
            "spec.to[0].targetRef.kind: value 'MeshService' is not supported",
            "spec.to[0].default.connectionTimeout: can't be specified when top-level TargetRef is referencing MeshHTTPRoute",
        ],
    );
}

#[test]
fn times_that_a_match_comes_too_late_for_are_warned_of() {
    let rule = "rules: [{matches: [{sni: {type: Exact, value: db.mesh}}], default: {connectionTimeout: 1m, http: {requestTimeout: 1s, maxStreamDuration: 1h}}}]";
    assert_eq!(
        warnings(&of("MeshTimeout", rule)),
        ["spec.rules[0].default.connectionTimeout has no effect: it acts before it is known who calls"]
    );
}

#[test]
fn what_selects_nothing_is_warned_of() {
    let of = |target: &str| {
        let to = "to: [{targetRef: {kind: Mesh}, default: {http: {numRetries: 1}}}]";
        warnings(&of("MeshRetry", &format!("targetRef: {target}, {to}")))
    };
    assert_eq!(
        of("{kind: MeshGateway, name: g}"),
        ["spec.targetRef selects nothing: there are no builtin gateways"]
    );
    assert_eq!(of("{kind: MeshHTTPRoute, name: r}"), [""; 0]);
}

#[test]
fn what_is_about_connections_is_not_a_routes() {
    let to =
        |conf: &str| format!("to: [{{targetRef: {{kind: MeshHTTPRoute, name: r}}, default: {{{conf}}}}}]");
    let timeout =
        to("connectionTimeout: 1s, idleTimeout: 1s, http: {requestTimeout: 1s, maxConnectionDuration: 1s}");
    let said = |field: &str| {
        format!("spec.to[0].default.{field} has no effect: it is about connections, which routes share")
    };
    assert_eq!(
        warnings(&of("MeshTimeout", &timeout)),
        ["connectionTimeout", "idleTimeout", "http.maxConnectionDuration"].map(said)
    );
    let retry = to("tcp: {maxConnectAttempt: 2}, http: {numRetries: 1}");
    assert_eq!(warnings(&of("MeshRetry", &retry)), [said("tcp")]);
}

#[test]
fn mesh_retries() {
    let to =
        |conf: &str| of("MeshRetry", &format!("to: [{{targetRef: {{kind: Mesh}}, default: {{{conf}}}}}]"));
    right(&to("tcp: {maxConnectAttempt: 5}, grpc: {retryOn: [Canceled, Unavailable]}"));
    right(&to("http: {numRetries: 0, perTryTimeout: 0s, retryOn: [5xx, HttpMethodGet, 409, '503']}"));
    right(&to(
        "http: {backOff: {baseInterval: 1ms}, rateLimitedBackOff: {resetHeaders: [{name: retry-after, format: Seconds}]}}",
    ));
    right(&to("http: {hostSelection: [{predicate: OmitPreviousHosts}], hostSelectionMaxAttempts: -1}"));
    wrong(&of("MeshRetry", ""), &["spec.to: needs at least one item"]);
    wrong(&to(""), &["spec.to[0].default.conf: at least one of the 'tcp', 'http', 'grpc' must be specified"]);
    wrong(
        &to("tcp: {}, http: {hostSelectionMaxAttempts: 3}, grpc: {}"),
        &[
            "spec.to[0].default.conf.tcp: must not be empty",
            "spec.to[0].default.conf.http: must not be empty",
            "spec.to[0].default.conf.grpc: must not be empty",
        ],
    );
    wrong(
        &to(
            "http: {perTryTimeout: -1s, backOff: {}, rateLimitedBackOff: {maxInterval: 0s}, retryOn: ['600', 5XX], retriableRequestHeaders: [{name: A}]}",
        ),
        &[
            "spec.to[0].default.conf.http.perTryTimeout: must not be negative when defined",
            "spec.to[0].default.conf.http.backOff: must not be empty",
            "spec.to[0].default.conf.http.rateLimitedBackOff.maxInterval: must be greater than zero when defined",
            "spec.to[0].default.conf.http.rateLimitedBackOff.resetHeaders: must be defined",
            "spec.to[0].default.conf.http.retryOn[0]: unknown item '600'",
            "spec.to[0].default.conf.http.retryOn[1]: unknown item '5XX'",
            "spec.to[0].default.conf.http.retriableRequestHeaders[0].name: must be a header's name in lower case, of at most 256 characters",
        ],
    );
    wrong(
        &to(
            "grpc: {backOff: {baseInterval: 0s}, rateLimitedBackOff: {resetHeaders: [{format: Days}]}, retryOn: [OK]}",
        ),
        &[
            "spec.to[0].default.conf.grpc.backOff.baseInterval: must be greater than zero when defined",
            "spec.to[0].default.conf.grpc.rateLimitedBackOff.resetHeaders[0].name: must not be empty",
            "spec.to[0].default.conf.grpc.rateLimitedBackOff.resetHeaders[0].format: \"format\" must be one of [\"Seconds\", \"UnixTimestamp\"]",
            "spec.to[0].default.conf.grpc.retryOn[0]: unknown item 'OK'",
        ],
    );
    wrong(
        &to(
            "http: {hostSelection: [{predicate: OmitHostsWithTags}, {predicate: OmitPreviousPriorities, updateFrequency: 0}, {predicate: OmitPreviousPriorities}, {predicate: Omit}]}",
        ),
        &[
            "spec.to[0].default.conf.http.hostSelection[0].tags: must be defined",
            "spec.to[0].default.conf.http.hostSelection[1].updateFrequency: must be defined and greater than zero",
            "spec.to[0].default.conf.http.hostSelection[2].predicate: OmitPreviousPriorities must only be specified once",
            "spec.to[0].default.conf.http.hostSelection[3].predicate: unknown predicate type 'Omit'",
        ],
    );
    wrong(
        &of(
            "MeshRetry",
            "targetRef: {kind: MeshGateway, name: g}, to: [{targetRef: {kind: MeshService, name: db}, default: {tcp: {maxConnectAttempt: 0}}}]",
        ),
        &[
            "spec.to[0].targetRef.kind: value 'MeshService' is not supported",
            "spec.to[0].default.conf.tcp.maxConnectAttempt: must be greater than 0",
        ],
    );
}

#[test]
fn retries_are_stored_as_kumas_schema_has_them() {
    let to = "to: [{targetRef: {kind: Mesh}, default: {http: {retryOn: [503], hostSelection: [{predicate: OmitPreviousPriorities}]}}}]";
    let document = document::parse_text(&of("MeshRetry", to)).unwrap();
    let checked = document::check(&document, None).unwrap().resource.spec;
    let http = &checked["to"][0]["default"]["http"];
    assert_eq!(http["retryOn"], serde_json::json!(["503"]));
    assert_eq!(http["hostSelection"][0]["updateFrequency"], 2);
}

#[test]
fn mesh_circuit_breakers() {
    let of = |spec| of("MeshCircuitBreaker", spec);
    right(&of(
        "to: [{targetRef: {kind: Mesh}, default: {outlierDetection: {maxEjectionPercent: 0, healthyPanicThreshold: '0.5', detectors: {totalFailures: {}}}}}]",
    ));
    right(&of("rules: [{default: {connectionLimits: {maxRequests: 1}}}]"));
    wrong(
        &of(
            "from: [{targetRef: {kind: MeshSubset}, default: {}}], rules: [{default: {outlierDetection: {}}}]",
        ),
        &[
            "spec: fields 'to' and 'from' must be empty when 'rules' is defined",
            "spec.from[0].targetRef.kind: value 'MeshSubset' is not supported",
            "spec.from[0].default: at least one of: 'connectionLimits' or 'outlierDetection' should be configured",
            "spec.from[0].default.outlierDetection.detectors: must be defined",
        ],
    );
    wrong(
        &of(
            "to: [{targetRef: {kind: Mesh}, default: {connectionLimits: {maxRetries: 0}, outlierDetection: {interval: -1s, maxEjectionPercent: 101, healthyPanicThreshold: '100.1', detectors: {successRate: {standardDeviationFactor: '0'}, failurePercentage: {requestVolume: 0, threshold: 200}}}}}]",
        ),
        &[
            "spec.to[0].default.connectionLimits.maxRetries: must be greater than 0",
            "spec.to[0].default.outlierDetection.interval: must be greater than zero when defined",
            "spec.to[0].default.outlierDetection.maxEjectionPercent: must be in inclusive range [0, 100]",
            "spec.to[0].default.outlierDetection.healthyPanicThreshold: must be in inclusive range [0.0, 100.0]",
            "spec.to[0].default.outlierDetection.detectors.successRate.standardDeviationFactor: must be greater than 0",
            "spec.to[0].default.outlierDetection.detectors.failurePercentage.requestVolume: must be greater than 0",
            "spec.to[0].default.outlierDetection.detectors.failurePercentage.threshold: must be in inclusive range [0, 100]",
        ],
    );
    wrong(
        &of(
            "to: [{targetRef: {kind: Mesh}, default: {outlierDetection: {healthyPanicThreshold: most, detectors: {}}}}]",
        ),
        &[
            "spec.to[0].default.outlierDetection.healthyPanicThreshold: string must be a valid number",
            "spec.to[0].default.outlierDetection.detectors: must have at least one defined: totalFailures, gatewayFailures, localOriginFailures, successRate, failurePercentage",
        ],
    );
}

#[test]
fn what_a_circuit_breaker_does_not_do_is_warned_of() {
    let of = |spec: String| of("MeshCircuitBreaker", &spec);
    let all = "connectionLimits: {maxConnections: 1, maxConnectionPools: 1, maxPendingRequests: 1, maxRetries: 1, maxRequests: 1}, outlierDetection: {detectors: {totalFailures: {}}}";
    assert_eq!(
        warnings(&of(format!("rules: [{{default: {{{all}}}}}]"))),
        [
            "spec.rules[0].default.connectionLimits.maxConnectionPools has no effect: a proxy keeps one pool an endpoint, whatever the request",
            "spec.rules[0].default.connectionLimits.maxRetries has no effect: requests to the application are not repeated",
            "spec.rules[0].default.outlierDetection has no effect: an inbound has one application: without it nobody would be left to answer",
        ]
    );
    assert_eq!(
        warnings(&of(format!(
            "to: [{{targetRef: {{kind: MeshExternalService, name: api}}, default: {{{all}}}}}]"
        ))),
        [
            "spec.to[0].default.outlierDetection has no effect: endpoints of a destination outside of the mesh are tried in the order that it gives them",
            "spec.to[0].default.connectionLimits.maxConnectionPools has no effect: a proxy keeps one pool an endpoint, whatever the request",
        ]
    );
}

#[test]
fn mesh_tls() {
    let of = |spec| of("MeshTLS", spec);
    right(&of("rules: [{default: {mode: Permissive, tlsVersion: {min: TLS13, max: TLSAuto}}}]"));
    wrong(
        &of(
            "from: [{targetRef: {kind: Mesh}, default: {mode: Strict, tlsVersion: {min: TLS13, max: TLS12}, tlsCiphers: [RC4]}}]",
        ),
        &[
            "spec.from[0].default.tlsVersion.min: min version must be lower than max",
            "spec.from[0].default.tlsCiphers[0]: \"tlsCiphers\" must be one of [\"ECDHE-ECDSA-AES128-GCM-SHA256\", \"ECDHE-ECDSA-AES256-GCM-SHA384\", \"ECDHE-ECDSA-CHACHA20-POLY1305\", \"ECDHE-RSA-AES128-GCM-SHA256\", \"ECDHE-RSA-AES256-GCM-SHA384\", \"ECDHE-RSA-CHACHA20-POLY1305\"]",
        ],
    );
    let older = "rules: [{default: {tlsVersion: {min: TLS10, max: TLS11}}}]";
    wrong(
        &of(older),
        &[
            "spec.rules[0].default.tlsVersion.max: not supported yet: TLS 1.2 is the lowest version that is spoken",
        ],
    );
    assert_eq!(
        warnings(&of(
            "rules: [{default: {mode: Permissive, tlsVersion: {min: TLS11, max: TLS12}, tlsCiphers: [ECDHE-RSA-AES128-GCM-SHA256]}}]"
        )),
        [
            "mode Permissive: permissions do not cover callers without a certificate",
            "tlsVersion.min: TLS 1.2 is the lowest version that is spoken",
        ]
    );
    wrong(
        &of(
            "targetRef: {kind: Dataplane, labels: {a: b}}, rules: [{default: {mode: Loose, tlsVersion: {min: SSL3}}}]",
        ),
        &[
            "spec.rules[0].default.tlsVersion: tlsVersion can only be defined with top level targetRef kind: Mesh",
            "spec.rules[0].default.mode: \"mode\" must be one of [\"Permissive\", \"Strict\"]",
        ],
    );
}

#[test]
fn mesh_rate_limits() {
    let of = |spec: &str| of("MeshRateLimit", spec);
    const SIDECARS: &str = "targetRef: {kind: Mesh, proxyTypes: [Sidecar]}";
    const RATE: &str = "{num: 1, interval: 51ms}";
    right(&of(&format!(
        "{SIDECARS}, from: [{{targetRef: {{kind: Mesh}}, default: {{local: {{http: {{requestRate: {RATE}, onRateLimit: {{status: 503, headers: {{set: [{{name: retry-after, value: '1'}}], add: [{{name: retry-after, value: '2'}}]}}}}}}, tcp: {{connectionRate: {RATE}}}}}}}}}]"
    )));
    right(&of("to: [{targetRef: {kind: Mesh}, default: {local: {http: {disabled: true}}}}]"));
    wrong(
        &of("rules: [{default: {}}], from: [{targetRef: {kind: Mesh}, default: {}}]"),
        &[
            "spec: fields 'to' and 'from' must be empty when 'rules' is defined",
            "spec.rules: must not be defined",
            "spec.from: must not be defined when the scope includes a Gateway, select only proxyType Sidecar or select only gateways and use spec.to",
        ],
    );
    wrong(
        &of(&format!("{SIDECARS}, to: [{{targetRef: {{kind: Mesh}}, default: {{}}}}]")),
        &["spec.to: must not be defined"],
    );
    wrong(
        &of(
            "targetRef: {kind: Dataplane}, rules: [{default: {local: {}}}, {default: {local: {http: {}, tcp: {}}}}, {matches: [{}, {spiffeID: {type: Prefix, value: 'spiffe://m/a'}}], default: {local: {tcp: {disabled: true}}}}]",
        ),
        &[
            "spec.rules[0].default.local: must have at least one defined: tcp, http",
            "spec.rules[1].default.local.http: must have at least one defined: disabled, requestRate, onRateLimit",
            "spec.rules[1].default.local.tcp: must have at least one defined: disabled, connectionRate",
            "spec.rules[2].matches[0]: at least one of 'spiffeID' or 'sni' has to be defined",
            &format!("spec.rules[2].default.local.tcp: {BY_CALLER}"),
        ],
    );
    wrong(
        &of(
            "targetRef: {kind: Dataplane}, rules: [{default: {local: {http: {requestRate: {num: 0, interval: 50ms}, onRateLimit: {status: 0, headers: {set: [{name: A, value: ''}], add: [{name: b, value: \"1\\r\\nc: 2\"}, {name: b, value: ''}]}}}}}}]",
        ),
        &[
            "spec.rules[0].default.local.http.requestRate.num: must be greater than 0",
            "spec.rules[0].default.local.http.requestRate.interval: must be greater than: 50ms",
            "spec.rules[0].default.local.http.onRateLimit.status: must be greater than 0",
            "spec.rules[0].default.local.http.onRateLimit.headers.set[0].name: must be a header's name in lower case, of at most 256 characters",
            "spec.rules[0].default.local.http.onRateLimit.headers.add[0].value: must not hold control characters",
            "spec.rules[0].default.local.http.onRateLimit.headers.add[1].name: duplicate header name",
        ],
    );
    let by_name = of(
        "targetRef: {kind: Dataplane}, rules: [{matches: [{sni: {type: Exact, value: db.mesh}}], default: {local: {tcp: {disabled: true}}}}]",
    );
    assert!(
        warnings(&by_name).iter().any(|w| w.starts_with("spec.rules[0].default.local.tcp has no effect"))
    );
}

#[test]
fn mesh_fault_injections() {
    let of = |spec: &str| of("MeshFaultInjection", spec);
    right(&of("rules: [{default: {http: [{abort: {httpStatus: 503, percentage: '0.5'}}, {delay: {}}]}}]"));
    right(&of("to: [{targetRef: {kind: Mesh}, default: {http: []}}]"));
    let tags = of(
        "targetRef: {kind: Dataplane}, from: [{targetRef: {kind: MeshService, name: web}, default: {}}, {targetRef: {kind: Mesh}, default: {}}]",
    );
    right(&tags);
    assert_eq!(warnings(&tags), [""; 0]);
    wrong(
        &of("from: [{targetRef: {kind: Mesh}, default: {}}], rules: [{default: {}}]"),
        &[
            "spec: fields 'to' and 'from' must be empty when 'rules' is defined",
            "spec.from: must not be defined when the scope includes a Gateway, select only proxyType Sidecar or select only gateways and use spec.to",
        ],
    );
    wrong(
        &of(
            "rules: [{matches: [{}], default: {http: [{abort: {httpStatus: 99, percentage: -1}}, {delay: {value: -1s, percentage: all}, responseBandwidth: {percentage: '100.1'}}, {responseBandwidth: {limit: 1MBps}}]}}]",
        ),
        &[
            "spec.rules[0].matches[0]: at least one of 'spiffeID' or 'sni' has to be defined",
            "spec.rules[0].default.http.abort[0].httpStatus: must be in inclusive range [100, 599]",
            "spec.rules[0].default.http.abort[0].percentage: must be in inclusive range [0.0, 100.0]",
            "spec.rules[0].default.http.delay[1].value: must not be negative when defined",
            "spec.rules[0].default.http.delay[1].percentage: string must be a valid number",
            "spec.rules[0].default.http.responseBandwidth[1].limit: must be defined",
            "spec.rules[0].default.http.responseBandwidth[1].percentage: must be in inclusive range [0.0, 100.0]",
            "spec.rules[0].default.http.responseBandwidth[2].limit: must be in kbps/Mbps/Gbps units",
        ],
    );
    wrong(
        &of(
            "targetRef: {kind: Dataplane, labels: {a: b}, sectionName: s}, to: [{targetRef: {kind: Mesh}, default: {}}]",
        ),
        &[
            "spec.targetRef.sectionName: can only be used with inbound policies",
            "spec.to: must not be defined",
        ],
    );
}

#[test]
fn mesh_request_filters() {
    let of = |spec| of("MeshRequestFilter", spec);
    right(&of("rules: [{default: {}}]"));
    right(&of(
        "targetRef: {kind: Dataplane, labels: {app: api}, sectionName: http}, rules: [{default: {ruleSets: [], patterns: [{name: traversal, regex: '[.][.]/', in: [Path, Body]}], action: Observe, status: 400, body: {maxBytes: 67108864, onLimit: Block}}}]",
    ));
    wrong(
        &of("targetRef: {kind: MeshService, name: api}"),
        &["spec.targetRef.kind: value 'MeshService' is not supported", "spec.rules: must be defined"],
    );
    wrong(
        &of(
            "rules: [{default: {ruleSets: [heartbleed], action: Ignore, status: 200, body: {maxBytes: 0, onLimit: Later}}}, {default: {ruleSets: []}}]",
        ),
        &[
            "spec.rules[0].default.ruleSets[0]: \"ruleSets\" must be one of [\"log4shell\"]",
            "spec.rules[0].default.action: \"action\" must be one of [\"Block\", \"Observe\"]",
            "spec.rules[0].default.status: must be in inclusive range [400, 599]",
            "spec.rules[0].default.body.maxBytes: must be in inclusive range [1, 67108864]",
            "spec.rules[0].default.body.onLimit: \"onLimit\" must be one of [\"Block\", \"Observe\"]",
            "spec.rules[1].default: at least one of: 'ruleSets' or 'patterns' should be configured",
        ],
    );
    wrong(
        &of(
            "rules: [{default: {patterns: [{name: a, regex: '(', in: [Cookies]}, {name: a, regex: '(a{1000}){1000}'}, {regex: '', in: []}, {name: 'a b', regex: x}]}}]",
        ),
        &[
            "spec.rules[0].default.patterns[0].regex: invalid regex",
            "spec.rules[0].default.patterns[0].in[0]: \"in\" must be one of [\"Path\", \"Query\", \"HeaderNames\", \"Headers\", \"Body\", \"Trailers\"]",
            "spec.rules[0].default.patterns[1].name: name \"a\" is already defined",
            "spec.rules[0].default.patterns[1].regex: invalid regex",
            "spec.rules[0].default.patterns[2].name: must not be empty",
            "spec.rules[0].default.patterns[2].regex: must not be empty",
            "spec.rules[0].default.patterns[2].in: must not be empty",
            "spec.rules[0].default.patterns[3].name: must consist of at most 63 alphanumeric characters, dots, dashes and underscores",
        ],
    );
    let patterns: Vec<String> = (0..17).map(|n| format!("{{name: p{n}, regex: x}}")).collect();
    wrong(
        &of(&format!("rules: [{{default: {{patterns: [{}]}}}}]", patterns.join(", "))),
        &["spec.rules[0].default.patterns: must have at most 16 items"],
    );
}

#[test]
fn destinations_that_nothing_holds_for_are_warned_of() {
    for (kind, default) in [
        ("MeshTimeout", "{idleTimeout: 1s}"),
        ("MeshRetry", "{tcp: {maxConnectAttempt: 2}}"),
        ("MeshCircuitBreaker", "{connectionLimits: {maxConnections: 2}}"),
    ] {
        let to = |target: &str| of(kind, &format!("to: [{{targetRef: {target}, default: {default}}}]"));
        for target in ["MeshService", "MeshExternalService", "MeshMultiZoneService"] {
            let said = warnings(&to(&format!("{{kind: {target}, name: api}}")));
            assert_eq!(said, Vec::<String>::new(), "{kind} {target}");
        }
    }
    let outside = of(
        "MeshHealthCheck",
        "to: [{targetRef: {kind: MeshExternalService, name: api}, default: {tcp: {}}}]",
    );
    let nowhere = "spec.to[0] has no effect: it holds inside the mesh, and this destination is outside of it";
    assert_eq!(warnings(&outside), [nowhere]);
    let selects = of(
        "MeshRetry",
        "to: [{targetRef: {kind: MeshExternalService, name: api}, default: {http: {hostSelection: [{predicate: OmitPreviousHosts}]}}}]",
    );
    let said = warnings(&selects);
    assert!(
        said[0].starts_with("spec.to[0].default.http.hostSelection has no effect: endpoints"),
        "{said:?}"
    );
}

#[test]
fn conditions_on_headers_are_few_and_one_whole_expression() {
    let of = |items: &str| {
        of(
            "MeshRetry",
            &format!(
                "to: [{{targetRef: {{kind: Mesh}}, default: {{http: {{retriableRequestHeaders: [{items}]}}}}}}]"
            ),
        )
    };
    let item = "{type: Exact, name: a, value: b}";
    right(&of(&[item; 16].join(", ")));
    wrong(
        &of(&[item; 17].join(", ")),
        &["spec.to[0].default.conf.http.retriableRequestHeaders: must have at most 16 items"],
    );
    for pattern in ["(?x)a # swallows what closes it", "a)|(b"] {
        wrong(
            &of(&format!("{{type: RegularExpression, name: a, value: '{pattern}'}}")),
            &["spec.to[0].default.conf.http.retriableRequestHeaders[0].value: invalid regex"],
        );
    }
}
