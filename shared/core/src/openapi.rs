//! The OpenAPI document: a loop over the registry, and a list of what is no kind.

use crate::{Format, KindInfo, Scope, kinds};
use serde_json::{Map, Value, json};

/// The OpenAPI 3.1 document of the REST API.
pub fn openapi() -> Value {
    let (mut paths, mut schemas) = (fixed_paths(), fixed_schemas());
    for info in kinds().iter().filter(|info| !info.internal) {
        add_schemas(info, &mut schemas);
        add_paths(info, &mut paths);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Meridian",
            "description": "The REST API of the control planes. Kinds, fields and paths are those of Kuma 2.14.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "version": env!("CARGO_PKG_VERSION"),
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" } },
            "responses": {
                "Error": {
                    "description": "Refused; nothing changed.",
                    "content": { "application/problem+json": { "schema": reference("Error") } },
                },
                "Written": { "description": "Written.", "content": content("Written") },
            },
        },
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

/// The schemas of one kind: `<Kind>Item`, `<Kind>List`, and what they refer to, under the kind's name, since many
/// kinds have a `Networking`.
fn add_schemas(info: &KindInfo, schemas: &mut Map<String, Value>) {
    let kind = info.kind.as_str();
    let mut spec = info.schema().to_value();
    rename(&mut spec, kind);
    honest_defaults(&mut spec);
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("$schema");
        fields.remove("title");
        if let Some(Value::Object(definitions)) = fields.remove("$defs") {
            let named = |(name, schema): (String, Value)| (format!("{kind}{name}"), schema);
            schemas.extend(definitions.into_iter().map(named));
        }
    }
    schemas.insert(format!("{kind}Item"), item(info, spec));
    let list = json!({
        "type": "object",
        "properties": {
            "total": { "type": "integer", "description": "Of all pages." },
            "items": { "type": "array", "items": reference(&format!("{kind}Item")) },
            "next": { "type": ["string", "null"], "description": "The address of the next page." },
        },
    });
    schemas.insert(format!("{kind}List"), list);
}

/// `#/$defs/Networking` -> `#/components/schemas/MeshNetworking`
fn rename(schema: &mut Value, kind: &str) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get_mut("$ref")
                && let Some(name) = target.strip_prefix("#/$defs/")
            {
                *target = format!("#/components/schemas/{kind}{name}");
            }
            fields.values_mut().for_each(|value| rename(value, kind));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rename(value, kind)),
        _ => {}
    }
}

/// A required choice is empty before it is read, which is no choice: a `default` that its `enum` lacks is left out.
fn honest_defaults(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let choices = fields.get("enum").and_then(Value::as_array);
            let lacks = |default: &Value| choices.is_some_and(|choices| !choices.contains(default));
            if fields.get("default").is_some_and(lacks) {
                fields.remove("default");
            }
            fields.values_mut().for_each(honest_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(honest_defaults),
        _ => {}
    }
}

