use super::*;
use crate::kinds::mesh::Mesh;
use proptest::prelude::*;
use serde_json::json;

fn refused(document: &Value) -> Vec<String> {
    let problem = check(document, None).unwrap_err();
    assert!(!problem.violations.is_empty(), "{problem}");
    problem.violations.iter().map(ToString::to_string).collect()
}

fn zone(extra: Value) -> Value {
    let mut document = json!({ "type": "Zone", "name": "east" });
    document.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    document
}

#[test]
fn yaml_and_json_are_the_same_document() {
    let yaml = parse_text("type: Zone\nname: east\nenabled: true\n").unwrap();
    let json = parse_text("{\t\"type\": \"Zone\", \"name\": \"east\", \"enabled\": true }").unwrap();
    assert_eq!(yaml, json);
    let document = check(&yaml, None).unwrap();
    assert_eq!(document.resource.key, Key::global(Kind::named("Zone").unwrap(), "", "east"));
    assert_eq!(document.resource.spec, json!({ "enabled": true }));
}

#[test]
fn several_documents_are_taken_apart() {
    let all = split("---\ntype: Zone\nname: a\n---\n# nothing\n---\ntype: Zone\nname: b\n").unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(split(r#"[{"type":"Zone","name":"a"},{"type":"Zone","name":"b"}]"#).unwrap().len(), 2);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [{ "a": 1 }, { "a": 2 }, { "a": 3 }] });
    assert_eq!(split(&list.to_string()).unwrap().len(), 3);
    assert_eq!(split("").unwrap(), Vec::<Value>::new());
}

#[test]
fn text_that_is_no_document_says_why() {
    for (text, why) in [
        ("a: [1", "did not find"),
        ("{\"a\": 1", "EOF"),
        ("type: Zone\ntype: Mesh\n", "type"),
        (r#"{"type": "Zone", "type": "Mesh"}"#, "twice"),
        ("", "no document"),
        ("a: 1\n---\nb: 2\n", "several documents"),
    ] {
        let problem = parse_text(text).unwrap_err();
        assert!(!problem.detail.is_empty(), "{text:?}");
        if !why.starts_with("did") {
            assert!(problem.detail.contains(why), "{text:?}: {}", problem.detail);
        }
    }
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let alias = format!("*a{}", i - 1);
        text.push_str(&format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 9].join(", ")));
    }
    assert!(parse_text(&text).is_err());
}

#[test]
fn text_stays_text_and_words_of_yaml_1_1_are_no_booleans() {
    let value = parse_text("a: yes\nb: off\nc: true\nd: 1.10\n").unwrap();
    assert_eq!((&value["a"], &value["b"], &value["c"]), (&json!("yes"), &json!("off"), &json!(true)));
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let document = json!({
        "type": "Dataplane", "name": "Web_1", "mesh": "default", "colour": "red",
        "networking": {
            "address": "0.0.0.0",
            "inbound": [{ "port": "many", "tags": { "kuma.io/service": "web" }, "state": "Tired" }],
            "outbound": [{ "port": 70000 }],
        },
    });
    let mut found = refused(&document);
    found.sort();
    assert_eq!(
        found,
        [
            "colour: unknown field",
            "name: invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
             characters, '-' or '.', and must start and end with an alphanumeric character",
            "networking.address: must not be 0.0.0.0 or ::",
            "networking.inbound[0].port: must be an integer of at least 0 and less than 4294967296",
            "networking.inbound[0].port: port must be in the range [1, 65535]",
            "networking.inbound[0].state: must be one of: Ready, NotReady, Ignored",
            "networking.outbound[0].port: port must be in the range [1, 65535]",
            "networking.outbound[0].tags: mandatory tag \"kuma.io/service\" is missing",
        ]
    );
}

