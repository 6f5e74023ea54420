//! What makes a document of each kind valid: a table of wrong ones with all that is said of each, and right ones.

use super::hostname_generator::{Named, Template, TemplateError};
use super::mesh::{Mesh, mesh_default};
use crate::document;
use std::collections::BTreeMap;

pub(super) fn violations(yaml: &str) -> Vec<String> {
    match document::check(&document::parse_text(yaml).unwrap(), None) {
        Ok(_) => Vec::new(),
        Err(problem) => {
            let mut all: Vec<String> = problem.violations.iter().map(ToString::to_string).collect();
            assert!(!all.is_empty(), "{problem}\n{yaml}");
            all.sort();
            all
        }
    }
}

pub(super) fn warnings(yaml: &str) -> Vec<String> {
    document::check(&document::parse_text(yaml).unwrap(), None).unwrap().warnings
}

#[track_caller]
pub(super) fn wrong(yaml: &str, expected: &[&str]) {
    assert_eq!(violations(yaml), expected, "{yaml}");
}

#[track_caller]
pub(super) fn right(yaml: &str) {
    wrong(yaml, &[]);
}

#[test]
fn mesh() {
    let of = |fields: &str| format!("{{type: Mesh, name: m, {fields}}}");
    right(&of(
        "mtls: {enabledBackend: ca, backends: [{name: ca, type: builtin, mode: 1, dpCert: {rotation: {expiration: 1d12h}}}]}",
    ));
    wrong(
        &of(
            "mtls: {enabledBackend: other, backends: [{name: ca, type: provided, dpCert: {rotation: {expiration: soon}}}]}, routing: {zoneEgress: true}",
        ),
        &[
            "mtls.backends[0].conf: missing field `cert`",
            "mtls.dpcert.rotation.expiration: has to be a valid format",
            "mtls.enabledBackend: has to be set to one of the backends in the mesh",
        ],
    );
    wrong(
        &of("mtls: {backends: [{name: ca, type: vault}]}"),
        &["mtls.backends[0].type: not supported yet: \"vault\"; the types are \"builtin\" and \"provided\""],
    );
    wrong(&of("routing: {zoneEgress: true}"), &["mtls: has to be set when zoneEgress enabled"]);
    wrong(
        &of("constraints: {dataplaneProxy: {restrictions: [{tags: {}}]}}"),
        &[
            "constraints.dataplaneProxy.restrictions[0].tags: must have at least one tag",
            "constraints: not supported yet: nothing would hold Dataplanes to them; bind dataplane tokens to services instead",
        ],
    );
    wrong(
        &of(
            "logging: {defaultBackend: a, backends: [{name: b, type: fax}]}, tracing: {backends: [{name: t, type: datadog, sampling: -1, conf: {port: 0}}]}",
        ),
        &[
            "logging.backends[0].type: unknown backend type. Available backends: \"tcp\", \"file\"",
            "logging.defaultBackend: has to be set to one of the logging backend in mesh",
            "tracing.backends[0].config.address: cannot be empty",
            "tracing.backends[0].config.port: port must be in the range [1, 65535]",
            "tracing.backends[0].sampling: has to be in [0.0 - 100.0] range",
        ],
    );
}

