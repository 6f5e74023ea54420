use super::*;
use std::collections::BTreeSet;

#[test]
fn every_field_has_exactly_one_standing() {
    for info in kinds() {
        let leaves = info.shape().leaves();
        assert!(!leaves.is_empty(), "{}", info.kind);
        let covers = |entry: &str, leaf: &str| {
            leaf == entry || leaf.strip_prefix(entry).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let mut used = BTreeSet::new();
        for leaf in &leaves {
            let mut covering: Vec<&str> =
                info.fields.iter().map(|(entry, _)| *entry).filter(|entry| covers(entry, leaf)).collect();
            covering.sort_by_key(|entry| entry.len());
            let Some(longest) = covering.pop() else {
                panic!("{} {leaf}: neither executed, warned nor refused", info.kind);
            };
            // A shorter entry may cover it too if that is executed: an exception to it.
            for shorter in covering {
                let standing =
                    info.fields.iter().find(|(entry, _)| *entry == shorter).map(|(_, standing)| standing);
                assert_eq!(
                    standing,
                    Some(&Standing::Executed),
                    "{} {leaf}: {shorter} and {longest}",
                    info.kind
                );
                used.insert(shorter);
            }
            used.insert(longest);
        }
        let entries: BTreeSet<&str> = info.fields.iter().map(|(entry, _)| *entry).collect();
        assert_eq!(entries.len(), info.fields.len(), "{}: an entry is there twice", info.kind);
        assert_eq!(entries, used, "{}: an entry covers no field", info.kind);
    }
}

#[test]
fn what_is_not_executed_is_warned_of_or_refused() {
    let document = serde_json::json!({
        "type": "Mesh", "name": "m", "networking": { "outbound": { "passthrough": false } },
        "mtls": { "enabledBackend": "ca", "backends": [{ "name": "ca", "type": "builtin", "conf": { "a": 1 } }] },
        "routing": { "zoneEgress": true, "localityAwareLoadBalancing": true },
    });
    let warnings = crate::document::check(&document, None).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "mtls.backends[0].conf has no effect: the builtin authority has nothing to configure",
            "routing.localityAwareLoadBalancing has no effect: the local zone is preferred unless a MeshLoadBalancingStrategy says otherwise",
        ]
    );
    let document = serde_json::json!({
        "type": "Mesh", "name": "m",
        "constraints": { "dataplaneProxy": { "requirements": [{ "tags": { "kuma.io/zone": "east" } }] } },
    });
    let problem = crate::document::check(&document, None).unwrap_err();
    assert_eq!(problem.violations.len(), 1);
    assert_eq!(problem.violations[0].field, "constraints");
    assert!(problem.violations[0].reason.starts_with("not supported yet: "));
}

#[test]
fn kinds_are_found_by_each_of_their_names() {
    let mut names = BTreeSet::new();
    for info in kinds() {
        assert_eq!(info.kind.info().plural, info.plural);
        assert_eq!(Kind::named(info.kind.as_str()), Some(info.kind));
        for name in [info.plural, info.short].iter().chain(info.aliases) {
            assert!(names.insert(*name), "{name} means two kinds");
            assert_eq!(KindInfo::by_any(name).unwrap().kind, info.kind);
        }
        assert!(!info.doc.is_empty());
        assert!(!info.admin_only || info.flow.written_at == WrittenAt::Global);
    }
    assert_eq!(KindInfo::by_any("meshservice").unwrap().plural, "meshservices");
    assert_eq!(Kind::named("meshservice"), None);
}

#[test]
fn no_unsupported_kind_is_supported() {
    for info in kinds() {
        assert_eq!(crate::kinds::unsupported::by_kind(info.kind.as_str()), None);
        assert_eq!(crate::kinds::unsupported::by_plural(info.plural), None);
    }
}

#[test]
fn maps_are_sorted_so_that_bodies_are_canonical() {
    let value: Value = serde_json::from_str(r#"{"b":1,"a":{"d":1,"c":2}}"#).unwrap();
    assert_eq!(value.to_string(), r#"{"a":{"c":2,"d":1},"b":1}"#);
}

#[test]
fn a_canonical_body_gives_the_resource_back() {
    let resource = crate::kinds::mesh::mesh_default();
    let body = resource.canonical();
    assert_eq!(crate::Resource::from_canonical(resource.key.clone(), &body).unwrap(), resource);
    let error = crate::Resource::from_canonical(resource.key, br#"{"labels":{},"spec":{},"more":1}"#);
    assert!(error.is_err());
}

/// What a check gives is valid by the published schema.
#[test]
fn normalised_specs_fit_their_schemas() {
    let documents = [
        serde_json::json!({ "type": "Zone", "name": "z", "enabled": true }),
        crate::document::to_json(&crate::kinds::mesh::mesh_default(), None),
        serde_json::json!({ "type": "Dataplane", "name": "d", "networking": { "address": "192.0.2.1", "inbound": [
            { "port": 80, "tags": { "kuma.io/service": "web" }, "state": 2, "serviceProbe": { "timeout": "2s" } } ] } }),
        serde_json::json!({ "type": "MeshService", "name": "s", "spec": {
            "ports": [{ "port": 80, "targetPort": "http" }], "selector": { "dataplaneTags": { "a": "b" } } } }),
        serde_json::json!({ "type": "MeshExternalService", "name": "s", "spec": { "match": { "port": 443 },
            "allowedAddresses": ["192.0.2.0/24"], "endpoints": [{ "address": "example.com", "port": 443 }] } }),
    ];
    for document in documents {
        let resource = crate::document::check(&document, None).unwrap().resource;
        let schema = resource.key.kind.info().schema().to_value();
        let errors: Vec<String> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&resource.spec)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{}: {errors:?}", resource.key);
    }
}

/// The table of docs/differences.md, as it must be.
#[test]
fn the_fields_that_nothing_executes_are_documented() {
    let document = include_str!("../../../../docs/differences.md");
    let mut missing = Vec::new();
    for info in kinds().iter().filter(|info| !info.internal) {
        for (field, standing) in info.fields {
            let line = match standing {
                Standing::Executed => continue,
                Standing::Warned(reason) => format!("| {} | `{field}` | warned | {reason} |", info.kind),
                Standing::Refused(reason) => format!("| {} | `{field}` | refused | {reason} |", info.kind),
            };
            if !document.lines().any(|documented| documented == line) {
                missing.push(line);
            }
        }
    }
    assert!(missing.is_empty(), "docs/differences.md lacks:\n{}", missing.join("\n"));
}