#[test]
fn protobuf_kinds_take_every_form_of_protobufs_json() {
    let spelled = |inbound: Value, proxying: Value| {
        let document = json!({
            "type": "Dataplane", "name": "web-1", "mesh": "default",
            "networking": { "address": "10.0.0.1", "inbound": [inbound], "transparentProxying": proxying },
        });
        check(&document, None).unwrap().resource.spec
    };
    let tags = json!({ "kuma.io/service": "web" });
    let camel = spelled(
        json!({ "port": 80, "servicePort": 8080, "tags": tags, "state": "NotReady",
                "serviceProbe": { "interval": "1.5s", "unhealthyThreshold": 3, "tcp": {} } }),
        json!({ "redirectPortInbound": 15006, "ipFamilyMode": "IPv4" }),
    );
    let snake = spelled(
        json!({ "port": 80.0, "service_port": "8080", "tags": tags, "state": 1, "address": null,
                "service_probe": { "interval": "1.500s", "unhealthy_threshold": 3, "tcp": {} } }),
        json!({ "redirect_port_inbound": 15006, "ip_family_mode": 2 }),
    );
    assert_eq!(camel, snake);
    assert_eq!(camel["networking"]["inbound"][0]["state"], "NotReady");
}

#[test]
fn a_field_in_two_spellings_is_refused() {
    let document = json!({
        "type": "ExternalService", "name": "es", "mesh": "default", "tags": { "kuma.io/service": "es" },
        "networking": { "address": "192.0.2.1:443", "tls": { "server_name": "a", "serverName": "b" } },
    });
    assert_eq!(
        refused(&document),
        ["networking.tls.server_name: is \"serverName\" in another spelling, which is there too"]
    );
}

#[test]
fn kinds_of_the_newer_form_take_only_camel_case() {
    let document = json!({
        "type": "MeshPassthrough", "name": "mp", "spec": { "target_ref": { "kind": "Mesh" }, "default": {} },
    });
    assert_eq!(refused(&document), ["spec.target_ref: unknown field"]);
}

#[test]
fn the_kubernetes_envelope_gives_the_same_resource() {
    let envelope = parse_text(
        "apiVersion: kuma.io/v1alpha1\nkind: MeshPassthrough\nmetadata:\n  name: mp\n  namespace: kuma-system\n  \
         labels:\n    kuma.io/mesh: blue\nspec:\n  default:\n    passthroughMode: None\n",
    )
    .unwrap();
    let from_kubernetes = check(&envelope, None).unwrap().resource;
    assert_eq!((from_kubernetes.key.mesh.as_str(), from_kubernetes.key.name.as_str()), ("blue", "mp"));
    assert_eq!(from_kubernetes.spec, json!({ "default": { "passthroughMode": "None" } }));

    let legacy = json!({
        "apiVersion": "kuma.io/v1alpha1", "kind": "ExternalService", "mesh": "blue",
        "metadata": { "name": "es", "uid": "1", "annotations": {} },
        "spec": { "tags": { "kuma.io/service": "es" }, "networking": { "address": "192.0.2.1:443" } },
    });
    let resource = check(&legacy, None).unwrap().resource;
    assert_eq!(
        (resource.key.mesh.as_str(), resource.spec["networking"]["address"].as_str()),
        ("blue", Some("192.0.2.1:443"))
    );

    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "system.kuma.io/secret",
        "metadata": { "name": "token", "labels": { "kuma.io/mesh": "blue" } }, "data": { "value": "c2VjcmV0" },
    });
    let resource = check(&secret, None).unwrap().resource;
    assert_eq!((resource.key.kind.as_str(), &resource.spec), ("Secret", &json!({ "data": "c2VjcmV0" })));
}

#[test]
fn other_kubernetes_objects_are_refused() {
    for document in [
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": { "name": "s" } }),
        json!({ "apiVersion": "apps/v1", "kind": "Mesh", "metadata": { "name": "m" } }),
        json!({ "apiVersion": "kuma.io/v1alpha1", "kind": "Pod", "metadata": { "name": "p" } }),
    ] {
        assert!(check(&document, None).is_err(), "{document}");
    }
    let extra = json!({ "apiVersion": "kuma.io/v1alpha1", "kind": "Zone", "metadata": { "name": "z", "cluster": 1 }, "x": 1 });
    assert_eq!(refused(&extra), ["metadata.cluster: unknown field", "x: unknown field"]);
}