#[test]
fn a_root_is_provided_without_showing_its_key() {
    let of = |conf: &str| {
        format!(
            "{{type: Mesh, name: m, mtls: {{enabledBackend: ca, backends: [{{name: ca, type: provided, conf: {conf}}}]}}}}"
        )
    };
    right(&of("{cert: {secret: ca-cert}, key: {secret: ca-key}}"));
    right(&of("{cert: {inlineString: PEM}, key: {secret: ca-key}}"));
    let shown = "not supported yet: all users read a Mesh, and its history has it in clear; put the key into a Secret of the mesh, and name that";
    for (conf, violations) in [
        ("{cert: {secret: a}, key: {inlineString: PEM}}", vec![format!("mtls.backends[0].conf.key.inlineString: {shown}")]),
        ("{cert: {inline: UEVN}, key: {inline: UEVN}}", vec![format!("mtls.backends[0].conf.key.inline: {shown}")]),
        (
            "{cert: {}, key: {secret: a}}",
            vec!["mtls.backends[0].conf.cert: must have exactly one of: secret, inline, inlineString".to_owned()],
        ),
        (
            "{cert: {file: /etc/ca}, key: {secret: a}}",
            vec![
                "mtls.backends[0].conf.cert.file: not supported yet: a path on the control plane's host, which writers of policies must not read; use secret or inline"
                    .to_owned(),
            ],
        ),
        (
            "{cert: {secret: a}, key: {secret: b}, chain: {secret: c}}",
            vec!["mtls.backends[0].conf: unknown field `chain`, expected `cert` or `key`".to_owned()],
        ),
    ] {
        let violations: Vec<&str> = violations.iter().map(String::as_str).collect();
        wrong(&of(conf), &violations);
    }
    let unused = "{type: Mesh, name: m, mtls: {enabledBackend: ca, backends: [{name: ca, type: builtin, conf: {a: b}}]}}";
    assert!(warnings(unused).iter().any(|warning| warning.contains("nothing to configure")));
}

#[test]
fn a_mesh_that_says_nothing_of_passthrough_has_none() {
    let document = document::check(&document::parse_text("{type: Mesh, name: m}").unwrap(), None).unwrap();
    assert_eq!(document.resource.spec["networking"]["outbound"]["passthrough"], false);
    assert!(document.warnings[0].contains("Kuma's default is true"));
    let mesh: Mesh = document.resource.parse().unwrap();
    assert!(!mesh.passthrough() && mesh.forbids_mesh_external_services());
    let said = warnings("{type: Mesh, name: m, networking: {outbound: {passthrough: true}}}");
    assert!(said.iter().all(|warning| !warning.contains("passthrough")), "{said:?}");
}

#[test]
fn a_mesh_that_enforces_less_is_warned_of() {
    let backends = "backends: [{name: ca, type: builtin, mode: PERMISSIVE}]";
    let said = warnings(&format!("{{type: Mesh, name: m, mtls: {{enabledBackend: ca, {backends}}}}}"));
    assert!(said.iter().any(|warning| warning.contains("PERMISSIVE")));
    assert!(said.iter().any(|warning| warning.contains("zoneEgress is off")));
    let said = warnings("{type: Mesh, name: m}");
    assert!(said.iter().any(|warning| warning.starts_with("mtls is off")));
}

#[test]
fn the_first_mesh_is_closed() {
    let mesh: Mesh = mesh_default().parse().unwrap();
    assert_eq!(mesh.mtls_backend().unwrap().type_, "builtin");
    assert_eq!(mesh.mtls_backend().unwrap().mode, super::mesh::MtlsMode::Strict);
    assert!(mesh.zone_egress() && !mesh.passthrough());
    let again = document::check(&document::to_json(&mesh_default(), None), None).unwrap();
    assert_eq!((again.resource, again.warnings), (mesh_default(), Vec::new()));
}

#[test]
fn dataplane() {
    let of = |networking: &str| format!("{{type: Dataplane, name: d, networking: {{{networking}}}}}");
    right(&of(
        "address: db.internal, advertisedAddress: 198.51.100.1, inbound: [{port: 1, tags: {kuma.io/service: s}}]",
    ));
    wrong("{type: Dataplane, name: d}", &["networking: must be defined"]);
    wrong(
        &of(
            "address: 192.0.2.1, inbound: [{port: 80, serviceAddress: 192.0.2.1, protocol: smtp, tags: {a: b}, serviceProbe: {interval: 0s, healthyThreshold: 0, tcp: {}}}]",
        ),
        &[
            "networking.inbound[0].protocol: \"protocol\" must be one of [\"grpc\", \"http\", \"http2\", \"kafka\", \"tcp\"]",
            "networking.inbound[0].serviceAddress: serviceAddress and servicePort has to differ from address and port",
            "networking.inbound[0].serviceProbe.healthyThreshold: must have a positive value",
            "networking.inbound[0].serviceProbe.interval: must have a positive value",
            "networking.inbound[0].tags[\"kuma.io/service\"]: tag has to exist",
        ],
    );
    wrong(
        &of(
            "address: 192.0.2.1, outbound: [{port: 80, address: here, backendRef: {kind: MeshExternalService, name: x}}]",
        ),
        &["networking.outbound[0].address: address has to be valid IP address"],
    );
    wrong(
        &of("address: 192.0.2.1, admin: {port: 9}, outbound: [{port: 9, tags: {kuma.io/service: s}}]"),
        &["networking.admin.port: must differ from outbound"],
    );
}

