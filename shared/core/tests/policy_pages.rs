//! `docs/policies`: every kind of policy has a page, its examples are accepted, and its table of fields is what the schema
//! says. `UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages` writes the tables anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use meridian_core::{KindInfo, Standing, document, kinds};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is between them is written by the test.
const BEGIN: &str =
    "<!-- fields: written from the schema; UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages -->";
const END: &str = "<!-- end of fields -->";

/// Kinds with a page that are no policies, and a policy whose page is part of the security chapter.
const ALSO: [&str; 3] = ["MeshMultiZoneService", "MeshOpenTelemetryBackend", "HostnameGenerator"];
const ELSEWHERE: [&str; 1] = ["MeshTrafficPermission"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policies")
}

/// The kinds that have a page.
fn documented() -> impl Iterator<Item = &'static KindInfo> {
    kinds().iter().filter(|info| {
        let name = info.kind.as_str();
        (info.targets.is_some() && !ELSEWHERE.contains(&name)) || ALSO.contains(&name)
    })
}

fn page_of(info: &KindInfo) -> PathBuf {
    folder().join(format!("{}.md", info.kind.as_str().to_ascii_lowercase()))
}

#[test]
fn every_policy_has_a_page_and_every_page_a_policy() {
    let mut wanted: Vec<PathBuf> = documented().map(page_of).collect();
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn every_example_is_accepted() {
    for info in documented() {
        let page = page_of(info);
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks: Vec<&str> = text
            .split("```yaml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap_or_default())
            .collect();
        assert!(!blocks.is_empty(), "{} has no example", page.display());
        for block in blocks {
            for document in block.split("\n---\n") {
                let value = document::parse_text(document)
                    .unwrap_or_else(|problem| panic!("{}: {problem:?}\n{document}", page.display()));
                let checked = document::check(&value, None);
                assert!(checked.is_ok(), "{}: {checked:?}\n{document}", page.display());
            }
        }
        let own = format!("type: {}", info.kind);
        assert!(text.contains(&own), "{} has no example of its own kind", page.display());
    }
}

#[test]
fn the_table_of_fields_is_what_the_schema_says() {
    let mut stale = Vec::new();
    for info in documented() {
        let page = page_of(info);
        let text = std::fs::read_to_string(&page).unwrap();
        let written = with_table(&text, &table(info));
        match std::env::var_os("UPDATE_DOCS") {
            _ if written == text => {}
            Some(_) => std::fs::write(&page, &written).unwrap(),
            None => stale.push(page),
        }
    }
    assert!(stale.is_empty(), "UPDATE_DOCS=1 cargo test -p meridian-core --test policy_pages\n{stale:#?}");
}

/// A page with this table in place of the one that it has, or at its end.
fn with_table(page: &str, table: &str) -> String {
    let part = format!("{BEGIN}\n{table}{END}\n");
    match (page.split_once(BEGIN), page.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{part}{}", after.trim_start_matches('\n')),
        _ => format!("{}\n\n## Fields\n\n{part}", page.trim_end()),
    }
}

fn table(info: &KindInfo) -> String {
    let schema = info.schema().to_value();
    let mut rows = Vec::new();
    fields(&schema, &schema, "", &mut Vec::new(), &mut rows);
    let mut out = "| field | | |\n|---|---|---|\n".to_owned();
    for (path, form) in rows {
        let standing = match standing(info, &path) {
            Standing::Executed => "",
            Standing::Warned(_) => "warned",
            Standing::Refused(_) => "refused",
        };
        let _ = writeln!(out, "| `{path}` | {form} | {standing} |");
    }
    out
}

/// The longest entry that covers a field decides.
fn standing(info: &KindInfo, path: &str) -> Standing {
    let covers = |entry: &str| {
        path == entry || path.strip_prefix(entry).is_some_and(|rest| rest.starts_with(['.', '[']))
    };
    let covering = info.fields.iter().filter(|(entry, _)| covers(entry));
    covering.max_by_key(|(entry, _)| entry.len()).map_or(Standing::Executed, |(_, standing)| *standing)
}

/// Every field below a schema, with its form. References to what a policy selects are the same everywhere: one row.
fn fields(
    root: &Value,
    schema: &Value,
    path: &str,
    above: &mut Vec<String>,
    rows: &mut Vec<(String, String)>,
) {
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

fn one(root: &Value, schema: &Value, path: &str, above: &mut Vec<String>, rows: &mut Vec<(String, String)>) {
    let (inner, name) = resolved(root, schema);
    if let Some(items) = inner.get("items") {
        return one(root, items, &format!("{path}[]"), above, rows);
    }
    if name.as_deref() == Some("TargetRef") {
        return rows.push((path.to_owned(), "a targetRef".to_owned()));
    }
    if inner.get("properties").is_some() {
        return fields(root, schema, path, above, rows);
    }
    rows.push((path.to_owned(), form(inner)));
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

fn form(schema: &Value) -> String {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let texts = values.iter().filter_map(Value::as_str);
        return texts.map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).filter(|it| *it != "null").collect(),
        Value::String(one) => vec![one.as_str()],
        _ => vec![],
    };
    let words: Vec<&str> = types
        .into_iter()
        .map(|type_| match (type_, schema["format"].as_str()) {
            ("string", Some(format)) if format.contains("duration") => "duration",
            ("string", _) => "text",
            ("integer" | "number", _) => "number",
            ("boolean", _) => "true or false",
            ("object", _) => "map",
            (other, _) => other,
        })
        .collect();
    words.join(" or ")
}