#[test]
fn the_body_must_agree_with_the_address() {
    let kind = Kind::named("MeshService").unwrap();
    let at = |mesh, name| Expected { kind, mesh, name };
    let body = json!({ "type": "MeshService", "mesh": "blue", "name": "web", "spec": {} });
    assert!(check(&body, Some(&at("blue", "web"))).is_ok());
    let silent = json!({ "spec": {} });
    assert_eq!(
        check(&silent, Some(&at("blue", "web"))).unwrap().resource.key,
        Key::global(kind, "blue", "web")
    );
    let problem = check(&body, Some(&at("red", "api"))).unwrap_err();
    let fields: Vec<&str> = problem.violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["name", "mesh"]);
    let zone = json!({ "type": "Zone", "name": "web" });
    let problem = check(&zone, Some(&at("blue", "web"))).unwrap_err();
    assert_eq!(problem.violations[0].field, "type");
}

#[test]
fn a_mesh_is_asked_of_kinds_that_belong_to_one_only() {
    assert_eq!(
        refused(&zone(json!({ "mesh": "default" }))),
        ["mesh: mesh must not be defined: a Zone belongs to no mesh"]
    );
    let unnamed = json!({ "type": "MeshService", "name": "web", "spec": {} });
    assert_eq!(check(&unnamed, None).unwrap().resource.key.mesh, DEFAULT_MESH);
}

#[test]
fn legacy_kinds_say_what_to_use() {
    let ask = |kind: &str| check(&json!({ "type": kind, "name": "x" }), None).unwrap_err();
    assert!(ask("TrafficPermission").detail.contains("use MeshTrafficPermission"));
    assert!(ask("MeshGateway").detail.contains("delegated gateway"));
    assert_eq!(ask("Nonsense").title, "Unknown kind");
    // What only control planes write is no kind to users.
    assert_eq!(ask("TrustBundle").title, "Unknown kind");
}

#[test]
fn names_that_become_labels_are_short() {
    let named = |kind: &str, name: &str| json!({ "type": kind, "name": name, "spec": {} });
    let long = "a".repeat(64);
    assert_eq!(refused(&named("MeshService", &long)), ["name: must not be longer than 63 characters"]);
    assert!(refused(&named("MeshService", "1st"))[0].contains("DNS-1035"));
    assert_eq!(refused(&zone(json!({ "name": "" }))), ["name: cannot be empty"]);
}

#[test]
fn labels_are_held_to_kubernetes_rules() {
    let found = refused(&zone(json!({ "labels": { "ok/ok": "v", "-bad": "v", "a": "not good" } })));
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("labels[\"-bad\"]") && found[1].starts_with("labels[\"a\"]"));
}

#[test]
fn nobody_takes_a_stronger_role() {
    let policy = |labels: Value| json!({ "type": "MeshPassthrough", "name": "mp", "labels": labels, "spec": { "default": {} } });
    assert!(
        refused(&policy(json!({ "kuma.io/policy-role": "workload-owner" })))[0]
            .contains("must be \"system\"")
    );
    assert!(check(&policy(json!({ "kuma.io/policy-role": "system" })), None).is_ok());
}

#[test]
fn a_misspelt_effect_does_not_put_a_policy_into_force() {
    let policy = |effect: &str| {
        json!({
            "type": "MeshTimeout", "name": "try", "labels": { "kuma.io/effect": effect },
            "spec": { "to": [{ "targetRef": { "kind": "Mesh" }, "default": { "idleTimeout": "1s" } }] },
        })
    };
    assert!(check(&policy("shadow"), None).is_ok());
    for effect in ["Shadow", "none", ""] {
        assert!(refused(&policy(effect))[0].contains("kuma.io/effect"), "{effect:?}");
    }
    let mesh = json!({ "type": "Mesh", "name": "m", "labels": { "kuma.io/effect": "any" } });
    assert!(check(&mesh, None).is_ok(), "of what is no policy it means nothing");
}