#[test]
fn no_dataplane_takes_the_egresses_name() {
    let reason = "\"zone-egress\" is the zone egresses' name";
    wrong(
        "{type: Dataplane, name: d, networking: {address: 192.0.2.1, inbound: [{port: 1, tags: {kuma.io/service: zone-egress}}]}}",
        &[&format!("networking.inbound[0].tags[\"kuma.io/service\"]: {reason}")],
    );
    wrong(
        "{type: Dataplane, name: d, networking: {address: 192.0.2.1, gateway: {tags: {kuma.io/service: zone-egress}}}}",
        &[&format!("networking.gateway.tags[\"kuma.io/service\"]: {reason}")],
    );
}

#[test]
fn builtin_gateways_are_not_here_yet() {
    let gateway = |kind: &str| {
        format!(
            "{{type: Dataplane, name: d, networking: {{address: 192.0.2.1, gateway: {{type: {kind}, tags: {{kuma.io/service: g}}}}}}}}"
        )
    };
    right(&gateway("DELEGATED"));
    wrong(&gateway("BUILTIN"), &["networking.gateway.type: not supported yet: builtin gateways"]);
}

#[test]
fn zone_proxies() {
    right(
        "{type: ZoneIngress, name: i, networking: {address: 192.0.2.1, port: 10001, advertisedAddress: in.example, advertisedPort: 443}}",
    );
    wrong(
        "{type: ZoneIngress, name: i, networking: {address: '::', port: 10001, advertisedPort: 70000}}",
        &[
            "networking.address: must not be 0.0.0.0 or ::",
            "networking.advertisedAddress: has to be defined with advertisedPort",
            "networking.advertisedPort: port must be in the range [1, 65535]",
        ],
    );
    wrong(
        "{type: ZoneEgress, name: e, networking: {address: 127.0.0.1, port: 9901, admin: {port: 9901}}}",
        &["networking.admin.port: must differ from port"],
    );
    wrong("{type: ZoneEgress, name: e}", &["networking.port: port must be in the range [1, 65535]"]);
}

#[test]
fn a_zone_may_be_disabled() {
    assert!(violations("{type: Zone, name: z, enabled: false}").is_empty());
}

#[test]
fn external_service() {
    let of = |networking: &str| {
        format!(
            "{{type: ExternalService, name: e, tags: {{kuma.io/service: s}}, networking: {{{networking}}}}}"
        )
    };
    right(&of("address: '[2001:db8::1]:443', allowedAddresses: ['2001:db8::/32']"));
    right(&of(
        "address: 'api.example:443', tls: {enabled: true, caCert: {inlineString: pem}, clientCert: {secret: c}, clientKey: {secret: k}}",
    ));
    wrong(
        &of("address: 'api.example'"),
        &[
            "networking.address: address has to be a valid IP address or a domain name",
            "networking.address: port must be in the range [1, 65535]",
            "networking.address: unable to parse address",
            "networking.address: unable to parse port in address",
        ],
    );
    // A number alone is an address to many resolvers.
    assert_eq!(violations(&of("address: '2130706433:80'")).len(), 1);
    wrong(
        &of(
            "address: 'a.example:1', allowedAddresses: [everything], tls: {caCert: {file: /etc/shadow}, clientKey: {inline: '%'}}",
        ),
        &[
            "networking.allowedAddresses[0]: must be addresses in CIDR notation, like 192.0.2.0/24",
            "networking.tls.caCert.file: not supported yet: a path on the control plane's host, which writers of policies must not read; use secret or inline",
            "networking.tls.clientCert: must be defined when clientKey is defined",
            "networking.tls.clientKey.inline: must be base64",
        ],
    );
    wrong(&of("address: 's:80'"), &["tags[\"kuma.io/service\"]: cannot be the same as networking.address"]);
}

