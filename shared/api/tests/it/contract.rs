//! The fields that clients of Kuma's API read, as schemas in our words, and what we really answer.

use crate::harness::{Server, external};
use crate::overviews::mesh_with_proxies;
use meridian_api::report::Presence;
use serde_json::{Value, json};

/// An object with these fields, each of its type; more are allowed.
fn object(fields: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties: serde_json::Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn number() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn list(items: Value) -> Value {
    object(&[
        ("total", number()),
        ("items", json!({"type": "array", "items": items})),
        ("next", json!({"type": ["string", "null"]})),
    ])
}

fn total() -> Value {
    object(&[("total", number())])
}

fn base() -> Value {
    object(&[("total", number()), ("online", number())])
}

fn full() -> Value {
    object(&[
        ("total", number()),
        ("online", number()),
        ("offline", number()),
        ("partiallyDegraded", number()),
    ])
}

fn problem() -> Value {
    object(&[
        ("type", text()),
        ("title", text()),
        ("status", number()),
        ("detail", text()),
        ("instance", text()),
    ])
}

fn invalid() -> Value {
    let source = json!({"enum": ["body", "query", "header", "path"]});
    let parameter = object(&[("field", text()), ("reason", text()), ("source", source)]);
    let mut schema = problem();
    schema["required"].as_array_mut().unwrap().push(json!("invalid_parameters"));
    schema["properties"]["invalid_parameters"] = json!({"type": "array", "minItems": 1, "items": parameter});
    schema
}

fn resource(mesh: bool) -> Vec<(&'static str, Value)> {
    let mut fields = vec![
        ("type", text()),
        ("name", text()),
        ("kri", text()),
        ("creationTime", text()),
        ("modificationTime", text()),
    ];
    if mesh {
        fields.push(("mesh", text()));
    }
    fields
}

fn overview(mesh: bool, more: &[(&'static str, Value)]) -> Value {
    let labels = ("labels", json!({"type": "object"}));
    object(&[&resource(mesh)[..], &[labels], more].concat())
}

fn proxy_insight() -> Value {
    let mtls = object(&[
        ("certificateExpirationTime", text()),
        ("issuedBackend", text()),
        ("supportedBackends", json!({"type": "array", "items": text()})),
    ]);
    let version = object(&[("kumaDp", object(&[("version", text())]))]);
    let subscription = object(&[
        ("id", text()),
        ("controlPlaneInstanceId", json!({"type": "string", "minLength": 1})),
        ("connectTime", text()),
        ("status", object(&[("total", json!({"type": "object"}))])),
        ("version", version),
    ]);
    object(&[("subscriptions", json!({"type": "array", "items": subscription})), ("mTLS", mtls)])
}

fn zone_insight() -> Value {
    let subscription = object(&[
        ("id", text()),
        ("zoneInstanceId", text()),
        ("globalInstanceId", text()),
        ("connectTime", text()),
        ("status", object(&[("total", json!({"type": "object"}))])),
        ("version", object(&[("kumaCp", object(&[("version", text())]))])),
    ]);
    object(&[("subscriptions", json!({"type": "array", "items": subscription}))])
}

fn global_insight() -> Value {
    let by_kind = json!({"type": "object", "additionalProperties": total()});
    let services = [
        ("total", number()),
        ("internal", full()),
        ("external", total()),
        ("gatewayBuiltin", full()),
        ("gatewayDelegated", full()),
    ];
    object(&[
        ("createdAt", text()),
        ("services", object(&services)),
        ("zones", object(&[("controlPlanes", base()), ("zoneEgresses", base()), ("zoneIngresses", base())])),
        (
            "dataplanes",
            object(&[("standard", full()), ("gatewayBuiltin", full()), ("gatewayDelegated", full())]),
        ),
        ("policies", total()),
        ("meshes", total()),
        ("resources", by_kind),
    ])
}

fn kinds() -> Value {
    let flag = || json!({"type": "boolean"});
    let policy = object(&[
        ("isTargetRef", flag()),
        ("hasToTargetRef", flag()),
        ("hasFromTargetRef", flag()),
        ("hasRulesTargetRef", flag()),
        ("isFromAsRules", flag()),
    ]);
    let mut kind = object(&[
        ("name", text()),
        ("scope", json!({"enum": ["Global", "Mesh"]})),
        ("readOnly", flag()),
        ("path", text()),
        ("singularDisplayName", text()),
        ("pluralDisplayName", text()),
        ("shortName", text()),
        ("includeInFederation", flag()),
    ]);
    kind["properties"]["policy"] = policy;
    object(&[("resources", json!({"type": "array", "minItems": 1, "items": kind}))])
}

fn index() -> Value {
    object(&[
        ("hostname", text()),
        ("product", text()),
        ("version", text()),
        ("instanceId", text()),
        ("clusterId", text()),
        ("gui", text()),
        ("basedOnKuma", text()),
    ])
}

#[track_caller]
fn fits(what: &str, answer: &Value, schema: &Value) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let wrong: Vec<String> =
        validator.iter_errors(answer).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{answer:#}");
}

#[tokio::test]
async fn answers_have_the_fields_that_clients_read() {
    let server = mesh_with_proxies(Presence::Online).await;
    let strict = json!({
        "type": "Mesh", "name": "default",
        "mtls": {"enabledBackend": "ca-1", "backends": [{"name": "ca-1", "type": "builtin"}]},
    });
    assert_eq!(server.put("/meshes/default", strict).await.status, 200);
    assert_eq!(
        server.put("/meshes/default/externalservices/es", external("es", "a.test:80")).await.status,
        201
    );
    let user = object(&[("name", text()), ("groups", json!({"type": "array", "items": text()}))]);
    let proxy =
        overview(true, &[("dataplane", json!({"type": "object"})), ("dataplaneInsight", proxy_insight())]);
    let zone = overview(false, &[("zone", json!({"type": "object"})), ("zoneInsight", zone_insight())]);
    for (path, schema) in [
        ("/", index()),
        ("/who-am-i", user),
        ("/config", object(&[("mode", text())])),
        ("/_resources", kinds()),
        ("/global-insight", global_insight()),
        ("/meshes", list(object(&resource(false)))),
        ("/zones", list(object(&resource(false)))),
        ("/meshes/default/dataplanes", list(object(&resource(true)))),
        ("/meshes/default/externalservices/es", object(&resource(true))),
        ("/meshes/default/dataplanes/web-east/_overview", proxy),
        ("/meshes/default/dataplanes/_overview", list(overview(true, &[]))),
        ("/zones/east/_overview", zone.clone()),
        ("/zones/_overview", list(overview(false, &[]))),
        ("/zoneingresses/_overview", list(overview(false, &[]))),
        ("/zoneegresses/_overview", list(overview(false, &[]))),
    ] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (200, &"application/json".parse().unwrap()),
            "{path}"
        );
        fits(path, &answer.json(), &schema);
    }
    let web = server.get("/meshes/default/dataplanes/web-east/_overview").await.json();
    assert_eq!(web["dataplaneInsight"]["mTLS"]["issuedBackend"], "ca-1", "the backend's name, not its type");
    assert_eq!(web["dataplaneInsight"]["subscriptions"][0]["controlPlaneInstanceId"], "zone-process");
}

#[tokio::test]
async fn errors_are_problems() {
    let server = Server::start().await;
    let bad = json!({"type": "Mesh", "name": "m", "mtls": {"enabledBackend": "none"}});
    for (answer, status, schema) in [
        (server.get("/nothing").await, 404, problem()),
        (server.get("/meshes/none").await, 404, problem()),
        (server.get("/meshes?size=0").await, 400, invalid()),
        (server.put("/meshes/m", bad).await, 400, invalid()),
        (server.call("GET", "/meshes", &[], "").await, 401, problem()),
        (server.call("GET", "/secrets", &[("authorization", "Bearer user")], "").await, 403, problem()),
        (server.call("PATCH", "/meshes", &[("authorization", "Bearer admin")], "").await, 405, problem()),
    ] {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{answer:?}");
        fits("error", &answer.json(), &schema);
        assert_eq!(answer.json()["status"], status);
    }
}