/// The document: the spec in its envelope.
fn item(info: &KindInfo, mut spec: Value) -> Value {
    let mut properties = Map::new();
    let mut required = vec!["type", "name"];
    let text = |description: &str| json!({ "type": "string", "description": description });
    properties.insert("type".into(), json!({ "type": "string", "const": info.kind.as_str() }));
    properties.insert(
        "name".into(),
        text("Unique in its mesh; see `kuma.io/display-name` for what it was called."),
    );
    if info.scope == Scope::Mesh {
        properties.insert("mesh".into(), json!({ "type": "string", "default": "default" }));
    }
    let labels = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    properties.insert("labels".into(), labels);
    for name in ["creationTime", "modificationTime"] {
        properties.insert(name.into(), json!({ "type": "string", "format": "date-time", "readOnly": true }));
    }
    properties.insert("kri".into(), json!({ "type": "string", "readOnly": true }));
    match info.format {
        Format::Legacy => {
            if let Some(Value::Object(fields)) = spec.get_mut("properties").map(Value::take) {
                properties.extend(fields);
            }
        }
        Format::Spec => {
            required.push("spec");
            properties.insert("spec".into(), spec);
            properties.insert("status".into(), json!({ "type": "object", "readOnly": true }));
        }
    }
    json!({
        "type": "object",
        "description": info.doc,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn add_paths(info: &KindInfo, paths: &mut Map<String, Value>) {
    let (kind, plural) = (info.kind.as_str(), info.plural);
    let base = match info.scope {
        Scope::Mesh => {
            paths.insert(format!("/{plural}"), json!({ "get": list(info, " of all meshes", &[]) }));
            format!("/meshes/{{mesh}}/{plural}")
        }
        Scope::Global => format!("/{plural}"),
    };
    let mesh = if info.scope == Scope::Mesh { vec![path_parameter("mesh")] } else { Vec::new() };
    paths.insert(base.clone(), json!({ "get": list(info, "", &mesh) }));
    let parameters: Vec<Value> = mesh.iter().cloned().chain([path_parameter("name")]).collect();
    let operation = |id: &str, summary: String, extra: &[Value], answers: Value| {
        let parameters: Vec<&Value> = parameters.iter().chain(extra).collect();
        json!({
            "operationId": format!("{id}{kind}"),
            "tags": [kind],
            "summary": summary,
            "parameters": parameters,
            "responses": answers,
        })
    };
    let found = json!({
        "200": {
            "description": "The resource.",
            "headers": { "ETag": { "schema": { "type": "string" } } },
            "content": content(&format!("{kind}Item")),
        },
        "default": { "$ref": "#/components/responses/Error" },
    });
    let written = json!({
        "200": { "$ref": "#/components/responses/Written" },
        "201": { "$ref": "#/components/responses/Written" },
        "default": { "$ref": "#/components/responses/Error" },
    });
    let deleted = json!({
        "200": { "description": "Deleted." },
        "default": { "$ref": "#/components/responses/Error" },
    });
    let condition = json!({
        "name": "If-Match",
        "in": "header",
        "schema": { "type": "string" },
        "description": "Only if the resource still has this ETag.",
    });
    let mut put =
        operation("put", format!("Creates or replaces a {kind}."), std::slice::from_ref(&condition), written);
    if let Some(put) = put.as_object_mut() {
        let body = json!({ "required": true, "content": content(&format!("{kind}Item")) });
        put.insert("requestBody".into(), body);
    }
    let one = json!({
        "get": operation("get", format!("One {kind}."), &[], found),
        "put": put,
        "delete": operation("delete", format!("Deletes a {kind}."), &[condition], deleted),
    });
    paths.insert(format!("{base}/{{name}}"), one);
    if info.targets.is_some() {
        let found = json!({
            "200": { "description": "A page of Dataplanes." },
            "default": { "$ref": "#/components/responses/Error" },
        });
        let selected = operation("selectedBy", format!("The Dataplanes that a {kind} selects."), &[], found);
        paths.insert(format!("{base}/{{name}}/_resources/dataplanes"), json!({ "get": selected }));
    }
}

fn list(info: &KindInfo, of: &str, parameters: &[Value]) -> Value {
    let kind = info.kind.as_str();
    let query = |name: &str, kind: &str, description: &str| json!({ "name": name, "in": "query", "schema": { "type": kind }, "description": description });
    let labels = json!({
        "name": "filter",
        "in": "query",
        "style": "deepObject",
        "schema": { "type": "object", "additionalProperties": { "type": "string" } },
        "description": "`filter[labels.KEY]=VALUE`",
    });
    let queries = [
        query("size", "integer", "Of a page; at most 1000, by default 100."),
        query("offset", "integer", "Resources to skip."),
        query("name", "string", "A part of the name."),
        labels,
    ];
    let parameters: Vec<&Value> = parameters.iter().chain(&queries).collect();
    json!({
        "operationId": if of.is_empty() { format!("list{kind}") } else { format!("listAll{kind}") },
        "tags": [kind],
        "summary": format!("Every {kind}{of}."),
        "parameters": parameters,
        "responses": {
            "200": { "description": "A page.", "content": content(&format!("{kind}List")) },
            "default": { "$ref": "#/components/responses/Error" },
        },
    })
}

fn path_parameter(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
}

/// What is no kind: (method, path, summary).
const FIXED: [(&str, &str, &str); 39] = [
    ("get", "/", "Product, version and instance."),
    ("get", "/ready", "Whether the control plane can serve."),
    ("get", "/healthy", "Whether the control plane lives."),
    ("get", "/who-am-i", "The user of this request."),
    ("get", "/config", "The control plane's configuration, without secrets."),
    ("get", "/_resources", "The kinds and where they are written."),
    ("get", "/policies", "The kinds that are policies."),
    ("get", "/openapi.yaml", "This document."),
    ("get", "/global-insight", "Counts of resources, zones and proxies."),
    ("get", "/_rejections", "Resources that a zone or a proxy did not take, with the reasons."),
    ("get", "/meshes/{mesh}/_rejections", "The same of one mesh."),
    ("get", "/meshes/{mesh}/_denials", "Refused connections and requests, by caller, name, port and reason."),
    ("get", "/meshes/{mesh}/_rotate-ca", "How far the rotation of the mesh's root is."),
    ("post", "/meshes/{mesh}/_rotate-ca", "Rotates the mesh's root."),
    ("post", "/zones/{name}/_confirm-deletions", "Applies the deletions of a zone that are held back."),
    ("post", "/zones/{name}/_revoke", "Revokes a zone's intermediates and client certificates."),
    ("get", "/_zone", "A zone's control plane: its name, and how far behind global it is."),
    (
        "post",
        "/_accept-global",
        "A zone's control plane: accepts a global whose history is another than it knew.",
    ),
    ("post", "/tokens/dataplane", "Issues a dataplane token."),
    ("post", "/tokens/zone", "Issues a zone token."),
    ("post", "/tokens/user", "Issues a user token."),
    ("get", "/meshes/{mesh}/dataplanes/_overview", "Dataplanes with their status."),
    ("get", "/meshes/{mesh}/dataplanes/{name}/_overview", "One Dataplane with its status."),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_rules",
        "What policies add up to for one Dataplane, and which they are.",
    ),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_config",
        "What a sidecar is told, and (`shadow=true`, `include=diff`) what policies that are tried out would change.",
    ),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_layout",
        "One Dataplane's inbounds, and the services that it may call.",
    ),
    ("get", "/meshes/{mesh}/dataplanes/{name}/_policies", "What configures the whole proxy."),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_inbounds/{kri}/_policies",
        "What policies add up to for an inbound.",
    ),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_policies",
        "The same for calls to one port of a service.",
    ),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_routes",
        "The routes of calls to one port of a service.",
    ),
    (
        "get",
        "/meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_routes/{route}/_policies",
        "What policies add up to for requests that a route takes.",
    ),
    ("get", "/meshes/{mesh}/meshservices/{name}/_dataplanes", "The Dataplanes that offer a MeshService."),
    (
        "get",
        "/meshes/{mesh}/meshservices/{name}/_hostnames",
        "A MeshService's names, and in which zones they are known.",
    ),
    ("get", "/meshes/{mesh}/meshexternalservices/{name}/_hostnames", "The same of a MeshExternalService."),
    ("get", "/meshes/{mesh}/meshmultizoneservices/{name}/_hostnames", "The same of a MeshMultiZoneService."),
    ("get", "/_kri/{kri}", "The resource of that KRI, whatever its kind."),
    (
        "get",
        "/meshes/{mesh}/_explain",
        "What would happen to a call (`source`, `destination`, `path`, `method`, `header`), and which policies decide it.",
    ),
    ("get", "/zones/_overview", "Zones with their status and how far behind they are."),
    ("get", "/zones/{name}/_overview", "One zone with its status and how far behind it is."),
];