#[test]
fn mesh_service() {
    let of = |spec: &str| format!("{{type: MeshService, name: m, spec: {{{spec}}}}}");
    right(&of(
        "selector: {dataplaneTags: {kuma.io/service: s}}, ports: [{port: 80, name: http, targetPort: web, appProtocol: http}]",
    ));
    wrong(
        &of(
            "selector: {dataplaneTags: {a: b}, dataplaneRef: {name: d}}, state: Asleep, ports: [{port: 80}, {port: 80}, {port: 81, name: '80'}, {port: 0, appProtocol: smtp}]",
        ),
        &[
            "spec.ports[1].port: port 80 is already defined",
            "spec.ports[2].name: name \"80\" is already defined",
            "spec.ports[3].appProtocol: \"appProtocol\" must be one of [\"grpc\", \"http\", \"http2\", \"kafka\", \"tcp\"]",
            "spec.ports[3].port: port must be in the range [1, 65535]",
            "spec.selector: must specify only one of: dataplaneTags, dataplaneRef, or dataplaneLabels",
            "spec.state: \"state\" must be one of [\"Available\", \"Unavailable\"]",
        ],
    );
    wrong("{type: MeshService, name: m}", &["spec: must be defined"]);
    let ports: Vec<String> = (1..=257).map(|port| format!("{{port: {port}}}")).collect();
    let identity = |value: &str| format!("{{type: ServiceTag, value: {value}}}");
    let many = vec![identity("web"); 65].join(", ");
    wrong(
        &of(&format!("ports: [{}], identities: [{many}]", ports.join(", "))),
        &["spec.identities: must have at most 64 items", "spec.ports: must have at most 256 items"],
    );
    wrong(
        &of(&format!("identities: [{}]", identity(&"w".repeat(2_049)))),
        &["spec.identities[0].value: must have at most 2048 bytes"],
    );
    let long = vec![identity(&"w".repeat(2_000)); 5].join(", ");
    wrong(&of(&format!("identities: [{long}]")), &["spec.identities: must have at most 8192 bytes together"]);
}

#[test]
fn mesh_external_service() {
    let of = |spec: &str| {
        format!("{{type: MeshExternalService, name: m, spec: {{match: {{port: 443}}, {spec}}}}}")
    };
    right(&of("endpoints: [{address: a.example, port: 443, priority: 1}], allowedAddresses: [192.0.2.0/24]"));
    assert!(
        warnings(&of("endpoints: []")).iter().any(|warning| warning.contains("every connection is refused"))
    );
    wrong(
        &of(
            "endpoints: [{address: a.example, port: 443, priority: 129}], extension: {type: ''}, tls: {version: {min: TLS13, max: TLS12}, verification: {subjectAltNames: [{type: Prefix, value: ''}], caCert: {}}}",
        ),
        &[
            "spec.endpoints[0].priority: must be at most 128",
            "spec.extension.type: must not be empty",
            "spec.extension: not supported yet: there are no extensions that would take the traffic",
            "spec.tls.verification.caCert: must have exactly one of: secret, inline, inlineString",
            "spec.tls.verification.subjectAltNames[0].value: must not be empty",
            "spec.tls.version.min: min version must be lower than max",
        ],
    );
    wrong(
        &of("tls: {version: {max: TLS11}}"),
        &["spec.tls.version.max: not supported yet: TLS 1.2 is the lowest version spoken"],
    );
    assert!(warnings(&of("tls: {version: {min: TLS10}}")).iter().any(|warning| warning.contains("TLS 1.2")));
}

