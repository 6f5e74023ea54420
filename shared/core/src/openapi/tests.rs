use super::openapi;
use crate::kinds;
use serde_json::Value;

fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            out.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| references(value, out));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, out)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = openapi();
    let mut all = Vec::new();
    references(&document, &mut all);
    assert!(all.len() > 100);
    for target in all {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{target}");
    }
}

fn every_schema<'a>(value: &'a Value, out: &mut Vec<&'a serde_json::Map<String, Value>>) {
    match value {
        Value::Object(fields) => {
            out.push(fields);
            fields.values().for_each(|value| every_schema(value, out));
        }
        Value::Array(items) => items.iter().for_each(|value| every_schema(value, out)),
        _ => {}
    }
}

#[test]
fn every_default_is_among_its_choices() {
    let document = openapi();
    let mut all = Vec::new();
    every_schema(&document, &mut all);
    let choices =
        all.iter().filter_map(|fields| Some((fields.get("enum")?.as_array()?, fields.get("default"))));
    let choices: Vec<_> = choices.collect();
    assert!(choices.len() > 10);
    for (choices, default) in choices {
        assert!(
            default.is_none_or(|default| choices.contains(default)),
            "{default:?} is not among {choices:?}"
        );
    }
}

#[test]
fn every_public_kind_has_its_paths_and_no_internal_one_shows() {
    let document = openapi();
    let paths = document["paths"].as_object().unwrap();
    for info in kinds() {
        let shows = paths.keys().any(|path| path.split('/').any(|part| part == info.plural));
        assert_eq!(shows, !info.internal, "{}", info.kind);
    }
    let text = document.to_string();
    for internal in ["TrustBundle", "TokenKey", "TokenRevocation"] {
        assert!(!text.contains(internal), "{internal}");
    }
}

#[test]
fn paths_in_short() {
    let document = openapi();
    let mut lines: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            lines.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_schema_of_a_kind() {
    let document = openapi();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let zone: serde_json::Map<String, Value> = schemas
        .iter()
        .filter(|(name, _)| name.starts_with("ZoneItem"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    insta::assert_json_snapshot!(zone);
}

#[test]
fn no_two_kinds_share_the_name_of_a_schema() {
    let document = openapi();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let of_kinds: usize = kinds()
        .iter()
        .filter(|info| !info.internal)
        .map(|info| 2 + info.schema().as_value()["$defs"].as_object().map_or(0, serde_json::Map::len))
        .sum();
    assert_eq!(schemas.len(), of_kinds + super::fixed_schemas().len());
}