fn fixed_paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for (method, path, summary) in FIXED {
        let parameters: Vec<Value> = ["mesh", "name", "kri", "route"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(path_parameter)
            .collect();
        let operation = json!({
            "summary": summary,
            "parameters": parameters,
            "responses": {
                "200": { "description": "The answer." },
                "default": { "$ref": "#/components/responses/Error" },
            },
        });
        if let Some(path) = paths.entry(path).or_insert_with(|| json!({})).as_object_mut() {
            path.insert(method.to_owned(), operation);
        }
    }
    paths
}

fn fixed_schemas() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let invalid = json!({
        "type": "object",
        "properties": { "field": text, "reason": text, "source": text },
        "required": ["field", "reason"],
    });
    let error = json!({
        "type": "object",
        "properties": {
            "type": text,
            "title": text,
            "status": { "type": "integer" },
            "detail": text,
            "instance": text,
            "invalid_parameters": { "type": "array", "items": invalid, "description": "All of them." },
        },
        "required": ["type", "title", "status", "detail"],
    });
    let written = json!({
        "type": "object",
        "properties": { "warnings": { "type": "array", "items": text } },
    });
    let mut schemas = Map::new();
    schemas.insert("Error".into(), error);
    schemas.insert("Written".into(), written);
    schemas
}

#[cfg(test)]
mod tests;