#[test]
fn mesh_passthrough() {
    let of = |matched: &str| {
        format!("{{type: MeshPassthrough, name: m, spec: {{default: {{appendMatch: [{matched}]}}}}}}")
    };
    right(&of("{type: Domain, value: a.example, port: 443, protocol: tls}, {type: IP, value: 192.0.2.1}"));
    let ranges = of(
        "{type: Domain, value: '*.a.example', protocol: tls}, {type: CIDR, value: 192.0.2.0/24}, {type: CIDR, value: '2001:db8::/32', port: 5432}",
    );
    right(&ranges);
    assert_eq!(warnings(&ranges), Vec::<String>::new());
    let wide = of(
        "{type: Domain, value: '*', port: 80, protocol: http}, {type: Domain, value: '*.net', port: 443, protocol: tls}, {type: CIDR, value: 0.0.0.0/0, port: 22}",
    );
    right(&wide);
    let said = warnings(&wide);
    assert!(
        said.len() == 3
            && said.iter().zip(0..).all(|(it, i)| it.contains(&format!("appendMatch[{i}].value: "))),
        "{said:?}"
    );
    for value in
        ["*.", "*..example", "*.*.example", "*.a b", "*.10.1", "a.*.example", "b\u{fc}cher.example", ""]
    {
        wrong(
            &of(&format!("{{type: Domain, value: '{value}', port: 443, protocol: tls}}")),
            &["spec.default.appendMatch[0].value: provided DNS has incorrect value"],
        );
    }
    for value in ["**", "*evil.example"] {
        let reason = "provided DNS has incorrect value, partial wildcard is currently not supported";
        wrong(
            &of(&format!("{{type: Domain, value: '{value}', port: 443, protocol: tls}}")),
            &[&format!("spec.default.appendMatch[0].value: {reason}")],
        );
    }
    wrong(
        &of("{value: a.example, port: 443, protocol: tls}"),
        &[
            "spec.default.appendMatch[0].type: provided type  is not supported, one of Domain, IP, or CIDR is supported",
        ],
    );
    wrong(
        "{type: MeshPassthrough, name: m, spec: {targetRef: {kind: MeshService, name: s}, default: {passthroughMode: Some}}}",
        &[
            "spec.default.passthroughMode: \"passthroughMode\" must be one of [\"All\", \"Matched\", \"None\"]",
            "spec.targetRef.kind: value 'MeshService' is not supported",
        ],
    );
}

#[test]
fn mesh_traffic_permission() {
    let of = |spec: &str| format!("{{type: MeshTrafficPermission, name: m, spec: {{{spec}}}}}");
    let allow = "default: {action: Allow}";
    right(&of(&format!(
        "targetRef: {{kind: MeshExternalService, name: x}}, from: [{{targetRef: {{kind: Mesh}}, {allow}}}]"
    )));
    wrong(
        &of(
            "targetRef: {kind: Mesh, tags: {a: b}, sectionName: s}, from: [{targetRef: {kind: MeshSubset, name: n, tags: {a: 'x y'}}, default: {action: Maybe}}, {targetRef: {}}]",
        ),
        &[
            "spec.from[0].default.action: \"action\" must be one of [\"Allow\", \"Deny\", \"AllowWithShadowDeny\"]",
            "spec.from[0].targetRef.name: must not be set with kind MeshSubset",
            "spec.from[0].targetRef.tags[\"a\"]: tag value must consist of alphanumeric characters, dots, dashes and underscores",
            "spec.from[1].default.action: must be defined",
            "spec.from[1].targetRef.kind: must be defined",
            "spec.targetRef.sectionName: must not be set with kind Mesh",
            "spec.targetRef.tags: must not be set with kind Mesh",
        ],
    );
    wrong(
        &of(
            "rules: [{default: {allow: [{spiffeID: {type: Exact, value: web}, sni: {type: Exact, value: Not_A_Name}}], deny: [{spiffeID: {type: Suffix, value: 'spiffe://m//a'}}]}}]",
        ),
        &[
            "spec.rules[0].allow[0].sni.value: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "spec.rules[0].allow[0].spiffeID: must be a valid Spiffe ID: scheme is missing or invalid",
            "spec.rules[0].deny[0].spiffeID.type: \"type\" must be one of [\"Exact\", \"Prefix\"]",
            "spec.rules[0].deny[0].spiffeID: must be a valid Spiffe ID: path cannot contain empty segments",
        ],
    );
    wrong(
        &of(&format!(
            "from: [{{targetRef: {{kind: Mesh}}, {allow}}}], rules: [{{default: {{allow: [{{}}]}}}}]"
        )),
        &["spec: field 'from' must be empty when 'rules' is defined"],
    );
}

