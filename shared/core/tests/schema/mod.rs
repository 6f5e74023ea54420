//! The fields of policies, as their schemas have them.

use meridian_core::{KindInfo, Standing, kinds};
use serde_json::Value;

/// Kinds that act as policies do, without a target.
const ALSO: [&str; 3] = ["MeshMultiZoneService", "MeshOpenTelemetryBackend", "HostnameGenerator"];

pub(crate) fn policies() -> impl Iterator<Item = &'static KindInfo> {
    kinds().iter().filter(|info| info.targets.is_some() || ALSO.contains(&info.kind.as_str()))
}

/// Every field of a kind that holds no others, with its schema; that of a targetRef is null.
pub(crate) fn fields(info: &KindInfo) -> Vec<(String, Value)> {
    let schema = info.schema().to_value();
    let mut rows = Vec::new();
    below(&schema, &schema, "", &mut Vec::new(), &mut rows);
    rows
}

/// The longest entry that covers a field decides.
pub(crate) fn standing(info: &KindInfo, path: &str) -> Standing {
    let covers = |entry: &str| {
        path == entry || path.strip_prefix(entry).is_some_and(|rest| rest.starts_with(['.', '[']))
    };
    let covering = info.fields.iter().filter(|(entry, _)| covers(entry));
    covering.max_by_key(|(entry, _)| entry.len()).map_or(Standing::Executed, |(_, standing)| *standing)
}

/// References to what a policy selects are the same everywhere: one row.
fn below(root: &Value, schema: &Value, path: &str, above: &mut Vec<String>, rows: &mut Vec<(String, Value)>) {
    let (schema, name) = resolved(root, schema);
    if name.as_ref().is_some_and(|name| above.contains(name)) {
        return;
    }
    let is_selection = name.as_deref() == Some("TargetRef");
    above.extend(name.clone());
    for (field, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        if !is_selection {
            one(root, schema, &path, above, rows);
        }
    }
    if name.is_some() {
        above.pop();
    }
}

fn one(root: &Value, schema: &Value, path: &str, above: &mut Vec<String>, rows: &mut Vec<(String, Value)>) {
    let (inner, name) = resolved(root, schema);
    if let Some(items) = inner.get("items") {
        return one(root, items, &format!("{path}[]"), above, rows);
    }
    if name.as_deref() == Some("TargetRef") {
        return rows.push((path.to_owned(), Value::Null));
    }
    if inner.get("properties").is_some() {
        return below(root, schema, path, above, rows);
    }
    rows.push((path.to_owned(), inner.clone()));
}

/// A schema without its references and its "or nothing"; with the name of the definition that it is.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> (&'a Value, Option<String>) {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let name = target.trim_start_matches("#/$defs/");
        let (inner, deeper) = resolved(root, &root["$defs"][name]);
        return (inner, deeper.or_else(|| Some(name.to_owned())));
    }
    for list in ["anyOf", "allOf", "oneOf"] {
        let options = schema.get(list).and_then(Value::as_array);
        let mut options = options.into_iter().flatten().filter(|option| option["type"] != "null");
        if let (Some(only), None) = (options.next(), options.next()) {
            return resolved(root, only);
        }
    }
    (schema, None)
}