#[test]
fn what_was_answered_can_be_sent_back() {
    let mut resource = crate::kinds::mesh::mesh_default();
    resource.labels.insert("team".into(), "mesh".into());
    let answered = to_json(&resource, Some(("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")));
    assert_eq!(answered["kri"], "kri_m____default_");
    assert_eq!(check(&answered, None).unwrap().resource, resource);
    let yaml = to_yaml(&resource);
    assert!(yaml.starts_with("type: Mesh\nname: default\nlabels:\n"), "{yaml}");
    assert_eq!(check(&parse_text(&yaml).unwrap(), None).unwrap().resource, resource);
    resource.parse::<Mesh>().unwrap();
}

#[test]
fn a_status_that_comes_back_is_ignored_and_said() {
    let document = json!({ "type": "MeshService", "name": "web", "spec": {}, "status": { "vips": [{ "ip": "241.0.0.1" }] } });
    let document = check(&document, None).unwrap();
    assert_eq!(document.resource.status, None);
    assert_eq!(document.warnings, ["status has no effect: control planes write it"]);
}

#[test]
fn an_oversized_resource_is_refused() {
    let document = json!({ "type": "Secret", "name": "big", "data": "QUFB".repeat(MAX_BYTES / 4) });
    assert!(refused(&document)[0].contains("more than 524288"));
}

#[test]
fn keys_can_be_read_without_a_check() {
    let document = json!({ "type": "MeshService", "mesh": "blue", "name": "web", "spec": { "nonsense": 1 } });
    assert_eq!(key_of(&document).unwrap().to_string(), "MeshService blue/web");
    assert!(key_of(&json!({ "type": "MeshService" })).is_err());
}

/// Any JSON, with names that occur in documents, so that it gets past the first check.
fn any_json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z:/.*0-9]{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "(spec|networking|inbound|outbound|tags|address|port|tls|match|default|from|rules|targetRef|kind|mtls)",
        "(backends|appendMatch|type|value|endpoints|verification|selector|ports|template|data|serviceProbe|interval)",
        "[a-z_]{1,8}",
    ];
    scalar.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is sent is taken or refused with reasons; and what is taken is taken again as it was stored.
    #[test]
    fn a_check_ends_well(fields in any_json(), position in 0..crate::kinds().len()) {
        let info = &crate::kinds()[position];
        let mut document = match fields {
            Value::Object(fields) => fields,
            other => [("spec".to_owned(), other)].into_iter().collect(),
        };
        document.insert("type".into(), info.kind.as_str().into());
        document.insert("name".into(), "n".into());
        match check(&Value::Object(document), None) {
            Ok(taken) => {
                let again = check(&to_json(&taken.resource, None), None).unwrap();
                prop_assert_eq!(again.resource, taken.resource);
            }
            Err(problem) => prop_assert!(!problem.detail.is_empty()),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z:\\-{}\\[\\]\", \n&*<|>#!%@]{0,60}") {
        if let Err(problem) = split(&text) {
            prop_assert!(!problem.detail.is_empty());
        }
    }
}

#[test]
fn variables_are_names_in_double_braces() {
    let given = [("name", "web-1"), ("ADDR", "192.0.2.1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (text, expected) in [
        ("a: {{ name }}", Ok("a: web-1")),
        ("{{name}}{{ADDR}}", Ok("web-1192.0.2.1")),
        ("t: '{{ .DisplayName }}.{{ name }}'", Ok("t: '{{ .DisplayName }}.web-1'")),
        ("{{ label \"x\" }}", Ok("{{ label \"x\" }}")),
        ("half {{ name", Ok("half {{ name")),
        ("{{ other }}", Err("the variable other is used and not given")),
    ] {
        let found = super::substitute(text, &given).map_err(|error| error.to_string());
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
    }
}