#[test]
fn a_reference_that_would_match_nobody_is_refused() {
    let of = |target: &str| {
        format!(
            "{{type: MeshTrafficPermission, name: m, spec: {{from: [{{targetRef: {target}, default: {{action: Deny}}}}]}}}}"
        )
    };
    for target in [
        "{kind: MeshService, labels: {app: x}}",
        "{kind: MeshService, name: a, namespace: shop}",
        "{kind: MeshService, name: a, sectionName: http}",
        "{kind: MeshServiceSubset, name: a, tags: {env: '*'}}",
    ] {
        let found = violations(&of(target));
        assert!(
            found.iter().all(|violation| violation.contains("not supported yet")) && found.len() == 1,
            "{found:?}"
        );
    }
    wrong(
        &of("{kind: Mesh, proxyTypes: [Gateway]}"),
        &[
            "spec.from[0].targetRef.proxyTypes: must not be set in 'from': a caller's certificate does not tell its sort of proxy",
        ],
    );
}

#[test]
fn secrets_hold_base64_and_never_show_it() {
    right("{type: Secret, name: s, data: c2VjcmV0}");
    wrong("{type: GlobalSecret, name: s, data: 'no base64'}", &["data: must be base64"]);
    let secret = super::secret::Secret { data: "c2VjcmV0".into() };
    assert_eq!(
        (format!("{secret:?}").as_str(), secret.bytes().unwrap().as_slice()),
        ("Secret(..)", b"secret".as_slice())
    );
}

#[test]
fn hostname_generator() {
    let of = |spec: &str| format!("{{type: HostnameGenerator, name: h, spec: {{{spec}}}}}");
    right(&of("selector: {meshService: {}}, template: '{{ .DisplayName }}.svc.mesh.local'"));
    wrong(
        &of("template: '{{ .DisplayName | upper }}'"),
        &[
            "spec.selector: exact one selector (meshService, meshExternalService) must be defined",
            "spec.template: couldn't parse template: \".DisplayName | upper\" is not one of .Name, .DisplayName, .Namespace, .Mesh, .Zone, label \"key\"",
        ],
    );
    wrong(
        &of("selector: {meshService: {}}, template: '-{{ .Name }}-'"),
        &["spec.template: template renders to \"-name-\" which is not a valid DNS name"],
    );
    let said = warnings(&of("selector: {meshService: {}}, template: '{{ .Name }}.example.com'"));
    assert_eq!(said, ["spec.template has no effect: names must end in .mesh or .mesh.local"]);
}

#[test]
fn templates_render_names() {
    let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
    let named = Named {
        name: "web-x1",
        display_name: "Web",
        namespace: "ns",
        mesh: "default",
        zone: "east",
        labels: &labels,
    };
    let render = |text: &str| Template::parse(text)?.render(&named);
    assert_eq!(
        render("{{.DisplayName}}.{{ label \"team\" }}.{{ .Zone }}.mesh.local").unwrap(),
        "web.shop.east.mesh.local"
    );
    assert_eq!(render("{{ label \"none\" }}"), Err(TemplateError::NoLabel("none".into())));
    assert_eq!(render("a..{{ .Name }}"), Err(TemplateError::NotAName("a..web-x1".into())));
    assert_eq!(render("{{ .Name"), Err(TemplateError::Unclosed));
    // A template must not take over a real host.
    assert_eq!(render("{{ .Name }}.example.com"), Err(TemplateError::Foreign("web-x1.example.com".into())));
}
